// faulty_pair: kernels with one mistake each in how a pair of blocks shares what it reads, and one without (`_right`), for
// tests/emulator.rs. Built for the emulator alone.
#include "cluster.cuh"

struct FaultyPairParams {
    TensorMap map;  // of lines of 64 values, in boxes of 32 lines
    float* y;       // (2, 128)
    int lines;      // a multiple of 64
    int unused[29];
};
SIZE_OF(FaultyPairParams, 256);

namespace {

constexpr int THREADS = 128, BOX = 32;

struct Boxes {
    bf16 at[PAIR * BOX][LINE_VALUES];
    uint64_t full, empty;
};
SIZE_OF(Boxes, 8208);

enum Mistake { NONE, UNFENCED, OVERWRITTEN, NOT_WAITED, TOO_MANY, TOO_FEW_BYTES, LEFT };

// Each block copies every second box to both; a thread adds up half of each line that is its own.
template <Mistake MISTAKE> DEVICE void boxes(const FaultyPairParams& params) {
    Boxes& shared = shared_memory<Boxes>();
    const unsigned rank = block_rank();
    if (threadIdx.x == 0) {
        barrier_init(&shared.full, 1);
        barrier_init(&shared.empty, PAIR * THREADS / WARP);
        if (MISTAKE != UNFENCED) fence_barriers();
    }
    sync_pair();
    unsigned parity = 0;
    float sum = 0.0f;
    for (int line = 0; line < params.lines; line += PAIR * BOX, parity ^= 1) {
        if (threadIdx.x == 0) {
            if (MISTAKE != OVERWRITTEN) barrier_wait(&shared.empty, parity ^ 1);
            barrier_expect(&shared.full, sizeof(shared.at) / (MISTAKE == TOO_FEW_BYTES ? 2 : 1));
            if (MISTAKE == TOO_MANY) barrier_expect(&shared.full, 0);
            copy_box_to_pair(shared.at[rank * BOX], params.map, line + int(rank) * BOX, 0, &shared.full);
        }
        if (MISTAKE != NOT_WAITED) barrier_wait(&shared.full, parity);
        for (int i = 0; i < LINE_VALUES / 2; i++) {
            // In any order, for the chunks have changed places.
            sum += to_float(shared.at[threadIdx.x / 2][threadIdx.x % 2 * (LINE_VALUES / 2) + i]);
        }
        sync_warp();
        if (lane_index() < PAIR) barrier_arrive(&shared.empty, lane_index());
    }
    params.y[rank * THREADS + threadIdx.x] = sum;
    // Until then the other block may arrive at this one's barrier.
    if (MISTAKE != LEFT && threadIdx.x == 0) barrier_wait(&shared.empty, parity ^ 1);
}

}  // namespace

// Grid: a pair. Shared memory: Boxes.
PAIR_KERNEL(faulty_pair_unfenced, FaultyPairParams, 128) { boxes<UNFENCED>(params); }
PAIR_KERNEL(faulty_pair_overwritten, FaultyPairParams, 128) { boxes<OVERWRITTEN>(params); }
PAIR_KERNEL(faulty_pair_not_waited, FaultyPairParams, 128) { boxes<NOT_WAITED>(params); }
PAIR_KERNEL(faulty_pair_too_many, FaultyPairParams, 128) { boxes<TOO_MANY>(params); }
PAIR_KERNEL(faulty_pair_too_few_bytes, FaultyPairParams, 128) { boxes<TOO_FEW_BYTES>(params); }
PAIR_KERNEL(faulty_pair_left, FaultyPairParams, 128) { boxes<LEFT>(params); }
PAIR_KERNEL(faulty_pair_right, FaultyPairParams, 128) { boxes<NONE>(params); }
