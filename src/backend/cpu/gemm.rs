//! The matrix product under `linear` and `attention`: out (M, N) = x (M, K) b (K, N), with b given by strides, so that
//! rows of weights, keys and values are all read where they lie.
//!
//! Each task takes a panel of b as wide as three registers, copies it (widened, if it is bf16) into contiguous scratch
//! that starts where a cache line does, at most [`DEPTH`] deep so that it stays in the L2, and multiplies it with all rows
//! of x, or with a share of them where there are few panels, eight at a time: 24 registers of sums, x broadcast from where
//! it lies (with 16 registers, six rows of two). The weights of the next panel are prefetched meanwhile. Every element is
//! one chain of fused multiply-adds over K in order, so results depend neither on M nor on how the work is shared. The
//! epilogue runs while the panel's results are warm.
//!
//! [`packed`] is the form for training, on the same tiles.

mod packed;

use std::ops::Range;

use half::bf16;

use super::Activation;
use super::buffer::{LINE, for_each_task, grown};
use super::disjoint::Disjoint;
use super::linear::{Element, finish};
use super::simd::{MAX_LANES, Simd, dispatch, prefetch};

pub(super) use packed::{Factor, packed};

/// Depth of a panel: 1024 x 48 f32 are 192 KiB.
const DEPTH: usize = 1024;
/// Columns of a task: the widest panel.
pub(super) const COLUMNS: usize = 48;
/// Whole groups of rows, of 8 and of 6.
const GROUPED: usize = 24;
/// Tasks for each thread, so that none has much more to do than another, as long as each has [`MIN_ROWS`]: with fewer rows it
/// would spend its time on copying panels.
const TASKS: usize = 8;
const MIN_ROWS: usize = 48;
/// Rows that the epilogue takes together: sums and sides of them are in the L1, and their pages in its translation buffer.
const FINISHED: usize = 32;

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
    /// Whether the sums continue the values that are there.
    pub adds: bool,
    /// (N), multiplied with the sums; empty for none.
    pub scales: &'a [f32],
    /// (N); empty for none.
    pub bias: &'a [f32],
    /// As large as the result and with its strides; empty for none.
    pub residual: &'a [f32],
    pub activation: Activation,
    /// Takes the activation's input, in the places of the result.
    pub saved: Option<Disjoint>,
    /// The activation's input where its derivative is a factor, with the strides of the result; empty where the activation
    /// itself is applied.
    pub input: &'a [f32],
}

impl Left<'_> {
    fn fits(&self) -> bool {
        self.rows == 0 || self.values.len() >= (self.rows - 1) * self.row_stride + self.depth
    }

    /// At most `rows` rows from `first` on.
    fn part(self, first: usize, rows: usize) -> Self {
        Left { values: &self.values[first * self.row_stride..], rows: rows.min(self.rows - first), ..self }
    }
}

impl<'a> Target<'a> {
    /// The sums alone.
    pub fn plain(out: Disjoint, row_stride: usize, columns: usize) -> Target<'a> {
        let (adds, activation, saved) = (false, Activation::None, None);
        Target { out, row_stride, columns, adds, scales: &[], bias: &[], residual: &[], activation, saved, input: &[] }
    }

    /// Rows `first..`, for a part of the sums: whether there is one before it, and whether it is the last.
    fn part(self, first: usize, continues: bool, last: bool) -> Target<'a> {
        let at = first * self.row_stride;
        let rest = |values: &'a [f32]| if values.is_empty() { values } else { &values[at..] };
        let (out, adds) = (self.out.offset(at), self.adds || continues);
        if !last {
            return Target { adds, ..Target::plain(out, self.row_stride, self.columns) };
        }
        let saved = self.saved.map(|saved| saved.offset(at));
        Target { out, adds, saved, residual: rest(self.residual), input: rest(self.input), ..self }
    }

    /// Whether more is done than sums.
    fn has_epilogue(&self) -> bool {
        let sides = [self.scales, self.bias, self.residual];
        self.activation != Activation::None || self.saved.is_some() || sides.iter().any(|side| !side.is_empty())
    }

    /// Asks for the sums of some rows, `W` registers from `first`, and for what their epilogue reads and writes besides.
    #[inline(always)]
    fn prefetch<S: Simd, const W: usize>(&self, rows: Range<usize>, first: usize) {
        let sides = [self.residual, self.input].map(|side| (!side.is_empty()).then_some(side.as_ptr()));
        let [residual, input] = sides;
        for start in [Some(self.out.address(0)), residual, input, self.saved.map(|saved| saved.address(0))] {
            let Some(start) = start else { continue };
            for row in rows.clone() {
                for i in 0..W {
                    prefetch(start.wrapping_add(row * self.row_stride + first + i * S::N));
                }
            }
        }
    }

    /// The epilogue of `columns` columns from `first` of some rows, whose sums are there.
    #[inline(always)]
    pub fn finish<S: Simd>(&self, rows: Range<usize>, first: usize, columns: usize) {
        let part = |values: &'a [f32], at: usize| if values.is_empty() { values } else { &values[at..at + columns] };
        for row in rows {
            let at = row * self.row_stride + first;
            // SAFETY: inside the target, by the promise of whoever made the sums; no other reference is alive.
            let y = unsafe { self.out.slice(at, columns) };
            // SAFETY: as above, of another result.
            let saved = self.saved.map_or(&mut [][..], |saved| unsafe { saved.slice(at, columns) });
            let sides =
                [part(self.scales, first), part(self.bias, first), part(self.input, at), part(self.residual, at)];
            finish::<S>(y, saved, sides, self.activation);
        }
    }
}

