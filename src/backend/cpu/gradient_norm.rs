//! gradient_norm: the Euclidean norm of all gradients.
//! Numerics: f64, in 16 lanes of each task, then over the tasks in order; the tasks depend on the length only. Bytes: 4 per
//! gradient.

use rayon::prelude::*;

use super::Cpu;
use super::simd::{Simd, dispatch};
use crate::backend::GradientNorm;
use crate::{Result, trace};

/// Gradients of a task.
const TASK: usize = 1 << 16;
const LANES: usize = 16;

impl GradientNorm for Cpu {
    fn gradient_norm(&self, gradients: &Vec<f32>) -> Result<f64> {
        let _span = trace::span("gradient_norm");
        let mut sums = vec![0.0; gradients.len().div_ceil(TASK)];
        sums.par_iter_mut().zip(gradients.par_chunks(TASK)).for_each(|(sum, values)| add_squares(values, sum));
        Ok(sums.iter().sum::<f64>().sqrt())
    }
}

dispatch! {
    fn add_squares(values: &[f32], sum: &mut f64) = body;
}

#[inline(always)]
fn body<S: Simd>(values: &[f32], sum: &mut f64) {
    let mut lanes = [0.0f64; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest: f64 = chunks.remainder().iter().map(|&v| f64::from(v) * f64::from(v)).sum();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(v) * f64::from(v);
        }
    }
    *sum += lanes.iter().sum::<f64>() + rest;
}
