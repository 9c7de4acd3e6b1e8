// layer_norm: normalise each row over C, then scale and shift; and backwards.
// Math:      y = x^ weight + bias, x^ = (x - mean(x)) rstd, rstd = rsqrt(var(x) + eps), with the biased variance.
//            dx = rstd (w dy - mean(w dy) - x^ mean(w dy x^)) + residual; dweight += sum dy x^, dbias += sum dy, over rows
// Source:    Ba, Kiros and Hinton, "Layer Normalization" (2016), equations 3 and 4
// Tensors:   x, y, dy, residual, dx (M, C) row-major, one type; weight, bias and their gradients (C) f32; saved (M, 2) f32,
//            mean and rstd of each row, written where its pointer is not null
// Numerics:  f32 throughout, two passes over values kept in registers; deterministic, each row on its own. Gradients of weight
//            and bias: sums over the rows of a block, each warp's in order, then its warps in order; then over the blocks,
//            32 runs of them in order, then the runs in order. The rows of a block depend on M only
// Requires:  nothing; rows of C % 8 == 0, 16-byte aligned, of up to 1024 values are read once, as vectors
// Roofline:  2 * M * C elements moved, backwards 3 and 4 with a residual: memory-bound
// Measured:  NVIDIA H200, driver 580.159.04, commit 449c6ab: `im2sp doctor --op =layer_norm` (cold L2, lightly contended):
//            bf16 257x1024 in 6.5 us, 16448x1024 in 23.6 (2.85 TB/s, 67 % of a copy's there); f32 16448x1024 in 43.3 (3.11
//            TB/s). ncu, `im2sp bench --random --dtype bf16 --units 50`: bf16 257x1024 in 4.3 us. Backwards: not yet measured
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
    float* saved;
    int rows;
    int channels;
    float eps;
    int unused;
};
SIZE_OF(LayerNormParams, 56);
SIZE_OF(BlockSums, 16);

