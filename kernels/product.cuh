// product: what a block does for one tile of a product C = A B^T: slabs of both factors on their way to shared memory, the
// products, and C handed out eight columns at a time. Used by linear; fit for every product of rows with constant rows.
//
//   MmaTile<M, N, WARPS_M, WARPS_N, STAGES>           bf16 factors on the tensor cores (mma.sync), f32 sums
//   FmaTile<M, N, WARPS_M, WARPS_N, LANES_M, STAGES>  f32 factors, fused multiply-adds, true f32
// Both have THREADS, the type Shared (dynamic shared memory of the block) and two steps:
//   tile.multiply(a, b, place, depth)   the sums of this block's tile of C, over all of depth
//   tile.store(place, out)              out(row, column, values): eight columns of a row of C from `column` on, a
//                                       multiple of 8; `out` leaves out what lies outside of C
// `a` and `b` are sources of rows: source.copy(to, row, k) fills 16 bytes of shared memory with the values from (row, k)
// on, and with zeros where there are none; k is a multiple of the values in 16 bytes. AlignedRows and UnalignedRows read
// row-major matrices; a convolution brings its own, where a row of A is a position and k runs over taps and channels.
// `place` comes from tile_place<Tile>(rows, columns), for a one-dimensional grid of tile_count blocks.
//
// Shared memory holds rows of 128 bytes: 64 bf16 or 32 f32 values of k. Their 16-byte chunks are exchanged by an
// exclusive or with a few bits of the row, so that neither copies nor reads meet in a bank.
//
// The sum of each element of C runs over k in one fixed order, whatever the tile: results do not depend on its shape, or
// on where in a tile a row stands. A tile for wgmma and TMA (sm_90a) would stand beside these, with the same steps.
#pragma once

#include "mma.cuh"

