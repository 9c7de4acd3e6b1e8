//! Launches kernels/patch_embed.cu.

use super::driver::Launch;
use super::kernels::{self, PatchEmbedParams, PatchRowsParams};
use super::linear::{add_columns, add_product, place};
use super::tiles;
use super::{Cuda, Layout, Matrix, Tensor, int};
use crate::backend::patch_embed::{self, Patches};
use crate::backend::{Concat, Device as _, PatchEmbed, PatchEmbedBackward, PatchParameters};
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

/// Values of a block that gathers patches.
const GATHERED: usize = 256;

impl PatchEmbedBackward for Cuda {
    fn patch_embed_backward(
        &self,
        dy: &Tensor,
        pixels: &Tensor,
        patch: usize,
        gradients: &mut Tensor,
        at: PatchParameters,
    ) -> Result<()> {
        let count = gradients.len();
        let sizes = patch_embed::check_backward(self.shape(dy), self.shape(pixels), patch, at, count)?;
        let batch = pixels.rows;
        if batch == 0 {
            return Ok(());
        }
        let (class, patches) = self.split(dy, batch, 1)?;
        add_product(self, &patches, &patch_rows(self, sizes, pixels, patch)?, place(gradients, at.weight))?;
        add_columns(self, &class, place(gradients, at.class))?;
        // An image is a row of T*C values.
        let dy = self.rows_of(dy, self.dtype)?;
        let images = dy.part(0, [batch, sizes.tokens * dy.columns]);
        add_columns(self, &images, place(gradients, at.position))
    }
}

/// Images (B, 3*side*side) to their patches (B*(T-1), K), in the type of the backend.
fn patch_rows(cuda: &Cuda, Patches { side, tokens, depth }: Patches, pixels: &Tensor, patch: usize) -> Result<Tensor> {
    const OP: &str = "patch_embed_backward";
    let pixels = cuda.rows_of(pixels, DType::F32)?;
    let out = cuda.empty([pixels.rows * (tokens - 1), depth], cuda.dtype, Layout::Rows)?;
    let params = PatchRowsParams {
        pixels: pixels.pointer(),
        out: out.pointer(),
        batch: int(OP, pixels.rows)?,
        tokens: int(OP, tokens)?,
        side: int(OP, side)?,
        patch: int(OP, patch)?,
        k: int(OP, depth)?,
        unused: 0,
    };
    let kernel = match cuda.dtype {
        DType::BF16 => &kernels::PATCH_EMBED_BACKWARD_ROWS_BF16,
        _ => &kernels::PATCH_EMBED_BACKWARD_ROWS_F32,
    };
    // SAFETY: a thread beyond the last value does nothing; the shapes were checked, so every patch lies inside of its image.
    unsafe { cuda.launch(kernel, Launch::blocks(out.len().div_ceil(GATHERED)), params)? };
    Ok(out)
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
