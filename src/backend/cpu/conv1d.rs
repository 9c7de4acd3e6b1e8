//! conv1d: convolution over time, x (C in, S) to y (C out, S), with leaky ReLU before and bias, residual, activation
//! and a running sum after it.
//!
//! A direct convolution. Each task owns a block of frames: it copies the block of x with its margins into contiguous
//! scratch, applying the leaky ReLU and the zero padding on the way, then walks over groups of 8 output channels with
//! an 8 x 3-register tile of sums, weights broadcast from a layout (group, C in, tap, 8). The order of additions of a
//! sample depends on nothing but the kernel, so results do not depend on how time is cut.
//! Operations: 2 * C out * C in * taps * S.

use rayon::prelude::*;

use super::buffer::Buffer;
use super::disjoint::Disjoint;
use super::simd::{self, Simd, dispatch};
use super::{Cpu, Tensor, ensure};
use crate::Result;
use crate::backend::{ConvActivation, ConvEpilogue};
use crate::tensor::HostTensor;

/// Output channels of a register tile.
pub(super) const GROUP: usize = 8;
/// Registers of frames in a tile.
const WIDE: usize = 3;
/// Frames of the widest tile: 3 registers of 16 lanes.
const TILE: usize = 48;
/// Frames of a task's block: 256 input channels of it and its margins fit half an L2.
const BLOCK: usize = 4 * TILE;

/// Packed weights of a convolution.
pub struct Kernel {
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) taps: usize,
    /// 1 for an ordinary convolution; the stride of a transposed one, whose packed outputs are (C out, stride).
    pub(super) stride: usize,
    /// Taps of the transposed convolution that was packed; 0 for an ordinary one.
    pub(super) transposed_taps: usize,
    /// (outputs / 8, inputs, taps, 8), zero beyond the outputs.
    weight: Vec<f32>,
    pub(super) bias: Vec<f32>,
}

impl Kernel {
    /// Packs `weight(output, input, tap)`.
    pub(super) fn pack(
        [outputs, inputs, taps]: [usize; 3],
        bias: Vec<f32>,
        weight: impl Fn(usize, usize, usize) -> f32,
    ) -> Kernel {
        let groups = outputs.div_ceil(GROUP);
        let mut packed = Vec::with_capacity(groups * inputs * taps * GROUP);
        for group in 0..groups {
            for input in 0..inputs {
                for tap in 0..taps {
                    packed.extend(
                        (group * GROUP..(group + 1) * GROUP)
                            .map(|output| if output < outputs { weight(output, input, tap) } else { 0.0 }),
                    );
                }
            }
        }
        Kernel { inputs, outputs, taps, stride: 1, transposed_taps: 0, weight: packed, bias }
    }

    /// Sums of all output channels over a block, (outputs rounded up to 8, row) in `sums`; `block` is (inputs, row) with
    /// (taps - 1) * dilation more frames than are wanted, and `row` a multiple of [`TILE`] plus those.
    pub(super) fn run(&self, block: &[f32], row: usize, dilation: usize, frames: usize, sums: &mut [f32]) {
        for (group, sums) in sums.chunks_exact_mut(GROUP * frames).take(self.outputs.div_ceil(GROUP)).enumerate() {
            let size = self.inputs * self.taps * GROUP;
            let weight = &self.weight[group * size..(group + 1) * size];
            group_of_channels(block, row, weight, self.taps, dilation, frames, sums);
        }
    }
}

/// Packs the weights (C out, C in, taps) of a convolution.
pub(super) fn pack(weight: &HostTensor, bias: &HostTensor) -> Result<Kernel> {
    let &[outputs, inputs, taps] = weight.shape() else {
        return Err(crate::Error::shape("conv1d", format!("weights of shape {:?}", weight.shape())));
    };
    ensure(bias.shape() == [outputs] && taps % 2 == 1, "conv1d", || {
        format!("weight {:?} (odd taps), bias {:?}", weight.shape(), bias.shape())
    })?;
    let values = weight.to_f32();
    let at = |output: usize, input: usize, tap: usize| values[(output * inputs + input) * taps + tap];
    Ok(Kernel::pack([outputs, inputs, taps], bias.to_f32().into_owned(), at))
}

/// How the frames of a result are cut into tasks: frames per task, a multiple of [`TILE`], and their number.
pub(super) fn cut(frames: usize) -> (usize, usize) {
    let threads = rayon::current_num_threads();
    let tasks = threads * frames.div_ceil(threads * BLOCK).max(1);
    let per_task = frames.div_ceil(tasks).next_multiple_of(TILE);
    (per_task, frames.div_ceil(per_task))
}

/// Copies frames `first - before..` of every channel of x, `row` of them, through a leaky ReLU; zero outside x.
pub(super) fn gather(x: &Tensor, first: usize, before: usize, row: usize, slope: f32, block: &mut Vec<f32>) {
    block.clear();
    for channel in x.data.chunks_exact(x.columns) {
        let start = first.saturating_sub(before);
        let zeros = before.saturating_sub(first).min(row);
        let end = (first + row).saturating_sub(before).min(x.columns).max(start);
        block.resize(block.len() + zeros, 0.0);
        block.extend(channel[start.min(x.columns)..end].iter().map(|&v| if v < 0.0 { v * slope } else { v }));
        block.resize(block.len().next_multiple_of(row), 0.0);
    }
}

