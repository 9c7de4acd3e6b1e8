// linear: a fully connected layer for whole sequences.
// Math:      y = act(x weight^T + bias) + residual, act one of identity, GELU (erf), QuickGELU, tanh
// Tensors:   x (M, K), weight (N, K), residual and y (M, N) row-major, all bf16 or all f32; bias (N) f32; residual may be
//            null. saved, as y, is the activation's input, or null. Keys and values of packed rows of query, key and value may
//            also be scattered to the heads of a KV cache: keys and values (images, H, P, D)
// Numerics:  f32 sums; bf16 operands go through the tensor cores in steps of 16 values of k, f32 operands through fused
//            multiply-adds. The order of additions is that of k, for every tile shape: a row's result depends neither on
//            M nor on its place. The epilogue is f32, rounded once
// Requires:  rows of x and weight of a multiple of 16 bytes, or the unaligned kernels
// Tiling:    gemm.cuh; the launcher takes the tile of least time from the TILE table at the end. Each block walks K in
//            k_tiles of 128 bytes through a ring of stages in shared memory; fragments are loaded a step ahead of the
//            products. The activation is a parameter, not a kernel. On sm_90a warpgroup.cuh, and by request pair.cuh
// Roofline:  2 M N K operations. Bound by the tensor cores once both M and N are some hundreds; mma.sync reaches about
//            62 % of the rate of wgmma on sm_90
// Measured:  NVIDIA H200, driver 580.159.04, `im2sp doctor`, cold L2, rows x K x columns. At 00377bd, bf16 by wgmma:
//            257x1024x1024 in 10.3 us, 257x1024x3072 in 13.1, 257x4096x1024 in 22.2, 257x1024x4096 in 27.4, 4112x1024x4096
//            in 93, 4096x4096x4096 in 239 (576 TFLOP/s); f32: 257x1024x3072 in 77.3, 4112x1024x4096 in 923 (37 TFLOP/s). At
//            449c6ab, bf16 by mma.sync, lightly contended: 14.9, 22.2, 42.4, 25.5, 150, 397 (346 TFLOP/s, 56 % of the peak
//            of mma.sync there)
#include "gemm.cuh"
#include "linear/activation.cuh"
#include "pair.cuh"

struct LinearParams {
    TensorMap x_map;       // of pairs of blocks alone
    TensorMap weight_map;
    const void* x;
    const void* weight;
    const float* bias;
    const void* residual;
    void* y;
    void* saved;             // null, or where the activation's input goes, as y
    void* keys;              // null, or where rows of packed query, key and value are split into heads
    void* values;
    const unsigned* images;  // (M / prefix): which image each run of prefix rows is
    int rows;
    int columns;
    int k;
    int prefix;
    int heads;
    int activation;  // ACTIVATION_*
    int pairing;     // PAIRING_*
    int unused[7];
};
SIZE_OF(LinearParams, 384);

