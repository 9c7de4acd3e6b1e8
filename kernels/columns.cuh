// columns: operands of gemm.cuh that lie transposed in memory, the values of k apart and those of neighbouring rows (of A) or
// columns (of C) side by side.
//
//   TransposedRows             a source of f32 for FmaTile: copied value by value to where the tile reads rows of k
//   ColumnsOperand, ByColumns  A and B of an MmaTile: chunk16s of neighbours, transposed by ldmatrix, of any source whose rows
//                              are the values of k
#pragma once

#include "mma.cuh"

namespace {

// A matrix (K, rows) of f32, of which a column is a row of A or B, without a condition on either count.
struct TransposedRows {
    static constexpr bool TRANSFORMS = false;
    const float* values;
    int k_size, rows;
};

// One k_tile of ROWS of its columns from `first` on, value by value. A warp copies eight neighbours of four values of k.
template <int ROWS, int THREADS, typename Swizzle, typename T>
DEVICE void copy_k_tile(unsigned char* to, const TransposedRows& from, int first, int k_tile) {
    const int in_chunk = lane_index() / 8;
#pragma unroll 1
    for (int row = warp_index() * 8 + lane_index() % 8; row < ROWS; row += THREADS / WARP * 8) {
#pragma unroll 1
        for (int chunk = 0; chunk < CHUNKS; chunk++) {
            const int k = k_tile * K_TILE<float> + chunk * 4 + in_chunk;
            const bool inside = first + row < from.rows && k < from.k_size;
            void* place = to + chunk16_offset<Swizzle>(row, chunk) + in_chunk * int(sizeof(float));
            cp_async_4(place, from.values + (inside ? int64_t(k) * from.rows + first + row : 0), inside);
        }
    }
}

// bf16 whose neighbours in memory are neighbours in the row, or column, of C: source.copy(to, k, column). In shared memory
// panels of 64 columns, each a swizzled row of 128 bytes for each value of k; fragments are transposed on the way out.
struct ByColumns {
    const unsigned char* line;
    int chunk, swizzle;

    // By default the loop stays one where large tiles have no registers left for the addresses.
    template <int COLUMNS, int THREADS, bool UNROLLS = COLUMNS <= 64, typename Source>
    DEVICE static void copy(unsigned char* to, const Source& from, int first, int k_tile) {
        constexpr int PANEL = K_TILE<bf16>;
        static_assert(COLUMNS % PANEL == 0 && PANEL % (THREADS / CHUNKS) == 0, "whole panels");
        const int chunk = threadIdx.x % CHUNKS;
        [[maybe_unused]] constexpr int UNROLLED = UNROLLS ? COLUMNS * CHUNKS / THREADS : 1;
#pragma unroll UNROLLED
        for (int i = 0; i < COLUMNS * CHUNKS / THREADS; i++) {
            const int line = threadIdx.x / CHUNKS + i * (THREADS / CHUNKS);
            const int column = first + line / PANEL * PANEL + chunk * CHUNK_VALUES<bf16>;
            from.copy(to + chunk16_offset<ConsecutiveRows>(line, chunk), k_tile * PANEL + line % PANEL, column);
        }
    }
    // The chunk16 of value `k` of a k_tile, `chunk` after that of `column`.
    DEVICE static ByColumns place(const unsigned char* tile, int column, int k, int chunk) {
        constexpr int PANEL = K_TILE<bf16>;
        const int line = column / PANEL * PANEL + k;
        return {tile + line * ROW_BYTES, column % PANEL / CHUNK_VALUES<bf16> + chunk, ConsecutiveRows::of(k)};
    }
    // 16 columns are two chunk16s.
    DEVICE void load(uint32_t (&fragment)[4], int i) const {
        ldmatrix_x4_trans(fragment, line + ((chunk + 2 * i) ^ swizzle) * 16);
    }
};

// A by columns.
struct ColumnsOperand {
    static constexpr int BYTES = ROW_BYTES;
    static constexpr bool LEAVES_OUT_FRAGMENTS = true;

    template <int ROWS, int THREADS, typename Source>
    DEVICE static void copy(unsigned char* to, const Source& from, int first, int k_tile) {
        ByColumns::copy<ROWS, THREADS>(to, from, first, k_tile);
    }
    DEVICE static ByColumns place(const unsigned char* tile, int row, int step) {
        const int lane = lane_index();
        return ByColumns::place(tile, row, step * 16 + lane / 16 * 8 + lane % 8, lane / 8 % 2);
    }
    DEVICE static void load(uint32_t (&fragment)[4], const ByColumns& at, int i) { at.load(fragment, i); }
};

// B as it lies in memory for C = A B^T: rows of k.
struct ByRows;

template <typename A, typename B> constexpr bool is_same = false;
template <typename A> constexpr bool is_same<A, A> = true;

}  // namespace
