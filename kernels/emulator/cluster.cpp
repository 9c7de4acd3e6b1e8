// The emulated halves of cluster.cuh: barriers that count arrivals and bytes, and copies of boxes. All blocks of a cluster run
// on one thread of the host. A copy arrives when somebody waits for its barrier, as late as it may; or eagerly, when it is
// begun: results have to be the same. Arrivals at the other block and sync_pair order more here than on a GPU, where plain
// stores to device memory are not covered: pairs must not hand each other any.
#include "emulator.h"

extern "C" {
// The runtime's: see runtime.cpp. The last two are on behalf of the thread that began a copy.
void emulator_access(const void* at, uint64_t bytes, int kind, const void* place);
void emulator_atomic(const void* at, uint64_t bytes, int kind, int order, const void* place);
void emulator_copy_begins(const void* to, const void* from, uint64_t bytes, const void* place);
void emulator_box_line_arrives(unsigned block, unsigned thread, const void* to, const void* from, uint64_t bytes,
                               const void* place);
void emulator_box_arrives(unsigned block, unsigned thread, const void* barrier, const void* place);
unsigned emulator_block_number();
}

namespace {

constexpr int LOADS = 1, STORES = 2, ACQUIRE = 2, ACQUIRE_RELEASE = 4;
constexpr uint64_t LINE = 128, CHUNK = 16;

// The 8 bytes of a barrier.
struct Barrier {
    unsigned phase : 1, pending : 15, arrivals : 16;
    int bytes;  // that the phase still waits for; negative when they come before they are expected
};
static_assert(sizeof(Barrier) == sizeof(uint64_t), "a barrier is a word of 8 bytes");

// A TensorMap, as the emulated driver makes it.
struct Map {
    const unsigned char* address;
    uint64_t rows, columns, row_bytes, box_lines, kind;
};
constexpr uint64_t BOXES_OF_BF16 = 0x626f786573313662;

struct Copy {
    unsigned char* to;
    Map map;
    int line, value;
    Barrier* barrier;
    unsigned block, rank, thread;  // that began it
    const void* place;
};

constexpr unsigned MAX_COPIES = 512;
thread_local Copy under_way[MAX_COPIES];
thread_local unsigned count;

void end_phase(Barrier& barrier) {
    if (barrier.pending) return;
    emulator_require(barrier.bytes >= 0, "more bytes arrive than a phase of the barrier expects");
    if (barrier.bytes) return;
    barrier.phase ^= 1;
    barrier.pending = barrier.arrivals;
}

// A place of this block's shared memory, in that of block `rank`.
unsigned char* in_block(const void* at, uint64_t bytes, unsigned rank, const char* what) {
    const EmulatorContext& self = *emulator_context;
    const uint64_t offset = static_cast<const unsigned char*>(at) - self.shared;
    emulator_require(offset <= self.shared_bytes && bytes <= self.shared_bytes - offset, what);
    emulator_require(rank < self.cluster_size, "there is no such block in the cluster");
    emulator_require(self.cluster[self.rank] == self.shared, "a barrier or a box of a block without a cluster");
    emulator_require(self.cluster[rank], "access to the memory of a block that has ended");
    return self.cluster[rank] + offset;
}

// The values of line `i` of a box that the matrix has; null if none.
const unsigned char* line_of(const Copy& copy, unsigned i, uint64_t& bytes) {
    const Map& map = copy.map;
    const int64_t row = int64_t(copy.line) + i;
    bytes = 0;
    if (row < 0 || uint64_t(row) >= map.rows || copy.value < 0 || uint64_t(copy.value) >= map.columns) return nullptr;
    bytes = (map.columns - copy.value) * 2;
    if (bytes > LINE) bytes = LINE;
    return map.address + row * map.row_bytes + uint64_t(copy.value) * 2;
}

void arrive(const Copy& copy) {
    const bool checked = emulator_context->checked;
    emulator_require(emulator_context->cluster[copy.rank], "a copy of a box arrives when the block that began it has ended");
    for (unsigned i = 0; i < copy.map.box_lines; i++) {
        uint64_t bytes;
        const unsigned char* from = line_of(copy, i, bytes);
        unsigned char line[LINE] = {};
        unsigned char* to = copy.to + i * LINE;
        if (checked) emulator_box_line_arrives(copy.block, copy.thread, to, from, bytes, copy.place);
        if (from) __builtin_memcpy(line, from, bytes);
        // Chunks change places by the address.
        for (uint64_t chunk = 0; chunk < LINE / CHUNK; chunk++) {
            const uint64_t at = reinterpret_cast<uint64_t>(to) / LINE % 8 ^ chunk;
            __builtin_memcpy(to + at * CHUNK, line + chunk * CHUNK, CHUNK);
        }
    }
    if (checked) emulator_box_arrives(copy.block, copy.thread, copy.barrier, copy.place);
    copy.barrier->bytes -= int(copy.map.box_lines * LINE);
    end_phase(*copy.barrier);
}

}  // namespace

