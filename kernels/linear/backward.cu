// linear: the backward pass of a fully connected layer.
// Math:      dx = (dy weight) act'(input) + residual; dweight += dy^T x; dbias += sum of the rows of dy
// Tensors:   dy (M, N), weight (N, K), x, input, residual and dx (M, K) row-major, all bf16 or all f32; input and residual may
//            be null; dweight (N, K) and dbias (N) f32
// Numerics:  as the forward pass: f32 sums in the order of N, rounded once. Sums over rows are cut into parts, which depend on
//            the shape alone, each added up in order by itself, then part after part. Of dbias each warp adds every eighth
//            row of a part, then the warps are added in order, and by the last block to come the parts
// Requires:  rows of dy, x and weight of a multiple of 16 bytes, or the unaligned kernels; dweight at a multiple of 16 bytes
// Tiling:    gemm.cuh; on sm_90a warpgroup.cuh, and by request pair.cuh. Operands whose rows are the terms of the sums are
//            transposed on the way to the products (columns.cuh)
// Roofline:  2 M N K operations each for dx and dweight, as the forward pass
// Measured:  H200 at 86aee10, ncu, by wgmma: dx 6512x2304x768 with a residual in 63.6 us; dweight 2304x768 over 6512 rows in
//            56.9 us and 13.5 for the sum of its parts, 4096x1024 over 4112 rows in 72.4
#include "gemm.cuh"
#include "linear/activation.cuh"
#include "pair.cuh"

struct LinearBackwardParams {
    TensorMap dy_map;      // of pairs of blocks alone
    TensorMap weight_map;
    const void* dy;
    const void* weight;
    const void* input;     // of the activation; null: none
    const void* residual;  // null: none
    void* dx;
    int rows;
    int columns;  // K
    int depth;    // N
    int activation;  // ACTIVATION_*
    int pairing;     // PAIRING_*
    int unused[17];
};
SIZE_OF(LinearBackwardParams, 384);

struct LinearBackwardWeightParams {
    TensorMap dy_map;  // of pairs of blocks alone
    TensorMap x_map;
    const void* dy;
    const void* x;
    float* out;   // dweight, or the parts (parts, N, K)
    int terms;    // M
    int rows;     // N
    int columns;  // K
    int share;    // terms of a part
    int adds;     // whether to add to what is there
    int pairing;  // PAIRING_*
    int unused[20];
};
SIZE_OF(LinearBackwardWeightParams, 384);

struct LinearBackwardBiasParams {
    const void* dy;
    float* parts;       // (parts, N)
    float* gradient;    // (N)
    unsigned* arrived;  // zeros before and after each launch, for each 32 columns; none for a single part
    int rows;
    int columns;
    int share;  // rows of a part
    int unused;
};
SIZE_OF(LinearBackwardBiasParams, 48);

struct LinearBackwardAddParams {
    const float* parts;  // (count, length)
    float* gradient;     // (length)
    long long length;
    int count;
    int unused;
};
SIZE_OF(LinearBackwardAddParams, 32);

