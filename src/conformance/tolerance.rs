//! The one tolerance policy: how far a result may be from the exact one.

use half::bf16;

/// A sum of `length` f32 products whose terms are about `size` large has a rounding error that grows with the root of
/// its length; 8 covers the spread of the sums and what is computed from them. Deep stacks pass the lengths of all their
/// sums added up.
pub fn tolerance(length: usize, size: f32) -> f32 {
    8.0 * f32::EPSILON * (length as f32).sqrt().max(1.0) * size.max(f32::MIN_POSITIVE)
}

/// The same where results are stored in bf16: at most twice the error of storing the exact results (`expected`), or of
/// the plain computation that rounds what the kernel rounds (`rounded`), whichever is larger.
pub fn tolerance_bf16(length: usize, expected: &[f32], rounded: &[f32]) -> f32 {
    let size = largest(expected);
    let stored = expected.iter().map(|&v| (round_bf16(v) - v).abs()).fold(0.0, f32::max);
    let computed = expected.iter().zip(rounded).map(|(e, r)| (e - r).abs()).fold(0.0, f32::max);
    2.0 * stored.max(computed) + tolerance(length, size)
}

/// The nearest bf16.
pub fn round_bf16(v: f32) -> f32 {
    bf16::from_f32(v).to_f32()
}

/// The largest magnitude.
pub fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0f32, |max, v| max.max(v.abs()))
}

/// The largest difference; infinite if the lengths differ or anything is NaN.
pub fn difference(actual: &[f32], expected: &[f32]) -> f32 {
    if actual.len() != expected.len() {
        return f32::INFINITY;
    }
    let differences = actual.iter().zip(expected).map(|(a, e)| if a == e { 0.0 } else { (a - e).abs() });
    differences.fold(0.0, |max, d| {
        if d <= max {
            max
        } else if d.is_nan() {
            f32::INFINITY
        } else {
            d
        }
    })
}
