// attention_decode: attention of one query per row over the KV cache of a decoder. Keys and values of a prefix come from
// linear, which scatters its result to heads; those of generated units are stored here.
// Math:      softmax(query key^T / sqrt D) value over the prefix of the row's image and its units so far
// Tensors:   prefix keys and values (images, H, P, D); generated keys and values (positions, slots, H, D): what row r wrote
//            at position t lies at (t, s), s its own slot, while anyone reads it. A row that continues another finds the
//            first ancestor_len[r] positions of its sequence in the slots that a table (positions, R) names, later ones in
//            its own. So nothing is copied when beams change places. Sequences differ in length: a row's newest unit stands
//            at positions[r]. All in bf16 or f32; qkv (R, 3*H*D) and y (R, H*D) f32. What changes from step to step is in
//            tables: with the same params and grid, a captured launch serves every step of as many rows
// Numerics:  f32; splits depend on the lengths only, so a row does not depend on its neighbours
// Requires:  D <= 256
// Tiling:    a block takes 64 tokens of one head: of the prefix for all rows of an image, whose keys and values it reads
//            once, or of the units of one row. Partial results are added in order by the combining kernel
// Roofline:  bytes of the keys and values, those of a prefix once for all its rows
// Measured:  not yet measured by itself
#include "prelude.cuh"

struct AttentionDecodeParams {
    const float* qkv;
    const void* prefix_keys;
    const void* prefix_values;
    void* generated_keys;
    void* generated_values;
    const unsigned* positions;     // (R)
    const unsigned* slot;          // (R)
    const unsigned* ancestor_len;  // (R)
    const unsigned* order;         // (R): rows sorted by image
    const unsigned* row_begin;     // (images + 1): where each image's rows begin in `order`
    const unsigned* ancestors;     // (longest ancestor_len, R)
    float* partials;               // (R, H, splits, D + 2): output, maximum, sum
    float* y;
    int rows;
    int images;
    int heads;
    int head_size;
    int prefix;
    int slots;
    int prefix_splits;
    int splits;   // at least those of the longest row
    float scale;  // log2 e / sqrt D
    int unused;
};
SIZE_OF(AttentionDecodeParams, 144);

