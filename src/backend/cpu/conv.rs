//! Core of both convolutions: products of the channels of a block of x with packed weights, summed over inputs.
//!
//! A block holds some *streams* of every input channel (x itself, or what `winograd` makes of it) in contiguous rows. A
//! *product* is a sum over inputs and *terms*, each a stream read some columns further on times its own weights. A plain
//! convolution is one product whose terms are its taps; a transposed one has a product for every phase; Winograd's form
//! has one for every multiplication of its scheme. A tile of 8 output channels by 3 registers of columns keeps its sums
//! in registers. Each sum is one chain of multiply-adds in a fixed order, so results do not depend on how time is cut.

use std::borrow::Cow;
use std::cell::RefCell;

use half::bf16;
use rayon::prelude::*;

use super::buffer::grown;
use super::linear::Element;
use super::simd::{Simd, dispatch};
use super::{Tensor, winograd};
use crate::tensor::HostTensor;

/// Output channels of a register tile.
pub(super) const GROUP: usize = 8;
/// Columns of a task are a multiple of this: the widest register.
const LANES: usize = 16;
/// Most columns of a task.
const MAX_COLUMNS: usize = 128;
/// Elements of a task's sums that are read and written once for every [`INPUTS`]: a MiB.
const MAX_SUMS: usize = 1 << 18;
/// Fixed cost of a task, in columns: margins, weights that come from further away.
const TASK_COLUMNS: usize = 12;
/// Inputs that are multiplied before the next are gathered: with ten streams of them a block fits the L2.
const INPUTS: usize = 64;
/// Weights that are packed by one task: fewer are not worth waking a thread.
const PACKED_AT_ONCE: usize = 1 << 15;
/// Terms of the groups of output channels that take turns.
const TERMS_AT_ONCE: usize = 96;

/// How a convolution is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// One product, a column is a frame.
    Direct,
    /// Four frames a column.
    Winograd,
    /// A product for each phase of this stride, a column is a frame of x.
    Transposed(usize),
}

/// Packed weights of a convolution.
pub struct ConvWeights {
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) taps: usize,
    pub(super) form: Form,
    packed: Vec<Packed>,
    pub(super) bias: Vec<f32>,
}

/// Weights (outputs / 8, inputs, taps, 8), zero beyond the outputs.
struct Packed {
    taps: usize,
    weight: Groups,
}

/// Elements of packed weights, in the type in which they were stored if that is bf16: half as much to write and to read.
enum Groups {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

impl Groups {
    /// Elements `start..start + len`, widened to `scratch` if they are narrow.
    fn part<'s>(&'s self, start: usize, len: usize, scratch: &'s mut Vec<f32>) -> &'s [f32] {
        match self {
            Groups::F32(values) => &values[start..start + len],
            Groups::Bf16(values) => {
                let wide = grown(scratch, len);
                widen(&values[start..start + len], wide);
                wide
            }
        }
    }
}

dispatch! {
    fn widen(narrow: &[bf16], wide: &mut [f32]) = widen_body;
}

#[inline(always)]
fn widen_body<S: Simd>(narrow: &[bf16], wide: &mut [f32]) {
    wide.iter_mut().zip(narrow).for_each(|(wide, narrow)| *wide = narrow.to_f32());
}

impl ConvWeights {
    /// Packs the weights of every part: the first tap of (part, output, input) is element `first(..)`, and part `n` has
    /// `parts[n]` taps, each `step` elements after the one before.
    pub(super) fn pack(
        form: Form,
        [outputs, inputs, taps]: [usize; 3],
        parts: &[usize],
        weight: &HostTensor,
        (first, step): (impl Fn(usize, usize, usize) -> usize + Sync, isize),
        bias: Vec<f32>,
    ) -> ConvWeights {
        let wide = if weight.as_bf16().is_some() { Cow::default() } else { weight.to_f32() };
        let part = |(part, &taps): (usize, &usize)| {
            let first = |output, input| first(part, output, input);
            let weight = match weight.as_bf16() {
                Some(values) => Groups::Bf16(pack([outputs, inputs, taps], values, (first, step))),
                None => Groups::F32(pack([outputs, inputs, taps], &wide, (first, step))),
            };
            Packed { taps, weight }
        };
        let packed = parts.iter().enumerate().map(part).collect();
        ConvWeights { inputs, outputs, taps, form, packed, bias }
    }

