// What linear and linear_step do with a sum before it is written: act(sum + bias), then the residual.
#pragma once

#include "prelude.cuh"

namespace {

struct Identity {
    static constexpr bool CHANGES = false;
    DEVICE static float of(float v) { return v; }
};

// 0.5 v (1 + erf(v / sqrt 2)).
struct Gelu {
    static constexpr bool CHANGES = true;
    DEVICE static float of(float v) { return 0.5f * v * (1.0f + erff(v * 0.70710678118654752f)); }
};

// v sigmoid(1.702 v).
struct QuickGelu {
    static constexpr bool CHANGES = true;
    DEVICE static float of(float v) { return __fdividef(v, 1.0f + exp2_fast(-1.702f * LOG2_E * v)); }
};

}  // namespace
