//! The matrix product under `linear` and `attention`: out (M, N) = x (M, K) b (K, N), with b given by strides, so that
//! rows of weights, keys and values are all read where they lie.
//!
//! Each task takes a panel of b as wide as three registers, copies it (widened, if it is bf16) into contiguous scratch,
//! [`DEPTH`] deep so that it stays in the L2, and multiplies it with all rows of x, eight at a time: 24 registers of
//! sums, x broadcast from where it lies. Every element is one chain of fused multiply-adds over K in order, so results
//! depend neither on M nor on how the work is shared. The epilogue runs while the panel's results are warm.

use half::bf16;
use rayon::prelude::*;

use super::Activation;
use super::disjoint::Disjoint;
use super::linear::{Element, finish};
use super::simd::{MAX_LANES, Simd, dispatch};

/// Registers of columns in a tile.
const WIDE: usize = 3;
/// Rows of a tile.
const HIGH: usize = 8;
/// Depth of a panel: 1024 x 48 f32 are 192 KiB.
const DEPTH: usize = 1024;
/// Columns of a task: the widest panel.
const COLUMNS: usize = 48;

/// The right-hand matrix: element (k, n) stands at `k * depth_stride + n * column_stride`.
#[derive(Clone, Copy)]
pub(super) struct Right<'a, E> {
    pub values: &'a [E],
    pub depth_stride: usize,
    pub column_stride: usize,
}

/// The left-hand matrix and the sizes. Element (m, k) stands at `m * row_stride + k`.
#[derive(Clone, Copy)]
pub(super) struct Left<'a> {
    pub values: &'a [f32],
    pub row_stride: usize,
    pub rows: usize,
    pub depth: usize,
}

/// Where a product goes and what is done to it first. Element (m, n) stands at `m * row_stride + n`.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    pub out: Disjoint,
    pub row_stride: usize,
    pub columns: usize,
    /// (N); empty for none.
    pub bias: &'a [f32],
    /// As large as the result and with its strides; empty for none.
    pub residual: &'a [f32],
    pub activation: Activation,
}

impl Left<'_> {
    fn fits(&self) -> bool {
        self.rows == 0 || self.values.len() >= (self.rows - 1) * self.row_stride + self.depth
    }
}

impl<E> Right<'_, E> {
    fn fits(&self, depth: usize, columns: usize) -> bool {
        depth == 0
            || columns == 0
            || self.values.len() > (depth - 1) * self.depth_stride + (columns - 1) * self.column_stride
    }
}

/// The whole product on all threads.
///
/// # Safety
/// Every element of the target has to lie in its allocation and belong to this call alone.
pub(super) unsafe fn parallel<E: Panel>(left: Left<'_>, right: Right<'_, E>, target: Target<'_>) {
    assert!(left.fits() && right.fits(left.depth, target.columns));
    (0..target.columns.div_ceil(COLUMNS)).into_par_iter().for_each_init(Vec::new, |scratch, task| {
        let first = task * COLUMNS;
        E::panel(left, right, target, first, COLUMNS.min(target.columns - first), scratch);
    });
}

/// The whole product on the calling thread; `scratch` keeps its memory from call to call.
///
/// # Safety
/// As [`parallel`].
pub(super) unsafe fn serial<E: Panel>(left: Left<'_>, right: Right<'_, E>, target: Target<'_>, scratch: &mut Vec<f32>) {
    assert!(left.fits() && right.fits(left.depth, target.columns));
    E::panel(left, right, target, 0, target.columns, scratch);
}

