// attention, backwards: the gradient at query, key and value from that at the result.
// Math:      with the probabilities p = exp(s - log_sum_exp) of the scaled scores s, the mask m of dropout (0 or its scale), the
//            gradient dy at the result y, and delta = dy . y of each query:
//            dvalue_k = sum_q (p m)_qk dy_q,  ds = p (m (dy_q . value_k) - delta_q) / sqrt D,
//            dquery_q = sum_k ds_qk key_k,    dkey_k = sum_q ds_qk query_q.  Who sees whom: forward.cu
// Source:    Dao, "FlashAttention-2" (2023), algorithm 2, as two kernels, so that no sum is shared between blocks
// Tensors:   qkv, dqkv (B*T, 3*H*D) packed rows of query, key, value; y, dy (B*T, H*D); one type. log_sum_exp, delta (B*H, T) f32
// Numerics:  f32 scores, probabilities and sums; p m and ds rounded to bf16 before they meet rows on tensor cores; every sum in the
//            order of queries or keys. 1 / sqrt D is multiplied last
// Requires:  tensor cores: D = 64, rows 16-byte aligned (8 divides 3*H*D); D <= 256
// Tiling:    bf16, D = 64: the first kernel takes 64 queries of one head, 16 a warp, and loops over tiles of 64 keys that any of
//            them sees; the second takes 64 keys and loops over the queries that see any, with the products transposed, so that in
//            both what a product leaves in registers is the left operand of the next. Tiles come through two swizzled buffers. On
//            sm_90a the four warps multiply together, by wgmma.
//            f32, and other head sizes: a warp takes a query, or a key, and 32 of the others at a time, on FMA units
// Roofline:  14 B T^2 H D operations, 10 of which are needed: scores and dy . value are computed twice
// Measured:  by wgmma: not yet measured by itself; with the forward pass, see forward.cu. By mma.sync, H200 at 86aee10, ncu: 16
//            sequences of 407 after 257, 12 heads of 64, in 199 us (keys 125, queries 74); 16 of 257, 16 heads, in 171
#include "attention/tiles.cuh"

struct AttentionBackwardParams {
    const void* qkv;
    const void* y;
    const void* dy;
    const float* log_sum_exp;
    float* delta;  // written by the kernels of queries, read by those of keys
    void* dqkv;
    long long seed;
    long long stream;
    unsigned threshold;
    float keep_scale;
    int tokens;
    int prefix;
    int heads;
    int head_size;
    float scale;  // 1 / sqrt D
    int unused;
};
SIZE_OF(AttentionBackwardParams, 96);

namespace {

struct AttentionQueriesShared {
    bf16 query[QUERIES * D];
    bf16 dy[QUERIES * D];
    bf16 key[2][KEYS * D];
    bf16 value[2][KEYS * D];
};
SIZE_OF(AttentionQueriesShared, 49152);

struct AttentionKeysShared {
    bf16 key[KEYS * D];
    bf16 value[KEYS * D];
    bf16 query[2][QUERIES * D];
    bf16 dy[2][QUERIES * D];
    float saved[2][2 * QUERIES];  // of both buffers: log-sum-exp to base 2, then delta
};
SIZE_OF(AttentionKeysShared, 50176);

// Index of a query of this block's head among the sums of all.
DEVICE int64_t row_of(const AttentionBackwardParams& p, int query) {
    return (int64_t(blockIdx.z) * p.heads + blockIdx.y) * p.tokens + query;
}

// Where this block's head begins in the rows of its sequence: of qkv, or of y if `parts` is 1.
template <typename T> DEVICE T* head_of(const AttentionBackwardParams& p, T* x, int parts, int size) {
    return x + int64_t(blockIdx.z) * p.tokens * parts * p.heads * size + int(blockIdx.y) * size;
}

// dy . y of rows g and g + 8 of a warp's 16 queries from `row` on.
DEVICE void row_deltas(const AttentionBackwardParams& p, int row, float (&delta)[2]) {
    const int64_t stride = p.heads * D;
    const int lane = lane_index();
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int q = row + lane / 4 + half * 8;
        float sum = 0.0f;
        if (q < p.tokens) {
            const int64_t at = q * stride + lane % 4 * 16;
            const uint4* dy = reinterpret_cast<const uint4*>(head_of(p, static_cast<const bf16*>(p.dy), 1, D) + at);
            const uint4* y = reinterpret_cast<const uint4*>(head_of(p, static_cast<const bf16*>(p.y), 1, D) + at);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const uint32_t a[4] = {dy[i].x, dy[i].y, dy[i].z, dy[i].w}, b[4] = {y[i].x, y[i].y, y[i].z, y[i].w};
#pragma unroll
                for (int n = 0; n < 4; n++) {
                    sum = fmaf(low_float(a[n]), low_float(b[n]), sum);
                    sum = fmaf(high_float(a[n]), high_float(b[n]), sum);
                }
            }
        }
        delta[half] = row_sum(sum);
        if (q < p.tokens && lane % 4 == 0) p.delta[row_of(p, q)] = delta[half];
    }
}

