//! Launches kernels/instance_norm.cu.

use super::driver::Launch;
use super::kernels::{self, InstanceNormParams};
use super::linear::code;
use super::{Cuda, Layout, Tensor, int};
use crate::Result;
use crate::backend::{Activation, InstanceNorm, LayerNormWeights, instance_norm};
use crate::tensor::DType;

/// Channels of a block.
const CHANNELS: usize = 256;

impl InstanceNorm for Cuda {
    fn instance_norm(&self, x: &Tensor, norm: &LayerNormWeights<Cuda>, activation: Activation) -> Result<Tensor> {
        instance_norm::check(self, x, norm)?;
        launch(self, x, norm, activation)
    }
}

/// Each column of x (T, C) normalised, in the type of x.
fn launch(cuda: &Cuda, x: &Tensor, norm: &LayerNormWeights<Cuda>, activation: Activation) -> Result<Tensor> {
    const OP: &str = "instance_norm";
    let (frames, channels) = (x.rows, x.columns);
    let x = cuda.rows_of(x, x.dtype)?;
    let y = cuda.empty([frames, channels], x.dtype, Layout::Rows)?;
    let share = instance_norm::share(frames);
    let shares = frames.div_ceil(share);
    let moments = cuda.empty([shares, 2 * channels], DType::F32, Layout::Rows)?;
    let applied = cuda.empty([2, channels], DType::F32, Layout::Rows)?;
    let params = InstanceNormParams {
        x: x.pointer(),
        y: y.pointer(),
        weight: norm.weight.pointer(),
        bias: norm.bias.pointer(),
        moments: moments.pointer(),
        applied: applied.pointer(),
        frames: int(OP, frames)?,
        channels: int(OP, channels)?,
        share: int(OP, share)?,
        shares: int(OP, shares)?,
        eps: norm.eps,
        activation: code(activation),
    };
    let [first, last] = match x.dtype {
        DType::BF16 => [&kernels::INSTANCE_NORM_FORWARD_MOMENTS_BF16, &kernels::INSTANCE_NORM_FORWARD_APPLY_BF16],
        _ => [&kernels::INSTANCE_NORM_FORWARD_MOMENTS_F32, &kernels::INSTANCE_NORM_FORWARD_APPLY_F32],
    };
    let blocks = channels.div_ceil(CHANNELS);
    let grid = Launch::grid([blocks, shares, 1]);
    // Of no frames there is nothing to combine.
    let combine = Launch::blocks(if shares == 0 { 0 } else { blocks });
    // SAFETY (of all): x and y hold frames * channels elements, weight and bias channels, the moments two values a channel for
    // each share, what is applied two values a channel; no frame or channel beyond is touched.
    unsafe { cuda.launch(first, grid, params)? };
    unsafe { cuda.launch(&kernels::INSTANCE_NORM_FORWARD_COMBINE_F32, combine, params)? };
    unsafe { cuda.launch(last, grid, params)? };
    Ok(y)
}
