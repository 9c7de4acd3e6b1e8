//! depthwise_conv2d: a task computes a row of windows, four of them and four registers of channels at a time (two where there
//! are 16 registers): a weight is loaded once for all four windows, and so many sums hide the latency of a multiply-add. Windows
//! that reach into the padding go one by one.
//! Operations: 2 * B * G^2 * C * taps^2.

use std::ops::Range;

use rayon::prelude::*;

use super::buffer::Buffer;
use super::linear::finish;
use super::simd::{MAX_LANES, Simd, dispatch};
use super::{Activation, Cpu, Tensor};
use crate::backend::depthwise_conv2d::{self, DepthwiseSizes};
use crate::backend::{Conv2dShape, Conv2dWeights, DepthwiseConv2d};
use crate::{Result, trace};

impl DepthwiseConv2d for Cpu {
    fn depthwise_conv2d(
        &self,
        x: &Tensor,
        weights: &Conv2dWeights<Cpu>,
        shape: Conv2dShape,
        activation: Activation,
    ) -> Result<Tensor> {
        let _span = trace::span("depthwise_conv2d");
        let sizes = depthwise_conv2d::check(self, x, weights, shape)?;
        let DepthwiseSizes { channels, grid, .. } = sizes;
        let mut y = Buffer::any(sizes.rows() * channels);
        let map = shape.pixels() * channels;
        y.par_chunks_mut((grid * channels).max(1)).enumerate().for_each(|(index, y)| {
            let row = Row {
                x: &x.data[index / grid * map..][..map],
                weight: &weights.weight.data,
                bias: &weights.bias.data,
                shape,
                channels,
                index: index % grid,
                activation,
            };
            compute(&row, y);
        });
        Ok(Tensor::new(sizes.rows(), channels, y))
    }
}

/// A row of windows.
struct Row<'a> {
    /// The map (side*side, C).
    x: &'a [f32],
    /// (taps*taps, C).
    weight: &'a [f32],
    /// (C).
    bias: &'a [f32],
    shape: Conv2dShape,
    channels: usize,
    /// Its number among the rows of the result.
    index: usize,
    activation: Activation,
}

impl Row<'_> {
    /// Taps of window `number` of a direction that meet the map.
    #[inline(always)]
    fn inside(&self, number: usize) -> Range<usize> {
        let Conv2dShape { side, taps, stride, padding: [before, _] } = self.shape;
        let first = number * stride;
        before.saturating_sub(first).min(taps)..taps.min((side + before).saturating_sub(first))
    }

    /// Pixel of the map under a tap of window `window`, which meets it.
    #[inline(always)]
    fn pixel(&self, window: usize, tap_row: usize, tap: usize) -> usize {
        let Conv2dShape { side, stride, padding: [before, _], .. } = self.shape;
        // The padding is subtracted last, so that nothing is negative.
        (self.index * stride + tap_row - before) * side + window * stride + tap - before
    }
}

dispatch! {
    /// The windows of a row to y (G, C).
    fn compute(row: &Row<'_>, y: &mut [f32]) = compute_body;
}

#[inline(always)]
fn compute_body<S: Simd>(row: &Row<'_>, y: &mut [f32]) {
    let (grid, taps) = (y.len() / row.channels, row.shape.taps);
    let rows = row.inside(row.index);
    let mut window = 0;
    while window < grid {
        let columns = row.inside(window);
        let is_whole = |number: usize| number < grid && row.inside(number) == (0..taps);
        let out = &mut y[window * row.channels..];
        window += match is_whole(window) {
            true if is_whole(window + 3) => windows::<S, 4>(row, window, [rows.clone(), columns], out),
            true if is_whole(window + 1) => windows::<S, 2>(row, window, [rows.clone(), columns], out),
            _ => windows::<S, 1>(row, window, [rows.clone(), columns], out),
        };
    }
    for y in y.chunks_exact_mut(row.channels) {
        finish::<S>(y, &mut [], [&[], row.bias, &[], &[]], row.activation);
    }
}

/// Sums of W neighbouring windows from `first` on, over the taps of these rows and columns; returns W.
#[inline(always)]
fn windows<S: Simd, const W: usize>(
    row: &Row<'_>,
    first: usize,
    [rows, columns]: [Range<usize>; 2],
    y: &mut [f32],
) -> usize {
    let channels = row.channels;
    let whole = channels / S::N * S::N;
    let mut channel = 0;
    while channel < whole {
        let tile = Tile { first, channel, rows: rows.clone(), columns: columns.clone() };
        // Of 32 registers 16 hold sums, of 16 eight.
        channel += S::N
            * match (whole - channel) / S::N {
                1 => tile.sums::<S, W, 1>(row, y),
                4.. if S::N == MAX_LANES => tile.sums::<S, W, 4>(row, y),
                _ => tile.sums::<S, W, 2>(row, y),
            };
    }
    let (taps, step) = (row.shape.taps, row.shape.stride * channels);
    for channel in whole..channels {
        for i in 0..W {
            let mut sum = 0.0;
            for tap_row in rows.clone() {
                for tap in columns.clone() {
                    let weight = row.weight[(tap_row * taps + tap) * channels + channel];
                    let x = row.x[row.pixel(first, tap_row, tap) * channels + i * step + channel];
                    sum = S::mul_add1(x, weight, sum);
                }
            }
            y[i * channels + channel] = sum;
        }
    }
    W
}

/// Some channels of neighbouring windows.
struct Tile {
    /// The first window.
    first: usize,
    /// The first channel.
    channel: usize,
    /// Taps that meet the map.
    rows: Range<usize>,
    columns: Range<usize>,
}

impl Tile {
    /// Sums of W windows and C registers of channels; returns C.
    #[inline(always)]
    fn sums<S: Simd, const W: usize, const C: usize>(&self, row: &Row<'_>, y: &mut [f32]) -> usize {
        let Tile { first, channel, .. } = *self;
        let (channels, step) = (row.channels, row.shape.stride * row.channels);
        let mut sums = [[S::splat(0.0); C]; W];
        for tap_row in self.rows.clone() {
            for tap in self.columns.clone() {
                let weight = &row.weight[(tap_row * row.shape.taps + tap) * channels + channel..][..C * S::N];
                let x = &row.x[row.pixel(first, tap_row, tap) * channels + channel..][..(W - 1) * step + C * S::N];
                for c in 0..C {
                    let weight = S::load(&weight[c * S::N..]);
                    for (i, sums) in sums.iter_mut().enumerate() {
                        let at = i * step + c * S::N;
                        // SAFETY: `x` was cut to end with the last register of the last window.
                        let x = S::load(unsafe { x.get_unchecked(at..at + S::N) });
                        sums[c] = S::mul_add(x, weight, sums[c]);
                    }
                }
            }
        }
        for (i, sums) in sums.into_iter().enumerate() {
            let y = &mut y[i * channels + channel..][..C * S::N];
            for (c, sum) in sums.into_iter().enumerate() {
                S::store(&mut y[c * S::N..], sum);
            }
        }
        C
    }
}
