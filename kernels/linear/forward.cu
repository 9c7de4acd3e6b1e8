// linear: a fully connected layer for whole sequences.
// Math:      y = act(x weight^T + bias) + residual, act one of identity, GELU (erf), QuickGELU
// Tensors:   x (M, K), weight (N, K), residual and y (M, N) row-major, all bf16 or all f32; bias (N) f32; residual may be
//            null. Rows of packed query, key and value may go into a cache too: keys and values (images, H, P, D)
// Numerics:  f32 sums; bf16 factors go through the tensor cores in steps of 16 values of k, f32 factors through fused
//            multiply-adds. The order of additions is that of k, for every tile shape: a row's result depends neither on
//            M nor on its place. The epilogue is f32, rounded once
// Requires:  rows of x and weight of a multiple of 16 bytes, or the unaligned kernels
// Tiling:    see the table below and the launcher's choice; each block walks K in slabs of 128 bytes through a ring of
//            stages in shared memory (product.cuh), fragments are loaded a step ahead of the products
// Roofline:  2 M N K operations. Bound by the tensor cores once both M and N are some hundreds; mma.sync reaches about
//            62% of what wgmma does on sm_90, so a tile for wgmma is the next step there
// Measured:  not yet measured
#include "linear/epilogue.cuh"
#include "product.cuh"

struct LinearParams {
    const void* x;
    const void* weight;
    const float* bias;
    const void* residual;
    void* y;
    void* keys;                // null, or where rows of packed query, key and value are split into heads
    void* values;
    const unsigned* images;    // (M / prefix): which image each run of prefix rows is
    int rows;
    int columns;
    int depth;
    int prefix;
    int heads;
    int unused;
};
SIZE_OF(LinearParams, 88);

