//! dropout: y = keep(x) / (1 - p) + residual. Words are made sixteen blocks at a time, in vector registers. Bytes: 8 per
//! element, 12 with a residual; 25 integer operations an element bind it.

use rayon::prelude::*;

use super::buffer::Buffer;
use super::simd::{MAX_LANES, Simd, dispatch};
use super::{Cpu, Tensor};
use crate::backend::{Dropout, DropoutMask, dropout};
use crate::{Result, trace};

/// Elements of a task: a multiple of [`RUN`].
const TASK: usize = 1 << 14;
/// Elements whose words are made together.
pub(super) const RUN: usize = 4 * MAX_LANES;

impl Dropout for Cpu {
    fn dropout(&self, x: &Tensor, mask: DropoutMask, residual: Option<&Tensor>) -> Result<Tensor> {
        let _span = trace::span("dropout");
        dropout::check(self, x, mask, residual)?;
        let mut y = Buffer::any(x.data.len());
        y.par_chunks_mut(TASK).zip(x.data.par_chunks(TASK)).enumerate().for_each(|(task, (y, x))| {
            let start = task * TASK;
            let residual = residual.map_or(&[][..], |residual| &residual.data[start..start + x.len()]);
            drop_values(mask, start as u64, x, residual, y);
        });
        Ok(Tensor::new(x.rows, x.columns, y))
    }
}

dispatch! {
    /// Values from `start` on, a multiple of four.
    fn drop_values(mask: DropoutMask, start: u64, x: &[f32], residual: &[f32], y: &mut [f32]) = drop_values_body;
}

#[inline(always)]
fn drop_values_body<S: Simd>(mask: DropoutMask, start: u64, x: &[f32], residual: &[f32], y: &mut [f32]) {
    for (run, (y, x)) in y.chunks_mut(RUN).zip(x.chunks(RUN)).enumerate() {
        let factors = factors::<S>(mask, start / 4 + (run * MAX_LANES) as u64);
        if residual.is_empty() {
            y.iter_mut().zip(x).zip(&factors).for_each(|((y, x), factor)| *y = x * factor);
        } else {
            let residual = &residual[run * RUN..][..x.len()];
            for (((y, x), factor), residual) in y.iter_mut().zip(x).zip(&factors).zip(residual) {
                *y = S::mul_add1(*x, *factor, *residual);
            }
        }
    }
}

/// Factors, 0 or the scale, of the values that take the words of sixteen blocks from `block` on.
#[inline(always)]
pub(super) fn factors<S: Simd>(mask: DropoutMask, block: u64) -> [f32; RUN] {
    let (threshold, scale) = (mask.threshold(), mask.scale());
    let words = mask.words().blocks::<MAX_LANES>(block);
    let mut kept = [[0.0; MAX_LANES]; 4];
    for (kept, words) in kept.iter_mut().zip(&words) {
        for (kept, &word) in kept.iter_mut().zip(words) {
            *kept = if word >= threshold { scale } else { 0.0 };
        }
    }
    let mut factors = [0.0; RUN];
    for (run, factors) in factors.chunks_exact_mut(4 * S::N).enumerate() {
        let [a, b, c, d] = &kept;
        let lanes = [
            S::load(&a[run * S::N..]),
            S::load(&b[run * S::N..]),
            S::load(&c[run * S::N..]),
            S::load(&d[run * S::N..]),
        ];
        S::store_fourths(factors, lanes);
    }
    factors
}
