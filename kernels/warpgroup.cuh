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

// Where chunk16 `chunk` of a row of sums lies: neither the lanes that hold two sums of eight rows nor those that read a run of
// one row conflict in a bank.
template <int N> DEVICE int warpgroup_sums_offset(int row, int chunk) { return row * N + (chunk ^ (row & 7)) * 4; }

// Hands all sums to `out`, a run at a time, as gemm.cuh's; what a run needs of device memory, out.read(row, column), is asked
// for two runs before out.finish<ROLLED>(row, column, sums, read).
template <int M, int N, int STAGES, typename A, typename B, typename Out>
DEVICE void epilogue(WarpgroupTile<M, N, STAGES, A, B>& tile, typename WarpgroupTile<M, N, STAGES, A, B>::Shared& shared,
                     const TileCoord& at, const Out& out) {
    using Tile = WarpgroupTile<M, N, STAGES, A, B>;
    constexpr int RUN = Tile::RUN, RUNS = N / RUN, COUNT = Tile::WARP_M * RUNS / WARP, AHEAD = 2;
    static_assert(COUNT >= AHEAD && RUNS % 8 == 0, "whole rows of runs");
    // The stages have been read by all warps; from here on each has a part of the memory to itself.
    sync_block();
    const int first_row = at.row + Tile::warp_row();
    float* sums = shared.sums + Tile::warp_row() * N;
    const auto row_of = [&](int i) { return (i * WARP + lane_index()) / RUNS; };
    const auto column_of = [&](int i) { return (i * WARP + lane_index()) % RUNS * RUN; };
    typename Out::Read read[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; i++) read[i] = out.read(first_row + row_of(i), at.column + column_of(i));
    tile.each_run([&](int row, int column, auto sum) {
        float* two = sums + warpgroup_sums_offset<N>(row, column / 4) + column % 4;
        *reinterpret_cast<float2*>(two) = make_float2(sum(0), sum(1));
    });
    sync_warp();
#pragma unroll 1
    for (int i = 0; i < COUNT; i++) {
        const int row = row_of(i), column = column_of(i);
        float values[RUN];
#pragma unroll
        for (int v = 0; v < RUN; v += 4) {
            const float4 four = *reinterpret_cast<const float4*>(sums + warpgroup_sums_offset<N>(row, (column + v) / 4));
            values[v] = four.x, values[v + 1] = four.y, values[v + 2] = four.z, values[v + 3] = four.w;
        }
        const typename Out::Read own = read[0];
        read[0] = read[1];
        if (i + AHEAD < COUNT) read[1] = out.read(first_row + row_of(i + AHEAD), at.column + column_of(i + AHEAD));
        out.template finish<true>(first_row + row, at.column + column, values, own);
    }
}

}  // namespace
