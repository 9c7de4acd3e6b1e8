//! frame_conv: y = act(conv(x) + bias) + residual over frames x (T, C), one a row, with stride, zero padding and groups.
//!
//! Without padding and groups the left-hand matrix is x itself: row m begins `stride` frames after the row before, and the
//! next row's values follow in place. Three taps with stride 2 have a form with fewer multiplications, [`paired`]. Otherwise
//! each group's channels are copied, with their padding, to such a sequence of their own. Where a task makes whole rows, a norm
//! follows while they are in its cache. Operations: 2 * windows * N * K.

mod paired;

use rayon::prelude::*;

use super::buffer::{Buffer, for_each_task};
use super::disjoint::Disjoint;
use super::gemm::{self, Left, Panel, Right, Target};
use super::layer_norm::normalise_and_activate;
use super::linear::Element;
use super::{Activation, Cpu, Elements, Tensor};
use crate::backend::frame_conv::{self, FrameConvShape, FrameConvSizes};
use crate::backend::{FrameConv, LayerNormWeights, LinearWeights, Sequences, layer_norm};
use crate::{Error, Result, trace};

/// Windows of a task: so many that packing their weights costs little, and so few that a layer has tasks for all threads.
const BLOCK: usize = 1024;
/// Weights that are packed for each task, so that it makes whole rows, [`ROWS`] of them: those of the first convolution, of a
/// single channel.
const FEW_WEIGHTS: usize = 1 << 13;
const ROWS: usize = 128;

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
            convolve(frames, layer, shape, sizes, Out { y: target.offset(to), residual, activation, norm: None })?;
        }
        layer.weight.release_after_first_use();
        Ok(Tensor::new(sizes.rows, sizes.outputs, y))
    }

    fn frame_conv_normed(
        &self,
        x: &Tensor,
        layer: &LinearWeights<Cpu>,
        shape: FrameConvShape,
        norm: &LayerNormWeights<Cpu>,
    ) -> Result<Tensor> {
        let _span = trace::span("frame_conv");
        let sizes = frame_conv::check(self, x, layer, shape, None, None)?;
        layer_norm::check(self, &Tensor::new(0, sizes.outputs, Buffer::any(0)), norm)?;
        let mut y = Buffer::any(sizes.rows * sizes.outputs);
        if !y.is_empty() {
            let frames = Frames { values: &x.data, channels: x.columns };
            let (y, norm) = (Disjoint::new(&mut y), Some(norm));
            convolve(frames, layer, shape, sizes, Out { y, residual: &[], activation: Activation::None, norm })?;
        }
        layer.weight.release_after_first_use();
        Ok(Tensor::new(sizes.rows, sizes.outputs, y))
    }

    fn frame_conv_group(shape: FrameConvShape) -> usize {
        if paired::fits(shape) { paired::WINDOWS } else { 1 }
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
    /// A layer norm of each row, with GELU.
    norm: Option<&'a LayerNormWeights<Cpu>>,
}

impl<'a> Out<'a> {
    /// Columns of one group, from `first` on, of the rows that begin at element `start`.
    fn part(&self, start: usize, first: usize, columns: usize, outputs: usize, bias: &'a [f32]) -> Target<'a> {
        let at = start + first;
        let plain = Target::plain(self.y.offset(at), outputs, columns);
        let residual = if self.residual.is_empty() { self.residual } else { &self.residual[at..] };
        Target { bias: &bias[first..first + columns], residual, activation: self.activation, ..plain }
    }

    /// The norm of rows whose sums are there; they belong to this call alone.
    fn normalise(&self, first: usize, rows: usize, outputs: usize) {
        let Some(norm) = self.norm else { return };
        // SAFETY: rows of the result that no other task has, by the promise of the caller.
        let y = unsafe { self.y.slice(first * outputs, rows * outputs) };
        normalise_and_activate(y, &norm.weight.data, &norm.bias.data, norm.eps);
    }
}

/// The convolution in the form that is the fastest; there are windows and outputs.
fn convolve(
    x: Frames<'_>,
    layer: &LinearWeights<Cpu>,
    shape: FrameConvShape,
    sizes: FrameConvSizes,
    out: Out<'_>,
) -> Result<()> {
    let (weight, bias) = (layer.weight.elements()?, &layer.bias.data[..]);
    match weight {
        Elements::Int8(_) => return Err(Error::shape("frame_conv", "weights must be f32 or bf16")),
        _ if paired::fits(shape) && paired::pays(x.channels, sizes.outputs) => {
            paired::convolve(x, weight, bias, sizes, out);
        }
        Elements::F32(weight) => direct(x, weight, bias, shape, sizes, out),
        Elements::Bf16(weight) => direct(x, weight, bias, shape, sizes, out),
    }
    Ok(())
}

fn direct<'a, E: Element + Sync>(
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
        let whole_rows = outputs * depth <= FEW_WEIGHTS;
        let (block, columns) = if whole_rows { (ROWS, outputs) } else { (BLOCK, gemm::COLUMNS) };
        let panels = outputs.div_ceil(columns);
        for_each_task(rows.div_ceil(block) * panels, |task, [scratch, _]| {
            let (row, column) = (task / panels * block, task % panels * columns);
            let left = Left { values: &x.values[row * row_stride..], row_stride, rows: block.min(rows - row), depth };
            let target = out.part(row * outputs, 0, outputs, outputs, bias);
            // SAFETY: the result has `rows` rows of `outputs` elements and is borrowed for the whole call; each task writes
            // its own block.
            unsafe { gemm::panel(left, right, target, column, columns.min(outputs - column), scratch) };
            if whole_rows {
                out.normalise(row, left.rows, outputs);
            }
        });
        if !whole_rows {
            normalise_all(rows, outputs, out);
        }
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
    normalise_all(rows, outputs, out);
}

/// The norm of a result that is there as a whole.
fn normalise_all(rows: usize, outputs: usize, out: Out<'_>) {
    if out.norm.is_some() {
        let blocks = rows.div_ceil(ROWS);
        (0..blocks).into_par_iter().for_each(|n| out.normalise(n * ROWS, ROWS.min(rows - n * ROWS), outputs));
    }
}
