//! patch_embed: images to tokens. Patches are gathered into rows (channel, row, column) and multiplied with the patch
//! kernel; the class embedding and the positions stand in the result before the product is added to it.
//! Operations: 2 * B * (T - 1) * C * 3 * patch^2.

use super::buffer::Buffer;
use super::linear::{self, Product};
use super::{Activation, Cpu, Matrix, Tensor};
use crate::backend::PatchEmbed;
use crate::backend::patch_embed::{self, Patches};
use crate::{Result, trace};

impl PatchEmbed for Cpu {
    fn patch_embed(
        &self,
        pixels: &Tensor,
        weight: &Matrix,
        class: &Tensor,
        position: &Matrix,
        patch: usize,
    ) -> Result<Tensor> {
        let _span = trace::span("patch_embed");
        let sizes = patch_embed::check(self, pixels, weight, class, position, patch)?;
        tokens(sizes, pixels, weight, class, position, patch)
    }
}

fn tokens(
    Patches { side, tokens, depth }: Patches,
    pixels: &Tensor,
    weight: &Matrix,
    class: &Tensor,
    position: &Matrix,
    patch: usize,
) -> Result<Tensor> {
    let columns = weight.rows;
    let positions = position.elements()?;
    let mut out = Buffer::any(pixels.rows * tokens * columns);
    let mut patches = vec![0.0; (tokens - 1) * depth];
    for (image, out) in pixels.data.chunks_exact(pixels.columns).zip(out.chunks_exact_mut(tokens * columns)) {
        gather(image, side, patch, &mut patches);
        out[..columns].copy_from_slice(&class.data);
        let product = Product { x: &patches, rows: tokens - 1, depth, bias: &[], residual: &[] };
        linear::blocked(&product, weight.elements()?, columns, Activation::None, &mut out[columns..]);
        positions.add_to(0, out);
    }
    Ok(Tensor::new(pixels.rows * tokens, columns, out))
}

/// Copies each patch of an image (3, side, side) into a row of `patches` (grid^2, 3 * patch * patch).
fn gather(image: &[f32], side: usize, patch: usize, patches: &mut [f32]) {
    let grid = side / patch;
    for (index, row) in patches.chunks_exact_mut(3 * patch * patch).enumerate() {
        let (top, left) = (index / grid * patch, index % grid * patch);
        for (line, out) in row.chunks_exact_mut(patch).enumerate() {
            let (channel, y) = (line / patch, line % patch);
            let start = (channel * side + top + y) * side + left;
            out.copy_from_slice(&image[start..start + patch]);
        }
    }
}
