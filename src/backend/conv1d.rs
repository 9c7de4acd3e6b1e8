//! conv1d: convolution over time that keeps the length, with leaky ReLU before and bias, residual, activation and a
//! running sum after it.

use std::ops::Range;

use super::{Device, ensure};
use crate::cost::Cost;
use crate::tensor::HostTensor;
use crate::{Error, Result};

/// The activation of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConvActivation {
    /// x.
    None,
    /// max(x, 0).
    Relu,
    /// tanh(x).
    Tanh,
}

/// Sizes of the weights of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvShape {
    /// Channels C out.
    pub outputs: usize,
    /// Channels C in.
    pub inputs: usize,
    /// Taps of the kernel.
    pub taps: usize,
    /// Stride of a transposed convolution; `None` for an ordinary one.
    pub stride: Option<usize>,
}

/// Everything around the sum of a convolution: `y = act(conv(leaky(x)) + bias + residual)`, then `(y + sum) * scale`.
pub struct ConvEpilogue<'a, D: Device> {
    /// Slope of the leaky ReLU applied to the input; 1 leaves it alone.
    pub slope: f32,
    /// Added after the bias: (C out, S) from this column on.
    pub residual: Option<(&'a D::Tensor, usize)>,
    /// Applied after the residual.
    pub activation: ConvActivation,
    /// Added after the activation, (C out, columns).
    pub sum: Option<&'a D::Tensor>,
    /// Multiplies everything.
    pub scale: f32,
}

impl<D: Device> Default for ConvEpilogue<'_, D> {
    fn default() -> Self {
        ConvEpilogue { slope: 1.0, residual: None, activation: ConvActivation::None, sum: None, scale: 1.0 }
    }
}

/// Convolution over time.
pub trait Conv1d: Device {
    /// The stretch of inputs that determines these outputs to the last bit: those that the taps meet of all outputs which
    /// a device computes together with these. With one tap, the latter: a part of a sequence gives the bits of the whole
    /// where `columns` begins with the first of them. The end may lie beyond the sequence.
    fn conv1d_support(outputs: Range<usize>, taps: usize, dilation: usize) -> Range<usize> {
        direct_support(outputs, taps, dilation)
    }

    /// These columns of the convolution of x (C in, S), dilated, with zero padding (taps - 1) * dilation / 2:
    /// (C out, columns).
    fn conv1d(
        &self,
        x: &Self::Tensor,
        weights: &Self::ConvWeights,
        dilation: usize,
        columns: Range<usize>,
        epilogue: ConvEpilogue<'_, Self>,
    ) -> Result<Self::Tensor>;
}

/// Inputs that the taps of these outputs meet.
pub(crate) fn direct_support(outputs: Range<usize>, taps: usize, dilation: usize) -> Range<usize> {
    let margin = (taps - 1) / 2 * dilation;
    outputs.start.saturating_sub(margin)..outputs.end + margin
}

/// Channels out and in and taps of weights (C out, C in, taps); an error unless the taps are odd and the bias is (C out).
pub(crate) fn check_weights(weight: &HostTensor, bias: &HostTensor) -> Result<[usize; 3]> {
    match *weight.shape() {
        [outputs, inputs, taps] if bias.shape() == [outputs] && taps % 2 == 1 => Ok([outputs, inputs, taps]),
        _ => Err(Error::shape(
            "conv1d",
            format!("weight {:?}, expected (C out, C in, odd taps), bias {:?}", weight.shape(), bias.shape()),
        )),
    }
}

/// An error unless the shapes fit, and these columns have all that is added to them.
pub(crate) fn check<D: Device>(
    device: &D,
    x: &D::Tensor,
    weights: &D::ConvWeights,
    dilation: usize,
    columns: &Range<usize>,
    epilogue: &ConvEpilogue<'_, D>,
) -> Result<()> {
    let (shape, [inputs, frames]) = (device.conv_shape(weights), device.shape(x));
    ensure(inputs == shape.inputs && shape.stride.is_none() && dilation > 0, "conv1d", || {
        format!("x ({inputs}, {frames}), {shape:?}, dilation {dilation}")
    })?;
    let known = |t: &D::Tensor, from: usize| {
        let [rows, columns] = device.shape(t);
        (rows == shape.outputs).then(|| columns.checked_sub(from)).flatten()
    };
    let inside = columns.start <= columns.end && columns.end <= frames;
    let residual = epilogue.residual.is_none_or(|(t, from)| known(t, from).is_some_and(|there| there >= columns.len()));
    let sum = epilogue.sum.is_none_or(|t| known(t, 0) == Some(columns.len()));
    ensure(inside && residual && sum, "conv1d", || {
        let residual = epilogue.residual.map(|(t, from)| (device.shape(t), from));
        let sum = epilogue.sum.map(|t| device.shape(t));
        let outputs = shape.outputs;
        format!("columns {columns:?} of ({outputs}, {frames}), residual and its first column {residual:?}, sum {sum:?}")
    })
}

/// Cost of (C in, S) to (C out, S) multiplied directly, with elements of `element` bytes; `operands` of the result's shape
/// are added to it.
pub fn cost([inputs, outputs, taps]: [usize; 3], frames: usize, operands: usize, element: usize) -> Cost {
    let weights = inputs * outputs * taps;
    Cost {
        flops: (2 * weights * frames) as f64,
        bytes: (((inputs + (1 + operands) * outputs) * frames + weights) * element) as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Cpu;

    #[test]
    fn a_direct_convolution_reads_its_taps_and_no_more() {
        assert_eq!(direct_support(10..11, 7, 3), 1..20);
        assert_eq!(direct_support(8..11, 7, 3), 0..20);
    }

    #[test]
    fn groups_of_outputs_are_read_for_whole() {
        assert_eq!(Cpu::conv1d_support(10..11, 7, 3), 0..21);
        assert_eq!(Cpu::conv1d_support(12..24, 3, 1), 11..25);
        assert_eq!(Cpu::conv1d_support(10..11, 1, 3), 0..12);
        assert_eq!(Cpu::conv1d_support(100..101, 1, 3), 96..108);
    }
}
