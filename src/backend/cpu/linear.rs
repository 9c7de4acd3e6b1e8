//! linear: y = act(x weight^T + bias) + residual, x (M, K), weight (N, K) read where it was stored.
//!
//! Two forms, chosen by the caller. For whole sequences the tiled product of `gemm`; for a decode step dot products that
//! read the weights once, so the time of one row is their bytes over the memory bandwidth. Operations: 2 * M * N * K.

mod backward;

use half::bf16;
use rayon::prelude::*;

use super::buffer::Buffer;
use super::disjoint::Disjoint;
use super::gemm::{self, Left, Right, Target};
use super::int8::{self, GROUP, Packed};
use super::simd::{self, Simd, dispatch, prefetch_ahead};
use super::{Activation, Cpu, Elements, Tensor};
use crate::backend::{Linear, LinearWeights, linear};
use crate::{Result, trace};

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

impl<'a> Product<'a> {
    /// The left-hand matrix, and where the product with `weight` (N, K) goes: `out` (M, N).
    fn operands(
        &self,
        weight: Elements<'a>,
        columns: usize,
        activation: Activation,
        out: &mut [f32],
    ) -> (Left<'a>, Target<'a>) {
        let &Product { x, rows, depth, bias, residual } = self;
        let scales = if let Elements::Int8(packed) = weight { packed.scales() } else { &[] };
        let left = Left { values: x, row_stride: depth, rows, depth };
        let plain = Target::plain(Disjoint::new(out), columns, columns);
        (left, Target { scales, bias, residual, activation, ..plain })
    }
}

/// One of the two forms: writes the product with its epilogue to its last argument, (M, N).
type Form = fn(&Product<'_>, Elements<'_>, usize, Activation, &mut [f32]);

impl Linear for Cpu {
    fn linear(
        &self,
        x: &Tensor,
        layer: &LinearWeights<Cpu>,
        activation: Activation,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        let _span = trace::span("linear");
        let y = product("linear", x, layer, (activation, residual), blocked);
        layer.weight.release_after_first_use();
        y
    }

    fn linear_decode(
        &self,
        x: &Tensor,
        layer: &LinearWeights<Cpu>,
        activation: Activation,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        let _span = trace::span("linear_decode");
        product("linear_decode", x, layer, (activation, residual), step)
    }
}

fn product(
    op: &'static str,
    x: &Tensor,
    layer: &LinearWeights<Cpu>,
    (activation, residual): (Activation, Option<&Tensor>),
    form: Form,
) -> Result<Tensor> {
    linear::check(op, &Cpu, x, layer, residual)?;
    let (rows, columns) = (x.rows, layer.weight.rows);
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
    let share = columns.div_ceil(threads).next_multiple_of(GROUP);
    let (left, target) = p.operands(weight, columns, activation, out);
    let task = |index: usize| {
        let first = index * share;
        let count = share.min(columns - first);
        let rows = first * p.depth..(first + count) * p.depth;
        match weight {
            Elements::F32(w) => step_f32(left, &w[rows], target, first, count),
            Elements::Bf16(w) => step_bf16(left, &w[rows], target, first, count),
            Elements::Int8(w) => step_int8(left, w, target, first, count),
        }
    };
    match columns.div_ceil(share) {
        1 => task(0),
        tasks => (0..tasks).into_par_iter().for_each(task),
    }
}

/// Prefill, vision and batches.
pub(super) fn blocked(p: &Product<'_>, weight: Elements<'_>, columns: usize, activation: Activation, out: &mut [f32]) {
    let (left, target) = p.operands(weight, columns, activation, out);
    // SAFETY: `out` holds M rows of N elements and is borrowed for the whole call.
    unsafe { multiply(left, weight, target) };
}