template <bool WGMMA> DEVICE void at_queries(const AttentionBackwardParams& p) {
    AttentionQueriesShared& shared = shared_memory<AttentionQueriesShared>();
    const int width = p.heads * D, first = blockIdx.x * QUERIES, row = first + warp_index() * 16, lane = lane_index();
    const bf16* qkv = head_of(p, static_cast<const bf16*>(p.qkv), 3, D);
    const int keys = visible_before(p.prefix, min(first + QUERIES, p.tokens)), tiles = (keys + KEYS - 1) / KEYS;
    copy_rows(qkv, 3 * width, first, p.tokens, shared.query);
    copy_rows(head_of(p, static_cast<const bf16*>(p.dy), 1, D), width, first, p.tokens, shared.dy);
    copy_rows(qkv + width, 3 * width, 0, p.tokens, shared.key[0]);
    copy_rows(qkv + 2 * width, 3 * width, 0, p.tokens, shared.value[0]);
    cp_async_commit();
    float delta[2], log_sum_exp[2] = {};
    row_deltas(p, row, delta);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int q = row + lane / 4 + half * 8;
        if (q < p.tokens) log_sum_exp[half] = p.log_sum_exp[row_of(p, q)] * LOG2_E;
    }
    const float scale = p.scale * LOG2_E;
    float dquery[8][4] = {};
    for (int tile = 0; tile < tiles; tile++) {
        cp_async_wait<0>();
        copies_are_operands<WGMMA>();
        sync_block();
        if (tile + 1 < tiles) {
            copy_rows(qkv + width, 3 * width, (tile + 1) * KEYS, p.tokens, shared.key[(tile + 1) % 2]);
            copy_rows(qkv + 2 * width, 3 * width, (tile + 1) * KEYS, p.tokens, shared.value[(tile + 1) % 2]);
        }
        cp_async_commit();
        if (!WGMMA && row >= p.tokens) continue;
        const bool whole = all_visible(p.prefix, row, tile * KEYS + KEYS - 1);
        float s[8][4] = {}, ds[8][4] = {};
        pin_products<WGMMA>(s);
        pin_products<WGMMA>(ds);
        begin_products<WGMMA>();
        add_rows_times_rows<WGMMA>(shared.query, warp_index() * 16, shared.key[tile % 2], s);
        add_rows_times_rows<WGMMA>(shared.dy, warp_index() * 16, shared.value[tile % 2], ds);
        wait_products<WGMMA, 0>();
        pin_products<WGMMA>(s);
        pin_products<WGMMA>(ds);
        const KeptOfQueries kept = kept_of_queries(head_mask(p), row, tile * KEYS);
#pragma unroll
        for (int n = 0; n < 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int q = row + lane / 4 + i / 2 * 8, k = tile * KEYS + n * 8 + lane % 4 * 2 + i % 2;
                const bool visible = whole || is_visible(p.prefix, q, k);
                const float weight = visible ? exp2_fast(fmaf(s[n][i], scale, -log_sum_exp[i / 2])) : 0.0f;
                ds[n][i] = weight * ((kept.at(n, i) ? ds[n][i] * p.keep_scale : 0.0f) - delta[i / 2]);
            }
        }
        if constexpr (WGMMA) {
            Weights<8> weights(ds);
            weights.pin();
            wgmma_pin(dquery);
            begin_products<WGMMA>();
            add_weights_times_rows(weights, shared.key[tile % 2], dquery);
            wait_products<WGMMA, 0>();
            wgmma_pin(dquery);
            weights.pin();
        } else {
            weights_times_rows(ds, shared.key[tile % 2], dquery);
        }
    }
    bf16* out = head_of(p, static_cast<bf16*>(p.dqkv), 3, D);
    write_rows(dquery, p.scale, row, p.tokens, out, 3 * width);
}

