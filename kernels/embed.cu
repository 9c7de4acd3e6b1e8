// embed: rows of tables. One form adds a word and a position, the other joins rows of several tables.
// Math:      y[r] = words[ids[r]] + positions[places[r]];  y[s] = first[a[s]], second[b[s]], ... side by side
//            backward of the sum: dwords[i] += dy[r] for every r with ids[r] = i, in their order; dpositions likewise
// Tensors:   tables (V, C) row-major; y (R, C) f32 of the sum; y (S, sum of C) in the type of the tables where joined;
//            dy (R, C) bf16 or f32, gradients f32
// Numerics:  f32 sums of two values; joined rows are copies; gradients are f32 sums over the list of an id, which one thread
//            adds to each of its channels in the order of the list
// Requires:  ids inside of their tables; C % 4 == 0 for vectors, otherwise single elements
// Roofline:  R * C elements of each table, 4 * R * C bytes written: memory-bound, and a launch's latency for a decode step
// Measured:  NVIDIA H200, driver 580.159.04, commit 449c6ab: `im2sp doctor --op =embed` (cold L2, lightly contended), with
//            the upload of the ids: 1 row of 768 in bf16 in 7.1 us
#include "prelude.cuh"

namespace {

constexpr int BLOCK = 128;
constexpr int VALUES = 4;  // of a thread

DEVICE float4 load_four(const float* at) { return *reinterpret_cast<const float4*>(at); }
DEVICE float4 load_four(const bf16* at) {
    const uint2 v = *reinterpret_cast<const uint2*>(at);
    return make_float4(low_float(v.x), high_float(v.x), low_float(v.y), high_float(v.y));
}
DEVICE float4 add_four(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }
DEVICE void copy_four(float* to, const float* from) {
    *reinterpret_cast<float4*>(to) = *reinterpret_cast<const float4*>(from);
}
DEVICE void copy_four(bf16* to, const bf16* from) {
    *reinterpret_cast<uint2*>(to) = *reinterpret_cast<const uint2*>(from);
}

}  // namespace

struct EmbedParams {
    const void* words;
    const void* positions;
    const unsigned* ids;     // (R)
    const unsigned* places;  // (R)
    float* y;
    int channels;
    int groups;  // blocks of a row
};
SIZE_OF(EmbedParams, 48);

struct EmbedFramesParams {
    const void* table;
    const unsigned* ids;  // (S)
    void* y;
    int frames;
    int channels;
    int stride;  // channels of y
    int first;   // channel of y where this table's begin
};
SIZE_OF(EmbedFramesParams, 40);

struct EmbedBackwardParams {
    const void* dy;
    float* gradients;        // (V, C)
    const unsigned* ids;     // one for each list, each once
    const unsigned* starts;  // where the lists begin in `rows`, and the end of the last
    const unsigned* rows;    // of dy
    int channels;
    int groups;  // blocks of a list
};
SIZE_OF(EmbedBackwardParams, 48);

namespace {

template <typename T> DEVICE void add_rows(const EmbedParams& params) {
    const int row = int(blockIdx.x) / params.groups, channels = params.channels;
    const int c = (int(blockIdx.x) % params.groups * BLOCK + int(threadIdx.x)) * VALUES;
    if (c >= channels) return;
    const T* word = static_cast<const T*>(params.words) + int64_t(params.ids[row]) * channels;
    const T* position = static_cast<const T*>(params.positions) + int64_t(params.places[row]) * channels;
    float* y = params.y + int64_t(row) * channels;
    if (channels % VALUES == 0) {
        *reinterpret_cast<float4*>(y + c) = add_four(load_four(word + c), load_four(position + c));
        return;
    }
    for (int i = c; i < min(c + VALUES, channels); i++) y[i] = to_float(word[i]) + to_float(position[i]);
}

template <typename T> DEVICE void join_rows(const EmbedFramesParams& params) {
    const int channels = params.channels, groups = (channels + VALUES - 1) / VALUES;
    const unsigned at = blockIdx.x * BLOCK + threadIdx.x;
    const int frame = int(at / groups), c = int(at % groups) * VALUES;
    if (frame >= params.frames) return;
    const T* row = static_cast<const T*>(params.table) + int64_t(params.ids[frame]) * channels;
    T* y = static_cast<T*>(params.y) + int64_t(frame) * params.stride + params.first;
    if ((channels | params.stride | params.first) % VALUES == 0) {
        copy_four(y + c, row + c);
        return;
    }
    for (int i = c; i < min(c + VALUES, channels); i++) y[i] = row[i];
}

// Loads of several rows are on their way together; the sums keep their order.
template <typename T> DEVICE void add_lists(const EmbedBackwardParams& params) {
    const int list = int(blockIdx.x) / params.groups, channels = params.channels;
    const int c = (int(blockIdx.x) % params.groups * BLOCK + int(threadIdx.x)) * VALUES;
    if (c >= channels) return;
    const unsigned *row = params.rows + params.starts[list], *end = params.rows + params.starts[list + 1];
    const T* dy = static_cast<const T*>(params.dy) + c;
    float* gradient = params.gradients + int64_t(params.ids[list]) * channels + c;
    if (channels % VALUES == 0) {
        float4 sum = *reinterpret_cast<const float4*>(gradient);
#pragma unroll 8
        for (; row < end; row++) sum = add_four(sum, load_four(dy + int64_t(*row) * channels));
        *reinterpret_cast<float4*>(gradient) = sum;
        return;
    }
    for (int i = 0; i < min(VALUES, channels - c); i++) {
        float sum = gradient[i];
        for (const unsigned* at = row; at < end; at++) sum += to_float(dy[int64_t(*at) * channels + i]);
        gradient[i] = sum;
    }
}

}  // namespace

// Grid: `groups` blocks for each row; a thread owns four channels.
KERNEL(embed_forward_bf16, EmbedParams, 128, 8) { add_rows<bf16>(params); }
KERNEL(embed_forward_f32, EmbedParams, 128, 8) { add_rows<float>(params); }

// Grid: a thread for four channels of a frame, frame after frame; a launch for each table.
KERNEL(embed_frames_forward_bf16, EmbedFramesParams, 128, 8) { join_rows<bf16>(params); }
KERNEL(embed_frames_forward_f32, EmbedFramesParams, 128, 8) { join_rows<float>(params); }

// Grid: `groups` blocks for each list; a thread owns four channels.
KERNEL(embed_backward_bf16, EmbedBackwardParams, 128, 8) { add_lists<bf16>(params); }
KERNEL(embed_backward_f32, EmbedBackwardParams, 128, 8) { add_lists<float>(params); }