namespace {

DEVICE void save(const LayerNormParams& params, int row, float mean, float rstd) {
    reinterpret_cast<float2*>(params.saved)[row] = make_float2(mean, rstd);
}

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
    if (params.saved && lane_index() == 0) save(params, row, mean, rstd);
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
    if (params.saved && threadIdx.x == 0) save(params, blockIdx.x, mean, rstd);
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

struct LayerNormBackwardParams {
    const void* dy;
    const void* x;
    const float* weight;
    const float* saved;
    const void* residual;  // null: none
    void* dx;
    float* sums;  // (blocks, 2, C): each block's part of dweight and dbias; null: not wanted
    int rows;
    int channels;
    int share;  // rows of a block
    int unused;
};
SIZE_OF(LayerNormBackwardParams, 72);

struct LayerNormReduceParams {
    const float* sums;
    float* dweight;
    float* dbias;
    int blocks;
    int channels;
};
SIZE_OF(LayerNormReduceParams, 32);

namespace {

constexpr int WARPS = BLOCK / WARP;
constexpr int WARP_CHANNELS = WARP_STEPS * WARP * VECTOR;

struct WarpSums {
    float part[WARPS][2][WARP_CHANNELS];
};
SIZE_OF(WarpSums, 32768);

constexpr int REDUCE_COLUMNS = 8, REDUCE_RUNS = 32;

struct RunSums {
    float part[REDUCE_RUNS][REDUCE_COLUMNS];
};
SIZE_OF(RunSums, 1024);

// Each warp's part of the gradients of weight and bias to shared memory, and their sums from there to the block's row.
DEVICE void write_sums(const LayerNormBackwardParams& params, const float (&dweight)[WARP_STEPS][VECTOR],
                       const float (&dbias)[WARP_STEPS][VECTOR]) {
    WarpSums& shared = shared_memory<WarpSums>();
    const int channels = params.channels;
#pragma unroll
    for (int step = 0; step < WARP_STEPS; step++) {
        const int at = step * WARP + lane_index();
        if (at * VECTOR >= channels) continue;
        pack(dweight[step], reinterpret_cast<Vector<float>*>(shared.part[warp_index()][0])[at]);
        pack(dbias[step], reinterpret_cast<Vector<float>*>(shared.part[warp_index()][1])[at]);
    }
    sync_block();
    float* sums = params.sums + int64_t(blockIdx.x) * 2 * channels;
    for (int i = threadIdx.x; i < 2 * channels; i += BLOCK) {
        const int which = i >= channels, c = i - which * channels;
        float total = 0.0f;
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++) total += shared.part[warp][which][c];
        sums[i] = total;
    }
}

// The rows of x and dy of a warp, as they come.
template <typename T> struct RowPair {
    Vector<T> x[WARP_STEPS], dy[WARP_STEPS];

    DEVICE void load(const LayerNormBackwardParams& params, int row) {
        const int64_t start = int64_t(row) * params.channels;
#pragma unroll
        for (int step = 0; step < WARP_STEPS; step++) {
            const int at = step * WARP + lane_index();
            if (at * VECTOR >= params.channels) continue;
            x[step] = reinterpret_cast<const Vector<T>*>(static_cast<const T*>(params.x) + start)[at];
            dy[step] = reinterpret_cast<const Vector<T>*>(static_cast<const T*>(params.dy) + start)[at];
        }
    }
    // x^ and dy.
    DEVICE void get(int step, float mean, float rstd, float (&normal)[VECTOR], float (&d)[VECTOR]) const {
        unpack(x[step], normal);
        unpack(dy[step], d);
#pragma unroll
        for (int i = 0; i < VECTOR; i++) normal[i] = (normal[i] - mean) * rstd;
    }
};

// The next row is on its way while one is worked on, as few registers as it comes in.
template <typename T> DEVICE void warp_per_row_backward(const LayerNormBackwardParams& params) {
    const int channels = params.channels, first = blockIdx.x * params.share + warp_index();
    const int end = min(int(blockIdx.x + 1) * params.share, params.rows);
    float dweight[WARP_STEPS][VECTOR] = {}, dbias[WARP_STEPS][VECTOR] = {};
    RowPair<T> next;
    if (first < end) next.load(params, first);
#pragma unroll 1
    for (int row = first; row < end; row += WARPS) {
        const RowPair<T> pair = next;
        if (row + WARPS < end) next.load(params, row + WARPS);
        const float2 saved = reinterpret_cast<const float2*>(params.saved)[row];
        const float mean = saved.x, rstd = saved.y;
        const Vector<float>* weights = reinterpret_cast<const Vector<float>*>(params.weight);
        float level = 0.0f, slope = 0.0f, weight[VECTOR], normal[VECTOR], d[VECTOR];
#pragma unroll
        for (int step = 0; step < WARP_STEPS; step++) {
            const int at = step * WARP + lane_index();
            if (at * VECTOR >= channels) continue;
            unpack(weights[at], weight);
            pair.get(step, mean, rstd, normal, d);
#pragma unroll
            for (int i = 0; i < VECTOR; i++) {
                dweight[step][i] = fmaf(d[i], normal[i], dweight[step][i]);
                dbias[step][i] += d[i];
                const float scaled = d[i] * weight[i];
                level += scaled;
                slope = fmaf(scaled, normal[i], slope);
            }
        }
        level = warp_sum(level) / channels;
        slope = warp_sum(slope) / channels;
        const int64_t start = int64_t(row) * channels;
        const T* residual = params.residual ? static_cast<const T*>(params.residual) + start : nullptr;
        Vector<T>* dx = reinterpret_cast<Vector<T>*>(static_cast<T*>(params.dx) + start);
#pragma unroll
        for (int step = 0; step < WARP_STEPS; step++) {
            const int at = step * WARP + lane_index();
            if (at * VECTOR >= channels) continue;
            float added[VECTOR] = {}, out[VECTOR];
            if (residual) unpack(reinterpret_cast<const Vector<T>*>(residual)[at], added);
            unpack(weights[at], weight);
            pair.get(step, mean, rstd, normal, d);
#pragma unroll
            for (int i = 0; i < VECTOR; i++) out[i] = rstd * (d[i] * weight[i] - level - normal[i] * slope) + added[i];
            pack(out, dx[at]);
        }
    }
    if (params.sums) write_sums(params, dweight, dbias);
}

// Any C: rows are read twice; the block's row of sums is in memory, where each thread owns the channels that it adds.
template <typename T> DEVICE void block_per_row_backward(const LayerNormBackwardParams& params) {
    BlockSums& shared = shared_memory<BlockSums>();
    const int channels = params.channels, first = blockIdx.x * params.share;
    const int end = min(first + params.share, params.rows);
    float* sums = params.sums ? params.sums + int64_t(blockIdx.x) * 2 * channels : nullptr;
    for (int row = first; row < end; row++) {
        const int64_t start = int64_t(row) * channels;
        const T* x = static_cast<const T*>(params.x) + start;
        const T* dy = static_cast<const T*>(params.dy) + start;
        const T* residual = params.residual ? static_cast<const T*>(params.residual) + start : nullptr;
        T* dx = static_cast<T*>(params.dx) + start;
        const float2 saved = reinterpret_cast<const float2*>(params.saved)[row];
        const float mean = saved.x, rstd = saved.y;
        float level = 0.0f, slope = 0.0f;
        for (int c = threadIdx.x; c < channels; c += BLOCK) {
            const float scaled = to_float(dy[c]) * params.weight[c];
            level += scaled;
            slope = fmaf(scaled, (to_float(x[c]) - mean) * rstd, slope);
        }
        level = block_sum(level, shared) / channels;
        slope = block_sum(slope, shared) / channels;
        for (int c = threadIdx.x; c < channels; c += BLOCK) {
            const float d = to_float(dy[c]), normal = (to_float(x[c]) - mean) * rstd;
            const float out = rstd * (d * params.weight[c] - level - normal * slope);
            dx[c] = from_float<T>(residual ? out + to_float(residual[c]) : out);
            if (!sums) continue;
            sums[c] = fmaf(d, normal, row == first ? 0.0f : sums[c]);
            sums[channels + c] = d + (row == first ? 0.0f : sums[channels + c]);
        }
    }
}

}  // namespace

