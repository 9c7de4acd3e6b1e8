// layer_norm: normalise each row over C, then scale and shift.
// Math:      y = (x - mean(x)) * rsqrt(var(x) + eps) * weight + bias, with the biased variance
// Source:    Ba, Kiros and Hinton, "Layer Normalization" (2016), equations 3 and 4
// Tensors:   x, y (M, C) row-major; weight, bias (C) f32
// Numerics:  f32 throughout, two passes over values kept in registers; deterministic, each row on its own
// Requires:  nothing; rows of C % 8 == 0, 16-byte aligned, of up to 1024 values are read once, as vectors
// Roofline:  2 * M * C elements moved: memory-bound
// Measured:  NVIDIA H200, driver 580.159.04, commit 449c6ab: `im2sp doctor --op =layer_norm` (cold L2, lightly contended):
//            bf16 257x1024 in 6.5 us, 16448x1024 in 23.6 (2.85 TB/s, 67 % of a copy's there); f32 16448x1024 in 43.3 (3.11
//            TB/s). ncu, `im2sp bench --random --dtype bf16 --units 50`: bf16 257x1024 in 4.3 us
#include "vector.cuh"

namespace {

constexpr int BLOCK = 128;     // threads; a warp per row up to C = 1024, else a block per row
constexpr int WARP_STEPS = 4;  // such loads a lane keeps in registers: rows of up to 1024 values

struct BlockSums {
    float part[BLOCK / WARP];
};

// Sum over the block; every thread gets it. `sums` must not be in use.
DEVICE float block_sum(float v, BlockSums& sums) {
    v = warp_sum(v);
    if (lane_index() == 0) sums.part[warp_index()] = v;
    sync_block();
    float total = 0.0f;
#pragma unroll
    for (int warp = 0; warp < BLOCK / WARP; warp++) total += sums.part[warp];
    sync_block();
    return total;
}

}  // namespace

struct LayerNormParams {
    const void* x;
    void* y;
    const float* weight;
    const float* bias;
    int rows;
    int channels;
    float eps;
    int unused;
};
SIZE_OF(LayerNormParams, 48);
SIZE_OF(BlockSums, 16);

namespace {

template <typename T> DEVICE void warp_per_row(const LayerNormParams& params) {
    const int row = blockIdx.x * (BLOCK / WARP) + warp_index();
    if (row >= params.rows) return;
    const int channels = params.channels;
    const Vector<T>* x = reinterpret_cast<const Vector<T>*>(static_cast<const T*>(params.x) + int64_t(row) * channels);
    float values[WARP_STEPS][VECTOR];
    float sum = 0.0f;
#pragma unroll
    for (int step = 0; step < WARP_STEPS; step++) {
        const int at = step * WARP + lane_index();
        if (at * VECTOR >= channels) continue;
        unpack(x[at], values[step]);
#pragma unroll
        for (int i = 0; i < VECTOR; i++) sum += values[step][i];
    }
    const float mean = warp_sum(sum) / channels;
    float squares = 0.0f;
#pragma unroll
    for (int step = 0; step < WARP_STEPS; step++) {
        if ((step * WARP + lane_index()) * VECTOR >= channels) continue;
#pragma unroll
        for (int i = 0; i < VECTOR; i++) {
            const float centred = values[step][i] - mean;
            squares += centred * centred;
        }
    }
    const float rstd = rsqrtf(warp_sum(squares) / channels + params.eps);
    Vector<T>* y = reinterpret_cast<Vector<T>*>(static_cast<T*>(params.y) + int64_t(row) * channels);
#pragma unroll
    for (int step = 0; step < WARP_STEPS; step++) {
        const int at = step * WARP + lane_index();
        if (at * VECTOR >= channels) continue;
        float weight[VECTOR], bias[VECTOR], out[VECTOR];
        unpack(reinterpret_cast<const Vector<float>*>(params.weight)[at], weight);
        unpack(reinterpret_cast<const Vector<float>*>(params.bias)[at], bias);
#pragma unroll
        for (int i = 0; i < VECTOR; i++) out[i] = (values[step][i] - mean) * rstd * weight[i] + bias[i];
        pack(out, y[at]);
    }
}

// Any C: the row is read three times, the second and third time from the caches.
template <typename T> DEVICE void block_per_row(const LayerNormParams& params) {
    BlockSums& sums = shared_memory<BlockSums>();
    const int channels = params.channels;
    const T* x = static_cast<const T*>(params.x) + int64_t(blockIdx.x) * channels;
    T* y = static_cast<T*>(params.y) + int64_t(blockIdx.x) * channels;
    float sum = 0.0f;
    for (int c = threadIdx.x; c < channels; c += BLOCK) sum += to_float(x[c]);
    const float mean = block_sum(sum, sums) / channels;
    float squares = 0.0f;
    for (int c = threadIdx.x; c < channels; c += BLOCK) {
        const float centred = to_float(x[c]) - mean;
        squares += centred * centred;
    }
    const float rstd = rsqrtf(block_sum(squares, sums) / channels + params.eps);
    for (int c = threadIdx.x; c < channels; c += BLOCK) {
        y[c] = from_float<T>((to_float(x[c]) - mean) * rstd * params.weight[c] + params.bias[c]);
    }
}

}  // namespace

// Grid: ceil(M / 4) blocks; a warp owns a row and keeps it in registers. C % 8 == 0, C <= 1024, rows 16-byte aligned.
KERNEL(layer_norm_forward_warp_per_row_bf16, LayerNormParams, 128, 8) { warp_per_row<bf16>(params); }
KERNEL(layer_norm_forward_warp_per_row_f32, LayerNormParams, 128, 8) { warp_per_row<float>(params); }

// Grid: M blocks; a block owns a row. Shared memory: BlockSums.
KERNEL(layer_norm_forward_block_per_row_bf16, LayerNormParams, 128, 8) { block_per_row<bf16>(params); }
KERNEL(layer_norm_forward_block_per_row_f32, LayerNormParams, 128, 8) { block_per_row<float>(params); }