namespace {

// Eight columns of a row of dx: slope, residual.
template <typename T> struct InputEpilogue {
    static constexpr int RUN = 8;
    const LinearBackwardParams& params;

    DEVICE bool rolled() const { return true; }

    // What two runs of the same columns need, of a row each.
    struct Read {
        Vector<T> input[2], residual[2];

        DEVICE void load(const InputEpilogue& out, int row, int other, int column) {
            const LinearBackwardParams& p = out.params;
            const int rows[2] = {row, other};
#pragma unroll
            for (int i = 0; i < 2; i++) {
                if (rows[i] >= p.rows || column >= p.columns) continue;
                const int64_t at = int64_t(rows[i]) * p.columns + column;
                if (p.input) input[i] = *reinterpret_cast<const Vector<T>*>(static_cast<const T*>(p.input) + at);
                if (p.residual) residual[i] = *reinterpret_cast<const Vector<T>*>(static_cast<const T*>(p.residual) + at);
            }
        }
    };

    DEVICE void finish(int row, int column, float (&v)[RUN], const Read& read, int which) const {
        if (row >= params.rows || column >= params.columns) return;
        float input[RUN], residual[RUN];
        unpack(read.input[which], input);
        unpack(read.residual[which], residual);
        finish_run(v, input, residual);
        store_run(static_cast<T*>(params.dx) + int64_t(row) * params.columns + column, v);
    }

    template <bool ROLLED> DEVICE void store(int row, int column, float (&v)[RUN]) const {
        if (row >= params.rows || column >= params.columns) return;
        const int64_t at = int64_t(row) * params.columns + column;
        float input[RUN] = {}, residual[RUN] = {};
        if (params.input) load(input, static_cast<const T*>(params.input) + at, column);
        if (params.residual) load(residual, static_cast<const T*>(params.residual) + at, column);
        finish_run(v, input, residual);
        T* dx = static_cast<T*>(params.dx) + at;
        if (vectors()) return store_run(dx, v);
#pragma unroll
        for (int i = 0; i < RUN; i++) {
            if (column + i < params.columns) dx[i] = from_float<T>(v[i]);
        }
    }

  private:
    DEVICE bool vectors() const { return params.columns % RUN == 0; }

    DEVICE void finish_run(float (&v)[RUN], const float (&input)[RUN], const float (&residual)[RUN]) const {
        if (params.input) activate_backward(params.activation, input, v);
        if (!params.residual) return;
#pragma unroll
        for (int i = 0; i < RUN; i++) v[i] += residual[i];
    }

    DEVICE void load(float (&v)[RUN], const T* from, int column) const {
        if (vectors()) return load_run(v, from);
#pragma unroll
        for (int i = 0; i < RUN; i++) v[i] = column + i < params.columns ? to_float(from[i]) : 0.0f;
    }
};

// Eight columns of a row of dweight, or of a part of it.
struct WeightEpilogue {
    static constexpr int RUN = 8;
    const LinearBackwardWeightParams& params;
    float* out;

    DEVICE bool rolled() const { return true; }

    // What two runs of the same columns are added to.
    struct Read {
        Vector<float> before[2];

        DEVICE void load(const WeightEpilogue& out, int row, int other, int column) {
            const LinearBackwardWeightParams& p = out.params;
            const int rows[2] = {row, other};
#pragma unroll
            for (int i = 0; i < 2; i++) {
                if (!p.adds || rows[i] >= p.rows || column >= p.columns) continue;
                before[i] = *reinterpret_cast<const Vector<float>*>(out.out + int64_t(rows[i]) * p.columns + column);
            }
        }
    };

    DEVICE void finish(int row, int column, float (&v)[RUN], const Read& read, int which) const {
        if (row >= params.rows || column >= params.columns) return;
        float before[RUN];
        unpack(read.before[which], before);
        add(v, before);
        store_run(out + int64_t(row) * params.columns + column, v);
    }

    template <bool ROLLED> DEVICE void store(int row, int column, float (&v)[RUN]) const {
        if (row >= params.rows || column >= params.columns) return;
        float* to = out + int64_t(row) * params.columns + column;
        if (params.columns % RUN == 0) {
            float before[RUN] = {};
            if (params.adds) load_run(before, to);
            add(v, before);
            return store_run(to, v);
        }
#pragma unroll
        for (int i = 0; i < RUN; i++) {
            if (column + i < params.columns) to[i] = params.adds ? to[i] + v[i] : v[i];
        }
    }

