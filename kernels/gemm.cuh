// gemm: one tile of C = A B^T for each block. The core of linear, conv1d, conv_transpose1d and patch_embed.
//
//   MmaTile<M, N, WARPS_M, WARPS_N, STAGES, Operand>  bf16 operands, tensor cores (mma.sync m16n8k16), f32 accumulators
//   FmaTile<M, N, WARPS_M, WARPS_N, LANES_M, STAGES>  f32 operands, fused multiply-adds, true f32
//
// A kernel is five calls:
//   const TileCoord at = tile_coord<Tile>(rows, columns);   which tile this block computes
//   tile.prefetch(shared, a, b, at, k)                      starts the copies of the first k_tiles
//   tile.clear(), or tile.begin(at, init)                   accumulators from zero, or from init(row, column, values)
//   tile.mainloop(shared, a, b, at, k)                      the sums over all of K
//   epilogue(tile, shared, at, out)                         hands a run of columns of a row at a time to `out`
//
// Sources say where a row of A or B comes from: source.copy(to, row, k) fills one chunk16 (16 bytes of shared memory) with
// the values from (row, k) on, zeros where there are none; k is a multiple of the values in 16 bytes. Those of A may change
// values between shared memory and product, where TRANSFORMS says so: a convolution's leaky ReLU. columns.cuh has operands
// that lie transposed in memory.
//
// Epilogues finish sums: out.store<ROLLED>(row, column, values), which leaves out elements outside of C. Short work is done
// by unrolled code, straight from registers. Where out.rolled(), sums first go to shared memory, so that long code
// (activations, divisions, single elements) stands once in the kernel, in a loop: code that has to be fetched for one tile
// costs more than it computes. Either way results are the same.
//
// Numerics: the sum of each element of C runs over k in one fixed order, whatever the tile, so results depend neither on
// the shape of the tile nor on where in it a row stands. warpgroup.cuh and pair.cuh have tiles of wgmma (sm_90a).
#pragma once

#include "columns.cuh"
#include "vector.cuh"

namespace {

constexpr int GROUP_ROWS = 8;  // row tiles that are walked column by column, so that their rows of A stay in L2

template <int VALUE> struct Constant {
    static constexpr int value = VALUE;
};

// First row and column of a tile, and the rows of C.
struct TileCoord {
    int row, column, rows;
};

// Tiles of C.
template <typename Tile> DEVICE int tile_count(int rows, int columns) {
    return (rows + Tile::M - 1) / Tile::M * ((columns + Tile::N - 1) / Tile::N);
}

// Place `number` of a grid of tiles, counted in tiles: groups of rows of them, in each column after column.
DEVICE TileCoord grouped_coord(int down, int across, int number) {
    const int in_group = GROUP_ROWS * across;
    const int first = number / in_group * GROUP_ROWS;
    const int height = min(GROUP_ROWS, down - first);
    const int at = number % in_group;
    return {first + at % height, at / height, 0};
}

// Tile `number`, by default that of this block in a one-dimensional grid.
template <typename Tile> DEVICE TileCoord tile_coord(int rows, int columns, int number = blockIdx.x) {
    const int down = (rows + Tile::M - 1) / Tile::M, across = (columns + Tile::N - 1) / Tile::N;
    const TileCoord at = grouped_coord(down, across, number);
    return {at.row * Tile::M, at.column * Tile::N, rows};
}

// ---- sources

// A row-major matrix (rows, K) whose rows begin at multiples of 16 bytes.
template <typename T> struct AlignedRows {
    static constexpr bool TRANSFORMS = false;
    const T* values;
    int rows, k_size;

    DEVICE void copy(void* to, int row, int k) const {
        const bool inside = row < rows && k < k_size;
        cp_async_16(to, values + (inside ? int64_t(row) * k_size + k : 0), inside);
    }
};

// bf16 rows that begin at multiples of 8 bytes.
struct HalfAlignedRows {
    static constexpr bool TRANSFORMS = false;
    const bf16* values;
    int rows, k_size;

