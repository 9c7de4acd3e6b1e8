//! Products of training, large in every direction: both factors are packed. K is cut into parts. All threads first copy a part
//! of b, a panel each; then each takes some rows of x, copies them in groups as high as a tile, which stay in its L2, and
//! multiplies them with all panels. Elements are the same chains of multiply-adds as in `gemm`.
//!
//! For the gradient of a weight, x is the transpose of a matrix that is read by its rows: their sum, a bias's gradient, is made on
//! the way.

use rayon::prelude::*;

use super::super::buffer::{from_line, scratch};
use super::super::disjoint::Disjoint;
use super::super::simd::{MAX_LANES, Simd, dispatch};
use super::{
    Ahead, Block, COLUMNS, GROUPED, Left, Pack, Panel as _, Right, Target, pack, panels_of, parallel, part_of,
};

/// Most rows of a task: of a deep part 768 KiB. Half as many cost 5 % of the time.
const ROWS: usize = 192;
/// Rows of a tile and of a group, and registers of a tile: where registers have 16 lanes, and where they have 8.
const LARGE: [usize; 2] = [8, 3];
const SMALL: [usize; 2] = [6, 2];

/// A left-hand matrix (M, K).
#[derive(Clone, Copy)]
pub(in super::super) enum Factor<'a> {
    /// As it is.
    Rows(&'a [f32]),
    /// Its transpose (K, M), and sums (M) to which the rows of that are added.
    Columns(&'a [f32], Disjoint),
}

/// The product of a factor (M, K) with a matrix (K, N), on all threads.
///
/// # Safety
/// As [`super::parallel`]; so are the sums of rows.
pub(in super::super) unsafe fn packed(
    left: Factor<'_>,
    [rows, depth]: [usize; 2],
    right: Right<'_, f32>,
    target: Target<'_>,
) {
    let (Factor::Rows(values) | Factor::Columns(values, _)) = left;
    assert!(values.len() >= rows * depth && right.fits(depth, target.columns));
    if depth == 0 {
        // SAFETY: the caller's promise.
        return unsafe { parallel(Left { values: &[], row_stride: 0, rows, depth }, right, target) };
    }
    let (part, width) = (part_of(depth), target.columns.next_multiple_of(COLUMNS));
    let share = share_of(rows, rayon::current_num_threads());
    let mut lines = scratch(part * width);
    for start in (0..depth).step_by(part) {
        let part = part.min(depth - start);
        let lines = from_line(&mut lines, part * width);
        lines.par_chunks_mut(part * COLUMNS).enumerate().for_each(|(task, lines)| {
            let first = task * COLUMNS;
            let block = Block { start, depth: part, first, columns: COLUMNS.min(target.columns - first) };
            pack_panels(right, block, lines);
        });
        let panels = Panels { lines, depth: part };
        (0..rows.div_ceil(share)).into_par_iter().for_each(|task| {
            let first = task * share;
            let (at, stride, sums) = match left {
                Factor::Rows(_) => (first * depth + start, depth, None),
                Factor::Columns(_, sums) => (start * rows + first, rows, Some(sums.offset(first))),
            };
            let run = Run { values: &values[at..], stride, rows: share.min(rows - first), depth: part, sums };
            multiply(run, panels, target.part(first, start > 0, start + part == depth));
        });
    }
}

/// Rows of a task: as many as leave little for the busiest thread.
fn share_of(rows: usize, threads: usize) -> usize {
    let max = rows.div_ceil(2 * threads).next_multiple_of(GROUPED).max(GROUPED);
    let shares = [ROWS, ROWS - GROUPED, ROWS - 2 * GROUPED].map(|share| share.min(max));
    shares.into_iter().min_by_key(|share| rows.div_ceil(*share).div_ceil(threads) * share).unwrap_or(max)
}

/// Some rows of a part of a factor: element (m, k) stands at `m * stride + k`, or at `k * stride + m` where there are sums.
#[derive(Clone, Copy)]
struct Run<'a> {
    values: &'a [f32],
    stride: usize,
    rows: usize,
    depth: usize,
    sums: Option<Disjoint>,
}

/// A packed part of a right-hand matrix: panel after panel.
#[derive(Clone, Copy)]
struct Panels<'a> {
    lines: &'a [f32],
    depth: usize,
}

impl Pack for Panels<'_> {
    #[inline(always)]
    fn lines<'s, S: Simd>(&'s self, block: Block, width: usize, _: &'s mut Vec<f32>) -> &'s [f32] {
        &self.lines[block.first * self.depth..][..self.depth * width]
    }

    fn ahead(&self, block: Block) -> Ahead<'_> {
        let bytes = bytemuck::cast_slice(&self.lines[block.first * self.depth..][..self.depth * block.columns]);
        Ahead::new(bytes, bytes.len(), 0)
    }
}