  private:
    DEVICE void add(float (&v)[RUN], const float (&before)[RUN]) const {
        if (!params.adds) return;
#pragma unroll
        for (int i = 0; i < RUN; i++) v[i] += before[i];
    }
};

using Aligned = AlignedRows<bf16>;
using Unaligned = UnalignedRows<bf16>;

template <typename Tile, typename Rows, typename Columns> DEVICE void at_input(const LinearBackwardParams& params) {
    using T = typename Tile::Value;
    typename Tile::Shared& shared = shared_memory<typename Tile::Shared>();
    const TileCoord at = tile_coord<Tile>(params.rows, params.columns);
    const Rows dy = {static_cast<const T*>(params.dy), params.rows, params.depth};
    const Columns weight = {static_cast<const T*>(params.weight), params.depth, params.columns};
    Tile tile;
    tile.prefetch(shared, dy, weight, at, params.depth);
    tile.clear();
    tile.mainloop(shared, dy, weight, at, params.depth);
    epilogue(tile, shared, at, InputEpilogue<T>{params});
}

template <typename Tile, typename Columns> DEVICE void at_weight(const LinearBackwardWeightParams& params) {
    using T = typename Tile::Value;
    typename Tile::Shared& shared = shared_memory<typename Tile::Shared>();
    const TileCoord at = tile_coord<Tile>(params.rows, params.columns);
    const int first = blockIdx.y * params.share, terms = min(params.share, params.terms - first);
    const Columns dy = {static_cast<const T*>(params.dy) + int64_t(first) * params.rows, terms, params.rows};
    const Columns x = {static_cast<const T*>(params.x) + int64_t(first) * params.columns, terms, params.columns};
    Tile tile;
    tile.prefetch(shared, dy, x, at, terms);
    tile.clear();
    tile.mainloop(shared, dy, x, at, terms);
    float* out = params.out + int64_t(blockIdx.y) * params.rows * params.columns;
    epilogue(tile, shared, at, WeightEpilogue{params, out});
}

// The same on sm_90a.
template <typename Tile> DEVICE void at_input_wgmma(const LinearBackwardParams& params) {
    const Aligned dy = {static_cast<const bf16*>(params.dy), params.rows, params.depth};
    const Aligned weight = {static_cast<const bf16*>(params.weight), params.depth, params.columns};
    warpgroup_product<Tile>(dy, weight, params.rows, params.columns, params.depth, InputEpilogue<bf16>{params});
}

template <typename Tile> DEVICE void at_weight_wgmma(const LinearBackwardWeightParams& params) {
    const int first = blockIdx.y * params.share, terms = min(params.share, params.terms - first);
    const Aligned dy = {static_cast<const bf16*>(params.dy) + int64_t(first) * params.rows, terms, params.rows};
    const Aligned x = {static_cast<const bf16*>(params.x) + int64_t(first) * params.columns, terms, params.columns};
    float* out = params.out + int64_t(blockIdx.y) * params.rows * params.columns;
    warpgroup_product<Tile>(dy, x, params.rows, params.columns, terms, WeightEpilogue{params, out});
}

// And by pairs of blocks.
template <typename Tile> DEVICE void at_input_pair(const LinearBackwardParams& params) {
    const Extent extent = {params.rows, params.columns, 0, params.depth};
    const InputEpilogue<bf16> out = {params};
    pair_product<Tile>(params.dy_map, params.weight_map, extent, params.pairing, out);
}

template <typename Tile> DEVICE void at_weight_pair(const LinearBackwardWeightParams& params) {
    const int first = blockIdx.y * params.share, terms = min(params.share, params.terms - first);
    const Extent extent = {params.rows, params.columns, first, terms};
    const WeightEpilogue out = {params, params.out + int64_t(blockIdx.y) * params.rows * params.columns};
    pair_product<Tile>(params.dy_map, params.x_map, extent, params.pairing, out);
}

// bf16, as forward.cu's, of a weight by columns.
using Input128x256 = MmaTile<128, 256, 2, 4, 3, Bf16Operand, ByColumns>;
using Input128x128 = MmaTile<128, 128, 2, 2, 3, Bf16Operand, ByColumns>;
using Input64x64 = MmaTile<64, 64, 2, 2, 4, Bf16Operand, ByColumns>;
// And of two factors by columns.
using Weight128x256 = MmaTile<128, 256, 2, 4, 3, ColumnsOperand, ByColumns>;
using Weight128x128 = MmaTile<128, 128, 2, 2, 3, ColumnsOperand, ByColumns>;
using Weight64x64 = MmaTile<64, 64, 2, 2, 4, ColumnsOperand, ByColumns>;
// And both on sm_90a.
using Input128x256Wgmma = WarpgroupTile<128, 256, 4, ByRows, ByColumns>;
using Input128x192Wgmma = WarpgroupTile<128, 192, 4, ByRows, ByColumns>;
using Input64x128Wgmma = WarpgroupTile<64, 128, 8, ByRows, ByColumns>;
using Input64x64Wgmma = WarpgroupTile<64, 64, 6, ByRows, ByColumns>;
using Weight128x256Wgmma = WarpgroupTile<128, 256, 4, ByColumns, ByColumns>;
using Weight64x128Wgmma = WarpgroupTile<64, 128, 8, ByColumns, ByColumns>;
using Weight64x64Wgmma = WarpgroupTile<64, 64, 6, ByColumns, ByColumns>;
using Input128x256Pair = PairTile<128, 256, 4, ByRows, ByColumns>;
using Input128x192Pair = PairTile<128, 192, 5, ByRows, ByColumns>;
using Weight128x256Pair = PairTile<128, 256, 4, ByColumns, ByColumns>;
// f32.
using Tile128x128F32 = FmaTile<128, 128, 4, 2, 4, 2>;
using Tile64x64F32 = FmaTile<64, 64, 2, 2, 8, 3>;

constexpr int BIAS_WARPS = 8;

struct BiasSums {
    float part[BIAS_WARPS][WARP];
    int last;  // whether this block is
    int unused[3];
};
SIZE_OF(BiasSums, 1040);

template <typename T> DEVICE void bias_sums(const LinearBackwardBiasParams& params) {
    BiasSums& shared = shared_memory<BiasSums>();
    const int column = blockIdx.x * WARP + lane_index(), first = blockIdx.y * params.share, parts = gridDim.y;
    const int end = min(first + params.share, params.rows);
    const bool inside = column < params.columns;
    float sum = 0.0f;
    if (inside) {
        const T* dy = static_cast<const T*>(params.dy) + column;
#pragma unroll 8
        for (int row = first + warp_index(); row < end; row += BIAS_WARPS) {
            sum += to_float(dy[int64_t(row) * params.columns]);
        }
    }
    shared.part[warp_index()][lane_index()] = sum;
    sync_block();
    if (warp_index() > 0) return;
#pragma unroll
    for (int warp = 1; warp < BIAS_WARPS; warp++) sum += shared.part[warp][lane_index()];
    if (parts > 1) {
        if (inside) params.parts[int64_t(blockIdx.y) * params.columns + column] = sum;
        sync_warp();
        if (lane_index() == 0) {
            shared.last = atomic_add_acq_rel(&params.arrived[blockIdx.x], 1) == unsigned(parts) - 1;
            if (shared.last) params.arrived[blockIdx.x] = 0;
        }
        sync_warp();
        if (!shared.last) return;
        sum = 0.0f;
#pragma unroll 8
        for (int part = 0; part < parts && inside; part++) sum += params.parts[int64_t(part) * params.columns + column];
    }
    if (inside) params.gradient[column] += sum;
}

}  // namespace

