// frame_conv: convolution over time of frames, one a row, with stride, zero padding and groups of channels.
// Math:      y[m][n] = act(sum over taps t and channels c of x[m stride + t - before][c] weight[n][t][c] + bias[n]) + residual,
//            with zeros outside of x; output n of group g sees the channels c of group g alone
// Source:    Baevski et al., "wav2vec 2.0" (2020), the feature encoder and the convolutional positions; Hsu et al., "HuBERT"
//            (2021)
// Tensors:   x (T, C), weight (N, taps, C/groups), residual and y (M, N) row-major, all bf16 or all f32; bias (N) f32;
//            residual may be null. Sequences in x, each with its own padding and a window for each frame, have a table of first
//            row and frames; rows of none are neither read nor written
// Numerics:  f32 sums in the order of taps, then channels, for every tile shape; the epilogue is f32, rounded once
// Requires:  C/groups in a multiple of 16 bytes, or the unaligned kernels
// Tiling:    gemm.cuh over the M windows and the N/groups outputs of each group, K = taps * C/groups. A chunk16 never crosses a
//            frame, so it is copied from where its frame lies. The first layer of a speech encoder has one channel: value by
//            value, on FMA units
// Roofline:  2 M N K operations, 49 GFLOP in all strided layers over 10 s of sound: bound by the tensor cores
// Measured:  not yet measured
#include "gemm.cuh"
#include "linear/activation.cuh"

struct FrameConvParams {
    const void* x;
    const void* weight;
    const float* bias;
    const void* residual;  // null: none
    const int* sequences;  // first row and frames of each; null: the one sequence x
    void* y;
    int frames;         // T
    int rows;           // M, of the longest sequence
    int inputs;         // C
    int group_inputs;   // C/groups
    int outputs;        // N
    int group_outputs;  // N/groups
    int k;              // K
    int stride;
    int before;         // frames of zeros before the first
    int activation;     // ACTIVATION_*
};
SIZE_OF(FrameConvParams, 88);

