//! top_k: the largest values of each row, in order. NaN is an error, as in argmax.

use super::{Tensor, ensure};
use crate::backend::{TopValue, rows};
use crate::{Error, Result};

/// See [`crate::backend::Backend::top_k`].
pub fn top_k(x: &Tensor, count: usize) -> Result<Vec<Vec<TopValue>>> {
    ensure(count <= x.columns, "top_k", || format!("{count} of {} columns", x.columns))?;
    let of_row = |row: &[f32]| {
        if row.iter().any(|v| v.is_nan()) {
            return Err(Error::NotANumber { stage: "top_k" });
        }
        let top = rows::top(row, count).into_iter();
        Ok(top.map(|column| TopValue { value: row[column], column: column as u32 }).collect())
    };
    (0..x.rows).map(|r| of_row(&x.data[r * x.columns..][..x.columns])).collect()
}
