// pair: products C = A B^T in tiles as gemm.cuh's, for pairs of blocks that share an operand (sm_90a), of bf16.
//
//   PairTile<M, N, STAGES, OperandA, OperandB>      operands ByRows or ByColumns
//   pair_product<Tile>(a, b, extent, pairing, out)  a and b: maps of the operands
//
// A large product asks more of L2 than it has: a tile of 128 x 256 takes 48 KB every 1024 clocks of its tensor cores, 48
// bytes a clock, where L2 has 35 for each multiprocessor when all ask. So two blocks take neighbouring tiles, and each fetches
// half of the operand that both need for both: 32 KB of two tiles below each other, 40 KB of two side by side.
//
// A block has a warpgroup for every 64 rows of its tile, and one more, of which a single thread asks for boxes as stages come
// free. No barrier of the block stands between the warpgroups: when one has its sums, the other still multiplies, by up to the
// length of the ring, and the ring fills for the next tile meanwhile. Sums are finished as in warpgroup.cuh.
//
// Numerics: products of the same shape in the same order as those of warpgroup.cuh, so the same bits.
#pragma once

#include "cluster.cuh"
#include "warpgroup.cuh"

namespace {

// Two tiles of a pair: values of the params of its kernels, Pairing in the launcher.
enum { PAIRING_BELOW = 0, PAIRING_ACROSS = 1 };

// C has `rows` and `columns`; the sums run over `k` values from `first` on. Both are multiples of a k_tile, k unless the operands
// end there: whole k_tiles are read.
struct Extent {
    int rows, columns, first, k;
};

template <int M, int N, int STAGES_, typename OperandA = ByRows, typename OperandB = ByRows>
struct PairTile : WarpgroupSums<M, N, OperandA, OperandB> {
    using Sums = WarpgroupSums<M, N, OperandA, OperandB>;
    static constexpr int STAGES = STAGES_;
    static constexpr int WARPGROUPS = M / 64;  // that multiply
    struct Shared {
        typename Sums::Stage stage[STAGES];
        float sums[Sums::WARPS][Sums::VALUES];
        uint64_t full[STAGES];   // the stage has been copied
        uint64_t empty[STAGES];  // and read by all warps of both blocks
    };

