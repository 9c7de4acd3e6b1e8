//! Launches kernels/patch_embed.cu.

use super::driver::Launch;
use super::kernels::{self, PatchEmbedParams};
use super::tiles;
use super::{Cuda, Layout, Matrix, Tensor, ensure, int};
use crate::tensor::DType;
use crate::{Error, Result};

/// Images (B, 3*side*side) in f32 to tokens (B*T, C) in the type of the backend.
pub(super) fn patch_embed(
    cuda: &Cuda,
    pixels: &Tensor,
    weight: &Matrix,
    class: &Tensor,
    position: &Matrix,
    patch: usize,
) -> Result<Tensor> {
    const OP: &str = "patch_embed";
    let (batch, channels) = (pixels.rows, weight.tensor.rows);
    let side = (pixels.columns / 3).isqrt();
    let across = side.checked_div(patch).unwrap_or(0);
    let (tokens, k) = (across * across + 1, 3 * patch * patch);
    let fits = across > 0
        && pixels.columns == 3 * side * side
        && side == across * patch
        && weight.tensor.columns == k
        && class.len() == channels
        && (position.tensor.rows, position.tensor.columns) == (tokens, channels);
    ensure(fits, OP, || {
        let (weight, position) = (&weight.tensor, &position.tensor);
        format!(
            "pixels ({batch}, {}), patch {patch}, weight ({}, {}), class {}, position ({}, {})",
            pixels.columns,
            weight.rows,
            weight.columns,
            class.len(),
            position.rows,
            position.columns
        )
    })?;
    let (pixels, class) = (cuda.rows_of(pixels, DType::F32)?, cuda.rows_of(class, DType::F32)?);
    let y = cuda.empty([batch * tokens, channels], cuda.dtype, Layout::Rows)?;
    let params = PatchEmbedParams {
        pixels: pixels.pointer(),
        weight: weight.tensor.pointer(),
        class_embedding: class.pointer(),
        position: position.tensor.pointer(),
        y: y.pointer(),
        batch: int(OP, batch)?,
        channels: int(OP, channels)?,
        tokens: int(OP, tokens)?,
        side: int(OP, side)?,
        patch: int(OP, patch)?,
        k: int(OP, k)?,
    };
    int(OP, batch * tokens)?;
    let patches = batch * (tokens - 1);
    // With an even P, pixels are read in pairs and weights in fours.
    let (tiles, device) = (&kernels::PATCH_EMBED_FORWARD_TILES, cuda.stream.properties());
    let tile = tiles::fastest(tiles, cuda.dtype, patch.is_multiple_of(2), [patches, channels], device);
    let tile = tile.ok_or_else(|| Error::shape(OP, format!("no tiles for {:?}", cuda.dtype)))?;
    let launch = Launch::blocks(tile.count(patches, channels)).shared_bytes(tile.shared_bytes);
    // SAFETY: the shapes were checked; no patch beyond the last, no channel beyond C and no value beyond K is read or
    // written, and every patch lies inside of its image. Where pixels are read in pairs and weights in fours, P is even, and
    // so every row of a patch begins at an even pixel and K is a multiple of four.
    unsafe { cuda.launch(tile.kernel, launch, params)? };
    Ok(y)
}
