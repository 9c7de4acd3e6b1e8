//! crop: a stretch of columns. Bytes: those of the result, twice.

use std::ops::Range;

use super::{Tensor, ensure};
use crate::Result;

/// See [`crate::backend::Backend::crop`].
pub fn crop(x: &Tensor, columns: Range<usize>) -> Result<Tensor> {
    ensure(columns.start <= columns.end && columns.end <= x.columns, "crop", || {
        format!("columns {columns:?} of ({}, {})", x.rows, x.columns)
    })?;
    let mut y = Vec::with_capacity(x.rows * columns.len());
    for row in 0..x.rows {
        y.extend_from_slice(&x.data[row * x.columns..][columns.clone()]);
    }
    Ok(Tensor::new(x.rows, columns.len(), y))
}