// Grid: one block for each tile of dx, in the order of tile_coord. Shared memory: Shared of the tile.
KERNEL(linear_backward_128x256_bf16, LinearBackwardParams, 256, 1) { at_input<Input128x256, Aligned, Aligned>(params); }
KERNEL(linear_backward_128x128_bf16, LinearBackwardParams, 128, 2) { at_input<Input128x128, Aligned, Aligned>(params); }
KERNEL(linear_backward_64x64_bf16, LinearBackwardParams, 128, 3) { at_input<Input64x64, Aligned, Aligned>(params); }
KERNEL(linear_backward_64x64_unaligned_bf16, LinearBackwardParams, 128, 2) {
    at_input<Input64x64, Unaligned, Unaligned>(params);
}
KERNEL(linear_backward_128x128_f32, LinearBackwardParams, 256, 2) {
    at_input<Tile128x128F32, AlignedRows<float>, TransposedRows>(params);
}
KERNEL(linear_backward_64x64_f32, LinearBackwardParams, 128, 4) {
    at_input<Tile64x64F32, AlignedRows<float>, TransposedRows>(params);
}
KERNEL(linear_backward_64x64_unaligned_f32, LinearBackwardParams, 128, 4) {
    at_input<Tile64x64F32, UnalignedRows<float>, TransposedRows>(params);
}

