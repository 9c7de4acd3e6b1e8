//! patch_embed: images to tokens. Patches are gathered into rows (channel, row, column) and multiplied with the patch
//! kernel; the class embedding and the positions stand in the result before the product is added to it.
//! Operations: 2 * B * G * C * I * P^2 for G windows of an image, forward and backward.

use rayon::prelude::*;

use super::buffer::Buffer;
use super::disjoint::Disjoint;
use super::gemm::{self, Left, Right, Target};
use super::linear::{self, Product};
use super::{Activation, Cpu, Matrix, Tensor};
use crate::backend::patch_embed::{self, Patches};
use crate::backend::{Device as _, PatchEmbed, PatchEmbedBackward, PatchParameters, PatchShape};
use crate::{Result, trace};

impl PatchEmbed for Cpu {
    fn patch_embed(
        &self,
        pixels: &Tensor,
        weight: &Matrix,
        class: Option<&Tensor>,
        position: &Matrix,
        shape: PatchShape,
    ) -> Result<Tensor> {
        let _span = trace::span("patch_embed");
        let sizes = patch_embed::check(self, pixels, weight, class, position, shape)?;
        tokens(sizes, pixels, weight, class, position)
    }
}

fn tokens(
    sizes: Patches,
    pixels: &Tensor,
    weight: &Matrix,
    class: Option<&Tensor>,
    position: &Matrix,
) -> Result<Tensor> {
    let (columns, tokens, depth) = (weight.rows, sizes.tokens(), sizes.shape.depth());
    let positions = position.elements()?;
    let mut out = Buffer::any(pixels.rows * tokens * columns);
    let mut patches = vec![0.0; sizes.windows() * depth];
    for (image, out) in pixels.data.chunks_exact(pixels.columns).zip(out.chunks_exact_mut(tokens * columns)) {
        gather(image, sizes, &mut patches);
        if let Some(class) = class {
            out[..columns].copy_from_slice(&class.data);
        }
        let product = Product { x: &patches, rows: sizes.windows(), depth, bias: &[], residual: &[] };
        let out_of_windows = &mut out[sizes.classes * columns..];
        linear::blocked(&product, weight.elements()?, columns, Activation::None, out_of_windows);
        positions.add_to(0, out);
    }
    Ok(Tensor::new(pixels.rows * tokens, columns, out))
}

/// Copies each window of an image (I, side, side) into a row of `patches` (grid^2, I * P * P).
fn gather(image: &[f32], sizes: Patches, patches: &mut [f32]) {
    let Patches { shape: PatchShape { patch, stride, .. }, side, grid, .. } = sizes;
    for (index, row) in patches.chunks_exact_mut(sizes.shape.depth()).enumerate() {
        let (top, left) = (index / grid * stride, index % grid * stride);
        for (line, out) in row.chunks_exact_mut(patch).enumerate() {
            let (channel, y) = (line / patch, line % patch);
            let start = (channel * side + top + y) * side + left;
            out.copy_from_slice(&image[start..start + patch]);
        }
    }
}

impl PatchEmbedBackward for Cpu {
    fn patch_embed_backward(
        &self,
        dy: &Tensor,
        pixels: &Tensor,
        shape: PatchShape,
        gradients: &mut Vec<f32>,
        at: PatchParameters,
    ) -> Result<()> {
        let _span = trace::span("patch_embed_backward");
        let (dy_shape, pixels_shape) = (self.shape(dy), self.shape(pixels));
        let sizes = patch_embed::check_backward(dy_shape, pixels_shape, shape, at, gradients.len())?;
        add_tokens(dy, sizes.tokens(), &mut gradients[at.position.range()]);
        add_tokens(dy, sizes.tokens(), &mut gradients[at.class.range()]);
        add_products(dy, pixels, sizes, &mut gradients[at.weight.range()]);
        Ok(())
    }
}

/// Adds the first tokens of every image, as many as `gradients` has rows, image after image.
fn add_tokens(dy: &Tensor, tokens: usize, gradients: &mut [f32]) {
    let columns = dy.columns.max(1);
    gradients.par_chunks_mut(columns).enumerate().for_each(|(token, gradient)| {
        for row in (token..dy.rows).step_by(tokens) {
            let dy = &dy.data[row * columns..][..columns];
            gradient.iter_mut().zip(dy).for_each(|(gradient, dy)| *gradient += dy);
        }
    });
}

/// Adds dy^T patches: (C, B*G) times (B*G, K).
fn add_products(dy: &Tensor, pixels: &Tensor, sizes: Patches, gradients: &mut [f32]) {
    let (tokens, depth) = (sizes.tokens(), sizes.shape.depth());
    let rows = pixels.rows * (tokens - 1);
    if rows == 0 || gradients.is_empty() {
        return;
    }
    let mut patches = Buffer::any(rows * depth);
    patches
        .par_chunks_mut((tokens - 1) * depth)
        .zip(pixels.data.par_chunks(pixels.columns))
        .for_each(|(patches, image)| gather(image, sizes, patches));
    let turned = turned(dy, pixels.rows, tokens);
    let left = Left { values: &turned, row_stride: rows, rows: dy.columns, depth: rows };
    let right = Right { values: &patches[..], depth_stride: depth, column_stride: 1 };
    let target = Target { adds: true, ..Target::plain(Disjoint::new(gradients), depth, depth) };
    // SAFETY: the gradients are (C, K) values, borrowed for the whole call.
    unsafe { gemm::parallel(left, right, target) };
}

/// dy (B*T, C) without the class tokens, transposed: (C, B*G).
fn turned(dy: &Tensor, batch: usize, tokens: usize) -> Buffer {
    /// Channels of a task, and tokens that it reads in turn: whole cache lines of both.
    const SQUARE: usize = 16;
    let (columns, patches) = (dy.columns, tokens - 1);
    let rows = batch * patches;
    let mut turned = Buffer::any(columns * rows);
    turned.par_chunks_mut(SQUARE * rows).enumerate().for_each(|(task, turned)| {
        let first = task * SQUARE;
        for start in (0..rows).step_by(SQUARE) {
            for row in start..rows.min(start + SQUARE) {
                let from = (row / patches * tokens + 1 + row % patches) * columns + first;
                let count = SQUARE.min(columns - first);
                for (channel, &v) in dy.data[from..][..count].iter().enumerate() {
                    turned[channel * rows + row] = v;
                }
            }
        }
    });
    turned
}
