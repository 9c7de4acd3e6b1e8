//! depthwise_conv2d: a task computes a row of windows, four of them and a register of channels at a time, so that a weight is
//! loaded once for all four. Windows that reach into the padding go one by one.
//! Operations: 2 * B * G^2 * C * taps^2.

use std::ops::Range;

use rayon::prelude::*;

use super::buffer::Buffer;
use super::linear::finish;
use super::simd::{Simd, dispatch};
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
    let Conv2dShape { side, taps, stride, padding: [before, _] } = row.shape;
    let (channels, step) = (row.channels, stride * row.channels);
    // Offset of a tap in the map, in pixels; the padding is subtracted once, so that nothing is negative.
    let pixel =
        |tap_row: usize, tap: usize| (row.index * stride + tap_row - before) * side + first * stride + tap - before;
    let whole = channels / S::N * S::N;
    for channel in (0..whole).step_by(S::N) {
        let mut sums = [S::splat(0.0); W];
        for tap_row in rows.clone() {
            for tap in columns.clone() {
                let weight = S::load(&row.weight[(tap_row * taps + tap) * channels + channel..][..S::N]);
                let x = &row.x[pixel(tap_row, tap) * channels + channel..];
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum = S::mul_add(S::load(&x[i * step..i * step + S::N]), weight, *sum);
                }
            }
        }
        for (i, sum) in sums.into_iter().enumerate() {
            S::store(&mut y[i * channels + channel..][..S::N], sum);
        }
    }
    for channel in whole..channels {
        for i in 0..W {
            let mut sum = 0.0;
            for tap_row in rows.clone() {
                for tap in columns.clone() {
                    let weight = row.weight[(tap_row * taps + tap) * channels + channel];
                    sum = S::mul_add1(row.x[pixel(tap_row, tap) * channels + i * step + channel], weight, sum);
                }
            }
            y[i * channels + channel] = sum;
        }
    }
    W
}
