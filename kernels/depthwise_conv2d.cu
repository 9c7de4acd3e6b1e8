// depthwise_conv2d: 2-D convolution of every channel of a map by itself, with square windows, a stride and zero padding.
// Math:      y[b, i, j, c] = act(sum over (u, v) of x[b, i s + u - p, j s + v - p, c] w[(u, v), c] + bias[c]), zeros outside
// Source:    Howard et al., "MobileNets" (2017), section 3.1
// Tensors:   x (B*side*side, C), y (B*G*G, C) row-major, one type; weight (taps * taps, C) and bias (C), f32
// Numerics:  f32 sums in the order of the taps, then the bias and the activation; rounded once
// Requires:  nothing; channels go in eights where C % 8 == 0, one by one otherwise
// Roofline:  2 * taps^2 operations for an element of y: x is read and y written once, memory-bound. Neighbouring windows share
//            their pixels through the L1, and all windows the weights
// Measured:  not yet measured
#include "linear/activation.cuh"
#include "vector.cuh"

struct DepthwiseConv2dParams {
    const void* x;
    const float* weight;
    const float* bias;
    void* y;
    int batch;
    int channels;  // C
    int side;
    int grid;  // G
    int taps;
    int stride;
    int before;  // zeros before the first pixel
    int activation;
};
SIZE_OF(DepthwiseConv2dParams, 64);

namespace {

constexpr int BLOCK = 256;

// Eight values of a row that has `count` of them left.
template <bool VECTORS, typename T> DEVICE void load_eight(const T* from, int count, float (&values)[VECTOR]) {
    if constexpr (VECTORS) {
        unpack(*reinterpret_cast<const Vector<T>*>(from), values);
    } else {
#pragma unroll
        for (int i = 0; i < VECTOR; i++) values[i] = i < count ? to_float(from[i]) : 0.0f;
    }
}

// Eight channels of one window.
template <typename T, bool VECTORS> DEVICE void window(const DepthwiseConv2dParams& p) {
    const int64_t index = int64_t(blockIdx.x) * BLOCK + threadIdx.x;
    const int groups = (p.channels + VECTOR - 1) / VECTOR, area = p.grid * p.grid;
    if (index >= int64_t(p.batch) * area * groups) return;
    const int64_t row = index / groups;
    const int c = int(index % groups) * VECTOR, place = int(row % area), count = min(VECTOR, p.channels - c);
    const int top = place / p.grid * p.stride - p.before, left = place % p.grid * p.stride - p.before;
    const T* map = static_cast<const T*>(p.x) + row / area * p.side * p.side * p.channels + c;
    float sums[VECTOR] = {};
    for (int u = 0; u < p.taps; u++) {
        const int y = top + u;
        if (y < 0 || y >= p.side) continue;
        for (int v = 0; v < p.taps; v++) {
            const int x = left + v;
            if (x < 0 || x >= p.side) continue;
            float pixels[VECTOR], weights[VECTOR];
            load_eight<VECTORS>(map + (int64_t(y) * p.side + x) * p.channels, count, pixels);
            load_eight<VECTORS>(p.weight + int64_t(u * p.taps + v) * p.channels + c, count, weights);
#pragma unroll
            for (int i = 0; i < VECTOR; i++) sums[i] += pixels[i] * weights[i];
        }
    }
    float bias[VECTOR];
    load_eight<VECTORS>(p.bias + c, count, bias);
#pragma unroll
    for (int i = 0; i < VECTOR; i++) sums[i] += bias[i];
    activate(p.activation, sums);
    T* y = static_cast<T*>(p.y) + row * p.channels + c;
    if constexpr (VECTORS) {
        pack(sums, *reinterpret_cast<Vector<T>*>(y));
    } else {
#pragma unroll
        for (int i = 0; i < VECTOR; i++) {
            if (i < count) y[i] = from_float<T>(sums[i]);
        }
    }
}

}  // namespace

// Grid: ceil(B*G*G * ceil(C / 8) / 256) blocks; a thread owns eight channels of a window. C % 8 == 0.
KERNEL(depthwise_conv2d_forward_bf16, DepthwiseConv2dParams, 256, 4) { window<bf16, true>(params); }
KERNEL(depthwise_conv2d_forward_f32, DepthwiseConv2dParams, 256, 4) { window<float, true>(params); }

// Grid: as above, for any C.
KERNEL(depthwise_conv2d_forward_unaligned_bf16, DepthwiseConv2dParams, 256, 4) { window<bf16, false>(params); }
KERNEL(depthwise_conv2d_forward_unaligned_f32, DepthwiseConv2dParams, 256, 4) { window<float, false>(params); }
