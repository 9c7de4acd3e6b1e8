//! An EfficientNet-lite: a stem, inverted residuals and a last convolution of one tap, with ReLU6, and batch norms folded into
//! the convolutions. The pixels of its last map are the image's tokens. Source: Tan and Le, "EfficientNet" (2019), in the form
//! without squeeze and excitation of TensorFlow's `efficientnet/lite` and the package `efficientnet_lite_pytorch`.

use super::loader::Loader;
use crate::Result;
use crate::backend::{Activation, Backend, Conv2dShape, Conv2dWeights, LinearWeights};
use crate::config::{EfficientNetConfig, InvertedResidual, STEM_STRIDE, STEM_TAPS};

/// Weights for images of one size.
pub struct EfficientNet<B: Backend> {
    stem: Conv2dWeights<B>, // (27, C)
    stem_shape: Conv2dShape,
    blocks: Vec<Block<B>>,
    head: LinearWeights<B>, // (width, C)
}

/// An inverted residual.
struct Block<B: Backend> {
    expand: Option<LinearWeights<B>>, // (hidden, inputs)
    depthwise: Conv2dWeights<B>,      // (taps*taps, hidden)
    shape: Conv2dShape,
    project: LinearWeights<B>, // (outputs, hidden)
    adds_input: bool,
}

impl<B: Backend> EfficientNet<B> {
    /// Takes the tensors `vision.*`, for images of `size` pixels and tokens of `width` channels.
    pub fn load(
        loader: &mut Loader<'_, B>,
        config: &EfficientNetConfig,
        width: usize,
        size: usize,
    ) -> Result<EfficientNet<B>> {
        let stem_shape = Conv2dShape::same(size, STEM_TAPS, STEM_STRIDE);
        let stem = loader.conv2d_weights("vision.stem", [config.stem, 3 * STEM_TAPS * STEM_TAPS])?;
        let (mut side, mut blocks) = (size.div_ceil(STEM_STRIDE), Vec::new());
        for (number, block) in config.blocks().enumerate() {
            let block = Block::load(loader, &format!("vision.blocks.{number}"), block, side)?;
            side = side.div_ceil(block.shape.stride);
            blocks.push(block);
        }
        Ok(EfficientNet { stem, stem_shape, blocks, head: loader.linear("vision.head", width, config.last())? })
    }

    /// Normalised pixels (B, 3*side*side) to the last map (B*T, width), rows of pixels.
    pub fn forward(&self, backend: &B, pixels: &B::Tensor) -> Result<B::Tensor> {
        let mut x = backend.conv2d(pixels, &self.stem, self.stem_shape, Activation::Relu6)?;
        for block in &self.blocks {
            x = block.forward(backend, &x)?;
        }
        backend.linear(&x, &self.head, Activation::Relu6, None)
    }
}

impl<B: Backend> Block<B> {
    fn load(loader: &mut Loader<'_, B>, prefix: &str, block: InvertedResidual, side: usize) -> Result<Block<B>> {
        let InvertedResidual { inputs, hidden, outputs, taps, stride } = block;
        let expand = block.expands().then(|| loader.linear(&format!("{prefix}.expand"), hidden, inputs));
        Ok(Block {
            expand: expand.transpose()?,
            depthwise: loader.conv2d_weights(&format!("{prefix}.depthwise"), [hidden, taps * taps])?,
            shape: Conv2dShape::same(side, taps, stride),
            project: loader.linear(&format!("{prefix}.project"), outputs, hidden)?,
            adds_input: block.adds_input(),
        })
    }

    /// A map (B*side*side, inputs) to the next.
    fn forward(&self, backend: &B, x: &B::Tensor) -> Result<B::Tensor> {
        let expanded = match &self.expand {
            Some(expand) => &backend.linear(x, expand, Activation::Relu6, None)?,
            None => x,
        };
        let filtered = backend.depthwise_conv2d(expanded, &self.depthwise, self.shape, Activation::Relu6)?;
        backend.linear(&filtered, &self.project, Activation::None, self.adds_input.then_some(x))
    }
}