dispatch! {
    /// Packs a block of a right-hand matrix, panel after panel.
    fn pack_panels(r: Right<'_, f32>, block: Block, lines: &mut [f32]) = pack_panels_body;
}

#[inline(always)]
fn pack_panels_body<S: Simd>(r: Right<'_, f32>, block: Block, lines: &mut [f32]) {
    let [_, registers] = if S::N == MAX_LANES { LARGE } else { SMALL };
    let width = registers * S::N;
    let panels = (0..block.columns).step_by(width).zip(lines.chunks_exact_mut(block.depth * width));
    for (n, lines) in panels {
        let columns = width.min(block.columns - n);
        pack::<S, f32>(r, Block { first: block.first + n, columns, ..block }, lines, width);
    }
}

dispatch! {
    /// The product of some rows with all panels.
    fn multiply(l: Run<'_>, r: Panels<'_>, t: Target<'_>) = multiply_body;
}

#[inline(always)]
fn multiply_body<S: Simd>(l: Run<'_>, r: Panels<'_>, t: Target<'_>) {
    let len = l.rows.next_multiple_of(GROUPED) * l.depth;
    let mut lines = scratch(len);
    let lines = from_line(&mut lines, len);
    let left = |values| Left { values, row_stride: 0, rows: l.rows, depth: l.depth };
    if S::N == MAX_LANES {
        group::<S, { LARGE[0] }>(l, lines);
        panels_of::<S, _, { LARGE[0] }, { LARGE[1] }, { LARGE[0] }>(left(lines), r, t, 0, t.columns, &mut Vec::new());
    } else {
        group::<S, { SMALL[0] }>(l, lines);
        panels_of::<S, _, { SMALL[0] }, { SMALL[1] }, { SMALL[0] }>(left(lines), r, t, 0, t.columns, &mut Vec::new());
    }
}

/// Copies rows to `lines` in groups of G, of which element (m, k) stands at `k * G + m`.
#[inline(always)]
fn group<S: Simd, const G: usize>(l: Run<'_>, lines: &mut [f32]) {
    match l.sums {
        // SAFETY: they belong to this task alone, by the promise of the caller of `packed`.
        Some(sums) => group_columns::<S, G>(l, lines, unsafe { sums.slice(0, l.rows) }),
        None => group_rows::<S, G>(l, lines),
    }
}

#[inline(always)]
fn group_rows<S: Simd, const G: usize>(l: Run<'_>, lines: &mut [f32]) {
    for first in (0..l.rows).step_by(S::N) {
        // Squares of registers are transposed.
        let whole = if S::N % G == 0 && first + S::N <= l.rows { l.depth / S::N * S::N } else { 0 };
        for k in (0..whole).step_by(S::N) {
            let mut square = [S::splat(0.0); MAX_LANES];
            for (i, lanes) in square.iter_mut().enumerate().take(S::N) {
                *lanes = S::load(&l.values[(first + i) * l.stride + k..]);
            }
            S::transpose(&mut square);
            for (i, lanes) in square.iter().enumerate().take(S::N) {
                let mut column = [0.0; MAX_LANES];
                S::store(&mut column, *lanes);
                for (n, values) in column[..S::N].chunks_exact(G).enumerate() {
                    lines[((first / G + n) * l.depth + k + i) * G..][..G].copy_from_slice(values);
                }
            }
        }
        for m in first..l.rows.min(first + S::N) {
            for k in whole..l.depth {
                lines[(m / G * l.depth + k) * G + m % G] = l.values[m * l.stride + k];
            }
        }
    }
}

/// Also adds up the columns.
#[inline(always)]
fn group_columns<S: Simd, const G: usize>(l: Run<'_>, lines: &mut [f32], sums: &mut [f32]) {
    /// Columns that are read together: their part stays in the L1, and what is written of a group is whole cache lines.
    const BLOCK: usize = 8;
    let mut totals = [0.0; ROWS];
    let (whole, registers) = (l.rows / G, l.rows / S::N * S::N);
    for first in (0..l.depth).step_by(BLOCK) {
        let depth = BLOCK.min(l.depth - first);
        let values = &l.values[first * l.stride..][..(depth - 1) * l.stride + l.rows];
        for n in (0..registers).step_by(S::N) {
            let mut total = S::load(&totals[n..]);
            for k in 0..depth {
                total = S::add(total, S::load(&values[k * l.stride + n..]));
            }
            S::store(&mut totals[n..], total);
        }
        for (n, lines) in lines.chunks_exact_mut(G * l.depth).enumerate().take(whole) {
            for (k, line) in lines[first * G..][..depth * G].chunks_exact_mut(G).enumerate() {
                let at = k * l.stride + n * G;
                // SAFETY: `values` ends with the last of `rows` values of column `depth - 1`, and group `n` with one of them.
                line.copy_from_slice(unsafe { values.get_unchecked(at..at + G) });
            }
        }
        for k in 0..depth {
            (registers..l.rows).for_each(|n| totals[n] += values[k * l.stride + n]);
            let line = (whole * l.depth + first + k) * G;
            (whole * G..l.rows).for_each(|n| lines[line + n % G] = values[k * l.stride + n]);
        }
    }
    sums.iter_mut().zip(totals).for_each(|(sum, total)| *sum += total);
}

#[cfg(test)]
mod tests {
    use super::super::super::simd::Portable;
    use super::super::{Activation, serial};
    use super::*;

    const SHAPES: [[usize; 3]; 10] = [
        [1, 1, 1],
        [6, 16, 16],
        [7, 17, 5],
        [27, 32, 20],
        [15, 64, 20],
        [17, 49, 40],
        [210, 96, 1030],
        [3, 0, 4],
        [0, 3, 4],
        [4, 3, 0],
    ];

    /// Bit for bit the product of `gemm`, whatever the epilogue and the tiles.
    #[test]
    fn packing_changes_no_bit() {
        let mut random = crate::random::Random::new(12);
        for [m, n, k] in SHAPES {
            let (x, b, side) = (random.values(m * k), random.values(k * n), random.values(m * n));
            let right = Right { values: &b[..], depth_stride: n, column_stride: 1 };
            let mut results = [vec![f32::NAN; m * n], vec![f32::NAN; m * n], vec![f32::NAN; m * n]];
            let [packed_y, y, saved] = results.each_mut().map(|values| Disjoint::new(values));
            let target = |out| Target {
                residual: &side,
                input: &side,
                activation: Activation::Gelu,
                saved: Some(saved),
                ..Target::plain(out, n, n)
            };
            // SAFETY: all have M rows of N elements.
            unsafe {
                packed(Factor::Rows(&x), [m, k], right, target(packed_y));
                let left = Left { values: &x, row_stride: k, rows: m, depth: k };
                serial(left, right, target(y), &mut Vec::new());
            }
            assert_eq!(results[0], results[1], "{m}x{n}x{k}");
        }
    }

    /// Transposes, and the tiles of 8 lanes that a wider processor never runs, on whole numbers, whose sums are exact.
    #[test]
    fn transposes_and_narrow_registers_give_the_same() {
        let mut random = crate::random::Random::new(13);
        for [m, n, k] in SHAPES {
            let (x, b, before) = (random.whole(k * m), random.whole(k * n), random.whole(m * n));
            let right = Right { values: &b[..], depth_stride: n, column_stride: 1 };
            let dot = |at: usize| (0..k).map(|d| x[d * m + at / n] * b[d * n + at % n]).sum::<f32>();
            let expected: Vec<f32> = (0..m * n).map(|at| before[at] + dot(at)).collect();
            let expected_sums: Vec<f32> = (0..m).map(|at| 1.0 + (0..k).map(|d| x[d * m + at]).sum::<f32>()).collect();
            let (mut y, mut sums) = (before.clone(), vec![1.0; m]);
            let left = Factor::Columns(&x, Disjoint::new(&mut sums));
            let target = Target { adds: true, ..Target::plain(Disjoint::new(&mut y), n, n) };
            // SAFETY: `y` has M rows of N elements, `sums` M.
            unsafe { packed(left, [m, k], right, target) };
            assert_eq!((&y, &sums), (&expected, &expected_sums), "{m}x{n}x{k}");
            if m > ROWS || m * n * k == 0 {
                continue;
            }
            let mut lines = vec![f32::NAN; k * n.next_multiple_of(COLUMNS)];
            for (first, lines) in (0..n).step_by(COLUMNS).zip(lines.chunks_mut(k * COLUMNS)) {
                let block = Block { start: 0, depth: k, first, columns: COLUMNS.min(n - first) };
                pack_panels_body::<Portable>(right, block, lines);
            }
            let panels = Panels { lines: &lines, depth: k };
            let rows: Vec<f32> = (0..m * k).map(|at| x[at % k * m + at / k]).collect();
            for (values, stride, by_columns) in [(&x, m, true), (&rows, k, false)] {
                y.copy_from_slice(&before);
                sums.fill(1.0);
                let run = Run { values, stride, rows: m, depth: k, sums: by_columns.then(|| Disjoint::new(&mut sums)) };
                let target = Target { adds: true, ..Target::plain(Disjoint::new(&mut y), n, n) };
                multiply_body::<Portable>(run, panels, target);
                assert_eq!(y, expected, "{m}x{n}x{k}");
                assert!(!by_columns || sums == expected_sums);
            }
        }
    }
}
