// tile: the product of a block, y = A W^T over a tile of rows and columns, on tensor cores in bf16 and on FMA units for
// f32 and for rows that are not 16-byte aligned. What A is (rows of a matrix, shifted rows of a sequence, pieces of a
// picture) and what becomes of the sums is given by functors. Used by conv1d, conv_transpose1d and patch_embed, and in part
// by attention; linear has its own, product.cuh.
//
// Every element adds its products along K from first to last, whatever the tile: results do not depend on its shape.
#pragma once

#include "mma.cuh"

namespace {

constexpr int DEPTH = 64;    // values of K in a stage: rows of 128 bytes, eight 16-byte pieces
constexpr int PIECES = DEPTH / 8;

// Rows x columns of a block; its warps stand in a grid of WARPS_M x WARPS_N.
template <int BM, int BN, int WM, int WN, int S> struct TileShape {
    static constexpr int ROWS = BM, COLUMNS = BN, WARPS_M = WM, WARPS_N = WN, STAGES = S;
    static constexpr int THREADS = WM * WN * WARP;
    static constexpr int WARP_ROWS = BM / WM, WARP_COLUMNS = BN / WN;
    static constexpr int TILES_M = WARP_ROWS / 16, TILES_N = WARP_COLUMNS / 8;
    static constexpr int BYTES = S * (BM + BN) * DEPTH * 2;
};

// Where piece `piece` of a row lies: swizzled, so that eight rows of one piece fall into different banks.
DEVICE int swizzled(int row, int piece) { return row * DEPTH + ((piece ^ (row & (PIECES - 1))) * 8); }

// Leaky ReLU of two packed values, rounded to bf16 as if it had been stored.
DEVICE uint32_t leaky(uint32_t packed, float slope) {
    const float low = low_float(packed), high = high_float(packed);
    return pack_bf16(fmaxf(low, low * slope), fmaxf(high, high * slope));
}

// `A::at(row, k)` is the address of eight values of a row of the tile, or null for zeros; `W` the same for columns.
template <typename Shape, typename A, typename W> struct TileLoader {
    const A& a;
    const W& w;
    bf16* shared;

    DEVICE bf16* rows(int stage) const { return shared + stage * (Shape::ROWS + Shape::COLUMNS) * DEPTH; }
    DEVICE bf16* columns(int stage) const { return rows(stage) + Shape::ROWS * DEPTH; }

    // Starts the copies of one stage; always one group.
    DEVICE void start(int step, int steps) const {
        if (step < steps) {
            const int stage = step % Shape::STAGES;
            bf16* to = rows(stage);
            for (int i = threadIdx.x; i < Shape::ROWS * PIECES; i += Shape::THREADS) {
                const bf16* from = a.at(i / PIECES, step * DEPTH + i % PIECES * 8);
                cp_async_16(to + swizzled(i / PIECES, i % PIECES), from ? from : a.any(), from != nullptr);
            }
            to = columns(stage);
            for (int i = threadIdx.x; i < Shape::COLUMNS * PIECES; i += Shape::THREADS) {
                const bf16* from = w.at(i / PIECES, step * DEPTH + i % PIECES * 8);
                cp_async_16(to + swizzled(i / PIECES, i % PIECES), from ? from : w.any(), from != nullptr);
            }
        }
        cp_async_commit();
    }
};

// The sums of a block's tile. `LEAKY`: A passes through a leaky ReLU of `slope` on its way. `store(row, column, v0, v1)`
// gets two neighbouring columns of each row.
template <typename Shape, bool LEAKY, typename A, typename W, typename Store>
DEVICE void tile_product(const A& a, const W& w, int depth, float slope, const Store& store) {
    const TileLoader<Shape, A, W> loader{a, w, &shared_memory<bf16>()};
    const int steps = (depth + DEPTH - 1) / DEPTH, lane = lane_index();
    const int row = warp_index() / Shape::WARPS_N * Shape::WARP_ROWS;
    const int column = warp_index() % Shape::WARPS_N * Shape::WARP_COLUMNS;
    float sums[Shape::TILES_M][Shape::TILES_N][4] = {};
#pragma unroll
    for (int step = 0; step + 1 < Shape::STAGES; step++) loader.start(step, steps);
    for (int step = 0; step < steps; step++) {
        cp_async_wait<Shape::STAGES - 2>();
        sync_block();
        loader.start(step + Shape::STAGES - 1, steps);
        const bf16* rows = loader.rows(step % Shape::STAGES);
        const bf16* columns = loader.columns(step % Shape::STAGES);
#pragma unroll
        for (int k = 0; k < PIECES; k += 2) {
            uint32_t left[Shape::TILES_M][4], right[Shape::TILES_N][2];
#pragma unroll
            for (int m = 0; m < Shape::TILES_M; m++) {
                ldmatrix_x4(left[m], rows + swizzled(row + m * 16 + lane % 16, k + lane / 16));
                if (LEAKY) {
#pragma unroll
                    for (int i = 0; i < 4; i++) left[m][i] = leaky(left[m][i], slope);
                }
            }
#pragma unroll
            for (int n = 0; n < Shape::TILES_N; n += 2) {
                uint32_t pair[4];
                ldmatrix_x4(pair, columns + swizzled(column + n * 8 + lane / 16 * 8 + lane % 8, k + lane / 8 % 2));
                right[n][0] = pair[0], right[n][1] = pair[1];
                right[n + 1][0] = pair[2], right[n + 1][1] = pair[3];
            }
#pragma unroll
            for (int m = 0; m < Shape::TILES_M; m++) {
#pragma unroll
                for (int n = 0; n < Shape::TILES_N; n++) mma_m16n8k16(sums[m][n], left[m], right[n]);
            }
        }
    }
    cp_async_wait<0>();
#pragma unroll
    for (int m = 0; m < Shape::TILES_M; m++) {
#pragma unroll
        for (int n = 0; n < Shape::TILES_N; n++) {
            const int r = row + m * 16 + lane / 4, c = column + n * 8 + lane % 4 * 2;
            store(r, c, sums[m][n][0], sums[m][n][1]);
            store(r + 8, c, sums[m][n][2], sums[m][n][3]);
        }
    }
}

// ---- the same on FMA units: 64 x 64 x 16, 256 threads of 4 x 4 sums; any type, any alignment

constexpr int PLAIN = 64;         // rows and columns of a tile
constexpr int PLAIN_DEPTH = 16;
constexpr int PLAIN_THREADS = 256;

struct PlainShared {
    float rows[PLAIN_DEPTH][PLAIN + 4];  // transposed, so that a thread's four values lie together
    float columns[PLAIN_DEPTH][PLAIN + 4];
};

// `a(row, k)` and `w(column, k)` are values, zero outside; `store` as above.
template <typename A, typename W, typename Store>
DEVICE void plain_product(const A& a, const W& w, int depth, const Store& store) {
    PlainShared& shared = shared_memory<PlainShared>();
    const int thread = threadIdx.x, row = thread / 16 * 4, column = thread % 16 * 4;
    float sums[4][4] = {};
    for (int start = 0; start < depth; start += PLAIN_DEPTH) {
        for (int i = thread; i < PLAIN * PLAIN_DEPTH; i += PLAIN_THREADS) {
            const int at = i / PLAIN_DEPTH, k = i % PLAIN_DEPTH;
            shared.rows[k][at] = start + k < depth ? a(at, start + k) : 0.0f;
            shared.columns[k][at] = start + k < depth ? w(at, start + k) : 0.0f;
        }
        sync_block();
#pragma unroll
        for (int k = 0; k < PLAIN_DEPTH; k++) {
            const float4 left = *reinterpret_cast<const float4*>(&shared.rows[k][row]);
            const float4 right = *reinterpret_cast<const float4*>(&shared.columns[k][column]);
            const float l[4] = {left.x, left.y, left.z, left.w}, r[4] = {right.x, right.y, right.z, right.w};
#pragma unroll
            for (int i = 0; i < 4; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++) sums[i][j] = fmaf(l[i], r[j], sums[i][j]);
            }
        }
        sync_block();
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        store(row + i, column, sums[i][0], sums[i][1]);
        store(row + i, column + 2, sums[i][2], sums[i][3]);
    }
}

// Two neighbouring values, as one store where they are aligned and both wanted.
DEVICE void store_pair(float* at, float v0, float v1, bool both) {
    if (both && reinterpret_cast<uint64_t>(at) % 8 == 0) {
        *reinterpret_cast<float2*>(at) = make_float2(v0, v1);
        return;
    }
    at[0] = v0;
    if (both) at[1] = v1;
}
DEVICE void store_pair(bf16* at, float v0, float v1, bool both) {
    if (both && reinterpret_cast<uint64_t>(at) % 4 == 0) {
        *reinterpret_cast<uint32_t*>(at) = pack_bf16(v0, v1);
        return;
    }
    at[0] = to_bf16(v0);
    if (both) at[1] = to_bf16(v1);
}

}  // namespace

SIZE_OF(PlainShared, 8704);
