// select: a block finds the largest of many values, one after the other. Shared by argmax, top_k and beam_candidates.
//
// A value and its place make one key, so that no two keys are equal and the order of threads decides nothing: keys compare
// as the values do, and of equal values the one of the lower place is larger. NaN is larger than every number, so
// it is the largest key wherever there is one. Nothing is a key of 0.
#pragma once

#include "prelude.cuh"

namespace {

constexpr int SELECT_BLOCK = 256;
constexpr int SELECT_WARPS = SELECT_BLOCK / WARP;

using Key = uint64_t;

struct SelectShared {
    Key part[2][SELECT_WARPS];  // used in turn, so that one barrier a round is enough
};

// Unsigned numbers in the order of the floats, -0 below 0. NaN stays below the largest number, the first bound of `select`.
DEVICE unsigned rank_of(float v) {
    const unsigned bits = __float_as_uint(v);
    if (v != v) return 0xfffffffeu;
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
DEVICE Key key_of(float v, int place) { return Key(rank_of(v)) << 32 | ~unsigned(place); }
DEVICE unsigned place_of(Key key) { return ~unsigned(key); }
DEVICE unsigned value_bits(Key key) {
    const unsigned rank = unsigned(key >> 32);
    return rank & 0x80000000u ? rank ^ 0x80000000u : ~rank;
}
DEVICE Key larger(Key a, Key b) { return a > b ? a : b; }

// The largest key of the block; every thread gets it.
DEVICE Key block_largest(Key key, Key (&part)[SELECT_WARPS]) {
    const unsigned upper = warp_largest(unsigned(key >> 32));
    const unsigned lower = warp_largest(unsigned(key >> 32) == upper ? unsigned(key) : 0);
    if (lane_index() == 0) part[warp_index()] = Key(upper) << 32 | lower;
    sync_block();
    Key best = 0;
#pragma unroll
    for (int warp = 0; warp < SELECT_WARPS; warp++) best = larger(best, part[warp]);
    return best;
}

// Hands the `wanted` largest keys to `take(rank, key)` of thread 0, largest first. `scan(bound)` is the largest key below
// `bound` among those of the calling thread: only the thread whose key was taken looks again.
template <typename Scan, typename Take>
DEVICE void select(int wanted, SelectShared& shared, const Scan& scan, const Take& take) {
    Key mine = scan(~Key(0));
    for (int rank = 0; rank < wanted; rank++) {
        const Key best = block_largest(mine, shared.part[rank % 2]);
        if (threadIdx.x == 0) take(rank, best);
        if (mine == best) mine = scan(best);
    }
}

}  // namespace

SIZE_OF(SelectShared, 128);
