//! frame_conv of three taps with stride 2, by minimal filtering. Windows 2p and 2p + 1 share frame 4p + 2, and with
//! m = x\[4p + 2\] (w0 + w2)
//!
//! ```text
//! y[2p]     = (x[4p] - x[4p + 2]) w0 + x[4p + 1] w1 + m
//! y[2p + 1] = (x[4p + 4] - x[4p + 2]) w2 + x[4p + 3] w1 + m
//! ```
//!
//! That makes 5 products where the definition has 6: F(2, 2) on the even frames. A window needs no frame outside of itself, so
//! the last of an odd number, which has no second one, is computed with the same bits. Rounding is that of sums of the same
//! length, and of a difference and a sum before them. Source: Winograd, "Arithmetic Complexity of Computations" (1980).
//!
//! The weights are packed once a call, in panels with C lines each of w0 + w2, w0, w1 and w2. A task takes some pairs through
//! all panels, so that their frames and differences stay in its L2. Operations: 5 * windows * N * C; directly 6.

use rayon::prelude::*;

use super::super::Elements;
use super::super::buffer::{for_each_task, from_line, grown, scratch};
use super::super::gemm::{Ahead, Block, Left, Pack, Right, Target, pack, panels_of};
use super::super::linear::Element;
use super::super::simd::{Level, MAX_LANES, Simd, dispatch, level};
use super::{Frames, Out};
use crate::backend::frame_conv::{FrameConvShape, FrameConvSizes};

/// Windows of a pair, and frames from one pair to the next.
pub(super) const WINDOWS: usize = 2;
const FRAMES: usize = 4;
/// Parts of a packed panel.
const PARTS: usize = 4;
/// Pairs of a task: at most so many, and a multiple of the rows of a tile. Frames and differences of 96 with 512 channels are
/// 1.2 MB.
const PAIRS: usize = 96;
const ROWS: usize = 24;
/// Channels and outputs from which this form is the faster one, as those of HuBERT and wav2vec 2.0 are (docs/decisions.md).
const FROM: usize = 512;

/// Whether there is this form of a convolution.
pub(super) fn fits(shape: FrameConvShape) -> bool {
    shape == FrameConvShape::strided(3, 2)
}

/// Whether this form is the faster one. Depends on no number of frames, so that windows keep their bits in batches.
pub(super) fn pays(channels: usize, outputs: usize) -> bool {
    channels.min(outputs) >= FROM
}

/// A convolution whose weights are packed.
struct Paired<'a> {
    x: Frames<'a>,
    lines: &'a [f32],
    /// Columns of a panel.
    width: usize,
    windows: usize,
    outputs: usize,
    bias: &'a [f32],
    out: Out<'a>,
}

/// Windows of x (T, C) times `weight` (N, 3C).
pub(super) fn convolve<'a>(
    x: Frames<'a>,
    weight: Elements<'a>,
    bias: &'a [f32],
    FrameConvSizes { rows: windows, outputs, .. }: FrameConvSizes,
    out: Out<'a>,
) {
    let width = width();
    let panel = PARTS * x.channels * width;
    let len = outputs.div_ceil(width) * panel;
    let mut lines = scratch(len);
    let lines = from_line(&mut lines, len);
    lines.par_chunks_mut(panel).enumerate().for_each(|(n, lines)| {
        pack_taps(weight, [x.channels, outputs], n * width, lines);
    });
    let all = Paired { x, lines, width, windows, outputs, bias, out };
    let pairs = windows.div_ceil(WINDOWS);
    let share = share_of(pairs, rayon::current_num_threads());
    for_each_task(pairs.div_ceil(share), |task, [differences, _]| {
        all.pairs(task * share, share.min(pairs - task * share), differences);
    });
}

/// Pairs of a task: as many tasks for each thread.
fn share_of(pairs: usize, threads: usize) -> usize {
    let tasks = pairs.div_ceil(PAIRS).next_multiple_of(threads);
    pairs.div_ceil(tasks.max(1)).next_multiple_of(ROWS).max(ROWS)
}

