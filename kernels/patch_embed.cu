// patch_embed: pictures to the tokens of a vision transformer.
// Math:      token 0 of a picture is the class embedding, token 1 + i the i-th patch (row-major) times weight; row t of
//            position is added to each token t
// Source:    Dosovitskiy et al., "An Image is Worth 16x16 Words" (2020), equation 1
// Tensors:   pixels (B, 3, side, side) f32; weight (C, K), position (T, C), y (B*T, C) row-major in one type, K = 3*P*P;
//            class (C) f32
// Tiling:    a product of B*(T-1) patches with C channels whose left side is gathered. bf16: tiles of 64x64, or of 128x128
//            where there are enough of them, stages of 64 values of K in a ring of cp.async. A patch's row of 14 pixels is
//            8-byte aligned and no more, so pixels come in pairs, as f32, and are rounded when a fragment is made of them.
//            f32, and odd P: 64x64 tiles on FMA units
// Numerics:  f32 sums along K in order, begun with the position; on tensor cores pixels are rounded to bf16
// Requires:  for tensor cores P % 2 == 0, so that pairs of pixels and fours of weights are aligned
// Roofline:  2 * B * (T-1) * C * K operations; 0.3 GFLOP and 3 MB for one picture of ViT-L/14: bound by what L2 hands to
//            the multiprocessors, since a tile of n channels reads each patch again
// Measured:  not yet measured
#include "tile.cuh"

struct PatchEmbedParams {
    const float* pixels;
    const void* weight;
    const float* class_embedding;
    const void* position;
    void* y;
    int batch;
    int channels;
    int tokens;
    int side;
    int patch;
    int depth;  // K
};
SIZE_OF(PatchEmbedParams, 64);