    DEVICE void copy(void* to, int row, int k) const {
        const bf16* from = values + int64_t(row) * k_size + k;
        const bool low = row < rows && k < k_size, high = row < rows && k + 4 < k_size;
        cp_async_8(to, low ? from : values, low);
        cp_async_8(static_cast<bf16*>(to) + 4, high ? from + 4 : values, high);
    }
};

// Rows of `T` without a condition on K, value by value, as the type that the tile multiplies.
template <typename T, typename Operand = T> struct UnalignedRows {
    static constexpr bool TRANSFORMS = false;
    const T* values;
    int rows, k_size;

    DEVICE void copy(void* to, int row, int k) const {
        const T* from = values + int64_t(row) * k_size;
#pragma unroll
        for (int i = 0; i < CHUNK_VALUES<Operand>; i++) {
            const bool inside = row < rows && k + i < k_size;
            static_cast<Operand*>(to)[i] = from_float<Operand>(inside ? to_float(from[k + i]) : 0.0f);
        }
    }
};

// ---- runs: neighbouring values of a row in device memory, moved in vectors

template <int RUN> DEVICE void load_run(float (&v)[RUN], const float* from) {
#pragma unroll
    for (int i = 0; i < RUN; i += 4) {
        const float4 four = *reinterpret_cast<const float4*>(from + i);
        v[i] = four.x, v[i + 1] = four.y, v[i + 2] = four.z, v[i + 3] = four.w;
    }
}
DEVICE void load_run(float (&v)[8], const bf16* from) {
    const uint4 four = *reinterpret_cast<const uint4*>(from);
    const uint32_t words[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int i = 0; i < 4; i++) v[2 * i] = low_float(words[i]), v[2 * i + 1] = high_float(words[i]);
}
DEVICE void load_run(float (&v)[4], const bf16* from) {
    const uint2 two = *reinterpret_cast<const uint2*>(from);
    v[0] = low_float(two.x), v[1] = high_float(two.x), v[2] = low_float(two.y), v[3] = high_float(two.y);
}
template <int RUN> DEVICE void store_run(float* to, const float (&v)[RUN]) {
#pragma unroll
    for (int i = 0; i < RUN; i += 4) {
        *reinterpret_cast<float4*>(to + i) = make_float4(v[i], v[i + 1], v[i + 2], v[i + 3]);
    }
}
DEVICE void store_run(bf16* to, const float (&v)[8]) {
    *reinterpret_cast<uint4*>(to) =
        make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
}
DEVICE void store_run(bf16* to, const float (&v)[4]) {
    *reinterpret_cast<uint2*>(to) = make_uint2(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]));
}

// ---- operands in shared memory

// All threads of the block copy ROWS rows from `first` on, one k_tile wide, chunk16 by chunk16.
template <int ROWS, int THREADS, typename Swizzle, typename T, typename Source>
DEVICE void copy_k_tile(unsigned char* to, const Source& from, int first, int k_tile) {
    static_assert(ROWS * CHUNKS % THREADS == 0, "every thread copies as much");
    const int chunk = threadIdx.x % CHUNKS;
#pragma unroll
    for (int i = 0; i < ROWS * CHUNKS / THREADS; i++) {
        const int row = threadIdx.x / CHUNKS + i * (THREADS / CHUNKS);
        from.copy(to + chunk16_offset<Swizzle>(row, chunk), first + row, k_tile * K_TILE<T> + chunk * CHUNK_VALUES<T>);
    }
}

// A as bf16, in swizzled rows of 128 bytes.
struct Bf16Operand {
    static constexpr int BYTES = ROW_BYTES;             // of a row
    static constexpr bool LEAVES_OUT_FRAGMENTS = true;  // below the last row

