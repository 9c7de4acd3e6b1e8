// vector: eight values of a row, loaded and stored as 16 bytes (bf16) or twice 16 (f32), and as f32 in between.
#pragma once

#include "prelude.cuh"

namespace {

constexpr int VECTOR = 8;  // values

template <typename T> struct Vector;
template <> struct Vector<bf16> {
    uint4 bits;
};
template <> struct Vector<float> {
    float4 low, high;
};

DEVICE void unpack(const Vector<bf16>& v, float (&out)[VECTOR]) {
    const uint32_t words[4] = {v.bits.x, v.bits.y, v.bits.z, v.bits.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        out[2 * i] = low_float(words[i]);
        out[2 * i + 1] = high_float(words[i]);
    }
}
DEVICE void unpack(const Vector<float>& v, float (&out)[VECTOR]) {
    const float values[VECTOR] = {v.low.x, v.low.y, v.low.z, v.low.w, v.high.x, v.high.y, v.high.z, v.high.w};
#pragma unroll
    for (int i = 0; i < VECTOR; i++) out[i] = values[i];
}
DEVICE void pack(const float (&v)[VECTOR], Vector<bf16>& out) {
    out.bits = make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
}
DEVICE void pack(const float (&v)[VECTOR], Vector<float>& out) {
    out.low = make_float4(v[0], v[1], v[2], v[3]);
    out.high = make_float4(v[4], v[5], v[6], v[7]);
}

}  // namespace