namespace {

constexpr int ROW_BYTES = 128;   // of a row in shared memory
constexpr int CHUNKS = 8;        // of 16 bytes in a row
constexpr int STORE_COLUMNS = 8; // that a thread holds of a row of C, one after the other
constexpr int GROUP_ROWS = 8;    // row tiles that are walked column by column, so that their rows of A stay in L2

template <typename T> constexpr int SLAB = ROW_BYTES / int(sizeof(T));
template <typename T> constexpr int CHUNK_VALUES = 16 / int(sizeof(T));

template <int VALUE> struct Constant {
    static constexpr int value = VALUE;
};

// Where a tile stands in C, and the rows of C.
struct TilePlace {
    int row, column, rows;
};

// The tile of this block: groups of row tiles, in each of them column after column.
template <typename Tile> DEVICE TilePlace tile_place(int rows, int columns) {
    const int down = (rows + Tile::M - 1) / Tile::M, across = (columns + Tile::N - 1) / Tile::N;
    const int block = blockIdx.x, in_group = GROUP_ROWS * across;
    const int first = block / in_group * GROUP_ROWS;
    const int height = min(GROUP_ROWS, down - first);
    const int at = block % in_group;
    return {(first + at % height) * Tile::M, at / height * Tile::N, rows};
}

// A row-major matrix (rows, depth) whose rows begin at multiples of 16 bytes.
template <typename T> struct AlignedRows {
    const T* values;
    int rows, depth;

    DEVICE void copy(void* to, int row, int k) const {
        const bool inside = row < rows && k < depth;
        cp_async_16(to, values + (inside ? int64_t(row) * depth + k : 0), inside);
    }
};

// The same without a condition on depth, value by value.
template <typename T> struct UnalignedRows {
    const T* values;
    int rows, depth;

    DEVICE void copy(void* to, int row, int k) const {
        const T* from = values + int64_t(row) * depth;
#pragma unroll
        for (int i = 0; i < CHUNK_VALUES<T>; i++) {
            const bool inside = row < rows && k + i < depth;
            static_cast<T*>(to)[i] = inside ? from[k + i] : from_float<T>(0.0f);
        }
    }
};

// Which chunk of a row in shared memory holds chunk 0. Eight rows that are read at once have eight different answers.
struct ConsecutiveRows {  // rows r, r + 1, ... r + 7
    DEVICE static int of(int row) { return row & 7; }
};
struct PairsOfRows {  // rows r, r + 1, r + 8, r + 9, ... r + 25
    DEVICE static int of(int row) { return (row >> 2 & 6) | (row & 1); }
};
struct EveryEighthRow {  // rows r, r + 8, ... r + 56
    DEVICE static int of(int row) { return row >> 3 & 7; }
};

template <typename Swizzle> DEVICE int chunk_offset(int row, int chunk) {
    return row * ROW_BYTES + (chunk ^ Swizzle::of(row)) * 16;
}

// A slab of both factors.
template <int M, int N> struct alignas(128) TileStage {
    unsigned char a[M * ROW_BYTES];
    unsigned char b[N * ROW_BYTES];
};
template <int M, int N, int STAGES> struct TileStages {
    TileStage<M, N> stage[STAGES];
};

// All threads of the block copy ROWS rows from `first` on, one slab wide.
template <int ROWS, int THREADS, typename Swizzle, typename T, typename Source>
DEVICE void copy_slab(unsigned char* to, const Source& from, int first, int slab) {
    static_assert(ROWS * CHUNKS % THREADS == 0, "every thread copies as much");
    const int chunk = threadIdx.x % CHUNKS;
#pragma unroll
    for (int i = 0; i < ROWS * CHUNKS / THREADS; i++) {
        const int row = threadIdx.x / CHUNKS + i * (THREADS / CHUNKS);
        from.copy(to + chunk_offset<Swizzle>(row, chunk), first + row, slab * SLAB<T> + chunk * CHUNK_VALUES<T>);
    }
}

// bf16 on the tensor cores. A warp owns (M / WARPS_M) x (N / WARPS_N) of the tile: 64 x 64 reads shared memory least for
// its products, and fills the registers. Column c of an 8-column fragment j stands for column 8 (c / 2) + 2 j + c % 2 of
// its group of 32, so that a thread ends up with eight columns in a row, and stores 16 bytes.
template <int M_, int N_, int WARPS_M, int WARPS_N, int STAGES> struct MmaTile {
    using Value = bf16;
    using Shared = TileStages<M_, N_, STAGES>;
    using Stage = TileStage<M_, N_>;
    using RowsOfA = ConsecutiveRows;
    using RowsOfB = PairsOfRows;
    static constexpr int M = M_, N = N_;
    static constexpr int THREADS = WARPS_M * WARPS_N * WARP;
    static constexpr int WARP_M = M / WARPS_M, WARP_N = N / WARPS_N;
    static constexpr int HEIGHT = WARP_M / 16, GROUPS = WARP_N / 32;  // fragments of a warp; groups of 4 fragments
    static constexpr int STEPS = SLAB<bf16> / 16;
    static_assert(STEPS == 4, "as many as are written out in run");
    static_assert(WARP_M % 16 == 0 && WARP_N % 32 == 0, "whole fragments");

    struct Fragments {
        uint32_t a[HEIGHT][4];
        uint32_t b[GROUPS * 2][4];  // pairs of fragments of 8 columns
    };

    float sums[HEIGHT][GROUPS * 4][4];

    DEVICE static int warp_row() { return warp_index() / WARPS_N * WARP_M; }
    DEVICE static int warp_column() { return warp_index() % WARPS_N * WARP_N; }

    template <typename A, typename B> DEVICE void multiply(const A& a, const B& b, const TilePlace& place, int depth) {
#pragma unroll
        for (int i = 0; i < HEIGHT; i++) {
#pragma unroll
            for (int j = 0; j < GROUPS * 4; j++) sums[i][j][0] = sums[i][j][1] = sums[i][j][2] = sums[i][j][3] = 0.0f;
        }
        const int rows = place.rows - place.row - warp_row();
        // Vision transformers have a row more than a power of two: fragments below the last row are not multiplied.
        if (place.row + M <= place.rows) {
            run<true>(a, b, place, depth, HEIGHT);
        } else {
            run<false>(a, b, place, depth, max(0, min(HEIGHT, (rows + 15) / 16)));
        }
    }

    template <typename Out> DEVICE void store(const TilePlace& place, const Out& out) const {
        const int row = place.row + warp_row() + lane_index() / 4;
        const int column = place.column + warp_column() + lane_index() % 4 * STORE_COLUMNS;
#pragma unroll
        for (int i = 0; i < HEIGHT * 2; i++) {
#pragma unroll
            for (int group = 0; group < GROUPS; group++) {
                float values[STORE_COLUMNS];
#pragma unroll
                for (int v = 0; v < STORE_COLUMNS; v++) values[v] = sums[i / 2][group * 4 + v / 2][i % 2 * 2 + v % 2];
                out(row + i * 8, column + group * 32, values);
            }
        }
    }

  private:
    // `height` fragments of this warp have rows; all of them if FULL.
    template <bool FULL, typename A, typename B>
    DEVICE void run(const A& a, const B& b, const TilePlace& place, int depth, int height) {
        Stage* stages = shared_memory<Shared>().stage;
        const int slabs = (depth + SLAB<bf16> - 1) / SLAB<bf16>;
#pragma unroll
        for (int slab = 0; slab < STAGES - 1; slab++) {
            if (slab < slabs) {
                copy_slab<M, THREADS, RowsOfA, bf16>(stages[slab].a, a, place.row, slab);
                copy_slab<N, THREADS, RowsOfB, bf16>(stages[slab].b, b, place.column, slab);
            }
            cp_async_commit();
        }
        cp_async_wait<STAGES - 2>();
        sync_block();
        Fragments fragments[2];
        if (slabs > 0) load<FULL>(fragments[0], stages[0], 0, height);
        int reading = 0, filling = STAGES - 1;
        for (int slab = 0; slab < slabs; slab++) {
            const int next = reading + 1 == STAGES ? 0 : reading + 1;
            const int ahead = slab + STAGES - 1;
            // Fragments are loaded a step ahead, across the border of the slabs too. They stay in registers only where the
            // step is a constant of the language.
            const auto take = [&](auto constant) {
                constexpr int step = decltype(constant)::value;
                if (step + 1 < STEPS) {
                    load<FULL>(fragments[(step + 1) % 2], stages[reading], step + 1, height);
                } else if (slab + 1 < slabs) {
                    // After the barrier the next slab is there for all, and this one has been read by all.
                    cp_async_wait<STAGES - 2>();
                    sync_block();
                    load<FULL>(fragments[(step + 1) % 2], stages[next], 0, height);
                }
                if (step == 0 && ahead < slabs) copy_slab<M, THREADS, RowsOfA, bf16>(stages[filling].a, a, place.row, ahead);
                if (step == 1) {
                    if (ahead < slabs) copy_slab<N, THREADS, RowsOfB, bf16>(stages[filling].b, b, place.column, ahead);
                    cp_async_commit();
                }
                add_products<FULL>(fragments[step % 2], height);
            };
            take(Constant<0>{});
            take(Constant<1>{});
            take(Constant<2>{});
            take(Constant<3>{});
            filling = reading;
            reading = next;
        }
    }

    // The factors of 16 values of k.
    template <bool FULL> DEVICE static void load(Fragments& f, const Stage& stage, int step, int height) {
        const int lane = lane_index();
        if (!FULL && height == 0) return;
        const unsigned char* a = stage.a + chunk_offset<RowsOfA>(warp_row() + lane % 16, 2 * step + lane / 16);
#pragma unroll
        for (int i = 0; i < HEIGHT; i++) {
            if (FULL || i < height) ldmatrix_x4(f.a[i], a + i * 16 * ROW_BYTES);
        }
        const int column = warp_column() + lane % 8 / 2 * 8 + lane % 2 + lane / 16 * 2;
        const unsigned char* b = stage.b + chunk_offset<RowsOfB>(column, 2 * step + lane / 8 % 2);
#pragma unroll
        for (int pair = 0; pair < GROUPS * 2; pair++) ldmatrix_x4(f.b[pair], b + (pair / 2 * 32 + pair % 2 * 4) * ROW_BYTES);
    }

    template <bool FULL> DEVICE void add_products(const Fragments& f, int height) {
#pragma unroll
        for (int i = 0; i < HEIGHT; i++) {
            if (!FULL && i >= height) continue;
#pragma unroll
            for (int j = 0; j < GROUPS * 4; j++) {
                const uint32_t b[2] = {f.b[j / 2][j % 2 * 2], f.b[j / 2][j % 2 * 2 + 1]};
                mma_m16n8k16(sums[i][j], f.a[i], b);
            }
        }
    }
};

// True f32. A thread owns every LANES_M-th row of its warp's part and eight columns in a row; it reads four values of k
// at a time of each.
template <int M_, int N_, int WARPS_M, int WARPS_N, int LANES_M, int STAGES> struct FmaTile {
    using Value = float;
    using Shared = TileStages<M_, N_, STAGES>;
    using Stage = TileStage<M_, N_>;
    using RowsOfA = ConsecutiveRows;
    using RowsOfB = EveryEighthRow;
    static constexpr int M = M_, N = N_;
    static constexpr int THREADS = WARPS_M * WARPS_N * WARP;
    static constexpr int LANES_N = WARP / LANES_M;
    static constexpr int WARP_M = M / WARPS_M, WARP_N = LANES_N * STORE_COLUMNS;
    static constexpr int HEIGHT = WARP_M / LANES_M;  // rows of a thread
    static_assert(WARP_N * WARPS_N == N && HEIGHT * LANES_M == WARP_M, "the lanes cover the tile");

    float sums[HEIGHT][STORE_COLUMNS];

    DEVICE static int first_row() { return warp_index() / WARPS_N * WARP_M + lane_index() / LANES_N; }
    DEVICE static int first_column() {
        return warp_index() % WARPS_N * WARP_N + lane_index() % LANES_N * STORE_COLUMNS;
    }

    template <typename A, typename B> DEVICE void multiply(const A& a, const B& b, const TilePlace& place, int depth) {
        Stage* stages = shared_memory<Shared>().stage;
#pragma unroll
        for (int i = 0; i < HEIGHT; i++) {
#pragma unroll
            for (int j = 0; j < STORE_COLUMNS; j++) sums[i][j] = 0.0f;
        }
        const int slabs = (depth + SLAB<float> - 1) / SLAB<float>;
        const bool rows = place.row + warp_index() / WARPS_N * WARP_M < place.rows;
#pragma unroll
        for (int slab = 0; slab < STAGES - 1; slab++) copy(stages[slab], a, b, place, slab, slabs);
        int reading = 0, filling = STAGES - 1;
        for (int slab = 0; slab < slabs; slab++) {
            cp_async_wait<STAGES - 2>();
            // The slab is there for all, and the one before it has been read by all.
            sync_block();
            copy(stages[filling], a, b, place, slab + STAGES - 1, slabs);
            if (rows) add_products(stages[reading]);
            filling = reading;
            reading = reading + 1 == STAGES ? 0 : reading + 1;
        }
    }

    template <typename Out> DEVICE void store(const TilePlace& place, const Out& out) const {
#pragma unroll
        for (int i = 0; i < HEIGHT; i++) {
            out(place.row + first_row() + i * LANES_M, place.column + first_column(), sums[i]);
        }
    }

  private:
    template <typename A, typename B>
    DEVICE static void copy(Stage& stage, const A& a, const B& b, const TilePlace& place, int slab, int slabs) {
        if (slab < slabs) {
            copy_slab<M, THREADS, RowsOfA, float>(stage.a, a, place.row, slab);
            copy_slab<N, THREADS, RowsOfB, float>(stage.b, b, place.column, slab);
        }
        cp_async_commit();
    }

    DEVICE void add_products(const Stage& stage) {
#pragma unroll 1
        for (int chunk = 0; chunk < CHUNKS; chunk++) {
            float4 a[HEIGHT];
#pragma unroll
            for (int i = 0; i < HEIGHT; i++) {
                a[i] = *reinterpret_cast<const float4*>(stage.a + chunk_offset<RowsOfA>(first_row() + i * LANES_M, chunk));
            }
#pragma unroll
            for (int j = 0; j < STORE_COLUMNS; j++) {
                const float4 b =
                    *reinterpret_cast<const float4*>(stage.b + chunk_offset<RowsOfB>(first_column() + j, chunk));
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

}  // namespace