    /// Frames of the convolution before interleaving that make one column, and how many are gathered for a column.
    fn frames_per_column(&self) -> usize {
        if self.form == Form::Winograd { winograd::FRAMES } else { 1 }
    }
}

/// A stream of an input channel, read so many columns further on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Term {
    pub stream: usize,
    pub shift: usize,
}

/// One convolution of one x: what the tasks share.
pub(super) struct Convolution<'a> {
    pub kernel: &'a ConvWeights,
    x: &'a Tensor,
    slope: f32,
    dilation: usize,
    /// The frame of x that the first column reads first; there may be none.
    from: isize,
    streams: usize,
    products: Vec<Vec<Term>>,
    /// Columns beyond a task's own that its terms read.
    reach: usize,
    /// Columns of a task, a multiple of [`LANES`], and how many of them are wanted: a multiple of the dilation.
    columns: usize,
    wanted: usize,
    pub tasks: usize,
}

/// Memory of one thread, kept from task to task: fresh pages would cost more than what is computed in them.
#[derive(Default)]
pub(super) struct Scratch {
    line: Vec<f32>,
    block: Vec<f32>,
    weights: Weights,
    sums: Vec<f32>,
}

/// Weights of some groups of output channels: widened, and in Winograd's form.
#[derive(Default)]
struct Weights {
    wide: Vec<f32>,
    transformed: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl<'a> Convolution<'a> {
    /// Plans the sums of `frames` frames, the first of which reads x from the frame `from` on.
    pub fn new(
        kernel: &'a ConvWeights,
        x: &'a Tensor,
        frames: usize,
        from: isize,
        slope: f32,
        dilation: usize,
    ) -> Convolution<'a> {
        let plain = |taps: &Packed, shift: usize| -> Vec<Term> {
            (0..taps.taps).map(|tap| Term { stream: 0, shift: shift + tap * dilation }).collect()
        };
        let (streams, products) = match kernel.form {
            Form::Winograd => winograd::plan(kernel.taps, dilation),
            _ => (1, kernel.packed.iter().map(|part| plain(part, kernel.packed[0].taps - part.taps)).collect()),
        };
        let reach = products.iter().flatten().map(|term: &Term| term.shift).max().unwrap_or(0);
        let unit = if kernel.form == Form::Winograd { dilation } else { 1 };
        let total = frames.div_ceil(unit * kernel.frames_per_column()) * unit;
        let max = MAX_SUMS / (products.len() * kernel.outputs.next_multiple_of(GROUP)).max(1);
        let (columns, wanted) = cut(total, unit, max.min(MAX_COLUMNS));
        let tasks = total.div_ceil(wanted);
        Convolution { kernel, x, slope, dilation, from, streams, products, reach, columns, wanted, tasks }
    }

    /// Frames of a task; the last one has fewer.
    pub fn frames_per_task(&self) -> usize {
        self.wanted * self.kernel.frames_per_column()
    }

    /// Columns of a task's sums.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Calls `finish(task, sums, line)` for every task, on all threads: the sums (outputs rounded up to 8, products,
    /// columns), and scratch for the frames of one output channel.
    pub fn each(&self, finish: impl Fn(usize, &mut [f32], &mut [f32]) + Sync) {
        (0..self.tasks).into_par_iter().for_each(|task| {
            // Nothing below hands this thread another task meanwhile.
            SCRATCH.with_borrow_mut(|scratch| {
                self.sum(task, scratch);
                let line = grown(&mut scratch.line, self.columns * self.kernel.frames_per_column());
                finish(task, grown(&mut scratch.sums, self.sums()), line);
            });
        });
    }

    /// Elements of the sums of one output channel: (products, columns).
    pub fn sums_per_output(&self) -> usize {
        self.products.len() * self.columns
    }

    fn sums(&self) -> usize {
        self.kernel.outputs.next_multiple_of(GROUP) * self.sums_per_output()
    }

    /// The sums of one task.
    fn sum(&self, task: usize, scratch: &mut Scratch) {
        let row = row_length(self.columns + self.reach);
        let Scratch { line, block, weights, sums } = scratch;
        let sums = grown(sums, self.sums());
        let at_once = if self.kernel.form == Form::Winograd { INPUTS } else { self.kernel.inputs };
        for first in (0..self.kernel.inputs).step_by(at_once.max(1)) {
            let inputs = at_once.min(self.kernel.inputs - first);
            let block = grown(block, inputs * self.streams * row);
            for (input, streams) in block.chunks_exact_mut(self.streams * row).enumerate() {
                self.gather(first + input, task * self.frames_per_task(), line, streams);
            }
            let groups = self.groups_at_once();
            for (n, sums) in sums.chunks_mut(groups * GROUP * self.sums_per_output()).enumerate() {
                self.groups(block, row, n * groups, [first, inputs], weights, sums);
            }
        }
    }

