// The emulator's half of prelude.cuh: CUDA's words for a C++ compiler. Every CUDA thread is a coroutine of the runtime in
// src/backend/cuda/driver/emulator; it stops wherever the hardware would let it wait, and the runtime chooses the next.
#pragma once

#include "emulator/system.h"

#define DEVICE inline __attribute__((unused))
// What a helper of the emulator does to the runtime's memory is no access of the kernel's. Such a helper is not inlined
// where accesses are checked.
#define UNCHECKED __attribute__((no_sanitize("thread"))) DEVICE

// A kernel is a function of the address of its params; the table of the build declares it to Rust under both names.
#ifdef IM2SP_CHECKED
#define EMULATED_NAME(name) checked_##name
#else
#define EMULATED_NAME(name) plain_##name
#endif
#define KERNEL(name, Params, threads, blocks)                                                                 \
    static void name(const Params& params);                                                                  \
    extern "C" void EMULATED_NAME(name)(const void* bytes) { name(*static_cast<const Params*>(bytes)); } \
    static void name([[maybe_unused]] const Params& params)
#define PAIR_KERNEL(name, Params, threads) KERNEL(name, Params, threads, 1)

struct Index3 {
    unsigned x, y, z;
};

// What a thread waits for. The runtime's `Wait` has the same order. The lanes of a warp meet in both of the first; only
// the barrier orders their accesses to memory.
enum EmulatorWait { WAIT_WARP, WAIT_BLOCK, WAIT_SPIN, WAIT_WARP_BARRIER, WAIT_CLUSTER };

// What the lanes of a warp hand to each other: two sets, used in turn, so that one wait per exchange is enough.
struct EmulatorWarp {
    struct alignas(16) Set {
        uint64_t slot[32];
        uint32_t a[32][4], b[32][2];
        float d[32][4];
        unsigned char row[32][16];  // of ldmatrix
        unsigned arrived;
    } set[2];
};

// Asynchronous copies of a thread that are under way; `group` is the one that is being filled.
struct EmulatorCopies {
    static constexpr unsigned MOST = 256;
    unsigned count, group;
    struct {
        void* to;
        const void* from;  // null: zeros
        unsigned group, bytes;
    } pending[MOST];

    // The same of products of its warpgroup (wgmma.cuh).
    static constexpr unsigned MOST_PRODUCTS = 32;
    unsigned product_count, product_group;
    struct Product {
        float* d;
        const unsigned char* a;
        const uint32_t* registers;  // that hold a, if it is null
        const unsigned char* b;
        unsigned group, width;  // fragments of d
        bool a_columns, b_columns;
    } products[MOST_PRODUCTS];
    bool unfenced;           // copies arrived since the last fence_async_proxy
    bool unfenced_barriers;  // barriers were readied since the last fence_barriers
};

// What a thread knows of itself. The runtime's `Context` has the same layout, and more behind it.
struct EmulatorContext {
    Index3 thread, block, block_size, grid_size;
    unsigned phase;  // warp exchanges so far
    unsigned lane;
    unsigned char* shared;
    uint64_t shared_bytes;
    EmulatorWarp* warp;
    EmulatorCopies* copies;
    const unsigned char* stack;  // its own memory: the context lies at the upper end
    uint64_t stack_bytes;
    uint64_t checked;  // whether accesses to memory are
    uint64_t spins;    // reads of flags since it last waited
    unsigned char* const* cluster;  // shared memory of the blocks of its cluster; null of those that have ended
    unsigned rank, cluster_size;    // its block's among them
    uint64_t eager;                 // copies of boxes arrive as soon as they may, not as late
};

extern "C" {
extern __thread EmulatorContext* emulator_context __attribute__((tls_model("initial-exec")));
// Stops this thread until the runtime lets it go on; `what`, `file` and `line` name the place.
void emulator_wait(int wait, const char* what, const char* file, int line);
// Ends the launch: the running thread did what no kernel may.
void emulator_fault(const char* what);
// The emulated halves of mma.cuh, in runtime.cpp.
void emulator_mma_m16n8k16(float* d, const uint32_t* a, const uint32_t* b, const char* file, int line);
const uint16_t* emulator_ldmatrix(const void* row, const char* what, const char* file, int line);
void emulator_copy(void* to, const void* from, unsigned bytes);
void emulator_copies_wait(unsigned groups);
// And of wgmma.cuh.
void emulator_product(float* d, const unsigned char* a, const uint32_t* registers, const unsigned char* b, unsigned width,
                      bool a_columns, bool b_columns);
void emulator_products_wait(unsigned groups, const char* file, int line);
// And of cluster.cuh, in cluster.cpp.
void emulator_barrier_init(uint64_t* barrier, unsigned arrivals);
void emulator_barrier_arrive(uint64_t* barrier, unsigned rank, unsigned expected);
bool emulator_barrier_ended(uint64_t* barrier, unsigned parity);
void emulator_copy_box(void* to, const void* map, int line, int value, uint64_t* barrier, unsigned ranks);
void emulator_fence_device();
// A flag was read that another thread may be waited for to change.
void emulator_flag_read();
#ifdef IM2SP_CHECKED
void* emulator_memcpy(void* to, const void* from, size_t bytes);
void* emulator_memset(void* to, int byte, size_t bytes);
#define memcpy emulator_memcpy
#define memset emulator_memset
#endif
}

#define emulator_require(condition, what) \
    if (!(condition)) emulator_fault(what)