/// See [`crate::backend::Backend::conv1d`].
pub fn conv1d(x: &Tensor, kernel: &Kernel, dilation: usize, epilogue: ConvEpilogue<'_, Cpu>) -> Result<Tensor> {
    let (frames, outputs) = (x.columns, kernel.outputs);
    let fits = |t: Option<&Tensor>| t.is_none_or(|t| (t.rows, t.columns) == (outputs, frames));
    ensure(
        x.rows == kernel.inputs && kernel.stride == 1 && dilation > 0 && fits(epilogue.residual) && fits(epilogue.sum),
        "conv1d",
        || format!("x ({}, {frames}), weight ({outputs}, {}, {})", x.rows, kernel.inputs, kernel.taps),
    )?;
    let mut y = Buffer::any(outputs * frames);
    if y.is_empty() {
        return Ok(Tensor::new(outputs, frames, y));
    }
    let out = Disjoint::new(&mut y);
    let reach = (kernel.taps - 1) * dilation;
    let (per_task, tasks) = cut(frames);
    (0..tasks).into_par_iter().for_each_init(
        || (Vec::new(), vec![0.0; outputs.next_multiple_of(GROUP) * per_task]),
        |(block, sums), task| {
            let first = task * per_task;
            let row = row_length(per_task + reach);
            gather(x, first, reach / 2, row, epilogue.slope, block);
            kernel.run(block, row, dilation, per_task, sums);
            let count = per_task.min(frames - first);
            for (channel, sums) in sums.chunks_exact(per_task).take(outputs).enumerate() {
                let at = channel * frames + first;
                // SAFETY: frames `first..first + count` of each channel are this task's own.
                let y = unsafe { out.slice(at, count) };
                let residual = epilogue.residual.map_or(&[][..], |t| &t.data[at..at + count]);
                let sum = epilogue.sum.map_or(&[][..], |t| &t.data[at..at + count]);
                finish(y, sums, kernel.bias[channel], residual, epilogue.activation, sum, epilogue.scale);
            }
        },
    );
    Ok(Tensor::new(outputs, frames, y))
}

/// Length of a scratch row: an odd number of cache lines, so that rows do not fall into the same cache sets.
pub(super) fn row_length(frames: usize) -> usize {
    let lines = frames.div_ceil(16);
    (lines + 1 - lines % 2) * 16
}

dispatch! {
    /// The epilogue on one channel; empty slices stand for nothing to add.
    fn finish(
        y: &mut [f32], sums: &[f32], bias: f32, residual: &[f32], activation: ConvActivation, sum: &[f32], scale: f32,
    ) = finish_body;
}

#[inline(always)]
fn finish_body<S: Simd>(
    y: &mut [f32],
    sums: &[f32],
    bias: f32,
    residual: &[f32],
    activation: ConvActivation,
    sum: &[f32],
    scale: f32,
) {
    y.iter_mut().zip(sums).for_each(|(y, s)| *y = s + bias);
    y.iter_mut().zip(residual).for_each(|(y, r)| *y += r);
    match activation {
        ConvActivation::None => {}
        ConvActivation::Relu => y.iter_mut().for_each(|y| *y = if *y < 0.0 { 0.0 } else { *y }),
        ConvActivation::Tanh => y.iter_mut().for_each(|y| *y = simd::tanh::<S>(*y)),
    }
    y.iter_mut().zip(sum).for_each(|(y, s)| *y += s);
    if scale != 1.0 {
        y.iter_mut().for_each(|y| *y *= scale);
    }
}

dispatch! {
    /// Sums of 8 output channels, (8, frames), over a block (inputs, row).
    fn group_of_channels(
        block: &[f32], row: usize, weight: &[f32], taps: usize, dilation: usize, frames: usize, sums: &mut [f32],
    ) = group_of_channels_body;
}

#[inline(always)]
fn group_of_channels_body<S: Simd>(
    block: &[f32],
    row: usize,
    weight: &[f32],
    taps: usize,
    dilation: usize,
    frames: usize,
    sums: &mut [f32],
) {
    for frame in (0..frames).step_by(WIDE * S::N) {
        let mut acc = [[S::splat(0.0); WIDE]; GROUP];
        for (x, weight) in block.chunks_exact(row).zip(weight.chunks_exact(taps * GROUP)) {
            for (tap, weight) in weight.chunks_exact(GROUP).enumerate() {
                let x = &x[frame + tap * dilation..][..WIDE * S::N];
                let x: [S::Lanes; WIDE] = std::array::from_fn(|i| S::load(&x[i * S::N..]));
                for (acc, &w) in acc.iter_mut().zip(weight) {
                    let w = S::splat(w);
                    for (acc, x) in acc.iter_mut().zip(x) {
                        *acc = S::mul_add(x, w, *acc);
                    }
                }
            }
        }
        for (acc, sums) in acc.into_iter().zip(sums.chunks_exact_mut(frames)) {
            for (i, acc) in acc.into_iter().enumerate() {
                S::store(&mut sums[frame + i * S::N..], acc);
            }
        }
    }
}
