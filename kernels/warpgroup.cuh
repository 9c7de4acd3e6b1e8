// warpgroup: products C = A B^T in tiles as gemm.cuh's, multiplied by wgmma (sm_90a), of bf16.
//
//   WarpgroupTile<M, N, STAGES, OperandA, OperandB>    operands ByRows or ByColumns
//   warpgroup_product<Tile>(a, b, rows, columns, k, out)
//
// A warpgroup owns 64 rows of a tile and all of its columns. Copies are cp.async: one k_tile is being
// multiplied and the next waits, while the other stages are filled. Blocks take one tile after the other, as far apart as the
// grid is long; the first k_tiles of the next are on their way while the sums of the last are finished.
//
// Sums reach `out` by way of shared memory, PANEL columns at a time, so that the code that finishes them stands in the kernel
// once for two rows and stores whole vectors. What runs of eight columns of both need of device memory is asked for a panel
// ahead, by Out::Read::load(out, row, other row, column), before out.finish(row, column, sums, read, which of the rows).
// C has columns in a multiple of eight.
//
// Numerics: as gemm.cuh's; on an H200 the bits are those of its tiles (docs/decisions.md).
#pragma once

#include "gemm.cuh"
#include "wgmma.cuh"

namespace {

// A k_tile of a tile of M x N in shared memory, and the sums of a warp: 16 rows of N columns. Warpgroups share out the rows.
template <int M_, int N_, typename A_, typename B_> struct WarpgroupSums {
    static constexpr int M = M_, N = N_, WARPS = M / 16;
    static constexpr int STEPS = K_TILE<bf16> / 16;
    static constexpr bool COLUMNS_A = is_same<A_, ByColumns>, COLUMNS_B = is_same<B_, ByColumns>;
    static_assert(M % 64 == 0 && N % 64 == 0, "whole warpgroups, and panels of columns");
    using Value = bf16;
    using A = A_;
    using B = B_;
    struct alignas(WGMMA_GROUP) Stage {
        unsigned char a[M * ROW_BYTES];
        unsigned char b[N * ROW_BYTES];
    };
    static constexpr int ROWS = 16, WIDTH = N / 8;
    static constexpr int RUN = 8, PANEL = 32;
    static constexpr int VALUES = ROWS * PANEL;  // of shared memory, to finish them

    float sums[WIDTH][4];

    DEVICE void clear() {
#pragma unroll
        for (int j = 0; j < WIDTH; j++) sums[j][0] = sums[j][1] = sums[j][2] = sums[j][3] = 0.0f;
    }

    // Begins the products of a k_tile, as a group.
    DEVICE void multiply(const Stage& stage) {
        const int own = warp_index() / 4 * WGMMA_PANEL;  // of both forms of A
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            wgmma_m64k16<COLUMNS_A, COLUMNS_B>(
                sums, stage.a + own + step * WGMMA_STEP<COLUMNS_A>, stage.b + step * WGMMA_STEP<COLUMNS_B>);
        }
        wgmma_commit();
    }

    // The first of what `finish` needs of device memory, for a tile at `at`.
    template <typename Out> DEVICE static typename Out::Read read_first(const TileCoord& at, const Out& out) {
        typename Out::Read first = {};
        const LaneRuns runs(at);
        first.load(out, runs.high, runs.low, runs.column);
        return first;
    }

    // Hands all sums to `out`. `panel` is memory of this warp's alone, VALUES of it; a lane has two runs of each panel, and asks
    // a panel ahead for what they need.
    template <typename Out>
    DEVICE void finish(float* panel, const TileCoord& at, const Out& out, const typename Out::Read& first) const {
        constexpr int PANELS = N / PANEL;
        const LaneRuns runs(at);
        typename Out::Read next = first;
#pragma unroll 1
        for (int number = 0; number < PANELS; number++) {
            const int column = runs.column + number * PANEL;
            sync_warp();
            store_panel(panel, number);
            sync_warp();
            float high[RUN], low[RUN];
            load_run(high, panel, runs.row, runs.own);
            load_run(low, panel, runs.row + ROWS / 2, runs.own);
            const typename Out::Read read = next;
            if (number + 1 < PANELS) next.load(out, runs.high, runs.low, column + PANEL);
            out.finish(runs.high, column, high, read, 0);
            out.finish(runs.low, column, low, read, 1);
        }
    }

  private:
    // The two runs of a lane in the first panel of a tile: rows of C, and where in the panel.
    struct LaneRuns {
        int row, own, high, low, column;

        DEVICE explicit LaneRuns(const TileCoord& at) {
            constexpr int RUNS = PANEL / RUN;
            static_assert(ROWS * RUNS == 2 * WARP, "two runs a lane");
            row = lane_index() / RUNS, own = lane_index() % RUNS * RUN;
            high = at.row + warp_index() * ROWS + row, low = high + ROWS / 2;
            column = at.column + own;
        }
    };

    // Where chunk16 `chunk` of a row of a panel lies: neither the lanes that hold two sums of eight rows nor those that read
    // four runs of eight rows conflict in a bank.
    DEVICE static int place(int row, int chunk) { return row * PANEL + (chunk ^ (row & 7)) * 4; }

