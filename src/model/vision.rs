//! The image encoder: a CLIP-style pre-LN vision transformer whose tokens are all kept, and the projection to the
//! decoder's width. Source: transformers' GIT (GitVisionModel, GitProjection), checkpoint names in `weights::convert`.

use super::loader::{Loader, expect_len};
use super::transformer::{Encoder, EncoderShape};
use crate::Result;
use crate::backend::{Activation, Backend, GraphId, LayerNormWeights, LinearWeights};
use crate::config::ModelConfig;

/// Weights of the encoder and the projection; C channels, T tokens, P side of a patch, W width of the decoder.
pub struct Vision<B: Backend> {
    patch: usize,
    side: usize,
    patch_embedding: B::Matrix,    // (C, 3*P*P)
    class: B::Tensor,              // (1, C)
    position: B::Matrix,           // (T, C)
    pre_norm: LayerNormWeights<B>, // (C)
    encoder: Encoder<B>,
    post_norm: LayerNormWeights<B>,       // (C)
    projection: LinearWeights<B>,         // (W, C)
    projection_norm: LayerNormWeights<B>, // (W)
    graph: GraphId,
}

impl<B: Backend> Vision<B> {
    /// Takes the tensors `vision.*` and `projection.*`.
    pub fn load(loader: &mut Loader<'_, B>, config: &ModelConfig) -> Result<Vision<B>> {
        let (vision, tokens) = (&config.vision, config.image_tokens());
        let (width, eps) = (vision.width, vision.eps);
        let shape = EncoderShape {
            layers: vision.layers,
            width,
            heads: vision.heads,
            inner: width,
            mlp: vision.mlp,
            activation: Activation::QuickGelu,
            eps,
        };
        Ok(Vision {
            patch: vision.patch,
            side: config.image.size,
            patch_embedding: loader
                .matrix("vision.patch_embedding.weight", [width, 3 * vision.patch * vision.patch])?,
            class: loader.vector("vision.class_embedding", width)?,
            position: loader.matrix("vision.position_embedding", [tokens, width])?,
            pre_norm: loader.norm("vision.pre_norm", width, eps)?,
            encoder: Encoder::load(loader, "vision.layers", &shape)?,
            post_norm: loader.norm("vision.post_norm", width, eps)?,
            projection: loader.linear("projection.linear", config.decoder.width, width)?,
            projection_norm: loader.norm("projection.norm", config.decoder.width, eps)?,
            graph: GraphId::new(),
        })
    }

    /// Pixels (B, 3, side, side), normalised, to image tokens (B*T, W).
    pub fn tokens(&self, backend: &B, pixels: &[f32], batch: usize) -> Result<B::Tensor> {
        let pixels = self.upload(backend, pixels, batch)?;
        backend.captured(&self.graph, &pixels, &|backend, pixels| self.project(backend, &self.encode(backend, pixels)?))
    }

    /// Pixels (B, 3, side, side) to the device.
    pub fn upload(&self, backend: &B, pixels: &[f32], batch: usize) -> Result<B::Tensor> {
        let columns = 3 * self.side * self.side;
        expect_len("vision pixels", pixels.len(), batch * columns)?;
        backend.upload([batch, columns], pixels)
    }

    /// Pixels (B, 3*side*side) to the encoder's output (B*T, C).
    pub fn encode(&self, backend: &B, pixels: &B::Tensor) -> Result<B::Tensor> {
        let batch = backend.shape(pixels)[0];
        let x = backend.patch_embed(pixels, &self.patch_embedding, &self.class, &self.position, self.patch)?;
        let x = backend.layer_norm(&x, &self.pre_norm)?;
        let x = self.encoder.forward(backend, x, batch)?;
        backend.layer_norm(&x, &self.post_norm)
    }

    /// The encoder's output to image tokens (B*T, W).
    pub fn project(&self, backend: &B, x: &B::Tensor) -> Result<B::Tensor> {
        let x = backend.linear(x, &self.projection, Activation::None, None)?;
        backend.layer_norm(&x, &self.projection_norm)
    }
}