    template <int ROWS, int THREADS, typename Source>
    DEVICE static void copy(unsigned char* to, const Source& from, int first, int k_tile) {
        copy_k_tile<ROWS, THREADS, ConsecutiveRows, bf16>(to, from, first, k_tile);
    }
    // Where this lane finds its part of 16 rows from `row` on, and of 16 values of k.
    DEVICE static const unsigned char* place(const unsigned char* rows, int row, int step) {
        return rows + chunk16_offset<ConsecutiveRows>(row + lane_index() % 16, 2 * step + lane_index() / 16);
    }
    DEVICE static void load(uint32_t (&fragment)[4], const unsigned char* at, int i) {
        ldmatrix_x4(fragment, at + i * 16 * BYTES);
    }
};

// A as f32 in pairs, rounded to bf16 when a fragment is made of them: for rows that begin at multiples of 8 bytes.
// source.copy_pair(to, row, k) fills two values. Rows are eight values longer than they hold, so that the lanes of a
// fragment fall into all banks.
struct F32PairOperand {
    static constexpr int BYTES = (K_TILE<bf16> + 8) * int(sizeof(float));
    static constexpr bool LEAVES_OUT_FRAGMENTS = false;  // they are zeros

    template <int ROWS, int THREADS, typename Source>
    DEVICE static void copy(unsigned char* to, const Source& from, int first, int k_tile) {
        const int pair = 2 * lane_index();
#pragma unroll 4
        for (int row = warp_index(); row < ROWS; row += THREADS / WARP) {
            from.copy_pair(to + row * BYTES + pair * int(sizeof(float)), first + row, k_tile * K_TILE<bf16> + pair);
        }
    }
    DEVICE static const unsigned char* place(const unsigned char* rows, int row, int step) {
        const int k = step * 16 + lane_index() % 4 * 2;
        return rows + (row + lane_index() / 4) * BYTES + k * int(sizeof(float));
    }
    DEVICE static void load(uint32_t (&fragment)[4], const unsigned char* at, int i) {
#pragma unroll
        for (int v = 0; v < 4; v++) {
            const int offset = v % 2 * 8 * BYTES + v / 2 * 8 * int(sizeof(float));
            const float2 pair = *reinterpret_cast<const float2*>(at + i * 16 * BYTES + offset);
            fragment[v] = pack_bf16(pair.x, pair.y);
        }
    }
};

// One k_tile of both operands.
template <int A_BYTES, int B_BYTES> struct alignas(128) TileStage {
    unsigned char a[A_BYTES];
    unsigned char b[B_BYTES];
};
// The sums take the place of the stages when these have been read.
template <typename Stage, int STAGES, int SUMS> union alignas(128) TileShared {
    Stage stage[STAGES];
    float sums[SUMS];
};

// ---- tensor cores

// A warp owns (M / WARPS_M) x (N / WARPS_N) of the tile: 64 x 64 reads shared memory least for its products, and fills the
// registers. A thread ends up with RUN columns in a row: column c of an 8-column fragment j stands for column
// RUN (c / 2) + 2 j + c % 2 of its group of RUN / 2 fragments. Of a B by columns it stands for column 8 j + c: two in a row.
template <int M_, int N_, int WARPS_M, int WARPS_N, int STAGES, typename Operand = Bf16Operand, typename OperandB = ByRows>
struct MmaTile {
    static constexpr int M = M_, N = N_;
    static constexpr int THREADS = WARPS_M * WARPS_N * WARP;
    static constexpr int WARP_M = M / WARPS_M, WARP_N = N / WARPS_N;
    static constexpr int RUN = WARP_N >= 32 ? 8 : 4;
    static constexpr bool COLUMNS_B = is_same<OperandB, ByColumns>;
    static constexpr int LANE_RUN = COLUMNS_B ? 2 : RUN;                     // neighbours among the sums of a thread
    static constexpr int GROUP = 4 * RUN;                                    // columns
    static constexpr int HEIGHT = WARP_M / 16, WIDTH = WARP_N / 8;           // fragments of a warp
    static constexpr int STEPS = K_TILE<bf16> / 16;
    static_assert(STEPS == 4, "as many as are written out in run");
    static_assert(WARP_M % 16 == 0 && WARP_N % GROUP == 0, "whole fragments");
    using Value = bf16;
    using Stage = TileStage<M * Operand::BYTES, N * ROW_BYTES>;
    using Shared = TileShared<Stage, STAGES, M * N>;
    using Columns = ColumnsOfFragment<RUN>;

