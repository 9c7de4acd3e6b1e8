//! linear: fully connected layers, `y = act(x weight^T + bias) + residual`.

use super::parameters::{self, TrainedParameters, WeightAndBias};
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
    /// tanh(x).
    Tanh,
    /// min(max(x, 0), 6).
    Relu6,
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

/// Fully connected layers in training. Backward passes: `dx = dy weight`, `dweight += dy^T x`, `dbias += sum of the rows of dy`.
pub trait LinearBackward: Linear + TrainedParameters {
    /// As [`Linear::linear`] without a residual, to the result (M, N) and the activation's input (M, N), which the backward pass of
    /// the next layer takes.
    fn linear_saving(
        &self,
        x: &Self::Tensor,
        layer: &LinearWeights<Self>,
        activation: Activation,
    ) -> Result<(Self::Tensor, Self::Tensor)>;
    /// The gradient (M, K) at the layer's input from that at its sums dy (M, N): `(dy weight) act'(saved) + residual`. `input`
    /// names the activation that made x, and its saved input (M, K): the result then is the gradient at that.
    fn linear_backward(
        &self,
        dy: &Self::Tensor,
        layer: &LinearWeights<Self>,
        input: Option<(Activation, &Self::Tensor)>,
        residual: Option<&Self::Tensor>,
    ) -> Result<Self::Tensor>;
    /// Adds the gradients of weight and bias for x (M, K) and dy (M, N).
    fn linear_weight_backward(
        &self,
        dy: &Self::Tensor,
        x: &Self::Tensor,
        gradients: &mut Self::Gradients,
        at: WeightAndBias,
    ) -> Result<()>;
}

/// An error unless the shapes fit [`LinearBackward::linear_backward`].
pub(crate) fn check_backward<D: Device>(
    device: &D,
    dy: &D::Tensor,
    layer: &LinearWeights<D>,
    input: Option<&D::Tensor>,
    residual: Option<&D::Tensor>,
) -> Result<()> {
    let ([rows, columns], [n, k]) = (device.shape(dy), device.matrix_shape(&layer.weight));
    let others = [input, residual].map(|other| other.map(|other| device.shape(other)));
    let fits = columns == n && others.iter().flatten().all(|&shape| shape == [rows, k]);
    ensure(fits, "linear_backward", || {
        format!("dy ({rows}, {columns}), weight ({n}, {k}), saved input {:?}, residual {:?}", others[0], others[1])
    })
}

/// An error unless the shapes fit [`LinearBackward::linear_weight_backward`] with so many gradients.
pub(crate) fn check_weight_backward(dy: [usize; 2], x: [usize; 2], at: WeightAndBias, gradients: usize) -> Result<()> {
    const OP: &str = "linear_weight_backward";
    ensure(dy[0] == x[0], OP, || format!("dy {dy:?}, x {x:?}"))?;
    parameters::check(OP, at.weight, [dy[1], x[1]], gradients)?;
    parameters::check(OP, at.bias, [1, dy[1]], gradients)
}