/// The whole product on all threads.
///
/// # Safety
/// Every element of the target has to lie in its allocation and belong to this call alone.
pub(super) unsafe fn parallel<R: Panel>(left: Left<'_>, right: R, target: Target<'_>) {
    assert!(left.fits() && right.fits(left.depth, target.columns));
    let panels = target.columns.div_ceil(COLUMNS);
    let share = rows_of_task(left.rows, panels, rayon::current_num_threads());
    // Those of the same rows follow each other, so that a thread has x in its cache.
    for_each_task(left.rows.div_ceil(share).max(1) * panels, |task, [scratch, _]| {
        let (row, first) = (task / panels * share, task % panels * COLUMNS);
        let (left, target) = (left.part(row, share), target.part(row, false, true));
        right.panel(left, target, first, COLUMNS.min(target.columns - first), scratch);
    });
}

/// Rows of a task: all of them where there are panels enough.
fn rows_of_task(rows: usize, panels: usize, threads: usize) -> usize {
    let parts = (TASKS * threads).div_ceil(panels.max(1)).min(rows / MIN_ROWS).max(1);
    rows.div_ceil(parts).next_multiple_of(GROUPED).max(GROUPED)
}

/// As [`parallel`], in the form that is faster for these sizes. Results have the same bits.
///
/// # Safety
/// As [`parallel`].
pub(super) unsafe fn large(left: Left<'_>, right: Right<'_, f32>, target: Target<'_>) {
    // What packing costs is shared by the columns and by the parts of K: at 192 of either it is 7 % of the time, at 768 and more
    // it brings 2 to 5 %.
    const FROM: usize = 512;
    if left.rows.min(left.depth).min(target.columns) < FROM || left.row_stride != left.depth {
        // SAFETY: the caller's promise.
        return unsafe { parallel(left, right, target) };
    }
    // SAFETY: the caller's promise.
    unsafe { packed(Factor::Rows(left.values), [left.rows, left.depth], right, target) };
}

/// The whole product on the calling thread; `scratch` keeps its memory from call to call.
///
/// # Safety
/// As [`parallel`].
pub(super) unsafe fn serial<R: Panel>(left: Left<'_>, right: R, target: Target<'_>, scratch: &mut Vec<f32>) {
    assert!(left.fits() && right.fits(left.depth, target.columns));
    right.panel(left, target, 0, target.columns, scratch);
}

/// Columns `first..first + columns` of the product on the calling thread.
///
/// # Safety
/// As [`parallel`], of these columns.
pub(super) unsafe fn panel<R: Panel>(
    left: Left<'_>,
    right: R,
    target: Target<'_>,
    first: usize,
    columns: usize,
    scratch: &mut Vec<f32>,
) {
    assert!(left.fits() && right.fits(left.depth, target.columns) && first + columns <= target.columns);
    right.panel(left, target, first, columns, scratch);
}