    /// Groups whose products take turns, so that what they all read stays in the L1.
    fn groups_at_once(&self) -> usize {
        let terms: usize = self.products.iter().map(Vec::len).sum();
        (TERMS_AT_ONCE / terms).max(1)
    }

    /// The streams of one input channel, from frame `first` of the result on.
    fn gather(&self, input: usize, first: usize, line: &mut Vec<f32>, streams: &mut [f32]) {
        let channel = &self.x.data[input * self.x.columns..][..self.x.columns];
        let from = self.from.saturating_add_unsigned(first);
        if self.kernel.form != Form::Winograd {
            return copy(channel, from, self.slope, streams);
        }
        let row = streams.len() / self.streams;
        let length = winograd::line_length(row, self.dilation);
        let (line, scratch) = grown(line, 2 * length).split_at_mut(length);
        copy(channel, from, self.slope, line);
        winograd::streams(line, self.dilation, scratch, streams, row);
    }

    /// Weights of a part's group of output channels for `inputs` channels, `first` and the ones after it.
    fn packed<'s>(
        &'s self,
        [part, group]: [usize; 2],
        [first, inputs]: [usize; 2],
        scratch: &'s mut Vec<f32>,
    ) -> &'s [f32] {
        let Packed { taps, weight } = &self.kernel.packed[part];
        weight.part((group * self.kernel.inputs + first) * taps * GROUP, inputs * taps * GROUP, scratch)
    }

    /// Adds the products of `inputs` channels, `first` and the ones after it, to the sums (outputs, products, columns)
    /// of the groups from `group` on.
    fn groups(
        &self,
        block: &[f32],
        row: usize,
        group: usize,
        [first, inputs]: [usize; 2],
        scratch: &mut Weights,
        sums: &mut [f32],
    ) {
        let size = GROUP * self.sums_per_output();
        let groups = sums.len() / size;
        let Weights { wide, transformed } = scratch;
        let winograd = self.kernel.form == Form::Winograd;
        let terms: usize = if winograd { self.products.iter().map(Vec::len).sum() } else { 0 };
        let transformed = grown(transformed, groups * inputs * terms * GROUP);
        if winograd {
            for (n, transformed) in transformed.chunks_exact_mut(inputs * terms * GROUP).enumerate() {
                let weight = self.packed([0, group + n], [first, inputs], wide);
                winograd::weights(weight, self.kernel.taps, inputs, transformed);
            }
        }
        let mut start = 0;
        for (product, list) in self.products.iter().enumerate() {
            for n in 0..groups {
                let weight = if winograd {
                    &transformed[(n * terms + start) * inputs * GROUP..][..list.len() * inputs * GROUP]
                } else {
                    self.packed([product, group + n], [first, inputs], wide)
                };
                let panel = Panel {
                    block,
                    plane: self.streams * row,
                    row,
                    terms: list,
                    weight,
                    columns: self.columns,
                    pitch: self.sums_per_output(),
                    resume: first > 0,
                };
                tiles(&panel, &mut sums[n * size + product * self.columns..]);
            }
            start += list.len();
        }
    }
}

/// Weights of one part in groups.
fn pack<E: Element + Default + Send + Sync>(
    [outputs, inputs, taps]: [usize; 3],
    values: &[E],
    (first, step): (impl Fn(usize, usize) -> usize + Sync, isize),
) -> Vec<E> {
    let size = taps * GROUP;
    let mut packed = vec![E::default(); outputs.div_ceil(GROUP) * inputs * size];
    let groups = packed.par_chunks_mut((inputs * size).max(1)).enumerate();
    groups.with_min_len((PACKED_AT_ONCE / (inputs * size).max(1)).max(1)).for_each(|(group, packed)| {
        let outputs = group * GROUP..outputs.min((group + 1) * GROUP);
        let mut places = [0; GROUP];
        for (input, packed) in packed.chunks_exact_mut(size).enumerate() {
            places.iter_mut().zip(outputs.clone()).for_each(|(place, output)| *place = first(output, input));
            for packed in packed.as_chunks_mut::<GROUP>().0 {
                for (packed, place) in packed[..outputs.len()].iter_mut().zip(&mut places) {
                    *packed = values[*place];
                    *place = place.wrapping_add_signed(step);
                }
            }
        }
    });
    packed
}

