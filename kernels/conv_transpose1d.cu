// conv_transpose1d: transposed convolution over time, leaky ReLU before, bias after.
// Math:      y[s * stride + r - padding][o] = bias[o] + sum over j and c of leaky(x[s - j][c]) * weight[c][o][r + j * stride],
//            padding (taps - stride) / 2
// Tensors:   x (C in, S) and y (C out, S * stride) as rows of channels; weights packed as (phase, C out, j, C in)
// Tiling:    the implicit matrix product of conv1d with a column for each phase and channel; see convolution.cuh
// Numerics:  f32 sums in the order of j, then channels
// Requires:  tensor cores: C in % 8 == 0
// Roofline:  2 * taps * C in * C out * S operations
// Measured:  not yet measured
#include "convolution.cuh"

// Grid: (ceil(rows / tile rows), ceil(stride * C out / tile columns)). Shared memory: the tile's stages.
KERNEL(conv_transpose1d_forward_tall_bf16, ConvolutionParams, 128, 2) { convolve_tiled<Tall>(params); }
KERNEL(conv_transpose1d_forward_square_bf16, ConvolutionParams, 128, 3) { convolve_tiled<Square>(params); }
KERNEL(conv_transpose1d_forward_low_bf16, ConvolutionParams, 128, 4) { convolve_tiled<Low>(params); }

// Grid: (ceil(rows / 64), ceil(stride * C out / 64)). Shared memory: PlainShared.
KERNEL(conv_transpose1d_forward_plain_bf16, ConvolutionParams, 256, 2) { convolve_plain<bf16, bf16>(params); }
KERNEL(conv_transpose1d_forward_plain_f32, ConvolutionParams, 256, 2) { convolve_plain<float, float>(params); }
