// conv1d: convolution over time that keeps the length, with what a vocoder does around it.
// Math:      y = (act(conv(leaky(x)) + bias + residual) + sum) * scale; act: none, ReLU or tanh; zero padding
// Tensors:   x (C in, S) and y, residual, sum (C out, S) as S rows of channels; see convolution.cuh for the rest
// Tiling:    bf16: an implicit matrix product on tensor cores over tiles of 128x64, 64x64, 32x64, 128x32 or 128x16, K =
//            taps * C in through three or four stages of cp.async, each piece of eight channels from its shifted row; the
//            leaky ReLU on the fragments, the rest on the sums. The last convolution, of one channel: a thread a sample
//            f32, and channels that 8 does not divide: 64x64 tiles on FMA units
// Numerics:  f32 sums in the order of taps, then channels, wherever a sample lies: it does not depend on the sequence's length
// Requires:  tensor cores: C in % 8 == 0
// Roofline:  2 * taps * C in * C out * S operations; with 16 and 32 channels the bytes of x and y
// Measured:  not yet measured
#include "convolution.cuh"

// Grid: (ceil(S / tile rows), ceil(C out / tile columns)). Shared memory: the tile's stages.
KERNEL(conv1d_forward_tall_bf16, ConvolutionParams, 128, 2) { convolve_tiled<Tall>(params); }
KERNEL(conv1d_forward_square_bf16, ConvolutionParams, 128, 3) { convolve_tiled<Square>(params); }
KERNEL(conv1d_forward_low_bf16, ConvolutionParams, 128, 4) { convolve_tiled<Low>(params); }
KERNEL(conv1d_forward_narrow_bf16, ConvolutionParams, 128, 3) { convolve_tiled<Narrow>(params); }
KERNEL(conv1d_forward_slim_bf16, ConvolutionParams, 128, 4) { convolve_tiled<Slim>(params); }

// Grid: (ceil(S / 64), ceil(C out / 64)). Shared memory: PlainShared.
KERNEL(conv1d_forward_plain_bf16, ConvolutionParams, 256, 2) { convolve_plain<bf16, bf16>(params); }
KERNEL(conv1d_forward_plain_f32, ConvolutionParams, 256, 2) { convolve_plain<float, float>(params); }

namespace {

// One output channel; y is f32, the sound itself.
template <typename T> DEVICE void sample_per_thread(const ConvolutionParams& p) {
    const int s = blockIdx.x * 256 + threadIdx.x;
    if (s >= p.rows) return;
    const T* weight = static_cast<const T*>(p.weight);
    float v = 0.0f;
    for (int tap = 0; tap < p.taps; tap++) {
        const int from = s + tap * p.step + p.origin;
        for (int c = 0; c < p.inputs; c++) v = fmaf(leaky_value<T>(p, from, c), to_float(weight[tap * p.padded + c]), v);
    }
    static_cast<float*>(p.y)[s] = finished<T>(p, s, 0, v);
}

}  // namespace

// Grid: ceil(S / 256) blocks; a thread owns a sample.
KERNEL(conv1d_forward_sample_per_thread_bf16, ConvolutionParams, 256, 4) { sample_per_thread<bf16>(params); }
KERNEL(conv1d_forward_sample_per_thread_f32, ConvolutionParams, 256, 4) { sample_per_thread<float>(params); }