template <bool WGMMA> DEVICE void at_keys(const AttentionBackwardParams& p) {
    // Queries at a time: with 64, the scores and their gradients would not fit the registers beside operands.
    constexpr int TOGETHER = WGMMA ? QUERIES : QUERIES / 2, TILES = TOGETHER / 8;
    AttentionKeysShared& shared = shared_memory<AttentionKeysShared>();
    const int width = p.heads * D, first = blockIdx.x * KEYS, row = first + warp_index() * 16, lane = lane_index();
    const bf16* qkv = head_of(p, static_cast<const bf16*>(p.qkv), 3, D);
    const bf16* dy = head_of(p, static_cast<const bf16*>(p.dy), 1, D);
    // One of these for each thread: log-sum-exp of 64 queries, then delta. Queries that do not exist have zeros, as their rows.
    const int own = threadIdx.x % QUERIES;
    const float* saved = threadIdx.x < QUERIES ? p.log_sum_exp : p.delta;
    const float to_base_2 = threadIdx.x < QUERIES ? LOG2_E : 1.0f;
    // The tiles of queries that see any of the keys.
    const int start = first < p.prefix ? 0 : first / QUERIES, tiles = (p.tokens + QUERIES - 1) / QUERIES;
    copy_rows(qkv + width, 3 * width, first, p.tokens, shared.key);
    copy_rows(qkv + 2 * width, 3 * width, first, p.tokens, shared.value);
    copy_rows(qkv, 3 * width, start * QUERIES, p.tokens, shared.query[start % 2]);
    copy_rows(dy, width, start * QUERIES, p.tokens, shared.dy[start % 2]);
    cp_async_commit();
    float next = start * QUERIES + own < p.tokens ? saved[row_of(p, start * QUERIES + own)] * to_base_2 : 0.0f;
    shared.saved[start % 2][threadIdx.x] = next;
    const float scale = p.scale * LOG2_E;
    float dkey[8][4] = {}, dvalue[8][4] = {};
    for (int tile = start; tile < tiles; tile++) {
        cp_async_wait<0>();
        copies_are_operands<WGMMA>();
        sync_block();
        const int query = tile * QUERIES, following = query + QUERIES;
        if (tile + 1 < tiles) {
            copy_rows(qkv, 3 * width, following, p.tokens, shared.query[(tile + 1) % 2]);
            copy_rows(dy, width, following, p.tokens, shared.dy[(tile + 1) % 2]);
            next = following + own < p.tokens ? saved[row_of(p, following + own)] * to_base_2 : 0.0f;
        }
        cp_async_commit();
        const bool whole = all_visible(p.prefix, query, row + 15);
        const KeptOfKeys kept = kept_of_key_rows(head_mask(p), row, query);
#pragma unroll 1
        for (int start = 0; start < QUERIES && (WGMMA || row < p.tokens); start += TOGETHER) {
            const bf16* query_rows = shared.query[tile % 2] + start * D;
            const bf16* dy_rows = shared.dy[tile % 2] + start * D;
            const float* saved_now = shared.saved[tile % 2] + start;
            float s[TILES][4] = {}, ds[TILES][4] = {};
            pin_products<WGMMA>(s);
            pin_products<WGMMA>(ds);
            begin_products<WGMMA>();
            add_rows_times_rows<WGMMA>(shared.key, warp_index() * 16, query_rows, s);
            add_rows_times_rows<WGMMA>(shared.value, warp_index() * 16, dy_rows, ds);
            wait_products<WGMMA, 0>();
            pin_products<WGMMA>(s);
            pin_products<WGMMA>(ds);
#pragma unroll
            for (int n = 0; n < TILES; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int k = row + lane / 4 + i / 2 * 8, at = n * 8 + lane % 4 * 2 + i % 2;
                    const bool visible = whole || is_visible(p.prefix, query + start + at, k);
                    const float log_sum_exp = saved_now[at], delta = saved_now[QUERIES + at];
                    const float weight = visible ? exp2_fast(fmaf(s[n][i], scale, -log_sum_exp)) : 0.0f;
                    const float factor = kept.at(start / 8 + n, i) ? p.keep_scale : 0.0f;
                    s[n][i] = weight * factor;
                    ds[n][i] = weight * (ds[n][i] * factor - delta);
                }
            }
            if constexpr (WGMMA) {
                Weights<TILES> weights(s), slopes(ds);
                weights.pin();
                slopes.pin();
                wgmma_pin(dvalue);
                wgmma_pin(dkey);
                begin_products<WGMMA>();
                add_weights_times_rows(weights, dy_rows, dvalue);
                add_weights_times_rows(slopes, query_rows, dkey);
                wait_products<WGMMA, 0>();
                wgmma_pin(dvalue);
                wgmma_pin(dkey);
                weights.pin();
                slopes.pin();
            } else {
                weights_times_rows(s, dy_rows, dvalue);
                weights_times_rows(ds, query_rows, dkey);
            }
        }
        // Read by nobody before the next barrier.
        if (tile + 1 < tiles) shared.saved[(tile + 1) % 2][threadIdx.x] = next;
    }
    bf16* out = head_of(p, static_cast<bf16*>(p.dqkv), 3, D);
    write_rows(dkey, p.scale, row, p.tokens, out + width, 3 * width);
    write_rows(dvalue, 1.0f, row, p.tokens, out + 2 * width, 3 * width);
}

}  // namespace

