//! frame_conv: y = act(conv(x) + bias) + residual over frames x (T, C), one a row, with stride, zero padding and groups.
//!
//! Without padding and groups the left-hand matrix is x itself: row m begins `stride` frames after the row before, and the
//! next row's values follow in place. Otherwise each group's channels are copied, with their padding, to such a sequence of
//! their own. Operations: 2 * windows * N * K.

use super::buffer::{Buffer, for_each_task};
use super::disjoint::Disjoint;
use super::gemm::{self, Left, Panel, Right, Target};
use super::linear::Element;
use super::{Activation, Cpu, Elements, Tensor};
use crate::backend::frame_conv::{self, FrameConvShape, FrameConvSizes};
use crate::backend::{FrameConv, LinearWeights, Sequences};
use crate::{Error, Result, trace};

/// Windows of a task: so many that packing their weights costs little, and so few that a layer has tasks for all threads.
const BLOCK: usize = 1024;

impl FrameConv for Cpu {
    fn frame_conv(
        &self,
        x: &Tensor,
        layer: &LinearWeights<Cpu>,
        shape: FrameConvShape,
        activation: Activation,
        residual: Option<&Tensor>,
        sequences: Option<&Sequences>,
    ) -> Result<Tensor> {
        let _span = trace::span("frame_conv");
        let sizes = frame_conv::check(self, x, layer, shape, residual, sequences)?;
        let (len, whole) = (sizes.rows * sizes.outputs, Sequences::one(x.rows));
        let mut y = if sequences.is_none() { Buffer::any(len) } else { Buffer::zeros(len) };
        let target = Disjoint::new(&mut y);
        for frames in sequences.unwrap_or(&whole).parts() {
            let rows = shape.windows(frames.len());
            // A sequence's windows begin where its frames do.
            let (from, to) = (frames.start * x.columns, frames.start * sizes.outputs);
            if rows * sizes.outputs == 0 || frames.is_empty() && sequences.is_some() {
                continue;
            }
            let frames = Frames { values: &x.data[from..frames.end * x.columns], channels: x.columns };
            let (sizes, residual) = (FrameConvSizes { rows, ..sizes }, residual.map_or(&[][..], |r| &r.data[to..]));
            let out = Out { y: target.offset(to), residual, activation };
            match layer.weight.elements()? {
                Elements::F32(weight) => convolve(frames, weight, &layer.bias.data, shape, sizes, out),
                Elements::Bf16(weight) => convolve(frames, weight, &layer.bias.data, shape, sizes, out),
                Elements::Int8(_) => return Err(Error::shape("frame_conv", "weights must be f32 or bf16")),
            }
        }
        layer.weight.release_after_first_use();
        Ok(Tensor::new(sizes.rows, sizes.outputs, y))
    }
}

/// Frames (T, C).
#[derive(Clone, Copy)]
struct Frames<'a> {
    values: &'a [f32],
    channels: usize,
}

/// The result (windows, N), and what is done to its sums.
#[derive(Clone, Copy)]
struct Out<'a> {
    y: Disjoint,
    residual: &'a [f32],
    activation: Activation,
}

impl<'a> Out<'a> {
    /// Columns of one group, from `first` on, of the rows that begin at element `start`.
    fn part(&self, start: usize, first: usize, columns: usize, outputs: usize, bias: &'a [f32]) -> Target<'a> {
        let at = start + first;
        let plain = Target::plain(self.y.offset(at), outputs, columns);
        let residual = if self.residual.is_empty() { self.residual } else { &self.residual[at..] };
        Target { bias: &bias[first..first + columns], residual, activation: self.activation, ..plain }
    }
}

fn convolve<'a, E: Element + Sync>(
    x: Frames<'a>,
    weight: &'a [E],
    bias: &'a [f32],
    shape: FrameConvShape,
    FrameConvSizes { rows, outputs, depth }: FrameConvSizes,
    out: Out<'a>,
) where
    Right<'a, E>: Panel,
{
    let FrameConvShape { stride, padding, groups, .. } = shape;
    let (channels, columns) = (x.channels / groups, outputs / groups);
    if groups == 1 && padding == [0, 0] {
        let row_stride = stride * channels;
        let right = Right { values: weight, depth_stride: 1, column_stride: depth };
        let panels = outputs.div_ceil(gemm::COLUMNS);
        for_each_task(rows.div_ceil(BLOCK) * panels, |task, [scratch, _]| {
            let (row, column) = (task / panels * BLOCK, task % panels * gemm::COLUMNS);
            let left = Left { values: &x.values[row * row_stride..], row_stride, rows: BLOCK.min(rows - row), depth };
            let target = out.part(row * outputs, 0, outputs, outputs, bias);
            // SAFETY: the result has `rows` rows of `outputs` elements and is borrowed for the whole call; each task writes
            // its own block.
            unsafe { gemm::panel(left, right, target, column, gemm::COLUMNS.min(outputs - column), scratch) };
        });
        return;
    }
    for_each_task(groups, |group, [frames, scratch]| {
        frames.clear();
        frames.resize(padding[0] * channels, 0.0);
        for frame in x.values.chunks_exact(x.channels) {
            frames.extend_from_slice(&frame[group * channels..][..channels]);
        }
        frames.resize(frames.len() + padding[1] * channels, 0.0);
        let left = Left { values: frames, row_stride: stride * channels, rows, depth };
        let weight = &weight[group * columns * depth..][..columns * depth];
        let right = Right { values: weight, depth_stride: 1, column_stride: depth };
        let target = out.part(0, group * columns, columns, outputs, bias);
        // SAFETY: as above; each task writes the columns of its own group.
        unsafe { gemm::serial(left, right, target, scratch) };
    });
}
