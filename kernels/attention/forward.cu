// attention: softmax(query key^T / sqrt D) value over whole sequences.
// Math:      tokens before `prefix` (an image) see the prefix, later ones (units) see the prefix and the units up to
//            themselves; prefix = T is attention of everything to everything
// Source:    Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018); Dao, "FlashAttention-2" (2023)
// Tensors:   qkv (B*T, 3*H*D) packed rows of query, key, value; y (B*T, H*D); one type. Sequences of different lengths, whose
//            tokens all see each other, have a table of first row and tokens; rows of none are neither read nor written. In
//            training also log_sum_exp (B*H, T) f32, natural, of the scaled scores, and dropout of probabilities after the softmax
// Numerics:  f32 scores, maximum and sum; probabilities rounded to bf16 before they meet the values; the order depends on
//            the position of a query only
// Requires:  tensor cores: D = 64, rows 16-byte aligned (8 divides 3*H*D); D <= 256
// Tiling:    bf16, D = 64: a block takes 64 queries of one head, 16 a warp; keys and values come in tiles of 64 through two
//            swizzled shared-memory buffers; scores stay in registers and become the left operand of the second product. On
//            sm_90a the four warps multiply together, by wgmma: no operand but the probabilities goes through registers.
//            f32, and other head sizes: a warp takes a query, 32 keys at a time, on FMA units
// Roofline:  4 B T^2 H D operations; at 257 tokens the tensor cores are idle most of the time, latency counts
// Measured:  by wgmma, with backward.cu: a training step of the 6 x 768 decoder, batch 16, 150 units, bf16, falls from 8.42 ms
//            by mma.sync to 8.16 on cached features and from 15.42 to 14.83 behind a frozen encoder (H200, on a branch at
//            5d9d656, benches/peers/train_step.rs; as merged: not yet measured). By mma.sync, NVIDIA H200, driver
//            580.159.04, commit 449c6ab: `im2sp doctor --op =attention` (cold L2, lightly contended), B x T x H x D: bf16
//            1x257x16x64 in 14.6 us, 64x257x16x64 in 184 (94 TFLOP/s); f32 1x257x16x64 in 110, 64x257x16x64 in 11,830. ncu,
//            `im2sp bench --random --dtype bf16 --units 50`: bf16 1x257x16x64 in 12.8 us, 1x257x12x64 in 13.0
#include "attention/tiles.cuh"

struct AttentionParams {
    const void* qkv;
    void* y;
    float* log_sum_exp;
    const int* sequences;  // first row and tokens of each; null: B sequences of T tokens
    long long seed;
    long long stream;
    unsigned threshold;
    float keep_scale;
    int tokens;
    int prefix;
    int heads;
    int head_size;
    float scale;  // log2 e / sqrt D
    int unused;
};
SIZE_OF(AttentionParams, 80);

namespace {

// The sequence of a block.
struct Sequence {
    int64_t first;  // row of the tensor
    int tokens, prefix;
};
DEVICE Sequence sequence_of(const AttentionParams& p) {
    if (!p.sequences) return {int64_t(blockIdx.z) * p.tokens, p.tokens, p.prefix};
    const int tokens = p.sequences[2 * blockIdx.z + 1];
    return {p.sequences[2 * blockIdx.z], tokens, tokens};
}

struct AttentionShared {
    bf16 query[QUERIES * D];
    bf16 key[2][KEYS * D];
    bf16 value[2][KEYS * D];
};
SIZE_OF(AttentionShared, 40960);

// The online softmax of a warp's 16 queries: output, maximum and sum of rows g and g + 8.
struct RunningSoftmax {
    float out[8][4];
    float maximum[2], sum[2];
};

// Products of a warp's queries with a tile of keys.
DEVICE void query_times_keys(const uint32_t (&query)[4][4], const bf16* key, float (&s)[8][4]) {
    const int lane = lane_index();
#pragma unroll
    for (int n = 0; n < 8; n += 2) {
#pragma unroll
        for (int k = 0; k < 4; k++) {
            uint32_t pair[4];
            ldmatrix_x4(pair, key + place(n * 8 + lane / 16 * 8 + lane % 8, k * 2 + lane / 8 % 2));
            const uint32_t even[2] = {pair[0], pair[1]}, odd[2] = {pair[2], pair[3]};
            mma_m16n8k16(s[n], query[k], even);
            mma_m16n8k16(s[n + 1], query[k], odd);
        }
    }
}

// Such products scaled to base 2; minus infinity where a key is not visible.
DEVICE void scale_scores(float scale, int prefix, int row, int first, float (&s)[8][4]) {
    const int lane = lane_index();
    // A tile that is visible to every query of the warp needs no test.
    const bool whole = first + KEYS <= prefix;
#pragma unroll
    for (int n = 0; n < 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int q = row + lane / 4 + i / 2 * 8, k = first + n * 8 + lane % 4 * 2 + i % 2;
            s[n][i] = whole || is_visible(prefix, q, k) ? s[n][i] * scale : -INFINITY;
        }
    }
}

