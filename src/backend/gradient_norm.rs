//! gradient_norm: the Euclidean norm of all gradients, added up in one fixed order.

use super::parameters::TrainedParameters;
use crate::Result;
use crate::cost::Cost;

/// The norm of gradients.
pub trait GradientNorm: TrainedParameters {
    /// `sqrt(sum g^2)`; waits for the device. NaN or infinite if a gradient is.
    fn gradient_norm(&self, gradients: &Self::Gradients) -> Result<f64>;
}

/// Cost over `len` gradients.
pub fn cost(len: usize) -> Cost {
    Cost { flops: (2 * len) as f64, bytes: (4 * len) as f64 }
}
