//! conv_transpose1d: transposed convolution over time, leaky ReLU before, bias after.

use super::{Device, ensure};
use crate::cost::Cost;
use crate::tensor::HostTensor;
use crate::{Error, Result};

/// Transposed convolution over time.
pub trait ConvTranspose1d: Device {
    /// Leaky ReLU of x (C in, S) to (C out, S * stride), padding (taps - stride) / 2.
    fn conv_transpose1d(&self, x: &Self::Tensor, weights: &Self::ConvWeights, slope: f32) -> Result<Self::Tensor>;
}

/// Channels in and out and taps of weights (C in, C out, taps); an error unless the stride goes with the taps and the bias is
/// (C out).
pub(crate) fn check_weights(weight: &HostTensor, bias: &HostTensor, stride: usize) -> Result<[usize; 3]> {
    let strides = |taps: usize| stride > 0 && taps >= stride && (taps - stride).is_multiple_of(2);
    match *weight.shape() {
        [inputs, outputs, taps] if bias.shape() == [outputs] && strides(taps) => Ok([inputs, outputs, taps]),
        _ => Err(Error::shape(
            "conv_transpose1d",
            format!(
                "weight {:?}, expected (C in, C out, taps), bias {:?}, stride {stride}",
                weight.shape(),
                bias.shape()
            ),
        )),
    }
}

/// The stride; an error unless the weights are those of a transposed convolution of as many channels.
pub(crate) fn check<D: Device>(device: &D, x: &D::Tensor, weights: &D::ConvWeights) -> Result<usize> {
    let (shape, [inputs, frames]) = (device.conv_shape(weights), device.shape(x));
    let stride = shape.stride.unwrap_or(0);
    ensure(stride > 0 && inputs == shape.inputs, "conv_transpose1d", || format!("x ({inputs}, {frames}), {shape:?}"))?;
    Ok(stride)
}

/// Cost of (C in, S) to (C out, S * stride) with elements of `element` bytes: every input frame meets every tap.
pub fn cost([inputs, outputs, taps, stride]: [usize; 4], frames: usize, element: usize) -> Cost {
    let weights = inputs * outputs * taps;
    Cost {
        flops: (2 * weights * frames) as f64,
        bytes: (((inputs + outputs * stride) * frames + weights) * element) as f64,
    }
}
