// patch_embed: images to the tokens of a vision transformer, and the rows of windows that its backward pass multiplies.
// Math:      the tokens of an image are the class embedding, if there is one, and the windows (row-major) times weight; row t
//            of position is added to each token t. A window is P x P; G of them, a stride apart, cross an image
// Source:    Dosovitskiy et al., "An Image is Worth 16x16 Words" (2020), equation 1
// Tensors:   pixels (B, I, side, side) f32; weight (C, K), position (T, C), y (B*T, C) row-major in one type, K = I*P*P;
//            class (C) f32
// Numerics:  f32 sums along K in order; on tensor cores pixels are rounded to bf16 and the sums begin with the position, on
//            FMA units it is added last
// Requires:  for tensor cores even P, stride and side, so that pairs of pixels and fours of weights are aligned
// Tiling:    gemm.cuh, over B*G*G windows and C channels; A is gathered. A patch's row of 14 pixels is 8-byte aligned and
//            no more, so pixels come in pairs, as f32, and are rounded when a fragment is made of them. f32, and odd sizes:
//            64x64 tiles on FMA units
// Roofline:  2 * B * G*G * C * K operations; 0.3 GFLOP and 3 MB for one image of ViT-L/14: bound by the L2, since a tile
//            of n channels reads each patch again
// Measured:  NVIDIA H200, driver 580.159.04, commit 449c6ab (the same tiles, with a mainloop of their own; not yet measured
//            since): `im2sp doctor --op =patch_embed` (cold L2, lightly contended), images of 224x224 in 14x14, C = 1024:
//            bf16 1 in 28.7 us, 8 in 40.8, 64 in 267 (74 TFLOP/s); f32 1 in 148, 64 in 1,286. ncu, `im2sp bench --random
//            --dtype bf16 --units 50`: 1 in 26.3 us
#include "gemm.cuh"

struct PatchEmbedParams {
    const float* pixels;
    const void* weight;
    const float* class_embedding;
    const void* position;
    void* y;
    int batch;
    int channels;
    int side;
    int inputs;  // I
    int patch;   // P
    int stride;
    int grid;     // G
    int k;        // K
    int classes;  // 1 with a class embedding, 0 without
    int unused;
};
SIZE_OF(PatchEmbedParams, 80);

namespace {

// One window, a row of the product. Its divisions are done once, not by every thread that needs it.
struct Patch {
    int64_t origin;  // offset of its first pixel; -1 beyond the last patch
    int token;       // row of position
    int row;         // of y
};

DEVICE Patch patch_at(const PatchEmbedParams& p, int m) {
    const int patches = p.grid * p.grid, image = m / patches, i = m % patches, token = p.classes + i;
    const int64_t line = int64_t(image) * p.inputs * p.side + i / p.grid * p.stride;
    const int64_t origin = line * p.side + i % p.grid * p.stride;
    return {m < p.batch * patches ? origin : -1, token, image * (p.classes + patches) + token};
}

// How far value k of a patch lies from its first.
DEVICE int pixel_offset(const PatchEmbedParams& p, int k) {
    const int line = k / p.patch;
    return (line / p.patch * p.side + line % p.patch) * p.side + k % p.patch;
}

// Tokens that are no window: those of the images whose first window is one of the tile's rows.
template <typename Tile, typename T> DEVICE void store_classes(const PatchEmbedParams& p, const TileCoord& at) {
    if (p.classes == 0) return;
    const int patches = p.grid * p.grid, columns = min(Tile::N, p.channels - at.column);
    const int first = (at.row + patches - 1) / patches, end = min(at.row + Tile::M, at.rows);
    const int images = min((end + patches - 1) / patches, p.batch) - first;
    for (int i = threadIdx.x; i < images * columns; i += Tile::THREADS) {
        const int c = at.column + i % columns;
        const float v = p.class_embedding[c] + to_float(static_cast<const T*>(p.position)[c]);
        static_cast<T*>(p.y)[int64_t(first + i / columns) * (1 + patches) * p.channels + c] = from_float<T>(v);
    }
}

// ---- sources

// The patches of a tile, from row `first` of the product on.
struct Patches {
    static constexpr bool TRANSFORMS = false;
    const PatchEmbedParams& p;
    const Patch* patches;  // in shared memory
    int first;

