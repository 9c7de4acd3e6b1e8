// linear_step: a fully connected layer for the few rows of a decode step.
// Math:      y = act(x weight^T + bias) + residual, act one of identity, GELU (erf), QuickGELU
// Tensors:   x (M, K), residual and y (M, N) f32 row-major; weight (N, K) bf16 or f32 row-major; bias (N) f32; residual
//            may be null
// Numerics:  f32 weights: fused multiply-adds. bf16 weights: tensor cores, on x split into two bf16 values that hold its 16
//            leading bits (relative error 2^-17), f32 sums. K is cut into chunks of 128 bytes of a weight row; a block's
//            share of them goes to its warps in turn, warps are added up in order, then blocks in order. Who takes which
//            chunk depends on N and K alone: results depend neither on M nor on the device
// Requires:  rows of weight of a multiple of 16 bytes, or the unaligned kernels
// Counters:  `arrived` holds zeros before and after each launch; the last block of a tile adds up the partial sums
// Roofline:  the bytes of weight, read once: memory-bound up to some 64 rows
// Measured:  not yet measured
#include "linear/epilogue.cuh"
#include "product.cuh"

struct LinearStepParams {
    const float* x;
    const void* weight;
    const float* bias;
    const float* residual;
    float* y;
    float* partial;
    unsigned* arrived;
    int rows;
    int columns;
    int depth;
    int block_chunks;
};
SIZE_OF(LinearStepParams, 72);

namespace {

// The chunks of this warp: first, first + WARPS, ... before end.
struct Chunks {
    int first, end;
};
template <typename T> DEVICE Chunks chunks_of_warp(const LinearStepParams& params) {
    const int first = blockIdx.y * params.block_chunks;
    return {first + warp_index(), min(first + params.block_chunks, (params.depth + SLAB<T> - 1) / SLAB<T>)};
}

// What the warps of a block found.
template <int WARPS, int ROWS, int COLUMNS> struct StepSums {
    float part[WARPS][ROWS][COLUMNS + 4];  // four more, so that fragments are stored without conflicts
    int last;

    // Of element i of the tile, row after row.
    DEVICE float of(int i) const {
        float sum = 0.0f;
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++) sum += part[warp][i / COLUMNS][i % COLUMNS];
        return sum;
    }
};

// Adds the warps' parts, and in the last block of a tile those of its blocks; ends with the epilogue. `row` and `column`
// are the first of this block.
template <typename Activation, int WARPS, int ROWS, int COLUMNS>
DEVICE void finish_step(const LinearStepParams& params, StepSums<WARPS, ROWS, COLUMNS>& sums, int row, int column) {
    constexpr int THREADS = WARPS * WARP, SIZE = ROWS * COLUMNS;
    const int blocks = gridDim.y, count = min(ROWS, params.rows - row) * COLUMNS;
    const int tile = blockIdx.x + gridDim.x * blockIdx.z;
    float* partial = params.partial + int64_t(tile) * blocks * SIZE;
    sync_block();
    if (blocks > 1) {
        for (int i = threadIdx.x; i < count; i += THREADS) partial[blockIdx.y * SIZE + i] = sums.of(i);
        sync_block();
        if (threadIdx.x == 0) {
            sums.last = atomic_add_acq_rel(&params.arrived[tile], 1) == unsigned(blocks) - 1;
            if (sums.last) params.arrived[tile] = 0;
        }
        sync_block();
        if (!sums.last) return;
    }
    for (int i = threadIdx.x; i < count; i += THREADS) {
        const int at_row = row + i / COLUMNS, at_column = column + i % COLUMNS;
        if (at_column >= params.columns) continue;
        float sum = 0.0f;
        if (blocks > 1) {
#pragma unroll 4
            for (int block = 0; block < blocks; block++) sum += partial[block * SIZE + i];
        } else {
            sum = sums.of(i);
        }
        const float v = Activation::of(sum + params.bias[at_column]);
        const int64_t at = int64_t(at_row) * params.columns + at_column;
        params.y[at] = params.residual ? v + params.residual[at] : v;
    }
}

