//! patch_embed: images to tokens. Each patch (3, P, P) is multiplied with the patch kernel; the class embedding comes
//! first, and every token gets its position.

use super::parameters::{self, Parameter, TrainedParameters};
use super::{Device, ensure};
use crate::Result;
use crate::cost::Cost;

/// Patch embedding.
pub trait PatchEmbed: Device {
    /// Images (B, 3*side*side) to tokens (B*T, C), T = (side/patch)^2 + 1: the class embedding first, then the patches
    /// in row-major order times `weight` (C, 3*patch*patch); row t of `position` (T, C) is added to each token t.
    fn patch_embed(
        &self,
        pixels: &Self::Tensor,
        weight: &Self::Matrix,
        class: &Self::Tensor,
        position: &Self::Matrix,
        patch: usize,
    ) -> Result<Self::Tensor>;
}

/// Sizes that follow from the arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Patches {
    /// Side of an image in pixels.
    pub side: usize,
    /// Tokens T of an image.
    pub tokens: usize,
    /// Values 3*P*P of a patch.
    pub depth: usize,
}

/// The sizes; an error unless everything fits them.
pub(crate) fn check<D: Device>(
    device: &D,
    pixels: &D::Tensor,
    weight: &D::Matrix,
    class: &D::Tensor,
    position: &D::Matrix,
    patch: usize,
) -> Result<Patches> {
    let ([batch, values], [channels, k]) = (device.shape(pixels), device.matrix_shape(weight));
    let (class, position) = (device.shape(class), device.matrix_shape(position));
    let side = (values / 3).isqrt();
    let grid = side.checked_div(patch).unwrap_or(0);
    let (tokens, depth) = (grid * grid + 1, 3 * patch * patch);
    let fits = grid > 0
        && grid * patch == side
        && 3 * side * side == values
        && k == depth
        && class[0] * class[1] == channels
        && position == [tokens, channels];
    ensure(fits, "patch_embed", || {
        format!(
            "pixels ({batch}, {values}), patch {patch}, weight ({channels}, {k}), class {class:?}, position {position:?}"
        )
    })?;
    Ok(Patches { side, tokens, depth })
}

/// Cost of `batch` images of `tokens` tokens: f32 pixels, everything else in elements of `element` bytes.
pub fn cost([batch, tokens, channels, patch]: [usize; 4], element: usize) -> Cost {
    let (patches, depth) = (batch * (tokens - 1), 3 * patch * patch);
    Cost {
        flops: (2 * patches * channels * depth) as f64,
        bytes: (4 * patches * depth + element * (channels * depth + batch * tokens * channels)) as f64,
    }
}

/// Places of the parameters of [`PatchEmbed::patch_embed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PatchParameters {
    /// (C, 3*patch*patch).
    pub weight: Parameter,
    /// (1, C).
    pub class: Parameter,
    /// (T, C).
    pub position: Parameter,
}

/// Patch embedding in training. There is no gradient at the pixels.
pub trait PatchEmbedBackward: PatchEmbed + TrainedParameters {
    /// Adds the gradients of all three parameters for images (B, 3*side*side) and dy (B*T, C).
    fn patch_embed_backward(
        &self,
        dy: &Self::Tensor,
        pixels: &Self::Tensor,
        patch: usize,
        gradients: &mut Self::Gradients,
        at: PatchParameters,
    ) -> Result<()>;
}

/// The sizes; an error unless the shapes fit [`PatchEmbedBackward::patch_embed_backward`] with so many gradients.
pub(crate) fn check_backward(
    dy: [usize; 2],
    pixels: [usize; 2],
    patch: usize,
    at: PatchParameters,
    gradients: usize,
) -> Result<Patches> {
    const OP: &str = "patch_embed_backward";
    let side = (pixels[1] / 3).isqrt();
    let grid = side.checked_div(patch).unwrap_or(0);
    let (tokens, depth) = (grid * grid + 1, 3 * patch * patch);
    let fits = grid > 0 && grid * patch == side && 3 * side * side == pixels[1] && dy[0] == pixels[0] * tokens;
    ensure(fits, OP, || format!("dy {dy:?}, pixels {pixels:?}, patch {patch}"))?;
    parameters::check(OP, at.weight, [dy[1], depth], gradients)?;
    parameters::check(OP, at.class, [1, dy[1]], gradients)?;
    parameters::check(OP, at.position, [tokens, dy[1]], gradients)?;
    Ok(Patches { side, tokens, depth })
}
