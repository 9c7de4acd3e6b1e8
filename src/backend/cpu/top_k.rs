//! top_k: the largest values of each row, in order. NaN is an error, as in argmax.

use super::{Cpu, Tensor};
use crate::backend::{TopK, TopValue, rows, top_k};
use crate::{Error, Result, trace};

impl TopK for Cpu {
    fn top_k(&self, x: &Tensor, count: usize) -> Result<Vec<Vec<TopValue>>> {
        let _span = trace::span("top_k");
        top_k::check(self, x, count)?;
        largest(x, count)
    }
}

fn largest(x: &Tensor, count: usize) -> Result<Vec<Vec<TopValue>>> {
    let of_row = |row: &[f32]| {
        if row.iter().any(|v| v.is_nan()) {
            return Err(Error::NotANumber { stage: "top_k" });
        }
        let top = rows::top(row, count).into_iter();
        Ok(top.map(|column| TopValue { value: row[column], column: column as u32 }).collect())
    };
    (0..x.rows).map(|r| of_row(&x.data[r * x.columns..][..x.columns])).collect()
}
