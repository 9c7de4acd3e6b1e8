//! Launches kernels/patch_embed.cu.

use super::driver::{DevicePtr, Launch};
use super::kernels::{self, PatchEmbedParams};
use super::linear::{add_columns, add_product, place};
use super::tiles;
use super::{Cuda, Layout, Matrix, Tensor, int};
use crate::backend::patch_embed::{self, Patches};
use crate::backend::{Concat, Device as _, PatchEmbed, PatchEmbedBackward, PatchParameters, PatchShape};
use crate::tensor::DType;
use crate::{Error, Result};

impl PatchEmbed for Cuda {
    fn patch_embed(
        &self,
        pixels: &Tensor,
        weight: &Matrix,
        class: Option<&Tensor>,
        position: &Matrix,
        shape: PatchShape,
    ) -> Result<Tensor> {
        let sizes = patch_embed::check(self, pixels, weight, class, position, shape)?;
        launch(self, sizes, (pixels, class), (weight, position))
    }
}

/// Values of a block that gathers patches.
const GATHERED: usize = 256;

impl PatchEmbedBackward for Cuda {
    fn patch_embed_backward(
        &self,
        dy: &Tensor,
        pixels: &Tensor,
        shape: PatchShape,
        gradients: &mut Tensor,
        at: PatchParameters,
    ) -> Result<()> {
        let count = gradients.len();
        let sizes = patch_embed::check_backward(self.shape(dy), self.shape(pixels), shape, at, count)?;
        let batch = pixels.rows;
        if batch == 0 {
            return Ok(());
        }
        let (class, patches) = self.split(dy, batch, 1)?;
        add_product(self, &patches, &patch_rows(self, sizes, pixels)?, place(gradients, at.weight))?;
        add_columns(self, &class, place(gradients, at.class))?;
        // An image is a row of T*C values.
        let dy = self.rows_of(dy, self.dtype)?;
        let images = dy.part(0, [batch, sizes.tokens() * dy.columns]);
        add_columns(self, &images, place(gradients, at.position))
    }
}

/// Images (B, I*side*side) to their windows (B*G*G, K), in the type of the backend.
fn patch_rows(cuda: &Cuda, sizes: Patches, pixels: &Tensor) -> Result<Tensor> {
    const OP: &str = "patch_embed_backward";
    let pixels = cuda.rows_of(pixels, DType::F32)?;
    let out = cuda.empty([pixels.rows * sizes.windows(), sizes.shape.depth()], cuda.dtype, Layout::Rows)?;
    let params = params(OP, sizes, &pixels, &out)?;
    let kernel = match cuda.dtype {
        DType::BF16 => &kernels::PATCH_EMBED_BACKWARD_ROWS_BF16,
        _ => &kernels::PATCH_EMBED_BACKWARD_ROWS_F32,
    };
    // SAFETY: a thread beyond the last value does nothing; the shapes were checked, so every window lies inside of its image.
    unsafe { cuda.launch(kernel, Launch::blocks(out.len().div_ceil(GATHERED)), params)? };
    Ok(out)
}

/// Windows of these images, to `y`; for a launch that reads no weights.
fn params(op: &'static str, sizes: Patches, pixels: &Tensor, y: &Tensor) -> Result<PatchEmbedParams> {
    let PatchShape { inputs, patch, stride } = sizes.shape;
    Ok(PatchEmbedParams {
        pixels: pixels.pointer(),
        weight: DevicePtr::NULL,
        class_embedding: DevicePtr::NULL,
        position: DevicePtr::NULL,
        y: y.pointer(),
        batch: int(op, pixels.rows)?,
        channels: int(op, y.columns)?,
        side: int(op, sizes.side)?,
        inputs: int(op, inputs)?,
        patch: int(op, patch)?,
        stride: int(op, stride)?,
        grid: int(op, sizes.grid)?,
        k: int(op, sizes.shape.depth())?,
        classes: int(op, sizes.classes)?,
        unused: 0,
    })
}

/// Images (B, I*side*side) in f32 to tokens (B*T, C) in the type of the backend.
fn launch(
    cuda: &Cuda,
    sizes: Patches,
    (pixels, class): (&Tensor, Option<&Tensor>),
    (weight, position): (&Matrix, &Matrix),
) -> Result<Tensor> {
    const OP: &str = "patch_embed";
    let (batch, channels, tokens) = (pixels.rows, weight.tensor.rows, sizes.tokens());
    let pixels = cuda.rows_of(pixels, DType::F32)?;
    let class = class.map(|class| cuda.rows_of(class, DType::F32)).transpose()?;
    let y = cuda.empty([batch * tokens, channels], cuda.dtype, Layout::Rows)?;
    let params = PatchEmbedParams {
        weight: weight.tensor.pointer(),
        class_embedding: class.as_ref().map_or(DevicePtr::NULL, Tensor::pointer),
        position: position.tensor.pointer(),
        ..params(OP, sizes, &pixels, &y)?
    };
    int(OP, batch * tokens)?;
    let patches = batch * sizes.windows();
    // Pixels are read in pairs and weights in fours where every pair of a window begins at an even pixel.
    let PatchShape { patch, stride, .. } = sizes.shape;
    let in_pairs = [patch, stride, sizes.side].iter().all(|size| size.is_multiple_of(2));
    let (tiles, device) = (&kernels::PATCH_EMBED_FORWARD_TILES, cuda.stream.properties());
    let tile = tiles::fastest(tiles, cuda.dtype, in_pairs, [patches, channels], device);
    let tile = tile.ok_or_else(|| Error::shape(OP, format!("no tiles for {:?}", cuda.dtype)))?;
    let launch = Launch::blocks(tile.count(patches, channels)).shared_bytes(tile.shared_bytes);
    // SAFETY: the shapes were checked; no patch beyond the last, no channel beyond C and no value beyond K is read or
    // written, and every window lies inside of its image. Where pixels are read in pairs and weights in fours, P, the stride
    // and the side are even, so every row of a window begins at an even pixel and K is a multiple of four.
    unsafe { cuda.launch(tile.kernel, launch, params)? };
    Ok(y)
}
