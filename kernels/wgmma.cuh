// wgmma: products of a warpgroup, four warps in a row, with operands in shared memory (sm_90a); one named function per PTX
// instruction, as in mma.cuh.
//
// d += a b, a of 64 rows and b of N columns, 16 values of k, bf16 factors, f32 sums. Warp w of the warpgroup has rows 16 w to
// 16 w + 15; its d is N / 8 fragments as those of mma_m16n8k16. Operands lie as the copies of gemm.cuh and columns.cuh leave
// them, in rows of 128 bytes whose chunk16s are exchanged by the row's last three bits, from multiples of 1024 bytes on:
//   by rows     a row of 64 values of k for each row of a, or column of b; 16 values of k on are 32 bytes
//   by columns  panels of 64 rows of a, or columns of b, a line for each of 64 values of k; 16 values of k on are 16 lines
//
// Products run asynchronously, in the order of their issue: between wgmma_fence and the wait for them neither their operands nor
// d may be touched.
#pragma once

#include "mma.cuh"

namespace {

constexpr int WARPGROUP = 4 * WARP;

template <bool COLUMNS> constexpr int WGMMA_STEP = COLUMNS ? 16 * ROW_BYTES : 32;   // bytes between steps of 16 values of k
constexpr int WGMMA_GROUP = 8 * ROW_BYTES;                                         // bytes of eight lines, the period of the swizzle
constexpr int WGMMA_PANEL = 64 * ROW_BYTES;

#ifndef IM2SP_EMULATOR

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define WGMMA_ASM(...) asm volatile(__VA_ARGS__)
#else
// Kernels of this family are not launched on other architectures.
#define WGMMA_ASM(...) __trap()
#endif

// The matrix descriptor of the PTX ISA: address, distance of panels, distance of groups of eight lines, 128-byte swizzle.
template <bool COLUMNS> DEVICE uint64_t wgmma_descriptor(const unsigned char* at) {
    constexpr uint64_t panels = COLUMNS ? WGMMA_PANEL / 16 : 1;
    return uint64_t((shared_address(at) & 0x3ffff) >> 4) | panels << 16 | uint64_t(WGMMA_GROUP / 16) << 32 | uint64_t(1) << 62;
}

// Orders this thread's writes to shared memory before later reads of the tensor cores.
DEVICE void fence_async_proxy() { WGMMA_ASM("fence.proxy.async.shared::cta;" ::: "memory"); }
// Orders accesses to sums before later products.
DEVICE void wgmma_fence() { WGMMA_ASM("wgmma.fence.sync.aligned;" ::: "memory"); }
// Ends a group of products.
DEVICE void wgmma_commit() { WGMMA_ASM("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most the N youngest groups are under way.
template <int N> DEVICE void wgmma_wait() { WGMMA_ASM("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }

#define WGMMA_SUMS(j) "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])
#define WGMMA_SUMS_4(j) WGMMA_SUMS(j), WGMMA_SUMS((j) + 1), WGMMA_SUMS((j) + 2), WGMMA_SUMS((j) + 3)
#define WGMMA_SUMS_8(j) WGMMA_SUMS_4(j), WGMMA_SUMS_4((j) + 4)

template <bool A_COLUMNS, bool B_COLUMNS> DEVICE void wgmma_m64k16(float (&d)[8][4], const unsigned char* a, const unsigned char* b) {
    WGMMA_ASM(
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "
        "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
        "}, %32, %33, 1, 1, 1, %34, %35;"
        : WGMMA_SUMS_8(0)
        : "l"(wgmma_descriptor<A_COLUMNS>(a)), "l"(wgmma_descriptor<B_COLUMNS>(b)), "n"(A_COLUMNS), "n"(B_COLUMNS));
}

template <bool A_COLUMNS, bool B_COLUMNS> DEVICE void wgmma_m64k16(float (&d)[16][4], const unsigned char* a, const unsigned char* b) {
    WGMMA_ASM(
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "
        "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, "
        "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "
        "%62, %63"
        "}, %64, %65, 1, 1, 1, %66, %67;"
        : WGMMA_SUMS_8(0), WGMMA_SUMS_8(8)
        : "l"(wgmma_descriptor<A_COLUMNS>(a)), "l"(wgmma_descriptor<B_COLUMNS>(b)), "n"(A_COLUMNS), "n"(B_COLUMNS));
}

template <bool A_COLUMNS, bool B_COLUMNS> DEVICE void wgmma_m64k16(float (&d)[24][4], const unsigned char* a, const unsigned char* b) {
    WGMMA_ASM(
        "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "
        "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, "
        "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "
        "%62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, "
        "%82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
        "}, %96, %97, 1, 1, 1, %98, %99;"
        : WGMMA_SUMS_8(0), WGMMA_SUMS_8(8), WGMMA_SUMS_8(16)
        : "l"(wgmma_descriptor<A_COLUMNS>(a)), "l"(wgmma_descriptor<B_COLUMNS>(b)), "n"(A_COLUMNS), "n"(B_COLUMNS));
}

template <bool A_COLUMNS, bool B_COLUMNS> DEVICE void wgmma_m64k16(float (&d)[32][4], const unsigned char* a, const unsigned char* b) {
    WGMMA_ASM(
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "
        "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, "
        "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "
        "%62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, "
        "%82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, "
        "%101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, "
        "%117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
        "}, %128, %129, 1, 1, 1, %130, %131;"
        : WGMMA_SUMS_8(0), WGMMA_SUMS_8(8), WGMMA_SUMS_8(16), WGMMA_SUMS_8(24)
        : "l"(wgmma_descriptor<A_COLUMNS>(a)), "l"(wgmma_descriptor<B_COLUMNS>(b)), "n"(A_COLUMNS), "n"(B_COLUMNS));
}

// The same with a in registers, as mma_m16n8k16 takes it; they may not be touched before the wait either.
template <bool B_COLUMNS> DEVICE void wgmma_m64k16(float (&d)[8][4], const uint32_t (&a)[4], const unsigned char* b) {
    WGMMA_ASM(
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "
        "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
        "}, {%32, %33, %34, %35}, %36, 1, 1, 1, %37;"
        : WGMMA_SUMS_8(0)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(wgmma_descriptor<B_COLUMNS>(b)), "n"(B_COLUMNS));
}

// Keeps the compiler from moving accesses to d across it.
DEVICE void wgmma_pin(float (&d)[8][4]) {
#pragma unroll
    for (int j = 0; j < 8; j += 4) asm volatile("" : WGMMA_SUMS_4(j)::"memory");
}
DEVICE void wgmma_pin(uint32_t (&a)[4]) { asm volatile("" : "+r"(a[0]), "+r"(a[1]), "+r"(a[2]), "+r"(a[3])::"memory"); }

#undef WGMMA_SUMS
#undef WGMMA_SUMS_4
#undef WGMMA_SUMS_8
#undef WGMMA_ASM

#else

DEVICE void fence_async_proxy() { emulator_context->copies->unfenced = false; }
DEVICE void wgmma_fence() {}
DEVICE void wgmma_commit() { emulator_context->copies->product_group++; }
// Nothing is read or added before it is waited for.
template <int N> DEVICE void wgmma_wait(PLACE) { emulator_products_wait(N, file, line); }

template <bool A_COLUMNS, bool B_COLUMNS, int WIDTH>
DEVICE void wgmma_m64k16(float (&d)[WIDTH][4], const unsigned char* a, const unsigned char* b) {
    emulator_product(&d[0][0], a, nullptr, b, WIDTH, A_COLUMNS, B_COLUMNS);
}
template <bool B_COLUMNS> DEVICE void wgmma_m64k16(float (&d)[8][4], const uint32_t (&a)[4], const unsigned char* b) {
    emulator_product(&d[0][0], nullptr, a, b, 8, false, B_COLUMNS);
}
DEVICE void wgmma_pin(float (&)[8][4]) {}
DEVICE void wgmma_pin(uint32_t (&)[4]) {}

#endif

}  // namespace
