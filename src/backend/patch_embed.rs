//! patch_embed: images to tokens. Each window (I, P, P) is multiplied with the patch kernel; a class embedding comes first, if
//! there is one, and every token gets its position.

use super::Device;
use super::parameters::{self, Parameter, TrainedParameters};
use crate::cost::Cost;
use crate::{Error, Result};

/// How windows are cut from an image (I, side, side): a convolution without padding, whose last windows end where the image does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PatchShape {
    /// Channels I of an image.
    pub inputs: usize,
    /// Side P of a window.
    pub patch: usize,
    /// Distance of neighbouring windows; below P they overlap.
    pub stride: usize,
}

impl PatchShape {
    /// Patches of an RGB image, one next to the other.
    pub const fn rgb(patch: usize) -> PatchShape {
        PatchShape { inputs: 3, patch, stride: patch }
    }

    /// Values I*P*P of a window.
    pub const fn depth(self) -> usize {
        self.inputs * self.patch * self.patch
    }

    /// Windows along one side of an image; `None` if they do not end where it does.
    pub fn grid(self, side: usize) -> Option<usize> {
        let rest = side.checked_sub(self.patch).filter(|_| self.patch > 0)?;
        (rest.checked_rem(self.stride)? == 0).then(|| rest / self.stride + 1)
    }
}

/// Patch embedding.
pub trait PatchEmbed: Device {
    /// Images (B, I*side*side) to tokens (B*T, C): the class embedding (1, C) first, if there is one, then the G*G windows in
    /// row-major order times `weight` (C, I*P*P); row t of `position` (T, C) is added to each token t.
    fn patch_embed(
        &self,
        pixels: &Self::Tensor,
        weight: &Self::Matrix,
        class: Option<&Self::Tensor>,
        position: &Self::Matrix,
        shape: PatchShape,
    ) -> Result<Self::Tensor>;
}

/// Sizes that follow from the arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Patches {
    /// How windows are cut.
    pub shape: PatchShape,
    /// Side of an image in pixels.
    pub side: usize,
    /// Windows along one side.
    pub grid: usize,
    /// Tokens that are no window, 0 or 1.
    pub classes: usize,
}

impl Patches {
    /// The sizes of images of so many values.
    fn of(values: usize, shape: PatchShape, classes: usize) -> Option<Patches> {
        let side = values.checked_div(shape.inputs)?.isqrt();
        let fits = shape.inputs * side * side == values;
        Some(Patches { shape, side, grid: shape.grid(side).filter(|_| fits)?, classes })
    }

    /// Windows of an image.
    pub fn windows(&self) -> usize {
        self.grid * self.grid
    }

    /// Tokens T of an image.
    pub fn tokens(&self) -> usize {
        self.windows() + self.classes
    }
}

/// The sizes; an error unless everything fits them.
pub(crate) fn check<D: Device>(
    device: &D,
    pixels: &D::Tensor,
    weight: &D::Matrix,
    class: Option<&D::Tensor>,
    position: &D::Matrix,
    shape: PatchShape,
) -> Result<Patches> {
    let ([batch, values], [channels, k]) = (device.shape(pixels), device.matrix_shape(weight));
    let (class, position) = (class.map(|class| device.shape(class)), device.matrix_shape(position));
    let sizes = Patches::of(values, shape, usize::from(class.is_some())).filter(|sizes| {
        k == shape.depth()
            && class.is_none_or(|class| class[0] * class[1] == channels)
            && position == [sizes.tokens(), channels]
    });
    sizes.ok_or_else(|| {
        Error::shape(
            "patch_embed",
            format!(
                "pixels ({batch}, {values}), {shape:?}, weight ({channels}, {k}), class {class:?}, position {position:?}"
            ),
        )
    })
}

/// Cost of `batch` images of `windows` windows and `classes` other tokens: f32 pixels, everything else in elements of `element`
/// bytes.
pub fn cost([batch, windows, classes, channels]: [usize; 4], shape: PatchShape, element: usize) -> Cost {
    let (patches, depth) = (batch * windows, shape.depth());
    Cost {
        flops: (2 * patches * channels * depth) as f64,
        bytes: (4 * patches * depth + element * (channels * depth + batch * (windows + classes) * channels)) as f64,
    }
}

/// Places of the parameters of [`PatchEmbed::patch_embed`], with a class embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PatchParameters {
    /// (C, I*P*P).
    pub weight: Parameter,
    /// (1, C).
    pub class: Parameter,
    /// (T, C).
    pub position: Parameter,
}

/// Patch embedding in training. There is no gradient at the pixels.
pub trait PatchEmbedBackward: PatchEmbed + TrainedParameters {
    /// Adds the gradients of all three parameters for images (B, I*side*side) and dy (B*T, C).
    fn patch_embed_backward(
        &self,
        dy: &Self::Tensor,
        pixels: &Self::Tensor,
        shape: PatchShape,
        gradients: &mut Self::Gradients,
        at: PatchParameters,
    ) -> Result<()>;
}

/// The sizes; an error unless the shapes fit [`PatchEmbedBackward::patch_embed_backward`] with so many gradients.
pub(crate) fn check_backward(
    dy: [usize; 2],
    pixels: [usize; 2],
    shape: PatchShape,
    at: PatchParameters,
    gradients: usize,
) -> Result<Patches> {
    const OP: &str = "patch_embed_backward";
    let sizes = Patches::of(pixels[1], shape, 1).filter(|sizes| dy[0] == pixels[0] * sizes.tokens());
    let sizes = sizes.ok_or_else(|| Error::shape(OP, format!("dy {dy:?}, pixels {pixels:?}, {shape:?}")))?;
    parameters::check(OP, at.weight, [dy[1], shape.depth()], gradients)?;
    parameters::check(OP, at.class, [1, dy[1]], gradients)?;
    parameters::check(OP, at.position, [sizes.tokens(), dy[1]], gradients)?;
    Ok(sizes)
}
