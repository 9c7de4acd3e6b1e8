// instance_norm: normalise each channel over time, then scale, shift and activate: a group norm with a group for each channel.
// Math:      y = act((x - mean) rstd weight + bias), mean and rstd = rsqrt(var + eps) of a column of x, with the biased variance
// Source:    Ulyanov, Vedaldi and Lempitsky, "Instance Normalization" (2016), equation 4; as the first norm of Hsu et al.,
//            "HuBERT" (2021)
// Tensors:   x, y (T, C) row-major, one type; weight, bias (C) f32. A table has first row and frames of each sequence in
//            x; rows of none are neither read nor written
// Numerics:  f32. A share of frames sums its differences from its first frame, and the squares of these; shares are combined
//            in order (Chan, Golub and LeVeque 1983), so results depend neither on the device, the grid nor other sequences
// Requires:  nothing
// Tiling:    a thread owns a channel of a share of frames, so a warp reads neighbours; the shares depend on the sequence's
//            frames only
// Roofline:  x is read twice, y written: 3 T C elements, memory-bound
// Measured:  not yet measured
#include "linear/activation.cuh"

namespace {

constexpr int CHANNELS = 256;  // threads of a block, a channel each
// Shares of a sequence at most, and frames of a share at least.
constexpr int MAX_SHARES = 256, MIN_SHARE = 64;

}  // namespace

struct InstanceNormParams {
    const void* x;
    void* y;
    const float* weight;
    const float* bias;
    const int* sequences;  // (B, 2): first row and frames of each
    float* moments;  // (B, shares, 2, C): means, and sums of squared differences from them
    float* applied;  // (B, 2, C): means, and weight times rstd
    int channels;
    int shares;      // of the sequence that has most
    float eps;
    int activation;  // ACTIVATION_*
};
SIZE_OF(InstanceNormParams, 72);

namespace {

// The sequence of a block and the frames of one of its shares.
struct Sequence {
    int first, frames, share;

    DEVICE explicit Sequence(const InstanceNormParams& p)
        : first(p.sequences[2 * blockIdx.z]), frames(p.sequences[2 * blockIdx.z + 1]),
          share(max((frames + MAX_SHARES - 1) / MAX_SHARES, MIN_SHARE)) {}
};

template <typename T> DEVICE void moments(const InstanceNormParams& p) {
    const Sequence own(p);
    const int c = blockIdx.x * CHANNELS + threadIdx.x, first = blockIdx.y * own.share;
    if (c >= p.channels || first >= own.frames) return;
    const int count = min(own.share, own.frames - first);
    const T* x = static_cast<const T*>(p.x) + (int64_t(own.first) + first) * p.channels + c;
    const float origin = to_float(x[0]);
    float sum = 0.0f, squares = 0.0f;
#pragma unroll 8
    for (int i = 0; i < count; i++) {
        const float v = to_float(x[int64_t(i) * p.channels]) - origin;
        sum += v;
        squares = fmaf(v, v, squares);
    }
    float* out = p.moments + (int64_t(blockIdx.z) * p.shares + blockIdx.y) * 2 * p.channels + c;
    out[0] = origin + sum / count;
    out[p.channels] = fmaxf(squares - sum * (sum / count), 0.0f);
}

template <typename T> DEVICE void apply(const InstanceNormParams& p) {
    const Sequence own(p);
    const int c = blockIdx.x * CHANNELS + threadIdx.x, first = blockIdx.y * own.share;
    if (c >= p.channels || first >= own.frames) return;
    const float* applied = p.applied + int64_t(blockIdx.z) * 2 * p.channels + c;
    const float mean = applied[0], scale = applied[p.channels], bias = p.bias[c];
    const int count = min(own.share, own.frames - first);
    const int64_t at = (int64_t(own.first) + first) * p.channels + c;
    const T* x = static_cast<const T*>(p.x) + at;
    T* y = static_cast<T*>(p.y) + at;
#pragma unroll 4
    for (int i = 0; i < count; i++) {
        const int64_t frame = int64_t(i) * p.channels;
        float v[1] = {fmaf(to_float(x[frame]) - mean, scale, bias)};
        activate(p.activation, v);
        y[frame] = from_float<T>(v[0]);
    }
}

}  // namespace

// Grid: ceil(C / 256) blocks times the shares times the sequences; a thread owns a channel of a share.
KERNEL(instance_norm_forward_moments_bf16, InstanceNormParams, 256, 4) { moments<bf16>(params); }
KERNEL(instance_norm_forward_moments_f32, InstanceNormParams, 256, 4) { moments<float>(params); }

// Grid: ceil(C / 256) blocks, times the sequences in z; a thread combines the shares of a channel.
KERNEL(instance_norm_forward_combine_f32, InstanceNormParams, 256, 1) {
    const int c = blockIdx.x * CHANNELS + threadIdx.x;
    const Sequence own(params);
    if (c >= params.channels || own.frames == 0) return;
    float count = 0.0f, mean = 0.0f, squares = 0.0f;
#pragma unroll 4
    for (int i = 0; i * own.share < own.frames; i++) {
        const float* share = params.moments + (int64_t(blockIdx.z) * params.shares + i) * 2 * params.channels + c;
        const float added = min(own.share, own.frames - i * own.share), total = count + added;
        const float difference = share[0] - mean, part = added / total;
        mean = fmaf(difference, part, mean);
        squares += share[params.channels] + difference * difference * count * part;
        count = total;
    }
    float* applied = params.applied + int64_t(blockIdx.z) * 2 * params.channels + c;
    applied[0] = mean;
    applied[params.channels] = params.weight[c] * rsqrtf(squares / count + params.eps);
}

// Grid: as that of the moments.
KERNEL(instance_norm_forward_apply_bf16, InstanceNormParams, 256, 4) { apply<bf16>(params); }
KERNEL(instance_norm_forward_apply_f32, InstanceNormParams, 256, 4) { apply<float>(params); }
