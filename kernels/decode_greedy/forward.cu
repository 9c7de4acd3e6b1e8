// decode_greedy: the whole greedy loop of a post-norm decoder in one cooperative launch, for 1 to 8 rows.
// Math:      per token: x = norm(word + position); per layer: y = norm(x + attention(x)), x = norm(y + fc2(gelu(fc1 y)));
//            the next token is the lowest arg-max of word x + bias; a row ends with EOS or at the limit
// Source:    transformers' GIT decoder (see src/model/decoder.rs, which this equals token for token)
// Tensors:   weights (N, K) row-major in bf16, f32 or, of the layers, fp8 (e4m3 with a scale a row); activations f32;
//            keys and values of the images as the cache holds them; tokens go to memory that the host sees, as chosen
// Numerics:  f32 sums in an order that depends on the dimensions only: not on the rows, not on the grid
// Requires:  head size 64; C % 8 == 0, F % 8 == 0; rows of weights 16-byte aligned; every block resident at once
// Tiling:    every matrix is cut into as many runs of rows as there are blocks; a block streams its run through a ring of
//            shared-memory slots by cp.async, up to three matrices ahead, so weights keep flowing while it waits at a
//            barrier. A warp multiplies two rows at a time. Attention: a block takes 64 tokens of one head of one row
// Barriers:  5 a layer (qkv | attention splits | their sum and projection | fc1 | fc2) and 1 for the logits; arg-max and
//            norms are computed by every block for itself
// Roofline:  reads each weight once a token: git-large in bf16 86 MB, 43 MB in fp8, plus about 31 barriers
// Measured:  NVIDIA H200, driver 580.159.04, commit 449c6ab: ncu, `im2sp bench --random --dtype bf16 --units 50`: git-large
//            in bf16, 1 row, 132 blocks: 7.50 ms for 50 units, 150 us a unit; the clock of a microbenchmark of this loop
//            (benches/results/2026-11-26-gpu-microbenchmarks.json) gives 152 us a unit in bf16, 150 in fp8, 434 with 8 rows
//            in bf16, 439 in fp8
#include "decode_greedy/phases.cuh"

