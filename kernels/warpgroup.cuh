// warpgroup: tiles of gemm.cuh whose products are wgmma's (sm_90a). The same calls and epilogues as MmaTile, of bf16.
//
//   WarpgroupTile<M, N, STAGES, OperandA, OperandB>   operands ByRows or ByColumns
//
// A warpgroup owns 64 rows of the tile and all of its columns. Copies are cp.async, as everywhere: two k_tiles wait for their
// products, or are being multiplied, while the other stages are filled.
#pragma once

#include "gemm.cuh"
#include "wgmma.cuh"

namespace {

template <int M_, int N_, int STAGES, typename OperandA = ByRows, typename OperandB = ByRows> struct WarpgroupTile {
    static constexpr int M = M_, N = N_;
    static constexpr int THREADS = M / 64 * WARPGROUP;
    static constexpr int WARP_M = 16, WARP_N = N;
    static constexpr int RUN = 8, LANE_RUN = 2;
    static constexpr int WIDTH = N / 8;         // fragments of a warp
    static constexpr int AHEAD = STAGES - 2;    // k_tiles that are copied ahead
    static constexpr int STEPS = K_TILE<bf16> / 16;
    static constexpr bool COLUMNS_A = is_same<OperandA, ByColumns>, COLUMNS_B = is_same<OperandB, ByColumns>;
    static_assert(M % 64 == 0 && AHEAD > 0, "whole warpgroups, and a stage to fill");
    using Value = bf16;
    struct alignas(WGMMA_GROUP) Stage {
        unsigned char a[M * ROW_BYTES];
        unsigned char b[N * ROW_BYTES];
    };
    union alignas(WGMMA_GROUP) Shared {
        Stage stage[STAGES];
        float sums[M * N];
    };

    float sums[WIDTH][4];

    DEVICE static int warp_row() { return warp_index() * WARP_M; }
    DEVICE static int warp_column() { return 0; }

    template <typename A, typename B>
    DEVICE void prefetch(Shared& shared, const A& a, const B& b, const TileCoord& at, int k) const {
        const int k_tiles = (k + K_TILE<bf16> - 1) / K_TILE<bf16>;
#pragma unroll 1
        for (int k_tile = 0; k_tile < AHEAD; k_tile++) copy(shared.stage[k_tile], a, b, at, k_tile, k_tiles);
    }

    DEVICE void clear() {
#pragma unroll
        for (int j = 0; j < WIDTH; j++) sums[j][0] = sums[j][1] = sums[j][2] = sums[j][3] = 0.0f;
    }

    template <typename A, typename B>
    DEVICE void mainloop(Shared& shared, const A& a, const B& b, const TileCoord& at, int k) {
        const int k_tiles = (k + K_TILE<bf16> - 1) / K_TILE<bf16>;
        const int own = warp_index() / 4 * WGMMA_PANEL;  // of both forms of A
        int reading = 0, filling = AHEAD;
#pragma unroll 1
        for (int k_tile = 0; k_tile < k_tiles; k_tile++) {
            cp_async_wait<AHEAD - 1>();
            fence_async_proxy();
            // The k_tile is there for all, and the products of all but the one before it have been added.
            sync_block();
            const Stage& stage = shared.stage[reading];
            wgmma_fence();
#pragma unroll
            for (int step = 0; step < STEPS; step++) {
                wgmma_m64k16<COLUMNS_A, COLUMNS_B>(
                    sums, stage.a + own + step * WGMMA_STEP<COLUMNS_A>, stage.b + step * WGMMA_STEP<COLUMNS_B>);
            }
            wgmma_commit();
            copy(shared.stage[filling], a, b, at, k_tile + AHEAD, k_tiles);
            wgmma_wait<1>();
            reading = reading + 1 == STAGES ? 0 : reading + 1;
            filling = filling + 1 == STAGES ? 0 : filling + 1;
        }
        wgmma_wait<0>();
    }

    // As in MmaTile.
    template <typename F> DEVICE void each_run(const F& f) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
#pragma unroll
            for (int j = 0; j < WIDTH; j++) {
                const auto sum = [&](int v) -> float& { return sums[j][half * 2 + v]; };
                f(half * 8 + lane_index() / 4, j * 8 + lane_index() % 4 * 2, sum);
            }
        }
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
            ByColumns::copy<COUNT, THREADS>(to, from, first, k_tile);
        } else {
            copy_k_tile<COUNT, THREADS, ConsecutiveRows, bf16>(to, from, first, k_tile);
        }
    }
};

}  // namespace
