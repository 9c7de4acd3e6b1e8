// tiles: what the passes of attention share: who sees whom, tiles of 64 rows of one head in shared memory, their products on
// tensor cores, and dropout of probabilities.
#pragma once

#include "philox.cuh"
#include "wgmma.cuh"

namespace {

constexpr int D = 64;
constexpr int QUERIES = 64, KEYS = 64;
constexpr int THREADS = 128;
constexpr float LN_2 = 0.6931471805599453f;

DEVICE bool is_visible(int prefix, int query, int key) { return key < prefix || (query >= prefix && key <= query); }

// Keys that are visible to any query before `end`.
DEVICE int visible_before(int prefix, int end) { return end <= prefix ? prefix : end; }

// Whether every key from `key` to `last` is visible to every query from `query` on.
DEVICE bool all_visible(int prefix, int query, int last) { return last < prefix || (query >= prefix && last <= query); }

// Where chunk16 `chunk` of a row lies, in values.
DEVICE int place(int row, int chunk) { return chunk16_offset<ConsecutiveRows>(row, chunk) / int(sizeof(bf16)); }

// Starts the copy of 64 rows of one head; rows from `tokens` on are zeros.
DEVICE void copy_rows(const bf16* from, int64_t stride, int first, int tokens, bf16* to) {
    for (int i = threadIdx.x; i < KEYS * CHUNKS; i += THREADS) {
        const int row = i / CHUNKS, chunk = i % CHUNKS;
        const bool inside = first + row < tokens;
        cp_async_16(to + place(row, chunk), inside ? from + (first + row) * stride + chunk * 8 : from, inside);
    }
}

// Four lanes share a row.
DEVICE float row_sum(float v) {
    v += shuffle_xor(v, 1);
    return v + shuffle_xor(v, 2);
}

// out += a b^T: 16 rows of `a` from `row` on, 8 N rows of `b`, both in shared memory.
template <int N> DEVICE void rows_times_rows(const bf16* a, int row, const bf16* b, float (&out)[N][4]) {
    const int lane = lane_index();
#pragma unroll
    for (int k = 0; k < 4; k++) {
        uint32_t left[4];
        ldmatrix_x4(left, a + place(row + lane % 16, k * 2 + lane / 16));
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            uint32_t pair[4];
            ldmatrix_x4(pair, b + place(n * 8 + lane / 16 * 8 + lane % 8, k * 2 + lane / 8 % 2));
            const uint32_t even[2] = {pair[0], pair[1]}, odd[2] = {pair[2], pair[3]};
            mma_m16n8k16(out[n], left, even);
            mma_m16n8k16(out[n + 1], left, odd);
        }
    }
}

// out += weights b: 16 x 8 N weights as a product left them in registers, rounded to bf16; 8 N rows of `b` in shared memory.
template <int N> DEVICE void weights_times_rows(const float (&weights)[N][4], const bf16* b, float (&out)[8][4]) {
    const int lane = lane_index();
#pragma unroll
    for (int k = 0; k < N / 2; k++) {
        const float(&low)[4] = weights[2 * k], (&high)[4] = weights[2 * k + 1];
        const uint32_t left[4] = {pack_bf16(low[0], low[1]), pack_bf16(low[2], low[3]), pack_bf16(high[0], high[1]),
                                  pack_bf16(high[2], high[3])};
#pragma unroll
        for (int n = 0; n < 8; n += 2) {
            uint32_t pair[4];
            ldmatrix_x4_trans(pair, b + place(k * 16 + lane % 16, n + lane / 16));
            const uint32_t even[2] = {pair[0], pair[1]}, odd[2] = {pair[2], pair[3]};
            mma_m16n8k16(out[n], left, even);
            mma_m16n8k16(out[n + 1], left, odd);
        }
    }
}

// ---- the same products of all four warps together, by wgmma where WGMMA: 64 rows each, in groups that are waited for

// Before products, or after a copy was waited for.
template <bool WGMMA> DEVICE void begin_products() {
    if constexpr (WGMMA) wgmma_fence();
}
template <bool WGMMA> DEVICE void copies_are_operands() {
    if constexpr (WGMMA) fence_async_proxy();
}
// Waits until at most N of the groups are under way.
template <bool WGMMA, int N> DEVICE void wait_products() {
    if constexpr (WGMMA) wgmma_wait<N>();
}
template <bool WGMMA, int N> DEVICE void pin_products(float (&out)[N][4]) {
    if constexpr (WGMMA) wgmma_pin(out);
}

// A group: out += a b^T, of the warp's 16 rows of `a` from `row` on, which begin with the block's.
template <bool WGMMA, int N> DEVICE void add_rows_times_rows(const bf16* a, int row, const bf16* b, float (&out)[N][4]) {
    if constexpr (WGMMA) {
        const unsigned char *left = reinterpret_cast<const unsigned char*>(a), *right = reinterpret_cast<const unsigned char*>(b);
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            wgmma_m64k16<false, false>(out, left + k * WGMMA_STEP<false>, right + k * WGMMA_STEP<false>);
        }
        wgmma_commit();
    } else {
        rows_times_rows(a, row, b, out);
    }
}

