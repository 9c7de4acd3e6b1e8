//! layer_norm: normalise each row over C, then scale and shift: y = (x - mean) * rstd * weight + bias; and backwards.
//! Numerics: mean, then the biased variance of the centred row (two passes over a row that stays in L1), f32 sums in
//! independent lanes. Gradients of weight and bias are added up over [`SHARE`] rows at a time, then over the shares, in order.
//! Bytes: 8 per element; backwards 12, 16 with a residual.

use rayon::prelude::*;

use super::buffer::Buffer;
use super::linear::finish;
use super::simd::{Simd, dispatch};
use super::{Activation, Cpu, Tensor};
use crate::backend::{LayerNorm, LayerNormBackward, LayerNormWeights, WeightAndBias, layer_norm};
use crate::{Result, trace};

/// Fewer elements than this are not worth another thread.
const PARALLEL_FROM: usize = 1 << 15;
/// Rows of a task of the backward pass.
const SHARE: usize = 64;

impl LayerNorm for Cpu {
    fn layer_norm(&self, x: &Tensor, norm: &LayerNormWeights<Cpu>) -> Result<Tensor> {
        let _span = trace::span("layer_norm");
        layer_norm::check(self, x, norm)?;
        Ok(normalised(x, norm).0)
    }
}

impl LayerNormBackward for Cpu {
    fn layer_norm_saving(&self, x: &Tensor, norm: &LayerNormWeights<Cpu>) -> Result<(Tensor, Tensor)> {
        let _span = trace::span("layer_norm");
        layer_norm::check(self, x, norm)?;
        Ok(normalised(x, norm))
    }

    fn layer_norm_backward(
        &self,
        dy: &Tensor,
        x: &Tensor,
        norm: &LayerNormWeights<Cpu>,
        saved: &Tensor,
        residual: Option<&Tensor>,
        into: Option<(&mut Vec<f32>, WeightAndBias)>,
    ) -> Result<Tensor> {
        let _span = trace::span("layer_norm_backward");
        let places = into.as_ref().map(|(gradients, at)| (*at, gradients.len()));
        layer_norm::check_backward(self, [dy, x, saved], norm, residual, places)?;
        let (dx, sums) = backward(dy, x, &norm.weight.data, saved, residual);
        let Some((gradients, at)) = into else { return Ok(dx) };
        let [mut weight, mut bias] = [(); 2].map(|()| vec![0.0; x.columns]);
        for sums in sums.chunks_exact((2 * x.columns).max(1)) {
            add(&mut weight, &sums[..x.columns]);
            add(&mut bias, &sums[x.columns..]);
        }
        add(&mut gradients[at.weight.range()], &weight);
        add(&mut gradients[at.bias.range()], &bias);
        Ok(dx)
    }
}

fn add(sums: &mut [f32], values: &[f32]) {
    sums.iter_mut().zip(values).for_each(|(sum, v)| *sum += v);
}

/// The result, and mean and rstd of each row.
fn normalised(x: &Tensor, norm: &LayerNormWeights<Cpu>) -> (Tensor, Tensor) {
    let columns = x.columns;
    let (mut y, mut saved) = (Buffer::any(x.data.len()), Buffer::any(2 * x.rows));
    let rows_per_task =
        if x.data.len() < PARALLEL_FROM { x.rows } else { x.rows.div_ceil(4 * rayon::current_num_threads()) };
    let rows_per_task = rows_per_task.max(1);
    if columns == 0 {
        saved.fill(0.0);
        return (Tensor::new(x.rows, columns, y), Tensor::new(x.rows, 2, saved));
    }
    y.par_chunks_mut(rows_per_task * columns)
        .zip(x.data.par_chunks(rows_per_task * columns))
        .zip(saved.par_chunks_mut(rows_per_task * 2))
        .for_each(|((y, x), saved)| rows(x, &norm.weight.data, &norm.bias.data, norm.eps, y, saved));
    (Tensor::new(x.rows, columns, y), Tensor::new(x.rows, 2, saved))
}

dispatch! {
    fn rows(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, y: &mut [f32], saved: &mut [f32]) = rows_body;
}

#[inline(always)]
fn rows_body<S: Simd>(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, y: &mut [f32], saved: &mut [f32]) {
    let columns = weight.len();
    for ((x, y), saved) in x.chunks_exact(columns).zip(y.chunks_exact_mut(columns)).zip(saved.chunks_exact_mut(2)) {
        let [mean, rstd] = moments(x, eps);
        for (((y, x), weight), bias) in y.iter_mut().zip(x).zip(weight).zip(bias) {
            *y = S::mul_add1((x - mean) * rstd, *weight, *bias);
        }
        saved.copy_from_slice(&[mean, rstd]);
    }
}

dispatch! {
    /// Layer norm and GELU of rows in place, with the bits of both operations.
    pub(super) fn normalise_and_activate(rows: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) =
        normalise_and_activate_body;
}

