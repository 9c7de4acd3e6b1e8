//! Launches kernels/conv1d.cu.

use super::{ConvEpilogue, Cuda, Tensor};
use crate::Result;
use crate::tensor::HostTensor;

/// Weights and bias of a convolution, in the type of the backend.
pub struct ConvKernel {}

/// Weights (C out, C in, taps) and bias (C out), as the kernels read them.
pub(super) fn pack(cuda: &Cuda, weight: &HostTensor, bias: &HostTensor) -> Result<ConvKernel> {
    let _ = (cuda, weight, bias);
    todo!()
}

/// x (C in, S) to (C out, S), column after column.
pub(super) fn conv1d(
    cuda: &Cuda,
    x: &Tensor,
    kernel: &ConvKernel,
    dilation: usize,
    epilogue: ConvEpilogue<'_, Cuda>,
) -> Result<Tensor> {
    let _ = (cuda.columns_of(x, cuda.dtype)?, kernel, dilation, epilogue.slope);
    todo!()
}