// Grid: any number of blocks up to that of tiles.
KERNEL(linear_backward_128x256_wgmma_bf16, LinearBackwardParams, 256, 1) { at_input_wgmma<Input128x256Wgmma>(params); }
KERNEL(linear_backward_128x192_wgmma_bf16, LinearBackwardParams, 256, 1) { at_input_wgmma<Input128x192Wgmma>(params); }
KERNEL(linear_backward_64x128_wgmma_bf16, LinearBackwardParams, 128, 1) { at_input_wgmma<Input64x128Wgmma>(params); }
KERNEL(linear_backward_64x64_wgmma_bf16, LinearBackwardParams, 128, 2) { at_input_wgmma<Input64x64Wgmma>(params); }

// Grid: an even number of blocks up to twice that of pairs of tiles.
PAIR_KERNEL(linear_backward_128x256_pair_bf16, LinearBackwardParams, 384) { at_input_pair<Input128x256Pair>(params); }
PAIR_KERNEL(linear_backward_128x192_pair_bf16, LinearBackwardParams, 384) { at_input_pair<Input128x192Pair>(params); }

// Grid: the tiles of dweight, in the order of tile_coord, for each part. Shared memory: Shared of the tile.
KERNEL(linear_backward_weight_128x256_bf16, LinearBackwardWeightParams, 256, 1) { at_weight<Weight128x256, Aligned>(params); }
KERNEL(linear_backward_weight_128x128_bf16, LinearBackwardWeightParams, 128, 2) { at_weight<Weight128x128, Aligned>(params); }
KERNEL(linear_backward_weight_64x64_bf16, LinearBackwardWeightParams, 128, 3) { at_weight<Weight64x64, Aligned>(params); }
KERNEL(linear_backward_weight_64x64_unaligned_bf16, LinearBackwardWeightParams, 128, 2) {
    at_weight<Weight64x64, Unaligned>(params);
}
KERNEL(linear_backward_weight_128x128_unaligned_f32, LinearBackwardWeightParams, 256, 2) {
    at_weight<Tile128x128F32, TransposedRows>(params);
}
KERNEL(linear_backward_weight_64x64_unaligned_f32, LinearBackwardWeightParams, 128, 4) {
    at_weight<Tile64x64F32, TransposedRows>(params);
}

// Grid: any number of blocks up to that of tiles, for each part.
KERNEL(linear_backward_weight_128x256_wgmma_bf16, LinearBackwardWeightParams, 256, 1) { at_weight_wgmma<Weight128x256Wgmma>(params); }
KERNEL(linear_backward_weight_64x128_wgmma_bf16, LinearBackwardWeightParams, 128, 1) { at_weight_wgmma<Weight64x128Wgmma>(params); }
KERNEL(linear_backward_weight_64x64_wgmma_bf16, LinearBackwardWeightParams, 128, 2) { at_weight_wgmma<Weight64x64Wgmma>(params); }

// Grid: an even number of blocks up to twice that of pairs of tiles, for each part.
PAIR_KERNEL(linear_backward_weight_128x256_pair_bf16, LinearBackwardWeightParams, 384) { at_weight_pair<Weight128x256Pair>(params); }