/// `left weight^T` on all threads.
///
/// # Safety
/// Every element of the target has to lie in its allocation and belong to this call alone.
unsafe fn multiply(left: Left<'_>, weight: Elements<'_>, target: Target<'_>) {
    let column_stride = left.depth;
    // SAFETY (of all): the caller's promise.
    match weight {
        Elements::F32(values) => unsafe {
            gemm::parallel(left, Right { values, depth_stride: 1, column_stride }, target);
        },
        Elements::Bf16(values) => unsafe {
            gemm::parallel(left, Right { values, depth_stride: 1, column_stride }, target);
        },
        Elements::Int8(packed) => unsafe { gemm::parallel(left, packed, target) },
    }
}

dispatch! {
    /// Columns `first..first + columns` of a step; `w` are their weights (columns, K).
    fn step_f32(l: Left<'_>, w: &[f32], t: Target<'_>, first: usize, columns: usize) = step_f32_body;
}
dispatch! {
    /// As `step_f32`.
    fn step_bf16(l: Left<'_>, w: &[bf16], t: Target<'_>, first: usize, columns: usize) = step_bf16_body;
}
dispatch! {
    /// As `step_f32`, of all weights.
    fn step_int8(l: Left<'_>, w: &Packed, t: Target<'_>, first: usize, columns: usize) = step_int8_body;
}

#[inline(always)]
fn step_f32_body<S: Simd>(l: Left<'_>, w: &[f32], t: Target<'_>, first: usize, columns: usize) {
    dots::<S, f32>(l, w, t, first, columns);
    t.finish::<S>(0..l.rows, first, columns);
}

#[inline(always)]
fn step_bf16_body<S: Simd>(l: Left<'_>, w: &[bf16], t: Target<'_>, first: usize, columns: usize) {
    dots::<S, bf16>(l, w, t, first, columns);
    t.finish::<S>(0..l.rows, first, columns);
}

