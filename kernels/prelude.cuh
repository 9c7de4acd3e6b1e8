// prelude: what every kernel file includes first. The only header that knows CUDA from the emulator.
//
// How a kernel is declared (build/table.rs reads these lines and makes the typed Rust table from them):
//
//   struct LayerNormParams {       one field a line: pointers, int, unsigned, float, long long, TensorMap; no implicit padding
//       const float* x;
//       int rows;
//       int channels;
//   };
//   SIZE_OF(LayerNormParams, 16);  asserted here and in Rust; also for shared-memory structs, as SIZE_OF_<NAME> in Rust
//   KERNEL(layer_norm_forward_f32, LayerNormParams, 256, 1) { ... params.x ... }
//                                  name, params, threads of a block, blocks wanted on each multiprocessor
//   PAIR_KERNEL(linear_forward_128x256_pair_bf16, LinearParams, 384) { ... }
//                                  the same, run by pairs of neighbouring blocks (cluster.cuh), one on each multiprocessor
//   TILE(linear_forward_64x128_bf16, Tile64x128, 64, 128, 73728, 144, "not yet measured");
//                                  a row of the tile table of an operation, here LINEAR_FORWARD_TILES in Rust: kernel, the
//                                  type with M, N and Shared, rows and columns of a block, bytes of its shared memory, its
//                                  relative time, and the figure that justifies it. The kernel's name says the geometry
//                                  again: 64x128; r16 for a block of 16 rows; b4 for a batch of 4
//
// KERNEL lines stand at file scope, one line each, unindented. Blocks are one-dimensional; grids have up to three
// dimensions. Shared memory is always dynamic: `Shared& s = shared_memory<Shared>();`, its size given by the launcher.
// Device helpers are marked DEVICE and live in an anonymous namespace.
#pragma once

#ifdef IM2SP_EMULATOR
#include "emulator/emulator.h"
#else

#include <cuda_bf16.h>
#include <stdint.h>

#define DEVICE __device__ __forceinline__

#define KERNEL(name, Params, threads, blocks) \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ Params params)

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define PAIR_KERNEL(name, Params, threads) \
    extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(threads, 1) name(const __grid_constant__ Params params)
#else
#define PAIR_KERNEL(name, Params, threads) KERNEL(name, Params, threads, 1)
#endif

using bf16 = __nv_bfloat16;

namespace {

template <typename T> DEVICE T& shared_memory() {
    extern __shared__ __align__(1024) unsigned char dynamic_shared_memory[];
    return *reinterpret_cast<T*>(dynamic_shared_memory);
}

DEVICE float to_float(bf16 v) { return __bfloat162float(v); }
DEVICE bf16 to_bf16(float v) { return __float2bfloat16_rn(v); }

// Two values rounded to bf16, the first in the low half.
DEVICE uint32_t pack_bf16(float low, float high) {
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

// 2 to the power v; exp(v) is exp2_fast(v * log2 e).
DEVICE float exp2_fast(float v) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(v));
    return y;
}

// One lane's value, seen by the whole warp. All 32 lanes take part.
DEVICE float shuffle(float v, int lane) { return __shfl_sync(0xffffffffu, v, lane); }
DEVICE float shuffle_xor(float v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
DEVICE int shuffle(int v, int lane) { return __shfl_sync(0xffffffffu, v, lane); }
DEVICE int shuffle_xor(int v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
DEVICE unsigned ballot(bool v) { return __ballot_sync(0xffffffffu, v); }
// The largest number of a warp; every lane gets it.
DEVICE unsigned warp_largest(unsigned v) { return __reduce_max_sync(0xffffffffu, v); }

DEVICE void sync_block() { __syncthreads(); }
DEVICE void sync_warp() { __syncwarp(); }
DEVICE void fence_device() { __threadfence(); }

// Atomic operations of device scope; the value before is returned.
DEVICE unsigned atomic_add(unsigned* at, unsigned v) { return atomicAdd(at, v); }
DEVICE unsigned atomic_exchange(unsigned* at, unsigned v) { return atomicExch(at, v); }

// Loads that order all later accesses, and stores that order all earlier ones, for the whole device.
DEVICE unsigned load_acquire(const unsigned* at) {
    unsigned v;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(at) : "memory");
    return v;
}
DEVICE void store_release(unsigned* at, unsigned v) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(at), "r"(v) : "memory");
}
// Adds with release and acquire order: the arrival at a counter of blocks.
DEVICE unsigned atomic_add_acq_rel(unsigned* at, unsigned v) {
    unsigned before;
    asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], %2;" : "=r"(before) : "l"(at), "r"(v) : "memory");
    return before;
}
// Stands inside every loop that waits for another thread.
DEVICE void spin_pause() { __nanosleep(20); }