// Grid: 32 columns of dy, for each part. Shared memory: BiasSums.
KERNEL(linear_backward_bias_bf16, LinearBackwardBiasParams, 256, 4) { bias_sums<bf16>(params); }
KERNEL(linear_backward_bias_f32, LinearBackwardBiasParams, 256, 4) { bias_sums<float>(params); }

// Grid: ceil(length / 256) blocks; a thread adds the parts of one value, in order, to the gradient.
KERNEL(linear_backward_add_f32, LinearBackwardAddParams, 256, 4) {
    const int64_t at = int64_t(blockIdx.x) * 256 + threadIdx.x;
    if (at >= params.length) return;
    float sum = 0.0f;
#pragma unroll 4
    for (int part = 0; part < params.count; part++) sum += params.parts[part * params.length + at];
    params.gradient[at] += sum;
}

// Geometries by which the launcher chooses; times as of the forward pass.
TILE(linear_backward_128x256_bf16, Input128x256, 128, 256, 147456, 413, "not yet measured");
TILE(linear_backward_128x128_bf16, Input128x128, 128, 128, 98304, 207, "not yet measured");
TILE(linear_backward_64x64_bf16, Input64x64, 64, 64, 65536, 96, "not yet measured");
TILE(linear_backward_128x256_wgmma_bf16, Input128x256Wgmma, 128, 256, 212992, 210, "not yet measured");
TILE(linear_backward_128x192_wgmma_bf16, Input128x192Wgmma, 128, 192, 180224, 162,
     "H200 at 86aee10, ncu: 6512x2304x768 in 63.6 us");
TILE(linear_backward_64x128_wgmma_bf16, Input64x128Wgmma, 64, 128, 204800, 84, "not yet measured");
TILE(linear_backward_64x64_wgmma_bf16, Input64x64Wgmma, 64, 64, 106496, 43, "not yet measured");
TILE(linear_backward_128x256_pair_bf16, Input128x256Pair, 128, 256, 214016, 153, "not yet measured");
TILE(linear_backward_128x192_pair_bf16, Input128x192Pair, 128, 192, 222208, 113, "not yet measured");
TILE(linear_backward_64x64_unaligned_bf16, Input64x64, 64, 64, 65536, 1000, "not yet measured");
TILE(linear_backward_128x128_f32, Tile128x128F32, 128, 128, 65536, 2048, "not yet measured");
TILE(linear_backward_64x64_f32, Tile64x64F32, 64, 64, 49152, 768, "not yet measured");
TILE(linear_backward_64x64_unaligned_f32, Tile64x64F32, 64, 64, 49152, 4000, "not yet measured");
TILE(linear_backward_weight_128x256_bf16, Weight128x256, 128, 256, 147456, 413, "not yet measured");
TILE(linear_backward_weight_128x128_bf16, Weight128x128, 128, 128, 98304, 207, "not yet measured");
TILE(linear_backward_weight_64x64_bf16, Weight64x64, 64, 64, 65536, 96, "not yet measured");
TILE(linear_backward_weight_128x256_wgmma_bf16, Weight128x256Wgmma, 128, 256, 212992, 210,
     "H200 at 86aee10, ncu: 4096x1024 over 4112 rows in 72.4 us");
TILE(linear_backward_weight_64x128_wgmma_bf16, Weight64x128Wgmma, 64, 128, 204800, 84, "not yet measured");
TILE(linear_backward_weight_64x64_wgmma_bf16, Weight64x64Wgmma, 64, 64, 106496, 43, "not yet measured");
TILE(linear_backward_weight_128x256_pair_bf16, Weight128x256Pair, 128, 256, 214016, 153, "not yet measured");
TILE(linear_backward_weight_64x64_unaligned_bf16, Weight64x64, 64, 64, 65536, 1000, "not yet measured");
TILE(linear_backward_weight_128x128_unaligned_f32, Tile128x128F32, 128, 128, 65536, 2048, "not yet measured");
TILE(linear_backward_weight_64x64_unaligned_f32, Tile64x64F32, 64, 64, 49152, 768, "not yet measured");
