//! layer_norm: normalise each row over C, then scale and shift: `y = (x - mean) rstd weight + bias`.

use super::{Device, ensure};
use crate::Result;
use crate::cost::Cost;

/// A layer norm on a device.
pub struct LayerNormWeights<D: Device> {
    /// (1, C).
    pub weight: D::Tensor,
    /// (1, C).
    pub bias: D::Tensor,
    /// Added to the biased variance.
    pub eps: f32,
}

/// Layer norm.
pub trait LayerNorm: Device {
    /// Each row of x (M, C) normalised, scaled and shifted.
    fn layer_norm(&self, x: &Self::Tensor, norm: &LayerNormWeights<Self>) -> Result<Self::Tensor>;
}

/// An error unless weight and bias have a value for each channel.
pub(crate) fn check<D: Device>(device: &D, x: &D::Tensor, norm: &LayerNormWeights<D>) -> Result<()> {
    let [rows, channels] = device.shape(x);
    let (weight, bias) = (device.shape(&norm.weight), device.shape(&norm.bias));
    let len = |[rows, columns]: [usize; 2]| rows * columns;
    ensure(len(weight) == channels && len(bias) == channels, "layer_norm", || {
        format!("x ({rows}, {channels}), weight {weight:?}, bias {bias:?}")
    })
}

/// Cost over `rows` rows of `channels` elements of `element` bytes.
pub fn cost(rows: usize, channels: usize, element: usize) -> Cost {
    let elements = (rows * channels) as f64;
    Cost { flops: 8.0 * elements, bytes: 2.0 * elements * element as f64 }
}
