// argmax: the column of the largest value of each row.
// Math:      y[r] = the lowest c with x[r][c] = max over c of x[r][c]
// Tensors:   x (R, V) row-major f32; y (R): the lowest column of the largest, or NOT_A_NUMBER if the row holds NaN
// Numerics:  comparisons only; 0 and -0 are equal
// Requires:  V >= 1
// Roofline:  4 * R * V bytes: a launch's latency, for the few rows of a decode step
// Measured:  NVIDIA H200, driver 580.159.04, commit 449c6ab: `im2sp doctor --op =argmax` (cold L2, lightly contended), with
//            the copy to the host: 64x203 in 34 us, 8x30522 in 57
#include "select.cuh"

struct ArgmaxParams {
    const float* x;
    unsigned* y;
    int columns;
    int unused;
};
SIZE_OF(ArgmaxParams, 24);

namespace {

constexpr unsigned NOT_A_NUMBER = 0xffffffffu;

}  // namespace

// Grid: a block for each row. Shared memory: SelectShared.
KERNEL(argmax_forward_f32, ArgmaxParams, 256, 8) {
    SelectShared& shared = shared_memory<SelectShared>();
    const float* row = params.x + int64_t(blockIdx.x) * params.columns;
    Key best = 0;
    for (int c = threadIdx.x; c < params.columns; c += SELECT_BLOCK) {
        const float v = row[c];
        best = larger(best, key_of(v == 0.0f ? 0.0f : v, c));
    }
    best = block_largest(best, shared.part[0]);
    if (threadIdx.x == 0) {
        const float v = __uint_as_float(value_bits(best));
        params.y[blockIdx.x] = v != v ? NOT_A_NUMBER : place_of(best);
    }
}
