// Activations of linear and linear_decode. Which one is a parameter of the launch, the same for all threads.
#pragma once

#include "prelude.cuh"

namespace {

// As backend::Activation.
constexpr int ACTIVATION_NONE = 0;
constexpr int ACTIVATION_GELU = 1;        // 0.5 v (1 + erf(v / sqrt 2))
constexpr int ACTIVATION_QUICK_GELU = 2;  // v sigmoid(1.702 v)

DEVICE float gelu(float v) { return 0.5f * v * (1.0f + erff(v * 0.70710678118654752f)); }
DEVICE float quick_gelu(float v) { return __fdividef(v, 1.0f + exp2_fast(-1.702f * LOG2_E * v)); }

template <int COUNT> DEVICE void activate(int activation, float (&values)[COUNT]) {
    if (activation == ACTIVATION_GELU) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) values[i] = gelu(values[i]);
    } else if (activation == ACTIVATION_QUICK_GELU) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) values[i] = quick_gelu(values[i]);
    }
}

}  // namespace
