//! conv_transpose1d: transposed convolution over time, x (C in, S) to y (C out, S * stride), leaky ReLU before, bias
//! after.
//!
//! Output sample s * stride + phase - padding is an ordinary convolution of x with every stride-th tap, so the weights
//! are packed as a convolution with C out * stride outputs and ceil(taps / stride) taps, and its results are
//! interleaved. Operations counted: 2 * C in * C out * taps * S.

use rayon::prelude::*;

use super::buffer::Buffer;
use super::conv1d::{self, GROUP, Kernel};
use super::disjoint::Disjoint;
use super::{Tensor, ensure};
use crate::Result;
use crate::tensor::HostTensor;

/// Packs the weights (C in, C out, taps) of a transposed convolution.
pub(super) fn pack(weight: &HostTensor, bias: &HostTensor, stride: usize) -> Result<Kernel> {
    let &[inputs, outputs, taps] = weight.shape() else {
        return Err(crate::Error::shape("conv_transpose1d", format!("weights of shape {:?}", weight.shape())));
    };
    ensure(
        bias.shape() == [outputs] && stride > 0 && taps >= stride && (taps - stride).is_multiple_of(2),
        "conv_transpose1d",
        || format!("weight {:?}, bias {:?}, stride {stride}", weight.shape(), bias.shape()),
    )?;
    let values = weight.to_f32();
    let phase_taps = taps.div_ceil(stride);
    let at = |row: usize, input: usize, tap: usize| {
        let (output, phase) = (row / stride, row % stride);
        // Tap 0 of the packed kernel meets the oldest frame.
        let tap = phase + (phase_taps - 1 - tap) * stride;
        if tap < taps { values[(input * outputs + output) * taps + tap] } else { 0.0 }
    };
    let mut kernel = Kernel::pack([outputs * stride, inputs, phase_taps], bias.to_f32().into_owned(), at);
    kernel.stride = stride;
    kernel.transposed_taps = taps;
    Ok(kernel)
}

/// See [`crate::backend::Backend::conv_transpose1d`].
pub fn conv_transpose1d(x: &Tensor, kernel: &Kernel, slope: f32) -> Result<Tensor> {
    let stride = kernel.stride;
    ensure(x.rows == kernel.inputs && kernel.transposed_taps > 0, "conv_transpose1d", || {
        format!("x ({}, {}), a kernel of {} inputs", x.rows, x.columns, kernel.inputs)
    })?;
    let (outputs, samples) = (kernel.outputs / stride, x.columns * stride);
    let padding = (kernel.transposed_taps - stride) / 2;
    let mut y = Buffer::any(outputs * samples);
    if y.is_empty() {
        return Ok(Tensor::new(outputs, samples, y));
    }
    let out = Disjoint::new(&mut y);
    let reach = kernel.taps - 1;
    // Frame f of the ordinary convolution makes samples f * stride - padding and the stride - 1 after it.
    let (per_task, tasks) = conv1d::cut((samples + padding).div_ceil(stride));
    (0..tasks).into_par_iter().for_each_init(
        || (Vec::new(), vec![0.0; kernel.outputs.next_multiple_of(GROUP) * per_task]),
        |(block, sums), task| {
            let row = conv1d::row_length(per_task + reach);
            conv1d::gather(x, task * per_task, reach, row, slope, block);
            kernel.run(block, row, 1, per_task, sums);
            let first = (task * per_task * stride).saturating_sub(padding);
            let last = ((task + 1) * per_task * stride).saturating_sub(padding).min(samples);
            for (channel, sums) in sums.chunks_exact(stride * per_task).take(outputs).enumerate() {
                if first >= last {
                    break;
                }
                // SAFETY: samples `first..last` of each channel are this task's own.
                let y = unsafe { out.slice(channel * samples + first, last - first) };
                for (phase, sums) in sums.chunks_exact(per_task).enumerate() {
                    // The first sample of this phase, and the frame it comes from.
                    let skipped = (phase + stride - (first + padding) % stride) % stride;
                    let frame = (first + skipped + padding) / stride - task * per_task;
                    let sums = sums.get(frame..).unwrap_or(&[]);
                    for (y, sum) in y.iter_mut().skip(skipped).step_by(stride).zip(sums) {
                        *y = sum + kernel.bias[channel];
                    }
                }
            }
        },
    );
    Ok(Tensor::new(outputs, samples, y))
}
