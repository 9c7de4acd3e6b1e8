//! Launches kernels/instance_norm.cu.

use std::ops::Range;

use super::driver::Launch;
use super::kernels::{self, InstanceNormParams};
use super::linear::code;
use super::{Cuda, Layout, Tensor, int};
use crate::Result;
use crate::backend::{Activation, InstanceNorm, LayerNormWeights, Sequences, instance_norm};
use crate::tensor::DType;

/// Channels of a block.
const CHANNELS: usize = 256;

impl InstanceNorm for Cuda {
    fn instance_norm(
        &self,
        x: &Tensor,
        norm: &LayerNormWeights<Cuda>,
        sequences: &Sequences,
        activation: Activation,
    ) -> Result<Tensor> {
        instance_norm::check(self, x, norm, sequences)?;
        launch(self, x, norm, sequences, activation)
    }
}

/// Each column of each sequence in x (T, C) normalised, in the type of x.
fn launch(
    cuda: &Cuda,
    x: &Tensor,
    norm: &LayerNormWeights<Cuda>,
    sequences: &Sequences,
    activation: Activation,
) -> Result<Tensor> {
    const OP: &str = "instance_norm";
    let channels = x.columns;
    let x = cuda.rows_of(x, x.dtype)?;
    let y = cuda.empty_for(sequences, [x.rows, channels], x.dtype)?;
    let (count, lengths) = (sequences.parts().len(), sequences.parts().iter().map(Range::len));
    let shares = lengths.map(|frames| frames.div_ceil(instance_norm::share(frames))).max().unwrap_or(0);
    let table = cuda.put_ids(&sequences.table(OP)?)?;
    let moments = cuda.empty([count * shares, 2 * channels], DType::F32, Layout::Rows)?;
    let applied = cuda.empty([count, 2 * channels], DType::F32, Layout::Rows)?;
    let params = InstanceNormParams {
        x: x.pointer(),
        y: y.pointer(),
        sequences: table.pointer(),
        weight: norm.weight.pointer(),
        bias: norm.bias.pointer(),
        moments: moments.pointer(),
        applied: applied.pointer(),
        channels: int(OP, channels)?,
        shares: int(OP, shares)?,
        eps: norm.eps,
        activation: code(activation),
    };
    let [first, last] = match x.dtype {
        DType::BF16 => [&kernels::INSTANCE_NORM_FORWARD_MOMENTS_BF16, &kernels::INSTANCE_NORM_FORWARD_APPLY_BF16],
        _ => [&kernels::INSTANCE_NORM_FORWARD_MOMENTS_F32, &kernels::INSTANCE_NORM_FORWARD_APPLY_F32],
    };
    let blocks = channels.div_ceil(CHANNELS);
    let grid = Launch::grid([blocks, shares, count]);
    // Of no frames there is nothing to combine.
    let combine = Launch::grid([if shares == 0 { 0 } else { blocks }, 1, count]);
    // SAFETY (of all): x and y hold the frames of every sequence, of `channels` elements, weight and bias channels, the moments two
    // values a channel for each share of each sequence, what is applied two values a channel for each; no frame or channel beyond
    // is touched.
    unsafe { cuda.launch(first, grid, params)? };
    unsafe { cuda.launch(&kernels::INSTANCE_NORM_FORWARD_COMBINE_F32, combine, params)? };
    unsafe { cuda.launch(last, grid, params)? };
    Ok(y)
}