    DEVICE static void load_run(float (&v)[RUN], const float* panel, int row, int column) {
#pragma unroll
        for (int i = 0; i < RUN; i += 4) {
            const float4 four = *reinterpret_cast<const float4*>(panel + place(row, (column + i) / 4));
            v[i] = four.x, v[i + 1] = four.y, v[i + 2] = four.z, v[i + 3] = four.w;
        }
    }

    // Registers have no index: a branch for each panel.
    DEVICE void store_panel(float* panel, int number) const {
#pragma unroll
        for (int p = 0; p < N / PANEL; p++) {
            if (p != number) continue;
#pragma unroll
            for (int v = 0; v < 4; v += 2) {
#pragma unroll
                for (int j = 0; j < PANEL / 8; j++) {
                    const int row = lane_index() / 4 + v / 2 * 8, pair = lane_index() % 4 * 2;
                    float* two = panel + place(row, j * 2 + pair / 4) + pair % 4;
                    *reinterpret_cast<float2*>(two) =
                        make_float2(sums[p * (PANEL / 8) + j][v], sums[p * (PANEL / 8) + j][v + 1]);
                }
            }
        }
    }
};

template <int M, int N, int STAGES, typename OperandA = ByRows, typename OperandB = ByRows>
struct WarpgroupTile : WarpgroupSums<M, N, OperandA, OperandB> {
    using Sums = WarpgroupSums<M, N, OperandA, OperandB>;
    using Stage = typename Sums::Stage;
    static constexpr int THREADS = Sums::WARPS * WARP;
    static constexpr int AHEAD = STAGES - 2;  // k_tiles that are copied ahead
    static_assert(AHEAD > 0, "a stage to fill");
    struct Shared {
        Stage stage[STAGES];
        float sums[Sums::WARPS][Sums::VALUES];
    };

    template <typename A, typename B>
    DEVICE void prefetch(Shared& shared, const A& a, const B& b, const TileCoord& at, int k) const {
        const int k_tiles = (k + K_TILE<bf16> - 1) / K_TILE<bf16>;
#pragma unroll 1
        for (int k_tile = 0; k_tile < AHEAD; k_tile++) copy(shared.stage[k_tile], a, b, at, k_tile, k_tiles);
    }

    template <typename A, typename B>
    DEVICE void mainloop(Shared& shared, const A& a, const B& b, const TileCoord& at, int k) {
        const int k_tiles = (k + K_TILE<bf16> - 1) / K_TILE<bf16>;
        int reading = 0, filling = AHEAD;
#pragma unroll 1
        for (int k_tile = 0; k_tile < k_tiles; k_tile++) {
            cp_async_wait<AHEAD - 1>();
            fence_async_proxy();
            // The k_tile is there for all, and the products of all but the one before it have been added.
            sync_block();
            this->multiply(shared.stage[reading]);
            copy(shared.stage[filling], a, b, at, k_tile + AHEAD, k_tiles);
            wgmma_wait<1>();
            reading = reading + 1 == STAGES ? 0 : reading + 1;
            filling = filling + 1 == STAGES ? 0 : filling + 1;
        }
        wgmma_wait<0>();
    }

  private:
    template <typename A, typename B>
    DEVICE static void copy(Stage& stage, const A& a, const B& b, const TileCoord& at, int k_tile, int k_tiles) {
        if (k_tile < k_tiles) {
            copy_operand<OperandA, M>(stage.a, a, at.row, k_tile);
            copy_operand<OperandB, N>(stage.b, b, at.column, k_tile);
        }
        cp_async_commit();
    }

    template <typename Operand, int COUNT, typename Source>
    DEVICE static void copy_operand(unsigned char* to, const Source& from, int first, int k_tile) {
        if constexpr (is_same<Operand, ByColumns>) {
            ByColumns::copy<COUNT, THREADS, true>(to, from, first, k_tile);
        } else {
            copy_k_tile<COUNT, THREADS, ConsecutiveRows, bf16>(to, from, first, k_tile);
        }
    }
};

// The tiles of this block, in a one-dimensional grid of any length. C has `rows` and `columns`.
template <typename Tile, typename A, typename B, typename Out>
DEVICE void warpgroup_product(const A& a, const B& b, int rows, int columns, int k, const Out& out) {
    typename Tile::Shared& shared = shared_memory<typename Tile::Shared>();
    const int count = tile_count<Tile>(rows, columns);
    TileCoord at = tile_coord<Tile>(rows, columns);
    Tile tile;
    tile.prefetch(shared, a, b, at, k);
#pragma unroll 1
    for (int number = blockIdx.x; number < count; number += gridDim.x) {
        tile.clear();
        tile.mainloop(shared, a, b, at, k);
        const TileCoord done = at;
        // Ahead of the copies, which would be in its way.
        const auto first = Tile::read_first(done, out);
        if (number + int(gridDim.x) < count) {
            sync_block();  // all have read the stages
            at = tile_coord<Tile>(rows, columns, number + gridDim.x);
            tile.prefetch(shared, a, b, at, k);
        }
        tile.finish(shared.sums[warp_index()], done, out, first);
    }
    cp_async_wait<0>();
}

}  // namespace