/// Part of a right-hand matrix: `depth` rows from `start` on, of `columns` columns from `first` on.
#[derive(Clone, Copy)]
pub(super) struct Block {
    pub start: usize,
    pub depth: usize,
    pub first: usize,
    pub columns: usize,
}

/// A right-hand matrix that panels are made of.
pub(super) trait Pack: Copy + Sync {
    /// The rows of a block as lines of `width` values, where they are, or copied to `scratch`.
    fn lines<'s, S: Simd>(&'s self, block: Block, width: usize, scratch: &'s mut Vec<f32>) -> &'s [f32];
    /// Memory that [`Pack::lines`] will read for a later block.
    fn ahead(&self, block: Block) -> Ahead<'_>;
}

/// A right-hand matrix that has a compiled panel product.
pub(super) trait Panel: Pack {
    /// Whether it holds (depth, columns).
    fn fits(&self, depth: usize, columns: usize) -> bool;
    /// Columns `first..first + columns` of the product.
    fn panel(self, l: Left<'_>, t: Target<'_>, first: usize, columns: usize, scratch: &mut Vec<f32>);
}

/// Steps along the depth between two prefetched lines; half a line of x.
const AHEAD_EVERY: usize = 8;

/// The cache lines of a later panel, prefetched one at a time while another is multiplied: packing alone would wait
/// for the memory. Runs of `run` bytes that begin `stride` bytes apart.
#[derive(Default)]
pub(super) struct Ahead<'a> {
    bytes: &'a [u8],
    run: usize,
    stride: usize,
    at: usize,
    end: usize,
}

