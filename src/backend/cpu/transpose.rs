//! transpose: (M, N) to (N, M). Only the vocoder's duration predictor needs it, on a few hundred kilobytes at most.

use super::{Cpu, Tensor};
use crate::backend::Transpose;
use crate::{Result, trace};

impl Transpose for Cpu {
    fn transpose(&self, x: &Tensor) -> Result<Tensor> {
        let _span = trace::span("transpose");
        let mut y = Vec::with_capacity(x.data.len());
        for column in 0..x.columns {
            y.extend((0..x.rows).map(|row| x.data[row * x.columns + column]));
        }
        Ok(Tensor::new(x.columns, x.rows, y))
    }
}
