//! Launches kernels/patch_embed.cu.

use super::driver::Launch;
use super::kernels::{self, PatchEmbedParams, SIZE_OF_PLAIN_SHARED};
use super::{Cuda, Layout, Matrix, Tensor, ensure, int};
use crate::Result;
use crate::tensor::DType;

/// Rows and columns of a tile.
const TILE: usize = 64;

/// Pictures (B, 3*side*side) in f32 to tokens (B*T, C) in the type of the backend.
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
    let tokens = across * across + 1;
    let fits = patch > 0
        && pixels.columns == 3 * side * side
        && side == across * patch
        && weight.tensor.columns == 3 * patch * patch
        && class.len() == channels
        && (position.tensor.rows, position.tensor.columns) == (tokens, channels);
    ensure(fits, OP, || {
        let (weight, position) = (&weight.tensor, &position.tensor);
        format!(
            "pixels ({batch}, {}), weight ({}, {}), class {}, position ({}, {}), patches of {patch}",
            pixels.columns,
            weight.rows,
            weight.columns,
            class.len(),
            position.rows,
            position.columns
        )
    })?;
    let pixels = cuda.rows_of(pixels, DType::F32)?;
    let y = cuda.empty([batch * tokens, channels], cuda.dtype, Layout::Rows)?;
    let params = PatchEmbedParams {
        pixels: pixels.pointer(),
        weight: weight.tensor.pointer(),
        class_embedding: class.pointer(),
        position: position.tensor.pointer(),
        y: y.pointer(),
        rows: int(OP, batch * tokens)?,
        channels: int(OP, channels)?,
        tokens: int(OP, tokens)?,
        side: int(OP, side)?,
        patch: int(OP, patch)?,
        unused: 0,
    };
    let kernel = match cuda.dtype {
        DType::BF16 => &kernels::PATCH_EMBED_FORWARD_BF16,
        _ => &kernels::PATCH_EMBED_FORWARD_F32,
    };
    let grid = [(batch * tokens).div_ceil(TILE), channels.div_ceil(TILE), 1];
    // SAFETY: the shapes were checked; no row from B * T on and no channel from C on is touched, and every patch lies
    // inside of its picture.
    unsafe { cuda.launch(kernel, Launch::grid(grid).shared(SIZE_OF_PLAIN_SHARED), params)? };
    Ok(y)
}
