//! top_k: the largest values of each row, in order.

use super::{Device, ensure};
use crate::Result;
use crate::cost::Cost;

/// A value of a row and its column.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TopValue {
    /// The value.
    pub value: f32,
    /// Its column.
    pub column: u32,
}

/// Top-k over rows.
pub trait TopK: Device {
    /// The `count` largest values of each row, largest first, the lower column first on ties; NaN anywhere is an error.
    fn top_k(&self, x: &Self::Tensor, count: usize) -> Result<Vec<Vec<TopValue>>>;
}

/// An error unless rows have as many columns.
pub(crate) fn check<D: Device>(device: &D, x: &D::Tensor, count: usize) -> Result<()> {
    let [_, columns] = device.shape(x);
    ensure(count <= columns, "top_k", || format!("{count} of {columns} columns"))
}

/// Cost over `rows` rows of `columns` f32, with `count` values and columns of each.
pub fn cost(rows: usize, columns: usize, count: usize) -> Cost {
    Cost { flops: 0.0, bytes: (4 * rows * columns + 8 * rows * count) as f64 }
}
