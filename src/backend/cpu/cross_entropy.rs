//! cross_entropy: the loss of logits against targets, and its gradient.
//! Numerics: f32; the largest logit is subtracted first, sums are in independent lanes. Bytes: 8 per element, since the three
//! passes over a row stay in the L1.

use rayon::prelude::*;

use super::buffer::Buffer;
use super::simd::{self, Simd, dispatch};
use super::{Cpu, Tensor};
use crate::backend::{CrossEntropy, CrossEntropyResult, cross_entropy};
use crate::{Result, trace};

/// Fewer elements than this are not worth another thread.
const PARALLEL_FROM: usize = 1 << 13;

impl CrossEntropy for Cpu {
    fn cross_entropy(
        &self,
        logits: &Tensor,
        targets: &[u32],
        ignored: u32,
        scale: f32,
    ) -> Result<CrossEntropyResult<Cpu>> {
        let _span = trace::span("cross_entropy");
        cross_entropy::check(self, logits, targets)?;
        Ok(losses(logits, targets, ignored, scale))
    }
}

fn losses(logits: &Tensor, targets: &[u32], ignored: u32, scale: f32) -> CrossEntropyResult<Cpu> {
    let Tensor { rows: count, columns, data: x } = logits;
    let (mut rows, mut dlogits) = (Buffer::any(2 * count), Buffer::any(x.len()));
    let tasks = if x.len() < PARALLEL_FROM { 1 } else { 4 * rayon::current_num_threads() };
    let share = count.div_ceil(tasks).max(1);
    let chunk = (share * columns).max(1);
    x.par_chunks(chunk)
        .zip(targets.par_chunks(share))
        .zip(rows.par_chunks_mut(2 * share).zip(dlogits.par_chunks_mut(chunk)))
        .for_each(|((x, targets), (rows, dlogits))| some_rows(x, targets, ignored, scale, rows, dlogits));
    CrossEntropyResult { rows: Tensor::new(*count, 2, rows), dlogits: Tensor::new(*count, *columns, dlogits) }
}

dispatch! {
    fn some_rows(x: &[f32], targets: &[u32], ignored: u32, scale: f32, rows: &mut [f32], dlogits: &mut [f32]) = body;
}

#[inline(always)]
fn body<S: Simd>(x: &[f32], targets: &[u32], ignored: u32, scale: f32, rows: &mut [f32], dlogits: &mut [f32]) {
    let columns = (x.len() / targets.len().max(1)).max(1);
    let rows = rows.chunks_exact_mut(2).zip(dlogits.chunks_exact_mut(columns));
    for ((x, &target), (row, dx)) in x.chunks_exact(columns).zip(targets).zip(rows) {
        if target == ignored {
            row.fill(0.0);
            dx.fill(0.0);
            continue;
        }
        let target = target as usize;
        let largest = largest(x);
        let sum = exponentials::<S>(x, largest, dx);
        let loss = (largest - x[target]) + sum.ln();
        let first = x[target] == largest && x[..target].iter().all(|&v| v < largest);
        row.copy_from_slice(&[loss, if first && !loss.is_nan() { 1.0 } else { 0.0 }]);
        let factor = scale / sum;
        dx.iter_mut().for_each(|v| *v *= factor);
        dx[target] -= scale;
    }
}

/// The largest value of a row; NaN is passed over.
#[inline(always)]
fn largest(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; 16];
    let chunks = x.chunks_exact(16);
    let rest = chunks.remainder().iter().fold(f32::NEG_INFINITY, |a, &b| larger(a, b));
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, &v)| *lane = larger(*lane, v));
    }
    lanes.into_iter().fold(rest, larger)
}

/// `y = exp(x - largest)`, and its sum, in 16 independent lanes.
#[inline(always)]
fn exponentials<S: Simd>(x: &[f32], largest: f32, y: &mut [f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    let (mut from, mut to) = (x.chunks_exact(16), y.chunks_exact_mut(16));
    for (x, y) in (&mut from).zip(&mut to) {
        for ((lane, &x), y) in lanes.iter_mut().zip(x).zip(y) {
            *y = simd::exp::<S>(x - largest);
            *lane += *y;
        }
    }
    let mut rest = 0.0;
    for (&x, y) in from.remainder().iter().zip(to.into_remainder()) {
        *y = simd::exp::<S>(x - largest);
        rest += *y;
    }
    lanes.iter().sum::<f32>() + rest
}
