//! layer_norm: normalise each row over C, then scale and shift: `y = (x - mean) rstd weight + bias`.

use super::parameters::{self, TrainedParameters, WeightAndBias};
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

/// Layer norm in training, with x^ = (x - mean) rstd:
/// `dx = rstd (w dy - mean(w dy) - x^ mean(w dy x^)) + residual`, `dweight += sum dy x^`, `dbias += sum dy`, over all rows.
pub trait LayerNormBackward: LayerNorm + TrainedParameters {
    /// As [`LayerNorm::layer_norm`], to the result and mean and rstd of each row (M, 2), f32.
    fn layer_norm_saving(
        &self,
        x: &Self::Tensor,
        norm: &LayerNormWeights<Self>,
    ) -> Result<(Self::Tensor, Self::Tensor)>;
    /// The gradient at x (M, C) from that at the result, with `residual` (M, C) added. The gradients of weight and bias are
    /// added to those of `into`, if they are trained.
    fn layer_norm_backward(
        &self,
        dy: &Self::Tensor,
        x: &Self::Tensor,
        norm: &LayerNormWeights<Self>,
        saved: &Self::Tensor,
        residual: Option<&Self::Tensor>,
        into: Option<(&mut Self::Gradients, WeightAndBias)>,
    ) -> Result<Self::Tensor>;
}

/// An error unless the shapes fit [`LayerNormBackward::layer_norm_backward`]; `into` is where gradients are added, and how many
/// there are.
pub(crate) fn check_backward<D: Device>(
    device: &D,
    [dy, x, saved]: [&D::Tensor; 3],
    norm: &LayerNormWeights<D>,
    residual: Option<&D::Tensor>,
    into: Option<(WeightAndBias, usize)>,
) -> Result<()> {
    const OP: &str = "layer_norm_backward";
    check(device, x, norm)?;
    let ([rows, channels], residual) = (device.shape(x), residual.map(|r| device.shape(r)));
    let (dy, saved) = (device.shape(dy), device.shape(saved));
    let fits = dy == [rows, channels] && saved == [rows, 2] && residual.is_none_or(|r| r == [rows, channels]);
    ensure(fits, OP, || format!("dy {dy:?}, x ({rows}, {channels}), saved {saved:?}, residual {residual:?}"))?;
    let Some((at, gradients)) = into else { return Ok(()) };
    parameters::check(OP, at.weight, [1, channels], gradients)?;
    parameters::check(OP, at.bias, [1, channels], gradients)
}

/// Cost of the backward pass with `residuals` residuals: x and dy are read, the gradient at x is written.
pub fn backward_cost(rows: usize, channels: usize, residuals: usize, element: usize) -> Cost {
    let elements = (rows * channels) as f64;
    Cost { flops: 16.0 * elements, bytes: (3 + residuals) as f64 * elements * element as f64 }
}
