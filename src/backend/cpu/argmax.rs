//! argmax: the column of the largest value of each row. NaN is an error, because it can only come from damaged weights
//! and would otherwise be spoken as some unit.

use super::{Cpu, Tensor};
use crate::backend::{Argmax, argmax};
use crate::{Error, Result, trace};

impl Argmax for Cpu {
    fn argmax(&self, x: &Tensor, columns: &mut Vec<u32>) -> Result<()> {
        let _span = trace::span("argmax");
        argmax::check(self, x)?;
        rows(x, columns)
    }
}

fn rows(x: &Tensor, columns: &mut Vec<u32>) -> Result<()> {
    columns.clear();
    for row in x.data.chunks_exact(x.columns) {
        let mut best = 0;
        for (column, value) in row.iter().enumerate() {
            if value.is_nan() {
                return Err(Error::NotANumber { stage: "argmax" });
            }
            if *value > row[best] {
                best = column;
            }
        }
        columns.push(best as u32);
    }
    Ok(())
}
