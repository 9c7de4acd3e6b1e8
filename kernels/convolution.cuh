// convolution: what conv1d and conv_transpose1d share. A sequence of C channels lies in memory as S rows of C values, so a
// convolution is a matrix product whose left rows are shifted rows of x: y[s][n] = sum over taps k and channels c of
// leaky(x[s + k * step + origin][c]) * weight[n][k][c], with zeros outside of the sequence.
//
// A transposed convolution is the same with a column for each (phase, channel) and taps that go backwards: the columns of
// row s are then the output's rows s * stride - padding and the stride - 1 after it, one after the other in memory.
#pragma once

#include "tile.cuh"

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
    int activation;        // 0 none, 1 ReLU, 2 tanh
    float slope;
    float scale;
    int unused;
};
SIZE_OF(ConvolutionParams, 120);

namespace {

// A value of K as tap and channel.
DEVICE int tap_of(const ConvolutionParams& p, int k) { return p.shift >= 0 ? k >> p.shift : k / p.padded; }

// Shifted rows of x, from row `first` of the product on.
struct ShiftedRows {
    const ConvolutionParams& p;
    int first;

    DEVICE const bf16* at(int row, int k) const {
        const int tap = tap_of(p, k), from = first + row + tap * p.step + p.origin;
        const bool inside = tap < p.taps && from >= 0 && from < p.frames;
        return inside ? static_cast<const bf16*>(p.x) + int64_t(from) * p.inputs + (k - tap * p.padded) : nullptr;
    }
    DEVICE const bf16* any() const { return static_cast<const bf16*>(p.x); }
};

struct WeightRows {
    const ConvolutionParams& p;
    int first;

    DEVICE const bf16* at(int column, int k) const {
        const int depth = p.taps * p.padded;
        const bool inside = first + column < p.columns && k < depth;
        return inside ? static_cast<const bf16*>(p.weight) + int64_t(first + column) * depth + k : nullptr;
    }
    DEVICE const bf16* any() const { return static_cast<const bf16*>(p.weight); }
};

// (act(v + bias + residual) + sum) * scale, for element `at` of y, column `n` of the product.
template <typename T> DEVICE float finished(const ConvolutionParams& p, int64_t at, int n, float v) {
    v += p.bias[n < p.outputs ? n : n % p.outputs];
    if (p.residual) v += to_float(static_cast<const T*>(p.residual)[at]);
    if (p.activation == 1) v = fmaxf(v, 0.0f);
    if (p.activation == 2) v = tanhf(v);
    if (p.sum) v += to_float(static_cast<const T*>(p.sum)[at]);
    return v * p.scale;
}

// `T` is the type of x, residual and sum, `Out` that of y.
template <typename T, typename Out> struct ConvolutionStore {
    const ConvolutionParams& p;
    int row, column;

    DEVICE void operator()(int r, int c, float v0, float v1) const {
        const int m = row + r, n = column + c;
        if (m >= p.rows || n >= p.columns) return;
        const int64_t at = int64_t(m) * p.columns + n - p.before;
        const bool first = at >= 0 && at < p.total, second = n + 1 < p.columns && at + 1 >= 0 && at + 1 < p.total;
        if (first) v0 = finished<T>(p, at, n, v0);
        if (second) v1 = finished<T>(p, at + 1, n + 1, v1);
        Out* y = static_cast<Out*>(p.y) + at;
        if (first) store_pair(y, v0, v1, second);
        else if (second) y[1] = from_float<Out>(v1);
    }
};

template <typename Shape> DEVICE void convolve_tiled(const ConvolutionParams& p) {
    const int row = blockIdx.x * Shape::ROWS, column = blockIdx.y * Shape::COLUMNS;
    tile_product<Shape, true>(ShiftedRows{p, row}, WeightRows{p, column}, p.taps * p.padded, p.slope,
                              ConvolutionStore<bf16, bf16>{p, row, column});
}

// The leaky ReLU's result is rounded to the type that it would be stored in, as the tiles do.
template <typename T> DEVICE float leaky_value(const ConvolutionParams& p, int from, int c) {
    if (from < 0 || from >= p.frames) return 0.0f;
    const float v = to_float(static_cast<const T*>(p.x)[int64_t(from) * p.inputs + c]);
    return to_float(from_float<T>(fmaxf(v, v * p.slope)));
}

template <typename T, typename Out> DEVICE void convolve_plain(const ConvolutionParams& p) {
    const int row = blockIdx.x * PLAIN, column = blockIdx.y * PLAIN, depth = p.taps * p.padded;
    plain_product(
        [&](int r, int k) {
            const int tap = tap_of(p, k), c = k - tap * p.padded;
            return c < p.inputs ? leaky_value<T>(p, row + r + tap * p.step + p.origin, c) : 0.0f;
        },
        [&](int c, int k) {
            return column + c < p.columns ? to_float(static_cast<const T*>(p.weight)[int64_t(column + c) * depth + k]) : 0.0f;
        },
        depth, ConvolutionStore<T, Out>{p, row, column});
}

using Tall = TileShape<128, 64, 4, 1, 3>;
using Square = TileShape<64, 64, 2, 2, 4>;
using Low = TileShape<32, 64, 1, 4, 4>;
using Narrow = TileShape<128, 32, 4, 1, 3>;
using Slim = TileShape<128, 16, 4, 1, 3>;

}  // namespace
