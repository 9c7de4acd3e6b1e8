// transpose: a matrix in memory becomes the one with rows and columns exchanged.
// Math:      y[n][m] = x[m][n]
// Tensors:   x (M, N), y (N, M), both row-major
// Numerics:  exact
// Requires:  nothing; bf16 moves in pairs if both M and N are even
// Tiling:    a block moves one tile of 32 words (128 bytes) by 32 words through shared memory, read and written as whole
//            lines: f32 32 x 32 elements, bf16 64 x 64, whose 2 x 2 corners are exchanged in registers on the way in
// Roofline:  2 * M * N elements moved: memory-bound
// Measured:  NVIDIA H200, driver 580.159.04, commit 449c6ab: `im2sp doctor --op =transpose` (cold L2, lightly contended):
//            32000x512 in f32 in 42.1 us (3.11 TB/s, 73 % of a copy's there), in bf16 in 27.4 (2.40 TB/s)
#include "prelude.cuh"

namespace {

constexpr int BLOCK = 256;
constexpr int WARPS = BLOCK / WARP;
constexpr int TILE = 32;             // words of a tile's side
constexpr int STEPS = TILE / WARPS;  // rows of words that a warp moves

// Column 32 is never used: it makes a column of the tile lie in 32 banks.
struct TransposeTile {
    float value[TILE][TILE + 1];
};
// Row c of the result, its words exchanged with c / 2: rows and columns of words both lie in 32 banks.
struct TransposePairs {
    uint32_t word[2 * TILE][TILE];
};

}  // namespace

struct TransposeParams {
    const void* x;
    void* y;
    int rows;
    int columns;
    int tiles;  // of a row of x
    int unused;
};
SIZE_OF(TransposeParams, 32);
SIZE_OF(TransposeTile, 4224);
SIZE_OF(TransposePairs, 8192);

namespace {

template <typename T> DEVICE void move_elements(const TransposeParams& params) {
    TransposeTile& tile = shared_memory<TransposeTile>();
    const T* x = static_cast<const T*>(params.x);
    T* y = static_cast<T*>(params.y);
    const int top = int(blockIdx.x) / params.tiles * TILE, left = int(blockIdx.x) % params.tiles * TILE;
    const int lane = lane_index();
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        const int r = step * WARPS + warp_index();
        if (top + r < params.rows && left + lane < params.columns) {
            tile.value[r][lane] = to_float(x[int64_t(top + r) * params.columns + left + lane]);
        }
    }
    sync_block();
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        const int c = step * WARPS + warp_index();
        if (left + c < params.columns && top + lane < params.rows) {
            y[int64_t(left + c) * params.rows + top + lane] = from_float<T>(tile.value[lane][c]);
        }
    }
}

}  // namespace

// Grid: a block for each tile of 32 x 32, row after row. Shared memory: TransposeTile.
KERNEL(transpose_forward_f32, TransposeParams, 256, 8) { move_elements<float>(params); }
KERNEL(transpose_forward_bf16, TransposeParams, 256, 8) { move_elements<bf16>(params); }

// Grid: a block for each tile of 64 x 64, row after row. Shared memory: TransposePairs. M % 2 == 0, N % 2 == 0.
KERNEL(transpose_forward_pairs_bf16, TransposeParams, 256, 8) {
    TransposePairs& tile = shared_memory<TransposePairs>();
    const int top = int(blockIdx.x) / params.tiles * TILE, left = int(blockIdx.x) % params.tiles * TILE;
    const int rows = params.rows / 2, columns = params.columns / 2;  // in words
    const uint32_t* x = static_cast<const uint32_t*>(params.x);
    uint32_t* y = static_cast<uint32_t*>(params.y);
    const int lane = lane_index();
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        // Word w of the result's rows 2 * lane and 2 * lane + 1 comes from rows 2w and 2w + 1 of x.
        const int w = step * WARPS + warp_index();
        if (top + w < rows && left + lane < columns) {
            const int64_t at = int64_t(2 * (top + w)) * columns + left + lane;
            const uint32_t upper = x[at], lower = x[at + columns];
            tile.word[2 * lane][w ^ lane] = (upper & 0xffffu) | lower << 16;
            tile.word[2 * lane + 1][w ^ lane] = upper >> 16 | (lower & 0xffff0000u);
        }
    }
    sync_block();
#pragma unroll
    for (int step = 0; step < 2 * STEPS; step++) {
        const int c = step * WARPS + warp_index();
        if (2 * left + c < params.columns && top + lane < rows) {
            y[int64_t(2 * left + c) * rows + top + lane] = tile.word[c][lane ^ (c / 2)];
        }
    }
}
