//! Calibrated rounding: eight-bit weights whose products with the inputs they will see are close, not the weights
//! themselves. Each row is rounded column by column, and every column makes up for the errors of those before it; then
//! elements are rounded again, one at a time, for as long as that helps the outputs together.
//! Source: Frantar et al., "GPTQ" (2022), in the equivalent form of Chee et al., "QuIP" (2023), section 4: feedback from a
//! triangular factor, no inverse. Beyond it: the target may differ from the matrix's own products; the bias, which is
//! not rounded, is the last column, so that it takes what is left of the mean error; and descent weighs outputs.

use rayon::prelude::*;

use super::cholesky::{cholesky, dot, solve};
use crate::tensor::fp8::{decode, encode, scale_of};
use crate::tensor::{Bytes, DType, HostTensor, Quantized};

/// Added to the diagonal of the inputs, as a share of its mean: what keeps weights where no input was seen.
const DAMPING: f64 = 0.01;
/// The same of the outputs: every output counts a little.
const OUTPUT_DAMPING: f64 = 0.05;
/// Most passes of the descent.
const PASSES: usize = 8;

/// Sums over samples of what a layer y = W x + b, W (N, K), is given and gives. A constant one follows each input, for
/// the bias: J = K + 1.
#[derive(Clone, Debug)]
pub struct Hessian {
    rows: usize,
    inputs: usize,
    squares: Vec<f64>,  // (J, J): x x^T
    residual: Vec<f64>, // (N, J): (target - y) x^T
    outputs: Vec<f64>,  // (N, N): g g^T, g the gradient at y
}

impl Hessian {
    /// The sums of a matrix (`rows`, `columns`) before any sample. Without gradients every output counts alike, for itself.
    pub fn new(rows: usize, columns: usize) -> Hessian {
        let inputs = columns + 1;
        let [squares, residual, outputs] = [inputs * inputs, rows * inputs, rows * rows].map(|len| vec![0.0; len]);
        Hessian { rows, inputs, squares, residual, outputs }
    }

    /// Adds x x^T (J, J) and (target - y) x^T (N, J). `false`, and nothing added, for other lengths.
    pub fn add_inputs(&mut self, squares: &[f32], residual: &[f32]) -> bool {
        let fits = squares.len() == self.squares.len() && residual.len() == self.residual.len();
        if fits {
            add(&mut self.squares, squares);
            add(&mut self.residual, residual);
        }
        fits
    }

    /// Adds g g^T (N, N). `false`, and nothing added, for another length.
    pub fn add_outputs(&mut self, outputs: &[f32]) -> bool {
        let fits = outputs.len() == self.outputs.len();
        if fits {
            add(&mut self.outputs, outputs);
        }
        fits
    }

    fn is_finite(&self) -> bool {
        [&self.squares, &self.residual, &self.outputs].into_iter().flatten().all(|v| v.is_finite())
    }

    /// g g^T of mean diagonal 1, damped.
    fn metric(&self) -> Vec<f64> {
        let mean = self.outputs.iter().step_by(self.rows + 1).sum::<f64>() / self.rows.max(1) as f64;
        let known = mean > 0.0 && mean.is_finite();
        let mut metric: Vec<f64> = self.outputs.iter().map(|&v| if known { v / mean } else { 0.0 }).collect();
        metric.iter_mut().step_by(self.rows + 1).for_each(|v| *v += if known { OUTPUT_DAMPING } else { 1.0 });
        metric
    }
}

fn add(sums: &mut [f64], values: &[f32]) {
    sums.iter_mut().zip(values).for_each(|(sum, &v)| *sum += f64::from(v));
}

/// A layer in eight bits.
#[derive(Clone, Debug)]
pub struct Rounded {
    /// Codes (N, K) and scales (N).
    pub weight: Quantized,
    /// (N).
    pub bias: Vec<f32>,
    /// Root mean square error of the outputs over the samples, relative to that of W x.
    pub error: f64,
    /// The same of nearest rounding.
    pub nearest: f64,
}

