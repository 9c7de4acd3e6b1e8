//! Launches kernels/patch_embed.cu.

use super::driver::{Kernel, Launch};
use super::kernels::{
    self, PatchEmbedParams, SIZE_OF_LARGE_PATCH_SHARED, SIZE_OF_PLAIN_PATCH_SHARED, SIZE_OF_SMALL_PATCH_SHARED,
};
use super::{Cuda, Layout, Matrix, Tensor, ensure, int};
use crate::Result;
use crate::tensor::DType;

/// Patches and channels of a block, and its shared memory.
struct Tile {
    side: usize,
    shared: usize,
    kernel: &'static Kernel<PatchEmbedParams>,
}

const SMALL: Tile =
    Tile { side: 64, shared: SIZE_OF_SMALL_PATCH_SHARED, kernel: &kernels::PATCH_EMBED_FORWARD_SMALL_BF16 };
const LARGE: Tile =
    Tile { side: 128, shared: SIZE_OF_LARGE_PATCH_SHARED, kernel: &kernels::PATCH_EMBED_FORWARD_LARGE_BF16 };
const PLAIN: Tile =
    Tile { side: 64, shared: SIZE_OF_PLAIN_PATCH_SHARED, kernel: &kernels::PATCH_EMBED_FORWARD_PLAIN_BF16 };
const F32: Tile =
    Tile { side: 64, shared: SIZE_OF_PLAIN_PATCH_SHARED, kernel: &kernels::PATCH_EMBED_FORWARD_PLAIN_F32 };

impl Tile {
    fn grid(&self, channels: usize, patches: usize) -> [usize; 3] {
        [channels.div_ceil(self.side), patches.div_ceil(self.side), 1]
    }
}

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
    let (tokens, depth) = (across * across + 1, 3 * patch * patch);
    let fits = across > 0
        && pixels.columns == 3 * side * side
        && side == across * patch
        && weight.tensor.columns == depth
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
        depth: int(OP, depth)?,
    };
    int(OP, batch * tokens)?;
    let patches = batch * (tokens - 1);
    // Large tiles read less, as soon as there are enough of them to keep half of the multiprocessors busy.
    let blocks: usize = LARGE.grid(channels, patches).iter().product();
    let tile = match cuda.dtype {
        DType::BF16 if patch % 2 == 1 => PLAIN,
        DType::BF16 if 2 * blocks >= cuda.stream.properties().multiprocessors => LARGE,
        DType::BF16 => SMALL,
        _ => F32,
    };
    // SAFETY: the shapes were checked; no patch beyond the last, no channel beyond C and no value beyond K is read or
    // written, and every patch lies inside of its picture. Where pixels are read in pairs and weights in fours, P is even,
    // and so every row of a patch begins at an even pixel and K is a multiple of four.
    unsafe { cuda.launch(tile.kernel, Launch::grid(tile.grid(channels, patches)).shared_bytes(tile.shared), params)? };
    Ok(y)
}