    struct Fragments {
        uint32_t a[HEIGHT][4];
        uint32_t b[WIDTH / 2][4];  // pairs of fragments of 8 columns
    };

    float sums[HEIGHT][WIDTH][4];

    DEVICE static int warp_row() { return warp_index() / WARPS_N * WARP_M; }
    DEVICE static int warp_column() { return warp_index() % WARPS_N * WARP_N; }

    template <typename A, typename B>
    DEVICE void prefetch(Shared& shared, const A& a, const B& b, const TileCoord& at, int k) const {
        const int k_tiles = (k + K_TILE<bf16> - 1) / K_TILE<bf16>;
        // A loop would share addresses with the main loop: large tiles have no registers left for them.
        [[maybe_unused]] constexpr int UNROLLED = HEIGHT * WIDTH < 16 ? 1 : STAGES - 1;
#pragma unroll UNROLLED
        for (int k_tile = 0; k_tile < STAGES - 1; k_tile++) {
            if (k_tile < k_tiles) {
                Operand::template copy<M, THREADS>(shared.stage[k_tile].a, a, at.row, k_tile);
                copy_b(shared.stage[k_tile].b, b, at.column, k_tile);
            }
            cp_async_commit();
        }
    }

    DEVICE void clear() {
#pragma unroll
        for (int i = 0; i < HEIGHT; i++) {
#pragma unroll
            for (int j = 0; j < WIDTH; j++) sums[i][j][0] = sums[i][j][1] = sums[i][j][2] = sums[i][j][3] = 0.0f;
        }
    }

    template <typename Init> DEVICE void begin(const TileCoord& at, const Init& init) {
        each_run([&](int row, int column, auto sum) {
            float values[RUN];
            init(at.row + warp_row() + row, at.column + warp_column() + column, values);
#pragma unroll
            for (int v = 0; v < RUN; v++) sum(v) = values[v];
        });
    }

    template <typename A, typename B>
    DEVICE void mainloop(Shared& shared, const A& a, const B& b, const TileCoord& at, int k) {
        const int k_tiles = (k + K_TILE<bf16> - 1) / K_TILE<bf16>;
        // Vision transformers have a row more than a power of two: fragments below the last row are not multiplied.
        if constexpr (Operand::LEAVES_OUT_FRAGMENTS) {
            if (at.row + M > at.rows) {
                const int height = max(0, min(HEIGHT, (at.rows - at.row - warp_row() + 15) / 16));
                return run<false>(shared.stage, a, b, at, k_tiles, height);
            }
        }
        run<true>(shared.stage, a, b, at, k_tiles, HEIGHT);
    }

    // f(row, column, sum) for all runs of this thread: where in the warp's part they begin, and sum(v) of its values.
    template <typename F> DEVICE void each_run(const F& f) {
#pragma unroll
        for (int i = 0; i < HEIGHT * 2; i++) {
#pragma unroll
            for (int group = 0; group < WARP_N / (4 * LANE_RUN); group++) {
                const auto sum = [&](int v) -> float& {
                    return sums[i / 2][group * (LANE_RUN / 2) + v / 2][i % 2 * 2 + v % 2];
                };
                f(i * 8 + lane_index() / 4, group * 4 * LANE_RUN + lane_index() % 4 * LANE_RUN, sum);
            }
        }
    }

