// patch_embed: pictures to the tokens of a vision transformer.
// Math:      token 0 of a picture is the class embedding, token 1 + i the i-th patch (row-major) times weight; row t of
//            position is added to each token t
// Source:    Dosovitskiy et al., "An Image is Worth 16x16 Words" (2020), equation 1
// Tensors:   pixels (B, 3, side, side) f32; weight (C, 3*P*P), position (T, C), y (B*T, C) row-major in one type;
//            class (C) f32
// Tiling:    64x64 tiles on FMA units that gather the pixels of a patch as they load them: a patch's rows of 14 pixels are
//            not 16-byte aligned, and the whole is under a five-hundredth of an encoder's work
// Numerics:  f32 sums along K in order; pixels are not rounded
// Requires:  nothing
// Roofline:  2 * B * (T - 1) * C * 3*P*P operations on FMA units
// Measured:  not yet measured
#include "tile.cuh"

struct PatchEmbedParams {
    const float* pixels;
    const void* weight;
    const float* class_embedding;
    const void* position;
    void* y;
    int rows;      // B * T
    int channels;
    int tokens;
    int side;
    int patch;
    int unused;
};
SIZE_OF(PatchEmbedParams, 64);

namespace {

template <typename T> struct PatchStore {
    const PatchEmbedParams& p;
    int row, column;

    DEVICE float finished(int token, int c, float v) const {
        if (token == 0) v = p.class_embedding[c];
        return v + to_float(static_cast<const T*>(p.position)[int64_t(token) * p.channels + c]);
    }
    DEVICE void operator()(int r, int c, float v0, float v1) const {
        const int m = row + r, n = column + c, token = m % p.tokens;
        if (m >= p.rows || n >= p.channels) return;
        const bool both = n + 1 < p.channels;
        v0 = finished(token, n, v0);
        if (both) v1 = finished(token, n + 1, v1);
        store_pair(static_cast<T*>(p.y) + int64_t(m) * p.channels + n, v0, v1, both);
    }
};

template <typename T> DEVICE void patches(const PatchEmbedParams& p) {
    const int row = blockIdx.x * PLAIN, column = blockIdx.y * PLAIN;
    const int area = p.patch * p.patch, depth = 3 * area, across = p.side / p.patch;
    plain_product(
        [&](int r, int k) {
            const int m = row + r, token = m % p.tokens;
            if (m >= p.rows || token == 0) return 0.0f;
            const int y = (token - 1) / across * p.patch + k % area / p.patch;
            const int x = (token - 1) % across * p.patch + k % p.patch;
            return p.pixels[((int64_t(m / p.tokens) * 3 + k / area) * p.side + y) * p.side + x];
        },
        [&](int c, int k) {
            return column + c < p.channels ? to_float(static_cast<const T*>(p.weight)[int64_t(column + c) * depth + k]) : 0.0f;
        },
        depth, PatchStore<T>{p, row, column});
}

}  // namespace

// Grid: (ceil(B * T / 64), ceil(C / 64)). Shared memory: PlainShared.
KERNEL(patch_embed_forward_bf16, PatchEmbedParams, 256, 2) { patches<bf16>(params); }
KERNEL(patch_embed_forward_f32, PatchEmbedParams, 256, 2) { patches<float>(params); }
