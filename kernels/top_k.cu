// top_k: the k largest values of each row with their columns, largest first, the lower column first on ties.
// Math:      y[r] = the k largest of (x[r][c], c), in falling order of x and then rising order of c
// Tensors:   x (R, V) row-major f32; y (R, k, 2): the bits of the value, the column; a row that holds NaN begins with NaN
// Numerics:  comparisons only; -0 is below 0, as in the CPU form
// Requires:  k <= V
// Tiling:    a block for each row takes the largest again and again: k rounds of a block's maximum. Each thread keeps the
//            best of its own columns, so that a round reads memory only where the last one was taken
// Roofline:  4 * R * V bytes; the rounds take longer: latency-bound
// Measured:  NVIDIA H200, driver 580.159.04, commit 449c6ab: `im2sp doctor --op =top_k` (cold L2, lightly contended), with
//            the copy to the host: 50 of 64x203 in 74 us, 50 of 8x30522 in 194
#include "select.cuh"

struct TopKParams {
    const float* x;
    unsigned* y;
    int columns;
    int count;  // k
};
SIZE_OF(TopKParams, 24);

// Grid: a block for each row. Shared memory: SelectShared.
KERNEL(top_k_forward_f32, TopKParams, 256, 8) {
    const float* row = params.x + int64_t(blockIdx.x) * params.columns;
    unsigned* y = params.y + int64_t(blockIdx.x) * params.count * 2;
    const auto scan = [&](Key bound) {
        Key best = 0;
        for (int c = threadIdx.x; c < params.columns; c += SELECT_BLOCK) {
            const Key key = key_of(row[c], c);
            if (key < bound) best = larger(best, key);
        }
        return best;
    };
    select(params.count, shared_memory<SelectShared>(), scan, [&](int rank, Key key) {
        y[2 * rank] = value_bits(key);
        y[2 * rank + 1] = place_of(key);
    });
}
