// conv2d: 2-D convolution of images with square windows, a stride and zero padding, to rows of pixels of channels.
// Math:      y[b, i, j, c] = act(bias[c] + sum over (n, u, v) of x[b, n, i s + u - p, j s + v - p] w[(n, u, v), c]), zeros
//            outside of the images
// Source:    LeCun et al., "Gradient-Based Learning Applied to Document Recognition" (1998), section II
// Tensors:   images (B, I, side, side) f32; weight (K, C) with K = I * taps * taps, and bias (C), f32; y (B*G*G, C) row-major
// Numerics:  f32 sums along K in order, then the bias and the activation; rounded once
// Requires:  nothing; channels go in eights where C % 8 == 0, one by one otherwise
// Roofline:  2 * B * G*G * C * K operations on FMA units. A stem of 3x3 over three colours to 32 channels of 112x112 is 22 MFLOP
//            an image and 1.4 MB: bound by memory, so there is no form for tensor cores
// Measured:  not yet measured
#include "linear/activation.cuh"
#include "vector.cuh"

struct Conv2dParams {
    const float* images;
    const float* weight;
    const float* bias;
    void* y;
    int batch;
    int inputs;    // I
    int channels;  // C
    int side;
    int grid;  // G
    int taps;
    int stride;
    int before;  // zeros before the first pixel
    int activation;
    int unused;
};
SIZE_OF(Conv2dParams, 72);

namespace {

constexpr int BLOCK = 256;

// Eight channels of one window.
template <typename T, bool VECTORS> DEVICE void window(const Conv2dParams& p) {
    const int64_t index = int64_t(blockIdx.x) * BLOCK + threadIdx.x;
    const int groups = (p.channels + VECTOR - 1) / VECTOR, area = p.grid * p.grid;
    if (index >= int64_t(p.batch) * area * groups) return;
    const int64_t row = index / groups;
    const int c = int(index % groups) * VECTOR, place = int(row % area), count = min(VECTOR, p.channels - c);
    const int top = place / p.grid * p.stride - p.before, left = place % p.grid * p.stride - p.before;
    const float* image = p.images + row / area * p.inputs * p.side * p.side;
    const float* weight = p.weight + c;
    float sums[VECTOR] = {};
    for (int line = 0; line < p.inputs * p.taps; line++) {
        const int y = top + line % p.taps;
        if (y < 0 || y >= p.side) continue;
        const float* pixels = image + (int64_t(line / p.taps) * p.side + y) * p.side;
        for (int tap = 0; tap < p.taps; tap++) {
            const int x = left + tap;
            if (x < 0 || x >= p.side) continue;
            const float pixel = pixels[x];
            const float* w = weight + int64_t(line * p.taps + tap) * p.channels;
            float values[VECTOR];
            if constexpr (VECTORS) {
                unpack(*reinterpret_cast<const Vector<float>*>(w), values);
            } else {
#pragma unroll
                for (int i = 0; i < VECTOR; i++) values[i] = i < count ? w[i] : 0.0f;
            }
#pragma unroll
            for (int i = 0; i < VECTOR; i++) sums[i] += pixel * values[i];
        }
    }
#pragma unroll
    for (int i = 0; i < VECTOR; i++) sums[i] += i < count ? p.bias[c + i] : 0.0f;
    activate(p.activation, sums);
    T* y = static_cast<T*>(p.y) + row * p.channels + c;
    if constexpr (VECTORS) {
        pack(sums, *reinterpret_cast<Vector<T>*>(y));
    } else {
#pragma unroll
        for (int i = 0; i < VECTOR; i++) {
            if (i < count) y[i] = from_float<T>(sums[i]);
        }
    }
}

}  // namespace

// Grid: ceil(B*G*G * ceil(C / 8) / 256) blocks; a thread owns eight channels of a window. C % 8 == 0.
KERNEL(conv2d_forward_bf16, Conv2dParams, 256, 4) { window<bf16, true>(params); }
KERNEL(conv2d_forward_f32, Conv2dParams, 256, 4) { window<float, true>(params); }

// Grid: as above, for any C.
KERNEL(conv2d_forward_unaligned_bf16, Conv2dParams, 256, 4) { window<bf16, false>(params); }
KERNEL(conv2d_forward_unaligned_f32, Conv2dParams, 256, 4) { window<float, false>(params); }
