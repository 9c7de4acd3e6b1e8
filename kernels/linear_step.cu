// linear_step: matrix products of the few rows of a decode step, which read the weights once.
// Math:      y = act(x weight^T + bias) + residual; act: none, GELU (erf) or quick GELU
// Tensors:   x (M, K), residual and y (M, N) f32; weight (N, K) bf16 or f32, row-major; bias (N) f32
// Tiling:    bf16: a block takes 16 weight rows and a run of K; its 8 warps take turns at pieces of 32 values of K. Weights
//            go from memory to registers in 16-byte loads and are the left operand of mma.sync m16n8k16; the rows of x are
//            the right one, eight at a time, split into a high and a low bf16 part, so that x counts with 16 bits. Inside a
//            piece K is taken in another order by both operands, so that a load is a fragment as it is. Runs of K that
//            other blocks have are added by the last block to finish. f32: a warp takes a weight row
// Numerics:  f32 sums; the order depends on N and K only, never on M, so a row does not depend on its neighbours
// Requires:  bf16 on tensor cores: K % 8 == 0
// Roofline:  the bytes of the weights
// Measured:  not yet measured
#include "tile.cuh"

struct LinearStepParams {
    const float* x;
    const void* weight;
    const float* bias;
    const float* residual;  // or null
    float* y;
    float* partials;        // (splits, M, N) where there are several
    unsigned* counters;     // one per block of rows, zero before and after
    int rows;
    int columns;
    int depth;
    int splits;
    int run;                // values of K of a split, a multiple of 256
    int activation;         // 0 none, 1 GELU, 2 quick GELU
};
SIZE_OF(LinearStepParams, 80);

namespace {

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / WARP;
constexpr int ROWS = 16;      // weight rows of a block
constexpr int BATCH = 8;      // rows of x of a product
constexpr int GROUPS = 4;     // such groups that go over the weights together
constexpr int PIECE = 32;     // values of K of a warp at a time

struct StepShared {
    float sums[WARPS][GROUPS][ROWS][BATCH];
    int last;
    int unused[3];
};
SIZE_OF(StepShared, 16400);

DEVICE float activated(float v, int activation) {
    if (activation == 1) return Gelu()(v);
    if (activation == 2) return QuickGelu()(v);
    return v;
}

DEVICE void finish(const LinearStepParams& p, int m, int n, float v) {
    v = activated(v + p.bias[n], p.activation);
    const int64_t at = int64_t(m) * p.columns + n;
    p.y[at] = p.residual ? v + p.residual[at] : v;
}

// Eight values of a row of x as two fragments of the right operand, high parts and low parts.
struct Right {
    uint32_t high[2][2], low[2][2];
};
DEVICE Right split(const float* x, bool wanted) {
    Right r = {};
    if (!wanted) return r;
    const float4 first = reinterpret_cast<const float4*>(x)[0], second = reinterpret_cast<const float4*>(x)[1];
    const float v[8] = {first.x, first.y, first.z, first.w, second.x, second.y, second.z, second.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint32_t high = pack_bf16(v[2 * i], v[2 * i + 1]);
        r.high[i / 2][i % 2] = high;
        r.low[i / 2][i % 2] = pack_bf16(v[2 * i] - low_float(high), v[2 * i + 1] - high_float(high));
    }
    return r;
}

// The sums of 16 weight rows with GROUPS * 8 rows of x from `first` on, over this block's run of K.
DEVICE void multiply(const LinearStepParams& p, int row, int first, int begin, int end, float (&sums)[GROUPS][4]) {
    const int lane = lane_index(), g = lane / 4, t = lane % 4;
    const bf16* weight = static_cast<const bf16*>(p.weight);
    // Rows beyond the last repeat it; their sums are not stored.
    const bf16* upper = weight + int64_t(min(row + g, p.columns - 1)) * p.depth;
    const bf16* lower = weight + int64_t(min(row + g + 8, p.columns - 1)) * p.depth;
    for (int k = begin + warp_index() * PIECE + t * 8; k - t * 8 < end; k += WARPS * PIECE) {
        const bool inside = k < end;
        const uint4 zeros = make_uint4(0, 0, 0, 0);
        const uint4 u = inside ? load_streaming(upper + k) : zeros, l = inside ? load_streaming(lower + k) : zeros;
        const uint32_t left[2][4] = {{u.x, l.x, u.y, l.y}, {u.z, l.z, u.w, l.w}};
#pragma unroll
        for (int group = 0; group < GROUPS; group++) {
            const int m = first + group * BATCH + g;
            // The same for a whole warp.
            if (first + group * BATCH >= p.rows) break;
            const Right right = split(p.x + int64_t(m) * p.depth + k, inside && m < p.rows);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                mma_m16n8k16(sums[group], left[half], right.low[half]);
                mma_m16n8k16(sums[group], left[half], right.high[half]);
            }
        }
    }
}

