// peak: the most that the tensor cores do through mma.sync, the reference for shares of it. No memory is touched until the end.
// Math:      a product of ones, added to every accumulator `repeats` times
// Tensors:   y: one f32 for each thread, so that nothing is left out as unused
// Numerics:  bf16 operands, f32 sums; whole numbers, so that the result is known
// Requires:  nothing
// Tiling:    a warp keeps sixteen independent sums in registers and adds the same product to each, again and again
// Roofline:  2 * 16 * 8 * 16 operations for each mma
// Measured:  NVIDIA H200, driver 580.159.04, commit 449c6ab: `im2sp doctor`: 623 TFLOP/s
#include "mma.cuh"

struct PeakParams {
    float* y;
    int repeats;
    int unused;
};
SIZE_OF(PeakParams, 16);

// Grid: any. Sums of a thread: 16 tiles of m16n8.
KERNEL(peak_forward_bf16, PeakParams, 256, 2) {
    constexpr int TILES = 16;
    const uint32_t one = pack_bf16(1.0f, 1.0f);
    const uint32_t a[4] = {one, one, one, one}, b[2] = {one, one};
    float sums[TILES][4] = {};
    for (int i = 0; i < params.repeats; i++) {
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) mma_m16n8k16(sums[tile], a, b);
    }
    float total = 0.0f;
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) total += sums[tile][0] + sums[tile][1] + sums[tile][2] + sums[tile][3];
    params.y[blockIdx.x * 256 + threadIdx.x] = total;
}