// bf16 weights. A warp multiplies TILES x 16 weight rows, as the 16-row factor of the tensor core, with ROW_TILES x 8 rows
// of x. Which of a fragment's values of k stands for which in memory is free, as long as both factors agree: lane t of a
// group of four takes eight in a row, 16 bytes, for two steps of 16. The weights go from memory to registers, AHEAD chunks
// before they are used; with up to two row tiles x is asked for half a chunk before.
template <int TILES, int ROW_TILES, int AHEAD, bool ALIGNED> struct NarrowStep {
    static constexpr int WARPS = 8;
    static constexpr int ROWS = ROW_TILES * 8, COLUMNS = TILES * 16;
    static constexpr int HALVES = 2;  // of a chunk: 32 values of k
    static constexpr bool X_AHEAD = ROW_TILES <= 2;
    using Shared = StepSums<WARPS, ROWS, COLUMNS>;

    // Eight values of k of each row for this lane.
    struct Weights {
        uint4 rows[TILES][2];
    };
    struct Values {
        float rows[X_AHEAD ? ROW_TILES : 1][8];
    };

    const LinearStepParams& params;
    const int row, column;
    float sums[TILES][ROW_TILES][4];

    template <typename Activation> DEVICE static void run(const LinearStepParams& params) {
        NarrowStep step = {params, int(blockIdx.z) * ROWS, int(blockIdx.x) * COLUMNS, {}};
        step.multiply();
        Shared& shared = shared_memory<Shared>();
        step.put(shared.part[warp_index()]);
        finish_step<Activation>(params, shared, step.row, step.column);
    }

    DEVICE void multiply() {
        const Chunks chunks = chunks_of_warp<bf16>(params);
        Weights weights[AHEAD][HALVES] = {};
        Values next = {};
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            if (chunks.first + i * WARPS < chunks.end) {
#pragma unroll
                for (int half = 0; half < HALVES; half++) load(weights[i][half], place(chunks.first + i * WARPS, half));
            }
        }
        if (chunks.first < chunks.end) load(next, place(chunks.first, 0));
        for (int first = chunks.first; first < chunks.end; first += AHEAD * WARPS) {
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                const int chunk = first + i * WARPS, later = chunk + AHEAD * WARPS;
                if (chunk >= chunks.end) continue;
#pragma unroll
                for (int half = 0; half < HALVES; half++) {
                    const Values now = next;
                    if (half + 1 < HALVES) {
                        load(next, place(chunk, half + 1));
                    } else if (chunk + WARPS < chunks.end) {
                        load(next, place(chunk + WARPS, 0));
                    }
                    add_products(weights[i][half], now, place(chunk, half));
                    if (later < chunks.end) load(weights[i][half], place(later, half));
                }
            }
        }
    }

    // First of this lane's eight values of k.
    DEVICE static int place(int chunk, int half) {
        return chunk * SLAB<bf16> + half * (SLAB<bf16> / HALVES) + lane_index() % 4 * 8;
    }

    DEVICE void load(Weights& weights, int k) const {
        const bf16* weight = static_cast<const bf16*>(params.weight);
#pragma unroll
        for (int i = 0; i < TILES * 2; i++) {
            const int n = column + i * 8 + lane_index() / 4;
            weights.rows[i / 2][i % 2] = eight_weights(weight + int64_t(n) * params.depth, k, n < params.columns);
        }
    }

    DEVICE void load(Values& values, int k) const {
        if constexpr (X_AHEAD) {
#pragma unroll
            for (int tile = 0; tile < ROW_TILES; tile++) eight_values(values.rows[tile], tile, k);
        }
    }

    DEVICE uint4 eight_weights(const bf16* from, int k, bool inside) const {
        if constexpr (ALIGNED) {
            return inside && k < params.depth ? load_streaming(from + k) : make_uint4(0, 0, 0, 0);
        } else {
            uint32_t words[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float low = inside && k + 2 * i < params.depth ? to_float(from[k + 2 * i]) : 0.0f;
                const float high = inside && k + 2 * i + 1 < params.depth ? to_float(from[k + 2 * i + 1]) : 0.0f;
                words[i] = pack_bf16(low, high);
            }
            return make_uint4(words[0], words[1], words[2], words[3]);
        }
    }

    DEVICE void eight_values(float (&x)[8], int tile, int k) const {
        const int m = row + tile * 8 + lane_index() / 4;
        const float* from = params.x + int64_t(m) * params.depth + k;
        if constexpr (ALIGNED) {
            float4 low = make_float4(0.0f, 0.0f, 0.0f, 0.0f), high = low;
            if (m < params.rows && k < params.depth) {
                low = *reinterpret_cast<const float4*>(from);
                high = *reinterpret_cast<const float4*>(from + 4);
            }
            x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
            x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
        } else {
#pragma unroll
            for (int i = 0; i < 8; i++) x[i] = m < params.rows && k + i < params.depth ? from[i] : 0.0f;
        }
    }

    DEVICE void add_products(const Weights& weights, const Values& values, int k) {
#pragma unroll
        for (int tile = 0; tile < ROW_TILES; tile++) {
            if (row + tile * 8 >= params.rows) continue;
            float x[8];
            if constexpr (X_AHEAD) {
#pragma unroll
                for (int i = 0; i < 8; i++) x[i] = values.rows[tile][i];
            } else {
                eight_values(x, tile, k);
            }
            // x = high + low, but for what is beyond the 16 leading bits.
            uint32_t high[4], low[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                high[i] = pack_bf16(x[2 * i], x[2 * i + 1]);
                low[i] = pack_bf16(x[2 * i] - low_float(high[i]), x[2 * i + 1] - high_float(high[i]));
            }
#pragma unroll
            for (int step = 0; step < 2; step++) {
                const uint32_t b_low[2] = {low[2 * step], low[2 * step + 1]};
                const uint32_t b_high[2] = {high[2 * step], high[2 * step + 1]};
#pragma unroll
                for (int i = 0; i < TILES; i++) {
                    const uint4 upper = weights.rows[i][0], lower = weights.rows[i][1];
                    const uint32_t a[4] = {step ? upper.z : upper.x, step ? lower.z : lower.x,
                                           step ? upper.w : upper.y, step ? lower.w : lower.y};
                    mma_m16n8k16(sums[i][tile], a, b_low);
                    mma_m16n8k16(sums[i][tile], a, b_high);
                }
            }
        }
    }

    DEVICE void put(float (&part)[ROWS][COLUMNS + 4]) const {
        const int n = lane_index() / 4, m = lane_index() % 4 * 2;
#pragma unroll
        for (int i = 0; i < TILES; i++) {
#pragma unroll
            for (int tile = 0; tile < ROW_TILES; tile++) {
#pragma unroll
                for (int v = 0; v < 4; v++) part[tile * 8 + m + v % 2][i * 16 + n + v / 2 * 8] = sums[i][tile][v];
            }
        }
    }
};

