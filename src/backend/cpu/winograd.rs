//! Winograd's minimal filtering, F(4, 3): four neighbouring outputs of three taps with 6 multiplications instead of 12.
//! Neighbours are a dilation apart. 3, 7 and 11 taps are one, two and three such threes with single taps between them,
//! so that every three starts a multiple of four taps after the first and all share the same transformed streams; the
//! single taps are multiplied as they are. That makes 6, 16 and 26 multiplications instead of 12, 28 and 44.
//!
//! Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016). The points are 0, 1, -1, 2, -1/2
//! and infinity: with random values in 64 channels a sum's rounding error is about 1.7 times that of the direct form
//! (root of the mean square); with the usual -2 instead of -1/2 it is 2.2 times.

use super::conv::{GROUP, Term};
use super::simd::{Simd, dispatch};

/// Outputs of a column.
pub(super) const FRAMES: usize = 4;
/// Multiplications of F(4, 3), and as many streams and products.
const POINTS: usize = 6;

/// Whether a convolution of so many taps has this form.
pub(super) fn fits(taps: usize) -> bool {
    taps % 4 == 3
}

/// Streams of a channel, and the products' terms. Streams 0 to 5 are transformed, 6 to 9 every fourth frame as it is.
/// Products 0 to 5 are those of F(4, 3); 6 and 7 are the single taps of the second and third output. Those of the first
/// and the last output join products 0 and 5, which only these outputs contain.
pub(super) fn plan(taps: usize, dilation: usize) -> (usize, Vec<Vec<Term>>) {
    let threes = taps / 4 + 1;
    let mut products: Vec<Vec<Term>> =
        (0..POINTS).map(|stream| (0..threes).map(|three| Term { stream, shift: three * dilation }).collect()).collect();
    if threes == 1 {
        return (POINTS, products);
    }
    products.extend([Vec::new(), Vec::new()]);
    for single in 0..threes - 1 {
        for (output, product) in [(0, 0), (1, 6), (2, 7), (3, 5)] {
            // The tap 4 * single + 3 of output o meets frame 4 * single + 3 + o of the column.
            let (frame, column) = ((3 + output) % FRAMES, single + (3 + output) / FRAMES);
            products[product].push(Term { stream: POINTS + frame, shift: column * dilation });
        }
    }
    (POINTS + FRAMES, products)
}

/// Columns of which a line has to be gathered for streams of `row` columns: the transform reads one column further, and
/// whole runs of a dilation are taken apart.
fn line_columns(row: usize, dilation: usize) -> usize {
    (row + dilation).next_multiple_of(dilation)
}

/// Frames that streams of `row` columns are made of.
pub(super) fn line_length(row: usize, dilation: usize) -> usize {
    FRAMES * line_columns(row, dilation)
}

dispatch! {
    /// All streams, (6 or 10, row), of a line of frames. `scratch` is as long as the line.
    pub(super) fn streams(line: &[f32], dilation: usize, scratch: &mut [f32], streams: &mut [f32], row: usize)
        = streams_body;
}

#[inline(always)]
fn streams_body<S: Simd>(line: &[f32], dilation: usize, scratch: &mut [f32], streams: &mut [f32], row: usize) {
    let columns = line_columns(row, dilation);
    take_apart::<S>(line, dilation, scratch, columns);
    let frame = |n: usize| &scratch[n % FRAMES * columns + n / FRAMES * dilation..][..row];
    let (x0, x1, x2, x3, x4, x5) = (frame(0), frame(1), frame(2), frame(3), frame(4), frame(5));
    for (stream, v) in streams.chunks_exact_mut(row).enumerate() {
        match stream {
            0 => each(v, |i| (x0[i] + x4[i]) - 2.0 * x2[i] + 1.5 * (x1[i] - x3[i])),
            1 => each(v, |i| 2.0 * (x1[i] - x4[i]) + 5.0 * x2[i] + x3[i]),
            2 => each(v, |i| 2.0 * (x1[i] + x4[i]) + x2[i] - 5.0 * x3[i]),
            3 => each(v, |i| (x3[i] - x1[i]) + 2.0 * (x4[i] - x2[i])),
            4 => each(v, |i| (x2[i] - x4[i]) + 2.0 * (x3[i] - x1[i])),
            5 => each(v, |i| (x1[i] + x5[i]) - 2.0 * x3[i] + 1.5 * (x2[i] - x4[i])),
            plain => v.copy_from_slice(frame(plain - POINTS)),
        }
    }
}

