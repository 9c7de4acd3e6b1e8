//! The product under the gradient of a weight: out (M, N) += x^T b, with x (K, M) and b (K, N) both read by rows.
//!
//! K is long and M and N are those of a weight, so K is cut into parts. All threads first copy a part of b, a panel each; then each
//! takes a run of columns of x, copies them in groups as wide as a tile is high, which stay in its L2, and multiplies them with
//! all panels. The sums of x's columns, a bias's gradient, are made on the way.

use rayon::prelude::*;

use super::super::buffer::{from_line, scratch};
use super::super::simd::{MAX_LANES, Simd, dispatch};
use super::{Ahead, Block, COLUMNS, Left, Pack, Right, Target, pack, panels_of, part_of};

/// Most columns of x of a task: of a deep part 768 KiB.
const ROWS: usize = 192;
/// Whole groups of columns, of 8 and of 6.
const GROUPED: usize = 48;
/// Rows of a tile, which a group has as columns, and its registers: where registers have 16 lanes, and where they have 8.
const LARGE: [usize; 2] = [8, 3];
const SMALL: [usize; 2] = [6, 2];

/// Adds `left^T right` to the target, on all threads: left (K, M) row-major, right (K, N). Overwrites `sums` (M) with those of
/// the columns of left.
///
/// # Safety
/// As [`super::parallel`].
pub(in super::super) unsafe fn add_transposed(
    left: &[f32],
    right: Right<'_, f32>,
    depth: usize,
    target: Target<'_>,
    sums: &mut [f32],
) {
    sums.fill(0.0);
    if sums.is_empty() || depth == 0 {
        return;
    }
    let (rows, part) = (sums.len(), part_of(depth));
    let width = target.columns.next_multiple_of(COLUMNS);
    // As few rows as keep all threads busy to the end.
    let share = rows.div_ceil(2 * rayon::current_num_threads()).next_multiple_of(GROUPED).min(ROWS);
    let mut lines = scratch(part * width);
    for start in (0..depth).step_by(part) {
        let depth = part.min(depth - start);
        let lines = from_line(&mut lines, depth * width);
        lines.par_chunks_mut(depth * COLUMNS).enumerate().for_each(|(task, lines)| {
            let first = task * COLUMNS;
            let block = Block { start, depth, first, columns: COLUMNS.min(target.columns - first) };
            pack_panels(right, block, lines);
        });
        let panels = Panels { lines, depth };
        sums.par_chunks_mut(share).enumerate().for_each(|(task, sums)| {
            let first = task * share;
            let columns = Columns { values: &left[start * rows + first..], stride: rows, count: sums.len(), depth };
            let target = Target { out: target.out.offset(first * target.row_stride), adds: true, ..target };
            add_part(columns, panels, target, sums);
        });
    }
}

/// A run of columns of a row-major matrix with rows of `stride`.
#[derive(Clone, Copy)]
struct Columns<'a> {
    values: &'a [f32],
    stride: usize,
    count: usize,
    depth: usize,
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
    for (n, lines) in lines.chunks_exact_mut(block.depth * width).enumerate() {
        let columns = block.columns.saturating_sub(n * width).min(width);
        if columns == 0 {
            lines.fill(0.0);
            continue;
        }
        pack::<S, f32>(r, Block { first: block.first + n * width, columns, ..block }, lines, width);
    }
}

