//! conv_transpose1d: transposed convolution over time, x (C in, S) to y (C out, S * stride), leaky ReLU before, bias
//! after.
//!
//! Output sample s * stride + phase - padding is an ordinary convolution of x with every stride-th tap: one product of
//! `conv` for each phase, whose results are interleaved. Operations counted: 2 * C in * C out * taps * S.

use super::buffer::Buffer;
use super::conv::{ConvWeights, Convolution, Form};
use super::disjoint::Disjoint;
use super::{Cpu, Tensor};
use crate::backend::{ConvTranspose1d, conv_transpose1d};
use crate::tensor::HostTensor;
use crate::{Result, trace};

/// Packs the weights (C in, C out, taps) of a transposed convolution.
pub(super) fn pack(weight: &HostTensor, bias: &HostTensor, stride: usize) -> Result<ConvWeights> {
    let [inputs, outputs, taps] = conv_transpose1d::check_weights(weight, bias, stride)?;
    // Phase p has the taps p, p + stride, ...; the last of them meets the oldest frame.
    let phases: Vec<usize> = (0..stride).map(|phase| (taps - phase).div_ceil(stride)).collect();
    let first = |phase: usize, output: usize, input: usize| {
        (input * outputs + output) * taps + phase + (phases[phase] - 1) * stride
    };
    let form = Form::Transposed(stride);
    let bias = bias.to_f32().into_owned();
    Ok(ConvWeights::pack(form, [outputs, inputs, taps], &phases, weight, (first, -(stride as isize)), bias))
}

impl ConvTranspose1d for Cpu {
    fn conv_transpose1d(&self, x: &Tensor, weights: &ConvWeights, slope: f32) -> Result<Tensor> {
        let _span = trace::span("conv_transpose1d");
        let stride = conv_transpose1d::check(self, x, weights)?;
        Ok(interleaved(x, weights, stride, slope))
    }
}

fn interleaved(x: &Tensor, kernel: &ConvWeights, stride: usize, slope: f32) -> Tensor {
    let (outputs, samples) = (kernel.outputs, x.columns * stride);
    let padding = (kernel.taps - stride) / 2;
    let mut y = Buffer::any(outputs * samples);
    if y.is_empty() {
        return Tensor::new(outputs, samples, y);
    }
    let out = Disjoint::new(&mut y);
    // Frame f of the ordinary convolution makes samples f * stride - padding and the stride - 1 after it.
    let (frames, from) = ((samples + padding).div_ceil(stride), 1 - kernel.taps.div_ceil(stride) as isize);
    let convolution = Convolution::new(kernel, x, frames, from, slope, 1);
    let (size, columns, per_task) =
        (convolution.sums_per_output(), convolution.columns(), convolution.frames_per_task());
    convolution.each(|task, sums, _| {
        let first = (task * per_task * stride).saturating_sub(padding);
        let last = ((task + 1) * per_task * stride).saturating_sub(padding).min(samples);
        if first >= last {
            return;
        }
        for (channel, sums) in sums.chunks_exact(size).take(outputs).enumerate() {
            // SAFETY: samples `first..last` of each channel are this task's own.
            let y = unsafe { out.slice(channel * samples + first, last - first) };
            for (phase, sums) in sums.chunks_exact(columns).enumerate() {
                // The first sample of this phase, and the frame it comes from.
                let skipped = (phase + stride - (first + padding) % stride) % stride;
                let frame = (first + skipped + padding) / stride - task * per_task;
                let sums = sums.get(frame..).unwrap_or(&[]);
                for (y, sum) in y.iter_mut().skip(skipped).step_by(stride).zip(sums) {
                    *y = sum + kernel.bias[channel];
                }
            }
        }
    });
    Tensor::new(outputs, samples, y)
}