#[inline(always)]
fn each(values: &mut [f32], value: impl Fn(usize) -> f32) {
    values.iter_mut().enumerate().for_each(|(i, v)| *v = value(i));
}

/// Frames, in runs of `dilation`, to rows of every fourth run, `columns` frames each.
#[inline(always)]
fn take_apart<S: Simd>(line: &[f32], dilation: usize, rows: &mut [f32], columns: usize) {
    match dilation {
        1 => fourths::<S>(line, rows, columns),
        3 => runs::<3>(line, rows, columns),
        5 => runs::<5>(line, rows, columns),
        _ => {
            for (run, frames) in line.chunks_exact(dilation).enumerate() {
                rows[run % FRAMES * columns + run / FRAMES * dilation..][..dilation].copy_from_slice(frames);
            }
        }
    }
}

/// [`take_apart`] for single frames.
#[inline(always)]
fn fourths<S: Simd>(line: &[f32], rows: &mut [f32], columns: usize) {
    let whole = columns / S::N * S::N;
    for column in (0..whole).step_by(S::N) {
        for (n, lanes) in S::load_fourths(&line[FRAMES * column..][..FRAMES * S::N]).into_iter().enumerate() {
            S::store(&mut rows[n * columns + column..], lanes);
        }
    }
    for (at, frame) in line.iter().enumerate().skip(FRAMES * whole) {
        rows[at % FRAMES * columns + at / FRAMES] = *frame;
    }
}

/// [`take_apart`] for a dilation that the compiler knows.
#[inline(always)]
fn runs<const D: usize>(line: &[f32], rows: &mut [f32], columns: usize) {
    let (x0, rest) = rows.split_at_mut(columns);
    let (x1, rest) = rest.split_at_mut(columns);
    let (x2, x3) = rest.split_at_mut(columns);
    let runs = x0.as_chunks_mut::<D>().0.iter_mut().zip(x1.as_chunks_mut::<D>().0);
    let runs = runs.zip(x2.as_chunks_mut::<D>().0.iter_mut().zip(x3.as_chunks_mut::<D>().0));
    for (((x0, x1), (x2, x3)), line) in runs.zip(line.as_chunks::<D>().0.as_chunks::<FRAMES>().0) {
        (*x0, *x1, *x2, *x3) = (line[0], line[1], line[2], line[3]);
    }
}

dispatch! {
    /// Weights (inputs, taps, 8) to those of every product, (inputs, terms, 8) each, in the order of [`plan`].
    pub(super) fn weights(weight: &[f32], taps: usize, inputs: usize, out: &mut [f32]) = weights_body;
}

#[inline(always)]
fn weights_body<S: Simd>(weight: &[f32], taps: usize, inputs: usize, out: &mut [f32]) {
    let (threes, singles) = (taps / 4 + 1, taps / 4);
    let terms = [threes + singles, threes, threes, threes, threes, threes + singles, singles, singles];
    let mut starts = [0; 8];
    for product in 1..8 {
        starts[product] = starts[product - 1] + inputs * terms[product - 1];
    }
    let weight = weight.as_chunks::<GROUP>().0;
    let out = out.as_chunks_mut::<GROUP>().0;
    for (input, weight) in weight.chunks_exact(taps).enumerate() {
        for three in 0..threes {
            let [g0, g1, g2] = [weight[4 * three], weight[4 * three + 1], weight[4 * three + 2]];
            for (product, g) in transformed::<S>(g0, g1, g2).into_iter().enumerate() {
                out[starts[product] + input * terms[product] + three] = g;
            }
        }
        for single in 0..singles {
            for (product, at) in [(0, threes), (5, threes), (6, 0), (7, 0)] {
                out[starts[product] + input * terms[product] + at + single] = weight[4 * single + 3];
            }
        }
    }
}