namespace {

// Eight columns of a row: bias, activation, residual.
template <typename T> struct LinearEpilogue {
    static constexpr int RUN = 8;
    const LinearParams& params;

    // What two runs of the same columns need, of a row each.
    struct Read {
        Vector<float> bias;
        Vector<T> residual[2];

        DEVICE void load(const LinearEpilogue& out, int row, int other, int column) {
            const LinearParams& p = out.params;
            if (column >= p.columns) return;
            bias = *reinterpret_cast<const Vector<float>*>(p.bias + column);
            if (!p.residual) return;
            const T* from = static_cast<const T*>(p.residual) + column;
            if (row < p.rows) residual[0] = *reinterpret_cast<const Vector<T>*>(from + int64_t(row) * p.columns);
            if (other < p.rows) residual[1] = *reinterpret_cast<const Vector<T>*>(from + int64_t(other) * p.columns);
        }
    };

    DEVICE bool vectors() const { return params.columns % RUN == 0; }
    DEVICE bool rolled() const { return params.activation != ACTIVATION_NONE || params.saved || params.keys || !vectors(); }

    DEVICE void finish(int row, int column, const float (&sums)[RUN], const Read& read, int which) const {
        if (row >= params.rows || column >= params.columns) return;
        const int64_t at = int64_t(row) * params.columns + column;
        T* y = static_cast<T*>(params.y) + at;
        float v[RUN], residual[RUN];
        unpack(read.bias, v);
        unpack(read.residual[which], residual);
#pragma unroll
        for (int i = 0; i < RUN; i++) v[i] += sums[i];
        if (params.saved) store_run(static_cast<T*>(params.saved) + at, v);
        activate(params.activation, v);
        if (params.residual) {
#pragma unroll
            for (int i = 0; i < RUN; i++) v[i] += residual[i];
        }
        store_run(y, v);
        if (params.keys) scatter_to_heads(row, column, y, v);
    }

    template <bool ROLLED> DEVICE void store(int row, int column, const float (&sums)[RUN]) const {
        if (row >= params.rows || column >= params.columns) return;
        const int64_t at = int64_t(row) * params.columns + column;
        const T* residual = params.residual ? static_cast<const T*>(params.residual) + at : nullptr;
        T* y = static_cast<T*>(params.y) + at;
        const bool whole = !ROLLED || vectors();
        float v[RUN];
        if (whole) load_run(v, params.bias + column);
#pragma unroll
        for (int i = 0; i < RUN; i++) {
            if (!whole) v[i] = column + i < params.columns ? params.bias[column + i] : 0.0f;
            v[i] += sums[i];
        }
        if (ROLLED && params.saved) save(static_cast<T*>(params.saved) + at, column, v);
        if (ROLLED) activate(params.activation, v);
        if (whole) {
            store_vectors(residual, y, v);
        } else {
#pragma unroll
            for (int i = 0; i < RUN; i++) {
                if (column + i < params.columns) y[i] = from_float<T>(residual ? v[i] + to_float(residual[i]) : v[i]);
            }
        }
        if (ROLLED && params.keys) scatter_to_heads(row, column, y, v);
    }

  private:
    DEVICE void save(T* saved, int column, const float (&v)[RUN]) const {
        if (vectors()) return store_run(saved, v);
#pragma unroll
        for (int i = 0; i < RUN; i++) {
            if (column + i < params.columns) saved[i] = from_float<T>(v[i]);
        }
    }

    DEVICE void store_vectors(const T* residual, T* y, float (&v)[RUN]) const {
        float added[RUN] = {};
        if (residual) load_run(added, residual);
        // In f32 without a residual, a sum of -0 becomes 0.
        if (residual || sizeof(T) == sizeof(float)) {
#pragma unroll
            for (int i = 0; i < RUN; i++) v[i] += added[i];
        }
        store_run(y, v);
    }

    // Keys and values of a row to their heads: `v`, which this thread has just written to y, from `column` on.
    DEVICE void scatter_to_heads(int row, int column, const T* y, const float (&v)[RUN]) const {
        const int width = params.columns / 3, size = width / params.heads;
        const int image = int(params.images[row / params.prefix]), token = row % params.prefix;
        const auto place = [&](int c) {
            const int head = c % width / size;
            T* to = static_cast<T*>(c < 2 * width ? params.keys : params.values);
            return to + ((int64_t(image) * params.heads + head) * params.prefix + token) * size + c % size;
        };
        if (size % RUN == 0) {
            if (column >= width) store_run(place(column), v);
            return;
        }
#pragma unroll 1
        for (int i = 0; i < min(RUN, params.columns - column); i++) {
            if (column + i >= width) *place(column + i) = y[i];
        }
    }
};

template <typename Tile, typename Rows> DEVICE void linear_forward(const LinearParams& params) {
    using T = typename Tile::Value;
    typename Tile::Shared& shared = shared_memory<typename Tile::Shared>();
    const TileCoord at = tile_coord<Tile>(params.rows, params.columns);
    const Rows x = {static_cast<const T*>(params.x), params.rows, params.k};
    const Rows weight = {static_cast<const T*>(params.weight), params.columns, params.k};
    Tile tile;
    tile.prefetch(shared, x, weight, at, params.k);
    tile.clear();
    tile.mainloop(shared, x, weight, at, params.k);
    epilogue(tile, shared, at, LinearEpilogue<T>{params});
}
template <typename Tile> DEVICE void aligned(const LinearParams& params) {
    linear_forward<Tile, AlignedRows<typename Tile::Value>>(params);
}
template <typename Tile> DEVICE void unaligned(const LinearParams& params) {
    linear_forward<Tile, UnalignedRows<typename Tile::Value>>(params);
}

template <typename Tile> DEVICE void wgmma(const LinearParams& params) {
    const AlignedRows<bf16> x = {static_cast<const bf16*>(params.x), params.rows, params.k};
    const AlignedRows<bf16> weight = {static_cast<const bf16*>(params.weight), params.columns, params.k};
    warpgroup_product<Tile>(x, weight, params.rows, params.columns, params.k, LinearEpilogue<bf16>{params});
}

template <typename Tile> DEVICE void pair(const LinearParams& params) {
    const Extent extent = {params.rows, params.columns, 0, params.k};
    pair_product<Tile>(params.x_map, params.weight_map, extent, params.pairing, LinearEpilogue<bf16>{params});
}

// bf16: rows and columns of a tile, warps down and across, stages.
using Tile128x256 = MmaTile<128, 256, 2, 4, 3>;  // large products: the least traffic to shared memory; one block each
using Tile128x128 = MmaTile<128, 128, 2, 2, 3>;  // two blocks on a multiprocessor: one's epilogue overlaps the other's sums
using Tile64x128 = MmaTile<64, 128, 2, 2, 3>;    // one image's tokens times many columns
using Tile64x64 = MmaTile<64, 64, 2, 2, 4>;
using Tile32x64 = MmaTile<32, 64, 2, 2, 4>;      // one image's tokens times few columns: enough blocks for all
// f32: the same, with lanes down a warp.
using Tile128x128F32 = FmaTile<128, 128, 4, 2, 4, 2>;
using Tile64x64F32 = FmaTile<64, 64, 2, 2, 8, 3>;
// bf16 on sm_90a: deep rings where a block has a multiprocessor to itself.
using Tile128x256Wgmma = WarpgroupTile<128, 256, 4>;
using Tile128x192Wgmma = WarpgroupTile<128, 192, 4>;
using Tile64x128Wgmma = WarpgroupTile<64, 128, 8>;
using Tile64x64Wgmma = WarpgroupTile<64, 64, 6>;
using Tile128x256Pair = PairTile<128, 256, 4>;
using Tile128x192Pair = PairTile<128, 192, 5>;

}  // namespace

