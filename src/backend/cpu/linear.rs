//! linear: y = act(x weight^T + bias) + residual, x (M, K), weight (N, K) read where it was stored.
//!
//! Two forms, chosen by the caller. For whole sequences the tiled product of `gemm`; for a decode step dot products that
//! read the weights once, so the time of one row is their bytes over the memory bandwidth. Operations: 2 * M * N * K.

use half::bf16;
use rayon::prelude::*;

use super::buffer::Buffer;
use super::disjoint::Disjoint;
use super::gemm::{self, Left, Right, Target};
use super::simd::{self, Simd, dispatch};
use super::{Activation, Cpu, Elements, Tensor, ensure};
use crate::Result;
use crate::backend::Linear;

/// Weight elements below which another thread costs more than it brings.
const PARALLEL_FROM: usize = 1 << 16;

/// A product before its weights are known. All slices are row-major.
pub(super) struct Product<'a> {
    /// (M, K).
    pub x: &'a [f32],
    /// M.
    pub rows: usize,
    /// K.
    pub depth: usize,
    /// (N); empty for none.
    pub bias: &'a [f32],
    /// (M, N), added last; empty for none.
    pub residual: &'a [f32],
}

/// One of the two forms: writes the product with its epilogue to its last argument, (M, N).
type Form = fn(&Product<'_>, Elements<'_>, usize, Activation, &mut [f32]);

/// See [`crate::backend::Backend::linear`] and [`crate::backend::Backend::linear_step`].
pub fn linear(
    x: &Tensor,
    layer: &Linear<Cpu>,
    activation: Activation,
    residual: Option<&Tensor>,
    form: Form,
) -> Result<Tensor> {
    let (rows, columns) = (x.rows, layer.weight.rows);
    ensure(
        x.columns == layer.weight.columns
            && layer.bias.data.len() == columns
            && residual.is_none_or(|r| (r.rows, r.columns) == (rows, columns)),
        "linear",
        || {
            let residual = residual.map(|r| (r.rows, r.columns));
            let (n, k, bias) = (columns, layer.weight.columns, layer.bias.data.len());
            format!("x ({rows}, {}), weight ({n}, {k}), bias {bias}, residual {residual:?}", x.columns)
        },
    )?;
    let mut y = Buffer::any(rows * columns);
    let (bias, residual) = (&layer.bias.data[..], residual.map_or(&[][..], |r| &r.data));
    let product = Product { x: &x.data, rows, depth: x.columns, bias, residual };
    if !y.is_empty() {
        form(&product, layer.weight.elements()?, columns, activation, &mut y);
    }
    Ok(Tensor::new(rows, columns, y))
}

/// The decode step: every thread takes a run of weight rows.
pub(super) fn step(p: &Product<'_>, weight: Elements<'_>, columns: usize, activation: Activation, out: &mut [f32]) {
    let threads = if columns * p.depth < PARALLEL_FROM { 1 } else { rayon::current_num_threads() };
    let per_task = columns.div_ceil(threads).next_multiple_of(4);
    // (N, M), so that each task owns a run of it; with one row this is the result's own layout.
    let mut transposed = if p.rows == 1 { Vec::new() } else { vec![0.0; out.len()] };
    let sums: &mut [f32] = if p.rows == 1 { out } else { &mut transposed };
    let task = |(index, sums): (usize, &mut [f32])| {
        let first = index * per_task * p.depth;
        let last = first + sums.len() / p.rows * p.depth;
        match weight {
            Elements::F32(w) => dots_f32(&w[first..last], p.x, p.rows, p.depth, sums),
            Elements::Bf16(w) => dots_bf16(&w[first..last], p.x, p.rows, p.depth, sums),
        }
    };
    if threads == 1 {
        task((0, sums));
    } else {
        sums.par_chunks_mut(per_task * p.rows).enumerate().for_each(task);
    }
    if p.rows > 1 {
        for (m, row) in out.chunks_exact_mut(columns).enumerate() {
            row.iter_mut().enumerate().for_each(|(n, y)| *y = transposed[n * p.rows + m]);
        }
    }
    for (m, row) in out.chunks_exact_mut(columns).enumerate() {
        let residual = if p.residual.is_empty() { &[] } else { &p.residual[m * columns..][..columns] };
        finish_row(row, p.bias, residual, activation);
    }
}

/// Prefill, vision and batches.
pub(super) fn blocked(p: &Product<'_>, weight: Elements<'_>, columns: usize, activation: Activation, out: &mut [f32]) {
    let left = Left { values: p.x, row_stride: p.depth, rows: p.rows, depth: p.depth };
    let target = Target {
        out: Disjoint::new(out),
        row_stride: columns,
        columns,
        bias: p.bias,
        residual: p.residual,
        activation,
    };
    // SAFETY: `out` holds M rows of N elements and is borrowed for the whole call.
    match weight {
        Elements::F32(values) => unsafe {
            gemm::parallel(left, Right { values, depth_stride: 1, column_stride: p.depth }, target);
        },
        Elements::Bf16(values) => unsafe {
            gemm::parallel(left, Right { values, depth_stride: 1, column_stride: p.depth }, target);
        },
    }
}

