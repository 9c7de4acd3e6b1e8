// dropout: zeros in random places.
// Math:      y = x * (word >= threshold ? scale : 0) + residual; words as in philox.cuh, word i for element i of the rows one
//            after the other, so that four elements share a block
// Source:    Srivastava et al., "Dropout" (2014), scaled in training
// Tensors:   x, residual, y (M, C) row-major, `count` elements, 16-byte aligned; one type. No residual: a null pointer
// Numerics:  f32, one multiply-add; the words are exact, so every device has the same zeros
// Requires:  nothing
// Roofline:  2 * M * C elements moved, 3 with a residual: memory-bound, with 25 integer operations an element
// Measured:  not yet measured
#include "philox.cuh"
#include "vector.cuh"

struct DropoutParams {
    const void* x;
    const void* residual;
    void* y;
    long long count;
    long long seed;
    long long stream;
    unsigned threshold;
    float keep_scale;
};
SIZE_OF(DropoutParams, 56);

namespace {

constexpr int BLOCK = 256;

template <typename T> DEVICE void drop(const DropoutParams& params) {
    const int64_t at = (int64_t(blockIdx.x) * BLOCK + threadIdx.x) * VECTOR;
    if (at >= params.count) return;
    const T* x = static_cast<const T*>(params.x) + at;
    const T* residual = params.residual ? static_cast<const T*>(params.residual) + at : nullptr;
    T* y = static_cast<T*>(params.y) + at;
    const int left = params.count - at < VECTOR ? int(params.count - at) : VECTOR;
    float values[VECTOR] = {}, added[VECTOR] = {};
    if (left == VECTOR) {
        unpack(*reinterpret_cast<const Vector<T>*>(x), values);
        if (residual) unpack(*reinterpret_cast<const Vector<T>*>(residual), added);
    } else {
#pragma unroll
        for (int i = 0; i < VECTOR; i++) {
            if (i < left) values[i] = to_float(x[i]);
            if (i < left && residual) added[i] = to_float(residual[i]);
        }
    }
    const Mask mask = mask_of(params);
#pragma unroll
    for (int half = 0; half < VECTOR / 4; half++) {
        const unsigned kept = kept_of_block(mask, uint64_t(at) / 4 + half);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float& value = values[half * 4 + i];
            value = fmaf(value, kept >> i & 1 ? mask.scale : 0.0f, added[half * 4 + i]);
        }
    }
    if (left == VECTOR) {
        pack(values, *reinterpret_cast<Vector<T>*>(y));
        return;
    }
#pragma unroll
    for (int i = 0; i < VECTOR; i++) {
        if (i < left) y[i] = from_float<T>(values[i]);
    }
}

}  // namespace

// Grid: ceil(count / 2048) blocks; a thread owns eight elements in a row.
KERNEL(dropout_forward_bf16, DropoutParams, 256, 4) { drop<bf16>(params); }
KERNEL(dropout_forward_f32, DropoutParams, 256, 4) { drop<float>(params); }
