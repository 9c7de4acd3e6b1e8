//! Arithmetic on rows of logits on the host: what the CPU backend, beam search and sampling share.

use crate::{Error, Result};

/// log softmax of one row in f32, as the framework computes it; NaN is an error.
pub fn log_softmax(logits: &[f32]) -> Result<Vec<f32>> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let log_sum = logits.iter().map(|&v| (v - max).exp()).sum::<f32>().ln();
    if !log_sum.is_finite() || logits.iter().any(|v| v.is_nan()) {
        return Err(Error::NotANumber { stage: "log_softmax" });
    }
    Ok(logits.iter().map(|&v| v - max - log_sum).collect())
}

/// Indices of the `count` largest values, largest first, lower indices first on ties.
pub fn top(values: &[f32], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    let by_value = |a: &usize, b: &usize| values[*b].total_cmp(&values[*a]).then(a.cmp(b));
    let count = count.min(values.len());
    if count < values.len() && count > 0 {
        order.select_nth_unstable_by(count - 1, by_value);
    }
    order.truncate(count);
    order.sort_unstable_by(by_value);
    order
}