// f32 weights. Every warp has stages of its own in shared memory, 32 weight rows and ROWS rows of x, one chunk wide, and
// multiplies them with LANES_N lanes across: with few rows a lane owns one weight row, with many eight.
template <int ROWS_, int LANES_N, int STAGES, template <typename> class Source> struct WideStep {
    static constexpr int WARPS = 4;
    static constexpr int ROWS = ROWS_, COLUMNS = 32;
    static constexpr int LANES_M = WARP / LANES_N;
    static constexpr int WIDTH = COLUMNS / LANES_N, HEIGHT = ROWS / LANES_M;  // of a lane's own tile

    struct Stage {
        unsigned char weight[COLUMNS * ROW_BYTES];
        unsigned char x[ROWS * ROW_BYTES];
    };
    // The sums take the place of the stages.
    union alignas(128) Shared {
        Stage stages[WARPS][STAGES];
        StepSums<WARPS, ROWS, COLUMNS> sums;
    };

    template <typename Activation> DEVICE static void run(const LinearStepParams& params) {
        const int row = blockIdx.z * ROWS, column = blockIdx.x * COLUMNS;
        const int n = lane_index() % LANES_N, m = lane_index() / LANES_N;
        float sums[HEIGHT][WIDTH] = {};
        Shared& shared = shared_memory<Shared>();
        multiply(params, shared.stages[warp_index()], row, column, sums);
        sync_block();
#pragma unroll
        for (int j = 0; j < HEIGHT; j++) {
#pragma unroll
            for (int i = 0; i < WIDTH; i++) {
                shared.sums.part[warp_index()][m + j * LANES_M][n + i * LANES_N] = sums[j][i];
            }
        }
        finish_step<Activation>(params, shared.sums, row, column);
    }

    DEVICE static void multiply(const LinearStepParams& params, Stage (&stages)[STAGES], int row, int column,
                                float (&sums)[HEIGHT][WIDTH]) {
        const Chunks chunks = chunks_of_warp<float>(params);
#pragma unroll
        for (int i = 0; i < STAGES - 1; i++) copy(params, stages[i], row, column, chunks.first + i * WARPS, chunks.end);
        int reading = 0, filling = STAGES - 1;
        for (int chunk = chunks.first; chunk < chunks.end; chunk += WARPS) {
            cp_async_wait<STAGES - 2>();
            // The chunk is there for all lanes, and the one before it has been read by all.
            sync_warp();
            copy(params, stages[filling], row, column, chunk + (STAGES - 1) * WARPS, chunks.end);
            add_products(stages[reading], params.rows - row, sums);
            filling = reading;
            reading = reading + 1 == STAGES ? 0 : reading + 1;
        }
    }

    DEVICE static void copy(const LinearStepParams& params, Stage& stage, int row, int column, int chunk, int end) {
        if (chunk < end) {
            const Source<float> weight = {static_cast<const float*>(params.weight), params.columns, params.depth};
            const Source<float> x = {params.x, params.rows, params.depth};
            const int at = lane_index() % CHUNKS, k = chunk * SLAB<float> + at * CHUNK_VALUES<float>;
#pragma unroll
            for (int i = lane_index() / CHUNKS; i < COLUMNS; i += WARP / CHUNKS) {
                weight.copy(stage.weight + chunk_offset<ConsecutiveRows>(i, at), column + i, k);
            }
#pragma unroll
            for (int i = lane_index() / CHUNKS; i < ROWS; i += WARP / CHUNKS) {
                x.copy(stage.x + chunk_offset<ConsecutiveRows>(i, at), row + i, k);
            }
        }
        cp_async_commit();
    }

    DEVICE static void add_products(const Stage& stage, int rows, float (&sums)[HEIGHT][WIDTH]) {
        const int n = lane_index() % LANES_N, m = lane_index() / LANES_N;
#pragma unroll 1
        for (int chunk = 0; chunk < CHUNKS; chunk++) {
            float4 w[WIDTH];
#pragma unroll
            for (int i = 0; i < WIDTH; i++) {
                const int at = chunk_offset<ConsecutiveRows>(n + i * LANES_N, chunk);
                w[i] = *reinterpret_cast<const float4*>(stage.weight + at);
            }
#pragma unroll
            for (int j = 0; j < HEIGHT; j++) {
                if (j * LANES_M >= rows) continue;
                const int at = chunk_offset<ConsecutiveRows>(m + j * LANES_M, chunk);
                const float4 x = *reinterpret_cast<const float4*>(stage.x + at);
#pragma unroll
                for (int i = 0; i < WIDTH; i++) {
                    sums[j][i] = fmaf(x.x, w[i].x, sums[j][i]);
                    sums[j][i] = fmaf(x.y, w[i].y, sums[j][i]);
                    sums[j][i] = fmaf(x.z, w[i].z, sums[j][i]);
                    sums[j][i] = fmaf(x.w, w[i].w, sums[j][i]);
                }
            }
        }
    }
};

