//! frame_conv: convolution over time of frames, one a row, with a stride, zero padding and groups of channels:
//! `y = act(conv(x) + bias) + residual`. With rows of channels a window of frames is a run of memory, so this is a matrix
//! product whose left rows overlap.

use super::{Activation, Device, Gelu, LayerNorm, LayerNormWeights, LinearWeights, Sequences, ensure};
use crate::Result;
use crate::cost::Cost;

/// Geometry of a convolution over frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameConvShape {
    /// Frames of a window.
    pub taps: usize,
    /// Frames between the starts of two windows.
    pub stride: usize,
    /// Frames of zeros before the first frame and after the last.
    pub padding: [usize; 2],
    /// Groups of channels; each part of the outputs sees its own part of the inputs.
    pub groups: usize,
}

impl FrameConvShape {
    /// A convolution without padding or groups.
    pub fn strided(taps: usize, stride: usize) -> FrameConvShape {
        FrameConvShape { taps, stride, padding: [0, 0], groups: 1 }
    }

    /// Windows in so many frames.
    pub fn windows(&self, frames: usize) -> usize {
        let padded = frames + self.padding[0] + self.padding[1];
        padded.checked_sub(self.taps).map_or(0, |rest| rest / self.stride + 1)
    }
}

/// Convolution over frames.
pub trait FrameConv: Device {
    /// Windows of x (T, C) times weights (N, taps*C/groups), taps before channels, with bias (N) and activation; residual and
    /// result are (windows, N). Weights are f32 or bf16. Sequences have each their own windows and padding, and as many
    /// windows as frames, in their place.
    fn frame_conv(
        &self,
        x: &Self::Tensor,
        layer: &LinearWeights<Self>,
        shape: FrameConvShape,
        activation: Activation,
        residual: Option<&Self::Tensor>,
        sequences: Option<&Sequences>,
    ) -> Result<Self::Tensor>;

    /// Convolution without activation or residual, then layer norm and GELU of each window, with the bits of these operations one
    /// after another.
    fn frame_conv_normed(
        &self,
        x: &Self::Tensor,
        layer: &LinearWeights<Self>,
        shape: FrameConvShape,
        norm: &LayerNormWeights<Self>,
    ) -> Result<Self::Tensor>
    where
        Self: LayerNorm + Gelu,
    {
        let y = self.frame_conv(x, layer, shape, Activation::None, None, None)?;
        self.gelu(&self.layer_norm(&y, norm)?)
    }

    /// Windows that a device computes together, counted from the first. A part of the frames gives the bits of the whole where it
    /// begins with such a group.
    fn frame_conv_group(_shape: FrameConvShape) -> usize {
        1
    }
}

/// Sizes of a checked call.
#[derive(Clone, Copy)]
pub(crate) struct FrameConvSizes {
    /// Windows.
    pub rows: usize,
    /// Outputs N.
    pub outputs: usize,
    /// Depth K of a window in one group.
    pub depth: usize,
}

/// The sizes; an error unless the shapes fit.
pub(crate) fn check<D: Device>(
    device: &D,
    x: &D::Tensor,
    layer: &LinearWeights<D>,
    shape: FrameConvShape,
    residual: Option<&D::Tensor>,
    sequences: Option<&Sequences>,
) -> Result<FrameConvSizes> {
    let ([frames, channels], [outputs, depth]) = (device.shape(x), device.matrix_shape(&layer.weight));
    let FrameConvShape { taps, stride, groups, .. } = shape;
    let bias = device.shape(&layer.bias);
    let whole = stride > 0 && taps > 0 && groups > 0 && channels % groups == 0 && outputs % groups == 0;
    let rows = if whole { shape.windows(frames) } else { 0 };
    let fits = whole && depth == taps * (channels / groups) && bias[0] * bias[1] == outputs;
    let residual = residual.map(|r| device.shape(r));
    ensure(fits && residual.is_none_or(|r| r == [rows, outputs]), "frame_conv", || {
        format!(
            "x ({frames}, {channels}), weight ({outputs}, {depth}), bias {bias:?}, residual {residual:?} for {shape:?}"
        )
    })?;
    if let Some(sequences) = sequences {
        sequences.check("frame_conv", frames)?;
        let same = stride == 1 && shape.padding[0] + shape.padding[1] + 1 == taps;
        ensure(same, "frame_conv", || format!("sequences with {shape:?}: there must be a window for each frame"))?;
    }
    Ok(FrameConvSizes { rows, outputs, depth })
}

/// Cost over x (T, C) to N channels with `operands` of the result's shape added to it: activations of `activation` bytes,
/// weights of `weight` bytes an element.
pub fn cost(
    shape: FrameConvShape,
    [frames, channels, outputs]: [usize; 3],
    operands: usize,
    [activation, weight]: [usize; 2],
) -> Cost {
    let (rows, depth) = (shape.windows(frames), shape.taps * channels / shape.groups);
    let activations = frames * channels + rows * outputs * (1 + operands);
    Cost {
        flops: 2.0 * rows as f64 * outputs as f64 * depth as f64,
        bytes: (activations * activation + outputs * depth * weight + outputs * size_of::<f32>()) as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_those_that_fit() {
        let strided = FrameConvShape::strided(10, 5);
        assert_eq!([0, 9, 10, 14, 15, 400].map(|frames| strided.windows(frames)), [0, 0, 1, 1, 2, 79]);
        let same = FrameConvShape { taps: 128, stride: 1, padding: [64, 63], groups: 16 };
        assert_eq!([1, 2, 499].map(|frames| same.windows(frames)), [1, 2, 499]);
    }
}
