//! Calibrated rounding: a matrix in eight bits whose products with the inputs it will see are close, not its elements.
//! Each row is rounded column by column, and every column makes up for the errors of those before it; then columns are
//! rounded again, one at a time, for as long as that helps.
//! Source: Frantar et al., "GPTQ" (2022), in the equivalent form of Chee et al., "QuIP" (2023), section 4: feedback from a
//! triangular factor, no inverse. Beyond it: the target may differ from the matrix's own products, and the bias, which is
//! not rounded, is the last column, so that it takes what is left of the mean error.

use rayon::prelude::*;

use super::{decode, encode, scale_of};
use crate::tensor::{Bytes, DType, HostTensor, Quantized};

/// Added to the diagonal, as a share of its mean: what keeps weights where no input was seen.
const DAMPING: f64 = 0.01;
/// Most passes over a row after the first rounding.
const PASSES: usize = 4;
/// Columns of a panel of the factorisation: a panel's rows stay in the L2.
const PANEL: usize = 48;

/// What is known of the inputs x (K) of a matrix (N, K) with a bias, summed over samples. A constant one follows each
/// input, for the bias: J = K + 1.
#[derive(Clone, Debug)]
pub struct Moments {
    rows: usize,
    inputs: usize,
    squares: Vec<f64>, // (J, J): x x^T
    missed: Vec<f64>,  // (N, J): (target - (W x + b)) x^T
}

impl Moments {
    /// Of a matrix (`rows`, `columns`), before any sample.
    pub fn new(rows: usize, columns: usize) -> Moments {
        let inputs = columns + 1;
        Moments { rows, inputs, squares: vec![0.0; inputs * inputs], missed: vec![0.0; rows * inputs] }
    }

    /// Adds sums over samples: x x^T (J, J), and what the unrounded layer misses of its target times x (N, J).
    /// `false`, and nothing added, for other lengths.
    pub fn add(&mut self, squares: &[f32], missed: &[f32]) -> bool {
        if squares.len() != self.squares.len() || missed.len() != self.missed.len() {
            return false;
        }
        self.squares.iter_mut().zip(squares).for_each(|(sum, &v)| *sum += f64::from(v));
        self.missed.iter_mut().zip(missed).for_each(|(sum, &v)| *sum += f64::from(v));
        true
    }
}

/// A layer in eight bits.
#[derive(Clone, Debug)]
pub struct Rounded {
    /// Codes (N, K) and scales (N).
    pub weight: Quantized,
    /// (N), f32.
    pub bias: Vec<f32>,
    /// Root mean square error of its outputs over the samples, relative to their root mean square without the bias.
    pub error: f64,
    /// The same of nearest rounding.
    pub nearest: f64,
}

/// Rounds a layer for its inputs. `None` when shapes do not fit.
pub fn round(weight: &HostTensor, bias: &[f32], moments: &Moments) -> Option<Rounded> {
    let &[rows, columns] = weight.shape() else { return None };
    if (moments.rows, moments.inputs) != (rows, columns + 1) || bias.len() != rows {
        return None;
    }
    let damp: f64 = std::env::var("DAMP").ok().and_then(|v| v.parse().ok()).unwrap_or(DAMPING);
    let passes: usize = std::env::var("PASSES").ok().and_then(|v| v.parse().ok()).unwrap_or(PASSES);
    let alpha: f64 = std::env::var("ALPHA").ok().and_then(|v| v.parse().ok()).unwrap_or(1.0);
    let plan = Plan::new(moments, damp);
    let values = weight.to_f32();
    let rounded: Vec<Row> = (0..rows)
        .into_par_iter()
        .map(|row| {
            let scale = scale_of(values[row * columns..][..columns].iter().fold(0.0, |most, v| most.max(v.abs())));
            plan.row(
                &values[row * columns..][..columns],
                bias[row],
                &moments.missed[row * plan.size..][..plan.size],
                scale,
                passes,
                alpha,
            )
        })
        .collect();
    let mut codes = Vec::with_capacity(rows * columns);
    let (mut scales, mut biases, mut sums) = (Vec::new(), Vec::new(), [0.0; 3]);
    for row in rounded {
        codes.extend(row.codes);
        scales.push(row.scale);
        biases.push(row.bias);
        sums.iter_mut().zip(row.squares).for_each(|(sum, v)| *sum += v);
    }
    let [error, nearest, power] = sums;
    let relative = |error: f64| if power > 0.0 { (error / power).sqrt() } else { 0.0 };
    Some(Rounded {
        weight: Quantized {
            codes: HostTensor::new(&[rows, columns], DType::F8E4M3, Bytes::new(codes))?,
            scales: HostTensor::from_f32(&[rows], scales)?,
        },
        bias: biases,
        error: relative(error),
        nearest: relative(nearest),
    })
}

/// One rounded row.
struct Row {
    codes: Vec<u8>,
    scale: f32,
    bias: f32,
    /// Of its error, of that of nearest rounding, and of its outputs.
    squares: [f64; 3],
}

/// What all rows share: the order of the columns and the factors of their squares.
struct Plan {
    size: usize,
    /// The column at each place; those of the largest inputs first, the bias last.
    order: Vec<usize>,
    /// (J, J) in that order, undamped.
    squares: Vec<f64>,
    /// (J, J): damped squares in the reverse of that order are `factor factor^T`, lower.
    factor: Vec<f64>,
    /// (J, J): how much of the error at earlier places a place makes up for.
    feedback: Vec<f64>,
    damping: f64,
}

