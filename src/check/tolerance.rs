//! The one tolerance policy, and the reproducible random values that it is applied to.

use half::bf16;

/// Xorshift random numbers; a seed gives the same values everywhere.
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// In -1..1.
    pub fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// `len` values in -1..1.
    pub fn values(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.unit()).collect()
    }

    /// `len` whole numbers from -8 to 8, whose sums and products are exact.
    pub fn whole(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.below(17) as f32 - 8.0).collect()
    }

    /// In 0..end.
    pub fn below(&mut self, end: usize) -> usize {
        (self.bits() % end as u64) as usize
    }
}

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
    values.iter().fold(0.0f32, |most, v| most.max(v.abs()))
}

/// The largest difference; infinite if the lengths differ or anything is NaN.
pub fn difference(actual: &[f32], expected: &[f32]) -> f32 {
    if actual.len() != expected.len() {
        return f32::INFINITY;
    }
    let differences = actual.iter().zip(expected).map(|(a, e)| if a == e { 0.0 } else { (a - e).abs() });
    differences.fold(0.0, |most, d| {
        if d <= most {
            most
        } else if d.is_nan() {
            f32::INFINITY
        } else {
            d
        }
    })
}