dispatch! {
    /// Adds the product of some columns with all panels, and their sums to `sums`.
    fn add_part(l: Columns<'_>, r: Panels<'_>, t: Target<'_>, sums: &mut [f32]) = add_part_body;
}

#[inline(always)]
fn add_part_body<S: Simd>(l: Columns<'_>, r: Panels<'_>, t: Target<'_>, sums: &mut [f32]) {
    let len = l.count.next_multiple_of(GROUPED) * l.depth;
    let mut lines = scratch(len);
    let lines = from_line(&mut lines, len);
    let left = |values| Left { values, row_stride: 0, rows: l.count, depth: l.depth };
    if S::N == MAX_LANES {
        group::<S, { LARGE[0] }>(l, lines, sums);
        panels_of::<S, _, { LARGE[0] }, { LARGE[1] }, { LARGE[0] }>(left(lines), r, t, 0, t.columns, &mut Vec::new());
    } else {
        group::<S, { SMALL[0] }>(l, lines, sums);
        panels_of::<S, _, { SMALL[0] }, { SMALL[1] }, { SMALL[0] }>(left(lines), r, t, 0, t.columns, &mut Vec::new());
    }
}

/// Copies columns to `lines`, in groups of G: row after row of a group. Adds them to `sums`.
#[inline(always)]
fn group<S: Simd, const G: usize>(l: Columns<'_>, lines: &mut [f32], sums: &mut [f32]) {
    /// Rows that are read together: their part stays in the L1, and what is written of a group is whole cache lines.
    const BLOCK: usize = 8;
    let mut totals = [0.0; ROWS];
    let (whole, registers) = (l.count / G, l.count / S::N * S::N);
    for first in (0..l.depth).step_by(BLOCK) {
        let rows = BLOCK.min(l.depth - first);
        let values = &l.values[first * l.stride..][..(rows - 1) * l.stride + l.count];
        for n in (0..registers).step_by(S::N) {
            let mut total = S::load(&totals[n..]);
            for k in 0..rows {
                total = S::add(total, S::load(&values[k * l.stride + n..]));
            }
            S::store(&mut totals[n..], total);
        }
        for (n, lines) in lines.chunks_exact_mut(G * l.depth).enumerate().take(whole) {
            for (k, line) in lines[first * G..][..rows * G].chunks_exact_mut(G).enumerate() {
                let at = k * l.stride + n * G;
                // SAFETY: `values` ends with the last of `count` columns of row `rows - 1`, and group `n` with one of them.
                line.copy_from_slice(unsafe { values.get_unchecked(at..at + G) });
            }
        }
        for k in 0..rows {
            (registers..l.count).for_each(|n| totals[n] += values[k * l.stride + n]);
            let line = (whole * l.depth + first + k) * G;
            (whole * G..l.count).for_each(|n| lines[line + n % G] = values[k * l.stride + n]);
        }
    }
    sums.iter_mut().zip(totals).for_each(|(sum, total)| *sum += total);
}

#[cfg(test)]
mod tests {
    use super::super::super::disjoint::Disjoint;
    use super::super::super::simd::Portable;
    use super::*;

    /// The tiles of 8 lanes, which a wider processor never runs, and those it runs, on whole numbers, whose sums are exact.
    #[test]
    fn narrow_registers_give_the_same() {
        let mut random = crate::random::Random::new(12);
        for (m, n, k) in
            [(1, 1, 1), (6, 16, 16), (7, 17, 5), (9, 49, 40), (50, 96, 1030), (3, 0, 4), (0, 3, 4), (4, 3, 0)]
        {
            let (x, b, before) = (random.whole(k * m), random.whole(k * n), random.whole(m * n));
            let right = Right { values: &b[..], depth_stride: n, column_stride: 1 };
            let (mut y, mut sums) = (before.clone(), vec![f32::NAN; m]);
            // SAFETY: `y` has M rows of N elements.
            unsafe { add_transposed(&x, right, k, Target::plain(Disjoint::new(&mut y), n, n), &mut sums) };
            let dot = |i: usize| (0..k).map(|k| x[k * m + i / n] * b[k * n + i % n]).sum::<f32>();
            assert_eq!(y, (0..m * n).map(|i| before[i] + dot(i)).collect::<Vec<f32>>(), "{m}x{n}x{k}");
            assert_eq!(sums, (0..m).map(|i| (0..k).map(|k| x[k * m + i]).sum()).collect::<Vec<f32>>());
            if m > ROWS || k > super::super::DEPTH || k == 0 {
                continue;
            }
            let mut narrow = before.clone();
            sums.fill(0.0);
            let mut lines = vec![f32::NAN; k * n.next_multiple_of(COLUMNS)];
            for (task, lines) in lines.chunks_mut(k * COLUMNS).enumerate() {
                let first = task * COLUMNS;
                let block = Block { start: 0, depth: k, first, columns: COLUMNS.min(n - first) };
                pack_panels_body::<Portable>(right, block, lines);
            }
            let columns = Columns { values: &x, stride: m, count: m, depth: k };
            let target = Target { adds: true, ..Target::plain(Disjoint::new(&mut narrow), n, n) };
            add_part_body::<Portable>(columns, Panels { lines: &lines, depth: k }, target, &mut sums);
            assert_eq!(narrow, y, "{m}x{n}x{k}");
        }
    }
}