// Grid: one block for each tile of y, in the order of tile_coord. Shared memory: Shared of the tile. A warp owns its part of
// the tile (gemm.cuh).
KERNEL(linear_forward_128x256_bf16, LinearParams, 256, 1) { aligned<Tile128x256>(params); }
KERNEL(linear_forward_128x128_bf16, LinearParams, 128, 2) { aligned<Tile128x128>(params); }
KERNEL(linear_forward_64x128_bf16, LinearParams, 128, 3) { aligned<Tile64x128>(params); }
KERNEL(linear_forward_64x64_bf16, LinearParams, 128, 3) { aligned<Tile64x64>(params); }
KERNEL(linear_forward_32x64_bf16, LinearParams, 128, 4) { aligned<Tile32x64>(params); }
KERNEL(linear_forward_128x128_f32, LinearParams, 256, 2) { aligned<Tile128x128F32>(params); }
KERNEL(linear_forward_64x64_f32, LinearParams, 128, 4) { aligned<Tile64x64F32>(params); }

// Grid: any number of blocks up to that of tiles.
KERNEL(linear_forward_128x256_wgmma_bf16, LinearParams, 256, 1) { wgmma<Tile128x256Wgmma>(params); }
KERNEL(linear_forward_128x192_wgmma_bf16, LinearParams, 256, 1) { wgmma<Tile128x192Wgmma>(params); }
KERNEL(linear_forward_64x128_wgmma_bf16, LinearParams, 128, 1) { wgmma<Tile64x128Wgmma>(params); }
KERNEL(linear_forward_64x64_wgmma_bf16, LinearParams, 128, 2) { wgmma<Tile64x64Wgmma>(params); }

