// concat: joins each sequence of one batch with the sequence of another, and takes them apart again.
// Math:      y[n] = a[n] followed by b[n], for each sequence n; backward: the same copies the other way
// Tensors:   a (B*S, C), b (B*T, C), y (B*(S+T), C) row-major in one type
// Numerics:  copies
// Requires:  S*C and T*C whole multiples of the copied unit; 16 bytes, or a single element
// Roofline:  2 * B*(S+T)*C elements moved: memory-bound
// Measured:  not yet measured
#include "prelude.cuh"

namespace {

constexpr int BLOCK = 256;

}  // namespace

struct ConcatParams {
    void* a;
    void* b;
    void* y;
    int count;   // units of y
    int first;   // units of a sequence of a
    int second;  // units of a sequence of b
    int unused;
};
SIZE_OF(ConcatParams, 40);

namespace {

// A thread copies a unit: to y, or from it.
template <typename Unit, bool JOINS> DEVICE void copy(const ConcatParams& p) {
    const unsigned at = blockIdx.x * unsigned(BLOCK) + threadIdx.x, first = p.first, second = p.second;
    if (at >= unsigned(p.count)) return;
    const unsigned sequence = at / (first + second), i = at % (first + second);
    Unit* part = i < first ? static_cast<Unit*>(p.a) + int64_t(sequence) * first + i
                           : static_cast<Unit*>(p.b) + int64_t(sequence) * second + (i - first);
    Unit* whole = static_cast<Unit*>(p.y) + at;
    if (JOINS) {
        *whole = *part;
    } else {
        *part = *whole;
    }
}

}  // namespace

// Grid: a thread for each unit of y.
KERNEL(concat_forward_16_bytes, ConcatParams, 256, 8) { copy<uint4, true>(params); }
KERNEL(concat_forward_4_bytes, ConcatParams, 256, 8) { copy<uint32_t, true>(params); }
KERNEL(concat_forward_2_bytes, ConcatParams, 256, 8) { copy<uint16_t, true>(params); }
KERNEL(concat_backward_16_bytes, ConcatParams, 256, 8) { copy<uint4, false>(params); }
KERNEL(concat_backward_4_bytes, ConcatParams, 256, 8) { copy<uint32_t, false>(params); }
KERNEL(concat_backward_2_bytes, ConcatParams, 256, 8) { copy<uint16_t, false>(params); }
