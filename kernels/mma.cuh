// mma: tensor-core tiles and asynchronous copies, one named function per PTX instruction.
//
// Fragments of mma_m16n8k16 (PTX ISA, "Matrix Fragments for mma.m16n8k16"), with g = lane / 4 and t = lane % 4:
//   a[0] (g, 2t..2t+1)  a[1] (g+8, 2t..)  a[2] (g, 2t+8..)  a[3] (g+8, 2t+8..)     16 x 16, row-major
//   b[0] (2t..2t+1, g)  b[1] (2t+8.., g)                                           16 x 8, column after column
//   d[0] (g, 2t)  d[1] (g, 2t+1)  d[2] (g+8, 2t)  d[3] (g+8, 2t+1)                 16 x 8
// ldmatrix: lane l names row l % 8 of 8x8 matrix l / 8; register i of a lane gets (g, 2t..2t+1) of matrix i, or of its
// transpose. A is loaded with matrices (rows 0-7, k 0-7), (rows 8-15, k 0-7), (rows 0-7, k 8-15), (rows 8-15, k 8-15).
// The place for wgmma and the tensor memory accelerator (sm_90a) is beside these.
#pragma once

#include "prelude.cuh"

namespace {

#ifndef IM2SP_EMULATOR

DEVICE uint32_t shared_address(const void* at) { return static_cast<uint32_t>(__cvta_generic_to_shared(at)); }

// d += a b, bf16 factors, f32 sums.
DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8x8 matrices of 16-bit elements; `row` is 16-byte aligned, in shared memory.
DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// The same, each matrix transposed.
DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// 16 bytes from device to shared memory, past the registers; zeros unless `valid`, and then `from` is not read. Both
// addresses are multiples of 16.
DEVICE void cp_async_16(void* to, const void* from, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid ? 16 : 0)
                 : "memory");
}

// Ends a group of copies.
DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most the N youngest groups of this thread are under way.
template <int N> DEVICE void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

#else

DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], PLACE) {
    EmulatorContext& self = *emulator_context;
    EmulatorWarp& warp = *self.warp;
    const unsigned set = self.phase++ & 1, g = self.lane / 4, t = self.lane % 4;
    for (int i = 0; i < 4; i++) {
        float* at = &warp.a[set][(g + i % 2 * 8) * 16 + 2 * t + i / 2 * 8];
        at[0] = low_float(a[i]), at[1] = high_float(a[i]);
    }
    for (int i = 0; i < 2; i++) {
        float* at = &warp.b[set][(2 * t + i * 8) * 8 + g];
        at[0] = low_float(b[i]), at[8] = high_float(b[i]);
    }
    for (int i = 0; i < 4; i++) warp.d[set][(g + i / 2 * 8) * 8 + 2 * t + i % 2] = d[i];
    // The last lane to come has everything, and computes for all.
    if (++warp.arrived[set] == 32) {
        warp.arrived[set] = 0;
        for (int row = 0; row < 16; row++) {
            float sums[8];
            memcpy(sums, &warp.d[set][row * 8], sizeof sums);
            for (int k = 0; k < 16; k++) {
                const float factor = warp.a[set][row * 16 + k];
                for (int column = 0; column < 8; column++) sums[column] += factor * warp.b[set][k * 8 + column];
            }
            memcpy(&warp.d[set][row * 8], sums, sizeof sums);
        }
    }
    emulator_wait(WAIT_WARP, "mma_m16n8k16", file, line);
    for (int i = 0; i < 4; i++) d[i] = warp.d[set][(g + i / 2 * 8) * 8 + 2 * t + i % 2];
}

DEVICE const uint64_t* lay_open_row(const void* row, const char* what, const char* file, int line) {
    EmulatorContext& self = *emulator_context;
    uint64_t* rows = self.warp->slot[self.phase++ & 1];
    rows[self.lane] = reinterpret_cast<uint64_t>(row);
    emulator_wait(WAIT_WARP, what, file, line);
    return rows;
}

DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* row, PLACE) {
    const uint64_t* rows = lay_open_row(row, "ldmatrix_x4", file, line);
    const unsigned g = emulator_context->lane / 4, t = emulator_context->lane % 4;
    for (int i = 0; i < 4; i++) r[i] = reinterpret_cast<const uint32_t*>(rows[i * 8 + g])[t];
}

DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, PLACE) {
    const uint64_t* rows = lay_open_row(row, "ldmatrix_x4_trans", file, line);
    const unsigned g = emulator_context->lane / 4, t = emulator_context->lane % 4;
    for (int i = 0; i < 4; i++) {
        const uint32_t low = reinterpret_cast<const uint16_t*>(rows[i * 8 + 2 * t])[g];
        const uint32_t high = reinterpret_cast<const uint16_t*>(rows[i * 8 + 2 * t + 1])[g];
        r[i] = low | high << 16;
    }
}

DEVICE void cp_async_16(void* to, const void* from, bool valid) {
    EmulatorCopies& copies = *emulator_context->copies;
    emulator_require(copies.count < EmulatorCopies::MOST, "more copies under way than the emulator holds");
    emulator_require(reinterpret_cast<uint64_t>(to) % 16 == 0, "cp_async_16 to a misaligned address");
    emulator_require(!valid || reinterpret_cast<uint64_t>(from) % 16 == 0, "cp_async_16 from a misaligned address");
    copies.pending[copies.count++] = {to, valid ? from : nullptr, copies.group};
}

DEVICE void cp_async_commit() { emulator_context->copies->group++; }

// Nothing arrives before it is waited for.
template <int N> DEVICE void cp_async_wait() {
    EmulatorCopies& copies = *emulator_context->copies;
    unsigned kept = 0;
    for (unsigned i = 0; i < copies.count; i++) {
        const auto copy = copies.pending[i];
        if (copy.group + N >= copies.group) {
            copies.pending[kept++] = copy;
        } else if (copy.from) {
            *static_cast<uint4*>(copy.to) = *static_cast<const uint4*>(copy.from);
        } else {
            *static_cast<uint4*>(copy.to) = uint4{};
        }
    }
    copies.count = kept;
}

#endif

}  // namespace
