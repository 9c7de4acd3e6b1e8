// decode_greedy, the parts of a step: the work of one block between two grid barriers.
#pragma once

#include "mma.cuh"

// Weights of one post-norm layer. `T` of the matrices is the kernel's; scales are those of fp8 rows, else null.
struct DecodeGreedyLayerParams {
    const void* qkv;               // (3C, C)
    const void* attention_out;     // (C, C)
    const void* fc1;               // (F, C)
    const void* fc2;               // (C, F)
    const float* qkv_scale;        // (3C)
    const float* attention_out_scale;
    const float* fc1_scale;        // (F)
    const float* fc2_scale;        // (C)
    const float* qkv_bias;         // (3C)
    const float* attention_out_bias;
    const float* fc1_bias;
    const float* fc2_bias;
    const float* attention_norm_weight;
    const float* attention_norm_bias;
    const float* mlp_norm_weight;
    const float* mlp_norm_bias;
    const void* prefix_keys;    // (images, H, prefix, D), bf16 or f32
    const void* prefix_values;
    void* generated_keys;       // (rows, H, limit, D), the same type
    void* generated_values;
};
SIZE_OF(DecodeGreedyLayerParams, 160);

struct DecodeGreedyParams {
    const DecodeGreedyLayerParams* layers;  // in device memory
    const void* word;                 // (V, C), also the output's weights; bf16 beside fp8 layers, as is
    const void* position;             // (P, C)
    const float* embedding_norm_weight;
    const float* embedding_norm_bias;
    const float* output_bias;         // (V)
    const int* images;                // (rows): each row's image
    float* scratch;                   // see Scratch
    unsigned* control;                // see CONTROL_*, in device memory, zeros at the start
    unsigned* host;                   // see HOST_*, in memory that the host sees
    int layer_count;
    int rows;
    int channels;
    int hidden;
    int heads;
    int vocabulary;
    int prefix;
    int limit;       // positions of a sequence, BOS included
    int chunk;       // image tokens of a split of the attention
    int slots;       // 2 to 4 buffers of weights
    int slot_bytes;  // of one, a multiple of 128
    int bos;
    int eos;
    float eps;
    float scale;     // 1 / sqrt(D) * log2 e
    int seconds;     // without progress at a barrier, after which the launch gives up
};
SIZE_OF(DecodeGreedyParams, 144);

namespace {

constexpr int THREADS = 512;
constexpr int WARPS = THREADS / WARP;
constexpr int D = 64;                       // head size
constexpr int LANES = D / 8;                // lanes that share a token in attention, 8 values each
constexpr int TOKENS = THREADS / LANES;     // tokens of a split
constexpr int PARTIAL = D + 2;              // output, maximum, sum of a split
constexpr int ROWS = 2;                     // weight rows that a warp works on at once

// Words of `control`.
constexpr int CONTROL_BARRIER = 0;
constexpr int CONTROL_STOP = 32;   // away from the counter's cache line
constexpr int CONTROL_ABORT = 64;
// Words of `host`: the first is set by the host, the others are read by it.
constexpr int HOST_CANCEL = 0;
constexpr int HOST_STATUS = 1;    // DONE ...
constexpr int HOST_LENGTHS = 16;  // (8) tokens written so far, BOS included
constexpr int HOST_TOKENS = 32;   // (rows, limit)

constexpr unsigned DONE = 1, CANCELLED = 2, TIMED_OUT = 3, NOT_A_NUMBER = 4;

// Where things lie in device scratch, in floats. Each is written in one phase and read in the next.
struct Scratch {
    float* qkv;       // (rows, 3C)
    float* attended;  // (rows, C): after the attention's output projection and residual
    float* hidden;    // (rows, F)
    float* mixed;     // (rows, C): after the feed-forward part and residual
    float* logits;    // (rows, V)
    float* partials;  // (rows, H, splits, PARTIAL)
};

DEVICE Scratch scratch_of(const DecodeGreedyParams& p) {
    Scratch s;
    s.qkv = p.scratch;
    s.attended = s.qkv + p.rows * 3 * p.channels;
    s.hidden = s.attended + p.rows * p.channels;
    s.mixed = s.hidden + p.rows * p.hidden;
    s.logits = s.mixed + p.rows * p.channels;
    s.partials = s.logits + p.rows * p.vocabulary;
    return s;
}

// The first weight row of this block's share of `n`; the share ends where the next block's begins.
DEVICE int share(int n, int block) { return int(int64_t(n) * block / gridDim.x); }

// ---- elements of weights: eight at a time

DEVICE void widen(const bf16* at, float (&v)[8]) {
    const uint4 bits = *reinterpret_cast<const uint4*>(at);
    const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 4; i++) v[2 * i] = low_float(words[i]), v[2 * i + 1] = high_float(words[i]);
}
DEVICE void widen(const float* at, float (&v)[8]) {
    const float4 low = reinterpret_cast<const float4*>(at)[0], high = reinterpret_cast<const float4*>(at)[1];
    v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
    v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
}
// fp8: sign, 4 exponent bits of bias 7, 3 mantissa bits. Shifted into an f32 it is too small by 2 to the 120, which the
// row's scale makes good; subnormal values come out right as well.
DEVICE void widen(const uint8_t* at, float (&v)[8]) {
    const uint2 bits = *reinterpret_cast<const uint2*>(at);
    const uint32_t words[2] = {bits.x, bits.y};
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const uint32_t byte = words[i / 4] >> (i % 4 * 8);
        v[i] = __uint_as_float((byte & 0x80u) << 24 | (byte & 0x7fu) << 20);
    }
}
constexpr float FP8_FACTOR = 1.329227995784916e36f;  // 2 to the 120