/// Rounds a layer, weight (N, K) and bias (N), for its samples: as many sums as it has parts, equal runs of rows that know
/// nothing of each other. `None` when shapes do not fit or a sum is not finite.
pub fn round(weight: &HostTensor, bias: &[f32], parts: &[Hessian]) -> Option<Rounded> {
    let &[rows, columns] = weight.shape() else { return None };
    let fits = |part: &Hessian| part.inputs == columns + 1 && part.is_finite();
    if bias.len() != rows || parts.iter().map(|part| part.rows).sum::<usize>() != rows || !parts.iter().all(fits) {
        return None;
    }
    let values = weight.to_f32();
    let (mut codes, mut scales, mut biases, mut sums) = (Vec::with_capacity(values.len()), vec![], vec![], [0.0; 3]);
    for part in parts {
        let first = scales.len();
        let row = |n: usize| (&values[(first + n) * columns..][..columns], bias[first + n]);
        let plan = Plan::new(part);
        let line = |n: usize| plan.feed_back(row(n), &part.residual[n * plan.size..][..plan.size]);
        let mut lines: Vec<Line> = (0..part.rows).into_par_iter().map(line).collect();
        plan.descend(&mut lines, &part.metric());
        let errors = lines.par_iter().enumerate().map(|(n, line)| plan.errors(row(n), line));
        let errors: Vec<[f64; 3]> = errors.collect();
        errors.iter().for_each(|row| sums.iter_mut().zip(row).for_each(|(sum, v)| *sum += v));
        for line in &lines {
            codes.extend(plan.codes(line));
            scales.push(line.scale);
            biases.push(line.rounded[columns] as f32);
        }
    }
    let relative = |error: f64| if sums[2] > 0.0 { (error / sums[2]).sqrt() } else { 0.0 };
    Some(Rounded {
        weight: Quantized {
            codes: HostTensor::new(&[rows, columns], DType::F8E4M3, Bytes::new(codes))?,
            scales: HostTensor::from_f32(&[rows], scales)?,
        },
        bias: biases,
        error: relative(sums[0]),
        nearest: relative(sums[1]),
    })
}

/// A row while it is rounded, its columns in the order of the plan.
struct Line {
    scale: f32,
    /// The unrounded weights that come closest to the target.
    target: Vec<f64>,
    rounded: Vec<f64>,
    /// Damped squares times (rounded - target).
    slopes: Vec<f64>,
}

impl Line {
    fn code(&self, v: f64) -> u8 {
        encode((v / f64::from(self.scale)) as f32)
    }

    fn round(&self, v: f64) -> f64 {
        f64::from(decode(self.code(v)) * self.scale)
    }

    /// Moves one place by `step`; `squares` are those of its column.
    fn step(&mut self, place: usize, step: f64, squares: &[f64]) {
        self.rounded[place] += step;
        self.slopes.iter_mut().zip(squares).for_each(|(slope, s)| *slope += step * s);
    }
}

/// Factors shared by all rows.
struct Plan {
    /// J.
    size: usize,
    /// The column at each place; those of the largest inputs first, the bias last.
    order: Vec<usize>,
    squares: Vec<f64>, // (J, J), in that order, damped
    damping: f64,
    factor: Vec<f64>,   // (J, J): L of the squares in reverse order, L L^T
    feedback: Vec<f64>, // (J, J): how much of the error of each earlier place a place makes up for
}

impl Plan {
    fn new(hessian: &Hessian) -> Plan {
        let size = hessian.inputs;
        let last = size - 1;
        let diagonal = |j: usize| hessian.squares[j * size + j];
        let mean = (0..last).map(diagonal).sum::<f64>() / last.max(1) as f64;
        let damping = if mean > 0.0 { DAMPING * mean } else { 1.0 };
        let mut order: Vec<usize> = (0..last).collect();
        order.sort_by(|&a, &b| diagonal(b).total_cmp(&diagonal(a)));
        order.push(last);
        let mut squares: Vec<f64> =
            order.iter().flat_map(|&i| order.iter().map(move |&j| hessian.squares[i * size + j])).collect();
        squares.iter_mut().step_by(size + 1).for_each(|v| *v += damping);
        let mut factor: Vec<f64> = squares.iter().rev().copied().collect();
        cholesky(&mut factor, size);
        let mut feedback = vec![0.0; size * size];
        feedback.par_chunks_mut(size).enumerate().for_each(|(place, shares)| {
            let column = last - place;
            for (earlier, share) in shares[..place].iter_mut().enumerate() {
                *share = factor[(last - earlier) * size + column] / factor[column * size + column];
            }
        });
        Plan { size, order, squares, damping, factor, feedback }
    }

