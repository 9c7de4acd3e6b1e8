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

/// A right-hand matrix that lies in memory by strides: element (k, n) stands at `k * depth_stride + n * column_stride`.
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
    /// (N), multiplied with the sums; empty for none.
    pub scales: &'a [f32],
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

impl Target<'_> {
    /// The epilogue of `columns` columns from `first`, whose sums are there: `act(sum * scale + bias) + residual`.
    #[inline(always)]
    pub fn finish<S: Simd>(&self, rows: usize, first: usize, columns: usize) {
        let part = |values: &[f32], at: usize| if values.is_empty() { 0..0 } else { at..at + columns };
        for row in 0..rows {
            let at = row * self.row_stride + first;
            // SAFETY: inside the target, by the promise of whoever made the sums; no other reference is alive.
            let y = unsafe { self.out.slice(at, columns) };
            let (scales, bias) = (&self.scales[part(self.scales, first)], &self.bias[part(self.bias, first)]);
            finish::<S>(y, scales, bias, &self.residual[part(self.residual, at)], self.activation);
        }
    }
}

/// The whole product on all threads.
///
/// # Safety
/// Every element of the target has to lie in its allocation and belong to this call alone.
pub(super) unsafe fn parallel<R: Panel>(left: Left<'_>, right: R, target: Target<'_>) {
    assert!(left.fits() && right.fits(left.depth, target.columns));
    (0..target.columns.div_ceil(COLUMNS)).into_par_iter().for_each_init(Vec::new, |scratch, task| {
        let first = task * COLUMNS;
        right.panel(left, target, first, COLUMNS.min(target.columns - first), scratch);
    });
}

/// The whole product on the calling thread; `scratch` keeps its memory from call to call.
///
/// # Safety
/// As [`parallel`].
pub(super) unsafe fn serial<R: Panel>(left: Left<'_>, right: R, target: Target<'_>, scratch: &mut Vec<f32>) {
    assert!(left.fits() && right.fits(left.depth, target.columns));
    right.panel(left, target, 0, target.columns, scratch);
}

/// A right-hand matrix that has a compiled panel product.
pub(super) trait Panel: Copy + Sync {
    /// Whether it holds (depth, columns).
    fn fits(&self, depth: usize, columns: usize) -> bool;
    /// Copies rows `start..` of columns `first..first + columns` to `lines`, each `width` wide.
    fn pack<S: Simd>(&self, start: usize, first: usize, columns: usize, lines: &mut [f32], width: usize);
    /// Columns `first..first + columns` of the product.
    fn panel(self, l: Left<'_>, t: Target<'_>, first: usize, columns: usize, scratch: &mut Vec<f32>);
}

macro_rules! strided_panel {
    ($element:ty, $panel:ident, $body:ident) => {
        impl Panel for Right<'_, $element> {
            fn fits(&self, depth: usize, columns: usize) -> bool {
                depth == 0
                    || columns == 0
                    || self.values.len() > (depth - 1) * self.depth_stride + (columns - 1) * self.column_stride
            }
            #[inline(always)]
            fn pack<S: Simd>(&self, start: usize, first: usize, columns: usize, lines: &mut [f32], width: usize) {
                pack::<S, $element>(*self, start, first, columns, lines, width);
            }
            fn panel(self, l: Left<'_>, t: Target<'_>, first: usize, columns: usize, scratch: &mut Vec<f32>) {
                $panel(l, self, t, first, columns, scratch);
            }
        }
        dispatch! {
            fn $panel(
                l: Left<'_>, r: Right<'_, $element>, t: Target<'_>, first: usize, columns: usize, scratch: &mut Vec<f32>,
            ) = $body;
        }
        #[inline(always)]
        fn $body<S: Simd>(
            l: Left<'_>,
            r: Right<'_, $element>,
            t: Target<'_>,
            first: usize,
            columns: usize,
            scratch: &mut Vec<f32>,
        ) {
            panels::<S, Right<'_, $element>>(l, r, t, first, columns, scratch);
        }
    };
}
strided_panel!(f32, panel_f32, panel_f32_body);
strided_panel!(bf16, panel_bf16, panel_bf16_body);

/// The body of [`Panel::panel`].
#[inline(always)]
pub(super) fn panels<S: Simd, R: Panel>(
    l: Left<'_>,
    r: R,
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
            scratch.resize(DEPTH * width, 0.0);
            let panel = &mut scratch[..depth * width];
            if columns < width {
                panel.fill(0.0);
            }
            r.pack::<S>(start, first, columns, panel, width);
            rows::<S>(l, start, depth, panel, t, first, columns);
            start += depth;
            if start >= l.depth {
                break;
            }
        }
        t.finish::<S>(l.rows, first, columns);
    }
}

/// [`Panel::pack`] of a matrix with strides.
#[inline(always)]
fn pack<S: Simd, E: Element>(
    r: Right<'_, E>,
    start: usize,
    first: usize,
    columns: usize,
    lines: &mut [f32],
    width: usize,
) {
    let depth = lines.len() / width;
    if r.column_stride == 1 {
        for (k, line) in lines.chunks_exact_mut(width).enumerate() {
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
                S::store(&mut lines[(k + i) * width + n..][..S::N], *lanes);
            }
        }
        for (k, n) in (whole..depth).flat_map(|k| (n..columns.min(n + S::N)).map(move |n| (k, n))) {
            lines[k * width + n] = r.values[at(k, n)].widen();
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