// Grid: (ceil(T / 64), H, B). Shared memory: AttentionQueriesShared. A warp owns 16 queries.
KERNEL(attention_backward_queries_bf16, AttentionBackwardParams, 128, 3) { at_queries<false>(params); }
KERNEL(attention_backward_queries_wgmma_bf16, AttentionBackwardParams, 128, 3) { at_queries<true>(params); }

// Grid: (ceil(T / 64), H, B). Shared memory: AttentionKeysShared. A warp owns 16 keys.
KERNEL(attention_backward_keys_bf16, AttentionBackwardParams, 128, 2) { at_keys<false>(params); }
KERNEL(attention_backward_keys_wgmma_bf16, AttentionBackwardParams, 128, 2) { at_keys<true>(params); }

namespace {

constexpr int OWNED = THREADS / WARP;  // queries or keys of a block, one a warp
constexpr int MAX_VALUES = 8;          // values of a row that a lane owns: D <= 256

// `count` rows of `size` values from `first` on to shared memory, as f32, with rows of `stride` there; rows from `tokens` on are
// zeros.
template <typename T>
DEVICE void load_rows(const T* from, int64_t from_stride, int first, int count, int tokens, int size, float* to, int stride) {
    for (int i = threadIdx.x; i < count * size; i += THREADS) {
        const int row = i / size, d = i % size;
        to[row * stride + d] = first + row < tokens ? to_float(from[(first + row) * from_stride + d]) : 0.0f;
    }
}

DEVICE float dot(const float* a, const float* b, int size) {
    float sum = 0.0f;
    for (int d = 0; d < size; d++) sum = fmaf(a[d], b[d], sum);
    return sum;
}

// Adds each lane's weight times its row: a lane owns every 32nd value of the sum.
DEVICE void add_rows(float (&sum)[MAX_VALUES], float weight, const float* rows, int stride, int size) {
    for (int row = 0; row < WARP; row++) {
        const float w = shuffle(weight, row);
#pragma unroll
        for (int i = 0; i < MAX_VALUES; i++) {
            const int d = i * WARP + lane_index();
            if (d < size) sum[i] = fmaf(w, rows[row * stride + d], sum[i]);
        }
    }
}

template <typename T> DEVICE void write_row(const float (&sum)[MAX_VALUES], float factor, int size, T* to) {
#pragma unroll
    for (int i = 0; i < MAX_VALUES; i++) {
        const int d = i * WARP + lane_index();
        if (d < size) to[d] = from_float<T>(sum[i] * factor);
    }
}

// Shared memory: 32 keys and 32 values of D + 1 floats, four rows each of query and dy of D.
template <typename T> DEVICE void warp_per_query(const AttentionBackwardParams& p) {
    const int size = p.head_size, width = p.heads * size, lane = lane_index(), stride = size + 1;
    float* keys = &shared_memory<float>();
    float* values = keys + WARP * stride;
    float* queries = values + WARP * stride;
    float* dys = queries + OWNED * size;
    const int first = blockIdx.x * OWNED, own = min(first + warp_index(), p.tokens - 1);
    const T* qkv = head_of(p, static_cast<const T*>(p.qkv), 3, size);
    const T* y = head_of(p, static_cast<const T*>(p.y), 1, size) + int64_t(own) * width;
    load_rows(qkv, 3 * width, first, OWNED, p.tokens, size, queries, size);
    load_rows(head_of(p, static_cast<const T*>(p.dy), 1, size), width, first, OWNED, p.tokens, size, dys, size);
    sync_block();
    const float* query = queries + warp_index() * size;
    const float* dy = dys + warp_index() * size;
    float delta = 0.0f;
    for (int d = lane; d < size; d += WARP) delta = fmaf(dy[d], to_float(y[d]), delta);
    delta = warp_sum(delta);
    const float log_sum_exp = p.log_sum_exp[row_of(p, own)] * LOG2_E;
    const int end = visible_before(p.prefix, min(first + OWNED, p.tokens));
    float dquery[MAX_VALUES] = {};
    for (int start = 0; start < end; start += WARP) {
        sync_block();
        load_rows(qkv + width, 3 * width, start, WARP, end, size, keys, stride);
        load_rows(qkv + 2 * width, 3 * width, start, WARP, end, size, values, stride);
        sync_block();
        const int key = start + lane;
        const float s = dot(query, keys + lane * stride, size), g = dot(dy, values + lane * stride, size);
        const bool visible = key < end && is_visible(p.prefix, own, key);
        const float weight = visible ? exp2_fast(fmaf(s, p.scale * LOG2_E, -log_sum_exp)) : 0.0f;
        const float ds = weight * (g * factor_of(head_mask(p), own, key) - delta);
        add_rows(dquery, ds, keys, stride, size);
    }
    if (first + warp_index() >= p.tokens) return;
    write_row(dquery, p.scale, size, head_of(p, static_cast<T*>(p.dqkv), 3, size) + int64_t(own) * 3 * width);
    if (lane == 0) p.delta[row_of(p, own)] = delta;
}

// Shared memory: 32 rows of query and 32 of dy of D + 1 floats, four keys and four values of D.
template <typename T> DEVICE void warp_per_key(const AttentionBackwardParams& p) {
    const int size = p.head_size, width = p.heads * size, lane = lane_index(), stride = size + 1;
    float* queries = &shared_memory<float>();
    float* dys = queries + WARP * stride;
    float* keys = dys + WARP * stride;
    float* values = keys + OWNED * size;
    const int first = blockIdx.x * OWNED, own = first + warp_index();
    const T* qkv = head_of(p, static_cast<const T*>(p.qkv), 3, size);
    load_rows(qkv + width, 3 * width, first, OWNED, p.tokens, size, keys, size);
    load_rows(qkv + 2 * width, 3 * width, first, OWNED, p.tokens, size, values, size);
    float dkey[MAX_VALUES] = {}, dvalue[MAX_VALUES] = {};
    for (int start = first < p.prefix ? 0 : first; start < p.tokens; start += WARP) {
        sync_block();
        load_rows(qkv, 3 * width, start, WARP, p.tokens, size, queries, stride);
        load_rows(head_of(p, static_cast<const T*>(p.dy), 1, size), width, start, WARP, p.tokens, size, dys, stride);
        sync_block();
        const int query = min(start + lane, p.tokens - 1);
        const float s = dot(keys + warp_index() * size, queries + lane * stride, size);
        const float g = dot(values + warp_index() * size, dys + lane * stride, size);
        const bool visible = start + lane < p.tokens && is_visible(p.prefix, query, own);
        const float log_sum_exp = p.log_sum_exp[row_of(p, query)] * LOG2_E;
        const float weight = visible ? exp2_fast(fmaf(s, p.scale * LOG2_E, -log_sum_exp)) : 0.0f;
        const float factor = factor_of(head_mask(p), query, own);
        add_rows(dvalue, weight * factor, dys, stride, size);
        add_rows(dkey, weight * (g * factor - p.delta[row_of(p, query)]), queries, stride, size);
    }
    if (own >= p.tokens) return;
    T* out = head_of(p, static_cast<T*>(p.dqkv), 3, size) + int64_t(own) * 3 * width;
    write_row(dkey, p.scale, size, out + width);
    write_row(dvalue, 1.0f, size, out + 2 * width);
}

}  // namespace

// Grid: (ceil(T / 4), H, B). Shared memory: (64 + 8) * D + 64 floats. A warp owns a query, or a key.
KERNEL(attention_backward_warp_per_query_bf16, AttentionBackwardParams, 128, 4) { warp_per_query<bf16>(params); }
KERNEL(attention_backward_warp_per_query_f32, AttentionBackwardParams, 128, 4) { warp_per_query<float>(params); }
KERNEL(attention_backward_warp_per_key_bf16, AttentionBackwardParams, 128, 4) { warp_per_key<bf16>(params); }
KERNEL(attention_backward_warp_per_key_f32, AttentionBackwardParams, 128, 4) { warp_per_key<float>(params); }
