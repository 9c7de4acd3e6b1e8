//! The one tolerance policy: how far a result may be from the exact one. Lists are gone through by all threads.

use half::bf16;
use rayon::prelude::*;

use crate::tensor::DType;

/// Values that one task goes through.
const TASK: usize = 1 << 14;

/// Allowed error of sums of `length` f32 products whose terms are about `size` large: rounding errors grow with the root of
/// the length; 8 covers the spread of the sums and what is computed from them. Deep stacks pass the lengths of all their
/// sums added up.
pub fn tolerance(length: usize, size: f32) -> f32 {
    8.0 * f32::EPSILON * (length as f32).sqrt().max(1.0) * size.max(f32::MIN_POSITIVE)
}

/// Allowed error of results that are stored in bf16: at most twice the error of storing the exact results (`expected`), or
/// of the plain computation that rounds what the kernel rounds (`rounded`, empty if it rounds nothing), whichever is larger.
pub fn tolerance_bf16(length: usize, expected: &[f32], rounded: &[f32]) -> f32 {
    let stored = largest_of(expected.par_iter().with_min_len(TASK).map(|&v| (round_bf16(v) - v).abs()));
    let computed = expected.par_iter().with_min_len(TASK).zip(rounded).map(|(e, r)| (e - r).abs());
    2.0 * stored.max(largest_of(computed)) + tolerance(length, largest(expected))
}

/// The nearest bf16.
pub fn round_bf16(v: f32) -> f32 {
    bf16::from_f32(v).to_f32()
}

/// Values as a device holds them that stores them in `dtype`: rounded if that is bf16.
pub fn stored(dtype: DType, mut values: Vec<f32>) -> Vec<f32> {
    if dtype == DType::BF16 {
        values.par_iter_mut().with_min_len(TASK).for_each(|v| *v = round_bf16(*v));
    }
    values
}

/// The largest magnitude.
pub fn largest(values: &[f32]) -> f32 {
    largest_of(values.par_iter().with_min_len(TASK).map(|v| v.abs()))
}

fn largest_of(values: impl ParallelIterator<Item = f32>) -> f32 {
    values.reduce(|| 0.0, f32::max)
}

/// The largest difference; infinite if the lengths differ or anything is NaN.
pub fn difference(actual: &[f32], expected: &[f32]) -> f32 {
    if actual.len() != expected.len() {
        return f32::INFINITY;
    }
    let differences = actual.par_iter().with_min_len(TASK).zip(expected).map(|(a, e)| match (a - e).abs() {
        _ if a == e => 0.0,
        difference if difference.is_nan() => f32::INFINITY,
        difference => difference,
    });
    largest_of(differences)
}
