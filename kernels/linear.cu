// linear: matrix products of whole sequences, with their epilogue.
// Math:      y = act(x weight^T + bias) + residual; act: none, GELU (erf) or quick GELU
// Tensors:   x (M, K), weight (N, K), residual and y (M, N) row-major in one type; bias (N) f32
// Tiling:    bf16: mma.sync m16n8k16 over tiles of 128x128 (8 warps), 64x64 or 32x64 (4 warps), K in stages of 64 through
//            three (large) or four swizzled shared-memory buffers filled by cp.async. The launcher picks the tile by waves
//            over the multiprocessors: 257 rows are 9 tiles of 32, 89 % of them used. Blocks go down the rows first, so
//            that a wave shares its weights in L2. f32, and rows that are not 16-byte aligned: 64x64 tiles on FMA units
// Numerics:  f32 sums along K in order, for every tile shape alike; deterministic
// Requires:  the tiles on tensor cores: K % 8 == 0
// Roofline:  2 M N K operations; tensor cores from M of about 300 up, else the weights' bytes
// Measured:  not yet measured
// Hopper:    a form on wgmma and TMA belongs beside `tiled`, with the same functors
#include "tile.cuh"

struct LinearParams {
    const void* x;
    const void* weight;
    const float* bias;
    const void* residual;  // or null
    void* y;
    int rows;
    int columns;
    int depth;
    int unused;
};
SIZE_OF(LinearParams, 56);

namespace {

// Rows of a row-major matrix (count, depth), from `first` on.
struct MatrixRows {
    const bf16* matrix;
    int first, count, depth;

    DEVICE const bf16* at(int row, int k) const {
        return first + row < count && k < depth ? matrix + int64_t(first + row) * depth + k : nullptr;
    }
    DEVICE const bf16* any() const { return matrix; }
};

// Bias, activation, residual, and the store.
template <typename T, typename Act> struct Finish {
    const LinearParams& p;
    int row, column;

    DEVICE void operator()(int r, int c, float v0, float v1) const {
        const int m = row + r, n = column + c;
        if (m >= p.rows || n >= p.columns) return;
        const bool both = n + 1 < p.columns;
        const Act act;
        v0 = act(v0 + p.bias[n]);
        v1 = both ? act(v1 + p.bias[n + 1]) : 0.0f;
        const int64_t at = int64_t(m) * p.columns + n;
        if (p.residual) {
            const T* residual = static_cast<const T*>(p.residual) + at;
            v0 += to_float(residual[0]);
            if (both) v1 += to_float(residual[1]);
        }
        store_pair(static_cast<T*>(p.y) + at, v0, v1, both);
    }
};

using Large = TileShape<128, 128, 2, 4, 3>;
using Medium = TileShape<64, 64, 2, 2, 4>;
using Small = TileShape<32, 64, 1, 4, 4>;

template <typename Shape, typename Act> DEVICE void tiled(const LinearParams& p) {
    const int row = blockIdx.x * Shape::ROWS, column = blockIdx.y * Shape::COLUMNS;
    const MatrixRows x{static_cast<const bf16*>(p.x), row, p.rows, p.depth};
    const MatrixRows weight{static_cast<const bf16*>(p.weight), column, p.columns, p.depth};
    tile_product<Shape, false>(x, weight, p.depth, 1.0f, Finish<bf16, Act>{p, row, column});
}

template <typename T, typename Act> DEVICE void plain(const LinearParams& p) {
    const int row = blockIdx.x * PLAIN, column = blockIdx.y * PLAIN;
    const T* x = static_cast<const T*>(p.x);
    const T* weight = static_cast<const T*>(p.weight);
    plain_product(
        [&](int r, int k) { return row + r < p.rows ? to_float(x[int64_t(row + r) * p.depth + k]) : 0.0f; },
        [&](int c, int k) { return column + c < p.columns ? to_float(weight[int64_t(column + c) * p.depth + k]) : 0.0f; },
        p.depth, Finish<T, Act>{p, row, column});
}

}  // namespace

// Grid: (ceil(M / tile rows), ceil(N / tile columns)). Shared memory: the tile's stages.
KERNEL(linear_forward_bias_large_bf16, LinearParams, 256, 2) { tiled<Large, Identity>(params); }
KERNEL(linear_forward_bias_gelu_large_bf16, LinearParams, 256, 2) { tiled<Large, Gelu>(params); }
KERNEL(linear_forward_bias_quick_gelu_large_bf16, LinearParams, 256, 2) { tiled<Large, QuickGelu>(params); }
KERNEL(linear_forward_bias_medium_bf16, LinearParams, 128, 3) { tiled<Medium, Identity>(params); }
KERNEL(linear_forward_bias_gelu_medium_bf16, LinearParams, 128, 3) { tiled<Medium, Gelu>(params); }
KERNEL(linear_forward_bias_quick_gelu_medium_bf16, LinearParams, 128, 3) { tiled<Medium, QuickGelu>(params); }
KERNEL(linear_forward_bias_small_bf16, LinearParams, 128, 4) { tiled<Small, Identity>(params); }
KERNEL(linear_forward_bias_gelu_small_bf16, LinearParams, 128, 4) { tiled<Small, Gelu>(params); }
KERNEL(linear_forward_bias_quick_gelu_small_bf16, LinearParams, 128, 4) { tiled<Small, QuickGelu>(params); }

// Grid: (ceil(M / 64), ceil(N / 64)). Shared memory: PlainShared.
KERNEL(linear_forward_bias_plain_bf16, LinearParams, 256, 2) { plain<bf16, Identity>(params); }
KERNEL(linear_forward_bias_gelu_plain_bf16, LinearParams, 256, 2) { plain<bf16, Gelu>(params); }
KERNEL(linear_forward_bias_quick_gelu_plain_bf16, LinearParams, 256, 2) { plain<bf16, QuickGelu>(params); }
KERNEL(linear_forward_bias_plain_f32, LinearParams, 256, 2) { plain<float, Identity>(params); }
KERNEL(linear_forward_bias_gelu_plain_f32, LinearParams, 256, 2) { plain<float, Gelu>(params); }
KERNEL(linear_forward_bias_quick_gelu_plain_f32, LinearParams, 256, 2) { plain<float, QuickGelu>(params); }