impl<'a> Ahead<'a> {
    pub fn new(bytes: &'a [u8], run: usize, stride: usize) -> Ahead<'a> {
        Ahead { bytes, run, stride, at: 0, end: run }
    }

    #[inline(always)]
    fn next(&mut self) {
        if let Some(byte) = self.bytes.get(self.at) {
            prefetch(byte);
            self.at += LINE;
            if self.at >= self.end {
                self.at = self.end - self.run + self.stride;
                self.end += self.stride;
            }
        }
    }
}

macro_rules! strided_panel {
    ($element:ty, $panel:ident, $body:ident) => {
        impl Pack for Right<'_, $element> {
            #[inline(always)]
            fn lines<'s, S: Simd>(&'s self, block: Block, width: usize, scratch: &'s mut Vec<f32>) -> &'s [f32] {
                let lines = grown(scratch, block.depth * width);
                pack::<S, $element>(*self, block, lines, width);
                lines
            }
            fn ahead(&self, Block { start, depth, first, columns }: Block) -> Ahead<'_> {
                let size = size_of::<$element>();
                let ([run, stride], [outer, inner]) = match (self.depth_stride, self.column_stride) {
                    (1, stride) => ([depth, stride], [first, start]),
                    (stride, 1) => ([columns, stride], [start, first]),
                    _ => return Ahead::default(),
                };
                let runs = depth * columns / run.max(1);
                if runs == 0 {
                    return Ahead::default();
                }
                let values = &self.values[outer * stride + inner..][..(runs - 1) * stride + run];
                Ahead::new(bytemuck::cast_slice(values), size * run, size * stride)
            }
        }
        impl Panel for Right<'_, $element> {
            fn fits(&self, depth: usize, columns: usize) -> bool {
                depth == 0
                    || columns == 0
                    || self.values.len() > (depth - 1) * self.depth_stride + (columns - 1) * self.column_stride
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
pub(super) fn panels<S: Simd, R: Pack>(
    l: Left<'_>,
    r: R,
    t: Target<'_>,
    first: usize,
    columns: usize,
    scratch: &mut Vec<f32>,
) {
    // The largest tiles whose sums leave registers for a line and a value of x: of 32 registers 24, of 16 12. Heads of 64 would
    // leave a third of the usual tile empty, and so would heads of 32 and the channels of a convolution's first maps.
    const TWO: usize = 2 * MAX_LANES;
    const FOUR: usize = 4 * MAX_LANES;
    match (S::N, columns) {
        (MAX_LANES, ..=MAX_LANES) => panels_of::<S, R, 16, 1, 0>(l, r, t, first, columns, scratch),
        (MAX_LANES, ..=TWO) => panels_of::<S, R, 12, 2, 0>(l, r, t, first, columns, scratch),
        (MAX_LANES, FOUR) => panels_of::<S, R, 6, 4, 0>(l, r, t, first, columns, scratch),
        (MAX_LANES, _) => panels_of::<S, R, 8, 3, 0>(l, r, t, first, columns, scratch),
        _ => panels_of::<S, R, 6, 2, 0>(l, r, t, first, columns, scratch),
    }
}

/// Depth of the parts of a product, as equal as whole registers allow: a short last one would spend its time at the edges of
/// its tiles.
fn part_of(depth: usize) -> usize {
    depth.div_ceil(depth.div_ceil(DEPTH).max(1)).next_multiple_of(MAX_LANES)
}

/// [`panels`] in tiles of M rows and W registers, with a left-hand matrix in groups of G rows.
#[inline(always)]
pub(super) fn panels_of<S: Simd, R: Pack, const M: usize, const W: usize, const G: usize>(
    l: Left<'_>,
    r: R,
    t: Target<'_>,
    first: usize,
    columns: usize,
    scratch: &mut Vec<f32>,
) {
    let width = W * S::N;
    let part = part_of(l.depth);
    for first in (first..first + columns).step_by(width) {
        // Columns of this panel; only the last of a matrix is narrower.
        let columns = width.min(t.columns - first);
        let mut start = 0;
        loop {
            let depth = part.min(l.depth - start);
            let lines = r.lines::<S>(Block { start, depth, first, columns }, width, scratch);
            let end = start + depth;
            let mut ahead = r.ahead(if end < l.depth {
                Block { start: end, depth: part.min(l.depth - end), first, columns }
            } else {
                let next = first + columns;
                Block { start: 0, depth: part.min(l.depth), first: next, columns: width.min(t.columns - next) }
            });
            let lines = Lines { values: lines, start, depth, first, columns };
            // The rows of a tile as they lie, or in a group.
            let rows = |row: usize| match G {
                0 => &l.values[row * l.row_stride + start..],
                _ => &l.values[row / G * G * l.depth..][start * G + row % G..],
            };
            let stride = if G > 0 { 1 } else { l.row_stride };
            let finishes = end >= l.depth && t.has_epilogue();
            let (mut row, mut finished) = (0, 0);
            while row < l.rows {
                row += match l.rows - row {
                    1 => tile::<S, 1, W, G>(rows(row), stride, row, lines, t, &mut ahead),
                    rest if rest < M => tile::<S, 2, W, G>(rows(row), stride, row, lines, t, &mut ahead),
                    _ => tile::<S, M, W, G>(rows(row), stride, row, lines, t, &mut ahead),
                };
                if finishes && (row == l.rows || row - finished >= FINISHED) {
                    finish_panel(t, finished..row, first, columns);
                    finished = row;
                }
            }
            start = end;
            if start >= l.depth {
                break;
            }
        }
    }
}

dispatch! {
    /// [`Target::finish`] by itself: the constants of the activations, hoisted out of the loops over panels, would take the
    /// registers of a tile's sums.
    #[inline(never)]
    fn finish_panel(t: Target<'_>, rows: Range<usize>, first: usize, columns: usize) = finish_panel_body;
}

#[inline(always)]
fn finish_panel_body<S: Simd>(t: Target<'_>, rows: Range<usize>, first: usize, columns: usize) {
    t.finish::<S>(rows, first, columns);
}

/// Copies a block of a matrix with strides to `lines`, each `width` wide and filled up with zeros.
#[inline(always)]
pub(super) fn pack<S: Simd, E: Element>(r: Right<'_, E>, block: Block, lines: &mut [f32], width: usize) {
    let Block { start, depth, first, columns } = block;
    if columns < width {
        lines.fill(0.0);
    }
    if r.column_stride == 1 {
        for (k, line) in lines.chunks_exact_mut(width).enumerate() {
            let source = &r.values[(start + k) * r.depth_stride + first..][..columns];
            if columns == width {
                for n in (0..width).step_by(S::N) {
                    S::store(&mut line[n..], E::lanes::<S>(&source[n..]));
                }
            } else {
                line.iter_mut().zip(source).for_each(|(to, from)| *to = from.widen());
            }
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

/// A packed panel: rows `start..start + depth` of columns `first..first + columns`, each row as wide as the tiles.
#[derive(Clone, Copy)]
struct Lines<'a> {
    values: &'a [f32],
    start: usize,
    depth: usize,
    first: usize,
    columns: usize,
}

/// M rows of x times a packed panel; continues the sums in the target unless the panel begins at 0. With G > 0 the rows of x
/// are in groups of G, of which element (m, k) stands at `k * G + m`. Returns M.
#[inline(always)]
fn tile<S: Simd, const M: usize, const W: usize, const G: usize>(
    x: &[f32],
    stride: usize,
    row: usize,
    lines: Lines<'_>,
    t: Target<'_>,
    ahead: &mut Ahead<'_>,
) -> usize {
    let Lines { values, start, depth, first, columns } = lines;
    let width = W * S::N;
    let step = if G > 0 { G } else { 1 };
    let x = &x[..(M - 1) * stride + depth * step - (step - 1)];
    // SAFETY: as in `panels`.
    let y = |m: usize| unsafe { t.out.slice((row + m) * t.row_stride + first, columns) };
    // A narrow panel goes through a buffer as wide as the registers.
    let mut edge = [0.0f32; 4 * MAX_LANES];
    let mut acc = [[S::splat(0.0); W]; M];
    if start > 0 || t.adds {
        for (m, acc) in acc.iter_mut().enumerate() {
            let mut sums: &[f32] = y(m);
            if columns < width {
                edge[..columns].copy_from_slice(sums);
                sums = &edge;
            }
            *acc = std::array::from_fn(|i| S::load(&sums[i * S::N..]));
        }
    }
    // The sums of the next tile lie in memory, and so do the sides of its epilogue.
    t.prefetch::<S, W>(row + M..row + 2 * M, first);
    for (k, line) in values.chunks_exact(width).enumerate() {
        if k % AHEAD_EVERY == 0 {
            ahead.next();
            // So do its rows of x, each by itself; groups follow each other.
            if G == 0 && k % (2 * AHEAD_EVERY) == 0 {
                for m in M..2 * M {
                    prefetch(x.as_ptr().wrapping_add(m * stride + k));
                }
            }
        }
        let b: [S::Lanes; W] = std::array::from_fn(|i| S::load(&line[i * S::N..]));
        for (m, acc) in acc.iter_mut().enumerate() {
            // SAFETY: the panel has `depth` lines, as many as the last row of x was cut to.
            let value = S::splat(unsafe { *x.get_unchecked(m * stride + k * step) });
            for (b, acc) in b.iter().zip(acc) {
                *acc = S::mul_add(value, *b, *acc);
            }
        }
    }
    for (m, acc) in acc.into_iter().enumerate() {
        let sums = if columns < width { &mut edge[..] } else { y(m) };
        for (i, lanes) in acc.into_iter().enumerate() {
            S::store(&mut sums[i * S::N..], lanes);
        }
        if columns < width {
            y(m).copy_from_slice(&edge[..columns]);
        }
    }
    M
}

#[cfg(test)]
mod tests {
    use super::super::simd::Portable;
    use super::*;

    /// The tiles of 8 lanes, which a wider processor never runs, and panels of several parts, on whole numbers, whose sums
    /// are exact. Memory beyond the columns stays untouched.
    #[test]
    fn narrow_registers_give_the_same() {
        let mut random = crate::random::Random::new(11);
        for (m, n, k) in [(1, 1, 1), (0, 3, 2), (6, 16, 16), (7, 17, 5), (14, 40, 1025), (9, 49, 2100)] {
            let (x, w) = (random.whole(m * k), random.whole(n * k));
            let stride = n + 1;
            let mut y = vec![f32::NAN; m * stride];
            let left = Left { values: &x, row_stride: k, rows: m, depth: k };
            let right = Right { values: &w[..], depth_stride: 1, column_stride: k };
            let target = Target::plain(Disjoint::new(&mut y), stride, n);
            panels::<Portable, _>(left, right, target, 0, n, &mut Vec::new());
            for (row, y) in y.chunks_exact(stride).enumerate() {
                let dot = |n: usize| (0..k).map(|i| x[row * k + i] * w[n * k + i]).sum::<f32>();
                assert_eq!(y[..n], (0..n).map(dot).collect::<Vec<f32>>(), "{m}x{n}x{k}");
                assert!(y[n].is_nan());
            }
        }
    }
}
