// cast: the same values in the other type.
// Math:      y = x
// Tensors:   x, y: `count` elements, 16-byte aligned
// Numerics:  f32 to bf16 to nearest, ties to even; bf16 to f32 exact
// Requires:  nothing
// Roofline:  6 bytes an element: memory-bound
// Measured:  not yet measured
#include "prelude.cuh"

struct CastParams {
    const void* x;
    void* y;
    long long count;
};
SIZE_OF(CastParams, 24);

namespace {

constexpr int VALUES = 4;  // of a thread

}  // namespace

// Grid: ceil(count / 1024) blocks; a thread owns four elements in a row.
KERNEL(cast_forward_f32_to_bf16, CastParams, 256, 8) {
    const float* x = static_cast<const float*>(params.x);
    bf16* y = static_cast<bf16*>(params.y);
    const int64_t at = (int64_t(blockIdx.x) * 256 + threadIdx.x) * VALUES;
    if (at + VALUES <= params.count) {
        const float4 v = *reinterpret_cast<const float4*>(x + at);
        *reinterpret_cast<uint2*>(y + at) = make_uint2(pack_bf16(v.x, v.y), pack_bf16(v.z, v.w));
        return;
    }
    for (int64_t i = at; i < params.count; i++) y[i] = to_bf16(x[i]);
}

// Grid: as above.
KERNEL(cast_forward_bf16_to_f32, CastParams, 256, 8) {
    const bf16* x = static_cast<const bf16*>(params.x);
    float* y = static_cast<float*>(params.y);
    const int64_t at = (int64_t(blockIdx.x) * 256 + threadIdx.x) * VALUES;
    if (at + VALUES <= params.count) {
        const uint2 v = *reinterpret_cast<const uint2*>(x + at);
        *reinterpret_cast<float4*>(y + at) = make_float4(low_float(v.x), high_float(v.x), low_float(v.y), high_float(v.y));
        return;
    }
    for (int64_t i = at; i < params.count; i++) y[i] = to_float(x[i]);
}