  private:
    template <typename B> DEVICE static void copy_b(unsigned char* to, const B& b, int first, int k_tile) {
        if constexpr (COLUMNS_B) {
            ByColumns::copy<N, THREADS>(to, b, first, k_tile);
        } else {
            copy_k_tile<N, THREADS, Columns, bf16>(to, b, first, k_tile);
        }
    }

    // `height` fragments of this warp have rows; all of them if FULL.
    template <bool FULL, typename A, typename B>
    DEVICE void run(Stage (&stages)[STAGES], const A& a, const B& b, const TileCoord& at, int k_tiles, int height) {
        cp_async_wait<STAGES - 2>();
        sync_block();
        Fragments fragments[2];
        if (k_tiles > 0) load<FULL>(fragments[0], stages[0], 0, height);
        int reading = 0, filling = STAGES - 1;
        for (int k_tile = 0; k_tile < k_tiles; k_tile++) {
            const int next = reading + 1 == STAGES ? 0 : reading + 1;
            const int ahead = k_tile + STAGES - 1;
            // Fragments are loaded a step ahead, across the border of k_tiles too. They stay in registers only where the
            // step is a constant of the language.
            const auto take = [&](auto constant) {
                constexpr int step = decltype(constant)::value;
                if (step + 1 < STEPS) {
                    load<FULL>(fragments[(step + 1) % 2], stages[reading], step + 1, height);
                } else if (k_tile + 1 < k_tiles) {
                    // After the barrier the next k_tile is there for all, and this one has been read by all.
                    cp_async_wait<STAGES - 2>();
                    sync_block();
                    load<FULL>(fragments[(step + 1) % 2], stages[next], 0, height);
                }
                if (step == 0 && ahead < k_tiles) Operand::template copy<M, THREADS>(stages[filling].a, a, at.row, ahead);
                if (step == 1) {
                    if (ahead < k_tiles) copy_b(stages[filling].b, b, at.column, ahead);
                    cp_async_commit();
                }
                add_products<FULL>(fragments[step % 2], a, height);
            };
            take(Constant<0>{});
            take(Constant<1>{});
            take(Constant<2>{});
            take(Constant<3>{});
            filling = reading;
            reading = next;
        }
    }

    // The operands of 16 values of k.
    template <bool FULL> DEVICE static void load(Fragments& f, const Stage& stage, int step, int height) {
        const int lane = lane_index();
        if (!FULL && height == 0) return;
        const auto a = Operand::place(stage.a, warp_row(), step);
#pragma unroll
        for (int i = 0; i < HEIGHT; i++) {
            if (FULL || i < height) Operand::load(f.a[i], a, i);
        }
        if constexpr (COLUMNS_B) {
            const ByColumns b = ByColumns::place(stage.b, warp_column(), step * 16 + lane % 16, lane / 16);
#pragma unroll
            for (int pair = 0; pair < WIDTH / 2; pair++) b.load(f.b[pair], pair);
        } else {
            constexpr int PAIRS = RUN / 4;  // of a group
            const int column = warp_column() + lane % 8 / 2 * RUN + lane % 2 + lane / 16 * 2;
            const unsigned char* b = stage.b + chunk16_offset<Columns>(column, 2 * step + lane / 8 % 2);
#pragma unroll
            for (int pair = 0; pair < WIDTH / 2; pair++) {
                ldmatrix_x4(f.b[pair], b + (pair / PAIRS * GROUP + pair % PAIRS * 4) * ROW_BYTES);
            }
        }
    }

    template <bool FULL, typename A> DEVICE void add_products(Fragments& f, const A& source, int height) {
#pragma unroll
        for (int i = 0; i < HEIGHT; i++) {
            if (!FULL && i >= height) continue;
            if constexpr (A::TRANSFORMS) {
#pragma unroll
                for (int v = 0; v < 4; v++) f.a[i][v] = source.transform(f.a[i][v]);
            }
#pragma unroll
            for (int j = 0; j < WIDTH; j++) {
                const uint32_t b[2] = {f.b[j / 2][j % 2 * 2], f.b[j / 2][j % 2 * 2 + 1]};
                mma_m16n8k16(sums[i][j], f.a[i], b);
            }
        }
    }
};

