//! gelu: 0.5 x (1 + erf(x / sqrt 2)) of each element, in the arithmetic of `linear`'s epilogue.

use rayon::prelude::*;

use super::buffer::Buffer;
use super::linear::finish;
use super::simd::{Simd, dispatch};
use super::{Activation, Cpu, Tensor};
use crate::backend::Gelu;
use crate::{Result, trace};

/// Elements of a task: half of the L1.
const TASK: usize = 1 << 12;

impl Gelu for Cpu {
    fn gelu(&self, x: &Tensor) -> Result<Tensor> {
        let _span = trace::span("gelu");
        let mut y = Buffer::any(x.data.len());
        y.par_chunks_mut(TASK).zip(x.data.par_chunks(TASK)).for_each(|(y, x)| {
            y.copy_from_slice(x);
            activate(y);
        });
        Ok(Tensor::new(x.rows, x.columns, y))
    }
}

dispatch! {
    fn activate(y: &mut [f32]) = activate_body;
}

#[inline(always)]
fn activate_body<S: Simd>(y: &mut [f32]) {
    finish::<S>(y, &mut [], [&[]; 4], Activation::Gelu);
}