// Grid: ceil(M / share) blocks; a warp owns every fourth row of its block's. Shared memory: WarpSums. As above for the forward
// pass: C % 8 == 0, C <= 1024.
KERNEL(layer_norm_backward_warp_per_row_bf16, LayerNormBackwardParams, 128, 3) { warp_per_row_backward<bf16>(params); }
KERNEL(layer_norm_backward_warp_per_row_f32, LayerNormBackwardParams, 128, 2) { warp_per_row_backward<float>(params); }

// Grid: ceil(M / share) blocks; a block takes one row after the other. Shared memory: BlockSums.
KERNEL(layer_norm_backward_block_per_row_bf16, LayerNormBackwardParams, 128, 8) { block_per_row_backward<bf16>(params); }
KERNEL(layer_norm_backward_block_per_row_f32, LayerNormBackwardParams, 128, 8) { block_per_row_backward<float>(params); }

// Grid: ceil(2 C / 8) blocks; a thread adds every 32nd block's part of one of eight columns. Shared memory: RunSums.
KERNEL(layer_norm_backward_reduce_f32, LayerNormReduceParams, 256, 4) {
    RunSums& shared = shared_memory<RunSums>();
    const int run = threadIdx.x / REDUCE_COLUMNS, own = threadIdx.x % REDUCE_COLUMNS;
    const int columns = 2 * params.channels, column = blockIdx.x * REDUCE_COLUMNS + own;
    float total = 0.0f;
    if (column < columns) {
#pragma unroll 4
        for (int block = run; block < params.blocks; block += REDUCE_RUNS) {
            total += params.sums[int64_t(block) * columns + column];
        }
    }
    shared.part[run][own] = total;
    sync_block();
    if (run > 0 || column >= columns) return;
    for (int other = 1; other < REDUCE_RUNS; other++) total += shared.part[other][own];
    *(column < params.channels ? params.dweight + column : params.dbias + (column - params.channels)) += total;
}