impl Paired<'_> {
    /// Pairs `first..first + count`, of which the last may have no second window; they belong to this call alone.
    fn pairs(&self, first: usize, count: usize, differences: &mut Vec<f32>) {
        let (channels, second) = (self.x.channels, count.min(self.windows / WINDOWS - first));
        let x = &self.x.values[first * FRAMES * channels..];
        let (before, after) = grown(differences, (count + second) * channels).split_at_mut(count * channels);
        subtract(x, channels, [0, 2], before);
        subtract(x, channels, [4, 2], after);
        let frames = |frame: usize, rows| Left {
            values: &x[frame * channels..],
            row_stride: FRAMES * channels,
            rows,
            depth: channels,
        };
        let rows = |values, rows| Left { values, row_stride: channels, rows, depth: channels };
        for panel in 0..self.outputs.div_ceil(self.width) {
            let taps = |part| self.taps(panel, part);
            let target = |window, last| self.target(first * WINDOWS + window, last);
            let column = panel * self.width;
            let sums = Target { adds: false, ..target(0, false) };
            multiply(frames(2, count), taps(0), sums, column);
            self.copy_to_second(sums, second, column);
            multiply(rows(before, count), taps(1), target(0, false), column);
            multiply(frames(1, count), taps(2), target(0, true), column);
            multiply(frames(3, second), taps(2), target(1, false), column);
            multiply(rows(after, second), taps(3), target(1, true), column);
        }
        self.out.normalise(first * WINDOWS, count + second, self.outputs);
    }

    /// The lines of a part of a panel.
    fn taps(&self, panel: usize, part: usize) -> Taps<'_> {
        let len = self.x.channels * self.width;
        let (lines, rest) = self.lines[(panel * PARTS + part) * len..].split_at(len);
        Taps { lines, next: &rest[..len.min(rest.len())] }
    }

    /// Every second row of the result from row `window` on, whose sums go on; after the last of them comes the epilogue.
    fn target(&self, window: usize, last: bool) -> Target<'_> {
        let whole = self.out.part(window * self.outputs, 0, self.outputs, self.outputs, self.bias);
        let row_stride = WINDOWS * self.outputs;
        let target = if last { whole } else { Target::plain(whole.out, row_stride, self.outputs) };
        Target { row_stride, adds: true, ..target }
    }

    /// Copies the sums of a panel in the first windows of `count` pairs to the second ones.
    fn copy_to_second(&self, sums: Target<'_>, count: usize, column: usize) {
        let columns = self.width.min(self.outputs - column);
        for pair in 0..count {
            let at = pair * sums.row_stride + column;
            // SAFETY: two rows of a pair that belongs to the calling task.
            let (from, to) = unsafe { (sums.out.slice(at, columns), sums.out.slice(at + self.outputs, columns)) };
            to.copy_from_slice(from);
        }
    }
}

/// The packed lines of a part of a panel, and those that are multiplied next.
#[derive(Clone, Copy)]
struct Taps<'a> {
    lines: &'a [f32],
    next: &'a [f32],
}

impl Pack for Taps<'_> {
    #[inline(always)]
    fn lines<'s, S: Simd>(&'s self, block: Block, width: usize, _: &'s mut Vec<f32>) -> &'s [f32] {
        &self.lines[block.start * width..][..block.depth * width]
    }

    fn ahead(&self, _: Block) -> Ahead<'_> {
        Ahead::new(bytemuck::cast_slice(self.next), size_of_val(self.next), 0)
    }
}

/// Registers of a tile, where they have 16 lanes and where they have 8.
const LARGE: usize = 3;
const SMALL: usize = 2;

/// Columns of a panel.
fn width() -> usize {
    match level() {
        Level::Avx512 => LARGE * MAX_LANES,
        Level::Avx2 | Level::Portable => SMALL * MAX_LANES / 2,
    }
}