dispatch! {
    /// `sums[n * rows + m] = weight[n] . x[m]` for all rows of `weight` (N, depth) and of `x` (rows, depth).
    fn dots_f32(weight: &[f32], x: &[f32], rows: usize, depth: usize, sums: &mut [f32]) = dots_f32_body;
}
dispatch! {
    /// As `dots_f32`.
    fn dots_bf16(weight: &[bf16], x: &[f32], rows: usize, depth: usize, sums: &mut [f32]) = dots_bf16_body;
}

#[inline(always)]
fn dots_f32_body<S: Simd>(weight: &[f32], x: &[f32], rows: usize, depth: usize, sums: &mut [f32]) {
    dots::<S, f32>(weight, x, rows, depth, sums);
}

#[inline(always)]
fn dots_bf16_body<S: Simd>(weight: &[bf16], x: &[f32], rows: usize, depth: usize, sums: &mut [f32]) {
    dots::<S, bf16>(weight, x, rows, depth, sums);
}

/// An element a dot product can read.
pub(super) trait Element: Copy {
    fn lanes<S: Simd>(values: &[Self]) -> S::Lanes;
    fn widen(self) -> f32;
}

impl Element for f32 {
    #[inline(always)]
    fn lanes<S: Simd>(values: &[f32]) -> S::Lanes {
        S::load(values)
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn lanes<S: Simd>(values: &[bf16]) -> S::Lanes {
        S::load_bf16(values)
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits((self.to_bits() as u32) << 16)
    }
}

/// Weight rows in the order they lie in memory, for the sake of the prefetcher: one at a time against a single row of x,
/// which is all the memory can deliver; four at a time against pairs of rows, so that a load serves several products.
/// The order of additions does not depend on how many rows there are.
#[inline(always)]
fn dots<S: Simd, E: Element>(weight: &[E], x: &[f32], rows: usize, depth: usize, sums: &mut [f32]) {
    if rows == 1 {
        for (n, sum) in sums.iter_mut().enumerate() {
            [[*sum]] = dot::<S, E, 1, 1>([&weight[n * depth..][..depth]], [&x[..depth]]);
        }
        return;
    }
    let columns = sums.len() / rows;
    let row = |n: usize| &weight[n.min(columns - 1) * depth..][..depth];
    for n in (0..columns).step_by(4) {
        // The last group repeats the last row instead of having a form of its own; so do the rows of x.
        let w = [row(n), row(n + 1), row(n + 2), row(n + 3)];
        for m in (0..rows).step_by(2) {
            let pair = [m, (m + 1).min(rows - 1)];
            let dots = dot::<S, E, 4, 2>(w, pair.map(|m| &x[m * depth..][..depth]));
            for (m, dots) in pair.into_iter().zip(dots) {
                for (i, dot) in dots.into_iter().enumerate().take(columns - n) {
                    sums[(n + i) * rows + m] = dot;
                }
            }
        }
    }
}

/// Products of W weight rows with M rows of x.
#[inline(always)]
fn dot<S: Simd, E: Element, const W: usize, const M: usize>(w: [&[E]; W], x: [&[f32]; M]) -> [[f32; W]; M] {
    let depth = x[0].len();
    // Two sums for each product, of even and of odd registers.
    let (mut even, mut odd) = ([[S::splat(0.0); W]; M], [[S::splat(0.0); W]; M]);
    let step = 2 * S::N;
    let whole = depth / step * step;
    for k in (0..whole).step_by(step) {
        for (at, acc) in [(k, &mut even), (k + S::N, &mut odd)] {
            for (i, w) in w.iter().enumerate() {
                let lanes = E::lanes::<S>(&w[at..at + S::N]);
                for (x, acc) in x.iter().zip(acc.iter_mut()) {
                    acc[i] = S::mul_add(lanes, S::load(&x[at..at + S::N]), acc[i]);
                }
            }
        }
    }
    std::array::from_fn(|m| {
        std::array::from_fn(|i| {
            let mut dot = S::sum(S::add(even[m][i], odd[m][i]));
            for k in whole..depth {
                dot = S::mul_add1(w[i][k].widen(), x[m][k], dot);
            }
            dot
        })
    })
}

dispatch! {
    fn finish_row(y: &mut [f32], bias: &[f32], residual: &[f32], activation: Activation) = finish;
}

/// The epilogue on part of a row: `act(y + bias) + residual`; empty slices stand for nothing to add.
#[inline(always)]
pub(super) fn finish<S: Simd>(y: &mut [f32], bias: &[f32], residual: &[f32], activation: Activation) {
    y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
    match activation {
        Activation::None => {}
        Activation::Gelu => {
            for y in &mut *y {
                *y = 0.5 * *y * (1.0 + simd::erf::<S>(*y * std::f32::consts::FRAC_1_SQRT_2));
            }
        }
        Activation::QuickGelu => {
            for y in &mut *y {
                *y /= 1.0 + simd::exp::<S>(-1.702 * *y);
            }
        }
    }
    y.iter_mut().zip(residual).for_each(|(y, r)| *y += r);
}