/// Three taps of 8 channels at the six points.
#[inline(always)]
fn transformed<S: Simd>(g0: [f32; GROUP], g1: [f32; GROUP], g2: [f32; GROUP]) -> [[f32; GROUP]; POINTS] {
    let mut points = [g0, g0, g0, g0, g0, g2];
    for i in 0..GROUP {
        let (outer, inner) = ((g0[i] + g2[i]) * (1.0 / 6.0), g1[i] * (1.0 / 6.0));
        points[1][i] = outer + inner;
        points[2][i] = outer - inner;
        points[3][i] = S::mul_add1(g2[i], 4.0, S::mul_add1(g1[i], 2.0, g0[i])) * (1.0 / 30.0);
        points[4][i] = S::mul_add1(g0[i], 4.0, S::mul_add1(g1[i], -2.0, g2[i])) * (4.0 / 15.0);
    }
    points
}

dispatch! {
    /// Sums (6 or 8, columns) of an output channel to its frames; those are overwritten as far as whole runs go.
    pub(super) fn frames(sums: &mut [f32], columns: usize, dilation: usize, line: &mut [f32]) = frames_body;
}

#[inline(always)]
fn frames_body<S: Simd>(sums: &mut [f32], columns: usize, dilation: usize, line: &mut [f32]) {
    let (points, singles) = sums.split_at_mut(POINTS * columns);
    let mut point = points.chunks_exact_mut(columns);
    let [Some(m0), Some(m1), Some(m2), Some(m3), Some(m4), Some(m5)] = std::array::from_fn(|_| point.next()) else {
        return;
    };
    // Each output takes the place of one sum.
    for i in 0..columns {
        let (odd, even) = (m1[i] - m2[i], m1[i] + m2[i]);
        let (a, b) = (m3[i], m4[i]);
        m0[i] += even + (a + b);
        m1[i] = odd + (2.0 * a - 0.5 * b);
        m2[i] = even + (4.0 * a + 0.25 * b);
        m3[i] = odd + (8.0 * a - 0.125 * b) + m5[i];
    }
    for (m, single) in [m1, m2].into_iter().zip(singles.chunks_exact(columns)) {
        m.iter_mut().zip(single).for_each(|(m, single)| *m += single);
    }
    interleave::<S>(points, columns, dilation, line);
}

/// Rows of every fourth run of `dilation` frames to frames.
#[inline(always)]
fn interleave<S: Simd>(rows: &[f32], columns: usize, dilation: usize, line: &mut [f32]) {
    match dilation {
        1 => interleave_frames::<S>(rows, columns, line),
        3 => interleave_runs::<3>(rows, columns, line),
        5 => interleave_runs::<5>(rows, columns, line),
        _ => {
            for (run, frames) in line.chunks_exact_mut(dilation).enumerate().take(columns / dilation * FRAMES) {
                frames.copy_from_slice(&rows[run % FRAMES * columns + run / FRAMES * dilation..][..dilation]);
            }
        }
    }
}

/// [`interleave`] for single frames.
#[inline(always)]
fn interleave_frames<S: Simd>(rows: &[f32], columns: usize, line: &mut [f32]) {
    // Columns are a multiple of the lanes.
    for column in (0..columns).step_by(S::N) {
        let lanes = std::array::from_fn(|n| S::load(&rows[n * columns + column..]));
        S::store_fourths(&mut line[FRAMES * column..][..FRAMES * S::N], lanes);
    }
}

/// [`interleave`] for a dilation that the compiler knows.
#[inline(always)]
fn interleave_runs<const D: usize>(rows: &[f32], columns: usize, line: &mut [f32]) {
    let row = |n: usize| rows[n * columns..][..columns].as_chunks::<D>().0;
    let runs = row(0).iter().zip(row(1)).zip(row(2).iter().zip(row(3)));
    for (line, ((y0, y1), (y2, y3))) in line.as_chunks_mut::<D>().0.as_chunks_mut::<FRAMES>().0.iter_mut().zip(runs) {
        *line = [*y0, *y1, *y2, *y3];
    }
}
