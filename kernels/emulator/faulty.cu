// planted: kernels with one mistake each, and their twins without it (`_right`), for tests/emulator.rs. The emulator has
// to find every mistake, to name it, and to pass the twins. Built for the emulator alone.
#include "wgmma.cuh"

struct FaultyParams {
    const float* x;
    float* y;
    unsigned* flag;
    int count;
    int unused;
};
SIZE_OF(FaultyParams, 32);

namespace {

constexpr int THREADS = 128;

struct Values {
    float at[THREADS];
};
SIZE_OF(Values, 512);

// Every thread hands a value to another warp.
template <bool RIGHT> DEVICE void block_barrier(const FaultyParams& params) {
    Values& values = shared_memory<Values>();
    values.at[threadIdx.x] = params.x[threadIdx.x];
    if (RIGHT) sync_block();
    params.y[threadIdx.x] = values.at[(threadIdx.x + 37) % THREADS];
}

// What is read is written anew before the others have read it.
template <bool RIGHT> DEVICE void second_barrier(const FaultyParams& params) {
    Values& values = shared_memory<Values>();
    values.at[threadIdx.x] = params.x[threadIdx.x];
    sync_block();
    const float other = values.at[THREADS - 1 - threadIdx.x];
    if (RIGHT) sync_block();
    values.at[threadIdx.x] = other + 1.0f;
    sync_block();
    params.y[threadIdx.x] = values.at[THREADS - 1 - threadIdx.x];
}

// A shuffle makes the lanes meet, but orders no memory.
template <bool RIGHT> DEVICE void warp_barrier(const FaultyParams& params) {
    Values& values = shared_memory<Values>();
    values.at[threadIdx.x] = params.x[threadIdx.x];
    const float one = shuffle(1.0f, 0);
    if (RIGHT) sync_warp();
    params.y[threadIdx.x] = one * values.at[threadIdx.x ^ 1];
}

// Only the halves of each warp hand values to each other, after a barrier of the warp: another warp's are not covered.
template <bool RIGHT> DEVICE void warp_barrier_for_block(const FaultyParams& params) {
    Values& values = shared_memory<Values>();
    values.at[threadIdx.x] = params.x[threadIdx.x];
    sync_warp();
    params.y[threadIdx.x] = values.at[threadIdx.x ^ (RIGHT ? 16 : 32)];
}

template <bool RIGHT> DEVICE void same_place(const FaultyParams& params) {
    if (threadIdx.x == 0) params.y[RIGHT ? blockIdx.x : 0] = 1.0f;
}

enum Release { RELAXED, FENCED, RELEASED, TOO_EARLY };

// Every block leaves a partial sum; the last to come adds them up.
template <Release HOW> DEVICE void last_block(const FaultyParams& params) {
    Values& values = shared_memory<Values>();
    const int blocks = gridDim.x;
    float* partials = params.y + THREADS;
    partials[blockIdx.x * THREADS + threadIdx.x] = params.x[blockIdx.x * THREADS + threadIdx.x];
    if (HOW != TOO_EARLY) sync_block();
    if (threadIdx.x == 0) {
        unsigned before;
        if (HOW == FENCED) {
            fence_device();
            before = atomic_add(params.flag, 1);
            fence_device();
        } else {
            before = HOW == RELAXED ? atomic_add(params.flag, 1) : atomic_add_acq_rel(params.flag, 1);
        }
        values.at[0] = before == unsigned(blocks) - 1 ? 1.0f : 0.0f;
    }
    sync_block();
    if (values.at[0] == 0.0f) return;
    float sum = 0.0f;
    for (int block = 0; block < blocks; block++) sum += partials[block * THREADS + threadIdx.x];
    params.y[threadIdx.x] = sum;
}

// One thread writes and raises a flag, of its own block or another.
template <bool RIGHT> DEVICE void flag(const FaultyParams& params) {
    const int blocks = gridDim.x;
    if (threadIdx.x == 0 && int(blockIdx.x) < blocks - 1) {
        params.y[blockIdx.x + 1] = 2.0f;
        if (RIGHT) store_release(&params.flag[blockIdx.x], 1);
        else atomic_exchange(&params.flag[blockIdx.x], 1);
    }
    if (threadIdx.x == 32 && blockIdx.x > 0) {
        while (load_acquire(&params.flag[blockIdx.x - 1]) == 0) spin_pause();
        params.y[blocks + blockIdx.x] = params.y[blockIdx.x];
    }
}

// Every block reads what its neighbour wrote, round after round.
template <bool RIGHT> DEVICE void grid(const FaultyParams& params) {
    const int blocks = gridDim.x, next = (blockIdx.x + 1) % blocks;
    for (int round = 0; round < 3; round++) {
        params.y[blockIdx.x * THREADS + threadIdx.x] = float(round * 1000 + blockIdx.x * THREADS + threadIdx.x);
        grid_barrier(params.flag, blocks);
        const float seen = params.y[next * THREADS + THREADS - 1 - threadIdx.x];
        // The neighbour must not write anew before this has been read.
        if (RIGHT) grid_barrier(params.flag, blocks);
        if (round == 2) params.y[(blocks + blockIdx.x) * THREADS + threadIdx.x] = seen;
    }
}

template <bool RIGHT> DEVICE void out_of_bounds_write(const FaultyParams& params) {
    const int at = blockIdx.x * THREADS + threadIdx.x;
    if (at < params.count + (RIGHT ? 0 : 1)) params.y[at] = 1.0f;
}

template <bool RIGHT> DEVICE void out_of_bounds_read(const FaultyParams& params) {
    const int at = blockIdx.x * THREADS + threadIdx.x;
    const float v = at < params.count + (RIGHT ? 0 : 1) ? params.x[at] : 0.0f;
    if (at < params.count) params.y[at] = v;
}

template <bool RIGHT> DEVICE void shared_out_of_bounds(const FaultyParams& params) {
    float* values = &shared_memory<float>();
    values[threadIdx.x + (RIGHT ? 0 : 4)] = 1.0f;
    params.y[threadIdx.x] = 1.0f;
}

struct Tile {
    float at[8][16];
};

// A column beyond the row is the next row's first, which no bound of memory shows.
template <bool RIGHT> DEVICE void array_index(const FaultyParams& params) {
    Tile& tile = shared_memory<Tile>();
    const int row = threadIdx.x / 16, column = threadIdx.x % 16;
    tile.at[row][column] = params.x[threadIdx.x];
    sync_block();
    params.y[threadIdx.x] = tile.at[row][column + (RIGHT || row == 7 ? 0 : 1)];
}

template <bool RIGHT> DEVICE void set_memory(const FaultyParams& params) {
    if (threadIdx.x == 0) memset(params.y, 0, (params.count + (RIGHT ? 0 : 1)) * sizeof(float));
}

struct Wide {
    float at[9];
};

template <bool RIGHT> DEVICE void wide_copy(const FaultyParams& params) {
    const Wide* from = reinterpret_cast<const Wide*>(params.x);
    Wide* to = reinterpret_cast<Wide*>(params.y);
    const int wides = params.count / 9 + (RIGHT ? 0 : 1);
    if (int(threadIdx.x) < wides) to[threadIdx.x] = from[threadIdx.x];
}

template <bool RIGHT> DEVICE void divergent_block(const FaultyParams& params) {
    if (!RIGHT && threadIdx.x >= 64) return;
    sync_block();
    params.y[threadIdx.x] = 1.0f;
}

template <bool RIGHT> DEVICE void divergent_warp(const FaultyParams& params) {
    if (RIGHT || lane_index() < 16) sync_warp();
    sync_block();
    params.y[threadIdx.x] = 1.0f;
}

// Two barriers, of which each thread reaches another.
template <bool RIGHT> DEVICE void two_barriers(const FaultyParams& params) {
    if (lane_index() < 16 || RIGHT) {
        sync_warp();
    } else {
        shuffle(1.0f, 0);
    }
    params.y[threadIdx.x] = 1.0f;
}

template <bool RIGHT> DEVICE void ended_lane(const FaultyParams& params) {
    if (!RIGHT && threadIdx.x == 5) return;
    params.y[threadIdx.x] = shuffle(1.0f, 5);
}

template <bool RIGHT> DEVICE void uninitialised(const FaultyParams& params) {
    // The test writes `count` values.
    if (int(threadIdx.x) < params.count + (RIGHT ? 0 : 1)) params.y[threadIdx.x] = params.x[threadIdx.x];
}

template <bool RIGHT> DEVICE void uninitialised_shared(const FaultyParams& params) {
    Values& values = shared_memory<Values>();
    if (RIGHT || threadIdx.x % 4 != 3) values.at[threadIdx.x] = 1.0f;
    sync_block();
    // Four lanes of a vector, one of them unused.
    const float4 v = reinterpret_cast<const float4*>(values.at)[threadIdx.x / 4];
    params.y[threadIdx.x] = v.x + v.y + v.z;
}

template <bool RIGHT> DEVICE void waits_for_ever(const FaultyParams& params) {
    if (threadIdx.x == 3 && RIGHT) store_release(params.flag, 1);
    if (threadIdx.x == 77) {
        while (load_acquire(params.flag) == 0) spin_pause();
    }
    sync_block();
    params.y[threadIdx.x] = 1.0f;
}

template <bool RIGHT> DEVICE void waits_without_pause(const FaultyParams& params) {
    if (threadIdx.x == 77) {
        while (load_acquire(params.flag) == 0) {
            if (RIGHT) spin_pause();
        }
    }
    if (threadIdx.x == 99) store_release(params.flag, 1);
}

// Each of two blocks waits for the other's flag before it raises its own.
template <bool RIGHT> DEVICE void blocks_wait(const FaultyParams& params) {
    if (threadIdx.x == 0) {
        if (RIGHT) store_release(&params.flag[blockIdx.x], 1);
        while (load_acquire(&params.flag[1 - blockIdx.x]) == 0) spin_pause();
        if (!RIGHT) store_release(&params.flag[blockIdx.x], 1);
    }
    sync_block();
    if (threadIdx.x == 0) params.y[blockIdx.x] = 1.0f;
}

// Beyond the end of all memory; and a division that a GPU would let pass.
template <bool RIGHT> DEVICE void wild_pointer(const FaultyParams& params) {
    const int64_t far = RIGHT ? 0 : int64_t(1) << 44;
    params.y[threadIdx.x + far] = 1.0f;
}
template <bool RIGHT> DEVICE void division(const FaultyParams& params) {
    const int divisor = int(threadIdx.x) - (RIGHT ? -1 : 20);
    params.y[threadIdx.x] = float(params.count / divisor);
}

enum Copy { WAITED, NOT_WAITED, NO_BARRIER, OVERWRITTEN };

template <Copy HOW> DEVICE void copies(const FaultyParams& params) {
    Values& values = shared_memory<Values>();
    if (threadIdx.x < THREADS / 4) cp_async_16(&values.at[threadIdx.x * 4], params.x + threadIdx.x * 4, true);
    cp_async_commit();
    if (HOW == OVERWRITTEN) values.at[threadIdx.x] = 1.0f;
    if (HOW != NOT_WAITED) cp_async_wait<0>();
    if (HOW != NO_BARRIER) sync_block();
    params.y[threadIdx.x] = values.at[THREADS - 1 - threadIdx.x];
    cp_async_wait<0>();
}

template <bool RIGHT> DEVICE void misaligned(const FaultyParams& params) {
    const float* x = params.x + (RIGHT ? 0 : 1);
    const float4 v = reinterpret_cast<const float4*>(x)[threadIdx.x];
    params.y[threadIdx.x] = v.x + v.y + v.z + v.w;
}

// A warp reads rows that another lane writes.
template <bool RIGHT> DEVICE void matrix_rows(const FaultyParams& params) {
    Values& values = shared_memory<Values>();
    values.at[threadIdx.x] = params.x[threadIdx.x];
    if (RIGHT) sync_warp();
    uint32_t r[4];
    ldmatrix_x4(r, &values.at[warp_index() * WARP + lane_index() % 8 * 4]);
    params.y[threadIdx.x] = __uint_as_float(r[0]) + __uint_as_float(r[3]);
}

// A frame that no stack holds.
template <bool RIGHT> DEVICE void large_frame(const FaultyParams& params) {
    constexpr int LARGE = RIGHT ? 1 << 10 : 1 << 17;
    volatile float frame[LARGE];
    for (int i = 0; i < LARGE; i += 64) frame[i] = float(i);
    params.y[threadIdx.x] = frame[64 * (threadIdx.x % 16)];
}

constexpr int TILE = 64;        // rows and columns of a block's part of a product
constexpr int STEP = 32;        // of K at a time
constexpr int PITCH = STEP + 8;  // elements between rows: a row further is four banks further on

struct Stages {
    uint16_t a[2][TILE][PITCH], b[2][TILE][PITCH];
};
SIZE_OF(Stages, 20480);

// y = a b^T for a (count, count) and b (count, count) in bf16, one behind the other at x, as real kernels do it: tiles come
// by asynchronous copies, two stages, tensor cores. With a barrier less, the next stage overwrites what is still read.
template <bool RIGHT> DEVICE void product(const FaultyParams& params) {
    Stages& stages = shared_memory<Stages>();
    const int size = params.count, lane = lane_index(), warp = warp_index();
    const uint16_t* a = reinterpret_cast<const uint16_t*>(params.x) + blockIdx.y * TILE * size;
    const uint16_t* b = reinterpret_cast<const uint16_t*>(params.x) + size * size + blockIdx.x * TILE * size;
    auto fetch = [&](int stage, int k) {
        for (int at = threadIdx.x; at < TILE * STEP / 8; at += THREADS) {
            const int row = at / (STEP / 8), column = at % (STEP / 8) * 8;
            cp_async_16(&stages.a[stage][row][column], &a[row * size + k + column], true);
            cp_async_16(&stages.b[stage][row][column], &b[row * size + k + column], true);
        }
        cp_async_commit();
    };
    float sums[2][4][4] = {};
    const int rows = warp / 2 * 32, columns = warp % 2 * 32;
    fetch(0, 0);
    for (int k = 0; k < size; k += STEP) {
        const int stage = k / STEP % 2;
        cp_async_wait<0>();
        if (RIGHT || k == 0) sync_block();
        if (k + STEP < size) fetch(1 - stage, k + STEP);
        for (int inner = 0; inner < STEP; inner += 16) {
            uint32_t fa[2][4], fb[2][4];
            for (int i = 0; i < 2; i++) {
                const int row = i * 16 + lane % 16, column = inner + lane / 16 * 8;
                ldmatrix_x4(fa[i], &stages.a[stage][rows + row][column]);
                ldmatrix_x4(fb[i], &stages.b[stage][columns + row][column]);
            }
            for (int i = 0; i < 2; i++) {
                for (int j = 0; j < 4; j++) {
                    const uint32_t half[2] = {fb[j / 2][j % 2], fb[j / 2][j % 2 + 2]};
                    mma_m16n8k16(sums[i][j], fa[i], half);
                }
            }
        }
    }
    for (int i = 0; i < 2; i++) {
        for (int j = 0; j < 4; j++) {
            const int row = blockIdx.y * TILE + rows + i * 16 + lane / 4;
            const int column = blockIdx.x * TILE + columns + j * 8 + lane % 4 * 2;
            *reinterpret_cast<float2*>(&params.y[row * size + column]) = make_float2(sums[i][j][0], sums[i][j][1]);
            *reinterpret_cast<float2*>(&params.y[(row + 8) * size + column]) = make_float2(sums[i][j][2], sums[i][j][3]);
        }
    }
}

struct Operands {
    unsigned char a[WGMMA_PANEL], b[WGMMA_PANEL];
};
SIZE_OF(Operands, 16384);

enum Warpgroup { UNFENCED, WITHOUT_BARRIER, TOUCHED, COMPLETE };

// y = a b^T, of 64 rows of 64 values each.
template <Warpgroup HOW> DEVICE void warpgroup(const FaultyParams& params) {
    Operands& shared = shared_memory<Operands>();
    const bf16* x = reinterpret_cast<const bf16*>(params.x);
    for (int i = threadIdx.x; i < 2 * 64 * CHUNKS; i += THREADS) {
        const int row = i / CHUNKS, chunk = i % CHUNKS;
        cp_async_16(shared.a + chunk16_offset<ConsecutiveRows>(row, chunk), x + row * 64 + chunk * 8, true);
    }
    cp_async_commit();
    cp_async_wait<0>();
    if (HOW != UNFENCED) fence_async_proxy();
    if (HOW != WITHOUT_BARRIER) sync_block();
    float sums[8][4] = {};
    wgmma_fence();
    for (int step = 0; step < 4; step++) {
        wgmma_m64k16<false, false>(sums, shared.a + step * WGMMA_STEP<false>, shared.b + step * WGMMA_STEP<false>);
    }
    wgmma_commit();
    if (HOW == TOUCHED) reinterpret_cast<float*>(shared.b)[threadIdx.x] = 0.0f;
    wgmma_wait<0>();
    const int row = warp_index() * 16 + lane_index() / 4;
    for (int j = 0; j < 8; j++) {
        float* y = params.y + row * 64 + j * 8 + lane_index() % 4 * 2;
        y[0] = sums[j][0], y[1] = sums[j][1], y[8 * 64] = sums[j][2], y[8 * 64 + 1] = sums[j][3];
    }
}

}  // namespace

