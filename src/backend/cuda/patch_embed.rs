//! Launches kernels/patch_embed.cu.

use super::driver::Launch;
use super::kernels::{self, PatchEmbedParams};
use super::tiles;
use super::{Cuda, Layout, Matrix, Tensor, int};
use crate::backend::PatchEmbed;
use crate::backend::patch_embed::{self, Patches};
use crate::tensor::DType;
use crate::{Error, Result};

impl PatchEmbed for Cuda {
    fn patch_embed(
        &self,
        pixels: &Tensor,
        weight: &Matrix,
        class: &Tensor,
        position: &Matrix,
        patch: usize,
    ) -> Result<Tensor> {
        let sizes = patch_embed::check(self, pixels, weight, class, position, patch)?;
        launch(self, sizes, (pixels, class), (weight, position), patch)
    }
}

/// Images (B, 3*side*side) in f32 to tokens (B*T, C) in the type of the backend.
fn launch(
    cuda: &Cuda,
    Patches { side, tokens, depth }: Patches,
    (pixels, class): (&Tensor, &Tensor),
    (weight, position): (&Matrix, &Matrix),
    patch: usize,
) -> Result<Tensor> {
    const OP: &str = "patch_embed";
    let (batch, channels) = (pixels.rows, weight.tensor.rows);
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
        k: int(OP, depth)?,
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