impl Plan {
    fn new(moments: &Moments, damp: f64) -> Plan {
        let size = moments.inputs;
        let diagonal = |j: usize| moments.squares[j * size + j];
        let mean = (0..size - 1).map(diagonal).sum::<f64>() / (size - 1).max(1) as f64;
        let mut order: Vec<usize> = (0..size - 1).collect();
        order.sort_by(|&a, &b| diagonal(b).total_cmp(&diagonal(a)));
        order.push(size - 1);
        let squares: Vec<f64> =
            order.iter().flat_map(|&i| order.iter().map(move |&j| moments.squares[i * size + j])).collect();
        let damping = if mean > 0.0 { damp * mean } else { 1.0 };
        let mut factor: Vec<f64> = squares.iter().rev().copied().collect();
        for (j, d) in factor.iter_mut().step_by(size + 1).enumerate() {
            // The bias may move freely.
            *d += if j > 0 { damping } else { 1e-6 * damping };
        }
        cholesky(&mut factor, size);
        let mut feedback = vec![0.0; size * size];
        feedback.par_chunks_mut(size).enumerate().for_each(|(place, line)| {
            let c = size - 1 - place;
            for earlier in 0..place {
                line[earlier] = factor[(size - 1 - earlier) * size + c] / factor[c * size + c];
            }
        });
        Plan { size, order, squares, factor, feedback, damping }
    }

    fn row(&self, values: &[f32], bias: f32, missed: &[f64], scale: f32, passes: usize, alpha: f64) -> Row {
        let size = self.size;
        let last = size - 1;
        let at = |place: usize| if place == last { bias } else { values[self.order[place]] };
        let original: Vec<f64> = (0..size).map(|place| f64::from(at(place))).collect();
        // The unrounded weights that come closest to the target.
        let mut target: Vec<f64> = self.order.iter().rev().map(|&j| alpha * missed[j]).collect();
        solve(&self.factor, size, &mut target);
        target.reverse();
        target.iter_mut().zip(&original).for_each(|(t, o)| *t += o);
        let round = |v: f64| f64::from(decode(encode((v / f64::from(scale)) as f32)) * scale);
        let mut errors = vec![0.0; size];
        let mut rounded = vec![0.0; size];
        for place in 0..size {
            let wish = target[place] - dot(&self.feedback[place * size..][..place], &errors[..place]);
            rounded[place] = if place == last { wish } else { round(wish) };
            errors[place] = rounded[place] - target[place];
        }
        // Coordinate descent on error^T squares error.
        let mut gradient: Vec<f64> = (0..size).map(|i| dot(&self.squares[i * size..][..size], &errors) + self.damping * errors[i]).collect();
        for _ in 0..passes {
            let mut changed = false;
            for place in 0..size {
                let curve = self.squares[place * size + place] + self.damping;
                if curve <= 0.0 {
                    continue;
                }
                let wish = rounded[place] - gradient[place] / curve;
                let new = if place == last { wish } else { round(wish) };
                let step = new - rounded[place];
                if step != 0.0 && (place == last || step * (2.0 * gradient[place] + step * curve) < 0.0) {
                    changed |= place != last;
                    rounded[place] = new;
                    errors[place] += step;
                    let line = &self.squares[place * size..][..size];
                    gradient.iter_mut().zip(line).for_each(|(g, s)| *g += step * s);
                    gradient[place] += step * self.damping;
                }
            }
            if !changed {
                break;
            }
        }
        let quadratic = |e: &[f64]| (0..size).map(|i| e[i] * dot(&self.squares[i * size..][..size], e)).sum::<f64>();
        let mut nearest: Vec<f64> = original.iter().zip(&target).map(|(&o, t)| round(o) - t).collect();
        nearest[last] = original[last] - target[last];
        let mut codes = vec![0; last];
        for place in 0..last {
            codes[self.order[place]] = encode((rounded[place] / f64::from(scale)) as f32);
        }
        let mut plain = original.clone();
        plain[last] = 0.0;
        Row {
            codes,
            scale,
            bias: rounded[last] as f32,
            squares: [quadratic(&errors), quadratic(&nearest), quadratic(&plain)],
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let (wide, rest) = (a.chunks_exact(8).zip(b.chunks_exact(8)), a.len() / 8 * 8);
    for (a, b) in wide {
        for i in 0..8 {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().sum::<f64>() + a[rest..].iter().zip(&b[rest..]).map(|(a, b)| a * b).sum::<f64>()
}

/// The lower factor L of a symmetric positive definite matrix L L^T, in its place.
fn cholesky(a: &mut [f64], size: usize) {
    for first in (0..size).step_by(PANEL) {
        let end = (first + PANEL).min(size);
        let (above, below) = a.split_at_mut(end * size);
        for i in first..end {
            for j in first..=i {
                let sum = above[i * size + j] - dot(&above[i * size..][..j], &above[j * size..][..j]);
                above[i * size + j] = if i == j { sum.max(1e-300).sqrt() } else { sum / above[j * size + j] };
            }
        }
        below.par_chunks_mut(size).for_each(|row| {
            for j in first..end {
                let known = &above[j * size..][..size];
                row[j] = (row[j] - dot(&row[..j], &known[..j])) / known[j];
            }
        });
    }
}

/// x with L L^T x = b, in place of b.
fn solve(factor: &[f64], size: usize, b: &mut [f64]) {
    for i in 0..size {
        b[i] = (b[i] - dot(&factor[i * size..][..i], &b[..i])) / factor[i * size + i];
    }
    for i in (0..size).rev() {
        b[i] /= factor[i * size + i];
        let (done, v) = (b[i], &factor[i * size..][..i]);
        b[..i].iter_mut().zip(v).for_each(|(b, l)| *b -= done * l);
    }
}
