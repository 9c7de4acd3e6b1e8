//! A stretch of columns: of a channel sequence, which lies column after column, one copy within the device.

use std::ops::Range;

use super::{Cuda, Layout, Tensor, ensure};
use crate::Result;

/// See [`crate::backend::Backend::crop`].
pub(super) fn crop(cuda: &Cuda, x: &Tensor, columns: Range<usize>) -> Result<Tensor> {
    ensure(columns.start <= columns.end && columns.end <= x.columns, "crop", || {
        format!("columns {columns:?} of ({}, {})", x.rows, x.columns)
    })?;
    let x = cuda.columns_of(x, x.dtype)?;
    let y = cuda.empty([x.rows, columns.len()], x.dtype, Layout::Columns)?;
    let bytes = x.rows * x.dtype.size();
    // SAFETY: x holds x.columns columns of so many bytes, of which the range is a part; y holds as many as the range has.
    unsafe { cuda.driver.copy(y.pointer(), x.pointer().offset(columns.start * bytes), columns.len() * bytes)? };
    Ok(y)
}
