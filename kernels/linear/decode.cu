// linear_decode: a fully connected layer for the few rows of a decode step.
// Math:      y = act(x weight^T + bias) + residual, act one of identity, GELU (erf), QuickGELU, tanh
// Tensors:   x (M, K), residual and y (M, N) f32 row-major; weight (N, K) bf16 or f32 row-major; bias (N) f32; residual
//            may be null
// Numerics:  f32 weights: fused multiply-adds. bf16 weights: tensor cores, on x split into two bf16 values that hold its 16
//            leading bits (relative error 2^-17), f32 sums. K is cut into k_tiles of 128 bytes of a weight row; a block's
//            share of them goes to its warps in turn, warps are added up in order, then blocks in order. The shares
//            depend on N and K alone: results depend neither on M nor on the device
// Requires:  rows of weight of a multiple of 16 bytes, or the unaligned kernels
// Counters:  `arrived` holds zeros before and after each launch; the last block of a tile adds up the partial sums
// Roofline:  the bytes of weight, read once: memory-bound up to some 64 rows
// Measured:  NVIDIA H200, driver 580.159.04, commit 449c6ab (each activation a kernel of its own; not yet measured since):
//            `im2sp doctor --op =linear_decode` (cold L2, lightly contended), rows x K x columns: bf16 1x768x2304 in 7.7 us,
//            8x768x2304 in 8.0, 16x768x2304 in 9.4, 64x768x2304 in 29.7, 8x4096x4096 in 19.2 (1.77 TB/s, 42 % of a copy's
//            there); f32 1x768x2304 in 10.4, 8x768x2304 in 15.5, 64x768x2304 in 32.7, 8x4096x4096 in 39.7 (1.70 TB/s)
#include "gemm.cuh"
#include "linear/activation.cuh"

struct LinearDecodeParams {
    const float* x;
    const void* weight;
    const float* bias;
    const float* residual;
    float* y;
    float* partial;
    unsigned* arrived;
    int rows;
    int columns;
    int k;
    int block_k_tiles;
    int activation;  // ACTIVATION_*
    int unused;
};
SIZE_OF(LinearDecodeParams, 80);