/// Element types that have a compiled panel product.
pub(super) trait Panel: Element + Sync {
    /// Columns `first..first + columns` of the product.
    fn panel(l: Left<'_>, r: Right<'_, Self>, t: Target<'_>, first: usize, columns: usize, scratch: &mut Vec<f32>);
}

impl Panel for f32 {
    fn panel(l: Left<'_>, r: Right<'_, f32>, t: Target<'_>, first: usize, columns: usize, scratch: &mut Vec<f32>) {
        panel_f32(l, r, t, first, columns, scratch);
    }
}

impl Panel for bf16 {
    fn panel(l: Left<'_>, r: Right<'_, bf16>, t: Target<'_>, first: usize, columns: usize, scratch: &mut Vec<f32>) {
        panel_bf16(l, r, t, first, columns, scratch);
    }
}

dispatch! {
    /// [`Panel::panel`] of f32.
    fn panel_f32(
        l: Left<'_>, r: Right<'_, f32>, t: Target<'_>, first: usize, columns: usize, scratch: &mut Vec<f32>,
    ) = panel_f32_body;
}
dispatch! {
    /// [`Panel::panel`] of bf16.
    fn panel_bf16(
        l: Left<'_>, r: Right<'_, bf16>, t: Target<'_>, first: usize, columns: usize, scratch: &mut Vec<f32>,
    ) = panel_bf16_body;
}

#[inline(always)]
fn panel_f32_body<S: Simd>(
    l: Left<'_>,
    r: Right<'_, f32>,
    t: Target<'_>,
    first: usize,
    columns: usize,
    scratch: &mut Vec<f32>,
) {
    panels::<S, f32>(l, r, t, first, columns, scratch);
}

#[inline(always)]
fn panel_bf16_body<S: Simd>(
    l: Left<'_>,
    r: Right<'_, bf16>,
    t: Target<'_>,
    first: usize,
    columns: usize,
    scratch: &mut Vec<f32>,
) {
    panels::<S, bf16>(l, r, t, first, columns, scratch);
}

#[inline(always)]
fn panels<S: Simd, E: Element>(
    l: Left<'_>,
    r: Right<'_, E>,
    t: Target<'_>,
    first: usize,
    columns: usize,
    scratch: &mut Vec<f32>,
) {
    let width = WIDE * S::N;
    for first in (first..first + columns).step_by(width) {
        // Columns of this panel; only the last of a matrix is narrower.
        let columns = width.min(t.columns - first);
        let mut start = 0;
        loop {
            let depth = DEPTH.min(l.depth - start);
            pack::<S, E>(r, start, depth, first, columns, scratch);
            rows::<S>(l, start, depth, &scratch[..depth * width], t, first, columns);
            start += depth;
            if start >= l.depth {
                break;
            }
        }
        for row in 0..l.rows {
            let at = row * t.row_stride + first;
            // SAFETY: inside the target, by the promise of `parallel` and `serial`; no other reference is alive.
            let y = unsafe { t.out.slice(at, columns) };
            let bias = if t.bias.is_empty() { &[] } else { &t.bias[first..first + columns] };
            let residual = if t.residual.is_empty() { &[] } else { &t.residual[at..at + columns] };
            finish::<S>(y, bias, residual, t.activation);
        }
    }
}

/// Copies rows `start..start + depth` of `columns` columns of b to (depth, width), zero beyond the columns.
#[inline(always)]
fn pack<S: Simd, E: Element>(
    r: Right<'_, E>,
    start: usize,
    depth: usize,
    first: usize,
    columns: usize,
    scratch: &mut Vec<f32>,
) {
    let width = WIDE * S::N;
    scratch.resize(DEPTH * width, 0.0);
    if columns < width {
        scratch[..depth * width].fill(0.0);
    }
    if r.column_stride == 1 {
        for (k, line) in scratch.chunks_exact_mut(width).take(depth).enumerate() {
            let source = &r.values[(start + k) * r.depth_stride + first..][..columns];
            line.iter_mut().zip(source).for_each(|(to, from)| *to = from.widen());
        }
        return;
    }
    // Weights and keys: what is adjacent in memory is a column of b. Squares of registers are transposed.
    let at = |k: usize, n: usize| (start + k) * r.depth_stride + (first + n) * r.column_stride;
    for n in (0..columns).step_by(S::N) {
        let whole = if r.depth_stride == 1 && n + S::N <= columns { depth / S::N * S::N } else { 0 };
        for k in (0..whole).step_by(S::N) {
            let mut square = [S::splat(0.0); MAX_LANES];
            for (i, lanes) in square.iter_mut().enumerate().take(S::N) {
                *lanes = E::lanes::<S>(&r.values[at(k, n + i)..][..S::N]);
            }
            S::transpose(&mut square);
            for (i, lanes) in square.iter().enumerate().take(S::N) {
                S::store(&mut scratch[(k + i) * width + n..][..S::N], *lanes);
            }
        }
        for (k, n) in (whole..depth).flat_map(|k| (n..columns.min(n + S::N)).map(move |n| (k, n))) {
            scratch[k * width + n] = r.values[at(k, n)].widen();
        }
    }
}

/// All rows of x times a packed panel; continues the sums in the target unless `start` is 0.
#[inline(always)]
fn rows<S: Simd>(l: Left<'_>, start: usize, depth: usize, panel: &[f32], t: Target<'_>, first: usize, columns: usize) {
    let mut row = 0;
    while row + HIGH <= l.rows {
        tile::<S, HIGH>(l, row, start, depth, panel, t, first, columns);
        row += HIGH;
    }
    while row + 2 <= l.rows {
        tile::<S, 2>(l, row, start, depth, panel, t, first, columns);
        row += 2;
    }
    if row < l.rows {
        tile::<S, 1>(l, row, start, depth, panel, t, first, columns);
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn tile<S: Simd, const M: usize>(
    l: Left<'_>,
    row: usize,
    start: usize,
    depth: usize,
    panel: &[f32],
    t: Target<'_>,
    first: usize,
    columns: usize,
) {
    let x: [&[f32]; M] = std::array::from_fn(|m| &l.values[(row + m) * l.row_stride + start..][..depth]);
    // A narrow panel goes through a buffer as wide as the registers.
    let mut edge = [[0.0f32; COLUMNS]; M];
    let mut acc = [[S::splat(0.0); WIDE]; M];
    if start > 0 {
        for m in 0..M {
            // SAFETY: as in `panels`.
            let y = unsafe { t.out.slice((row + m) * t.row_stride + first, columns) };
            edge[m][..columns].copy_from_slice(y);
            acc[m] = std::array::from_fn(|i| S::load(&edge[m][i * S::N..]));
        }
    }
    for (k, line) in panel.chunks_exact(WIDE * S::N).enumerate() {
        let b: [S::Lanes; WIDE] = std::array::from_fn(|i| S::load(&line[i * S::N..]));
        for m in 0..M {
            // SAFETY: the panel has `depth` lines, as many as each row of x was cut to.
            let value = S::splat(unsafe { *x[m].get_unchecked(k) });
            for i in 0..WIDE {
                acc[m][i] = S::mul_add(value, b[i], acc[m][i]);
            }
        }
    }
    for m in 0..M {
        for i in 0..WIDE {
            S::store(&mut edge[m][i * S::N..], acc[m][i]);
        }
        // SAFETY: as in `panels`.
        let y = unsafe { t.out.slice((row + m) * t.row_stride + first, columns) };
        y.copy_from_slice(&edge[m][..columns]);
    }
}