// Nanoseconds of a clock that all multiprocessors share.
DEVICE int64_t nanoseconds() {
    int64_t now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    return now;
}

// Memory that the host sees while the kernel runs.
DEVICE unsigned host_load(const unsigned* at) {
    unsigned v;
    asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(at) : "memory");
    return v;
}
DEVICE void host_store(unsigned* at, unsigned v) {
    asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(at), "r"(v) : "memory");
}
// The same, after everything that was stored before it.
DEVICE void host_store_release(unsigned* at, unsigned v) {
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(at), "r"(v) : "memory");
}

// 16 bytes that are read once and need not stay in L1.
DEVICE uint4 load_streaming(const void* at) {
    uint4 v;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
        : "l"(at));
    return v;
}

}  // namespace
#endif

#define SIZE_OF(Type, bytes) static_assert(sizeof(Type) == (bytes), #Type)

#define TILE(kernel, Type, rows, columns, shared_bytes, time, evidence) \
    static_assert(Type::M == (rows) && Type::N == (columns) && sizeof(Type::Shared) == (shared_bytes), #kernel)

namespace {

constexpr int WARP = 32;
constexpr float LOG2_E = 1.4426950408889634f;

DEVICE int warp_index() { return threadIdx.x / WARP; }
DEVICE int lane_index() { return threadIdx.x % WARP; }

DEVICE float to_float(float v) { return v; }
template <typename T> DEVICE T from_float(float v);
template <> DEVICE float from_float<float>(float v) { return v; }
template <> DEVICE bf16 from_float<bf16>(float v) { return to_bf16(v); }

DEVICE float low_float(uint32_t packed) { return __uint_as_float(packed << 16); }
DEVICE float high_float(uint32_t packed) { return __uint_as_float(packed & 0xffff0000u); }

// Sum, or maximum, over a warp; every lane gets it. The order of additions is a fixed tree.
DEVICE float warp_sum(float v) {
    for (int mask = WARP / 2; mask > 0; mask /= 2) v += shuffle_xor(v, mask);
    return v;
}
DEVICE float warp_max(float v) {
    for (int mask = WARP / 2; mask > 0; mask /= 2) v = fmaxf(v, shuffle_xor(v, mask));
    return v;
}

// Waits for all blocks of a cooperative launch: what any of their threads did before is visible to all after. `counter` is a
// word of device memory that is zero before its first use, and ready for the next after each: the arrivals of a round add up
// to its highest bit, which therefore changes once a round, when the last block has come.
DEVICE void grid_barrier(unsigned* counter, unsigned blocks) {
    constexpr unsigned ROUND = 0x80000000u;
    sync_block();
    if (threadIdx.x == 0) {
        const bool first = blockIdx.x == 0 && blockIdx.y == 0 && blockIdx.z == 0;
        const unsigned before = atomic_add_acq_rel(counter, first ? ROUND - (blocks - 1) : 1);
        while (((load_acquire(counter) ^ before) & ROUND) == 0) spin_pause();
    }
    sync_block();
}

}  // namespace
