// philox: counter-based random words, the same as those of src/random.rs, and the dropout masks made of them.
// Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (2011): Philox4x32-10. The counter is the
//         index of a block of four words, below the stream, as in cuRAND.
#pragma once

#include "prelude.cuh"

namespace {

struct PhiloxBlock {
    uint32_t word[4];
};

// Words 4 * index to 4 * index + 3 of a stream of a seed.
constexpr DEVICE PhiloxBlock philox(uint64_t seed, uint64_t stream, uint64_t index) {
    uint32_t a = uint32_t(index), b = uint32_t(index >> 32), c = uint32_t(stream), d = uint32_t(stream >> 32);
    uint32_t key = uint32_t(seed), other = uint32_t(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const uint64_t first = uint64_t(0xd2511f53) * a, second = uint64_t(0xcd9e8d57) * c;
        a = uint32_t(second >> 32) ^ b ^ key;
        b = uint32_t(second);
        c = uint32_t(first >> 32) ^ d ^ other;
        d = uint32_t(first);
        key += 0x9e3779b9;
        other += 0xbb67ae85;
    }
    return {{a, b, c, d}};
}

constexpr bool philox_gives(uint64_t seed, uint64_t stream, uint64_t index, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    const PhiloxBlock block = philox(seed, stream, index);
    return block.word[0] == a && block.word[1] == b && block.word[2] == c && block.word[3] == d;
}
// Vectors of Random123 (kat_vectors, philox4x32 10).
static_assert(philox_gives(0, 0, 0, 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8), "philox");
static_assert(philox_gives(~0ull, ~0ull, ~0ull, 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd), "philox");
static_assert(philox_gives(0x299f31d0a4093822, 0x0370734413198a2e, 0x85a308d3243f6a88, 0xd16cfe09, 0x94fdcceb, 0x5001e420,
                           0x24126ea1),
              "philox");

// Which values are kept, and their factor; backend::DropoutMask.
struct Mask {
    uint64_t seed, stream;
    uint32_t threshold;  // smaller words are zeros
    float scale;
};
template <typename Params> DEVICE Mask mask_of(const Params& p) {
    return {uint64_t(p.seed), uint64_t(p.stream), p.threshold, p.keep_scale};
}

// Bit i says that the value of word 4 * index + i is kept.
DEVICE unsigned kept_of_block(const Mask& mask, uint64_t index) {
    const PhiloxBlock block = philox(mask.seed, mask.stream, index);
    unsigned bits = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) bits |= unsigned(block.word[i] >= mask.threshold) << i;
    return bits;
}

}  // namespace