// Four lanes share a row.
DEVICE float row_max(float v) {
    v = fmaxf(v, shuffle_xor(v, 1));
    return fmaxf(v, shuffle_xor(v, 2));
}

// One tile: new maximum, old output scaled to it, probabilities.
DEVICE void softmax_update(RunningSoftmax& run, float (&s)[8][4]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float maximum = run.maximum[half];
#pragma unroll
        for (int n = 0; n < 8; n++) maximum = fmaxf(maximum, fmaxf(s[n][half * 2], s[n][half * 2 + 1]));
        maximum = row_max(maximum);
        const float factor = exp2_fast(run.maximum[half] - maximum);
        run.maximum[half] = maximum;
        run.sum[half] *= factor;
#pragma unroll
        for (int n = 0; n < 8; n++) {
            run.out[n][half * 2] *= factor, run.out[n][half * 2 + 1] *= factor;
            s[n][half * 2] = exp2_fast(s[n][half * 2] - maximum);
            s[n][half * 2 + 1] = exp2_fast(s[n][half * 2 + 1] - maximum);
            run.sum[half] += s[n][half * 2] + s[n][half * 2 + 1];
        }
    }
}

template <bool SAVING, bool WGMMA> DEVICE void attend(const AttentionParams& p) {
    AttentionShared& shared = shared_memory<AttentionShared>();
    const int width = p.heads * D, head = blockIdx.y, first = blockIdx.x * QUERIES;
    const Sequence own = sequence_of(p);
    if (first >= own.tokens) return;
    const bf16* qkv = static_cast<const bf16*>(p.qkv) + own.first * 3 * width + head * D;
    const int row = first + warp_index() * 16, lane = lane_index();
    const int keys = visible_before(own.prefix, min(first + QUERIES, own.tokens)), tiles = (keys + KEYS - 1) / KEYS;
    copy_rows(qkv, 3 * width, first, own.tokens, shared.query);
    copy_rows(qkv + width, 3 * width, 0, own.tokens, shared.key[0]);
    copy_rows(qkv + 2 * width, 3 * width, 0, own.tokens, shared.value[0]);
    cp_async_commit();
    uint32_t query[4][4];
    RunningSoftmax run = {};
    run.maximum[0] = run.maximum[1] = -INFINITY;
    for (int tile = 0; tile < tiles; tile++) {
        cp_async_wait<0>();
        copies_are_operands<WGMMA>();
        sync_block();
        if (tile + 1 < tiles) {
            copy_rows(qkv + width, 3 * width, (tile + 1) * KEYS, own.tokens, shared.key[(tile + 1) % 2]);
            copy_rows(qkv + 2 * width, 3 * width, (tile + 1) * KEYS, own.tokens, shared.value[(tile + 1) % 2]);
        }
        cp_async_commit();
        if (!WGMMA && row >= own.tokens) continue;
        if (!WGMMA && tile == 0) {
#pragma unroll
            for (int k = 0; k < 4; k++) {
                ldmatrix_x4(query[k], shared.query + place(warp_index() * 16 + lane % 16, k * 2 + lane / 16));
            }
        }
        float s[8][4] = {};
        if constexpr (WGMMA) {
            wgmma_pin(s);
            begin_products<WGMMA>();
            add_rows_times_rows<WGMMA>(shared.query, 0, shared.key[tile % 2], s);
            wait_products<WGMMA, 0>();
            wgmma_pin(s);
        } else {
            query_times_keys(query, shared.key[tile % 2], s);
        }
        scale_scores(p.scale, own.prefix, row, tile * KEYS, s);
        softmax_update(run, s);
        if (SAVING) {
            const KeptOfQueries kept = kept_of_queries(head_mask(p), row, tile * KEYS);
#pragma unroll
            for (int n = 0; n < 8; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) s[n][i] = kept.at(n, i) ? s[n][i] : 0.0f;
            }
        }
        if constexpr (WGMMA) {
            Weights<8> weights(s);
            weights.pin();
            wgmma_pin(run.out);
            begin_products<WGMMA>();
            add_weights_times_rows(weights, shared.value[tile % 2], run.out);
            wait_products<WGMMA, 0>();
            wgmma_pin(run.out);
            weights.pin();
        } else {
            weights_times_rows(s, shared.value[tile % 2], run.out);
        }
    }
    if (row >= own.tokens) return;
    bf16* y = static_cast<bf16*>(p.y) + own.first * width + head * D;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int q = row + lane / 4 + half * 8;
        const float sum = row_sum(run.sum[half]);
        const float factor = SAVING ? p.keep_scale / sum : 1.0f / sum;
        if (q >= own.tokens) continue;
#pragma unroll
        for (int n = 0; n < 8; n++) {
            const uint32_t pair = pack_bf16(run.out[n][half * 2] * factor, run.out[n][half * 2 + 1] * factor);
            *reinterpret_cast<uint32_t*>(y + int64_t(q) * width + n * 8 + lane % 4 * 2) = pair;
        }
        if (SAVING && lane % 4 == 0) {
            const int64_t at = (int64_t(blockIdx.z) * p.heads + head) * p.tokens + q;
            p.log_sum_exp[at] = run.maximum[half] * LN_2 + logf(sum);
        }
    }
}

}  // namespace

