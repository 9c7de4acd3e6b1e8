//! Launches kernels/conv_transpose1d.cu.

use super::{ConvKernel, Cuda, Tensor};
use crate::Result;
use crate::tensor::HostTensor;

/// Weights (C in, C out, taps) and bias (C out), as the kernels read them.
pub(super) fn pack(cuda: &Cuda, weight: &HostTensor, bias: &HostTensor, stride: usize) -> Result<ConvKernel> {
    let _ = (cuda, weight, bias, stride);
    todo!()
}

/// x (C in, S) to (C out, S * stride), column after column.
pub(super) fn conv_transpose1d(cuda: &Cuda, x: &Tensor, kernel: &ConvKernel, slope: f32) -> Result<Tensor> {
    let _ = (cuda, x, kernel, slope);
    todo!()
}