/// Columns of a task and how many of them are wanted, a multiple of `unit`: what keeps all threads busy for the shortest
/// time.
fn cut(total: usize, unit: usize, max: usize) -> (usize, usize) {
    let threads = rayon::current_num_threads();
    let min = unit.next_multiple_of(LANES);
    let choices = (min..=max.max(min)).step_by(LANES);
    let cost = |&columns: &usize| {
        let tasks = total.div_ceil(columns / unit * unit);
        tasks.div_ceil(threads) * (columns + TASK_COLUMNS)
    };
    let columns = choices.min_by_key(cost).unwrap_or(min);
    (columns, columns / unit * unit)
}

/// Length of a scratch row: an odd number of cache lines, so that rows do not fall into the same cache sets.
fn row_length(columns: usize) -> usize {
    let lines = columns.div_ceil(LANES);
    (lines + 1 - lines % 2) * LANES
}

dispatch! {
    /// Copies the frames of a channel from `from` on through a leaky ReLU; zero outside of it.
    fn copy(channel: &[f32], from: isize, slope: f32, line: &mut [f32]) = copy_body;
}

#[inline(always)]
fn copy_body<S: Simd>(channel: &[f32], from: isize, slope: f32, line: &mut [f32]) {
    let zeros = usize::try_from(-from).unwrap_or(0).min(line.len());
    let (zero, line) = line.split_at_mut(zeros);
    zero.fill(0.0);
    let channel = channel.get(usize::try_from(from).unwrap_or(0)..).unwrap_or(&[]);
    let count = channel.len().min(line.len());
    let (line, zero) = line.split_at_mut(count);
    line.iter_mut().zip(channel).for_each(|(to, &v)| *to = if v < 0.0 { v * slope } else { v });
    zero.fill(0.0);
}

/// A product of a group of 8 output channels.
struct Panel<'a> {
    /// (inputs, streams, row).
    block: &'a [f32],
    /// Elements of an input's streams, and of one of them.
    plane: usize,
    row: usize,
    terms: &'a [Term],
    /// (inputs, terms, 8).
    weight: &'a [f32],
    columns: usize,
    /// Elements between the sums of one output channel and the next.
    pitch: usize,
    /// Whether the sums go on from what they are.
    resume: bool,
}

dispatch! {
    /// All columns of a product.
    fn tiles(panel: &Panel<'_>, sums: &mut [f32]) = tiles_body;
}

#[inline(always)]
fn tiles_body<S: Simd>(panel: &Panel<'_>, sums: &mut [f32]) {
    let mut column = 0;
    while column < panel.columns {
        // Three registers at a time; four that are left over go in twos.
        let left = (panel.columns - column) / S::N;
        column += S::N
            * match left {
                1 => tile::<S, 1>(panel, column, sums),
                2 | 4 => tile::<S, 2>(panel, column, sums),
                _ => tile::<S, 3>(panel, column, sums),
            };
    }
}

/// 8 output channels by W registers of columns; returns W.
#[inline(always)]
fn tile<S: Simd, const W: usize>(panel: &Panel<'_>, column: usize, sums: &mut [f32]) -> usize {
    let mut acc = [[S::splat(0.0); W]; GROUP];
    if panel.resume {
        for (output, acc) in acc.iter_mut().enumerate() {
            let sums = &sums[output * panel.pitch + column..][..W * S::N];
            *acc = std::array::from_fn(|i| S::load(&sums[i * S::N..]));
        }
    }
    let terms = panel.terms.len();
    for (plane, weight) in panel.block.chunks_exact(panel.plane).zip(panel.weight.chunks_exact(terms * GROUP)) {
        for (term, weight) in panel.terms.iter().zip(weight.chunks_exact(GROUP)) {
            let x = &plane[term.stream * panel.row + term.shift + column..][..W * S::N];
            let x: [S::Lanes; W] = std::array::from_fn(|i| S::load(&x[i * S::N..]));
            for (acc, &w) in acc.iter_mut().zip(weight) {
                let w = S::splat(w);
                for (acc, x) in acc.iter_mut().zip(x) {
                    *acc = S::mul_add(x, w, *acc);
                }
            }
        }
    }
    for (output, acc) in acc.into_iter().enumerate() {
        let sums = &mut sums[output * panel.pitch + column..][..W * S::N];
        for (i, acc) in acc.into_iter().enumerate() {
            S::store(&mut sums[i * S::N..], acc);
        }
    }
    W
}