// The type of the embeddings, of the output and of cached keys and values, beside layers of `T`.
template <typename T> struct Wide {
    using Type = bf16;
};
template <> struct Wide<float> {
    using Type = float;
};

// Activations lie in shared memory as two planes per row, so that lanes which read eight values each in a row do so
// without bank conflicts: values k % 8 < 4 of all groups first, then the others.
DEVICE int planar(int k, int length) { return (k & 4 ? length / 2 : 0) + k / 8 * 4 + (k & 3); }

// ---- the stream of weights

// One matrix of a step: phases 0 to 3 of each layer, and the output last.
struct Slice {
    const void* weight;
    const float* scale;
    const float* bias;
    int rows;     // of the whole matrix
    int columns;
};

DEVICE Slice slice_of(const DecodeGreedyParams& p, int phase) {
    if (phase == 4 * p.layer_count) return {p.word, nullptr, p.output_bias, p.vocabulary, p.channels};
    const DecodeGreedyLayerParams& layer = p.layers[phase / 4];
    switch (phase % 4) {
        case 0: return {layer.qkv, layer.qkv_scale, layer.qkv_bias, 3 * p.channels, p.channels};
        case 1: return {layer.attention_out, layer.attention_out_scale, layer.attention_out_bias, p.channels, p.channels};
        case 2: return {layer.fc1, layer.fc1_scale, layer.fc1_bias, p.hidden, p.channels};
        default: return {layer.fc2, layer.fc2_scale, layer.fc2_bias, p.channels, p.hidden};
    }
}

// Starts the copy of this block's rows of a phase to its slot. Every call is one group of copies.
template <typename T> DEVICE void copy_weights(const DecodeGreedyParams& p, int phase, unsigned char* slots, int slot) {
    const Slice s = slice_of(p, phase);
    const int first = share(s.rows, blockIdx.x), last = share(s.rows, blockIdx.x + 1);
    const bool output = phase == 4 * p.layer_count;
    const int64_t row_bytes = int64_t(s.columns) * (output ? sizeof(typename Wide<T>::Type) : sizeof(T));
    const unsigned char* from = static_cast<const unsigned char*>(s.weight) + first * row_bytes;
    unsigned char* to = slots + slot * p.slot_bytes;
    const int bytes = int((last - first) * row_bytes);
    for (int at = threadIdx.x * 16; at < bytes; at += THREADS * 16) cp_async_16(to + at, from + at, true);
    cp_async_commit();
}

// Waits for the oldest of the slots' groups.
DEVICE void wait_slot(int slots) {
    if (slots == 2) cp_async_wait<0>();
    else if (slots == 3) cp_async_wait<1>();
    else cp_async_wait<2>();
    sync_block();
}

// ---- products

