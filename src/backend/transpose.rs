//! transpose: (M, N) to (N, M).

use super::Device;
use crate::Result;
use crate::cost::Cost;

/// Transposition.
pub trait Transpose: Device {
    /// (M, N) to (N, M).
    fn transpose(&self, x: &Self::Tensor) -> Result<Self::Tensor>;
}

/// Cost of moving (rows, columns) elements of `element` bytes; a device that only exchanges the two does less.
pub fn cost(rows: usize, columns: usize, element: usize) -> Cost {
    Cost { flops: 0.0, bytes: (2 * rows * columns * element) as f64 }
}