namespace {

// The sequence of a block: its first row in x and y, its frames and its windows.
struct Sequence {
    int first;
    int frames, rows;
};
DEVICE Sequence sequence_of(const FrameConvParams& p) {
    if (!p.sequences) return {0, p.frames, p.rows};
    const int frames = p.sequences[2 * blockIdx.z + 1];
    return {p.sequences[2 * blockIdx.z], frames, frames};
}

// ---- sources

// Windows of one group's channels; a chunk16 lies in one frame.
template <typename T> struct Windows {
    static constexpr bool TRANSFORMS = false;
    const FrameConvParams& p;
    const Sequence& own;
    int group;

    DEVICE void copy(void* to, int row, int k) const {
        const int tap = k / p.group_inputs, c = k - tap * p.group_inputs, frame = row * p.stride + tap - p.before;
        const bool inside = row < own.rows && k < p.k && frame >= 0 && frame < own.frames;
        const int64_t at = int64_t(own.first + frame) * p.inputs + group * p.group_inputs + c;
        cp_async_16(to, static_cast<const T*>(p.x) + (inside ? at : 0), inside);
    }
};

// The same value by value, for FMA units.
template <typename T> struct WindowValues {
    static constexpr bool TRANSFORMS = false;
    const FrameConvParams& p;
    const Sequence& own;
    int group;

    DEVICE void copy(void* to, int row, int k) const {
#pragma unroll
        for (int i = 0; i < CHUNK_VALUES<float>; i++) {
            const int tap = (k + i) / p.group_inputs, c = k + i - tap * p.group_inputs;
            const int frame = row * p.stride + tap - p.before;
            const bool inside = row < own.rows && k + i < p.k && frame >= 0 && frame < own.frames;
            const int64_t at = int64_t(own.first + frame) * p.inputs + group * p.group_inputs + c;
            static_cast<float*>(to)[i] = inside ? to_float(static_cast<const T*>(p.x)[at]) : 0.0f;
        }
    }
};

// ---- epilogue

// A run of outputs of a window, columns of one group: bias, activation, residual.
template <typename T> struct FrameConvEpilogue {
    const FrameConvParams& p;
    const Sequence& own;
    int first;  // output of the group's column 0

    DEVICE bool vectors() const { return p.group_outputs % 8 == 0; }
    DEVICE bool rolled() const { return p.activation != ACTIVATION_NONE || !vectors(); }

    template <bool ROLLED, int RUN> DEVICE void store(int row, int column, const float (&sums)[RUN]) const {
        if (row >= own.rows || column >= p.group_outputs) return;
        const int n = first + column, count = min(RUN, p.group_outputs - column);
        const int64_t at = int64_t(own.first + row) * p.outputs + n;
        const T* residual = p.residual ? static_cast<const T*>(p.residual) + at : nullptr;
        T* y = static_cast<T*>(p.y) + at;
        const bool whole = !ROLLED || vectors();
        float v[RUN], added[RUN] = {};
        if (whole) {
            load_run(v, p.bias + n);
            if (residual) load_run(added, residual);
        } else {
#pragma unroll
            for (int i = 0; i < RUN; i++) {
                v[i] = i < count ? p.bias[n + i] : 0.0f;
                if (residual && i < count) added[i] = to_float(residual[i]);
            }
        }
#pragma unroll
        for (int i = 0; i < RUN; i++) v[i] += sums[i];
        if (ROLLED) activate(p.activation, v);
#pragma unroll
        for (int i = 0; i < RUN; i++) v[i] += added[i];
        if (whole) {
            store_run(y, v);
        } else {
#pragma unroll
            for (int i = 0; i < RUN; i++) {
                if (i < count) y[i] = from_float<T>(v[i]);
            }
        }
    }
};

// ---- kernels

template <typename Tile, typename X, typename Weight, typename T> DEVICE void convolve(const FrameConvParams& p) {
    typename Tile::Shared& shared = shared_memory<typename Tile::Shared>();
    const int group = blockIdx.y, first = group * p.group_outputs;
    const TileCoord at = tile_coord<Tile>(p.rows, p.group_outputs);
    const Sequence own = sequence_of(p);
    if (at.row >= own.rows) return;
    const X x = {p, own, group};
    const Weight weight = {static_cast<const T*>(p.weight) + int64_t(first) * p.k, p.group_outputs, p.k};
    Tile tile;
    tile.prefetch(shared, x, weight, at, p.k);
    tile.clear();
    tile.mainloop(shared, x, weight, at, p.k);
    epilogue(tile, shared, at, FrameConvEpilogue<T>{p, own, first});
}
template <typename Tile> DEVICE void aligned(const FrameConvParams& p) {
    using T = typename Tile::Value;
    convolve<Tile, Windows<T>, AlignedRows<T>, T>(p);
}
template <typename Tile, typename T> DEVICE void unaligned(const FrameConvParams& p) {
    convolve<Tile, WindowValues<T>, UnalignedRows<T, float>, T>(p);
}

// Rows and columns of a tile, warps down and across, stages.
using Tile128x128 = MmaTile<128, 128, 2, 2, 3>;
using Tile64x128 = MmaTile<64, 128, 2, 2, 3>;
using Tile64x64 = MmaTile<64, 64, 2, 2, 4>;
using Tile64x64Fma = FmaTile<64, 64, 2, 2, 8, 3>;

}  // namespace

// Grid: one block for each tile of a group's part of the longest sequence in y, in the order of tile_coord, times the groups, times
// the sequences. Shared memory: Shared of the tile.
KERNEL(frame_conv_forward_128x128_bf16, FrameConvParams, 128, 2) { aligned<Tile128x128>(params); }
KERNEL(frame_conv_forward_64x128_bf16, FrameConvParams, 128, 3) { aligned<Tile64x128>(params); }
KERNEL(frame_conv_forward_64x64_bf16, FrameConvParams, 128, 3) { aligned<Tile64x64>(params); }
KERNEL(frame_conv_forward_64x64_f32, FrameConvParams, 128, 4) { aligned<Tile64x64Fma>(params); }

// Grid and shared memory: as above, for any C/groups.
KERNEL(frame_conv_forward_64x64_unaligned_bf16, FrameConvParams, 128, 4) { unaligned<Tile64x64Fma, bf16>(params); }
KERNEL(frame_conv_forward_64x64_unaligned_f32, FrameConvParams, 128, 4) { unaligned<Tile64x64Fma, float>(params); }

// Geometries by which the launcher chooses; times are relative to each other, those of linear.
TILE(frame_conv_forward_128x128_bf16, Tile128x128, 128, 128, 98304, 207, "not yet measured");
TILE(frame_conv_forward_64x128_bf16, Tile64x128, 64, 128, 73728, 144, "not yet measured");
TILE(frame_conv_forward_64x64_bf16, Tile64x64, 64, 64, 65536, 96, "not yet measured");
TILE(frame_conv_forward_64x64_f32, Tile64x64Fma, 64, 64, 49152, 768, "not yet measured");
TILE(frame_conv_forward_64x64_unaligned_bf16, Tile64x64Fma, 64, 64, 49152, 4000, "not yet measured");
TILE(frame_conv_forward_64x64_unaligned_f32, Tile64x64Fma, 64, 64, 49152, 4000, "not yet measured");