// ---- FMA units

// A thread owns every LANES_M-th row of its warp's part and eight columns in a row; it reads four values of k at a time of
// each.
template <int M_, int N_, int WARPS_M, int WARPS_N, int LANES_M, int STAGES> struct FmaTile {
    static constexpr int M = M_, N = N_;
    static constexpr int THREADS = WARPS_M * WARPS_N * WARP;
    static constexpr int RUN = 8, LANE_RUN = 8;
    static constexpr int LANES_N = WARP / LANES_M;
    static constexpr int WARP_M = M / WARPS_M, WARP_N = LANES_N * RUN;
    static constexpr int HEIGHT = WARP_M / LANES_M;  // rows of a thread
    static_assert(WARP_N * WARPS_N == N && HEIGHT * LANES_M == WARP_M, "the lanes cover the tile");
    using Value = float;
    using Stage = TileStage<M * ROW_BYTES, N * ROW_BYTES>;
    using Shared = TileShared<Stage, STAGES, M * N>;

    float sums[HEIGHT][RUN];

    DEVICE static int warp_row() { return warp_index() / WARPS_N * WARP_M; }
    DEVICE static int warp_column() { return warp_index() % WARPS_N * WARP_N; }

    template <typename A, typename B>
    DEVICE void prefetch(Shared& shared, const A& a, const B& b, const TileCoord& at, int k) const {
        const int k_tiles = (k + K_TILE<float> - 1) / K_TILE<float>;
#pragma unroll 1
        for (int k_tile = 0; k_tile < STAGES - 1; k_tile++) copy(shared.stage[k_tile], a, b, at, k_tile, k_tiles);
    }

    DEVICE void clear() {
#pragma unroll
        for (int i = 0; i < HEIGHT; i++) {
#pragma unroll
            for (int j = 0; j < RUN; j++) sums[i][j] = 0.0f;
        }
    }

    template <typename A, typename B>
    DEVICE void mainloop(Shared& shared, const A& a, const B& b, const TileCoord& at, int k) {
        const int k_tiles = (k + K_TILE<float> - 1) / K_TILE<float>;
        const bool rows = at.row + warp_row() < at.rows;
        int reading = 0, filling = STAGES - 1;
        for (int k_tile = 0; k_tile < k_tiles; k_tile++) {
            cp_async_wait<STAGES - 2>();
            // The k_tile is there for all, and the one before it has been read by all.
            sync_block();
            copy(shared.stage[filling], a, b, at, k_tile + STAGES - 1, k_tiles);
            if (rows) add_products(shared.stage[reading], a);
            filling = reading;
            reading = reading + 1 == STAGES ? 0 : reading + 1;
        }
    }

    // As in MmaTile.
    template <typename F> DEVICE void each_run(const F& f) {
#pragma unroll
        for (int i = 0; i < HEIGHT; i++) {
            const auto sum = [&](int v) -> float& { return sums[i][v]; };
            f(i * LANES_M + lane_index() / LANES_N, lane_index() % LANES_N * RUN, sum);
        }
    }

  private:
    template <typename A, typename B>
    DEVICE static void copy(Stage& stage, const A& a, const B& b, const TileCoord& at, int k_tile, int k_tiles) {
        if (k_tile < k_tiles) {
            copy_k_tile<M, THREADS, ConsecutiveRows, float>(stage.a, a, at.row, k_tile);
            copy_k_tile<N, THREADS, EveryEighthRow, float>(stage.b, b, at.column, k_tile);
        }
        cp_async_commit();
    }

    template <typename A> DEVICE void add_products(const Stage& stage, const A& source) {
        const int row = warp_row() + lane_index() / LANES_N, column = warp_column() + lane_index() % LANES_N * RUN;
#pragma unroll 1
        for (int chunk = 0; chunk < CHUNKS; chunk++) {
            float4 a[HEIGHT];
#pragma unroll
            for (int i = 0; i < HEIGHT; i++) {
                const int at = chunk16_offset<ConsecutiveRows>(row + i * LANES_M, chunk);
                a[i] = *reinterpret_cast<const float4*>(stage.a + at);
                if constexpr (A::TRANSFORMS) a[i] = source.transform(a[i]);
            }
#pragma unroll
            for (int j = 0; j < RUN; j++) {
                const int at = chunk16_offset<EveryEighthRow>(column + j, chunk);
                const float4 b = *reinterpret_cast<const float4*>(stage.b + at);
#pragma unroll
                for (int i = 0; i < HEIGHT; i++) sums[i][j] = fmaf(a[i].x, b.x, sums[i][j]);
#pragma unroll
                for (int i = 0; i < HEIGHT; i++) sums[i][j] = fmaf(a[i].y, b.y, sums[i][j]);
#pragma unroll
                for (int i = 0; i < HEIGHT; i++) sums[i][j] = fmaf(a[i].z, b.z, sums[i][j]);
#pragma unroll
                for (int i = 0; i < HEIGHT; i++) sums[i][j] = fmaf(a[i].w, b.w, sums[i][j]);
            }
        }
    }
};

