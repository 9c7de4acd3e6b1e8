// cluster: pairs of blocks that share what they read (sm_90a); one named function per PTX instruction, as in mma.cuh.
//
// Two neighbouring blocks of a PAIR_KERNEL run at the same time. The tensor memory accelerator copies boxes of a matrix of
// bf16 to the shared memory of one or of both: lines of 64 values, 128 bytes, whose chunk16s are exchanged by the line's last
// three bits, as wgmma.cuh reads them; zeros where the matrix has no values. Barriers say when they are there:
//   - a barrier counts arrivals and bytes of copies; its phase ends when both have come, and the next begins by itself
//   - a wait names the parity of its phase, 0 for the first; a wait for the phase before the first has ended already
#pragma once

#include "mma.cuh"

// How to read boxes of a matrix, made by the driver: the launchers fill it in.
struct alignas(128) TensorMap {
    uint64_t words[16];
};

namespace {

constexpr int PAIR = 2;                                     // blocks
constexpr int LINE_VALUES = ROW_BYTES / int(sizeof(bf16));  // of a box

#ifndef IM2SP_EMULATOR

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define CLUSTER_ASM(...) asm volatile(__VA_ARGS__)
#else
// Kernels of this family are not launched on other architectures.
#define CLUSTER_ASM(...) __trap()
#endif

// The place of this block in the pair: 0 or 1.
DEVICE unsigned block_rank() {
    unsigned rank = 0;
    CLUSTER_ASM("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
// Waits for all threads of both blocks. Barriers that were readied and fenced before are ready for all after; nothing else is
// ordered, which would cost a fence of the whole device.
DEVICE void sync_pair() {
    CLUSTER_ASM("barrier.cluster.arrive.relaxed;\n\tbarrier.cluster.wait.acquire;" ::: "memory");
}

// Readies a barrier for phases of `arrivals`. Then fence_barriers, and sync_pair before anybody uses it.
DEVICE void barrier_init(uint64_t* barrier, unsigned arrivals) {
    CLUSTER_ASM("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
DEVICE void fence_barriers() { CLUSTER_ASM("fence.mbarrier_init.release.cluster;" ::: "memory"); }
// Arrives, and has the phase wait for so many bytes of copies too.
DEVICE void barrier_expect(uint64_t* barrier, unsigned bytes) {
    CLUSTER_ASM("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
}
// Arrives at the barrier that block `rank` of the pair has in this place. Says that products and copies of this thread have
// ended; stores are ordered for its own block alone, since a release to the other is a fence of the whole device.
DEVICE void barrier_arrive(uint64_t* barrier, unsigned rank) {
    CLUSTER_ASM(
        "{\n\t.reg .b32 there;\n\t"
        "mapa.shared::cluster.u32 there, %0, %1;\n\t"
        "mbarrier.arrive.shared::cluster.b64 _, [there];\n\t}" ::"r"(shared_address(barrier)),
        "r"(rank)
        : "memory");
}
// Waits for the end of the phase of this parity. A try suspends the thread for some time by itself.
DEVICE void barrier_wait(uint64_t* barrier, unsigned parity) {
    unsigned done = 0;
    while (!done) {
        CLUSTER_ASM(
            "{\n\t.reg .pred ended;\n\t"
            "mbarrier.try_wait.parity.shared::cta.b64 ended, [%1], %2;\n\t"
            "selp.u32 %0, 1, 0, ended;\n\t}"
            : "=r"(done)
            : "r"(shared_address(barrier)), "r"(parity)
            : "memory");
    }
}

// Fetches the map itself ahead.
DEVICE void prefetch_map(const TensorMap& map) {
    CLUSTER_ASM("prefetch.tensormap [%0];" ::"l"(reinterpret_cast<uint64_t>(&map)) : "memory");
}
// Begins the copy of the box from (line, value) on, for a phase of `barrier`.
DEVICE void copy_box(void* to, const TensorMap& map, int line, int value, uint64_t* barrier) {
    CLUSTER_ASM(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
            shared_address(to)),
        "l"(reinterpret_cast<uint64_t>(&map)), "r"(shared_address(barrier)), "r"(value), "r"(line)
        : "memory");
}
// The same to this place of both blocks, for the barriers in that place of both.
DEVICE void copy_box_to_pair(void* to, const TensorMap& map, int line, int value, uint64_t* barrier) {
    CLUSTER_ASM(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%4, %5}], [%2], %3;" ::"r"(shared_address(to)),
        "l"(reinterpret_cast<uint64_t>(&map)), "r"(shared_address(barrier)), "h"(uint16_t((1 << PAIR) - 1)), "r"(value),
        "r"(line)
        : "memory");
}

// Registers of each thread of this warpgroup from here on: fewer than the kernel began with, or more.
template <int COUNT> DEVICE void give_registers() { CLUSTER_ASM("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT)); }
template <int COUNT> DEVICE void take_registers() { CLUSTER_ASM("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT)); }

#undef CLUSTER_ASM

#else

DEVICE unsigned block_rank() { return emulator_context->rank; }
DEVICE void sync_pair(PLACE) {
    emulator_require(!emulator_context->copies->unfenced_barriers, "sync_pair after barrier_init without fence_barriers");
    emulator_wait(WAIT_CLUSTER, "sync_pair", file, line);
}
DEVICE void barrier_init(uint64_t* barrier, unsigned arrivals) { emulator_barrier_init(barrier, arrivals); }
DEVICE void fence_barriers() { emulator_context->copies->unfenced_barriers = false; }
DEVICE void barrier_expect(uint64_t* barrier, unsigned bytes) { emulator_barrier_arrive(barrier, emulator_context->rank, bytes); }
DEVICE void barrier_arrive(uint64_t* barrier, unsigned rank) { emulator_barrier_arrive(barrier, rank, 0); }
DEVICE void barrier_wait(uint64_t* barrier, unsigned parity, PLACE) {
    while (!emulator_barrier_ended(barrier, parity)) emulator_wait(WAIT_SPIN, "barrier_wait", file, line);
}
DEVICE void prefetch_map(const TensorMap&) {}
DEVICE void copy_box(void* to, const TensorMap& map, int line, int value, uint64_t* barrier) {
    emulator_copy_box(to, &map, line, value, barrier, 1u << emulator_context->rank);
}
DEVICE void copy_box_to_pair(void* to, const TensorMap& map, int line, int value, uint64_t* barrier) {
    emulator_copy_box(to, &map, line, value, barrier, (1u << PAIR) - 1);
}
template <int COUNT> DEVICE void give_registers() {}
template <int COUNT> DEVICE void take_registers() {}

#endif

}  // namespace
