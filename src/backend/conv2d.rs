//! conv2d: 2-D convolution of images with square windows, a stride, zero padding, bias and activation. For the few channels of
//! pictures: its weights are f32, and there is one product of a pixel's window with all outputs.

use super::{Activation, Device};
use crate::cost::Cost;
use crate::{Error, Result};

/// Geometry of a convolution over square maps; both directions are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2dShape {
    /// Pixels along a side of a map.
    pub side: usize,
    /// Pixels along a side of a window.
    pub taps: usize,
    /// Pixels between neighbouring windows.
    pub stride: usize,
    /// Zeros before the first pixel and after the last.
    pub padding: [usize; 2],
}

impl Conv2dShape {
    /// A convolution with TensorFlow's padding "SAME": ceil(side / stride) windows along a side, and where their padding is odd,
    /// one zero more after the last pixel than before the first.
    pub fn same(side: usize, taps: usize, stride: usize) -> Conv2dShape {
        let covered = side.div_ceil(stride.max(1)).saturating_sub(1) * stride + taps;
        let zeros = covered.saturating_sub(side);
        Conv2dShape { side, taps, stride, padding: [zeros / 2, zeros - zeros / 2] }
    }

    /// Windows along a side; `None` where not even one fits.
    pub fn grid(&self) -> Option<usize> {
        let padded = self.side.checked_add(self.padding[0])?.checked_add(self.padding[1])?;
        let rest = padded.checked_sub(self.taps).filter(|_| self.taps > 0 && self.side > 0)?;
        Some(rest.checked_div(self.stride)? + 1)
    }

    /// Pixels of a map.
    pub fn pixels(&self) -> usize {
        self.side * self.side
    }

    /// Values of a window in one channel.
    pub fn window(&self) -> usize {
        self.taps * self.taps
    }
}

/// Weights and bias of a convolution over maps, f32.
pub struct Conv2dWeights<D: Device> {
    /// (K, C): a row for every value of a window.
    pub weight: D::Tensor,
    /// (1, C).
    pub bias: D::Tensor,
}

/// 2-D convolution.
pub trait Conv2d: Device {
    /// Images (B, I*side*side) to maps (B*G*G, C), rows of pixels of channels: each window, as (I, taps, taps) values, times
    /// weights (I*taps*taps, C), with bias and activation.
    fn conv2d(
        &self,
        images: &Self::Tensor,
        weights: &Conv2dWeights<Self>,
        shape: Conv2dShape,
        activation: Activation,
    ) -> Result<Self::Tensor>;
}

/// Sizes of a checked call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Conv2dSizes {
    /// Images.
    pub batch: usize,
    /// Channels I of an image.
    pub inputs: usize,
    /// Channels C of a map.
    pub outputs: usize,
    /// Windows G along a side.
    pub grid: usize,
}

impl Conv2dSizes {
    /// Rows of the result.
    pub fn rows(&self) -> usize {
        self.batch * self.grid * self.grid
    }
}

/// The sizes; an error unless the shapes fit.
pub(crate) fn check<D: Device>(
    device: &D,
    images: &D::Tensor,
    weights: &Conv2dWeights<D>,
    shape: Conv2dShape,
) -> Result<Conv2dSizes> {
    let [batch, values] = device.shape(images);
    let ([depth, outputs], bias) = (device.shape(&weights.weight), device.shape(&weights.bias));
    let wrong = || {
        let problem = format!("images ({batch}, {values}), {shape:?}, weight ({depth}, {outputs}), bias {bias:?}");
        Error::shape("conv2d", problem)
    };
    let (grid, inputs) = shape.grid().zip(depth.checked_div(shape.window())).ok_or_else(wrong)?;
    let fits =
        inputs > 0 && depth == inputs * shape.window() && values == inputs * shape.pixels() && bias == [1, outputs];
    if fits { Ok(Conv2dSizes { batch, inputs, outputs, grid }) } else { Err(wrong()) }
}

/// Cost of `batch` images of `inputs` channels to `outputs` channels; the result in elements of `element` bytes.
pub fn cost([batch, inputs, outputs]: [usize; 3], shape: Conv2dShape, element: usize) -> Cost {
    let (windows, depth) = (batch * shape.grid().unwrap_or(0).pow(2), inputs * shape.window());
    Cost {
        flops: (2 * windows * outputs * depth) as f64,
        bytes: (4 * (batch * inputs * shape.pixels() + (depth + 1) * outputs) + windows * outputs * element) as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_padding_is_that_of_tensorflow() {
        let same = |side, taps, stride| {
            let shape = Conv2dShape::same(side, taps, stride);
            (shape.padding, shape.grid())
        };
        assert_eq!(same(224, 3, 2), ([0, 1], Some(112)));
        assert_eq!(same(56, 5, 2), ([1, 2], Some(28)));
        assert_eq!(same(7, 5, 1), ([2, 2], Some(7)));
        assert_eq!(same(15, 3, 2), ([1, 1], Some(8)));
        assert_eq!(same(1, 3, 2), ([1, 1], Some(1)));
        assert_eq!(same(2, 1, 3), ([0, 0], Some(1)));
        assert_eq!(same(0, 3, 1).1, None);
        assert_eq!(Conv2dShape { stride: 0, ..Conv2dShape::same(4, 3, 1) }.grid(), None);
    }
}