#[inline(always)]
fn normalise_and_activate_body<S: Simd>(rows: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    for row in rows.chunks_exact_mut(weight.len().max(1)) {
        let [mean, rstd] = moments(row, eps);
        for ((v, weight), bias) in row.iter_mut().zip(weight).zip(bias) {
            *v = S::mul_add1((*v - mean) * rstd, *weight, *bias);
        }
        finish::<S>(row, &mut [], [&[]; 4], Activation::Gelu);
    }
}

/// Mean and rstd of a row.
#[inline(always)]
fn moments(x: &[f32], eps: f32) -> [f32; 2] {
    let mean = sum(x, |v| v) / x.len() as f32;
    let variance = sum(x, |v| (v - mean) * (v - mean)) / x.len() as f32;
    [mean, 1.0 / (variance + eps).sqrt()]
}

/// Lanes of a sum over a row.
const LANES: usize = 16;

/// Sum of `f` over a row, in independent lanes.
#[inline(always)]
fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest: f32 = chunks.remainder().iter().map(|&v| f(v)).sum();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane += f(v);
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// The gradient at x, and what each share of rows adds to those of weight and bias, 2 C values.
fn backward(dy: &Tensor, x: &Tensor, weight: &[f32], saved: &Tensor, residual: Option<&Tensor>) -> (Tensor, Buffer) {
    let columns = x.columns;
    let chunk = SHARE * columns.max(1);
    let (mut dx, mut sums) = (Buffer::any(x.data.len()), Buffer::zeros(x.rows.div_ceil(SHARE) * 2 * columns));
    let inputs = x.data.par_chunks(chunk).zip(dy.data.par_chunks(chunk)).zip(saved.data.par_chunks(2 * SHARE));
    let outputs = dx.par_chunks_mut(chunk).zip(sums.par_chunks_mut(2 * columns.max(1)));
    inputs.zip(outputs).enumerate().for_each(|(share, (((x, dy), saved), (dx, sums)))| {
        let residual = residual.map_or(&[][..], |r| &r.data[share * chunk..][..x.len()]);
        rows_backward(dy, x, weight, saved, residual, dx, sums);
    });
    (Tensor::new(x.rows, columns, dx), sums)
}

dispatch! {
    /// Rows of a share; an empty residual is none. Adds to `sums`.
    fn rows_backward(
        dy: &[f32],
        x: &[f32],
        weight: &[f32],
        saved: &[f32],
        residual: &[f32],
        dx: &mut [f32],
        sums: &mut [f32],
    ) = rows_backward_body;
}

#[inline(always)]
fn rows_backward_body<S: Simd>(
    dy: &[f32],
    x: &[f32],
    weight: &[f32],
    saved: &[f32],
    residual: &[f32],
    dx: &mut [f32],
    sums: &mut [f32],
) {
    let columns = weight.len();
    let (dweight, dbias) = sums.split_at_mut(columns);
    let rows = x.chunks_exact(columns).zip(dy.chunks_exact(columns)).zip(saved.chunks_exact(2));
    for (row, ((x, dy), saved)) in rows.enumerate() {
        let (mean, rstd) = (saved[0], saved[1]);
        let (level, slope) = projections::<S>(dy, x, weight, mean, rstd);
        let (level, slope) = (level / columns as f32, slope / columns as f32);
        for (((dweight, dbias), dy), x) in dweight.iter_mut().zip(dbias.iter_mut()).zip(dy).zip(x) {
            *dweight = S::mul_add1(*dy, (x - mean) * rstd, *dweight);
            *dbias += dy;
        }
        let dx = &mut dx[row * columns..][..columns];
        for (((dx, dy), x), weight) in dx.iter_mut().zip(dy).zip(x).zip(weight) {
            *dx = rstd * S::mul_add1(-(x - mean) * rstd, slope, S::mul_add1(*weight, *dy, -level));
        }
        if !residual.is_empty() {
            add(dx, &residual[row * columns..][..columns]);
        }
    }
}

/// Sums of `weight dy` and of `weight dy x^` over a row.
#[inline(always)]
fn projections<S: Simd>(dy: &[f32], x: &[f32], weight: &[f32], mean: f32, rstd: f32) -> (f32, f32) {
    let (mut levels, mut slopes) = ([0.0f32; LANES], [0.0f32; LANES]);
    let whole = x.len() / LANES * LANES;
    let chunks = dy.chunks_exact(LANES).zip(x.chunks_exact(LANES)).zip(weight.chunks_exact(LANES));
    for ((dy, x), weight) in chunks {
        for n in 0..LANES {
            let scaled = weight[n] * dy[n];
            levels[n] += scaled;
            slopes[n] = S::mul_add1(scaled, (x[n] - mean) * rstd, slopes[n]);
        }
    }
    let (mut level, mut slope) = (levels.iter().sum::<f32>(), slopes.iter().sum::<f32>());
    for ((dy, x), weight) in dy[whole..].iter().zip(&x[whole..]).zip(&weight[whole..]) {
        level += weight * dy;
        slope = S::mul_add1(weight * dy, (x - mean) * rstd, slope);
    }
    (level, slope)
}
