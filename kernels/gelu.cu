// gelu: the activation of each element, after a norm.
// Math:      y = 0.5 x (1 + erf(x / sqrt 2))
// Source:    Hendrycks and Gimpel, "Gaussian Error Linear Units" (2016)
// Tensors:   x, y: `count` elements of one type, 16-byte aligned
// Numerics:  f32, rounded once
// Requires:  nothing
// Roofline:  x is read, y written: memory-bound
// Measured:  not yet measured
#include "linear/activation.cuh"
#include "vector.cuh"

struct GeluParams {
    const void* x;
    void* y;
    long long count;
};
SIZE_OF(GeluParams, 24);

namespace {

template <typename T> DEVICE void eight(const GeluParams& params) {
    const int64_t at = (int64_t(blockIdx.x) * 256 + threadIdx.x) * VECTOR;
    const T* x = static_cast<const T*>(params.x) + at;
    T* y = static_cast<T*>(params.y) + at;
    if (at + VECTOR <= params.count) {
        float v[VECTOR];
        unpack(*reinterpret_cast<const Vector<T>*>(x), v);
        activate(ACTIVATION_GELU, v);
        pack(v, *reinterpret_cast<Vector<T>*>(y));
        return;
    }
    for (int i = 0; i < params.count - at; i++) y[i] = from_float<T>(gelu(to_float(x[i])));
}

}  // namespace

// Grid: ceil(count / 2048) blocks; a thread owns eight elements in a row.
KERNEL(gelu_forward_bf16, GeluParams, 256, 4) { eight<bf16>(params); }
KERNEL(gelu_forward_f32, GeluParams, 256, 4) { eight<float>(params); }