// ---- epilogue

// Where chunk16 `chunk` of a row of sums lies: neither the lanes that hold a run of eight nor those that read one
// conflict in a bank.
template <int WARP_N> DEVICE int sums_offset(int row, int chunk) {
    return row * WARP_N + (chunk ^ ((row ^ chunk >> 3) & 1)) * 4;
}

// Hands all sums to `out`, a run at a time. All threads of the block take part.
template <typename Tile, typename Out>
DEVICE void epilogue(Tile& tile, typename Tile::Shared& shared, const TileCoord& at, const Out& out) {
    constexpr int RUN = Tile::RUN, WARP_N = Tile::WARP_N, RUNS = WARP_N / RUN;
    const int first_row = at.row + Tile::warp_row(), first_column = at.column + Tile::warp_column();
    if constexpr (Tile::LANE_RUN == RUN) {
        if (!out.rolled()) {
            tile.each_run([&](int row, int column, auto sum) {
                float values[RUN];
#pragma unroll
                for (int v = 0; v < RUN; v++) values[v] = sum(v);
                out.template store<false>(first_row + row, first_column + column, values);
            });
            return;
        }
    }
    // The stages have been read by all warps; from here on each has a part of the memory to itself.
    sync_block();
    float* sums = shared.sums + warp_index() * Tile::WARP_M * WARP_N;
    const auto four_sums = [&](int row, int column) {
        return reinterpret_cast<float4*>(sums + sums_offset<WARP_N>(row, column / 4));
    };
    tile.each_run([&](int row, int column, auto sum) {
        if constexpr (Tile::LANE_RUN < 4) {
            float* two = reinterpret_cast<float*>(four_sums(row, column)) + column % 4;
            *reinterpret_cast<float2*>(two) = make_float2(sum(0), sum(1));
        } else {
#pragma unroll
            for (int v = 0; v < RUN; v += 4) {
                *four_sums(row, column + v) = make_float4(sum(v), sum(v + 1), sum(v + 2), sum(v + 3));
            }
        }
    });
    sync_warp();
#pragma unroll 1
    for (int i = lane_index(); i < Tile::WARP_M * RUNS; i += WARP) {
        const int row = i / RUNS, column = i % RUNS * RUN;
        float values[RUN];
#pragma unroll
        for (int v = 0; v < RUN; v += 4) {
            const float4 four = *four_sums(row, column + v);
            values[v] = four.x, values[v + 1] = four.y, values[v + 2] = four.z, values[v + 3] = four.w;
        }
        out.template store<true>(first_row + row, first_column + column, values);
    }
}

}  // namespace
