// Sees every access to memory of the checked kernels. They are compiled with -fsanitize=thread, whose calls before each
// access and for each atomic operation land here instead of in a sanitizer's library, and with checks for alignment,
// array bounds, shifts and overflow, whose findings do. What an access means is decided in
// src/backend/cuda/driver/emulator/memcheck.rs. This file itself is compiled without them.
#include "emulator.h"

namespace {

// AccessKind of the runtime.
enum { READ = 0, WRITE = 1 };

}  // namespace

extern "C" {
void emulator_access(const void* at, uint64_t bytes, int kind, const void* place);
// Bits of `kind`: 1 loads, 2 stores. Checks the access and takes note of what `order` says.
void emulator_atomic(const void* at, uint64_t bytes, int kind, int order, const void* place);
// As emulator_fault, of something that the compiler found at this place in the source.
void emulator_fault_at(const char* what, const char* file, unsigned line);
}

namespace {

// Runs of bytes that no access may run over: 0 where any address will do.
inline void access(const void* at, uint64_t bytes, uint64_t alignment, int kind, const void* place) {
    const EmulatorContext* self = emulator_context;
    if (!self || !bytes) return;
    const uint64_t address = reinterpret_cast<uint64_t>(at);
    if (address - reinterpret_cast<uint64_t>(self->stack) < self->stack_bytes || at == &emulator_context) return;
    if (alignment && address % alignment) emulator_fault("misaligned access");
    emulator_access(at, bytes, kind, place);
}

inline bool own(const void* at) {
    const EmulatorContext* self = emulator_context;
    return !self || reinterpret_cast<uint64_t>(at) - reinterpret_cast<uint64_t>(self->stack) < self->stack_bytes;
}

inline void atomic(const volatile void* at, uint64_t bytes, int kind, int order, const void* place) {
    const void* address = const_cast<const void*>(at);
    if (own(address)) return;
    if (reinterpret_cast<uint64_t>(address) % bytes) emulator_fault("misaligned access");
    emulator_atomic(address, bytes, kind, order, place);
}

constexpr int LOADS = 1, STORES = 2;

}  // namespace

#define CALLER __builtin_return_address(0)

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

#define ACCESSES(n)                                                                           \
    void __tsan_read##n(void* at) { access(at, n, n, READ, CALLER); }                         \
    void __tsan_write##n(void* at) { access(at, n, n, WRITE, CALLER); }                       \
    void __tsan_volatile_read##n(void* at) { access(at, n, n, READ, CALLER); }                \
    void __tsan_volatile_write##n(void* at) { access(at, n, n, WRITE, CALLER); }              \
    void __tsan_unaligned_read##n(void* at) { access(at, n, 0, READ, CALLER); }               \
    void __tsan_unaligned_write##n(void* at) { access(at, n, 0, WRITE, CALLER); }             \
    void __tsan_unaligned_volatile_read##n(void* at) { access(at, n, 0, READ, CALLER); }      \
    void __tsan_unaligned_volatile_write##n(void* at) { access(at, n, 0, WRITE, CALLER); }    \
    void __tsan_read_write##n(void* at) {                                                     \
        access(at, n, n, READ, CALLER);                                                       \
        access(at, n, n, WRITE, CALLER);                                                      \
    }                                                                                         \
    void __tsan_unaligned_read_write##n(void* at) {                                           \
        access(at, n, 0, READ, CALLER);                                                       \
        access(at, n, 0, WRITE, CALLER);                                                      \
    }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)

void __tsan_read_range(void* at, uint64_t bytes) { access(at, bytes, 0, READ, CALLER); }
void __tsan_write_range(void* at, uint64_t bytes) { access(at, bytes, 0, WRITE, CALLER); }

// Of the source's own calls, and of those that clang makes.
void* emulator_memcpy(void* to, const void* from, size_t bytes) {
    access(from, bytes, 0, READ, CALLER);
    access(to, bytes, 0, WRITE, CALLER);
    return __builtin_memmove(to, from, bytes);
}
void* emulator_memset(void* to, int byte, size_t bytes) {
    access(to, bytes, 0, WRITE, CALLER);
    return __builtin_memset(to, byte, bytes);
}
void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
    access(from, bytes, 0, READ, CALLER);
    access(to, bytes, 0, WRITE, CALLER);
    return __builtin_memmove(to, from, bytes);
}
void* __tsan_memmove(void* to, const void* from, size_t bytes) {
    access(from, bytes, 0, READ, CALLER);
    access(to, bytes, 0, WRITE, CALLER);
    return __builtin_memmove(to, from, bytes);
}
void* __tsan_memset(void* to, int byte, size_t bytes) {
    access(to, bytes, 0, WRITE, CALLER);
    return __builtin_memset(to, byte, bytes);
}

