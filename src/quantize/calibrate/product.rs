//! Matrix products on host values, with the product of the CPU backend.

use std::collections::BTreeMap;

use rayon::prelude::*;

use crate::backend::cpu::Cpu;
use crate::backend::prelude::*;
use crate::backend::{Activation, LinearWeights};
use crate::tensor::HostTensor;
use crate::{Error, Result};

/// The stored tensors of the captioner.
pub(super) struct Weights(pub BTreeMap<String, HostTensor>);

impl Weights {
    /// The matrix (N, K) that is called `matrix` in layer `layer`.
    pub fn get(&self, layer: usize, matrix: &str) -> Result<&HostTensor> {
        let name = format!("decoder.layers.{layer}.{matrix}.weight");
        self.0.get(&name).ok_or_else(|| Error::shape("calibrate", format!("{name} is missing")))
    }
}

/// `left` (M, L) times its like `right` (N, L), transposed: (M, N).
pub(super) fn outer(left: &[f32], right: &[f32], depth: usize) -> Result<Vec<f32>> {
    let rows = right.len() / depth.max(1);
    let bias = Cpu.upload([1, rows], &vec![0.0; rows])?;
    let linear = LinearWeights { weight: Cpu.matrix(matrix(rows, depth, right.to_vec())?)?, bias };
    let left = Cpu.upload([left.len() / depth.max(1), depth], left)?;
    Cpu.download(&Cpu.linear(&left, &linear, Activation::None, None)?)
}

fn matrix(rows: usize, columns: usize, values: Vec<f32>) -> Result<HostTensor> {
    let count = values.len();
    HostTensor::from_f32(&[rows, columns], values)
        .ok_or_else(|| Error::shape("calibrate", format!("{count} values for a matrix ({rows}, {columns})")))
}

/// (M, N) to (N, M).
pub(super) fn transposed(values: &[f32], columns: usize) -> Vec<f32> {
    let rows = values.len() / columns.max(1);
    let mut turned = vec![0.0; values.len()];
    turned.par_chunks_mut(rows.max(1)).enumerate().for_each(|(column, turned)| {
        turned.iter_mut().enumerate().for_each(|(row, v)| *v = values[row * columns + column]);
    });
    turned
}