// Weights as left operands: alive until the products are waited for.
template <int N> struct Weights {
    uint32_t left[N / 2][4];

    DEVICE explicit Weights(const float (&weights)[N][4]) {
#pragma unroll
        for (int k = 0; k < N / 2; k++) {
            const float(&low)[4] = weights[2 * k], (&high)[4] = weights[2 * k + 1];
            left[k][0] = pack_bf16(low[0], low[1]), left[k][1] = pack_bf16(low[2], low[3]);
            left[k][2] = pack_bf16(high[0], high[1]), left[k][3] = pack_bf16(high[2], high[3]);
        }
    }
    DEVICE void pin() {
#pragma unroll
        for (int k = 0; k < N / 2; k++) wgmma_pin(left[k]);
    }
};

// A group: out += weights b.
template <int N> DEVICE void add_weights_times_rows(const Weights<N>& weights, const bf16* b, float (&out)[8][4]) {
#pragma unroll
    for (int k = 0; k < N / 2; k++) {
        wgmma_m64k16<true>(out, weights.left[k], reinterpret_cast<const unsigned char*>(b) + k * WGMMA_STEP<true>);
    }
    wgmma_commit();
}

// Writes 16 rows of 64 values, times `factor`, from the registers of a product; `row` is their first.
DEVICE void write_rows(const float (&values)[8][4], float factor, int row, int tokens, bf16* to, int64_t stride) {
    const int lane = lane_index();
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int own = row + lane / 4 + half * 8;
        if (own >= tokens) continue;
#pragma unroll
        for (int n = 0; n < 8; n++) {
            const uint32_t pair = pack_bf16(values[n][half * 2] * factor, values[n][half * 2 + 1] * factor);
            *reinterpret_cast<uint32_t*>(to + own * stride + n * 8 + lane % 4 * 2) = pair;
        }
    }
}

// ---- dropout: the probability of query q and key k of a head takes word `row * T4 + k`, row = (b H + h) T + q, T4 = T rounded
// up to a multiple of four. `row` counts from the head's first in what follows.

struct HeadMask {
    Mask mask;
    int64_t first;  // row of the head's first query
    int blocks;     // of words of a row
};
template <typename Params> DEVICE HeadMask head_mask(const Params& p) {
    return {mask_of(p), (int64_t(blockIdx.z) * p.heads + blockIdx.y) * p.tokens, (p.tokens + 3) / 4};
}

DEVICE unsigned kept_of_keys(const HeadMask& head, int query, int block) {
    return kept_of_block(head.mask, uint64_t((head.first + query) * head.blocks + block));
}

// The factor of one probability.
DEVICE float factor_of(const HeadMask& head, int query, int key) {
    if (head.mask.threshold == 0) return 1.0f;
    return kept_of_keys(head, query, key / 4) >> key % 4 & 1 ? head.mask.scale : 0.0f;
}

// A warp's tile of 16 queries and 64 keys as a product leaves it in registers: bit 4 n + i % 2 of word i / 2 belongs to value
// i of tile n. Two lanes share each block of four keys: each makes those of one row of both, and they exchange.
struct KeptOfQueries {
    unsigned word[2];
    DEVICE bool at(int n, int i) const { return word[i / 2] >> (4 * n + i % 2) & 1; }
};
DEVICE KeptOfQueries kept_of_queries(const HeadMask& head, int row, int first) {
    if (head.mask.threshold == 0) return {{~0u, ~0u}};
    const int lane = lane_index(), odd = lane % 2, query = row + lane / 4 + odd * 8;
    unsigned own = 0;
#pragma unroll 2
    for (int n = 0; n < 8; n++) own |= kept_of_keys(head, query, first / 4 + n * 2 + lane % 4 / 2) << 4 * n;
    const unsigned other = unsigned(shuffle_xor(int(own), 1));
    return {{(odd ? other : own) >> 2 * odd, (odd ? own : other) >> 2 * odd}};
}

// A warp's tile of 16 keys and 64 queries: bit 4 n of word i belongs to value i of tile n. Four lanes share the keys of a block:
// each makes the blocks of one of two queries and one of two rows of eight keys, and they exchange.
struct KeptOfKeys {
    unsigned word[4];
    DEVICE bool at(int n, int i) const { return word[i] >> 4 * n & 1; }
};
DEVICE KeptOfKeys kept_of_key_rows(const HeadMask& head, int row, int first) {
    if (head.mask.threshold == 0) return {{~0u, ~0u, ~0u, ~0u}};
    const int lane = lane_index(), own_of_four = lane / 4 % 4;
    const int query = first + lane % 4 * 2 + own_of_four % 2, block = row / 4 + lane / 16 + own_of_four / 2 * 2;
    unsigned own = 0;
#pragma unroll 2
    for (int n = 0; n < 8; n++) own |= kept_of_keys(head, query + n * 8, block) << 4 * n;
    KeptOfKeys kept;
#pragma unroll
    for (int i = 0; i < 4; i++) kept.word[i] = unsigned(shuffle(int(own), (lane & ~12) | i << 2)) >> own_of_four;
    return kept;
}

}  // namespace