// Grid of all: as the test likes. Shared memory: Values.
KERNEL(faulty_block_barrier, FaultyParams, 128, 1) { block_barrier<false>(params); }
KERNEL(faulty_block_barrier_right, FaultyParams, 128, 1) { block_barrier<true>(params); }
KERNEL(faulty_second_barrier, FaultyParams, 128, 1) { second_barrier<false>(params); }
KERNEL(faulty_second_barrier_right, FaultyParams, 128, 1) { second_barrier<true>(params); }
KERNEL(faulty_warp_barrier, FaultyParams, 128, 1) { warp_barrier<false>(params); }
KERNEL(faulty_warp_barrier_right, FaultyParams, 128, 1) { warp_barrier<true>(params); }
KERNEL(faulty_warp_barrier_for_block, FaultyParams, 128, 1) { warp_barrier_for_block<false>(params); }
KERNEL(faulty_warp_barrier_for_block_right, FaultyParams, 128, 1) { warp_barrier_for_block<true>(params); }
KERNEL(faulty_same_place, FaultyParams, 128, 1) { same_place<false>(params); }
KERNEL(faulty_same_place_right, FaultyParams, 128, 1) { same_place<true>(params); }
KERNEL(faulty_last_block, FaultyParams, 128, 1) { last_block<RELAXED>(params); }
KERNEL(faulty_last_block_too_early, FaultyParams, 128, 1) { last_block<TOO_EARLY>(params); }
KERNEL(faulty_last_block_right, FaultyParams, 128, 1) { last_block<RELEASED>(params); }
KERNEL(faulty_last_block_fenced_right, FaultyParams, 128, 1) { last_block<FENCED>(params); }
KERNEL(faulty_flag, FaultyParams, 128, 1) { flag<false>(params); }
KERNEL(faulty_flag_right, FaultyParams, 128, 1) { flag<true>(params); }
KERNEL(faulty_grid, FaultyParams, 128, 1) { grid<false>(params); }
KERNEL(faulty_grid_right, FaultyParams, 128, 1) { grid<true>(params); }
KERNEL(faulty_out_of_bounds_write, FaultyParams, 128, 1) { out_of_bounds_write<false>(params); }
KERNEL(faulty_out_of_bounds_write_right, FaultyParams, 128, 1) { out_of_bounds_write<true>(params); }
KERNEL(faulty_out_of_bounds_read, FaultyParams, 128, 1) { out_of_bounds_read<false>(params); }
KERNEL(faulty_out_of_bounds_read_right, FaultyParams, 128, 1) { out_of_bounds_read<true>(params); }
KERNEL(faulty_shared_out_of_bounds, FaultyParams, 128, 1) { shared_out_of_bounds<false>(params); }
KERNEL(faulty_shared_out_of_bounds_right, FaultyParams, 128, 1) { shared_out_of_bounds<true>(params); }
KERNEL(faulty_array_index, FaultyParams, 128, 1) { array_index<false>(params); }
KERNEL(faulty_array_index_right, FaultyParams, 128, 1) { array_index<true>(params); }
KERNEL(faulty_set_memory, FaultyParams, 128, 1) { set_memory<false>(params); }
KERNEL(faulty_set_memory_right, FaultyParams, 128, 1) { set_memory<true>(params); }
KERNEL(faulty_wide_copy, FaultyParams, 128, 1) { wide_copy<false>(params); }
KERNEL(faulty_wide_copy_right, FaultyParams, 128, 1) { wide_copy<true>(params); }
KERNEL(faulty_divergent_block, FaultyParams, 128, 1) { divergent_block<false>(params); }
KERNEL(faulty_divergent_block_right, FaultyParams, 128, 1) { divergent_block<true>(params); }
KERNEL(faulty_divergent_warp, FaultyParams, 128, 1) { divergent_warp<false>(params); }
KERNEL(faulty_divergent_warp_right, FaultyParams, 128, 1) { divergent_warp<true>(params); }
KERNEL(faulty_two_barriers, FaultyParams, 128, 1) { two_barriers<false>(params); }
KERNEL(faulty_two_barriers_right, FaultyParams, 128, 1) { two_barriers<true>(params); }
KERNEL(faulty_ended_lane, FaultyParams, 128, 1) { ended_lane<false>(params); }
KERNEL(faulty_ended_lane_right, FaultyParams, 128, 1) { ended_lane<true>(params); }
KERNEL(faulty_uninitialised, FaultyParams, 128, 1) { uninitialised<false>(params); }
KERNEL(faulty_uninitialised_right, FaultyParams, 128, 1) { uninitialised<true>(params); }
KERNEL(faulty_uninitialised_shared, FaultyParams, 128, 1) { uninitialised_shared<false>(params); }
KERNEL(faulty_uninitialised_shared_right, FaultyParams, 128, 1) { uninitialised_shared<true>(params); }
KERNEL(faulty_waits_for_ever, FaultyParams, 128, 1) { waits_for_ever<false>(params); }
KERNEL(faulty_waits_for_ever_right, FaultyParams, 128, 1) { waits_for_ever<true>(params); }
KERNEL(faulty_waits_without_pause, FaultyParams, 128, 1) { waits_without_pause<false>(params); }
KERNEL(faulty_waits_without_pause_right, FaultyParams, 128, 1) { waits_without_pause<true>(params); }
KERNEL(faulty_blocks_wait, FaultyParams, 128, 1) { blocks_wait<false>(params); }
KERNEL(faulty_blocks_wait_right, FaultyParams, 128, 1) { blocks_wait<true>(params); }
KERNEL(faulty_wild_pointer, FaultyParams, 128, 1) { wild_pointer<false>(params); }
KERNEL(faulty_wild_pointer_right, FaultyParams, 128, 1) { wild_pointer<true>(params); }
KERNEL(faulty_division, FaultyParams, 128, 1) { division<false>(params); }
KERNEL(faulty_division_right, FaultyParams, 128, 1) { division<true>(params); }
KERNEL(faulty_copy_not_waited, FaultyParams, 128, 1) { copies<NOT_WAITED>(params); }
KERNEL(faulty_copy_no_barrier, FaultyParams, 128, 1) { copies<NO_BARRIER>(params); }
KERNEL(faulty_copy_overwritten, FaultyParams, 128, 1) { copies<OVERWRITTEN>(params); }
KERNEL(faulty_copy_right, FaultyParams, 128, 1) { copies<WAITED>(params); }
KERNEL(faulty_misaligned, FaultyParams, 128, 1) { misaligned<false>(params); }
KERNEL(faulty_misaligned_right, FaultyParams, 128, 1) { misaligned<true>(params); }
KERNEL(faulty_matrix_rows, FaultyParams, 128, 1) { matrix_rows<false>(params); }
KERNEL(faulty_matrix_rows_right, FaultyParams, 128, 1) { matrix_rows<true>(params); }
KERNEL(faulty_large_frame, FaultyParams, 128, 1) { large_frame<false>(params); }
KERNEL(faulty_large_frame_right, FaultyParams, 128, 1) { large_frame<true>(params); }

// Grid: (count / 64, count / 64). Shared memory: Stages.
KERNEL(faulty_product, FaultyParams, 128, 1) { product<false>(params); }
KERNEL(faulty_product_right, FaultyParams, 128, 1) { product<true>(params); }

// Grid: one block. Shared memory: Operands.
KERNEL(faulty_warpgroup_unfenced, FaultyParams, 128, 1) { warpgroup<UNFENCED>(params); }
KERNEL(faulty_warpgroup_without_barrier, FaultyParams, 128, 1) { warpgroup<WITHOUT_BARRIER>(params); }
KERNEL(faulty_warpgroup_touched, FaultyParams, 128, 1) { warpgroup<TOUCHED>(params); }
KERNEL(faulty_warpgroup_right, FaultyParams, 128, 1) { warpgroup<COMPLETE>(params); }
