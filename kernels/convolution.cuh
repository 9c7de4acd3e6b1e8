// convolution: the matrix product of conv1d and conv_transpose1d (gemm.cuh). A sequence of C channels lies in memory as S
// rows of C values, so a convolution is a product whose left rows are shifted rows of x: y[s][n] = sum over taps k and
// channels c of leaky(x[s + k * step + origin][c]) * weight[n][k][c], with zeros outside of the sequence.
//
// A transposed convolution is the same with a column for each (phase, channel) and taps that go backwards: the columns of
// row s are then the output's rows s * stride - padding and the stride - 1 after it, one after the other in memory.
#pragma once

#include "gemm.cuh"

struct ConvolutionParams {
    const void* x;         // (S, C in)
    const void* weight;    // (N, taps, C in padded to a multiple of 8)
    const float* bias;     // (C out)
    const void* residual;  // as y, or null
    const void* sum;       // as y, or null
    void* y;               // (S out, C out)
    long long total;       // elements of y
    long long before;      // elements of row 0 of the product that lie before y
    int frames;            // rows of x
    int rows;              // rows of the product
    int columns;           // N
    int inputs;            // C in
    int padded;            // the same, padded
    int shift;             // its base-2 logarithm, or -1
    int outputs;           // C out
    int taps;
    int step;
    int origin;
    int activation;        // CONV_*
    float slope;
    float scale;
    int unused;
};
SIZE_OF(ConvolutionParams, 120);