using FewNarrow = NarrowStep<2, 1, 2, true>;   // up to 8 rows
using SomeNarrow = NarrowStep<2, 2, 1, true>;  // up to 16
using ManyNarrow = NarrowStep<4, 8, 1, true>;  // up to 64: taller, so that x is read less often
using UnalignedNarrow = NarrowStep<2, 1, 1, false>;
using FewWide = WideStep<8, 32, 3, AlignedRows>;
using ManyWide = WideStep<64, 4, 2, AlignedRows>;
using UnalignedWide = WideStep<8, 32, 3, UnalignedRows>;
using StepFewNarrowShared = FewNarrow::Shared;
using StepSomeNarrowShared = SomeNarrow::Shared;
using StepManyNarrowShared = ManyNarrow::Shared;
using StepFewWideShared = FewWide::Shared;
using StepManyWideShared = ManyWide::Shared;

}  // namespace

SIZE_OF(StepFewNarrowShared, 9220);
SIZE_OF(StepSomeNarrowShared, 18436);
SIZE_OF(StepManyNarrowShared, 139268);
SIZE_OF(StepFewWideShared, 61440);
SIZE_OF(StepManyWideShared, 98304);

// Grid: (tiles of columns, blocks that share a tile's K, tiles of rows). Shared memory: Shared of the form. A block owns a
// tile of y, or a part of its sums.
KERNEL(linear_step_forward_bias_few_bf16, LinearStepParams, 256, 2) { FewNarrow::run<Identity>(params); }
KERNEL(linear_step_forward_bias_gelu_few_bf16, LinearStepParams, 256, 2) { FewNarrow::run<Gelu>(params); }
KERNEL(linear_step_forward_bias_quick_gelu_few_bf16, LinearStepParams, 256, 2) { FewNarrow::run<QuickGelu>(params); }
KERNEL(linear_step_forward_bias_some_bf16, LinearStepParams, 256, 2) { SomeNarrow::run<Identity>(params); }
KERNEL(linear_step_forward_bias_gelu_some_bf16, LinearStepParams, 256, 2) { SomeNarrow::run<Gelu>(params); }
KERNEL(linear_step_forward_bias_quick_gelu_some_bf16, LinearStepParams, 256, 2) { SomeNarrow::run<QuickGelu>(params); }
KERNEL(linear_step_forward_bias_many_bf16, LinearStepParams, 256, 1) { ManyNarrow::run<Identity>(params); }
KERNEL(linear_step_forward_bias_gelu_many_bf16, LinearStepParams, 256, 1) { ManyNarrow::run<Gelu>(params); }
KERNEL(linear_step_forward_bias_quick_gelu_many_bf16, LinearStepParams, 256, 1) { ManyNarrow::run<QuickGelu>(params); }
KERNEL(linear_step_forward_bias_unaligned_bf16, LinearStepParams, 256, 2) { UnalignedNarrow::run<Identity>(params); }
KERNEL(linear_step_forward_bias_gelu_unaligned_bf16, LinearStepParams, 256, 2) { UnalignedNarrow::run<Gelu>(params); }
KERNEL(linear_step_forward_bias_quick_gelu_unaligned_bf16, LinearStepParams, 256, 2) { UnalignedNarrow::run<QuickGelu>(params); }
KERNEL(linear_step_forward_bias_few_f32, LinearStepParams, 128, 3) { FewWide::run<Identity>(params); }
KERNEL(linear_step_forward_bias_gelu_few_f32, LinearStepParams, 128, 3) { FewWide::run<Gelu>(params); }
KERNEL(linear_step_forward_bias_quick_gelu_few_f32, LinearStepParams, 128, 3) { FewWide::run<QuickGelu>(params); }
KERNEL(linear_step_forward_bias_many_f32, LinearStepParams, 128, 2) { ManyWide::run<Identity>(params); }
KERNEL(linear_step_forward_bias_gelu_many_f32, LinearStepParams, 128, 2) { ManyWide::run<Gelu>(params); }
KERNEL(linear_step_forward_bias_quick_gelu_many_f32, LinearStepParams, 128, 2) { ManyWide::run<QuickGelu>(params); }
KERNEL(linear_step_forward_bias_unaligned_f32, LinearStepParams, 128, 3) { UnalignedWide::run<Identity>(params); }
KERNEL(linear_step_forward_bias_gelu_unaligned_f32, LinearStepParams, 128, 3) { UnalignedWide::run<Gelu>(params); }
KERNEL(linear_step_forward_bias_quick_gelu_unaligned_f32, LinearStepParams, 128, 3) { UnalignedWide::run<QuickGelu>(params); }
