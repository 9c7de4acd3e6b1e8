//! The linear algebra of calibrated rounding: f64, row-major, for matrices of a few thousand rows.

use rayon::prelude::*;

/// Rows of a panel of the factorisation, which stay in the L2 while all rows below pass.
const PANEL: usize = 48;

/// a . b, in an order that does not depend on the machine.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    const LANES: usize = 8;
    let mut sums = [0.0; LANES];
    for (a, b) in a.chunks_exact(LANES).zip(b.chunks_exact(LANES)) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
    }
    let whole = a.len() / LANES * LANES;
    a[whole..].iter().zip(&b[whole..]).fold(sums.iter().sum(), |sum, (a, b)| sum + a * b)
}

/// The lower factor L of a symmetric positive definite matrix L L^T, in the place of its lower half. A pivot lost to
/// rounding becomes a tiny one.
pub(super) fn cholesky(a: &mut [f64], size: usize) {
    let largest = a.iter().step_by(size + 1).fold(0.0f64, |max, &v| max.max(v));
    let min = (largest * f64::EPSILON).max(f64::MIN_POSITIVE);
    for first in (0..size).step_by(PANEL) {
        let end = (first + PANEL).min(size);
        let (above, below) = a.split_at_mut(end * size);
        for i in first..end {
            for j in first..=i {
                let rest = above[i * size + j] - dot(&above[i * size..][..j], &above[j * size..][..j]);
                above[i * size + j] = if i == j { rest.max(min).sqrt() } else { rest / above[j * size + j] };
            }
        }
        below.par_chunks_mut(size).for_each(|row| {
            for j in first..end {
                let known = &above[j * size..][..j + 1];
                row[j] = (row[j] - dot(&row[..j], &known[..j])) / known[j];
            }
        });
    }
}

/// x with L L^T x = b, in the place of b.
pub(super) fn solve(factor: &[f64], size: usize, b: &mut [f64]) {
    for i in 0..size {
        b[i] = (b[i] - dot(&factor[i * size..][..i], &b[..i])) / factor[i * size + i];
    }
    for i in (0..size).rev() {
        b[i] /= factor[i * size + i];
        let (known, row) = (b[i], &factor[i * size..][..i]);
        b[..i].iter_mut().zip(row).for_each(|(b, l)| *b -= known * l);
    }
}
