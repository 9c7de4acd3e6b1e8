//! Launches kernels/conv_transpose1d.cu.

use super::conv1d::pack_with;
use super::kernels::{self, ConvolutionParams};
use super::{ConvWeights, Cuda, Layout, Tensor};
use crate::Result;
use crate::backend::{ConvTranspose1d, conv_transpose1d};
use crate::tensor::{DType, HostTensor};

/// Weights (C in, C out, taps) and bias (C out), as the kernels read them: a column for each phase and output.
pub(super) fn pack(cuda: &Cuda, weight: &HostTensor, bias: &HostTensor, stride: usize) -> Result<ConvWeights> {
    let [inputs, outputs, taps] = conv_transpose1d::check_weights(weight, bias, stride)?;
    let values = weight.to_f32();
    let (columns, steps) = (stride * outputs, taps.div_ceil(stride));
    let weight = pack_with(cuda, [columns, steps, inputs], |column, step, input| {
        let (phase, output) = (column / outputs, column % outputs);
        let tap = phase + step * stride;
        if tap < taps { values[(input * outputs + output) * taps + tap] } else { 0.0 }
    })?;
    let bias = cuda.put([1, outputs], DType::F32, &bias.to_f32())?;
    Ok(ConvWeights { inputs, outputs, taps, stride, columns, steps, weight, bias })
}

impl ConvTranspose1d for Cuda {
    fn conv_transpose1d(&self, x: &Tensor, weights: &ConvWeights, slope: f32) -> Result<Tensor> {
        let stride = conv_transpose1d::check(self, x, weights)?;
        launch(self, x, weights, stride, slope)
    }
}

/// x (C in, S) to (C out, S * stride), column after column.
fn launch(cuda: &Cuda, x: &Tensor, kernel: &ConvWeights, stride: usize, slope: f32) -> Result<Tensor> {
    const OP: &str = "conv_transpose1d";
    let ConvWeights { outputs, taps, .. } = *kernel;
    let x = cuda.columns_of(x, cuda.dtype)?;
    let samples = x.columns * stride;
    let y = cuda.empty([outputs, samples], cuda.dtype, Layout::Columns)?;
    let padding = (taps - stride) / 2;
    let rows = if samples == 0 { 0 } else { (samples + padding).div_ceil(stride) };
    let params =
        ConvolutionParams { step: -1, before: (padding * outputs) as i64, slope, ..kernel.params(OP, &x, &y, rows)? };
    let (kernel, launch) = kernel.launch(cuda, &kernels::CONV_TRANSPOSE1D_FORWARD_TILES, rows)?;
    // SAFETY: the shapes were checked; frames outside of 0..S are not read, elements outside of y not written. The
    // tiles read chunks of 16 bytes where every frame begins at a multiple of 16, as packed weights do; runs of eight
    // channels are vectors where C out % 8 == 0.
    unsafe { cuda.launch(kernel, launch, params)? };
    Ok(y)
}
