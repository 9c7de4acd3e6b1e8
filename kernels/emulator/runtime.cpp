// What the emulated kernels share however they were built, itself never checked: who is running on this host thread, and
// the halves of mma.cuh that take a whole warp. See src/backend/cuda/driver/emulator.
#include "emulator.h"

static_assert(sizeof(uint4) == 16, "a copy is one uint4");

extern "C" {
__thread EmulatorContext* emulator_context __attribute__((tls_model("initial-exec")));

// The runtime's: an access of the running thread (0 reads, 1 writes), its fence, and a copy's two ends. They end the launch
// or return.
void emulator_access(const void* at, uint64_t bytes, int kind, const void* place);
void emulator_fence();
void emulator_copy_begins(const void* to, const void* from, uint64_t bytes, const void* place);
void emulator_copy_arrives(const void* to, const void* from, uint64_t bytes, const void* place);

void emulator_set_context(EmulatorContext* context) { emulator_context = context; }
unsigned emulator_context_bytes() { return sizeof(EmulatorContext); }
unsigned emulator_warp_bytes() { return sizeof(EmulatorWarp); }
unsigned emulator_copies_bytes() { return sizeof(EmulatorCopies); }

// Before a block starts, whatever the one before left behind.
void emulator_reset_warp(EmulatorWarp* warp) { warp->set[0].arrived = warp->set[1].arrived = 0; }
void emulator_reset_copies(EmulatorCopies* copies) {
    copies->count = copies->group = copies->product_count = copies->product_group = 0;
    copies->unfenced = copies->unfenced_barriers = false;
}

// Where the binary's constants lie: what the linker put between its start and the end of its data.
extern char __executable_start __attribute__((weak));
extern char _end __attribute__((weak));
const void* emulator_binary_start() { return &__executable_start; }
const void* emulator_binary_end() { return &_end; }

void emulator_fence_device() {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (emulator_context->checked) emulator_fence();
}

void emulator_flag_read() {
    constexpr uint64_t MOST = 1 << 22;
    if (++emulator_context->spins > MOST) emulator_fault("waits for a flag in a loop without spin_pause");
}
}

namespace {

bool in_shared(const EmulatorContext& self, const void* at, uint64_t bytes) {
    const uint64_t offset = static_cast<const unsigned char*>(at) - self.shared;
    return offset <= self.shared_bytes && bytes <= self.shared_bytes - offset;
}

// d += a b from the fragments of 32 lanes, which are laid out as the head of mma.cuh says; along K in order.
void multiply(EmulatorWarp::Set& set) {
    float a[16][16], b[16][8], d[16][8];
    for (int lane = 0; lane < 32; lane++) {
        const int g = lane / 4, t = lane % 4;
        for (int i = 0; i < 4; i++) {
            float* at = &a[g + i % 2 * 8][2 * t + i / 2 * 8];
            const uint32_t pair = set.a[lane][i];
            at[0] = __uint_as_float(pair << 16), at[1] = __uint_as_float(pair & 0xffff0000u);
            d[g + i / 2 * 8][2 * t + i % 2] = set.d[lane][i];
        }
        for (int i = 0; i < 2; i++) {
            const uint32_t pair = set.b[lane][i];
            b[2 * t + i * 8][g] = __uint_as_float(pair << 16);
            b[2 * t + i * 8 + 1][g] = __uint_as_float(pair & 0xffff0000u);
        }
    }
    // Four rows at a time hide the latency of the additions.
    for (int row = 0; row < 16; row += 4) {
        float sums[4][8];
        __builtin_memcpy(sums, d[row], sizeof sums);
        for (int k = 0; k < 16; k++) {
            for (int r = 0; r < 4; r++) {
                for (int column = 0; column < 8; column++) sums[r][column] += a[row + r][k] * b[k][column];
            }
        }
        __builtin_memcpy(d[row], sums, sizeof sums);
    }
    for (int lane = 0; lane < 32; lane++) {
        for (int i = 0; i < 4; i++) set.d[lane][i] = d[lane / 4 + i / 2 * 8][2 * (lane % 4) + i % 2];
    }
}

}  // namespace

