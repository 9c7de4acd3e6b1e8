//! conv2d: windows of an image are gathered into rows (channel, row, column) and multiplied with the weights.
//! Operations: 2 * B * G^2 * C * I * taps^2.

use rayon::prelude::*;

use super::buffer::Buffer;
use super::disjoint::Disjoint;
use super::gemm::{self, Left, Right, Target};
use super::{Activation, Cpu, Tensor};
use crate::backend::conv2d::{self, Conv2dSizes};
use crate::backend::{Conv2d, Conv2dShape, Conv2dWeights};
use crate::{Result, trace};

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
        let Conv2dSizes { inputs, outputs, grid, .. } = sizes;
        let (windows, depth) = (grid * grid, inputs * shape.window());
        let mut y = Buffer::any(sizes.rows() * outputs);
        let mut rows = Buffer::any(windows * depth);
        let right = Right { values: &weights.weight.data[..], depth_stride: outputs, column_stride: 1 };
        let maps = y.chunks_exact_mut((windows * outputs).max(1));
        for (image, y) in images.data.chunks_exact(images.columns.max(1)).zip(maps) {
            gather(image, shape, grid, depth, &mut rows);
            let left = Left { values: &rows, row_stride: depth, rows: windows, depth };
            let target =
                Target { bias: &weights.bias.data, activation, ..Target::plain(Disjoint::new(y), outputs, outputs) };
            // SAFETY: `y` holds a row of `outputs` elements for every window and is borrowed for the whole call.
            unsafe { gemm::parallel(left, right, target) };
        }
        Ok(Tensor::new(sizes.rows(), outputs, y))
    }
}

/// Copies each window of an image (I, side, side) into a row of `rows` (G*G, depth); zeros outside of the image.
fn gather(image: &[f32], shape: Conv2dShape, grid: usize, depth: usize, rows: &mut [f32]) {
    let Conv2dShape { side, taps, stride, padding: [before, _] } = shape;
    rows.par_chunks_mut((grid * depth).max(1)).enumerate().for_each(|(y, rows)| {
        for (x, row) in rows.chunks_exact_mut(depth).enumerate() {
            let (top, left) = (y * stride, x * stride);
            let taps_inside = before.saturating_sub(left).min(taps)..taps.min((side + before).saturating_sub(left));
            for (line, out) in row.chunks_exact_mut(taps).enumerate() {
                let (channel, y) = (line / taps, (top + line % taps).checked_sub(before).filter(|&y| y < side));
                out.fill(0.0);
                if let (Some(y), false) = (y, taps_inside.is_empty()) {
                    let start = (channel * side + y) * side + left + taps_inside.start - before;
                    let inside = &mut out[taps_inside.clone()];
                    inside.copy_from_slice(&image[start..start + inside.len()]);
                }
            }
        }
    });
}
