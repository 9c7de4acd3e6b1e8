//! conv2d: windows of an image are gathered into rows (channel, row, column), a few lines of them at a time, and multiplied with
//! the weights.
//! Operations: 2 * B * G^2 * C * I * taps^2.

use super::buffer::{Buffer, for_each_task, grown};
use super::disjoint::Disjoint;
use super::gemm::{self, Left, Right, Target};
use super::{Activation, Cpu, Tensor};
use crate::backend::conv2d::{self, Conv2dSizes};
use crate::backend::{Conv2d, Conv2dShape, Conv2dWeights};
use crate::{Result, trace};

/// Lines of windows that a task gathers and multiplies, so that they stay in the L2.
const LINES: usize = 4;

impl Conv2d for Cpu {
    fn conv2d(
        &self,
        images: &Tensor,
        weights: &Conv2dWeights<Cpu>,
        shape: Conv2dShape,
        activation: Activation,
    ) -> Result<Tensor> {
        let _span = trace::span("conv2d");
        let sizes = conv2d::check(self, images, weights, shape)?;
        let Conv2dSizes { batch, inputs, outputs, grid } = sizes;
        let (blocks, depth) = (grid.div_ceil(LINES), inputs * shape.window());
        let mut y = Buffer::any(sizes.rows() * outputs);
        let out = Disjoint::new(&mut y);
        let right = Right { values: &weights.weight.data[..], depth_stride: outputs, column_stride: 1 };
        for_each_task(batch * blocks, |task, [rows, scratch]| {
            let (number, top) = (task / blocks, task % blocks * LINES);
            let lines = top..grid.min(top + LINES);
            let image = &images.data[number * images.columns..][..images.columns];
            let rows = grown(rows, lines.len() * grid * depth);
            for (y, rows) in lines.clone().zip(rows.chunks_exact_mut((grid * depth).max(1))) {
                gather(image, shape, y, depth, rows);
            }
            let left = Left { values: rows, row_stride: depth, rows: lines.len() * grid, depth };
            let out = out.offset((number * grid + top) * grid * outputs);
            let target = Target { bias: &weights.bias.data, activation, ..Target::plain(out, outputs, outputs) };
            // SAFETY: `y` holds a row of `outputs` elements for every window, and those of these lines are this task's own.
            unsafe { gemm::serial(left, right, target, scratch) };
        });
        Ok(Tensor::new(sizes.rows(), outputs, y))
    }
}

/// Copies the windows of line `y` of an image (I, side, side) to `rows` (G, depth); zeros outside of the image.
fn gather(image: &[f32], shape: Conv2dShape, y: usize, depth: usize, rows: &mut [f32]) {
    let Conv2dShape { side, taps, stride, padding: [before, _] } = shape;
    for line in 0..depth / taps {
        let (channel, tap) = (line / taps, line % taps);
        let source = (y * stride + tap).checked_sub(before).filter(|&y| y < side);
        let source = source.map_or(&[][..], |y| &image[(channel * side + y) * side..][..side]);
        match taps {
            // A length that the compiler knows makes a copy of a few instructions.
            3 => copy::<3>(source, shape, &mut rows[line * taps..], depth),
            5 => copy::<5>(source, shape, &mut rows[line * taps..], depth),
            _ => {
                for (x, window) in rows.chunks_exact_mut(depth).enumerate() {
                    pad(source, x * stride, before, &mut window[line * taps..][..taps]);
                }
            }
        }
    }
}

/// Copies the windows of a line of an image to places `depth` apart.
fn copy<const TAPS: usize>(source: &[f32], shape: Conv2dShape, rows: &mut [f32], depth: usize) {
    let Conv2dShape { stride, padding: [before, _], .. } = shape;
    for (x, window) in rows.chunks_mut(depth).enumerate() {
        let window = &mut window[..TAPS];
        match (x * stride).checked_sub(before).and_then(|first| source.get(first..first + TAPS)) {
            Some(inside) => window.copy_from_slice(inside),
            None => pad(source, x * stride, before, window),
        }
    }
}

/// Values of a line from place `first` on, `before` of them before the line begins; zeros outside of it.
fn pad(source: &[f32], first: usize, before: usize, window: &mut [f32]) {
    for (place, value) in (first..).zip(window) {
        *value = place.checked_sub(before).and_then(|place| source.get(place)).copied().unwrap_or(0.0);
    }
}