    // Of the 168 that the compiler gives each of 384 threads.
    static constexpr int REGISTERS_TO_COPY = 40, REGISTERS_TO_MULTIPLY = 232;
    static_assert(WARPGROUPS * REGISTERS_TO_MULTIPLY + REGISTERS_TO_COPY <= (WARPGROUPS + 1) * 168, "as many as there are");
};

// Where in the ring a warp is.
template <int STAGES> struct Ring {
    int stage = 0;
    unsigned parity = 0;

    DEVICE void advance() {
        if (++stage < STAGES) return;
        stage = 0;
        parity ^= 1;
    }
};

// The tiles of a pair, one after the other: f(coord of this block's tile).
template <typename Tile, typename F> DEVICE void each_tile(const Extent& extent, int pairing, unsigned rank, const F& f) {
    const bool below = pairing == PAIRING_BELOW;
    const int height = Tile::M * (below ? PAIR : 1), width = Tile::N * (below ? 1 : PAIR);
    const int down = (extent.rows + height - 1) / height, across = (extent.columns + width - 1) / width;
#pragma unroll 1
    for (int number = blockIdx.x / PAIR; number < down * across; number += gridDim.x / PAIR) {
        TileCoord at = grouped_coord(down, across, number);
        at.row = at.row * height + (below ? int(rank) * Tile::M : 0);
        at.column = at.column * width + (below ? 0 : int(rank) * Tile::N);
        at.rows = extent.rows;
        f(at);
    }
}

// LINES lines of an operand, 64 to a box: all of them for this block, or where both need them, this block's half of every box
// for both.
template <typename Operand, int LINES>
DEVICE void copy_lines(unsigned char* to, const TensorMap& map, int first, int k, bool shared, unsigned rank, uint64_t* full) {
    constexpr int BOX = WGMMA_PANEL / ROW_BYTES;
    const int half = shared ? int(rank) * (BOX / PAIR) : 0;
#pragma unroll 1
    for (int number = 0; number < LINES / BOX; number++) {
        const int at = first + number * BOX;
        const int line = (is_same<Operand, ByColumns> ? k : at) + half, value = is_same<Operand, ByColumns> ? at : k;
        unsigned char* box = to + number * WGMMA_PANEL + half * ROW_BYTES;
        if (shared) {
            copy_box_to_pair(box, map, line, value, full);
        } else {
            copy_box(box, map, line, value, full);
        }
    }
}

// One thread asks for all k_tiles of all tiles.
template <typename Tile>
DEVICE void copy_tiles(typename Tile::Shared& shared, const TensorMap& a, const TensorMap& b, const Extent& extent, int pairing) {
    const unsigned rank = block_rank();
    const bool below = pairing == PAIRING_BELOW;
    const int end = extent.first + extent.k;
    Ring<Tile::STAGES> ring;
    if (extent.k == 0) return;  // there are no maps
    prefetch_map(a);
    prefetch_map(b);
    each_tile<Tile>(extent, pairing, rank, [&](const TileCoord& at) {
#pragma unroll 1
        for (int k = extent.first; k < end; k += K_TILE<bf16>) {
            typename Tile::Stage& stage = shared.stage[ring.stage];
            uint64_t* full = &shared.full[ring.stage];
            barrier_wait(&shared.empty[ring.stage], ring.parity ^ 1);
            barrier_expect(full, sizeof(stage.a) + sizeof(stage.b));
            copy_lines<typename Tile::A, Tile::M>(stage.a, a, at.row, k, !below, rank, full);
            copy_lines<typename Tile::B, Tile::N>(stage.b, b, at.column, k, below, rank, full);
            ring.advance();
        }
    });
    // Until all stages have been given back the other block may write to this one's memory.
#pragma unroll 1
    for (int stage = 0; stage < Tile::STAGES; stage++) {
        barrier_wait(&shared.empty[ring.stage], ring.parity ^ 1);
        ring.advance();
    }
}

// A warpgroup multiplies what is copied, and hands its sums to `out`.
template <typename Tile, typename Out>
DEVICE void multiply_tiles(typename Tile::Shared& shared, const Extent& extent, int pairing, const Out& out) {
    const int k_tiles = (extent.k + K_TILE<bf16> - 1) / K_TILE<bf16>;
    Ring<Tile::STAGES> ring;
    // A lane for each block that may write to the stage again.
    const auto release = [&](int stage) {
        sync_warp();
        if (lane_index() < PAIR) barrier_arrive(&shared.empty[stage], lane_index());
    };
    Tile tile;
    each_tile<Tile>(extent, pairing, block_rank(), [&](const TileCoord& at) {
        // Below the last row there is nothing to multiply, and the tensor cores are the other warpgroup's.
        const bool empty = at.row + warp_index() / 4 * 64 >= extent.rows;
        int reading = 0;
        tile.clear();
#pragma unroll 1
        for (int k_tile = 0; k_tile < k_tiles; k_tile++) {
            barrier_wait(&shared.full[ring.stage], ring.parity);
            if (!empty) {
                tile.multiply(shared.stage[ring.stage]);
                wgmma_wait<1>();
            }
            // The products of the k_tile before have been added.
            if (k_tile > 0) release(reading);
            reading = ring.stage;
            ring.advance();
        }
        const auto first = Tile::read_first(at, out);
        wgmma_wait<0>();
        if (k_tiles > 0) release(reading);
        if (!empty) tile.finish(shared.sums[warp_index()], at, out, first);
    });
}

// The tiles of this pair, in a grid of any even length. `pairing` is PAIRING_BELOW or PAIRING_ACROSS; boxes have 32 lines of
// the operand that a pair shares, of the other 64.
template <typename Tile, typename Out>
DEVICE void pair_product(const TensorMap& a, const TensorMap& b, const Extent& extent, int pairing, const Out& out) {
    typename Tile::Shared& shared = shared_memory<typename Tile::Shared>();
    if (threadIdx.x == 0) {
#pragma unroll 1
        for (int stage = 0; stage < Tile::STAGES; stage++) {
            barrier_init(&shared.full[stage], 1);
            barrier_init(&shared.empty[stage], PAIR * Tile::WARPS);
        }
        fence_barriers();
    }
    sync_pair();
    if (warp_index() < Tile::WARPS) {
        take_registers<Tile::REGISTERS_TO_MULTIPLY>();
        multiply_tiles<Tile>(shared, extent, pairing, out);
    } else {
        give_registers<Tile::REGISTERS_TO_COPY>();
        if (threadIdx.x == Tile::WARPS * WARP) copy_tiles<Tile>(shared, a, b, extent, pairing);
    }
}

}  // namespace
