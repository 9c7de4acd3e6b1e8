//! conv1d: some columns of the convolution over time of x (C in, S), with leaky ReLU before and bias, residual, activation
//! and a running sum after it.
//!
//! Each task owns a block of frames: it copies the block of x with its margins into contiguous scratch, applying the
//! leaky ReLU and the zero padding on the way, and multiplies it as `conv` says, in Winograd's form where that is
//! worth it. Operations: 2 * C out * C in * taps * columns, those that the direct form would take.

use std::ops::Range;

use super::buffer::Buffer;
use super::conv::{ConvWeights, Convolution, Form};
use super::disjoint::Disjoint;
use super::simd::{self, Simd, dispatch};
use super::{Cpu, Tensor, winograd};
use crate::backend::{Conv1d, ConvActivation, ConvEpilogue, conv1d};
use crate::tensor::HostTensor;
use crate::{Result, trace};

/// Fewest channels, in and out, with which Winograd's form saves more than taking x apart costs.
const WINOGRAD_FROM: usize = 32;

/// Packs the weights (C out, C in, taps) of a convolution.
pub(super) fn pack(weight: &HostTensor, bias: &HostTensor) -> Result<ConvWeights> {
    let [outputs, inputs, taps] = conv1d::check_weights(weight, bias)?;
    let worth = inputs.min(outputs) >= WINOGRAD_FROM && winograd::fits(taps);
    let form = if worth { Form::Winograd } else { Form::Direct };
    let first = |_, output: usize, input: usize| (output * inputs + input) * taps;
    let bias = bias.to_f32().into_owned();
    Ok(ConvWeights::pack(form, [outputs, inputs, taps], &[taps], weight, (first, 1), bias))
}

impl Conv1d for Cpu {
    /// In Winograd's form, groups of four outputs are computed together, a dilation apart, counted from the first column.
    fn conv1d_support(outputs: Range<usize>, taps: usize, dilation: usize) -> Range<usize> {
        let group = winograd::FRAMES * dilation;
        let whole = outputs.start / group * group..outputs.end.next_multiple_of(group);
        conv1d::direct_support(whole, taps, dilation)
    }

    fn conv1d(
        &self,
        x: &Tensor,
        weights: &ConvWeights,
        dilation: usize,
        columns: Range<usize>,
        epilogue: ConvEpilogue<'_, Cpu>,
    ) -> Result<Tensor> {
        let _span = trace::span("conv1d");
        conv1d::check(self, x, weights, dilation, &columns, &epilogue)?;
        Ok(convolved(x, weights, dilation, columns, epilogue))
    }
}

fn convolved(
    x: &Tensor,
    kernel: &ConvWeights,
    dilation: usize,
    columns: Range<usize>,
    epilogue: ConvEpilogue<'_, Cpu>,
) -> Tensor {
    let (form, outputs) = (kernel.form, kernel.outputs);
    let frames = columns.len();
    let mut y = Buffer::any(outputs * frames);
    if y.is_empty() {
        return Tensor::new(outputs, frames, y);
    }
    let out = Disjoint::new(&mut y);
    // A column's first tap; the margin may begin before x.
    let from = columns.start as isize - ((kernel.taps - 1) / 2 * dilation) as isize;
    let convolution = Convolution::new(kernel, x, frames, from, epilogue.slope, dilation);
    let size = convolution.sums_per_output();
    convolution.each(|task, sums, line| {
        let first = task * convolution.frames_per_task();
        let count = convolution.frames_per_task().min(frames - first);
        for (channel, sums) in sums.chunks_exact_mut(size).take(outputs).enumerate() {
            let at = channel * frames + first;
            // SAFETY: frames `first..first + count` of each channel are this task's own.
            let y = unsafe { out.slice(at, count) };
            let residual =
                epilogue.residual.map_or(&[][..], |(t, from)| &t.data[channel * t.columns + from + first..][..count]);
            let sum = epilogue.sum.map_or(&[][..], |t| &t.data[at..][..count]);
            let sums = if form == Form::Winograd {
                winograd::frames(sums, convolution.columns(), dilation, line);
                &*line
            } else {
                sums
            };
            finish(y, sums, kernel.bias[channel], residual, epilogue.activation, sum, epilogue.scale);
        }
    });
    Tensor::new(outputs, frames, y)
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