#[inline(always)]
fn step_int8_body<S: Simd>(l: Left<'_>, w: &Packed, t: Target<'_>, first: usize, columns: usize) {
    int8::sums::<S>(l, w, t, first, columns);
    t.finish::<S>(0..l.rows, first, columns);
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
fn dots<S: Simd, E: Element>(l: Left<'_>, weight: &[E], t: Target<'_>, first: usize, columns: usize) {
    let depth = l.depth;
    let x = |m: usize| &l.values[m * l.row_stride..][..depth];
    // SAFETY: these columns lie in the target and belong to the calling task alone.
    let put = |m: usize, n: usize, dot: f32| unsafe { t.out.slice(m * t.row_stride + first + n, 1)[0] = dot };
    if l.rows == 1 {
        for n in 0..columns {
            let [[dot]] = dot::<S, E, 1, 1>([&weight[n * depth..][..depth]], [x(0)]);
            put(0, n, dot);
        }
        return;
    }
    let row = |n: usize| &weight[n.min(columns - 1) * depth..][..depth];
    for n in (0..columns).step_by(4) {
        // The last group repeats the last row instead of having a form of its own; so do the rows of x.
        let w = [row(n), row(n + 1), row(n + 2), row(n + 3)];
        for m in (0..l.rows).step_by(2) {
            let pair = [m, (m + 1).min(l.rows - 1)];
            let dots = dot::<S, E, 4, 2>(w, pair.map(x));
            for (m, dots) in pair.into_iter().zip(dots) {
                for (i, dot) in dots.into_iter().enumerate().take(columns - n) {
                    put(m, n + i, dot);
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
                prefetch_ahead(&w[at..]);
                let lanes = E::lanes::<S>(&w[at..at + S::N]);
                for (x, acc) in x.iter().zip(acc.iter_mut()) {
                    acc[i] = S::mul_add(lanes, S::load(&x[at..at + S::N]), acc[i]);
                }
            }
        }
    }
    // Loops, because a closure of `from_fn` is compiled without the features of its caller.
    let mut dots = [[0.0; W]; M];
    for m in 0..M {
        for i in 0..W {
            let mut dot = S::sum(S::add(even[m][i], odd[m][i]));
            for k in whole..depth {
                dot = S::mul_add1(w[i][k].widen(), x[m][k], dot);
            }
            dots[m][i] = dot;
        }
    }
    dots
}

/// The epilogue on part of a row: `act(y * scales + bias) + residual`, or `(y * scales + bias) act'(input) + residual`; empty
/// slices stand for nothing to do.
#[inline(always)]
pub(super) fn finish<S: Simd>(
    y: &mut [f32],
    saved: &mut [f32],
    [scales, bias, input, residual]: [&[f32]; 4],
    activation: Activation,
) {
    if bias.len() == y.len() && [scales, &*saved, input].iter().all(|side| side.is_empty()) {
        // Over such short pieces of rows each pass shows.
        let is_done = match activation {
            Activation::Relu6 => {
                y.iter_mut().zip(bias).for_each(|(y, b)| *y = relu6(*y + b));
                true
            }
            Activation::Gelu => {
                for (y, b) in y.iter_mut().zip(bias) {
                    let sum = *y + b;
                    *y = sum * normal::<S>(sum);
                }
                true
            }
            _ => false,
        };
        if is_done {
            y.iter_mut().zip(residual).for_each(|(y, r)| *y += r);
            return;
        }
    }
    y.iter_mut().zip(scales).for_each(|(y, s)| *y *= s);
    y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
    saved.iter_mut().zip(&*y).for_each(|(saved, y)| *saved = *y);
    // Loops, because closures this large need not be inlined, and are compiled without the features of their caller.
    match (activation, input.is_empty()) {
        (Activation::None, _) => {}
        (Activation::Gelu, true) => {
            for y in &mut *y {
                *y *= normal::<S>(*y);
            }
        }
        (Activation::QuickGelu, true) => {
            for y in &mut *y {
                *y /= 1.0 + simd::exp::<S>(-1.702 * *y);
            }
        }
        (Activation::Tanh, true) => {
            for y in &mut *y {
                *y = simd::tanh::<S>(*y);
            }
        }
        (Activation::Relu6, true) => {
            for y in &mut *y {
                *y = relu6(*y);
            }
        }
        (Activation::Gelu, false) => {
            for (y, &x) in y.iter_mut().zip(input) {
                *y *= S::mul_add1(INVERSE_ROOT_2_PI * x, simd::exp::<S>(-0.5 * x * x), normal::<S>(x));
            }
        }
        (Activation::QuickGelu, false) => {
            for (y, &x) in y.iter_mut().zip(input) {
                let sigmoid = 1.0 / (1.0 + simd::exp::<S>(-1.702 * x));
                *y *= S::mul_add1(1.702 * x * sigmoid, 1.0 - sigmoid, sigmoid);
            }
        }
        (Activation::Tanh, false) => {
            for (y, &x) in y.iter_mut().zip(input) {
                let tanh = simd::tanh::<S>(x);
                *y *= S::mul_add1(-tanh, tanh, 1.0);
            }
        }
        (Activation::Relu6, false) => {
            for (y, &x) in y.iter_mut().zip(input) {
                *y = if x > 0.0 && x < 6.0 { *y } else { 0.0 };
            }
        }
    }
    y.iter_mut().zip(residual).for_each(|(y, r)| *y += r);
}

/// 1 / sqrt(2 pi).
const INVERSE_ROOT_2_PI: f32 = 0.398_942_3;

/// min(max(x, 0), 6); NaN stays.
#[inline(always)]
fn relu6(x: f32) -> f32 {
    let x = if x < 0.0 { 0.0 } else { x };
    if x > 6.0 { 6.0 } else { x }
}

/// The cumulative distribution function of the normal distribution.
#[inline(always)]
fn normal<S: Simd>(x: f32) -> f32 {
    0.5 * (1.0 + simd::erf::<S>(x * std::f32::consts::FRAC_1_SQRT_2))
}