// This block's rows of a slice times the activations `x` (BATCH, K) in shared memory; `store(batch, row, value)` gets
// each sum. A warp takes ROWS rows at a time, its lanes eight values of K each.
template <typename T, int BATCH, typename Store>
DEVICE void mainloop(const Slice& s, const unsigned char* slot, const float* x, const Store& store) {
    const int first = share(s.rows, blockIdx.x), count = share(s.rows, blockIdx.x + 1) - first;
    const int K = s.columns, lane = lane_index();
    const T* weights = reinterpret_cast<const T*>(slot);
    for (int row = warp_index() * ROWS; row < count; row += WARPS * ROWS) {
        float sums[ROWS][BATCH] = {};
        const bool second = row + 1 < count;
        for (int k = lane * 8; k < K; k += WARP * 8) {
            float w[ROWS][8];
            widen(weights + int64_t(row) * K + k, w[0]);
            widen(weights + int64_t(second ? row + 1 : row) * K + k, w[1]);
#pragma unroll
            for (int b = 0; b < BATCH; b++) {
                const float4 low = *reinterpret_cast<const float4*>(x + b * K + k / 2);
                const float4 high = *reinterpret_cast<const float4*>(x + b * K + K / 2 + k / 2);
                const float v[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
                for (int r = 0; r < ROWS; r++) {
#pragma unroll
                    for (int i = 0; i < 8; i++) sums[r][b] = fmaf(w[r][i], v[i], sums[r][b]);
                }
            }
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
#pragma unroll
            for (int b = 0; b < BATCH; b++) sums[r][b] = warp_sum(sums[r][b]);
        }
        if (lane != 0) continue;
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            if (r == 1 && !second) break;
            const int at = first + row + r;
            const float factor = sizeof(T) == 1 ? s.scale[at] * FP8_FACTOR : 1.0f;
#pragma unroll
            for (int b = 0; b < BATCH; b++) store(b, at, sums[r][b] * factor + s.bias[at]);
        }
    }
}

// ---- norms

// Rows (BATCH, C) of device memory, normalised, into shared memory as planes. Every warp takes the statistics of its row
// for itself, which is cheaper than waiting for another, and writes its part of the row.
template <int BATCH, typename Load>
DEVICE void normalise(const DecodeGreedyParams& p, const Load& load, const float* weight, const float* bias, float* x) {
    constexpr int SHARES = WARPS / BATCH;
    const int C = p.channels, b = warp_index() % BATCH, part = warp_index() / BATCH, lane = lane_index();
    if (b < p.rows) {
        float sum = 0.0f;
        for (int c = lane; c < C; c += WARP) sum += load(b, c);
        const float mean = warp_sum(sum) / C;
        float squares = 0.0f;
        for (int c = lane; c < C; c += WARP) {
            const float centred = load(b, c) - mean;
            squares += centred * centred;
        }
        const float rstd = rsqrtf(warp_sum(squares) / C + p.eps);
        for (int c = part * WARP + lane; c < C; c += SHARES * WARP) {
            x[b * C + planar(c, C)] = (load(b, c) - mean) * rstd * weight[c] + bias[c];
        }
    } else {
        for (int c = part * WARP + lane; c < C; c += SHARES * WARP) x[b * C + c] = 0.0f;
    }
    sync_block();
}

// ---- attention

struct AttentionShared {
    float maximum[WARPS];
    float sum[WARPS];
    float output[WARPS][D];
};

// Splits of a row's tokens at position `t` of its sequence: the prefix in chunks, then the units in steps of TOKENS.
DEVICE int prefix_splits(const DecodeGreedyParams& p) { return (p.prefix + p.chunk - 1) / p.chunk; }
DEVICE int splits_at(const DecodeGreedyParams& p, int t) { return prefix_splits(p) + t / TOKENS + 1; }
DEVICE int max_splits(const DecodeGreedyParams& p) { return splits_at(p, p.limit - 1); }

// Rounds eight values of the newest unit's key or value as they are stored.
template <typename Cached> DEVICE void round_to(float (&v)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = to_float(from_float<Cached>(v[i]));
}