    /// A row, its bias last, in the order of the plan.
    fn ordered(&self, (values, bias): (&[f32], f32)) -> Vec<f64> {
        self.order.iter().map(|&column| f64::from(*values.get(column).unwrap_or(&bias))).collect()
    }

    /// A row rounded place by place, each making up for those before it.
    fn feed_back(&self, row: (&[f32], f32), residual: &[f64]) -> Line {
        let (size, last) = (self.size, self.size - 1);
        let mut target: Vec<f64> = self.order.iter().rev().map(|&column| residual[column]).collect();
        solve(&self.factor, size, &mut target);
        target.reverse();
        target.iter_mut().zip(self.ordered(row)).for_each(|(target, v)| *target += v);
        let scale = scale_of(row.0.iter().fold(0.0, |max, v| max.max(v.abs())));
        let mut line = Line { scale, target, rounded: vec![0.0; size], slopes: Vec::new() };
        let mut errors = vec![0.0; size];
        for place in 0..size {
            let wish = line.target[place] - dot(&self.feedback[place * size..][..place], &errors[..place]);
            line.rounded[place] = if place == last { wish } else { line.round(wish) };
            errors[place] = line.rounded[place] - line.target[place];
        }
        line.slopes = (0..size).map(|j| dot(&self.squares[j * size..][..size], &errors)).collect();
        line
    }

    /// Coordinate descent on the trace of `metric` E squares E^T, E (N, J) the errors of all rows: each element in turn goes
    /// where the others want it.
    fn descend(&self, lines: &mut [Line], metric: &[f64]) {
        let (size, count, last) = (self.size, lines.len(), self.size - 1);
        for _ in 0..PASSES {
            let mut changed = false;
            for place in 0..last {
                let squares = &self.squares[place * size..][..size];
                let slopes: Vec<f64> = lines.iter().map(|line| line.slopes[place]).collect();
                let mut gradient: Vec<f64> =
                    metric.par_chunks(count.max(1)).with_min_len(256).map(|metric| dot(metric, &slopes)).collect();
                for (n, line) in lines.iter_mut().enumerate() {
                    let metric = &metric[n * count..][..count];
                    let curvature = metric[n] * squares[place];
                    let step = line.round(line.rounded[place] - gradient[n] / curvature) - line.rounded[place];
                    if step * (2.0 * gradient[n] + step * curvature) < 0.0 {
                        changed = true;
                        line.step(place, step, squares);
                        let across = step * squares[place];
                        gradient.iter_mut().zip(metric).for_each(|(g, m)| *g += across * m);
                    }
                }
            }
            // The bias is free: its best place does not depend on the metric.
            let squares = &self.squares[last * size..][..size];
            lines.iter_mut().for_each(|line| line.step(last, -line.slopes[last] / squares[last], squares));
            if !changed {
                break;
            }
        }
    }

    /// The codes of a row, in the order of its columns.
    fn codes(&self, line: &Line) -> Vec<u8> {
        let mut codes = vec![0; self.size - 1];
        for (&column, &v) in self.order[..self.size - 1].iter().zip(&line.rounded) {
            codes[column] = line.code(v);
        }
        codes
    }

