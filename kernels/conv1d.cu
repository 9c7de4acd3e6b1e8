// conv1d: convolution over time that keeps the length, with the operations that a vocoder does around it.
// Math:      y = (act(conv(leaky(x)) + bias + residual) + sum) * scale; act: none, ReLU or tanh; zero padding
// Source:    Kong, Kim and Bae, "HiFi-GAN" (2020), the residual blocks of the generator
// Tensors:   x (C in, S) and y, residual, sum (C out, S) as S rows of channels; see convolution.cuh for the rest
// Numerics:  f32 sums in the order of taps, then channels, wherever a sample lies: it does not depend on the sequence's length
// Requires:  C in % 8 == 0 for tensor cores, C in % 4 == 0 for f32 in vectors; else the unaligned kernels
// Tiling:    bf16: an implicit matrix product on tensor cores (gemm.cuh), K = taps * C in, each chunk16 of eight channels
//            from its shifted row; the leaky ReLU on the fragments, the rest on the sums. The last convolution, of one
//            channel: a thread a sample. f32, and channels that 8 does not divide: 64x64 tiles on FMA units
// Roofline:  2 * taps * C in * C out * S operations; with 16 and 32 channels the bytes of x and y
// Measured:  NVIDIA H200, driver 580.159.04, commit 449c6ab (the same tiles but for 32x64, with a mainloop of their own; not
//            yet measured since): `im2sp doctor --op =conv1d` (cold L2, lightly contended), C out x C in x taps over frames,
//            dilation 5: bf16 256x256x11 over 1000 in 53.3 us, 64x64x11 over 16000 in 61.5 (23 TFLOP/s), 32x32x11 over 32000
//            in 32.5, 16x16x11 over 64000 in 22.9; f32 256x256x11 over 1000 in 501, 64x64x11 over 16000 in 133 (11 TFLOP/s),
//            16x16x11 over 64000 in 81.2
#include "convolution.cuh"

// Grid: one block for each tile of y, in the order of tile_coord. Shared memory: Shared of the tile.
KERNEL(conv1d_forward_128x64_bf16, ConvolutionParams, 128, 2) { convolve_bf16<Tile128x64, false>(params); }
KERNEL(conv1d_forward_64x64_bf16, ConvolutionParams, 128, 3) { convolve_bf16<Tile64x64, false>(params); }
KERNEL(conv1d_forward_32x64_bf16, ConvolutionParams, 128, 4) { convolve_bf16<Tile32x64, false>(params); }
KERNEL(conv1d_forward_128x32_bf16, ConvolutionParams, 128, 3) { convolve_bf16<Tile128x32, false>(params); }
KERNEL(conv1d_forward_128x16_bf16, ConvolutionParams, 128, 4) { convolve_bf16<Tile128x16, false>(params); }

// Grid and shared memory: as above, on FMA units: C in % 4 == 0.
KERNEL(conv1d_forward_64x64_f32, ConvolutionParams, 128, 4) { convolve_f32<false>(params); }

// The same for any C in.
KERNEL(conv1d_forward_64x64_unaligned_bf16, ConvolutionParams, 128, 4) { convolve_values<bf16, false>(params); }
KERNEL(conv1d_forward_64x64_unaligned_f32, ConvolutionParams, 128, 4) { convolve_values<float, false>(params); }

// Geometries by which the launcher chooses; times are relative to each other.
TILE(conv1d_forward_128x64_bf16, Tile128x64, 128, 64, 73728, 160,
     "H200 at 449c6ab, doctor: 64x64x11 over 16000 frames in 61.5 us");
TILE(conv1d_forward_64x64_bf16, Tile64x64, 64, 64, 65536, 96, "H200 at 449c6ab, doctor: 128x128x7 over 4000 frames in 38.6 us");
TILE(conv1d_forward_32x64_bf16, Tile32x64, 32, 64, 49152, 64,
     "H200 at 449c6ab, doctor: 256x256x11 over 1000 frames in 53.3 us");
TILE(conv1d_forward_128x32_bf16, Tile128x32, 128, 32, 61440, 104,
     "H200 at 449c6ab, doctor: 32x32x11 over 32000 frames in 32.5 us");
TILE(conv1d_forward_128x16_bf16, Tile128x16, 128, 16, 55296, 72,
     "H200 at 449c6ab, doctor: 16x16x11 over 64000 frames in 22.9 us");
TILE(conv1d_forward_64x64_unaligned_bf16, Tile64x64Fma, 64, 64, 49152, 1000, "not yet measured");
TILE(conv1d_forward_64x64_f32, Tile64x64Fma, 64, 64, 49152, 768,
     "not yet measured: value by value, 64x64x11 over 16000 frames took an H200 133 us at 449c6ab");
TILE(conv1d_forward_64x64_unaligned_f32, Tile64x64Fma, 64, 64, 49152, 4000, "not yet measured");

namespace {

// One output channel; y is f32, the sound itself.
template <typename T> DEVICE void sample_per_thread(const ConvolutionParams& p) {
    const int s = blockIdx.x * 256 + threadIdx.x;
    if (s >= p.rows) return;
    const T* weight = static_cast<const T*>(p.weight);
    float v = 0.0f;
    for (int tap = 0; tap < p.taps; tap++) {
        const int from = s + tap * p.step + p.origin;
        if (from < 0 || from >= p.frames) continue;
        const T* x = static_cast<const T*>(p.x) + int64_t(from) * p.inputs;
        for (int c = 0; c < p.inputs; c++) {
            v = fmaf(leaky<T>(to_float(x[c]), p.slope), to_float(weight[tap * p.padded + c]), v);
        }
    }
    const float residual = p.residual ? to_float(static_cast<const T*>(p.residual)[s]) : 0.0f;
    const float sum = p.sum ? to_float(static_cast<const T*>(p.sum)[s]) : 0.0f;
    static_cast<float*>(p.y)[s] = ConvolutionEpilogue<T, false>{p}.template finished<true>(v, p.bias[0], residual, sum);
}

}  // namespace

// Grid: ceil(S / 256) blocks; a thread owns a sample.
KERNEL(conv1d_forward_sample_per_thread_bf16, ConvolutionParams, 256, 4) { sample_per_thread<bf16>(params); }
KERNEL(conv1d_forward_sample_per_thread_f32, ConvolutionParams, 256, 4) { sample_per_thread<float>(params); }