// A work item is one split of one head of one row: attention of the query over the split's tokens, unnormalised, with its
// maximum and sum, into the partials.
template <typename Cached>
DEVICE void attention_split(const DecodeGreedyParams& p, const Scratch& s, const DecodeGreedyLayerParams& layer, int t,
                            AttentionShared& shared) {
    const int C = p.channels, splits = splits_at(p, t), items = p.rows * p.heads * splits;
    const int token = threadIdx.x / LANES, d = threadIdx.x % LANES * 8;
    const int before = prefix_splits(p);
    for (int item = blockIdx.x; item < items; item += gridDim.x) {
        const int split = item % splits, head = item / splits % p.heads, row = item / splits / p.heads;
        const float* qkv = s.qkv + int64_t(row) * 3 * C + head * D + d;
        float key[8], value[8], score = -INFINITY;
        bool visible;
        if (split < before) {
            const int at = split * p.chunk + token;
            visible = token < p.chunk && at < p.prefix;
            if (visible) {
                const int64_t offset = ((int64_t(p.images[row]) * p.heads + head) * p.prefix + at) * D + d;
                widen(static_cast<const Cached*>(layer.prefix_keys) + offset, key);
                widen(static_cast<const Cached*>(layer.prefix_values) + offset, value);
            }
        } else {
            const int at = (split - before) * TOKENS + token;
            visible = at <= t;
            const int64_t offset = ((int64_t(row) * p.heads + head) * p.limit + at) * D + d;
            if (visible && at < t) {
                widen(static_cast<const Cached*>(layer.generated_keys) + offset, key);
                widen(static_cast<const Cached*>(layer.generated_values) + offset, value);
            } else if (visible) {
                widen(qkv + C, key), widen(qkv + 2 * C, value);
                round_to<Cached>(key), round_to<Cached>(value);
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    static_cast<Cached*>(layer.generated_keys)[offset + i] = from_float<Cached>(key[i]);
                    static_cast<Cached*>(layer.generated_values)[offset + i] = from_float<Cached>(value[i]);
                }
            }
        }
        float query[8], product = 0.0f;
        widen(qkv, query);
        if (visible) {
#pragma unroll
            for (int i = 0; i < 8; i++) product = fmaf(query[i], key[i], product);
        }
#pragma unroll
        for (int mask = 1; mask < LANES; mask *= 2) product += shuffle_xor(product, mask);
        if (visible) score = product * p.scale;
        const float warp_maximum = warp_max(score);
        if (lane_index() == 0) shared.maximum[warp_index()] = warp_maximum;
        sync_block();
        float maximum = -INFINITY;
#pragma unroll
        for (int w = 0; w < WARPS; w++) maximum = fmaxf(maximum, shared.maximum[w]);
        const float weight = visible ? exp2_fast(score - maximum) : 0.0f;
        float sum = weight;
#pragma unroll
        for (int i = 0; i < 8; i++) value[i] = visible ? weight * value[i] : 0.0f;
#pragma unroll
        for (int mask = LANES; mask < WARP; mask *= 2) {
            sum += shuffle_xor(sum, mask);
#pragma unroll
            for (int i = 0; i < 8; i++) value[i] += shuffle_xor(value[i], mask);
        }
        if (lane_index() < LANES) {
#pragma unroll
            for (int i = 0; i < 8; i++) shared.output[warp_index()][d + i] = value[i];
        }
        if (lane_index() == 0) shared.sum[warp_index()] = sum;
        sync_block();
        float* out = s.partials + ((int64_t(row) * p.heads + head) * max_splits(p) + split) * PARTIAL;
        if (threadIdx.x < D + 1) {
            float total = 0.0f;
#pragma unroll
            for (int w = 0; w < WARPS; w++) {
                total += threadIdx.x < D ? shared.output[w][threadIdx.x] : shared.sum[w];
            }
            out[threadIdx.x] = total;
        }
        if (threadIdx.x == D + 1) out[D + 1] = maximum;
        sync_block();
    }
}

// The splits of every row and head together, into shared memory as planes (BATCH, C).
template <int BATCH> DEVICE void combine(const DecodeGreedyParams& p, const Scratch& s, int t, float* x) {
    const int C = p.channels, splits = splits_at(p, t);
    for (int at = threadIdx.x; at < BATCH * C; at += THREADS) {
        const int row = at / C, c = at % C;
        float out = 0.0f, sum = 0.0f, maximum = -INFINITY;
        if (row < p.rows) {
            const float* parts = s.partials + (int64_t(row) * p.heads + c / D) * max_splits(p) * PARTIAL;
            for (int i = 0; i < splits; i++) maximum = fmaxf(maximum, parts[i * PARTIAL + D + 1]);
            for (int i = 0; i < splits; i++) {
                const float factor = exp2_fast(parts[i * PARTIAL + D + 1] - maximum);
                out = fmaf(factor, parts[i * PARTIAL + c % D], out);
                sum = fmaf(factor, parts[i * PARTIAL + D], sum);
            }
            out = out / sum;
        }
        x[row * C + planar(c, C)] = out;
    }
    sync_block();
}

}  // namespace