extern "C" {

// Before a cluster starts; and after its end, copies that nobody waited for.
void emulator_reset_boxes() { count = 0; }
unsigned emulator_boxes_under_way() { return count; }

void emulator_barrier_init(uint64_t* barrier, unsigned arrivals) {
    emulator_require(reinterpret_cast<uint64_t>(barrier) % sizeof *barrier == 0, "a misaligned barrier");
    if (emulator_context->checked) emulator_access(barrier, sizeof *barrier, 1, __builtin_return_address(0));
    in_block(barrier, sizeof *barrier, emulator_context->rank, "a barrier that is not in shared memory");
    emulator_require(arrivals > 0 && arrivals <= 0x7fff, "a barrier for no arrivals, or too many");
    *reinterpret_cast<Barrier*>(barrier) = {0, arrivals & 0x7fff, arrivals & 0x7fff, 0};
    emulator_context->copies->unfenced_barriers = true;
}

void emulator_barrier_arrive(uint64_t* own, unsigned rank, unsigned expected) {
    unsigned char* at = in_block(own, sizeof *own, rank, "a barrier that is not in shared memory");
    if (emulator_context->checked) emulator_atomic(at, 4, LOADS | STORES, ACQUIRE_RELEASE, __builtin_return_address(0));
    Barrier& barrier = *reinterpret_cast<Barrier*>(at);
    emulator_require(barrier.pending > 0, "more arrivals than a phase of the barrier counts");
    barrier.bytes += int(expected);
    barrier.pending--;
    end_phase(barrier);
}

bool emulator_barrier_ended(uint64_t* own, unsigned parity) {
    EmulatorContext& self = *emulator_context;
    unsigned char* at = in_block(own, sizeof *own, self.rank, "a barrier that is not in shared memory");
    Barrier& barrier = *reinterpret_cast<Barrier*>(at);
    // The youngest copy first: nothing orders them.
    for (unsigned i = count; barrier.phase == parity && i-- > 0;) {
        if (under_way[i].barrier != &barrier) continue;
        const Copy copy = under_way[i];
        __builtin_memmove(under_way + i, under_way + i + 1, (--count - i) * sizeof copy);
        arrive(copy);
    }
    if (barrier.phase == parity) return false;
    if (self.checked) emulator_atomic(&barrier, 4, LOADS, ACQUIRE, __builtin_return_address(0));
    return true;
}

void emulator_copy_box(void* own, const void* map, int line, int value, uint64_t* barrier, unsigned ranks) {
    const EmulatorContext& self = *emulator_context;
    Copy copy = {};
    emulator_require(reinterpret_cast<uint64_t>(map) % 64 == 0, "a misaligned map");
    // It has to lie in the params.
    if (self.checked) emulator_access(map, sizeof copy.map, 0, __builtin_return_address(0));
    emulator_require(uint64_t(static_cast<const unsigned char*>(map) - self.shared) >= self.shared_bytes,
                     "a map in shared memory");
    __builtin_memcpy(&copy.map, map, sizeof copy.map);
    emulator_require(copy.map.kind == BOXES_OF_BF16, "a copy of a box by a map that the launcher has not made");
    const uint64_t bytes = copy.map.box_lines * LINE;
    for (unsigned rank = 0; rank < self.cluster_size; rank++) {
        if (!(ranks >> rank & 1)) continue;
        copy.to = in_block(own, bytes, rank, "a copy of a box to an address that is not in shared memory");
        emulator_require((copy.to - self.cluster[rank]) % LINE == 0, "a copy of a box to a misaligned address");
        copy.barrier =
            reinterpret_cast<Barrier*>(in_block(barrier, sizeof *barrier, rank, "a barrier that is not in shared memory"));
        copy.line = line, copy.value = value;
        copy.block = emulator_block_number(), copy.rank = self.rank, copy.thread = self.thread.x;
        copy.place = __builtin_return_address(0);
        for (unsigned i = 0; self.checked && i < copy.map.box_lines; i++) {
            uint64_t length;
            const unsigned char* from = line_of(copy, i, length);
            emulator_copy_begins(copy.to + i * LINE, nullptr, LINE, copy.place);
            if (from) emulator_access(from, length, 0, copy.place);
        }
        if (self.eager) {
            arrive(copy);
        } else {
            emulator_require(count < MAX_COPIES, "more copies of boxes under way than the emulator holds");
            under_way[count++] = copy;
        }
    }
    emulator_require(ranks >> self.cluster_size == 0, "there is no such block in the cluster");
}
}
