//! argmax: the column of the largest value of each row.

use super::{Device, ensure};
use crate::Result;
use crate::cost::Cost;

/// Argmax over rows.
pub trait Argmax: Device {
    /// Column of the largest value of each row, the lowest such column on ties, into `columns`; NaN anywhere is an error,
    /// because it can only come from damaged weights.
    fn argmax(&self, x: &Self::Tensor, columns: &mut Vec<u32>) -> Result<()>;
}

/// An error unless rows have columns.
pub(crate) fn check<D: Device>(device: &D, x: &D::Tensor) -> Result<()> {
    ensure(device.shape(x)[1] > 0, "argmax", || "rows have no columns".into())
}

/// Cost over `rows` rows of `columns` f32.
pub fn cost(rows: usize, columns: usize) -> Cost {
    Cost { flops: 0.0, bytes: (4 * rows * columns) as f64 }
}
