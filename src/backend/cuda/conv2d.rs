//! Launches kernels/conv2d.cu.

use super::driver::Launch;
use super::kernels::{self, Conv2dParams};
use super::linear::code;
use super::{Cuda, Layout, Tensor, int};
use crate::Result;
use crate::backend::conv2d::{self, Conv2dSizes};
use crate::backend::{Activation, Conv2d, Conv2dShape, Conv2dWeights};
use crate::tensor::DType;

/// Threads of a block.
const BLOCK: usize = 256;
/// Channels of a thread.
pub(super) const CHANNELS: usize = 8;

impl Conv2d for Cuda {
    fn conv2d(
        &self,
        images: &Tensor,
        weights: &Conv2dWeights<Cuda>,
        shape: Conv2dShape,
        activation: Activation,
    ) -> Result<Tensor> {
        const OP: &str = "conv2d";
        let sizes = conv2d::check(self, images, weights, shape)?;
        let Conv2dSizes { batch, inputs, outputs, grid } = sizes;
        let [images, weight, bias] =
            [images, &weights.weight, &weights.bias].map(|tensor| self.rows_of(tensor, DType::F32));
        let (images, weight, bias) = (images?, weight?, bias?);
        let y = self.empty([sizes.rows(), outputs], self.dtype, Layout::Rows)?;
        let params = Conv2dParams {
            images: images.pointer(),
            weight: weight.pointer(),
            bias: bias.pointer(),
            y: y.pointer(),
            batch: int(OP, batch)?,
            inputs: int(OP, inputs)?,
            channels: int(OP, outputs)?,
            side: int(OP, shape.side)?,
            grid: int(OP, grid)?,
            taps: int(OP, shape.taps)?,
            stride: int(OP, shape.stride)?,
            before: int(OP, shape.padding[0])?,
            activation: code(activation),
            unused: 0,
        };
        fits(OP, shape, grid)?;
        let kernel = match (self.dtype, outputs.is_multiple_of(CHANNELS)) {
            (DType::BF16, true) => &kernels::CONV2D_FORWARD_BF16,
            (DType::BF16, false) => &kernels::CONV2D_FORWARD_UNALIGNED_BF16,
            (_, true) => &kernels::CONV2D_FORWARD_F32,
            (_, false) => &kernels::CONV2D_FORWARD_UNALIGNED_F32,
        };
        let threads = sizes.rows() * outputs.div_ceil(CHANNELS);
        // SAFETY: the shapes were checked; a thread beyond the last window does nothing, pixels outside of an image and channels
        // beyond C are neither read nor written. Vectors of eight channels are aligned where C is a multiple of eight.
        unsafe { self.launch(kernel, Launch::blocks(threads.div_ceil(BLOCK)), params)? };
        Ok(y)
    }
}

/// An error unless places of a padded map, and windows of one, can be counted in an int.
pub(super) fn fits(op: &'static str, shape: Conv2dShape, grid: usize) -> Result<()> {
    int(op, grid.saturating_mul(shape.stride).saturating_add(shape.taps))?;
    int(op, grid.saturating_mul(grid)).map(drop)
}
