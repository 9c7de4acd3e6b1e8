//! The way of weights out of a [`TensorStore`] onto a backend.

use crate::backend::{Backend, Conv2dWeights, LayerNormWeights, LinearWeights, TransformerLayer};
use crate::tensor::{DType, HostTensor};
use crate::weights::store::TensorStore;
use crate::{Error, Result};

/// Takes weights out of a store and puts them on a backend.
pub struct Loader<'a, B: Backend> {
    /// Where to.
    pub backend: &'a B,
    /// Where from.
    pub store: &'a mut TensorStore,
    /// Type of the matrices; `None` leaves them as stored. Vectors are always f32.
    pub dtype: Option<DType>,
}

impl<B: Backend> Loader<'_, B> {
    /// The matrix `name` (rows, columns).
    pub fn matrix(&mut self, name: &str, shape: [usize; 2]) -> Result<B::Matrix> {
        self.store.take(name, &shape).and_then(|tensor| self.matrix_of(tensor))
    }

    /// Puts an already taken matrix on the backend.
    pub fn matrix_of(&mut self, tensor: HostTensor) -> Result<B::Matrix> {
        let tensor = match self.dtype {
            Some(dtype) => tensor.to_dtype(dtype),
            None => tensor,
        };
        self.backend.matrix(tensor)
    }

    /// The vector `name` of `len` values, as (1, len).
    pub fn vector(&mut self, name: &str, len: usize) -> Result<B::Tensor> {
        let tensor = self.store.take(name, &[len])?;
        self.backend.upload([1, len], &tensor.to_f32())
    }

    /// `prefix.weight` (n, k) and `prefix.bias` (n).
    pub fn linear(&mut self, prefix: &str, n: usize, k: usize) -> Result<LinearWeights<B>> {
        let weight = self.matrix(&format!("{prefix}.weight"), [n, k])?;
        Ok(LinearWeights { weight, bias: self.vector(&format!("{prefix}.bias"), n)? })
    }

    /// `prefix.weight` and `prefix.bias`, both (channels).
    pub fn norm(&mut self, prefix: &str, channels: usize, eps: f32) -> Result<LayerNormWeights<B>> {
        let weight = self.vector(&format!("{prefix}.weight"), channels)?;
        Ok(LayerNormWeights { weight, bias: self.vector(&format!("{prefix}.bias"), channels)?, eps })
    }

    /// The matrix `position` (rows, columns) with the vector `bias` (columns) added to each row from `first` on: the bias of a
    /// patch embedding, whose every result gets a position.
    pub fn positions(&mut self, position: &str, bias: &str, shape: [usize; 2], first: usize) -> Result<B::Matrix> {
        let position = self.store.take(position, &shape)?;
        let bias = self.store.take(bias, &shape[1..])?;
        let mut values = position.to_f32().into_owned();
        for row in values.chunks_exact_mut(shape[1].max(1)).skip(first) {
            row.iter_mut().zip(bias.to_f32().iter()).for_each(|(value, bias)| *value += bias);
        }
        let sum = HostTensor::from_f32(&shape, values).map(|sum| sum.to_dtype(position.dtype()));
        self.matrix_of(sum.ok_or_else(|| Error::internal("positions that are not those of their shape"))?)
    }

    /// The convolution `prefix`: weight (outputs, inputs, taps) and bias.
    pub fn conv_weights(&mut self, prefix: &str, [outputs, inputs, taps]: [usize; 3]) -> Result<B::ConvWeights> {
        let weight = self.store.take(&format!("{prefix}.weight"), &[outputs, inputs, taps])?;
        let bias = self.store.take(&format!("{prefix}.bias"), &[outputs])?;
        self.backend.conv_weights(&weight, &bias)
    }

    /// The convolution over maps `prefix`: weight (outputs, depth), which becomes (depth, outputs), and bias.
    pub fn conv2d_weights(&mut self, prefix: &str, [outputs, depth]: [usize; 2]) -> Result<Conv2dWeights<B>> {
        let weight = self.store.take(&format!("{prefix}.weight"), &[outputs, depth])?;
        let mut turned = vec![0.0; outputs * depth];
        for (output, weight) in weight.to_f32().chunks_exact(depth.max(1)).enumerate() {
            for (turned, weight) in turned.chunks_exact_mut(outputs).zip(weight) {
                turned[output] = *weight;
            }
        }
        let weight = self.backend.upload([depth, outputs], &turned)?;
        Ok(Conv2dWeights { weight, bias: self.vector(&format!("{prefix}.bias"), outputs)? })
    }

    /// Takes the layer `prefix`: its channels, those of its heads together, and the hidden ones of its feed-forward part.
    pub fn layer(&mut self, prefix: &str, [width, inner, mlp]: [usize; 3], eps: f32) -> Result<TransformerLayer<B>> {
        Ok(TransformerLayer {
            qkv: self.linear(&format!("{prefix}.qkv"), 3 * inner, width)?,
            attention_out: self.linear(&format!("{prefix}.attention_out"), width, inner)?,
            attention_norm: self.norm(&format!("{prefix}.attention_norm"), width, eps)?,
            fc1: self.linear(&format!("{prefix}.fc1"), mlp, width)?,
            fc2: self.linear(&format!("{prefix}.fc2"), width, mlp)?,
            mlp_norm: self.norm(&format!("{prefix}.mlp_norm"), width, eps)?,
        })
    }
}

/// An error unless the number of elements a caller handed over is the model's.
pub(super) fn expect_len(op: &'static str, len: usize, expected: usize) -> Result<()> {
    if len == expected { Ok(()) } else { Err(Error::shape(op, format!("{len} values, expected {expected}"))) }
}