#define threadIdx (emulator_context->thread)
#define blockIdx (emulator_context->block)
#define blockDim (emulator_context->block_size)
#define gridDim (emulator_context->grid_size)

#define PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) uint2 {
    uint32_t x, y;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct bf16 {
    uint16_t bits;
};

namespace {

DEVICE float2 make_float2(float x, float y) { return {x, y}; }
DEVICE float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
DEVICE uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
DEVICE uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

DEVICE int min(int a, int b) { return a < b ? a : b; }
DEVICE int max(int a, int b) { return a > b ? a : b; }

template <typename To, typename From> DEVICE To bit_cast(From v) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To to;
    __builtin_memcpy(&to, &v, sizeof to);
    return to;
}
DEVICE float __uint_as_float(uint32_t v) { return bit_cast<float>(v); }
DEVICE uint32_t __float_as_uint(float v) { return bit_cast<uint32_t>(v); }
DEVICE float rsqrtf(float v) { return 1.0f / sqrtf(v); }
DEVICE float exp2_fast(float v) { return exp2f(v); }
DEVICE float __expf(float v) { return expf(v); }
DEVICE float __fdividef(float a, float b) { return a / b; }

DEVICE float to_float(bf16 v) { return __uint_as_float(uint32_t(v.bits) << 16); }
// To nearest, ties to even; NaN stays one.
DEVICE bf16 to_bf16(float v) {
    uint32_t bits = __float_as_uint(v);
    if (v != v) return {uint16_t((bits >> 16) | 0x40)};
    return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}
DEVICE uint32_t pack_bf16(float low, float high) { return to_bf16(low).bits | uint32_t(to_bf16(high).bits) << 16; }

template <typename T> DEVICE T& shared_memory() { return *reinterpret_cast<T*>(emulator_context->shared); }

DEVICE void sync_block(PLACE) { emulator_wait(WAIT_BLOCK, "sync_block", file, line); }
DEVICE void sync_warp(PLACE) { emulator_wait(WAIT_WARP_BARRIER, "sync_warp", file, line); }
DEVICE void spin_pause(PLACE) { emulator_wait(WAIT_SPIN, "spin_pause", file, line); }

template <typename T>
UNCHECKED T exchange(T v, int from, const char* what, const char* file, int line) {
    static_assert(sizeof(T) <= 8, "a slot holds 8 bytes");
    EmulatorContext& self = *emulator_context;
    uint64_t* slots = self.warp->set[self.phase++ & 1].slot;
    __builtin_memcpy(&slots[self.lane], &v, sizeof v);
    emulator_wait(WAIT_WARP, what, file, line);
    __builtin_memcpy(&v, &slots[from & 31], sizeof v);
    return v;
}
DEVICE float shuffle(float v, int lane, PLACE) { return exchange(v, lane, "shuffle", file, line); }
DEVICE int shuffle(int v, int lane, PLACE) { return exchange(v, lane, "shuffle", file, line); }
DEVICE float shuffle_xor(float v, int mask, PLACE) {
    return exchange(v, int(emulator_context->lane) ^ mask, "shuffle_xor", file, line);
}
DEVICE int shuffle_xor(int v, int mask, PLACE) {
    return exchange(v, int(emulator_context->lane) ^ mask, "shuffle_xor", file, line);
}
UNCHECKED unsigned ballot(bool v, PLACE) {
    EmulatorContext& self = *emulator_context;
    uint64_t* slots = self.warp->set[self.phase++ & 1].slot;
    slots[self.lane] = v;
    emulator_wait(WAIT_WARP, "ballot", file, line);
    unsigned votes = 0;
    for (unsigned lane = 0; lane < 32; lane++) votes |= unsigned(slots[lane] & 1) << lane;
    return votes;
}

DEVICE void fence_device() { emulator_fence_device(); }
DEVICE unsigned atomic_add(unsigned* at, unsigned v) { return __atomic_fetch_add(at, v, __ATOMIC_RELAXED); }
DEVICE unsigned atomic_exchange(unsigned* at, unsigned v) { return __atomic_exchange_n(at, v, __ATOMIC_RELAXED); }
DEVICE unsigned atomic_add_acq_rel(unsigned* at, unsigned v) { return __atomic_fetch_add(at, v, __ATOMIC_ACQ_REL); }
DEVICE unsigned load_acquire(const unsigned* at) {
    emulator_flag_read();
    return __atomic_load_n(at, __ATOMIC_ACQUIRE);
}
DEVICE void store_release(unsigned* at, unsigned v) { __atomic_store_n(at, v, __ATOMIC_RELEASE); }
// The emulator finds a thread that waits for ever by itself; its clock stands still.
DEVICE int64_t nanoseconds() { return 0; }
DEVICE unsigned host_load(const unsigned* at) {
    emulator_flag_read();
    return __atomic_load_n(at, __ATOMIC_RELAXED);
}
DEVICE void host_store(unsigned* at, unsigned v) { __atomic_store_n(at, v, __ATOMIC_RELAXED); }
DEVICE void host_store_release(unsigned* at, unsigned v) { __atomic_store_n(at, v, __ATOMIC_RELEASE); }
DEVICE unsigned warp_largest(unsigned v) {
    for (int mask = 16; mask > 0; mask /= 2) {
        const unsigned other = unsigned(shuffle_xor(int(v), mask));
        v = other > v ? other : v;
    }
    return v;
}
DEVICE uint4 load_streaming(const void* at) { return *static_cast<const uint4*>(at); }

}  // namespace