namespace {

// The k_tiles of this warp: first, first + WARPS, ... before end.
struct WarpShare {
    int first, end;
};
template <typename T> DEVICE WarpShare share_of_warp(const LinearDecodeParams& params) {
    const int first = blockIdx.y * params.block_k_tiles;
    return {first + warp_index(), min(first + params.block_k_tiles, (params.k + K_TILE<T> - 1) / K_TILE<T>)};
}

// The sums of each warp of a block.
template <int WARPS, int ROWS, int COLUMNS> struct WarpSums {
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
template <int WARPS, int ROWS, int COLUMNS>
DEVICE void finish(const LinearDecodeParams& params, WarpSums<WARPS, ROWS, COLUMNS>& sums, int row, int column) {
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
        float v[1] = {sum + params.bias[at_column]};
        activate(params.activation, v);
        const int64_t at = int64_t(at_row) * params.columns + at_column;
        params.y[at] = params.residual ? v[0] + params.residual[at] : v[0];
    }
}

// bf16 weights. A warp multiplies TILES x 16 weight rows, as the 16-row factor of the tensor core, with ROW_TILES x 8 rows
// of x. Which of a fragment's values of k stands for which in memory is free, as long as both factors agree: lane t of a
// group of four takes eight in a row, 16 bytes, for two steps of 16. The weights go from memory to registers, AHEAD k_tiles
// before they are used; with up to two row tiles x is loaded half a k_tile ahead.
template <int TILES, int ROW_TILES, int AHEAD, bool ALIGNED> struct MmaRows {
    static constexpr int WARPS = 8;
    static constexpr int ROWS = ROW_TILES * 8, COLUMNS = TILES * 16;
    static constexpr int M = ROWS, N = COLUMNS;
    static constexpr int HALVES = 2;  // of a k_tile: 32 values of k
    static constexpr bool X_AHEAD = ROW_TILES <= 2;
    using Shared = WarpSums<WARPS, ROWS, COLUMNS>;

    // Eight values of k of each row for this lane.
    struct Weights {
        uint4 rows[TILES][2];
    };
    struct Values {
        float rows[X_AHEAD ? ROW_TILES : 1][8];
    };

    const LinearDecodeParams& params;
    const int row, column;
    float sums[TILES][ROW_TILES][4];

    DEVICE static void run(const LinearDecodeParams& params) {
        MmaRows block = {params, int(blockIdx.z) * ROWS, int(blockIdx.x) * COLUMNS, {}};
        block.mainloop();
        Shared& shared = shared_memory<Shared>();
        block.put(shared.part[warp_index()]);
        finish(params, shared, block.row, block.column);
    }

    DEVICE void mainloop() {
        const WarpShare share = share_of_warp<bf16>(params);
        Weights weights[AHEAD][HALVES] = {};
        Values next = {};
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            if (share.first + i * WARPS < share.end) {
#pragma unroll
                for (int half = 0; half < HALVES; half++) load(weights[i][half], place(share.first + i * WARPS, half));
            }
        }
        if (share.first < share.end) load(next, place(share.first, 0));
        for (int first = share.first; first < share.end; first += AHEAD * WARPS) {
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                const int k_tile = first + i * WARPS, later = k_tile + AHEAD * WARPS;
                if (k_tile >= share.end) continue;
#pragma unroll
                for (int half = 0; half < HALVES; half++) {
                    const Values now = next;
                    if (half + 1 < HALVES) {
                        load(next, place(k_tile, half + 1));
                    } else if (k_tile + WARPS < share.end) {
                        load(next, place(k_tile + WARPS, 0));
                    }
                    add_products(weights[i][half], now, place(k_tile, half));
                    if (later < share.end) load(weights[i][half], place(later, half));
                }
            }
        }
    }

    // First of this lane's eight values of k.
    DEVICE static int place(int k_tile, int half) {
        return k_tile * K_TILE<bf16> + half * (K_TILE<bf16> / HALVES) + lane_index() % 4 * 8;
    }

    DEVICE void load(Weights& weights, int k) const {
        const bf16* weight = static_cast<const bf16*>(params.weight);
#pragma unroll
        for (int i = 0; i < TILES * 2; i++) {
            const int n = column + i * 8 + lane_index() / 4;
            weights.rows[i / 2][i % 2] = eight_weights(weight + int64_t(n) * params.k, k, n < params.columns);
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
            return inside && k < params.k ? load_streaming(from + k) : make_uint4(0, 0, 0, 0);
        } else {
            uint32_t words[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float low = inside && k + 2 * i < params.k ? to_float(from[k + 2 * i]) : 0.0f;
                const float high = inside && k + 2 * i + 1 < params.k ? to_float(from[k + 2 * i + 1]) : 0.0f;
                words[i] = pack_bf16(low, high);
            }
            return make_uint4(words[0], words[1], words[2], words[3]);
        }
    }

    DEVICE void eight_values(float (&x)[8], int tile, int k) const {
        const int m = row + tile * 8 + lane_index() / 4;
        const float* from = params.x + int64_t(m) * params.k + k;
        if constexpr (ALIGNED) {
            float4 low = make_float4(0.0f, 0.0f, 0.0f, 0.0f), high = low;
            if (m < params.rows && k < params.k) {
                low = *reinterpret_cast<const float4*>(from);
                high = *reinterpret_cast<const float4*>(from + 4);
            }
            x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
            x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
        } else {
#pragma unroll
            for (int i = 0; i < 8; i++) x[i] = m < params.rows && k + i < params.k ? from[i] : 0.0f;
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
            // x = high + low, to its 16 leading bits.
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

// f32 weights. Every warp has stages of its own in shared memory, 32 weight rows and ROWS rows of x, one k_tile wide, and
// multiplies them with LANES_N lanes across: with few rows a lane owns one weight row, with many eight.
template <int ROWS_, int LANES_N, int STAGES, typename Source> struct FmaRows {
    static constexpr int WARPS = 4;
    static constexpr int ROWS = ROWS_, COLUMNS = 32;
    static constexpr int M = ROWS, N = COLUMNS;
    static constexpr int LANES_M = WARP / LANES_N;
    static constexpr int WIDTH = COLUMNS / LANES_N, HEIGHT = ROWS / LANES_M;  // of a lane's own tile

    struct Stage {
        unsigned char weight[COLUMNS * ROW_BYTES];
        unsigned char x[ROWS * ROW_BYTES];
    };
    // The sums take the place of the stages.
    union alignas(128) Shared {
        Stage stages[WARPS][STAGES];
        WarpSums<WARPS, ROWS, COLUMNS> sums;
    };

    DEVICE static void run(const LinearDecodeParams& params) {
        const int row = blockIdx.z * ROWS, column = blockIdx.x * COLUMNS;
        const int n = lane_index() % LANES_N, m = lane_index() / LANES_N;
        float sums[HEIGHT][WIDTH] = {};
        Shared& shared = shared_memory<Shared>();
        mainloop(params, shared.stages[warp_index()], row, column, sums);
        sync_block();
#pragma unroll
        for (int j = 0; j < HEIGHT; j++) {
#pragma unroll
            for (int i = 0; i < WIDTH; i++) {
                shared.sums.part[warp_index()][m + j * LANES_M][n + i * LANES_N] = sums[j][i];
            }
        }
        finish(params, shared.sums, row, column);
    }

    DEVICE static void mainloop(const LinearDecodeParams& params, Stage (&stages)[STAGES], int row, int column,
                                float (&sums)[HEIGHT][WIDTH]) {
        const WarpShare share = share_of_warp<float>(params);
#pragma unroll
        for (int i = 0; i < STAGES - 1; i++) copy(params, stages[i], row, column, share.first + i * WARPS, share.end);
        int reading = 0, filling = STAGES - 1;
        for (int k_tile = share.first; k_tile < share.end; k_tile += WARPS) {
            cp_async_wait<STAGES - 2>();
            // The k_tile is there for all lanes, and the one before it has been read by all.
            sync_warp();
            copy(params, stages[filling], row, column, k_tile + (STAGES - 1) * WARPS, share.end);
            add_products(stages[reading], params.rows - row, sums);
            filling = reading;
            reading = reading + 1 == STAGES ? 0 : reading + 1;
        }
    }

    DEVICE static void copy(const LinearDecodeParams& params, Stage& stage, int row, int column, int k_tile, int end) {
        if (k_tile < end) {
            const Source weight = {static_cast<const float*>(params.weight), params.columns, params.k};
            const Source x = {params.x, params.rows, params.k};
            const int chunk = lane_index() % CHUNKS, k = k_tile * K_TILE<float> + chunk * CHUNK_VALUES<float>;
#pragma unroll
            for (int i = lane_index() / CHUNKS; i < COLUMNS; i += WARP / CHUNKS) {
                weight.copy(stage.weight + chunk16_offset<ConsecutiveRows>(i, chunk), column + i, k);
            }
#pragma unroll
            for (int i = lane_index() / CHUNKS; i < ROWS; i += WARP / CHUNKS) {
                x.copy(stage.x + chunk16_offset<ConsecutiveRows>(i, chunk), row + i, k);
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
                const int at = chunk16_offset<ConsecutiveRows>(n + i * LANES_N, chunk);
                w[i] = *reinterpret_cast<const float4*>(stage.weight + at);
            }
#pragma unroll
            for (int j = 0; j < HEIGHT; j++) {
                if (j * LANES_M >= rows) continue;
                const int at = chunk16_offset<ConsecutiveRows>(m + j * LANES_M, chunk);
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

using R8 = MmaRows<2, 1, 2, true>;
using R16 = MmaRows<2, 2, 1, true>;
using R64 = MmaRows<4, 8, 1, true>;  // 64 columns too, so that x is read less often
using R8Unaligned = MmaRows<2, 1, 1, false>;
using R8F32 = FmaRows<8, 32, 3, AlignedRows<float>>;
using R64F32 = FmaRows<64, 4, 2, AlignedRows<float>>;
using R8F32Unaligned = FmaRows<8, 32, 3, UnalignedRows<float>>;

}  // namespace

// Grid: (tiles of columns, blocks that share a tile's K, tiles of rows). Shared memory: Shared of the tile. A block owns a
// tile of y, or a part of its sums.
KERNEL(linear_decode_forward_r8_bf16, LinearDecodeParams, 256, 2) { R8::run(params); }
KERNEL(linear_decode_forward_r16_bf16, LinearDecodeParams, 256, 2) { R16::run(params); }
KERNEL(linear_decode_forward_r64_bf16, LinearDecodeParams, 256, 1) { R64::run(params); }
KERNEL(linear_decode_forward_r8_f32, LinearDecodeParams, 128, 3) { R8F32::run(params); }
KERNEL(linear_decode_forward_r64_f32, LinearDecodeParams, 128, 2) { R64F32::run(params); }

// Grid and shared memory: as above, for any K.
KERNEL(linear_decode_forward_r8_unaligned_bf16, LinearDecodeParams, 256, 2) { R8Unaligned::run(params); }
KERNEL(linear_decode_forward_r8_unaligned_f32, LinearDecodeParams, 128, 3) { R8F32Unaligned::run(params); }

// Geometries by which the launcher chooses; times are relative to each other.
TILE(linear_decode_forward_r8_bf16, R8, 8, 32, 9220, 10, "H200 at 449c6ab, doctor: 1x768x2304 in 7.7 us, 8x768x2304 in 8.0 us");
TILE(linear_decode_forward_r16_bf16, R16, 16, 32, 18436, 11,
     "H200 at 449c6ab, doctor: 9x768x2304 in 9.2 us, 16x768x2304 in 9.4 us");
TILE(linear_decode_forward_r64_bf16, R64, 64, 64, 139268, 20,
     "H200 at 449c6ab, doctor: 17x768x2304 in 15.5 us, 64x768x2304 in 29.7 us");
TILE(linear_decode_forward_r8_unaligned_bf16, R8Unaligned, 8, 32, 9220, 10, "not yet measured");
TILE(linear_decode_forward_r8_f32, R8F32, 8, 32, 61440, 10,
     "H200 at 449c6ab, doctor: 1x768x2304 in 10.4 us, 8x768x2304 in 15.5 us");
TILE(linear_decode_forward_r64_f32, R64F32, 64, 32, 98304, 19,
     "H200 at 449c6ab, doctor: 9x768x2304 in 15.7 us, 64x768x2304 in 32.7 us");
TILE(linear_decode_forward_r8_unaligned_f32, R8F32Unaligned, 8, 32, 61440, 10, "not yet measured");

