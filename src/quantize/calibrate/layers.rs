//! One layer after the other: its four matrices are rounded in the order of the data, each for inputs that come through
//! the rounded ones before it.

use std::collections::BTreeMap;

use super::product::{Weights, outer, transposed};
use super::report::MatrixReport;
use super::sequences::{Batch, Sensitivities, Sensitivity};
use crate::backend::TransformerLayer;
use crate::backend::cpu::{Cpu, Tensor};
use crate::backend::prelude::*;
use crate::backend::{Activation, LinearWeights};
use crate::quantize::gptq::{Hessian, round};
use crate::tensor::HostTensor;
use crate::weights::store::scale_name;
use crate::{Error, Result};

/// Matrices on the way to eight bits.
pub(super) struct Rounding {
    /// Those of the unrounded model.
    pub weights: Weights,
    pub sensitivities: Sensitivities,
    /// Tensors that replace those of the model directory, by name.
    pub changed: BTreeMap<String, HostTensor>,
    pub matrices: Vec<MatrixReport>,
}

/// Input of a matrix in one of the two runs, and the residual that is added to the product.
type Inputs<'a> = &'a dyn Fn(&Batch, usize) -> Result<(Tensor, Option<Tensor>)>;

impl Rounding {
    /// Rounds layer `n` and takes both runs of every batch through it.
    pub fn layer(&mut self, n: usize, layer: &TransformerLayer<Cpu>, batches: &mut [Batch]) -> Result<()> {
        let cpu = &Cpu;
        let qkv = self.matrix(n, "qkv", &layer.qkv, batches, &|b, run| Ok((b.x[run].clone(), None)))?;
        for b in &mut *batches {
            for (run, qkv) in [&layer.qkv, &qkv].into_iter().enumerate() {
                b.attended[run] = cpu.attention(&cpu.linear(&b.x[run], qkv, Activation::None, None)?, b.shape)?;
            }
        }
        let out = self.matrix(n, "attention_out", &layer.attention_out, batches, &|b, run| {
            Ok((b.attended[run].clone(), Some(b.x[run].clone())))
        })?;
        for b in &mut *batches {
            for (run, out) in [&layer.attention_out, &out].into_iter().enumerate() {
                let x = cpu.linear(&b.attended[run], out, Activation::None, Some(&b.x[run]))?;
                b.x[run] = cpu.layer_norm(&x, &layer.attention_norm)?;
            }
        }
        let fc1 = self.matrix(n, "fc1", &layer.fc1, batches, &|b, run| Ok((b.x[run].clone(), None)))?;
        // Made again where it is needed: it is the widest activation.
        let hidden = |b: &Batch, run: usize| cpu.linear(&b.x[run], [&layer.fc1, &fc1][run], Activation::Gelu, None);
        let fc2 =
            self.matrix(n, "fc2", &layer.fc2, batches, &|b, run| Ok((hidden(b, run)?, Some(b.x[run].clone()))))?;
        for b in &mut *batches {
            for (run, fc2) in [&layer.fc2, &fc2].into_iter().enumerate() {
                let x = cpu.linear(&hidden(b, run)?, fc2, Activation::None, Some(&b.x[run]))?;
                b.x[run] = cpu.layer_norm(&x, &layer.mlp_norm)?;
            }
        }
        Ok(())
    }

    /// Rounds one matrix with its bias.
    fn matrix(
        &mut self,
        n: usize,
        name: &'static str,
        layer: &LinearWeights<Cpu>,
        batches: &[Batch],
        inputs: Inputs<'_>,
    ) -> Result<LinearWeights<Cpu>> {
        let weight = self.weights.get(n, name)?;
        let unfit = || Error::shape("calibrate", format!("layer {n}, {name}: the activations of this model overflow"));
        let sensitivities = self.sensitivities.remove(&(n, name)).ok_or_else(unfit)?;
        let &[rows, columns] = weight.shape() else { return Err(unfit()) };
        let hessians = hessians([rows, columns], layer, batches, &sensitivities, inputs)?.ok_or_else(unfit)?;
        let rounded = round(weight, &Cpu.download(&layer.bias)?, &hessians).ok_or_else(unfit)?;

        let wide = HostTensor::from_quantized(rounded.weight.clone()).ok_or_else(unfit)?;
        let bias = HostTensor::from_f32(&[rounded.bias.len()], rounded.bias.clone()).ok_or_else(unfit)?;
        let prefix = format!("decoder.layers.{n}.{name}");
        let weight = format!("{prefix}.weight");
        self.changed.insert(scale_name(&weight), rounded.weight.scales);
        self.changed.insert(weight, rounded.weight.codes);
        self.changed.insert(format!("{prefix}.bias"), bias);
        self.matrices.push(MatrixReport { name: prefix, error: rounded.error, nearest: rounded.nearest });
        Ok(LinearWeights { weight: Cpu.matrix(wide)?, bias: Cpu.upload([1, rounded.bias.len()], &rounded.bias)? })
    }
}

/// For each part of a matrix, sums over all tokens, each weighted with what its outputs matter. The target of the rounded
/// run is what the unrounded one computes, residual included. `None` when shapes do not fit.
fn hessians(
    [rows, columns]: [usize; 2],
    layer: &LinearWeights<Cpu>,
    batches: &[Batch],
    sensitivities: &[Sensitivity],
    inputs: Inputs<'_>,
) -> Result<Option<Vec<Hessian>>> {
    let count = rows / sensitivities.len().max(1);
    let mut hessians = vec![Hessian::new(count, columns); sensitivities.len()];
    let mut fits = hessians.iter_mut().zip(sensitivities).all(|(m, sensitivity)| m.add_outputs(&sensitivity.outputs));
    for (index, batch) in batches.iter().enumerate() {
        let (target, _) = outputs(layer, inputs(batch, 0)?)?;
        let (y, x) = outputs(layer, inputs(batch, 1)?)?;
        let depth = batch.next.len();
        let residual: Vec<f32> = target.iter().zip(&y).map(|(target, y)| target - y).collect();
        let (mut x, residual) = (transposed(&x, columns), transposed(&residual, rows));
        x.resize((columns + 1) * depth, 1.0); // the constant one
        for ((hessians, sensitivity), residual) in
            hessians.iter_mut().zip(sensitivities).zip(residual.chunks_exact(count * depth))
        {
            let roots = sensitivity.roots(index);
            let scaled = |values: &[f32]| -> Vec<f32> {
                values
                    .chunks_exact(depth)
                    .flat_map(|values| values.iter().zip(&roots).map(|(v, root)| v * root))
                    .collect()
            };
            let (x, residual) = (scaled(&x), scaled(residual));
            fits &= hessians.add_inputs(&outer(&x, &x, depth)?, &outer(&residual, &x, depth)?);
        }
    }
    Ok(fits.then_some(hessians))
}

/// Outputs of the unrounded layer (M, N), and its inputs (M, K).
fn outputs(layer: &LinearWeights<Cpu>, (x, residual): (Tensor, Option<Tensor>)) -> Result<(Vec<f32>, Vec<f32>)> {
    let y = Cpu.linear(&x, layer, Activation::None, residual.as_ref())?;
    Ok((Cpu.download(&y)?, Cpu.download(&x)?))
}
