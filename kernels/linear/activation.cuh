// Activations of linear and linear_decode, and their slopes. Which one is a parameter of the launch, equal for all threads.
#pragma once

#include "prelude.cuh"

namespace {

// As backend::Activation.
constexpr int ACTIVATION_NONE = 0;
constexpr int ACTIVATION_GELU = 1;        // 0.5 v (1 + erf(v / sqrt 2))
constexpr int ACTIVATION_QUICK_GELU = 2;  // v sigmoid(1.702 v)
constexpr int ACTIVATION_TANH = 3;
constexpr int ACTIVATION_RELU6 = 4;  // min(max(v, 0), 6)

DEVICE float gelu(float v) { return 0.5f * v * (1.0f + erff(v * 0.70710678118654752f)); }
DEVICE float quick_gelu(float v) { return __fdividef(v, 1.0f + exp2_fast(-1.702f * LOG2_E * v)); }
// Absolute error of a rounding of 1; large exponentials give a quotient of 0.
DEVICE float tanh_fast(float v) { return 1.0f - __fdividef(2.0f, 1.0f + exp2_fast(2.0f * LOG2_E * v)); }

// A NaN stays one.
DEVICE float relu6(float v) {
    v = v < 0.0f ? 0.0f : v;
    return v > 6.0f ? 6.0f : v;
}

template <int COUNT> DEVICE void activate(int activation, float (&values)[COUNT]) {
    if (activation == ACTIVATION_GELU) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) values[i] = gelu(values[i]);
    } else if (activation == ACTIVATION_QUICK_GELU) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) values[i] = quick_gelu(values[i]);
    } else if (activation == ACTIVATION_TANH) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) values[i] = tanh_fast(values[i]);
    } else if (activation == ACTIVATION_RELU6) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) values[i] = relu6(values[i]);
    }
}

DEVICE float gelu_slope(float v) {
    const float density = 0.39894228040143268f * exp2_fast(-0.5f * LOG2_E * v * v);
    return 0.5f * (1.0f + erff(v * 0.70710678118654752f)) + v * density;
}
DEVICE float quick_gelu_slope(float v) {
    const float sigmoid = __fdividef(1.0f, 1.0f + exp2_fast(-1.702f * LOG2_E * v));
    return sigmoid * (1.0f + 1.702f * v * (1.0f - sigmoid));
}
DEVICE float tanh_slope(float v) {
    const float tanh = tanh_fast(v);
    return 1.0f - tanh * tanh;
}

// Multiplies `values` by the slopes at `inputs`.
template <int COUNT> DEVICE void activate_backward(int activation, const float (&inputs)[COUNT], float (&values)[COUNT]) {
    if (activation == ACTIVATION_GELU) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) values[i] *= gelu_slope(inputs[i]);
    } else if (activation == ACTIVATION_QUICK_GELU) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) values[i] *= quick_gelu_slope(inputs[i]);
    } else if (activation == ACTIVATION_TANH) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) values[i] *= tanh_slope(inputs[i]);
    } else if (activation == ACTIVATION_RELU6) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) values[i] = inputs[i] > 0.0f && inputs[i] < 6.0f ? values[i] : 0.0f;
    }
}

}  // namespace