extern "C" {

// The last lane to come has everything, and computes for all.
void emulator_mma_m16n8k16(float* d, const uint32_t* a, const uint32_t* b, const char* file, int line) {
    EmulatorContext& self = *emulator_context;
    EmulatorWarp::Set& set = self.warp->set[self.phase++ & 1];
    __builtin_memcpy(set.a[self.lane], a, sizeof set.a[0]);
    __builtin_memcpy(set.b[self.lane], b, sizeof set.b[0]);
    __builtin_memcpy(set.d[self.lane], d, sizeof set.d[0]);
    if (++set.arrived == 32) {
        set.arrived = 0;
        multiply(set);
    }
    emulator_wait(WAIT_WARP, "mma_m16n8k16", file, line);
    __builtin_memcpy(d, set.d[self.lane], sizeof set.d[0]);
}

// The rows are read when all lanes have named theirs and before any goes on. Each counts as an access of the lane that
// named it, made when it did: the instruction itself orders nothing.
const uint16_t* emulator_ldmatrix(const void* row, const char* what, const char* file, int line) {
    EmulatorContext& self = *emulator_context;
    emulator_require(reinterpret_cast<uint64_t>(row) % 16 == 0, "ldmatrix of a misaligned row");
    EmulatorWarp::Set& set = self.warp->set[self.phase++ & 1];
    if (self.checked) emulator_access(row, 16, 0, __builtin_return_address(0));
    emulator_require(in_shared(self, row, 16), "ldmatrix of a row that is not in shared memory");
    set.slot[self.lane] = reinterpret_cast<uint64_t>(row);
    if (++set.arrived == 32) {
        set.arrived = 0;
        for (int lane = 0; lane < 32; lane++) {
            __builtin_memcpy(set.row[lane], reinterpret_cast<const void*>(set.slot[lane]), 16);
        }
    }
    emulator_wait(WAIT_WARP, what, file, line);
    return reinterpret_cast<const uint16_t*>(set.row);
}

void emulator_copy(void* to, const void* from, unsigned bytes) {
    EmulatorContext& self = *emulator_context;
    EmulatorCopies& copies = *self.copies;
    emulator_require(copies.count < EmulatorCopies::MOST, "more copies under way than the emulator holds");
    emulator_require(reinterpret_cast<uint64_t>(to) % bytes == 0, "cp_async to a misaligned address");
    emulator_require(reinterpret_cast<uint64_t>(from) % bytes == 0, "cp_async from a misaligned address");
    if (self.checked) emulator_copy_begins(to, from, bytes, __builtin_return_address(0));
    emulator_require(in_shared(self, to, bytes), "cp_async to an address that is not in shared memory");
    copies.pending[copies.count++] = {to, from, copies.group, bytes};
}

void emulator_copies_wait(unsigned groups) {
    EmulatorContext& self = *emulator_context;
    EmulatorCopies& copies = *self.copies;
    unsigned kept = 0;
    for (unsigned i = 0; i < copies.count; i++) {
        const auto copy = copies.pending[i];
        if (copy.group + groups >= copies.group) {
            copies.pending[kept++] = copy;
            continue;
        }
        if (self.checked) emulator_copy_arrives(copy.to, copy.from, copy.bytes, __builtin_return_address(0));
        if (copy.from) {
            __builtin_memcpy(copy.to, copy.from, copy.bytes);
        } else {
            __builtin_memset(copy.to, 0, copy.bytes);
        }
        copies.unfenced = true;
    }
    copies.count = kept;
}
}