namespace {

// As backend::ConvActivation.
constexpr int CONV_RELU = 1, CONV_TANH = 2;

// ---- sources

// The leaky ReLU's result is rounded to the type that it would be stored in.
template <typename T> DEVICE float leaky(float v, float slope) { return to_float(from_float<T>(fmaxf(v, v * slope))); }

// Shifted rows of x as bf16, or as f32: channels in chunk16s, C in a multiple of the values in one. The leaky ReLU follows
// when they are multiplied.
template <typename T> struct ShiftedRows {
    static constexpr bool TRANSFORMS = true;
    const ConvolutionParams& p;

    DEVICE int tap_of(int k) const { return p.shift >= 0 ? k >> p.shift : k / p.padded; }

    DEVICE void copy(void* to, int row, int k) const {
        const int tap = tap_of(k), from = row + tap * p.step + p.origin, c = k - tap * p.padded;
        const bool inside = tap < p.taps && from >= 0 && from < p.frames && c < p.inputs;
        cp_async_16(to, static_cast<const T*>(p.x) + (inside ? int64_t(from) * p.inputs + c : 0), inside);
    }

    DEVICE uint32_t transform(uint32_t packed) const {
        const float low = low_float(packed), high = high_float(packed);
        return pack_bf16(fmaxf(low, low * p.slope), fmaxf(high, high * p.slope));
    }
    DEVICE float4 transform(float4 v) const {
        return make_float4(leaky<T>(v.x, p.slope), leaky<T>(v.y, p.slope), leaky<T>(v.z, p.slope), leaky<T>(v.w, p.slope));
    }
};

// The same for any C in, value by value, for FMA units.
template <typename T> struct ShiftedValues : ShiftedRows<T> {
    DEVICE void copy(void* to, int row, int k) const {
        const ConvolutionParams& p = this->p;
        const int tap = this->tap_of(k), from = row + tap * p.step + p.origin, c = k - tap * p.padded;
        const bool inside = tap < p.taps && from >= 0 && from < p.frames;
        const T* values = static_cast<const T*>(p.x) + int64_t(from) * p.inputs + c;
#pragma unroll
        for (int i = 0; i < CHUNK_VALUES<float>; i++) {
            static_cast<float*>(to)[i] = inside && c + i < p.inputs ? to_float(values[i]) : 0.0f;
        }
    }
};

// ---- epilogue

// (act(v + bias + residual) + sum) * scale, in the type of residual and sum.
template <typename T, bool TRANSPOSED> struct ConvolutionEpilogue {
    const ConvolutionParams& p;

    // With eight channels, or a multiple, a run is a part of y or outside of it.
    DEVICE bool vectors() const { return p.outputs % 8 == 0; }
    DEVICE bool rolled() const { return p.activation == CONV_TANH || !vectors(); }

    template <bool ROLLED, int RUN> DEVICE void store(int row, int column, const float (&sums)[RUN]) const {
        if (row >= p.rows || column >= p.columns) return;
        const int64_t at = int64_t(row) * p.columns + column - (TRANSPOSED ? p.before : 0);
        const bool whole = !ROLLED || vectors();
        if (TRANSPOSED && whole && (at < 0 || at >= p.total)) return;
        float v[RUN], bias[RUN], residual[RUN] = {}, sum[RUN] = {};
        const int channel = TRANSPOSED ? column % p.outputs : column;
        if (whole) {
            load_run(bias, p.bias + channel);
            if (p.residual) load_run(residual, static_cast<const T*>(p.residual) + at);
            if (p.sum) load_run(sum, static_cast<const T*>(p.sum) + at);
        } else {
#pragma unroll
            for (int i = 0; i < RUN; i++) {
                if (!inside(at + i, column + i)) continue;
                bias[i] = p.bias[(column + i) % p.outputs];
                if (p.residual) residual[i] = to_float(static_cast<const T*>(p.residual)[at + i]);
                if (p.sum) sum[i] = to_float(static_cast<const T*>(p.sum)[at + i]);
            }
        }
#pragma unroll
        for (int i = 0; i < RUN; i++) v[i] = finished<ROLLED>(sums[i], bias[i], residual[i], sum[i]);
        T* y = static_cast<T*>(p.y) + at;
        if (whole) {
            store_run(y, v);
        } else {
#pragma unroll
            for (int i = 0; i < RUN; i++) {
                if (inside(at + i, column + i)) y[i] = from_float<T>(v[i]);
            }
        }
    }

    template <bool TANH> DEVICE float finished(float v, float bias, float residual, float sum) const {
        v += bias;
        if (p.residual) v += residual;
        if (p.activation == CONV_RELU) v = fmaxf(v, 0.0f);
        if (TANH && p.activation == CONV_TANH) v = tanhf(v);
        if (p.sum) v += sum;
        return v * p.scale;
    }

  private:
    DEVICE bool inside(int64_t at, int column) const { return column < p.columns && at >= 0 && at < p.total; }
};

// ---- kernels

// Rows and columns of a tile, warps down and across, stages.
using Tile128x64 = MmaTile<128, 64, 4, 1, 3>;
using Tile64x64 = MmaTile<64, 64, 2, 2, 4>;
using Tile32x64 = MmaTile<32, 64, 2, 2, 4>;
using Tile128x32 = MmaTile<128, 32, 4, 1, 3>;
using Tile128x16 = MmaTile<128, 16, 4, 1, 3>;
using Tile64x64Fma = FmaTile<64, 64, 2, 2, 8, 3>;

template <typename Tile, typename X, typename Weight, bool TRANSPOSED, typename T>
DEVICE void convolve(const ConvolutionParams& p) {
    typename Tile::Shared& shared = shared_memory<typename Tile::Shared>();
    const TileCoord at = tile_coord<Tile>(p.rows, p.columns);
    const int k = p.taps * p.padded;
    const X x = {p};
    const Weight weight = {static_cast<const T*>(p.weight), p.columns, k};
    Tile tile;
    tile.prefetch(shared, x, weight, at, k);
    tile.clear();
    tile.mainloop(shared, x, weight, at, k);
    epilogue(tile, shared, at, ConvolutionEpilogue<T, TRANSPOSED>{p});
}
// On tensor cores, C in a multiple of eight.
template <typename Tile, bool TRANSPOSED> DEVICE void convolve_bf16(const ConvolutionParams& p) {
    convolve<Tile, ShiftedRows<bf16>, AlignedRows<bf16>, TRANSPOSED, bf16>(p);
}
// On FMA units, C in a multiple of four; and any C in.
template <bool TRANSPOSED> DEVICE void convolve_f32(const ConvolutionParams& p) {
    convolve<Tile64x64Fma, ShiftedRows<float>, AlignedRows<float>, TRANSPOSED, float>(p);
}
template <typename T, bool TRANSPOSED> DEVICE void convolve_values(const ConvolutionParams& p) {
    convolve<Tile64x64Fma, ShiftedValues<T>, UnalignedRows<T, float>, TRANSPOSED, T>(p);
}

}  // namespace