namespace {

// Eight columns of a row: bias, activation, residual. Rows of N % 8 == 0 are read and written as vectors.
template <typename T, typename Activation> struct LinearEpilogue {
    const LinearParams& params;

    DEVICE void operator()(int row, int column, const float (&sums)[STORE_COLUMNS]) const {
        if (row >= params.rows || column >= params.columns) return;
        const int64_t at = int64_t(row) * params.columns + column;
        const T* residual = params.residual ? static_cast<const T*>(params.residual) + at : nullptr;
        T* y = static_cast<T*>(params.y) + at;
        if (params.columns % STORE_COLUMNS == 0) {
            vectors(params.bias + column, residual, y, sums);
        } else {
            values(params.bias + column, residual, y, sums, params.columns - column);
        }
        if (!Activation::CHANGES && params.keys) split(row, column, y, min(STORE_COLUMNS, params.columns - column));
    }

  private:
    // Keys and values of a row into their heads: what this thread has just written to y, from `column` on.
    DEVICE void split(int row, int column, const T* y, int count) const {
        const int width = params.columns / 3, size = width / params.heads;
        const int image = int(params.images[row / params.prefix]), token = row % params.prefix;
        const auto place = [&](int c) {
            const int head = c % width / size;
            T* to = static_cast<T*>(c < 2 * width ? params.keys : params.values);
            return to + ((int64_t(image) * params.heads + head) * params.prefix + token) * size + c % size;
        };
        if (size % STORE_COLUMNS == 0) {
            if (column >= width) copy_columns(y, place(column));
            return;
        }
        for (int i = 0; i < count; i++) {
            if (column + i >= width) *place(column + i) = y[i];
        }
    }

    DEVICE static void copy_columns(const T* from, T* to) {
#pragma unroll
        for (int i = 0; i < STORE_COLUMNS * int(sizeof(T)) / 16; i++) {
            reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(from)[i];
        }
    }

    DEVICE static void vectors(const float* bias, const bf16* residual, bf16* y, const float (&sums)[STORE_COLUMNS]) {
        float v[STORE_COLUMNS];
        activate(bias, sums, v);
        if (residual) {
            const uint4 r = *reinterpret_cast<const uint4*>(residual);
            const uint32_t words[4] = {r.x, r.y, r.z, r.w};
#pragma unroll
            for (int i = 0; i < 4; i++) v[2 * i] += low_float(words[i]), v[2 * i + 1] += high_float(words[i]);
        }
        *reinterpret_cast<uint4*>(y) =
            make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
    }

    DEVICE static void vectors(const float* bias, const float* residual, float* y, const float (&sums)[STORE_COLUMNS]) {
        float v[STORE_COLUMNS];
        activate(bias, sums, v);
#pragma unroll
        for (int i = 0; i < STORE_COLUMNS; i += 4) {
            float4 r = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (residual) r = *reinterpret_cast<const float4*>(residual + i);
            *reinterpret_cast<float4*>(y + i) = make_float4(v[i] + r.x, v[i + 1] + r.y, v[i + 2] + r.z, v[i + 3] + r.w);
        }
    }

    DEVICE static void activate(const float* bias, const float (&sums)[STORE_COLUMNS], float (&v)[STORE_COLUMNS]) {
        const float4 low = *reinterpret_cast<const float4*>(bias), high = *reinterpret_cast<const float4*>(bias + 4);
        const float added[STORE_COLUMNS] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (int i = 0; i < STORE_COLUMNS; i++) v[i] = Activation::of(sums[i] + added[i]);
    }

    DEVICE static void values(const float* bias, const T* residual, T* y, const float (&sums)[STORE_COLUMNS], int count) {
#pragma unroll
        for (int i = 0; i < STORE_COLUMNS; i++) {
            if (i >= count) continue;
            const float v = Activation::of(sums[i] + bias[i]);
            y[i] = from_float<T>(residual ? v + to_float(residual[i]) : v);
        }
    }
};

template <typename Tile, typename Activation, template <typename> class Rows = AlignedRows>
DEVICE void linear_forward(const LinearParams& params) {
    using T = typename Tile::Value;
    const TilePlace place = tile_place<Tile>(params.rows, params.columns);
    const Rows<T> x = {static_cast<const T*>(params.x), params.rows, params.depth};
    const Rows<T> weight = {static_cast<const T*>(params.weight), params.columns, params.depth};
    Tile tile;
    tile.multiply(x, weight, place, params.depth);
    tile.store(place, LinearEpilogue<T, Activation>{params});
}

// bf16: rows and columns of a tile, warps down and across, stages.
using Wide = MmaTile<128, 256, 2, 4, 3>;   // large products: the least traffic to shared memory; one block each
using Square = MmaTile<128, 128, 2, 2, 3>; // two blocks on a multiprocessor, one at its epilogue beside one at its sums
using Flat = MmaTile<64, 128, 2, 2, 3>;    // one picture's tokens times many columns
using Small = MmaTile<64, 64, 2, 2, 4>;
using Least = MmaTile<32, 64, 2, 2, 4>;    // one picture's tokens times few columns: enough blocks for all
using LinearWideShared = Wide::Shared;
using LinearSquareShared = Square::Shared;
using LinearFlatShared = Flat::Shared;
using LinearSmallShared = Small::Shared;
using LinearLeastShared = Least::Shared;
// f32: the same, with lanes down a warp.
using SquareF32 = FmaTile<128, 128, 4, 2, 4, 2>;
using SmallF32 = FmaTile<64, 64, 2, 2, 8, 3>;
using LinearSquareF32Shared = SquareF32::Shared;
using LinearSmallF32Shared = SmallF32::Shared;

}  // namespace

SIZE_OF(LinearWideShared, 147456);
SIZE_OF(LinearSquareShared, 98304);
SIZE_OF(LinearFlatShared, 73728);
SIZE_OF(LinearSmallShared, 65536);
SIZE_OF(LinearLeastShared, 49152);
SIZE_OF(LinearSquareF32Shared, 65536);
SIZE_OF(LinearSmallF32Shared, 49152);

