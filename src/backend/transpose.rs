//! transpose: (M, N) to (N, M).

use super::Device;
use crate::Result;

/// Transposition.
pub trait Transpose: Device {
    /// (M, N) to (N, M).
    fn transpose(&self, x: &Self::Tensor) -> Result<Self::Tensor>;
}