namespace {

constexpr int THREADS = 128;
constexpr int TOKENS = 64;  // of a split
constexpr int WARPS = THREADS / WARP;

// Keys and values of a split, as floats, rows of D + 1; then the query, the weights and a float of each warp.
struct Split {
    float* keys;
    float* values;
    float* query;
    float* weights;
    float* warp_scratch;
};

DEVICE Split split_of(int size) {
    Split s;
    s.keys = &shared_memory<float>();
    s.values = s.keys + TOKENS * (size + 1);
    s.query = s.values + TOKENS * (size + 1);
    s.weights = s.query + size;
    s.warp_scratch = s.weights + TOKENS;
    return s;
}

// The slot that holds position `t` of `row`'s sequence.
DEVICE int slot_of(const AttentionDecodeParams& p, int row, int t) {
    return int(t < int(p.ancestor_len[row]) ? p.ancestors[int64_t(t) * p.rows + row] : p.slot[row]);
}

// Loads the split's `count` keys and values; those of a sequence's newest unit come from qkv and are stored on the way.
template <typename T>
DEVICE void load_prefix(const AttentionDecodeParams& p, const Split& s, int image, int head, int first, int count) {
    const int size = p.head_size;
    const int64_t base = ((int64_t(image) * p.heads + head) * p.prefix + first) * size;
    for (int i = threadIdx.x; i < count * size; i += THREADS) {
        const int at = i / size * (size + 1) + i % size;
        s.keys[at] = to_float(static_cast<const T*>(p.prefix_keys)[base + i]);
        s.values[at] = to_float(static_cast<const T*>(p.prefix_values)[base + i]);
    }
}

template <typename T>
DEVICE void load_generated(const AttentionDecodeParams& p, const Split& s, int row, int head, int first, int count) {
    const int size = p.head_size, width = p.heads * size;
    T* keys = static_cast<T*>(p.generated_keys);
    T* values = static_cast<T*>(p.generated_values);
    const int newest = int(p.positions[row]);
    for (int i = threadIdx.x; i < count * size; i += THREADS) {
        const int t = first + i / size, d = i % size, at = i / size * (size + 1) + d;
        const int64_t place = ((int64_t(t) * p.slots + slot_of(p, row, t)) * p.heads + head) * size + d;
        if (t == newest) {
            const float* fresh = p.qkv + int64_t(row) * 3 * width + head * size + d;
            const T key = from_float<T>(fresh[width]), value = from_float<T>(fresh[2 * width]);
            keys[place] = key, values[place] = value;
            s.keys[at] = to_float(key), s.values[at] = to_float(value);
        } else {
            s.keys[at] = to_float(keys[place]), s.values[at] = to_float(values[place]);
        }
    }
}

// One query over the split that is loaded, into its partial result. Two threads share a token's score.
DEVICE void attention_split(const AttentionDecodeParams& p, const Split& s, int row, int head, int split, int count) {
    const int size = p.head_size, thread = threadIdx.x;
    for (int d = thread; d < size; d += THREADS) s.query[d] = p.qkv[int64_t(row) * 3 * p.heads * size + head * size + d];
    sync_block();
    const int token = thread / 2;
    float score = 0.0f;
    if (token < count) {
        for (int d = thread % 2; d < size; d += 2) score = fmaf(s.query[d], s.keys[token * (size + 1) + d], score);
    }
    score += shuffle_xor(score, 1);
    score = token < count ? score * p.scale : -INFINITY;
    const float warp_maximum = warp_max(score);
    if (lane_index() == 0) s.warp_scratch[warp_index()] = warp_maximum;
    sync_block();
    float maximum = s.warp_scratch[0];
    for (int warp = 1; warp < WARPS; warp++) maximum = fmaxf(maximum, s.warp_scratch[warp]);
    const float weight = token < count ? exp2_fast(score - maximum) : 0.0f;
    if (thread % 2 == 0) s.weights[token] = weight;
    sync_block();
    float* out = p.partials + ((int64_t(row) * p.heads + head) * p.splits + split) * (size + 2);
    for (int d = thread; d < size + 1; d += THREADS) {
        float sum = 0.0f;
        for (int t = 0; t < count; t++) sum = fmaf(s.weights[t], d < size ? s.values[t * (size + 1) + d] : 1.0f, sum);
        // The sum of the weights stands last, after the maximum.
        out[d < size ? d : size + 1] = sum;
    }
    if (thread == 0) out[size] = maximum;
    sync_block();
}

template <typename T> DEVICE void attention_decode(const AttentionDecodeParams& p) {
    const Split s = split_of(p.head_size);
    const int head = blockIdx.y;
    // First the splits of every image's prefix, then those of every row's units.
    const int item = blockIdx.x, prefixes = p.images * p.prefix_splits;
    if (item < prefixes) {
        const int image = item / p.prefix_splits, split = item % p.prefix_splits, first = split * TOKENS;
        const int begin = p.row_begin[image], end = p.row_begin[image + 1];
        if (begin == end) return;
        const int count = min(TOKENS, p.prefix - first);
        load_prefix<T>(p, s, image, head, first, count);
        sync_block();
        for (int i = begin; i < end; i++) attention_split(p, s, int(p.order[i]), head, split, count);
        return;
    }
    const int own = p.splits - p.prefix_splits, row = (item - prefixes) / own, split = (item - prefixes) % own;
    const int first = split * TOKENS, count = min(TOKENS, int(p.positions[row]) + 1 - first);
    if (count <= 0) return;
    load_generated<T>(p, s, row, head, first, count);
    sync_block();
    attention_split(p, s, row, head, p.prefix_splits + split, count);
}

}  // namespace

// Grid: (images * prefix splits + rows * splits of their units, H). Shared memory: 128 (D + 1) + D + 64 + 4 floats.
KERNEL(attention_decode_forward_bf16, AttentionDecodeParams, 128, 4) { attention_decode<bf16>(params); }
KERNEL(attention_decode_forward_f32, AttentionDecodeParams, 128, 4) { attention_decode<float>(params); }

// Grid: (R, H). A thread owns the values d, d + 128, ... of a row's head.
KERNEL(attention_decode_forward_combine_f32, AttentionDecodeParams, 128, 8) {
    const AttentionDecodeParams& p = params;
    const int size = p.head_size;
    const int64_t block = int64_t(blockIdx.x) * p.heads + blockIdx.y;
    const float* parts = p.partials + block * p.splits * (size + 2);
    // A sequence shorter than the longest has fewer splits.
    const int splits = p.prefix_splits + int(p.positions[blockIdx.x]) / TOKENS + 1;
    float maximum = -INFINITY;
    for (int s = 0; s < splits; s++) maximum = fmaxf(maximum, parts[s * (size + 2) + size]);
    for (int d = threadIdx.x; d < size; d += THREADS) {
        float out = 0.0f, sum = 0.0f;
        for (int s = 0; s < splits; s++) {
            const float factor = exp2_fast(parts[s * (size + 2) + size] - maximum);
            out = fmaf(factor, parts[s * (size + 2) + d], out);
            sum = fmaf(factor, parts[s * (size + 2) + size + 1], sum);
        }
        p.y[block * size + d] = out / sum;
    }
}
