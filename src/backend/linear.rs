//! linear: fully connected layers, `y = act(x weight^T + bias) + residual`.

use super::{Device, ensure};
use crate::Result;
use crate::cost::Cost;

/// The activation of a matrix product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x.
    None,
    /// 0.5 x (1 + erf(x / sqrt 2)).
    Gelu,
    /// x sigmoid(1.702 x).
    QuickGelu,
}

/// A fully connected layer on a device.
pub struct LinearWeights<D: Device> {
    /// (N, K).
    pub weight: D::Matrix,
    /// (1, N).
    pub bias: D::Tensor,
}

/// Fully connected layers.
pub trait Linear: Device {
    /// `act(x weight^T + bias) + residual`: x (M, K), residual and result (M, N). For whole sequences.
    fn linear(
        &self,
        x: &Self::Tensor,
        layer: &LinearWeights<Self>,
        activation: Activation,
        residual: Option<&Self::Tensor>,
    ) -> Result<Self::Tensor>;
    /// As `linear`, for the few rows of a decode step: reads the weights once, and adds in another order. The caller
    /// chooses, not the number of rows, so that a row's result never depends on its neighbours.
    fn linear_decode(
        &self,
        x: &Self::Tensor,
        layer: &LinearWeights<Self>,
        activation: Activation,
        residual: Option<&Self::Tensor>,
    ) -> Result<Self::Tensor>;
}

/// An error of `op`, one of the two forms, unless the shapes fit.
pub(crate) fn check<D: Device>(
    op: &'static str,
    device: &D,
    x: &D::Tensor,
    layer: &LinearWeights<D>,
    residual: Option<&D::Tensor>,
) -> Result<()> {
    let ([rows, depth], [n, k]) = (device.shape(x), device.matrix_shape(&layer.weight));
    let (bias, residual) = (device.shape(&layer.bias), residual.map(|r| device.shape(r)));
    ensure(depth == k && bias[0] * bias[1] == n && residual.is_none_or(|r| r == [rows, n]), op, || {
        format!("x ({rows}, {depth}), weight ({n}, {k}), bias {bias:?}, residual {residual:?}")
    })
}

/// Cost of (M, K) times (K, N) with `operands` of the result's shape added to it: activations of `activation` bytes, weights
/// of `weight` bytes an element, f32 biases.
pub fn cost([m, n, k]: [usize; 3], operands: usize, activation: usize, weight: usize) -> Cost {
    let activations = m * k + m * n * (1 + operands);
    Cost {
        flops: 2.0 * m as f64 * n as f64 * k as f64,
        bytes: (activations * activation + n * k * weight + n * size_of::<f32>()) as f64,
    }
}