namespace {

// State of a block in shared memory, before the slots of weights.
template <int BATCH> struct BlockState {
    AttentionShared attention;
    int tokens[BATCH];
    int ended[BATCH];
    int aborted;
};

struct Barrier {
    unsigned* counter;
    unsigned* abort;
    unsigned generation;
    int64_t patience;  // nanoseconds
};

// Waits for all blocks. False if one did not come in time, or gave up.
DEVICE bool grid_barrier(Barrier& barrier, int& aborted) {
    sync_block();
    barrier.generation++;
    if (threadIdx.x == 0) {
        const unsigned target = barrier.generation * gridDim.x;
        atomic_add_acq_rel(barrier.counter, 1);
        const int64_t start = nanoseconds();
        int given_up = 0;
        // The counter wraps around; its distance from the target does not.
        while (int(load_acquire(barrier.counter) - target) < 0) {
            if (load_acquire(barrier.abort) || nanoseconds() - start > barrier.patience) {
                store_release(barrier.abort, 1);
                given_up = 1;
                break;
            }
            spin_pause();
        }
        aborted = given_up;
    }
    sync_block();
    return aborted == 0;
}

// The next token of every row that has not ended, found by every block from the same logits; NaN becomes the status.
template <int BATCH>
DEVICE void argmax_tokens(const DecodeGreedyParams& p, const Scratch& s, BlockState<BATCH>& state, int t, unsigned& status) {
    const int b = warp_index(), lane = lane_index();
    if (b < BATCH && b < p.rows && !state.ended[b]) {
        const float* logits = s.logits + b * p.vocabulary;
        float best = -INFINITY;
        int column = p.vocabulary;
        bool broken = false;
        for (int v = lane; v < p.vocabulary; v += WARP) {
            const float logit = logits[v];
            broken |= logit != logit;
            if (logit > best) best = logit, column = v;
        }
        for (int mask = WARP / 2; mask > 0; mask /= 2) {
            const float other = shuffle_xor(best, mask);
            const int where = shuffle_xor(column, mask);
            if (other > best || (other == best && where < column)) best = other, column = where;
        }
        broken = ballot(broken) != 0 || column >= p.vocabulary;
        // Every lane has read `ended`; shuffles and ballots order no memory.
        sync_warp();
        if (lane == 0) {
            state.tokens[b] = broken ? p.eos : column;
            state.ended[b] = broken ? 2 : column == p.eos;
            if (blockIdx.x == 0) {
                host_store(&p.host[HOST_TOKENS + b * p.limit + t + 1], unsigned(state.tokens[b]));
                host_store_release(&p.host[HOST_LENGTHS + b], unsigned(t + 2));
            }
        }
    }
    sync_block();
    for (int row = 0; row < p.rows; row++) {
        if (state.ended[row] == 2) status = NOT_A_NUMBER;
    }
}

template <int BATCH> DEVICE bool all_ended(const DecodeGreedyParams& p, const BlockState<BATCH>& state) {
    for (int row = 0; row < p.rows; row++) {
        if (!state.ended[row]) return false;
    }
    return true;
}

// What the phases of a block share.
template <typename T, int BATCH> struct Loop {
    const DecodeGreedyParams& p;
    Scratch scratch;
    unsigned char* slots;
    float* x;       // (BATCH, C) planes: input of the layer's products, kept for the residual
    float* hidden;  // (BATCH, C) planes of what attention gives, then (BATCH, F)
    int next;       // phase whose weights are copied next
    int slot;       // of the phase at hand

    DEVICE int phases() const { return 4 * p.layer_count + 1; }

    // Starts the copy of the weights of the next phase in the endless stream of steps.
    DEVICE void prefetch_next(int to) {
        copy_weights<T>(p, next, slots, to);
        next = next + 1 == phases() ? 0 : next + 1;
    }

    // Waits for the weights of this phase; the slot of the one before is free for a later one.
    DEVICE const unsigned char* wait_weights() {
        wait_slot(p.slots);
        prefetch_next(slot == 0 ? p.slots - 1 : slot - 1);
        const unsigned char* here = slots + slot * p.slot_bytes;
        slot = slot + 1 == p.slots ? 0 : slot + 1;
        return here;
    }

    template <typename Weight, typename Store> DEVICE void product(int phase, const float* input, const Store& store) {
        mainloop<Weight, BATCH>(slice_of(p, phase), wait_weights(), input, store);
    }
};

template <typename T, int BATCH>
DEVICE bool layer_step(Loop<T, BATCH>& loop, int n, int t, Barrier& barrier, BlockState<BATCH>& state) {
    const DecodeGreedyParams& p = loop.p;
    const Scratch& s = loop.scratch;
    const DecodeGreedyLayerParams& layer = p.layers[n];
    const int C = p.channels, F = p.hidden;
    loop.template product<T>(4 * n, loop.x, [&](int b, int row, float v) {
        if (b < p.rows) s.qkv[b * 3 * C + row] = v;
    });
    if (!grid_barrier(barrier, state.aborted)) return false;
    attention_split<typename Wide<T>::Type>(p, s, layer, t, state.attention);
    if (!grid_barrier(barrier, state.aborted)) return false;
    combine<BATCH>(p, s, t, loop.hidden);
    loop.template product<T>(4 * n + 1, loop.hidden, [&](int b, int row, float v) {
        if (b < p.rows) s.attended[b * C + row] = v + loop.x[b * C + planar(row, C)];
    });
    if (!grid_barrier(barrier, state.aborted)) return false;
    normalise<BATCH>(
        p, [&](int b, int c) { return s.attended[b * C + c]; }, layer.attention_norm_weight, layer.attention_norm_bias, loop.x);
    loop.template product<T>(4 * n + 2, loop.x, [&](int b, int row, float v) {
        if (b < p.rows) s.hidden[b * F + row] = 0.5f * v * (1.0f + erff(v * 0.70710678f));
    });
    if (!grid_barrier(barrier, state.aborted)) return false;
    for (int at = threadIdx.x; at < BATCH * F; at += THREADS) {
        loop.hidden[at / F * F + planar(at % F, F)] = at / F < p.rows ? s.hidden[at] : 0.0f;
    }
    loop.template product<T>(4 * n + 3, loop.hidden, [&](int b, int row, float v) {
        if (b < p.rows) s.mixed[b * C + row] = v + loop.x[b * C + planar(row, C)];
    });
    if (!grid_barrier(barrier, state.aborted)) return false;
    normalise<BATCH>(
        p, [&](int b, int c) { return s.mixed[b * C + c]; }, layer.mlp_norm_weight, layer.mlp_norm_bias, loop.x);
    return true;
}

// One token of every row. False to stop; `status` says why.
template <typename T, int BATCH>
DEVICE bool step(Loop<T, BATCH>& loop, int t, Barrier& barrier, BlockState<BATCH>& state, unsigned& status) {
    const DecodeGreedyParams& p = loop.p;
    const int C = p.channels;
    const bool leads = blockIdx.x == 0 && threadIdx.x == 0;
    // Loaded first, used when the layers are done.
    const unsigned cancelled = leads ? host_load(&p.host[HOST_CANCEL]) : 0;
    normalise<BATCH>(
        p,
        [&](int b, int c) {
            const int64_t word = int64_t(state.tokens[b]) * C + c;
            const auto* words = static_cast<const typename Wide<T>::Type*>(p.word);
            const auto* positions = static_cast<const typename Wide<T>::Type*>(p.position);
            return to_float(words[word]) + to_float(positions[int64_t(t) * C + c]);
        },
        p.embedding_norm_weight, p.embedding_norm_bias, loop.x);
    for (int n = 0; n < p.layer_count; n++) {
        if (!layer_step(loop, n, t, barrier, state)) return status = TIMED_OUT, false;
    }
    loop.template product<typename Wide<T>::Type>(4 * p.layer_count, loop.x, [&](int b, int row, float v) {
        if (b < p.rows) loop.scratch.logits[b * p.vocabulary + row] = v;
    });
    if (leads && cancelled) store_release(&p.control[CONTROL_STOP], 1);
    if (!grid_barrier(barrier, state.aborted)) return status = TIMED_OUT, false;
    argmax_tokens<BATCH>(p, loop.scratch, state, t, status);
    if (status == NOT_A_NUMBER) return false;
    if (load_acquire(&p.control[CONTROL_STOP])) return status = CANCELLED, false;
    return true;
}

// As TILE wants it: rows of a batch.
template <int BATCH> struct Batch {
    static constexpr int M = BATCH, N = 1;
    using Shared = BlockState<BATCH>;
};

template <typename T, int BATCH> DEVICE void decode_greedy(const DecodeGreedyParams& p) {
    BlockState<BATCH>& state = shared_memory<BlockState<BATCH>>();
    unsigned char* after = reinterpret_cast<unsigned char*>(&state) + (sizeof(state) + 127) / 128 * 128;
    Loop<T, BATCH> loop{p, scratch_of(p), after, nullptr, nullptr, 0, 0};
    loop.x = reinterpret_cast<float*>(after + p.slots * p.slot_bytes);
    loop.hidden = loop.x + BATCH * p.channels;
    Barrier barrier{&p.control[CONTROL_BARRIER], &p.control[CONTROL_ABORT], 0, int64_t(p.seconds) * 1000000000};
    for (int row = threadIdx.x; row < BATCH; row += THREADS) state.tokens[row] = p.bos, state.ended[row] = 0;
    for (int slot = 0; slot + 1 < p.slots; slot++) loop.prefetch_next(slot);
    sync_block();
    unsigned status = DONE;
    for (int t = 0; t + 1 < p.limit; t++) {
        if (!step(loop, t, barrier, state, status) || all_ended(p, state)) break;
    }
    // Copies under way must not outlive the block.
    cp_async_wait<0>();
    if (blockIdx.x == 0 && threadIdx.x == 0) host_store_release(&p.host[HOST_STATUS], status);
}

}  // namespace