    DEVICE void copy_pair(void* to, int row, int k) const {
        const int64_t origin = patches[row - first].origin;
        const bool inside = origin >= 0 && k < p.k;
        cp_async_8(to, inside ? p.pixels + origin + pixel_offset(p, k) : p.pixels, inside);
    }
    DEVICE void copy(void* to, int row, int k) const {
        const int64_t origin = patches[row - first].origin;
#pragma unroll
        for (int i = 0; i < CHUNK_VALUES<float>; i++) {
            const bool inside = origin >= 0 && k + i < p.k;
            static_cast<float*>(to)[i] = inside ? p.pixels[origin + pixel_offset(p, k + i)] : 0.0f;
        }
    }
};

// ---- epilogue

// Sums to the rows of y that belong to their patches; with the position where the sums did not begin with it.
template <typename T, bool ADDS_POSITION> struct PatchEpilogue {
    static constexpr int RUN = 8;
    const PatchEmbedParams& p;
    const Patch* patches;
    int first;

    DEVICE bool vectors() const { return p.channels % RUN == 0; }
    DEVICE bool rolled() const { return !vectors(); }

    DEVICE void load_position(int row, int column, float (&v)[RUN]) const {
        const T* from = static_cast<const T*>(p.position) + int64_t(patches[row - first].token) * p.channels + column;
        if (vectors() && column < p.channels) {
            load_run(v, from);
            return;
        }
#pragma unroll
        for (int i = 0; i < RUN; i++) v[i] = column + i < p.channels ? to_float(from[i]) : 0.0f;
    }

    template <bool ROLLED> DEVICE void store(int row, int column, const float (&sums)[RUN]) const {
        const Patch& patch = patches[row - first];
        if (patch.origin < 0 || column >= p.channels) return;
        T* y = static_cast<T*>(p.y) + int64_t(patch.row) * p.channels + column;
        float v[RUN] = {};
        if (ADDS_POSITION) load_position(row, column, v);
#pragma unroll
        for (int i = 0; i < RUN; i++) v[i] = ADDS_POSITION ? sums[i] + v[i] : sums[i];
        if constexpr (ROLLED) {
#pragma unroll
            for (int i = 0; i < RUN; i++) {
                if (column + i < p.channels) y[i] = from_float<T>(v[i]);
            }
        } else {
            store_run(y, v);
        }
    }
};

// ---- kernels

template <typename Tile_> struct PatchTile {
    using Tile = Tile_;
    static constexpr int M = Tile::M, N = Tile::N;
    struct Shared {
        typename Tile::Shared tile;
        Patch patches[M];
    };
};

template <typename Shape, typename T, typename Weight> DEVICE void patch_embed(const PatchEmbedParams& p) {
    using Tile = typename Shape::Tile;
    constexpr bool TENSOR_CORES = sizeof(typename Tile::Value) == sizeof(bf16);
    typename Shape::Shared& shared = shared_memory<typename Shape::Shared>();
    const TileCoord at = tile_coord<Tile>(p.batch * p.grid * p.grid, p.channels);
    for (int r = threadIdx.x; r < Tile::M; r += Tile::THREADS) shared.patches[r] = patch_at(p, at.row + r);
    sync_block();
    const Patches patches = {p, shared.patches, at.row};
    const Weight weight = {static_cast<const T*>(p.weight), p.channels, p.k};
    const PatchEpilogue<T, !TENSOR_CORES> out = {p, shared.patches, at.row};
    Tile tile;
    tile.prefetch(shared.tile, patches, weight, at, p.k);
    // While the first stages are on their way.
    store_classes<Tile, T>(p, at);
    if constexpr (TENSOR_CORES) {
        tile.begin(at, [&](int row, int column, float (&v)[8]) { out.load_position(row, column, v); });
    } else {
        tile.clear();
    }
    tile.mainloop(shared.tile, patches, weight, at, p.k);
    epilogue(tile, shared.tile, at, out);
}

constexpr int GATHERED = 256;  // values of a block

// Windows as rows of y (B*G*G, K) in the type of products.
template <typename T> DEVICE void gather(const PatchEmbedParams& p) {
    const int64_t index = int64_t(blockIdx.x) * GATHERED + threadIdx.x;
    if (index >= int64_t(p.batch) * p.grid * p.grid * p.k) return;
    const Patch from = patch_at(p, int(index / p.k));
    static_cast<T*>(p.y)[index] = from_float<T>(p.pixels[from.origin + pixel_offset(p, int(index % p.k))]);
}

using Patches64x64 = PatchTile<MmaTile<64, 64, 2, 2, 4, F32PairOperand>>;
using Patches128x128 = PatchTile<MmaTile<128, 128, 4, 2, 3, F32PairOperand>>;
using Patches64x64Fma = PatchTile<FmaTile<64, 64, 2, 2, 8, 3>>;

}  // namespace

// Grid: one block for each tile of y, in the order of tile_coord. Shared memory: Shared of the tile. P, stride and side are even.
KERNEL(patch_embed_forward_64x64_bf16, PatchEmbedParams, 128, 2) { patch_embed<Patches64x64, bf16, HalfAlignedRows>(params); }
KERNEL(patch_embed_forward_128x128_bf16, PatchEmbedParams, 256, 1) {
    patch_embed<Patches128x128, bf16, HalfAlignedRows>(params);
}

// Grid and shared memory: as above, for any sizes.
KERNEL(patch_embed_forward_64x64_unaligned_bf16, PatchEmbedParams, 128, 4) {
    patch_embed<Patches64x64Fma, bf16, UnalignedRows<bf16, float>>(params);
}
KERNEL(patch_embed_forward_64x64_unaligned_f32, PatchEmbedParams, 128, 4) {
    patch_embed<Patches64x64Fma, float, UnalignedRows<float>>(params);
}

// Geometries by which the launcher chooses; times are relative to each other.
TILE(patch_embed_forward_64x64_bf16, Patches64x64, 64, 64, 107520, 144,
     "H200 at 449c6ab, doctor: 1 image of 224x224 in 28.7 us");
TILE(patch_embed_forward_128x128_bf16, Patches128x128, 128, 128, 161792, 352,
     "H200 at 449c6ab, doctor: 8 images of 224x224 in 40.8 us, 64 in 267 us");
TILE(patch_embed_forward_64x64_unaligned_bf16, Patches64x64Fma, 64, 64, 50176, 1000, "not yet measured");
TILE(patch_embed_forward_64x64_unaligned_f32, Patches64x64Fma, 64, 64, 50176, 1000,
     "H200 at 449c6ab, doctor: 1 image of 224x224 in 148 us, 64 in 1,286 us");

// Grid: ceil(B*G*G*K / 256) blocks; a thread owns a value.
KERNEL(patch_embed_backward_rows_bf16, PatchEmbedParams, 256, 4) { gather<bf16>(params); }
KERNEL(patch_embed_backward_rows_f32, PatchEmbedParams, 256, 4) { gather<float>(params); }