namespace {

// The offset of a patch's first pixel; -1 beyond the last patch.
DEVICE int64_t patch_origin(const PatchEmbedParams& p, int m) {
    const int patches = p.tokens - 1, across = p.side / p.patch;
    if (m >= p.batch * patches) return -1;
    const int i = m % patches;
    return (int64_t(m / patches) * 3 * p.side + i / across * p.patch) * p.side + i % across * p.patch;
}

// How far value k of a patch lies from its first.
DEVICE int pixel_offset(const PatchEmbedParams& p, int k) {
    const int line = k / p.patch;
    return (line / p.patch * p.side + line % p.patch) * p.side + k % p.patch;
}

// Tokens that are no patch: those of the pictures whose first patch is one of rows `top` to `end`.
template <typename T> DEVICE void store_classes(const PatchEmbedParams& p, int top, int end, int left, int right) {
    const int patches = p.tokens - 1, columns = min(right, p.channels) - left;
    const int first = (top + patches - 1) / patches;
    const int pictures = min((end + patches - 1) / patches, p.batch) - first;
    for (int i = threadIdx.x; i < pictures * columns; i += int(blockDim.x)) {
        const int c = left + i % columns;
        const float v = p.class_embedding[c] + to_float(static_cast<const T*>(p.position)[c]);
        static_cast<T*>(p.y)[int64_t(first + i / columns) * p.tokens * p.channels + c] = from_float<T>(v);
    }
}

// ---- tensor cores

// Rows of a stage's pixels are eight words longer than they hold, so that the lanes of a fragment fall into all banks.
constexpr int PIXELS = DEPTH + 8;

template <typename Shape> struct PatchStage {
    float pixels[Shape::ROWS][PIXELS];
    bf16 weights[Shape::COLUMNS * DEPTH];  // swizzled
};
template <typename Shape> struct PatchShared {
    PatchStage<Shape> stage[Shape::STAGES];
    int64_t origin[Shape::ROWS];
};

using SmallPatches = TileShape<64, 64, 2, 2, 4>;
using LargePatches = TileShape<128, 128, 4, 2, 3>;
using SmallPatchShared = PatchShared<SmallPatches>;
using LargePatchShared = PatchShared<LargePatches>;

// Starts the copies of one stage; always one group.
template <typename Shape>
DEVICE void start_patches(const PatchEmbedParams& p, PatchShared<Shape>& shared, int left, int step, int steps) {
    constexpr int WARPS = Shape::THREADS / WARP, FOURS = DEPTH / 4;
    if (step < steps) {
        PatchStage<Shape>& stage = shared.stage[step % Shape::STAGES];
        // A lane has the same two values of K in all of its rows.
        const int k = step * DEPTH + 2 * lane_index(), offset = pixel_offset(p, k);
#pragma unroll
        for (int r = warp_index(); r < Shape::ROWS; r += WARPS) {
            const int64_t origin = shared.origin[r];
            const bool valid = origin >= 0 && k < p.depth;
            cp_async_8(&stage.pixels[r][2 * lane_index()], valid ? p.pixels + origin + offset : p.pixels, valid);
        }
        const bf16* weight = static_cast<const bf16*>(p.weight);
#pragma unroll
        for (int i = threadIdx.x; i < Shape::COLUMNS * FOURS; i += Shape::THREADS) {
            const int c = i / FOURS, four = i % FOURS, from = step * DEPTH + four * 4;
            const bool valid = left + c < p.channels && from < p.depth;
            bf16* to = stage.weights + swizzled(c, four / 2) + four % 2 * 4;
            cp_async_8(to, valid ? weight + int64_t(left + c) * p.depth + from : weight, valid);
        }
    }
    cp_async_commit();
}

// The products of one stage.
template <typename Shape, typename Sums>
DEVICE void multiply_patches(const PatchStage<Shape>& stage, int row, int column, Sums& sums) {
    const int lane = lane_index();
#pragma unroll
    for (int k = 0; k < PIECES; k += 2) {
        uint32_t left[Shape::TILES_M][4], right[Shape::TILES_N][2];
#pragma unroll
        for (int m = 0; m < Shape::TILES_M; m++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int r = row + m * 16 + i % 2 * 8 + lane / 4, at = k * 8 + i / 2 * 8 + lane % 4 * 2;
                const float2 pair = *reinterpret_cast<const float2*>(&stage.pixels[r][at]);
                left[m][i] = pack_bf16(pair.x, pair.y);
            }
        }
#pragma unroll
        for (int n = 0; n < Shape::TILES_N; n += 2) {
            uint32_t pair[4];
            ldmatrix_x4(pair, stage.weights + swizzled(column + n * 8 + lane / 16 * 8 + lane % 8, k + lane / 8 % 2));
            right[n][0] = pair[0], right[n][1] = pair[1];
            right[n + 1][0] = pair[2], right[n + 1][1] = pair[3];
        }
#pragma unroll
        for (int m = 0; m < Shape::TILES_M; m++) {
#pragma unroll
            for (int n = 0; n < Shape::TILES_N; n++) mma_m16n8k16(sums[m][n], left[m], right[n]);
        }
    }
}

// Two neighbouring values of position; zero beyond the last channel.
DEVICE float2 load_position(const PatchEmbedParams& p, int token, int c) {
    const bf16* at = static_cast<const bf16*>(p.position) + int64_t(token) * p.channels + c;
    if (c + 1 < p.channels && p.channels % 2 == 0) {
        const uint32_t pair = *reinterpret_cast<const uint32_t*>(at);
        return make_float2(low_float(pair), high_float(pair));
    }
    return make_float2(c < p.channels ? to_float(at[0]) : 0.0f, c + 1 < p.channels ? to_float(at[1]) : 0.0f);
}

template <typename Shape> DEVICE void tiled_patches(const PatchEmbedParams& p) {
    PatchShared<Shape>& shared = shared_memory<PatchShared<Shape>>();
    const int left = blockIdx.x * Shape::COLUMNS, top = blockIdx.y * Shape::ROWS, lane = lane_index();
    for (int r = threadIdx.x; r < Shape::ROWS; r += Shape::THREADS) shared.origin[r] = patch_origin(p, top + r);
    sync_block();
    const int steps = (p.depth + DEPTH - 1) / DEPTH, patches = p.tokens - 1;
#pragma unroll
    for (int step = 0; step + 1 < Shape::STAGES; step++) start_patches<Shape>(p, shared, left, step, steps);
    // While the first stages are on their way.
    store_classes<bf16>(p, top, min(top + Shape::ROWS, p.batch * patches), left, left + Shape::COLUMNS);
    const int row = warp_index() / Shape::WARPS_N * Shape::WARP_ROWS;
    const int column = warp_index() % Shape::WARPS_N * Shape::WARP_COLUMNS;
    float sums[Shape::TILES_M][Shape::TILES_N][4];
#pragma unroll
    for (int m = 0; m < Shape::TILES_M; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int at = top + row + m * 16 + half * 8 + lane / 4, token = 1 + at % patches;
#pragma unroll
            for (int n = 0; n < Shape::TILES_N; n++) {
                const float2 v = load_position(p, token, left + column + n * 8 + lane % 4 * 2);
                sums[m][n][2 * half] = v.x, sums[m][n][2 * half + 1] = v.y;
            }
        }
    }
    for (int step = 0; step < steps; step++) {
        cp_async_wait<Shape::STAGES - 2>();
        sync_block();
        start_patches<Shape>(p, shared, left, step + Shape::STAGES - 1, steps);
        multiply_patches<Shape>(shared.stage[step % Shape::STAGES], row, column, sums);
    }
    cp_async_wait<0>();
