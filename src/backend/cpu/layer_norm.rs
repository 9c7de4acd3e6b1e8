//! layer_norm: normalise each row over C, then scale and shift: y = (x - mean) * rstd * weight + bias.
//! Numerics: mean, then the biased variance of the centred row (two passes over a row that stays in L1), f32 sums in
//! independent lanes. Bytes: 8 per element.

use rayon::prelude::*;

use super::buffer::Buffer;
use super::simd::{Simd, dispatch};
use super::{Cpu, Tensor};
use crate::backend::{LayerNorm, LayerNormWeights, layer_norm};
use crate::{Result, trace};

/// Fewer elements than this are not worth another thread.
const PARALLEL_FROM: usize = 1 << 15;

impl LayerNorm for Cpu {
    fn layer_norm(&self, x: &Tensor, norm: &LayerNormWeights<Cpu>) -> Result<Tensor> {
        let _span = trace::span("layer_norm");
        layer_norm::check(self, x, norm)?;
        Ok(normalised(x, norm))
    }
}

fn normalised(x: &Tensor, norm: &LayerNormWeights<Cpu>) -> Tensor {
    let columns = x.columns;
    let mut y = Buffer::any(x.data.len());
    let rows_per_task =
        if x.data.len() < PARALLEL_FROM { x.rows } else { x.rows.div_ceil(4 * rayon::current_num_threads()) };
    let chunk = (rows_per_task * columns).max(1);
    y.par_chunks_mut(chunk)
        .zip(x.data.par_chunks(chunk))
        .for_each(|(y, x)| rows(x, &norm.weight.data, &norm.bias.data, norm.eps, y));
    Tensor::new(x.rows, columns, y)
}

dispatch! {
    fn rows(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, y: &mut [f32]) = rows_body;
}

#[inline(always)]
fn rows_body<S: Simd>(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, y: &mut [f32]) {
    let columns = weight.len().max(1);
    for (x, y) in x.chunks_exact(columns).zip(y.chunks_exact_mut(columns)) {
        let mean = sum::<S>(x, |v| v) / columns as f32;
        let variance = sum::<S>(x, |v| (v - mean) * (v - mean)) / columns as f32;
        let rstd = 1.0 / (variance + eps).sqrt();
        for (((y, x), weight), bias) in y.iter_mut().zip(x).zip(weight).zip(bias) {
            *y = S::mul_add1((x - mean) * rstd, *weight, *bias);
        }
    }
}

/// Sum of `f` over a row, in 16 independent lanes.
#[inline(always)]
fn sum<S: Simd>(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; 16];
    let chunks = x.chunks_exact(16);
    let rest: f32 = chunks.remainder().iter().map(|&v| f(v)).sum();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane += f(v);
        }
    }
    lanes.iter().sum::<f32>() + rest
}
