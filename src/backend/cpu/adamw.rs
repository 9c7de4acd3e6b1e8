//! adamw: one step over a block.
//! Numerics: f32, every value on its own. Bytes: 28 per value, in one pass.

use std::sync::Arc;

use rayon::prelude::*;

use super::simd::{Simd, dispatch};
use super::{Block, Cpu};
use crate::backend::{AdamW, AdamWStep, adamw};
use crate::{Result, trace};

/// Values of a task; the block is divided alike for any number of threads.
const TASK: usize = 1 << 15;

impl AdamW for Cpu {
    fn adamw(&self, block: &mut Block, gradients: &Vec<f32>, step: AdamWStep) -> Result<()> {
        let _span = trace::span("adamw");
        adamw::check(block.values.len(), gradients.len(), step)?;
        let values = Arc::make_mut(&mut block.values).par_chunks_mut(TASK);
        let moments = block.first.par_chunks_mut(TASK).zip(block.second.par_chunks_mut(TASK));
        let factors = step.factors();
        values
            .zip(moments)
            .zip(gradients.par_chunks(TASK))
            .for_each(|((values, (first, second)), gradients)| update(values, first, second, gradients, step, factors));
        Ok(())
    }
}

dispatch! {
    fn update(
        values: &mut [f32],
        first: &mut [f32],
        second: &mut [f32],
        gradients: &[f32],
        step: AdamWStep,
        factors: adamw::Factors,
    ) = body;
}

#[inline(always)]
fn body<S: Simd>(
    values: &mut [f32],
    first: &mut [f32],
    second: &mut [f32],
    gradients: &[f32],
    step: AdamWStep,
    factors: adamw::Factors,
) {
    let (rest1, rest2) = (1.0 - step.beta1, 1.0 - step.beta2);
    for (((p, m), v), g) in values.iter_mut().zip(first).zip(second).zip(gradients) {
        let g = g * step.gradient_scale;
        *m = S::mul_add1(rest1, g - *m, *m);
        *v = S::mul_add1(rest2 * g, g, step.beta2 * *v);
        let denominator = S::mul_add1(v.sqrt(), factors.root_scale, step.eps);
        *p = S::mul_add1(-factors.step_size, *m / denominator, factors.keep * *p);
    }
}