// Blocks run one after the other on one host thread here: every operation can be the strongest.
#define ATOMIC_UPDATE(bits, name)                                                                                        \
    uint##bits##_t __tsan_atomic##bits##_##name(volatile uint##bits##_t* at, uint##bits##_t v, int order) {              \
        atomic(at, bits / 8, LOADS | STORES, order, CALLER);                                                             \
        return __atomic_##name(at, v, __ATOMIC_SEQ_CST);                                                                 \
    }
#define ATOMIC_COMPARE(bits, strength, weak)                                                                             \
    int __tsan_atomic##bits##_compare_exchange_##strength(volatile uint##bits##_t* at, uint##bits##_t* expected,         \
                                                          uint##bits##_t v, int order, int) {                            \
        atomic(at, bits / 8, LOADS | STORES, order, CALLER);                                                             \
        return __atomic_compare_exchange_n(at, expected, v, weak, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                   \
    }
#define ATOMICS(bits)                                                                                                    \
    uint##bits##_t __tsan_atomic##bits##_load(const volatile uint##bits##_t* at, int order) {                            \
        atomic(at, bits / 8, LOADS, order, CALLER);                                                                      \
        return __atomic_load_n(at, __ATOMIC_SEQ_CST);                                                                    \
    }                                                                                                                    \
    void __tsan_atomic##bits##_store(volatile uint##bits##_t* at, uint##bits##_t v, int order) {                         \
        atomic(at, bits / 8, STORES, order, CALLER);                                                                     \
        __atomic_store_n(at, v, __ATOMIC_SEQ_CST);                                                                       \
    }                                                                                                                    \
    uint##bits##_t __tsan_atomic##bits##_exchange(volatile uint##bits##_t* at, uint##bits##_t v, int order) {            \
        atomic(at, bits / 8, LOADS | STORES, order, CALLER);                                                             \
        return __atomic_exchange_n(at, v, __ATOMIC_SEQ_CST);                                                             \
    }                                                                                                                    \
    ATOMIC_UPDATE(bits, fetch_add)                                                                                       \
    ATOMIC_UPDATE(bits, fetch_sub)                                                                                       \
    ATOMIC_UPDATE(bits, fetch_and)                                                                                       \
    ATOMIC_UPDATE(bits, fetch_or)                                                                                        \
    ATOMIC_UPDATE(bits, fetch_xor)                                                                                       \
    ATOMIC_COMPARE(bits, strong, false)                                                                                  \
    ATOMIC_COMPARE(bits, weak, true)                                                                                     \
    uint##bits##_t __tsan_atomic##bits##_compare_exchange_val(volatile uint##bits##_t* at, uint##bits##_t expected,      \
                                                              uint##bits##_t v, int order, int) {                        \
        atomic(at, bits / 8, LOADS | STORES, order, CALLER);                                                             \
        __atomic_compare_exchange_n(at, &expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                        \
        return expected;                                                                                                 \
    }
ATOMICS(32)
ATOMICS(64)

// What the checks of the compiler hand over begins with the place; of a type mismatch, the alignment follows.
struct SourcePlace {
    const char* file;
    unsigned line, column;
};
struct TypeMismatch {
    SourcePlace place;
    const void* type;
    unsigned char log_alignment, kind;
};

void __ubsan_handle_type_mismatch_v1(const TypeMismatch* data, uint64_t) {
    emulator_fault_at("misaligned access", data->place.file, data->place.line);
}
#define FOUND(handler, what)                                                                            \
    void __ubsan_handle_##handler(const SourcePlace* place) { emulator_fault_at(what, place->file, place->line); }
FOUND(out_of_bounds, "index beyond the end of an array")
FOUND(shift_out_of_bounds, "shift by too many bits")
FOUND(add_overflow, "overflow of a signed addition")
FOUND(sub_overflow, "overflow of a signed subtraction")
FOUND(mul_overflow, "overflow of a signed product")
FOUND(negate_overflow, "overflow of a signed negation")
FOUND(divrem_overflow, "division by zero, or its overflow")
}