// Grid: one block for each tile of y, in the order of tile_place. Shared memory: the tile's stages. A warp owns its part
// of the tile (product.cuh).
KERNEL(linear_forward_bias_wide_bf16, LinearParams, 256, 1) { linear_forward<Wide, Identity>(params); }
KERNEL(linear_forward_bias_gelu_wide_bf16, LinearParams, 256, 1) { linear_forward<Wide, Gelu>(params); }
KERNEL(linear_forward_bias_quick_gelu_wide_bf16, LinearParams, 256, 1) { linear_forward<Wide, QuickGelu>(params); }
KERNEL(linear_forward_bias_square_bf16, LinearParams, 128, 2) { linear_forward<Square, Identity>(params); }
KERNEL(linear_forward_bias_gelu_square_bf16, LinearParams, 128, 2) { linear_forward<Square, Gelu>(params); }
KERNEL(linear_forward_bias_quick_gelu_square_bf16, LinearParams, 128, 2) { linear_forward<Square, QuickGelu>(params); }
KERNEL(linear_forward_bias_flat_bf16, LinearParams, 128, 3) { linear_forward<Flat, Identity>(params); }
KERNEL(linear_forward_bias_gelu_flat_bf16, LinearParams, 128, 3) { linear_forward<Flat, Gelu>(params); }
KERNEL(linear_forward_bias_quick_gelu_flat_bf16, LinearParams, 128, 3) { linear_forward<Flat, QuickGelu>(params); }
KERNEL(linear_forward_bias_small_bf16, LinearParams, 128, 3) { linear_forward<Small, Identity>(params); }
KERNEL(linear_forward_bias_gelu_small_bf16, LinearParams, 128, 3) { linear_forward<Small, Gelu>(params); }
KERNEL(linear_forward_bias_quick_gelu_small_bf16, LinearParams, 128, 3) { linear_forward<Small, QuickGelu>(params); }
KERNEL(linear_forward_bias_least_bf16, LinearParams, 128, 4) { linear_forward<Least, Identity>(params); }
KERNEL(linear_forward_bias_gelu_least_bf16, LinearParams, 128, 4) { linear_forward<Least, Gelu>(params); }
KERNEL(linear_forward_bias_quick_gelu_least_bf16, LinearParams, 128, 4) { linear_forward<Least, QuickGelu>(params); }
KERNEL(linear_forward_bias_square_f32, LinearParams, 256, 2) { linear_forward<SquareF32, Identity>(params); }
KERNEL(linear_forward_bias_gelu_square_f32, LinearParams, 256, 2) { linear_forward<SquareF32, Gelu>(params); }
KERNEL(linear_forward_bias_quick_gelu_square_f32, LinearParams, 256, 2) { linear_forward<SquareF32, QuickGelu>(params); }
KERNEL(linear_forward_bias_small_f32, LinearParams, 128, 4) { linear_forward<SmallF32, Identity>(params); }
KERNEL(linear_forward_bias_gelu_small_f32, LinearParams, 128, 4) { linear_forward<SmallF32, Gelu>(params); }
KERNEL(linear_forward_bias_quick_gelu_small_f32, LinearParams, 128, 4) { linear_forward<SmallF32, QuickGelu>(params); }

// Grid and shared memory: as above, for any K.
KERNEL(linear_forward_bias_unaligned_bf16, LinearParams, 128, 3) { linear_forward<Small, Identity, UnalignedRows>(params); }
KERNEL(linear_forward_bias_gelu_unaligned_bf16, LinearParams, 128, 3) { linear_forward<Small, Gelu, UnalignedRows>(params); }
KERNEL(linear_forward_bias_quick_gelu_unaligned_bf16, LinearParams, 128, 3) { linear_forward<Small, QuickGelu, UnalignedRows>(params); }
KERNEL(linear_forward_bias_unaligned_f32, LinearParams, 128, 4) { linear_forward<SmallF32, Identity, UnalignedRows>(params); }
KERNEL(linear_forward_bias_gelu_unaligned_f32, LinearParams, 128, 4) { linear_forward<SmallF32, Gelu, UnalignedRows>(params); }
KERNEL(linear_forward_bias_quick_gelu_unaligned_f32, LinearParams, 128, 4) { linear_forward<SmallF32, QuickGelu, UnalignedRows>(params); }
