// conv_transpose1d: transposed convolution over time, leaky ReLU before, bias after.
// Math:      y[s * stride + r - padding][o] = bias[o] + sum over j and c of leaky(x[s - j][c]) * weight[c][o][r + j * stride],
//            padding (taps - stride) / 2
// Source:    Kong, Kim and Bae, "HiFi-GAN" (2020), the upsampling of the generator
// Tensors:   x (C in, S) and y (C out, S * stride) as rows of channels; weights packed as (phase, C out, j, C in)
// Numerics:  f32 sums in the order of j, then channels
// Requires:  C in % 8 == 0 for tensor cores, C in % 4 == 0 for f32 in vectors; else the unaligned kernels
// Tiling:    the implicit matrix product of conv1d with a column for each phase and channel; see convolution.cuh
// Roofline:  2 * taps * C in * C out * S operations
// Measured:  NVIDIA H200, driver 580.159.04, commit 449c6ab (with a mainloop of its own; not yet measured since): `im2sp
//            doctor --op =conv_transpose1d` (cold L2, lightly contended), C in x C out x taps over frames: bf16 256x128x8,
//            stride 4, over 1000 in 32.4 us, 128x64x8, stride 4, over 4000 in 41.0 (13 TFLOP/s), 64x32x4, stride 2, over
//            16000 in 40.5; f32 128x64x8, stride 4, over 4000 in 59.6
#include "convolution.cuh"

// Grid: one block for each tile of the product, in the order of tile_coord. Shared memory: Shared of the tile.
KERNEL(conv_transpose1d_forward_128x64_bf16, ConvolutionParams, 128, 2) { convolve_bf16<Tile128x64, true>(params); }
KERNEL(conv_transpose1d_forward_64x64_bf16, ConvolutionParams, 128, 3) { convolve_bf16<Tile64x64, true>(params); }
KERNEL(conv_transpose1d_forward_32x64_bf16, ConvolutionParams, 128, 4) { convolve_bf16<Tile32x64, true>(params); }

// Grid and shared memory: as above, on FMA units: C in % 4 == 0.
KERNEL(conv_transpose1d_forward_64x64_f32, ConvolutionParams, 128, 4) { convolve_f32<true>(params); }

// The same for any C in.
KERNEL(conv_transpose1d_forward_64x64_unaligned_bf16, ConvolutionParams, 128, 4) { convolve_values<bf16, true>(params); }
KERNEL(conv_transpose1d_forward_64x64_unaligned_f32, ConvolutionParams, 128, 4) { convolve_values<float, true>(params); }

// Geometries by which the launcher chooses; times are relative to each other.
TILE(conv_transpose1d_forward_128x64_bf16, Tile128x64, 128, 64, 73728, 160,
     "H200 at 449c6ab, doctor: 128x64x8, stride 4, over 4000 frames in 41.0 us");
TILE(conv_transpose1d_forward_64x64_bf16, Tile64x64, 64, 64, 65536, 96,
     "H200 at 449c6ab, doctor: 256x128x8, stride 4, over 1000 frames in 32.4 us");
TILE(conv_transpose1d_forward_32x64_bf16, Tile32x64, 32, 64, 49152, 64, "not yet measured");
TILE(conv_transpose1d_forward_64x64_unaligned_bf16, Tile64x64Fma, 64, 64, 49152, 1000, "not yet measured");
TILE(conv_transpose1d_forward_64x64_f32, Tile64x64Fma, 64, 64, 49152, 768,
     "not yet measured: value by value, 128x64x8 over 4000 frames took an H200 59.6 us at 449c6ab");
TILE(conv_transpose1d_forward_64x64_unaligned_f32, Tile64x64Fma, 64, 64, 49152, 4000, "not yet measured");