// Adds the warps' sums in their order; gives each to `store(m, n, value)`.
template <typename Store>
DEVICE void reduce(const LinearStepParams& p, StepShared& shared, int row, int first, const float (&sums)[GROUPS][4], const Store& store) {
    const int lane = lane_index(), g = lane / 4, t = lane % 4;
#pragma unroll
    for (int group = 0; group < GROUPS; group++) {
#pragma unroll
        for (int i = 0; i < 4; i++) shared.sums[warp_index()][group][g + i / 2 * 8][t * 2 + i % 2] = sums[group][i];
    }
    sync_block();
    for (int at = threadIdx.x; at < GROUPS * ROWS * BATCH; at += THREADS) {
        const int group = at / (ROWS * BATCH), n = at % ROWS, b = at / ROWS % BATCH;
        const int m = first + group * BATCH + b;
        if (m >= p.rows || row + n >= p.columns) continue;
        float total = 0.0f;
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++) total += shared.sums[warp][group][n][b];
        store(m, row + n, total);
    }
    sync_block();
}

// Whether this block is the last of those that share these weight rows.
DEVICE bool arrives_last(const LinearStepParams& p, StepShared& shared) {
    sync_block();
    if (threadIdx.x == 0) {
        unsigned* counter = p.counters + blockIdx.x;
        const unsigned before = atomic_add_acq_rel(counter, 1);
        shared.last = before == unsigned(p.splits) - 1;
        if (shared.last) *counter = 0;
    }
    sync_block();
    return shared.last;
}

}  // namespace

// Grid: (ceil(N / 16), splits). Shared memory: StepShared.
KERNEL(linear_step_forward_bf16, LinearStepParams, 256, 4) {
    StepShared& shared = shared_memory<StepShared>();
    const LinearStepParams& p = params;
    const int row = blockIdx.x * ROWS, split = blockIdx.y;
    const int begin = split * p.run, end = min(p.depth, begin + p.run);
    for (int first = 0; first < p.rows; first += GROUPS * BATCH) {
        float sums[GROUPS][4] = {};
        multiply(p, row, first, begin, end, sums);
        reduce(p, shared, row, first, sums, [&](int m, int n, float v) {
            if (p.splits == 1) finish(p, m, n, v);
            else p.partials[(int64_t(split) * p.rows + m) * p.columns + n] = v;
        });
    }
    if (p.splits == 1 || !arrives_last(p, shared)) return;
    for (int at = threadIdx.x; at < p.rows * ROWS; at += THREADS) {
        const int m = at / ROWS, n = row + at % ROWS;
        if (n >= p.columns) continue;
        float total = 0.0f;
        for (int s = 0; s < p.splits; s++) total += p.partials[(int64_t(s) * p.rows + m) * p.columns + n];
        finish(p, m, n, total);
    }
}

namespace {

// A warp per weight row, eight rows of x at a time.
template <typename T> DEVICE void row_per_warp(const LinearStepParams& p) {
    const int n = blockIdx.x * WARPS + warp_index(), lane = lane_index();
    if (n >= p.columns) return;
    const T* weight = static_cast<const T*>(p.weight) + int64_t(n) * p.depth;
    for (int first = 0; first < p.rows; first += BATCH) {
        float sums[BATCH] = {};
        for (int k = lane; k < p.depth; k += WARP) {
            const float w = to_float(weight[k]);
#pragma unroll
            for (int b = 0; b < BATCH; b++) {
                if (first + b < p.rows) sums[b] = fmaf(w, p.x[int64_t(first + b) * p.depth + k], sums[b]);
            }
        }
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
            const float total = warp_sum(sums[b]);
            if (lane == 0 && first + b < p.rows) finish(p, first + b, n, total);
        }
    }
}

}  // namespace

// Grid: ceil(N / 8) blocks; a warp owns a weight row. For f32, and for rows that are not 16-byte aligned.
KERNEL(linear_step_forward_row_per_warp_bf16, LinearStepParams, 256, 4) { row_per_warp<bf16>(params); }
KERNEL(linear_step_forward_row_per_warp_f32, LinearStepParams, 256, 4) { row_per_warp<float>(params); }