// Cooperative. Grid: one block a multiprocessor, or fewer. Shared memory: BlockState, `slots` slots, (BATCH, C) and
// (BATCH, max(C, F)) floats; rows of the batch beyond `rows` are zeros.
KERNEL(decode_greedy_forward_b1_bf16, DecodeGreedyParams, 512, 1) { decode_greedy<bf16, 1>(params); }
KERNEL(decode_greedy_forward_b2_bf16, DecodeGreedyParams, 512, 1) { decode_greedy<bf16, 2>(params); }
KERNEL(decode_greedy_forward_b4_bf16, DecodeGreedyParams, 512, 1) { decode_greedy<bf16, 4>(params); }
KERNEL(decode_greedy_forward_b8_bf16, DecodeGreedyParams, 512, 1) { decode_greedy<bf16, 8>(params); }
KERNEL(decode_greedy_forward_b1_f32, DecodeGreedyParams, 512, 1) { decode_greedy<float, 1>(params); }
KERNEL(decode_greedy_forward_b8_f32, DecodeGreedyParams, 512, 1) { decode_greedy<float, 8>(params); }
KERNEL(decode_greedy_forward_b1_fp8, DecodeGreedyParams, 512, 1) { decode_greedy<uint8_t, 1>(params); }
KERNEL(decode_greedy_forward_b8_fp8, DecodeGreedyParams, 512, 1) { decode_greedy<uint8_t, 8>(params); }

// Geometries by which the launcher chooses; times are relative to each other.
TILE(decode_greedy_forward_b1_bf16, Batch<1>, 1, 1, 4236, 10,
     "H200 at 449c6ab, ncu of im2sp bench: 150 us a unit of git-large");
TILE(decode_greedy_forward_b2_bf16, Batch<2>, 2, 1, 4244, 11, "not yet measured");
TILE(decode_greedy_forward_b4_bf16, Batch<4>, 4, 1, 4260, 12, "not yet measured");
TILE(decode_greedy_forward_b8_bf16, Batch<8>, 8, 1, 4292, 13,
     "H200 at 449c6ab, microbenchmark of this loop: 434 us a unit of git-large");
TILE(decode_greedy_forward_b1_f32, Batch<1>, 1, 1, 4236, 10, "not yet measured by itself");
TILE(decode_greedy_forward_b8_f32, Batch<8>, 8, 1, 4292, 13, "not yet measured");
TILE(decode_greedy_forward_b1_fp8, Batch<1>, 1, 1, 4236, 10,
     "H200 at 449c6ab, microbenchmark of this loop: 150 us a unit of git-large");
TILE(decode_greedy_forward_b8_fp8, Batch<8>, 8, 1, 4292, 13,
     "H200 at 449c6ab, microbenchmark of this loop: 439 us a unit of git-large");