// Grid: (ceil(T / 64), H, B). Shared memory: AttentionShared. A warp owns 16 queries.
KERNEL(attention_forward_bf16, AttentionParams, 128, 3) { attend<false, false>(params); }
KERNEL(attention_forward_saving_bf16, AttentionParams, 128, 3) { attend<true, false>(params); }
KERNEL(attention_forward_wgmma_bf16, AttentionParams, 128, 4) { attend<false, true>(params); }
KERNEL(attention_forward_saving_wgmma_bf16, AttentionParams, 128, 4) { attend<true, true>(params); }

namespace {

constexpr int PLAIN_QUERIES = THREADS / WARP;  // one a warp
constexpr int MAX_VALUES = 8;                  // values of the output that a lane owns: D <= 256

// Shared memory: 32 keys and 32 values of D + 1 floats, four queries of D.
template <typename T, bool SAVING> DEVICE void warp_per_query(const AttentionParams& p) {
    const int size = p.head_size, width = p.heads * size, lane = lane_index();
    float* keys = &shared_memory<float>();
    float* values = keys + WARP * (size + 1);
    float* queries = values + WARP * (size + 1);
    const int first = blockIdx.x * PLAIN_QUERIES, own = first + warp_index();
    const Sequence sequence = sequence_of(p);
    if (first >= sequence.tokens) return;
    const T* qkv = static_cast<const T*>(p.qkv) + sequence.first * 3 * width + int(blockIdx.y) * size;
    for (int i = threadIdx.x; i < PLAIN_QUERIES * size; i += THREADS) {
        const int q = min(first + i / size, sequence.tokens - 1);
        queries[i] = to_float(qkv[int64_t(q) * 3 * width + i % size]);
    }
    const float* query = queries + warp_index() * size;
    const int end = visible_before(sequence.prefix, min(first + PLAIN_QUERIES, sequence.tokens));
    float out[MAX_VALUES] = {}, maximum = -INFINITY, sum = 0.0f;
    for (int start = 0; start < end; start += WARP) {
        sync_block();
        for (int i = threadIdx.x; i < WARP * size; i += THREADS) {
            const int k = start + i / size, at = i / size * (size + 1) + i % size;
            const int64_t from = int64_t(k) * 3 * width + i % size;
            keys[at] = k < end ? to_float(qkv[from + width]) : 0.0f;
            values[at] = k < end ? to_float(qkv[from + 2 * width]) : 0.0f;
        }
        sync_block();
        float s = 0.0f;
        for (int d = 0; d < size; d++) s = fmaf(query[d], keys[lane * (size + 1) + d], s);
        s = start + lane < end && is_visible(sequence.prefix, own, start + lane) ? s * p.scale : -INFINITY;
        const float now = fmaxf(maximum, warp_max(s));
        const float factor = maximum == now ? 1.0f : exp2_fast(maximum - now);
        const float weight = s == -INFINITY ? 0.0f : exp2_fast(s - now);
        maximum = now;
        sum = sum * factor + warp_sum(weight);
        const float kept = SAVING ? weight * factor_of(head_mask(p), own, start + lane) : weight;
#pragma unroll
        for (int i = 0; i < MAX_VALUES; i++) out[i] *= factor;
        for (int k = 0; k < WARP; k++) {
            const float w = shuffle(kept, k);
#pragma unroll
            for (int i = 0; i < MAX_VALUES; i++) {
                const int d = i * WARP + lane;
                if (d < size) out[i] = fmaf(w, values[k * (size + 1) + d], out[i]);
            }
        }
    }
    if (own >= sequence.tokens) return;
    T* y = static_cast<T*>(p.y) + (sequence.first + own) * width + int(blockIdx.y) * size;
#pragma unroll
    for (int i = 0; i < MAX_VALUES; i++) {
        const int d = i * WARP + lane;
        if (d < size) y[d] = from_float<T>(out[i] / sum);
    }
    if (SAVING && lane == 0) {
        const int64_t at = (int64_t(blockIdx.z) * p.heads + blockIdx.y) * p.tokens + own;
        p.log_sum_exp[at] = maximum * LN_2 + logf(sum);
    }
}

}  // namespace

// Grid: (ceil(T / 4), H, B). Shared memory: (64 + 4) * D + 64 floats. A warp owns a query.
KERNEL(attention_forward_warp_per_query_bf16, AttentionParams, 128, 4) { warp_per_query<bf16, false>(params); }
KERNEL(attention_forward_warp_per_query_f32, AttentionParams, 128, 4) { warp_per_query<float, false>(params); }
KERNEL(attention_forward_saving_warp_per_query_bf16, AttentionParams, 128, 4) { warp_per_query<bf16, true>(params); }
KERNEL(attention_forward_saving_warp_per_query_f32, AttentionParams, 128, 4) { warp_per_query<float, true>(params); }