// Grid: an even number of blocks up to twice that of pairs of tiles.
PAIR_KERNEL(linear_forward_128x256_pair_bf16, LinearParams, 384) { pair<Tile128x256Pair>(params); }
PAIR_KERNEL(linear_forward_128x192_pair_bf16, LinearParams, 384) { pair<Tile128x192Pair>(params); }

// Grid and shared memory: as above, for any K.
KERNEL(linear_forward_64x64_unaligned_bf16, LinearParams, 128, 3) { unaligned<Tile64x64>(params); }
KERNEL(linear_forward_64x64_unaligned_f32, LinearParams, 128, 4) { unaligned<Tile64x64F32>(params); }

// Geometries by which the launcher chooses; times are relative to each other.
TILE(linear_forward_128x256_bf16, Tile128x256, 128, 256, 147456, 413,
     "H200 at 449c6ab, doctor: 4096x4096x4096 in 397 us, 4112x1024x4096 in 150 us");
TILE(linear_forward_128x128_bf16, Tile128x128, 128, 128, 98304, 207, "not yet measured");
TILE(linear_forward_64x128_bf16, Tile64x128, 64, 128, 73728, 144,
     "H200 at 449c6ab, doctor: 257x1024x3072 in 22.2 us, 257x1024x4096 in 25.5 us");
TILE(linear_forward_64x64_bf16, Tile64x64, 64, 64, 65536, 96,
     "H200 at 449c6ab, doctor: 257x1024x1024 in 14.9 us, 257x4096x1024 in 42.4 us");
TILE(linear_forward_32x64_bf16, Tile32x64, 32, 64, 49152, 72,
     "H200 at 449c6ab, doctor: 197x3072x768 in 25.4 us, 1000x768x203 in 12.3 us");
TILE(linear_forward_128x256_wgmma_bf16, Tile128x256Wgmma, 128, 256, 212992, 210,
     "H200 at 00377bd, doctor: 4096x4096x4096 in 239 us, 4112x1024x4096 in 93 us");
TILE(linear_forward_128x192_wgmma_bf16, Tile128x192Wgmma, 128, 192, 180224, 162, "H200 at 86aee10, ncu: 6512x768x768 in 29.7 us");
TILE(linear_forward_64x128_wgmma_bf16, Tile64x128Wgmma, 64, 128, 204800, 84,
     "H200 at 00377bd, doctor: 257x1024x3072 in 13.1 us");
TILE(linear_forward_64x64_wgmma_bf16, Tile64x64Wgmma, 64, 64, 106496, 43,
     "H200 at 00377bd, doctor: 257x1024x1024 in 10.3 us, 257x4096x1024 in 22.2 us");
TILE(linear_forward_128x256_pair_bf16, Tile128x256Pair, 128, 256, 214016, 153, "not yet measured");
TILE(linear_forward_128x192_pair_bf16, Tile128x192Pair, 128, 192, 222208, 113, "not yet measured");
TILE(linear_forward_64x64_unaligned_bf16, Tile64x64, 64, 64, 65536, 1000, "not yet measured");
TILE(linear_forward_128x128_f32, Tile128x128F32, 128, 128, 65536, 2048, "H200 at 449c6ab, doctor: 4112x1024x4096 in 847 us");
TILE(linear_forward_64x64_f32, Tile64x64F32, 64, 64, 49152, 768, "H200 at 449c6ab, doctor: 257x1024x3072 in 72.7 us");
TILE(linear_forward_64x64_unaligned_f32, Tile64x64F32, 64, 64, 49152, 4000, "not yet measured");

