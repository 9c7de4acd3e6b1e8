// mma: tensor-core products and asynchronous copies, one named function per PTX instruction; and the layout of operands in
// shared memory that these need.
//
// Fragments of mma_m16n8k16 (PTX ISA, "Matrix Fragments for mma.m16n8k16"), with g = lane / 4 and t = lane % 4:
//   a[0] (g, 2t..2t+1)  a[1] (g+8, 2t..)  a[2] (g, 2t+8..)  a[3] (g+8, 2t+8..)     16 x 16, row-major
//   b[0] (2t..2t+1, g)  b[1] (2t+8.., g)                                           16 x 8, column after column
//   d[0] (g, 2t)  d[1] (g, 2t+1)  d[2] (g+8, 2t)  d[3] (g+8, 2t+1)                 16 x 8
// ldmatrix: lane l names row l % 8 of 8x8 matrix l / 8; register i of a lane gets (g, 2t..2t+1) of matrix i, or of its
// transpose. A is loaded with matrices (rows 0-7, k 0-7), (rows 8-15, k 0-7), (rows 0-7, k 8-15), (rows 8-15, k 8-15).
// Products of four warps (sm_90a) are in wgmma.cuh.
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

// The same with 8 bytes, which take their way through L1.
DEVICE void cp_async_8(void* to, const void* from, bool valid) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid ? 8 : 0)
                 : "memory");
}

// The same with 4 bytes.
DEVICE void cp_async_4(void* to, const void* from, bool valid) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid ? 4 : 0)
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
    emulator_mma_m16n8k16(d, a, b, file, line);
}

DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* row, PLACE) {
    const uint16_t* rows = emulator_ldmatrix(row, "ldmatrix_x4", file, line);
    const unsigned g = emulator_context->lane / 4, t = emulator_context->lane % 4;
    for (int i = 0; i < 4; i++) __builtin_memcpy(&r[i], &rows[(i * 8 + g) * 8 + 2 * t], sizeof r[i]);
}

DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, PLACE) {
    const uint16_t* rows = emulator_ldmatrix(row, "ldmatrix_x4_trans", file, line);
    const unsigned g = emulator_context->lane / 4, t = emulator_context->lane % 4;
    for (int i = 0; i < 4; i++) {
        const uint16_t* low = &rows[(i * 8 + 2 * t) * 8 + g];
        r[i] = low[0] | uint32_t(low[8]) << 16;
    }
}

DEVICE void cp_async_16(void* to, const void* from, bool valid) { emulator_copy(to, valid ? from : nullptr, 16); }
DEVICE void cp_async_8(void* to, const void* from, bool valid) { emulator_copy(to, valid ? from : nullptr, 8); }
DEVICE void cp_async_4(void* to, const void* from, bool valid) { emulator_copy(to, valid ? from : nullptr, 4); }

DEVICE void cp_async_commit() { emulator_context->copies->group++; }

// Nothing arrives before it is waited for.
template <int N> DEVICE void cp_async_wait() { emulator_copies_wait(N); }

#endif

// ---- operands in shared memory: rows of 128 bytes, 64 bf16 or 32 f32 values of k. The eight chunk16s (16 bytes each) of a
// row are exchanged by an exclusive or with a few bits of the row, so that neither copies nor reads conflict in a bank.

constexpr int ROW_BYTES = 128;
constexpr int CHUNKS = 8;  // chunk16s of a row

template <typename T> constexpr int K_TILE = ROW_BYTES / int(sizeof(T));
template <typename T> constexpr int CHUNK_VALUES = 16 / int(sizeof(T));

// Which chunk16 of a row in shared memory holds chunk16 0. Eight rows that are read at once have eight different answers.
struct ConsecutiveRows {  // rows r, r + 1, ... r + 7
    DEVICE static int of(int row) { return row & 7; }
};
template <int RUN> struct ColumnsOfFragment {  // rows r, r + 1, r + RUN, r + RUN + 1, ... r + 3 RUN + 1
    static_assert(RUN == 8 || RUN == 4, "a power of two of columns");
    DEVICE static int of(int row) { return (row / (RUN / 2) & 6) | (row & 1); }
};
struct EveryEighthRow {  // rows r, r + 8, ... r + 56
    DEVICE static int of(int row) { return row >> 3 & 7; }
};

template <typename Swizzle> DEVICE int chunk16_offset(int row, int chunk) {
    return row * ROW_BYTES + (chunk ^ Swizzle::of(row)) * 16;
}

}  // namespace
