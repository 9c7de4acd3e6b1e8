//! gelu: the activation `0.5 x (1 + erf(x / sqrt 2))` by itself, after a norm; after a product it is part of that.

use super::Device;
use crate::Result;
use crate::cost::Cost;

/// The activation of each element.
pub trait Gelu: Device {
    /// x (M, N) to (M, N).
    fn gelu(&self, x: &Self::Tensor) -> Result<Self::Tensor>;
}

/// Cost of (rows, columns) elements of `element` bytes.
pub fn cost(rows: usize, columns: usize, element: usize) -> Cost {
    let elements = (rows * columns) as f64;
    Cost { flops: 8.0 * elements, bytes: 2.0 * elements * element as f64 }
}
