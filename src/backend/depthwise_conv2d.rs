//! depthwise_conv2d: 2-D convolution of every channel of a map by itself, with square windows, a stride, zero padding, bias and
//! activation.

use super::{Activation, Conv2dShape, Conv2dWeights, Device};
use crate::cost::Cost;
use crate::{Error, Result};

/// Depthwise 2-D convolution.
pub trait DepthwiseConv2d: Device {
    /// Maps (B*side*side, C), rows of pixels of channels, to (B*G*G, C): the window of each channel times its column of the
    /// weights (taps*taps, C), with bias and activation.
    fn depthwise_conv2d(
        &self,
        x: &Self::Tensor,
        weights: &Conv2dWeights<Self>,
        shape: Conv2dShape,
        activation: Activation,
    ) -> Result<Self::Tensor>;
}

/// Sizes of a checked call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DepthwiseSizes {
    /// Maps.
    pub batch: usize,
    /// Channels C.
    pub channels: usize,
    /// Windows G along a side.
    pub grid: usize,
}

impl DepthwiseSizes {
    /// Rows of the result.
    pub fn rows(&self) -> usize {
        self.batch * self.grid * self.grid
    }
}

/// The sizes; an error unless the shapes fit.
pub(crate) fn check<D: Device>(
    device: &D,
    x: &D::Tensor,
    weights: &Conv2dWeights<D>,
    shape: Conv2dShape,
) -> Result<DepthwiseSizes> {
    let [rows, channels] = device.shape(x);
    let (weight, bias) = (device.shape(&weights.weight), device.shape(&weights.bias));
    let wrong = || {
        let problem = format!("x ({rows}, {channels}), {shape:?}, weight {weight:?}, bias {bias:?}");
        Error::shape("depthwise_conv2d", problem)
    };
    let (grid, batch) = shape.grid().zip(rows.checked_div(shape.pixels())).ok_or_else(wrong)?;
    let fits = rows == batch * shape.pixels() && weight == [shape.window(), channels] && bias == [1, channels];
    if fits { Ok(DepthwiseSizes { batch, channels, grid }) } else { Err(wrong()) }
}

/// Cost of `batch` maps of `channels` channels, in elements of `element` bytes.
pub fn cost([batch, channels]: [usize; 2], shape: Conv2dShape, element: usize) -> Cost {
    let windows = batch * shape.grid().unwrap_or(0).pow(2);
    Cost {
        flops: (2 * windows * channels * shape.window()) as f64,
        bytes: (channels * ((batch * shape.pixels() + windows) * element + 4 * (shape.window() + 1))) as f64,
    }
}