dispatch! {
    /// Packs the panel that begins at column `first` of a weight (N, 3C).
    fn pack_taps(weight: Elements<'_>, size: [usize; 2], first: usize, lines: &mut [f32]) = pack_taps_body;
}

#[inline(always)]
fn pack_taps_body<S: Simd>(weight: Elements<'_>, size: [usize; 2], first: usize, lines: &mut [f32]) {
    match weight {
        Elements::F32(values) => pack_elements::<S, f32>(values, size, first, lines),
        Elements::Bf16(values) => pack_elements::<S, half::bf16>(values, size, first, lines),
        Elements::Int8(_) => unreachable!("frame_conv refuses weights of eight bits"),
    }
}

#[inline(always)]
fn pack_elements<S: Simd, E: Element>(values: &[E], [channels, outputs]: [usize; 2], first: usize, lines: &mut [f32]) {
    let right = Right { values, depth_stride: 1, column_stride: 3 * channels };
    let (sums, taps) = lines.split_at_mut(lines.len() / PARTS);
    let width = taps.len() / (3 * channels);
    let columns = width.min(outputs - first);
    pack::<S, E>(right, Block { start: 0, depth: 3 * channels, first, columns }, taps, width);
    let (before, after) = (&taps[..sums.len()], &taps[2 * sums.len()..]);
    for (sum, (before, after)) in sums.iter_mut().zip(before.iter().zip(after)) {
        *sum = before + after;
    }
}

dispatch! {
    /// The difference of two frames of each pair, which are counted from its first.
    fn subtract(x: &[f32], channels: usize, frames: [usize; 2], differences: &mut [f32]) = subtract_body;
}

#[inline(always)]
fn subtract_body<S: Simd>(x: &[f32], channels: usize, frames: [usize; 2], differences: &mut [f32]) {
    for (pair, differences) in differences.chunks_exact_mut(channels).enumerate() {
        let [a, b] = frames.map(|frame| &x[(pair * FRAMES + frame) * channels..][..channels]);
        for (difference, (a, b)) in differences.iter_mut().zip(a.iter().zip(b)) {
            *difference = a - b;
        }
    }
}

dispatch! {
    /// A product's columns of one panel, from `first` on; the caller owns them in every row of the target.
    fn multiply(l: Left<'_>, r: Taps<'_>, t: Target<'_>, first: usize) = multiply_body;
}

#[inline(always)]
fn multiply_body<S: Simd>(l: Left<'_>, r: Taps<'_>, t: Target<'_>, first: usize) {
    let registers = if S::N == MAX_LANES { LARGE } else { SMALL };
    let columns = (registers * S::N).min(t.columns - first);
    if S::N == MAX_LANES {
        panels_of::<S, Taps<'_>, 8, LARGE, 0>(l, r, t, first, columns, &mut Vec::new());
    } else {
        panels_of::<S, Taps<'_>, 6, SMALL, 0>(l, r, t, first, columns, &mut Vec::new());
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::disjoint::Disjoint;
    use super::super::super::simd::Portable;
    use super::super::{Activation, direct};
    use super::*;
    use crate::conformance::{difference, largest, stored, tolerance};
    use crate::random::Random;
    use crate::tensor::DType;

    /// Frames, weights, bias and residual of so many windows, channels and outputs; weights that bf16 holds.
    struct Drawn {
        sizes: [usize; 3],
        frames: Vec<f32>,
        weight: Vec<f32>,
        narrow: Vec<half::bf16>,
        bias: Vec<f32>,
        residual: Vec<f32>,
    }

    fn drawn(random: &mut Random, sizes: [usize; 3]) -> Drawn {
        let [windows, channels, outputs] = sizes;
        let weight = stored(DType::BF16, random.values(outputs * 3 * channels));
        Drawn {
            sizes,
            frames: random.values((2 * windows + 1) * channels),
            narrow: weight.iter().map(|&w| half::bf16::from_f32(w)).collect(),
            weight,
            bias: random.values(outputs),
            residual: random.values(windows * outputs),
        }
    }

    impl Drawn {
        /// Windows from `first` on by one of the forms.
        fn convolved(
            &self,
            first: usize,
            windows: usize,
            form: impl Fn(Frames<'_>, FrameConvSizes, Out<'_>),
        ) -> Vec<f32> {
            let [_, channels, outputs] = self.sizes;
            let mut y = vec![f32::NAN; windows * outputs];
            let x = Frames { values: &self.frames[2 * first * channels..][..(2 * windows + 1) * channels], channels };
            let residual = &self.residual[first * outputs..];
            let out = Out { y: Disjoint::new(&mut y), residual, activation: Activation::Gelu, norm: None };
            form(x, FrameConvSizes { rows: windows, outputs, depth: 3 * channels }, out);
            y
        }

        fn paired(&self, first: usize, windows: usize, weight: Elements<'_>) -> Vec<f32> {
            self.convolved(first, windows, |x, sizes, out| convolve(x, weight, &self.bias, sizes, out))
        }

        fn direct(&self) -> Vec<f32> {
            let shape = FrameConvShape::strided(3, 2);
            self.convolved(0, self.sizes[0], |x, sizes, out| direct(x, &self.weight[..], &self.bias, shape, sizes, out))
        }
    }

    /// Both forms within what is allowed of each, and weights of both types the same.
    #[test]
    fn equals_the_direct_form() {
        let mut random = Random::new(31);
        for sizes in [
            [1, 1, 1],
            [2, 3, 5],
            [3, 17, 49],
            [5, 64, 48],
            [191, 70, 100],
            [193, 20, 33],
            [1000, 72, 97],
            [9, 1100, 50],
        ] {
            let drawn = drawn(&mut random, sizes);
            let y = drawn.paired(0, sizes[0], Elements::F32(&drawn.weight));
            let expected = drawn.direct();
            let allowed = 2.0 * tolerance(3 * sizes[1] + 2, largest(&expected));
            let found = difference(&y, &expected);
            assert!(found <= allowed, "{sizes:?}: {found} of {allowed}");
            assert_eq!(y, drawn.paired(0, sizes[0], Elements::Bf16(&drawn.narrow)), "{sizes:?}");
        }
    }

    /// Windows that follow a pair are the same bits alone, however many come after them.
    #[test]
    fn parts_keep_their_bits() {
        let mut random = Random::new(32);
        let drawn = drawn(&mut random, [400, 65, 50]);
        let weight = Elements::F32(&drawn.weight);
        let all = drawn.paired(0, 400, weight);
        for (first, windows) in [(0, 1), (0, 399), (2, 1), (6, 2), (100, 251), (398, 2)] {
            assert_eq!(drawn.paired(first, windows, weight), all[first * 50..][..windows * 50], "{first} {windows}");
        }
    }

    /// Panels and tiles of 8 lanes, which a wider processor never runs, on whole numbers, whose sums are exact.
    #[test]
    fn narrow_registers_give_the_same() {
        const WIDTH: usize = SMALL * 8;
        let mut random = Random::new(33);
        for [rows, channels, outputs] in [[1, 1, 1], [7, 5, 16], [13, 20, 33]] {
            let (x, w) = (random.whole(rows * channels), random.whole(outputs * 3 * channels));
            let part = channels * WIDTH;
            for (part_of_panel, taps) in [(0, [0, 2]), (1, [0, 0]), (2, [1, 1]), (3, [2, 2])] {
                let mut y = vec![0.0; rows * outputs];
                for first in (0..outputs).step_by(WIDTH) {
                    let mut lines = vec![f32::NAN; PARTS * part];
                    pack_taps_body::<Portable>(Elements::F32(&w), [channels, outputs], first, &mut lines);
                    let taps = Taps { lines: &lines[part_of_panel * part..][..part], next: &[] };
                    let left = Left { values: &x, row_stride: channels, rows, depth: channels };
                    let target = Target::plain(Disjoint::new(&mut y), outputs, outputs);
                    multiply_body::<Portable>(left, taps, target, first);
                }
                let weight = |n: usize, tap: usize, c: usize| w[(n * 3 + tap) * channels + c];
                let factor = |n: usize, c: usize| match taps {
                    [a, b] if a == b => weight(n, a, c),
                    [a, b] => weight(n, a, c) + weight(n, b, c),
                };
                let dot = |at: usize| {
                    (0..channels).map(|c| x[at / outputs * channels + c] * factor(at % outputs, c)).sum::<f32>()
                };
                assert_eq!(y, (0..rows * outputs).map(dot).collect::<Vec<f32>>(), "{rows} {channels} {outputs}");
            }
        }
    }

    #[test]
    fn every_thread_has_as_many_tasks() {
        for (pairs, threads) in [(0, 1), (1, 2), (1000, 2), (8000, 3), (1000, 64)] {
            let share = share_of(pairs, threads);
            assert!(share.is_multiple_of(ROWS) && (ROWS..=PAIRS).contains(&share), "{pairs} {threads}: {share}");
        }
        assert_eq!(share_of(1000, 2), 96);
    }
}