namespace {

// Where 16 bytes of an operand lie: chunk16 `chunk` of a line of 128 bytes, `line` lines after `at`, as the tensor cores
// exchange them by the address.
const unsigned char* operand_chunk(const EmulatorContext& self, const unsigned char* at, unsigned line, unsigned chunk) {
    const uint64_t linear = uint64_t(at - self.shared) + line * 128 + chunk * 16;
    const unsigned char* place = self.shared + (linear ^ ((linear >> 3) & 0x70));
    if (self.checked) emulator_access(place, 16, 0, __builtin_return_address(0));
    emulator_require(in_shared(self, place, 16), "wgmma of an operand that is not in shared memory");
    return place;
}

// 16 values of k of `count` rows from `first` on, to values[k][row]: see the head of wgmma.cuh.
void read_operand(const EmulatorContext& self, const unsigned char* at, bool columns, unsigned first, unsigned count, float* values) {
    uint16_t eight[8];
    for (unsigned line = 0; line < (columns ? 16 : count); line++) {
        for (unsigned chunk = 0; chunk < (columns ? count / 8 : 2); chunk++) {
            const unsigned row = columns ? first + chunk * 8 : first + line;
            const unsigned in_panel = columns ? row / 64 * 64 + line : row;
            __builtin_memcpy(eight, operand_chunk(self, at, in_panel, columns ? row % 64 / 8 : chunk), 16);
            for (unsigned i = 0; i < 8; i++) {
                float& value = columns ? values[line * count + chunk * 8 + i] : values[(chunk * 8 + i) * count + line];
                value = __uint_as_float(uint32_t(eight[i]) << 16);
            }
        }
    }
}

// The warp's 16 rows of a product, along K in order; `sums` are the d of its lanes.
void multiply(const EmulatorContext& self, const EmulatorCopies::Product& product, float* const (&sums)[32],
              const uint32_t* const (&registers)[32]) {
    constexpr unsigned MOST_COLUMNS = 256;
    const unsigned columns = product.width * 8, warp = self.thread.x / 32 % 4;
    static thread_local float a[16 * 16], b[16 * MOST_COLUMNS], d[16][MOST_COLUMNS];
    if (product.a) {
        read_operand(self, product.a, product.a_columns, warp * 16, 16, a);
    } else {
        for (unsigned lane = 0; lane < 32; lane++) {
            for (unsigned i = 0; i < 4; i++) {
                float* at = &a[(lane % 4 * 2 + i / 2 * 8) * 16 + lane / 4 + i % 2 * 8];
                at[0] = __uint_as_float(registers[lane][i] << 16), at[16] = __uint_as_float(registers[lane][i] & 0xffff0000u);
            }
        }
    }
    read_operand(self, product.b, product.b_columns, 0, columns, b);
    const auto each = [&](auto f) {
        for (unsigned lane = 0; lane < 32; lane++) {
            for (unsigned v = 0; v < product.width * 4; v++) {
                f(sums[lane][v], d[lane / 4 + v % 4 / 2 * 8][v / 4 * 8 + lane % 4 * 2 + v % 2]);
            }
        }
    };
    each([](float& sum, float& place) { place = sum; });
    for (unsigned row = 0; row < 16; row++) {
        for (unsigned k = 0; k < 16; k++) {
            const float factor = a[k * 16 + row];
            for (unsigned column = 0; column < columns; column++) d[row][column] += factor * b[k * columns + column];
        }
    }
    each([](float& sum, float& place) { sum = place; });
}

}  // namespace

extern "C" {

void emulator_product(float* d, const unsigned char* a, const uint32_t* registers, const unsigned char* b, unsigned width,
                      bool a_columns, bool b_columns) {
    EmulatorContext& self = *emulator_context;
    EmulatorCopies& copies = *self.copies;
    emulator_require(copies.product_count < EmulatorCopies::MOST_PRODUCTS, "more products under way than the emulator holds");
    emulator_require(!copies.unfenced, "wgmma after a copy to shared memory without fence_async_proxy between them");
    copies.products[copies.product_count++] = {d, a, registers, b, copies.product_group, width, a_columns, b_columns};
}

// The lanes of a warp wait together, and the last to come computes for all. Operands are read as late as they may be.
void emulator_products_wait(unsigned groups, const char* file, int line) {
    EmulatorContext& self = *emulator_context;
    EmulatorCopies& copies = *self.copies;
    EmulatorWarp::Set& set = self.warp->set[self.phase++ & 1];
    set.slot[self.lane] = reinterpret_cast<uint64_t>(&copies);
    unsigned done = 0;
    while (done < copies.product_count && copies.products[done].group + groups < copies.product_group) done++;
    if (++set.arrived == 32) {
        set.arrived = 0;
        for (unsigned i = 0; i < done; i++) {
            float* sums[32];
            const uint32_t* registers[32];
            for (int lane = 0; lane < 32; lane++) {
                const auto& product = reinterpret_cast<EmulatorCopies*>(set.slot[lane])->products[i];
                sums[lane] = product.d, registers[lane] = product.registers;
            }
            multiply(self, copies.products[i], sums, registers);
        }
    }
    emulator_wait(WAIT_WARP, "wgmma_wait", file, line);
    copies.product_count -= done;
    __builtin_memmove(copies.products, copies.products + done, copies.product_count * sizeof copies.products[0]);
}
}
