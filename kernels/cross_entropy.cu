// cross_entropy: the loss of logits against targets, and its gradient at the logits.
// Math:      loss[r] = log(sum over c of exp(x[r][c])) - x[r][t], with t the target of row r; dx = scale * (softmax(x) - one_hot(t));
//            hit[r] = 1 if t is the first c with the largest x[r][c]. All are 0 where t is the ignored one
// Source:    Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018), algorithm 3, for long rows
// Tensors:   x, dx (M, V) row-major in one type; targets (M); rows (M, 2) f32: loss and hit
// Numerics:  f32, the largest logit subtracted first; sums in an order that depends on V only, each row on its own. NaN and
//            +inf give a loss of NaN, and no hit
// Requires:  targets below V
// Tiling:    a warp per row keeps up to 256 logits in registers; longer rows have a block and are read twice, the second time
//            from the caches
// Roofline:  2 * M * V elements moved: memory-bound, a launch's latency for a batch of captions
// Measured:  not yet measured
#include "prelude.cuh"

namespace {

constexpr int WARP_BLOCK = 128, WARP_ROWS = WARP_BLOCK / WARP;
constexpr int WARP_STEPS = 8;  // logits of a lane
constexpr int BLOCK = 256, WARPS = BLOCK / WARP;

}  // namespace

struct CrossEntropyParams {
    const void* logits;
    const unsigned* targets;
    float* rows;
    void* dlogits;
    int count;  // M
    int columns;
    unsigned ignored;
    float scale;
};
SIZE_OF(CrossEntropyParams, 48);

// Of each warp of a block.
struct CrossEntropyShared {
    float largest[WARPS];
    float sum[WARPS];
    unsigned first[WARPS];
};
SIZE_OF(CrossEntropyShared, 96);

namespace {

// The largest of some logits, the lowest column of it, and the sum of exp(x - largest).
struct Softmax {
    float largest = -3.402823466e38f;  // so that -inf is never subtracted from itself
    float sum = 0.0f;
    unsigned first = 0xffffffffu;
};

// exp(v).
DEVICE float exponential(float v) { return exp2_fast(v * LOG2_E); }

// Of the whole warp; every lane gets it.
DEVICE Softmax join(const Softmax& lane) {
    Softmax all;
    all.largest = warp_max(lane.largest);
    all.sum = warp_sum(lane.sum * exponential(lane.largest - all.largest));
    all.first = ~warp_largest(lane.largest == all.largest ? ~lane.first : 0);
    return all;
}

// By one thread.
DEVICE void store_row(const CrossEntropyParams& p, int row, unsigned target, float at_target, const Softmax& of) {
    const float loss = (of.largest - at_target) + logf(of.sum);
    p.rows[2 * int64_t(row)] = loss;
    p.rows[2 * int64_t(row) + 1] = of.first == target && loss == loss ? 1.0f : 0.0f;
}

template <typename T> DEVICE void warp_per_row(const CrossEntropyParams& p) {
    const int row = blockIdx.x * WARP_ROWS + warp_index(), columns = p.columns;
    if (row >= p.count) return;
    const unsigned target = p.targets[row];
    const T* x = static_cast<const T*>(p.logits) + int64_t(row) * columns;
    T* dx = static_cast<T*>(p.dlogits) + int64_t(row) * columns;
    if (target == p.ignored) {
        for (int c = lane_index(); c < columns; c += WARP) dx[c] = from_float<T>(0.0f);
        if (lane_index() < 2) p.rows[2 * int64_t(row) + lane_index()] = 0.0f;
        return;
    }
    float values[WARP_STEPS];
    Softmax lane;
#pragma unroll
    for (int step = 0; step < WARP_STEPS; step++) {
        const int c = step * WARP + lane_index();
        values[step] = c < columns ? to_float(x[c]) : -INFINITY;
    }
#pragma unroll
    for (int step = 0; step < WARP_STEPS; step++) {
        if (values[step] > lane.largest) {
            lane.largest = values[step];
            lane.first = step * WARP + lane_index();
        }
    }
    const float largest = warp_max(lane.largest);
#pragma unroll
    for (int step = 0; step < WARP_STEPS; step++) {
        values[step] = exponential(values[step] - largest);
        lane.sum += values[step];
    }
    // The lane's sum is of exp(x - largest) already.
    const unsigned first = ~warp_largest(lane.largest == largest ? ~lane.first : 0);
    const Softmax all = {largest, warp_sum(lane.sum), first};
    const float share = 1.0f / all.sum;
#pragma unroll
    for (int step = 0; step < WARP_STEPS; step++) {
        const int c = step * WARP + lane_index();
        if (c >= columns) continue;
        dx[c] = from_float<T>(p.scale * (values[step] * share - (unsigned(c) == target ? 1.0f : 0.0f)));
    }
    if (lane_index() == 0) store_row(p, row, target, to_float(x[target]), all);
}

template <typename T> DEVICE void block_per_row(const CrossEntropyParams& p) {
    CrossEntropyShared& shared = shared_memory<CrossEntropyShared>();
    const int row = blockIdx.x, columns = p.columns;
    const unsigned target = p.targets[row];
    const T* x = static_cast<const T*>(p.logits) + int64_t(row) * columns;
    T* dx = static_cast<T*>(p.dlogits) + int64_t(row) * columns;
    if (target == p.ignored) {
        for (int c = threadIdx.x; c < columns; c += BLOCK) dx[c] = from_float<T>(0.0f);
        if (threadIdx.x < 2) p.rows[2 * int64_t(row) + threadIdx.x] = 0.0f;
        return;
    }
    Softmax mine;
#pragma unroll 4
    for (int c = threadIdx.x; c < columns; c += BLOCK) {
        const float v = to_float(x[c]);
        if (v > mine.largest) {
            mine.sum *= exponential(mine.largest - v);
            mine.largest = v;
            mine.first = c;
        }
        mine.sum += exponential(v - mine.largest);
    }
    mine = join(mine);
    if (lane_index() == 0) {
        shared.largest[warp_index()] = mine.largest;
        shared.sum[warp_index()] = mine.sum;
        shared.first[warp_index()] = mine.first;
    }
    sync_block();
    // Every warp joins the results of all warps, a lane each.
    Softmax lane;
    if (lane_index() < WARPS) lane = {shared.largest[lane_index()], shared.sum[lane_index()], shared.first[lane_index()]};
    const Softmax all = join(lane);
    const float share = 1.0f / all.sum, at_target = to_float(x[target]);
#pragma unroll 4
    for (int c = threadIdx.x; c < columns; c += BLOCK) {
        const float v = exponential(to_float(x[c]) - all.largest) * share;
        dx[c] = from_float<T>(p.scale * (v - (unsigned(c) == target ? 1.0f : 0.0f)));
    }
    if (threadIdx.x == 0) store_row(p, row, target, at_target, all);
}

}  // namespace

// Grid: ceil(M / 4) blocks; a warp owns a row. V <= 256.
KERNEL(cross_entropy_forward_warp_per_row_bf16, CrossEntropyParams, 128, 8) { warp_per_row<bf16>(params); }
KERNEL(cross_entropy_forward_warp_per_row_f32, CrossEntropyParams, 128, 8) { warp_per_row<float>(params); }

// Grid: M blocks; a block owns a row. Shared memory: CrossEntropyShared.
KERNEL(cross_entropy_forward_block_per_row_bf16, CrossEntropyParams, 256, 4) { block_per_row<bf16>(params); }
KERNEL(cross_entropy_forward_block_per_row_f32, CrossEntropyParams, 256, 4) { block_per_row<float>(params); }
