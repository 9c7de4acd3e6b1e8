//! adamw: one step of AdamW (Loshchilov and Hutter, "Decoupled weight decay regularization", 2019) over all parameters of a
//! block, in PyTorch's order of operations:
//!
//! ```text
//! g = gradient * gradient_scale
//! p = p - rate * weight_decay * p
//! m = m + (1 - beta1) (g - m)          v = beta2 v + (1 - beta2) g g
//! p = p - rate / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
//! ```

use super::ensure;
use super::parameters::TrainedParameters;
use crate::Result;
use crate::cost::Cost;

/// Numbers of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWStep {
    /// Learning rate.
    pub rate: f32,
    /// Decay of the first moments.
    pub beta1: f32,
    /// Decay of the second moments.
    pub beta2: f32,
    /// Added to the root of the second moments.
    pub eps: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// Number t of this step, from 1.
    pub step: u64,
    /// Factor of every gradient: below 1 where their norm is clipped.
    pub gradient_scale: f32,
}

/// [`AdamWStep`] as a kernel takes it, computed in f64 on the host.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Factors {
    /// `1 - rate * weight_decay`.
    pub keep: f32,
    /// `rate / (1 - beta1^t)`.
    pub step_size: f32,
    /// `1 / sqrt(1 - beta2^t)`.
    pub root_scale: f32,
}

impl AdamWStep {
    pub(crate) fn factors(&self) -> Factors {
        let AdamWStep { rate, beta1, beta2, weight_decay, step, .. } = *self;
        let rest = |beta: f32| 1.0 - f64::from(beta).powf(step as f64);
        Factors {
            keep: (1.0 - f64::from(rate) * f64::from(weight_decay)) as f32,
            step_size: (f64::from(rate) / rest(beta1)) as f32,
            root_scale: (1.0 / rest(beta2).sqrt()) as f32,
        }
    }
}

/// AdamW.
pub trait AdamW: TrainedParameters {
    /// One step over the whole block: values, both moments and, where there is one, the working copy are written.
    fn adamw(&self, block: &mut Self::Block, gradients: &Self::Gradients, step: AdamWStep) -> Result<()>;
}

/// An error unless there is a gradient for each value, and steps are counted from 1.
pub(crate) fn check(values: usize, gradients: usize, step: AdamWStep) -> Result<()> {
    ensure(values == gradients && step.step > 0, "adamw", || {
        format!("{gradients} gradients for {values} values, step {}", step.step)
    })
}

/// Cost over `len` parameters with a working copy of `copy` bytes a value.
pub fn cost(len: usize, copy: usize) -> Cost {
    Cost { flops: (14 * len) as f64, bytes: (len * (28 + copy)) as f64 }
}