#pragma unroll
    for (int m = 0; m < Shape::TILES_M; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int at = top + row + m * 16 + half * 8 + lane / 4;
            if (at >= p.batch * patches) continue;
            bf16* y = static_cast<bf16*>(p.y) + (int64_t(at / patches) * p.tokens + 1 + at % patches) * p.channels;
#pragma unroll
            for (int n = 0; n < Shape::TILES_N; n++) {
                const int c = left + column + n * 8 + lane % 4 * 2;
                if (c >= p.channels) continue;
                store_pair(y + c, sums[m][n][2 * half], sums[m][n][2 * half + 1], c + 1 < p.channels);
            }
        }
    }
}

// ---- FMA units

struct PlainPatchShared {
    PlainShared product;  // where plain_product expects it
    int64_t origin[PLAIN];
};

template <typename T> DEVICE void plain_patches(const PatchEmbedParams& p) {
    PlainPatchShared& shared = shared_memory<PlainPatchShared>();
    const int left = blockIdx.x * PLAIN, top = blockIdx.y * PLAIN, patches = p.tokens - 1, rows = p.batch * patches;
    for (int r = threadIdx.x; r < PLAIN; r += PLAIN_THREADS) shared.origin[r] = patch_origin(p, top + r);
    sync_block();
    store_classes<T>(p, top, min(top + PLAIN, rows), left, left + PLAIN);
    plain_product(
        [&](int r, int k) {
            const int64_t origin = shared.origin[r];
            return origin < 0 ? 0.0f : p.pixels[origin + pixel_offset(p, k)];
        },
        [&](int c, int k) {
            return left + c < p.channels ? to_float(static_cast<const T*>(p.weight)[int64_t(left + c) * p.depth + k]) : 0.0f;
        },
        p.depth,
        [&](int r, int column, float v0, float v1) {
            const int at = top + r, c = left + column;
            if (at >= rows || c >= p.channels) return;
            const bool both = c + 1 < p.channels;
            const T* position = static_cast<const T*>(p.position) + int64_t(1 + at % patches) * p.channels + c;
            T* y = static_cast<T*>(p.y) + (int64_t(at / patches) * p.tokens + 1 + at % patches) * p.channels + c;
            store_pair(y, v0 + to_float(position[0]), both ? v1 + to_float(position[1]) : 0.0f, both);
        });
}

}  // namespace

SIZE_OF(SmallPatchShared, 107008);
SIZE_OF(LargePatchShared, 160768);
SIZE_OF(PlainPatchShared, 9216);

// Grid: (ceil(C / 64), ceil(B * (T-1) / 64)), or 128: neighbouring blocks share patches. Shared memory: SmallPatchShared, or
// LargePatchShared. P % 2 == 0.
KERNEL(patch_embed_forward_small_bf16, PatchEmbedParams, 128, 2) { tiled_patches<SmallPatches>(params); }
KERNEL(patch_embed_forward_large_bf16, PatchEmbedParams, 256, 1) { tiled_patches<LargePatches>(params); }

// Grid: (ceil(C / 64), ceil(B * (T-1) / 64)). Shared memory: PlainPatchShared.
KERNEL(patch_embed_forward_plain_bf16, PatchEmbedParams, 256, 2) { plain_patches<bf16>(params); }
KERNEL(patch_embed_forward_plain_f32, PatchEmbedParams, 256, 2) { plain_patches<float>(params); }
