//! Launches kernels/depthwise_conv2d.cu.

use super::conv2d::{CHANNELS, fits};
use super::driver::Launch;
use super::kernels::{self, DepthwiseConv2dParams};
use super::linear::code;
use super::{Cuda, Layout, Tensor, int};
use crate::Result;
use crate::backend::depthwise_conv2d::{self, DepthwiseSizes};
use crate::backend::{Activation, Conv2dShape, Conv2dWeights, DepthwiseConv2d};
use crate::tensor::DType;

/// Threads of a block.
const BLOCK: usize = 256;

impl DepthwiseConv2d for Cuda {
    fn depthwise_conv2d(
        &self,
        x: &Tensor,
        weights: &Conv2dWeights<Cuda>,
        shape: Conv2dShape,
        activation: Activation,
    ) -> Result<Tensor> {
        const OP: &str = "depthwise_conv2d";
        let sizes = depthwise_conv2d::check(self, x, weights, shape)?;
        let DepthwiseSizes { batch, channels, grid } = sizes;
        let x = self.rows_of(x, self.dtype)?;
        let weight = self.rows_of(&weights.weight, DType::F32)?;
        let bias = self.rows_of(&weights.bias, DType::F32)?;
        let y = self.empty([sizes.rows(), channels], self.dtype, Layout::Rows)?;
        let params = DepthwiseConv2dParams {
            x: x.pointer(),
            weight: weight.pointer(),
            bias: bias.pointer(),
            y: y.pointer(),
            batch: int(OP, batch)?,
            channels: int(OP, channels)?,
            side: int(OP, shape.side)?,
            grid: int(OP, grid)?,
            taps: int(OP, shape.taps)?,
            stride: int(OP, shape.stride)?,
            before: int(OP, shape.padding[0])?,
            activation: code(activation),
        };
        fits(OP, shape, grid)?;
        let kernel = match (self.dtype, channels.is_multiple_of(CHANNELS)) {
            (DType::BF16, true) => &kernels::DEPTHWISE_CONV2D_FORWARD_BF16,
            (DType::BF16, false) => &kernels::DEPTHWISE_CONV2D_FORWARD_UNALIGNED_BF16,
            (_, true) => &kernels::DEPTHWISE_CONV2D_FORWARD_F32,
            (_, false) => &kernels::DEPTHWISE_CONV2D_FORWARD_UNALIGNED_F32,
        };
        let threads = sizes.rows() * channels.div_ceil(CHANNELS);
        // SAFETY: the shapes were checked; a thread beyond the last window does nothing, pixels outside of a map and channels
        // beyond C are neither read nor written. Vectors of eight channels are aligned where C is a multiple of eight.
        unsafe { self.launch(kernel, Launch::blocks(threads.div_ceil(BLOCK)), params)? };
        Ok(y)
    }
}