    /// Squares over the samples: the error of a rounded row, that of its nearest rounding, and its outputs.
    fn errors(&self, row: (&[f32], f32), line: &Line) -> [f64; 3] {
        let (size, last) = (self.size, self.size - 1);
        let square = |v: &[f64]| {
            let undamped = |j: usize| dot(&self.squares[j * size..][..size], v) - self.damping * v[j];
            (0..size).map(|j| v[j] * undamped(j)).sum::<f64>().max(0.0)
        };
        let minus = |v: &[f64]| -> Vec<f64> { v.iter().zip(&line.target).map(|(v, target)| v - target).collect() };
        let mut plain = self.ordered(row);
        let mut nearest: Vec<f64> = plain.iter().map(|&v| line.round(v)).collect();
        nearest[last] = plain[last];
        plain[last] = 0.0;
        [square(&minus(&line.rounded)), square(&minus(&nearest)), square(&plain)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;
    use crate::tensor::fp8::{dequantize, quantize};

    /// A layer (N, K), and samples (M, K) of its inputs that share half of what they are.
    fn layer(rows: usize, columns: usize, samples: usize) -> (HostTensor, Vec<f32>, Vec<f32>) {
        let mut random = Random::new(1);
        let weight = HostTensor::from_f32(&[rows, columns], random.values(rows * columns)).expect("a matrix");
        let (bias, shared, own) = (random.values(rows), random.values(samples), random.values(samples * columns));
        let x = own.iter().enumerate().map(|(at, v)| v + 2.0 * shared[at / columns]).collect();
        (weight, bias, x)
    }

    /// Sums over samples (M, K) of a target that is the layer itself.
    fn hessian(rows: usize, columns: usize, x: &[f32]) -> Hessian {
        let mut hessian = Hessian::new(rows, columns);
        for x in x.chunks_exact(columns) {
            let x: Vec<f32> = x.iter().copied().chain([1.0]).collect();
            let squares: Vec<f32> = x.iter().flat_map(|a| x.iter().map(move |b| a * b)).collect();
            assert!(hessian.add_inputs(&squares, &vec![0.0; rows * (columns + 1)]));
        }
        hessian
    }

    fn values(rounded: &Rounded) -> Vec<f32> {
        dequantize(&rounded.weight.codes, &rounded.weight.scales).expect("a matrix").to_f32().into_owned()
    }

    fn nearest(weight: &HostTensor) -> Vec<f32> {
        let (codes, scales) = quantize(weight).expect("a matrix");
        dequantize(&codes, &scales).expect("a matrix").to_f32().into_owned()
    }

    /// Sum of squared errors of the outputs over samples (M, K), each weighted with `gradient` (N) across outputs.
    fn loss(weight: &HostTensor, bias: &[f32], new: &[f32], new_bias: &[f32], x: &[f32], gradient: &[f32]) -> f64 {
        let (old, columns) = (weight.to_f32(), weight.shape()[1]);
        let of_sample = |x: &[f32]| -> f64 {
            let outputs = (0..bias.len()).map(|n| {
                let change = |k: usize| f64::from(new[n * columns + k] - old[n * columns + k]) * f64::from(x[k]);
                let error = f64::from(new_bias[n] - bias[n]) + (0..columns).map(change).sum::<f64>();
                (error * error, error * f64::from(gradient[n]))
            });
            let (each, together) = outputs.fold((0.0, 0.0), |(a, b), (c, d)| (a + c, b + d));
            if gradient.iter().all(|&g| g == 0.0) { each } else { together * together }
        };
        x.chunks_exact(columns).map(of_sample).sum()
    }

    #[test]
    fn outputs_are_closer_than_of_nearest_rounding() {
        let (rows, columns) = (7, 45);
        let (weight, bias, x) = layer(rows, columns, 300);
        let rounded = round(&weight, &bias, &[hessian(rows, columns, &x)]).expect("it fits");
        let none = vec![0.0; rows];
        let best = loss(&weight, &bias, &values(&rounded), &rounded.bias, &x, &none);
        let plain = loss(&weight, &bias, &nearest(&weight), &bias, &x, &none);
        assert!(best < 0.25 * plain, "{best} against {plain}");
        assert!((rounded.error / rounded.nearest - (best / plain).sqrt()).abs() < 1e-3, "the report says so");
    }

    #[test]
    fn what_the_outputs_do_together_counts() {
        let (rows, columns) = (8, 30);
        let (weight, bias, x) = layer(rows, columns, 300);
        let gradient: Vec<f32> = (0..rows).map(|n| 1.0 + n as f32 / 4.0).collect();
        let alone = hessian(rows, columns, &x);
        let mut together = alone.clone();
        let outputs: Vec<f32> = gradient.iter().flat_map(|a| gradient.iter().map(move |b| a * b)).collect();
        assert!(together.add_outputs(&outputs));
        let [alone, together] = [alone, together].map(|hessian| {
            let rounded = round(&weight, &bias, &[hessian]).expect("it fits");
            loss(&weight, &bias, &values(&rounded), &rounded.bias, &x, &gradient)
        });
        assert!(together < 0.5 * alone, "{together} against {alone}");
    }

    #[test]
    fn inputs_that_tell_nothing_leave_the_nearest() {
        let (rows, columns) = (5, 19);
        let (weight, bias, _) = layer(rows, columns, 1);
        for scale in [0.0, 1e-30, 1.0, 1e30] {
            let mut hessian = Hessian::new(rows, columns);
            let size = columns + 1;
            let identity: Vec<f32> =
                (0..size * size).map(|at| if at % (size + 1) == 0 { scale } else { 0.0 }).collect();
            assert!(hessian.add_inputs(&identity, &vec![0.0; rows * size]));
            let rounded = round(&weight, &bias, &[hessian]).expect("it fits");
            assert_eq!(values(&rounded), nearest(&weight), "{scale}");
            assert_eq!(rounded.bias, bias, "{scale}");
        }
    }

    #[test]
    fn every_shape_and_rank_gives_numbers() {
        for (rows, columns, samples) in
            [(1, 1, 0), (1, 1, 4), (1, 33, 3), (9, 1, 5), (3, 50, 1), (17, 97, 20), (0, 4, 2)]
        {
            let (weight, bias, mut x) = layer(rows, columns, samples);
            // One input that never speaks, one that always says the same.
            x.iter_mut().skip(columns / 2).step_by(columns).for_each(|v| *v = 0.0);
            x.iter_mut().step_by(columns).for_each(|v| *v = 3.0);
            let rounded = round(&weight, &bias, &[hessian(rows, columns, &x)]).expect("it fits");
            assert!(values(&rounded).iter().chain(&rounded.bias).all(|v| v.is_finite()), "({rows}, {columns})");
            assert!(rounded.error.is_finite() && rounded.error <= rounded.nearest + 1e-9, "({rows}, {columns})");
        }
    }

    #[test]
    fn a_missed_target_is_made_up_for() {
        let (rows, columns) = (4, 24);
        let (weight, bias, x) = layer(rows, columns, 400);
        let wanted: Vec<f32> = weight.to_f32().iter().map(|v| 1.25 * v).collect();
        let mut hessian = hessian(rows, columns, &x);
        for x in x.chunks_exact(columns) {
            let x: Vec<f32> = x.iter().copied().chain([1.0]).collect();
            let values = weight.to_f32();
            let residual = values.chunks_exact(columns).flat_map(|row| {
                let residual: f32 = row.iter().zip(&x).map(|(w, x)| 0.25 * w * x).sum();
                x.iter().map(move |x| residual * x).collect::<Vec<f32>>()
            });
            let residual: Vec<f32> = residual.collect();
            assert!(hessian.add_inputs(&vec![0.0; (columns + 1) * (columns + 1)], &residual));
        }
        let rounded = round(&weight, &bias, &[hessian]).expect("it fits");
        let wanted = HostTensor::from_f32(&[rows, columns], wanted).expect("a matrix");
        let none = vec![0.0; rows];
        let [before, after] = [(nearest(&weight), bias.clone()), (values(&rounded), rounded.bias.clone())]
            .map(|(new, new_bias)| loss(&wanted, &bias, &new, &new_bias, &x, &none));
        assert!(after < 0.02 * before, "{after} against {before}");
    }

    #[test]
    fn parts_are_rounded_as_if_alone() {
        let (weight, bias, x) = layer(6, 21, 90);
        let (other, _, _) = layer(2, 21, 1);
        let (first, second) = (hessian(2, 21, &x), hessian(4, 21, &other.to_f32()));
        let rounded = round(&weight, &bias, &[first.clone(), second.clone()]).expect("it fits");
        let part = |rows: std::ops::Range<usize>, hessian: Hessian| {
            let part = weight.to_f32()[rows.start * 21..rows.end * 21].to_vec();
            let part = HostTensor::from_f32(&[rows.len(), 21], part).expect("a matrix");
            values(&round(&part, &bias[rows], &[hessian]).expect("it fits"))
        };
        assert_eq!(values(&rounded), [part(0..2, first), part(2..6, second)].concat());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (weight, bias, x) = layer(3, 4, 9);
        let good = hessian(3, 4, &x);
        let mut bad = good.clone();
        assert!(!bad.add_inputs(&[0.0; 3], &[0.0; 15]) && !bad.add_outputs(&[0.0; 8]));
        assert!(round(&weight, &bias[..2], std::slice::from_ref(&good)).is_none());
        assert!(round(&weight, &bias, &[hessian(4, 3, &x)]).is_none());
        assert!(bad.add_outputs(&[f32::INFINITY; 9]));
        assert!(round(&weight, &bias, &[bad]).is_none());
    }
}
