//! cross_entropy: the loss of logits against targets, and its gradient, in one pass over the logits.

use super::{Device, ensure};
use crate::Result;
use crate::cost::Cost;

/// The loss of every row, and the gradient at the logits.
pub struct CrossEntropyResult<D: Device> {
    /// (M, 2) f32: `-log softmax(logits)[target]`, and 1 where the largest logit, the first of equal ones, is the target's.
    /// Both are 0 in ignored rows.
    pub rows: D::Tensor,
    /// (M, V): `scale * (softmax(logits) - one_hot(target))`, 0 in ignored rows.
    pub dlogits: D::Tensor,
}

/// Cross-entropy with its gradient.
pub trait CrossEntropy: Device {
    /// Logits (M, V) against M targets; rows whose target is `ignored` count for nothing. `scale` is the gradient at each row's
    /// loss: 1 / valid rows for a mean. Sums and results per row are f32.
    fn cross_entropy(
        &self,
        logits: &Self::Tensor,
        targets: &[u32],
        ignored: u32,
        scale: f32,
    ) -> Result<CrossEntropyResult<Self>>;
}

/// An error unless there is a target for each row, each the number of a column.
pub(crate) fn check<D: Device>(device: &D, logits: &D::Tensor, targets: &[u32]) -> Result<()> {
    let [rows, columns] = device.shape(logits);
    ensure(targets.len() == rows, "cross_entropy", || {
        format!("logits ({rows}, {columns}), {} targets", targets.len())
    })?;
    match targets.iter().find(|&&target| target as usize >= columns) {
        Some(target) => ensure(false, "cross_entropy", || format!("target {target} of {columns} columns")),
        None => Ok(()),
    }
}

/// Cost over logits (rows, columns) of `element` bytes.
pub fn cost(rows: usize, columns: usize, element: usize) -> Cost {
    let elements = (rows * columns) as f64;
    Cost { flops: 6.0 * elements, bytes: 2.0 * elements * element as f64 }
}
