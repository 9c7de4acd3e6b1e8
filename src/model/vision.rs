//! The image encoder: a CLIP-style pre-LN vision transformer whose tokens are all kept, and the projection to the
//! decoder's width. Source: transformers' GIT (GitVisionModel, GitProjection), checkpoint names in `weights::convert`.

use super::loader::{Loader, expect_len};
use crate::Result;
use crate::backend::{Activation, AttentionShape, Backend, GraphId, LayerNormWeights, LinearWeights, TransformerLayer};
use crate::config::ModelConfig;

/// Weights of the encoder and the projection; C channels, T tokens, P side of a patch, W width of the decoder.
pub struct Vision<B: Backend> {
    patch: usize,
    side: usize,
    image_tokens: usize,
    heads: usize,
    patch_embedding: B::Matrix,    // (C, 3*P*P)
    class: B::Tensor,              // (1, C)
    position: B::Matrix,           // (T, C)
    pre_norm: LayerNormWeights<B>, // (C)
    layers: Vec<TransformerLayer<B>>,
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
        Ok(Vision {
            patch: vision.patch,
            side: config.image.size,
            image_tokens: tokens,
            heads: vision.heads,
            patch_embedding: loader
                .matrix("vision.patch_embedding.weight", [width, 3 * vision.patch * vision.patch])?,
            class: loader.vector("vision.class_embedding", width)?,
            position: loader.matrix("vision.position_embedding", [tokens, width])?,
            pre_norm: loader.norm("vision.pre_norm", width, eps)?,
            layers: (0..vision.layers)
                .map(|n| loader.layer(&format!("vision.layers.{n}"), width, vision.mlp, eps))
                .collect::<Result<_>>()?,
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
        let mut x = backend.layer_norm(&x, &self.pre_norm)?;
        for layer in &self.layers {
            x = self.layer(backend, layer, x, batch)?;
        }
        backend.layer_norm(&x, &self.post_norm)
    }

    /// The encoder's output to image tokens (B*T, W).
    pub fn project(&self, backend: &B, x: &B::Tensor) -> Result<B::Tensor> {
        let x = backend.linear(x, &self.projection, Activation::None, None)?;
        backend.layer_norm(&x, &self.projection_norm)
    }

    fn layer(&self, backend: &B, layer: &TransformerLayer<B>, x: B::Tensor, batch: usize) -> Result<B::Tensor> {
        let shape = AttentionShape { batch, tokens: self.image_tokens, heads: self.heads, prefix: self.image_tokens };
        let normed = backend.layer_norm(&x, &layer.attention_norm)?;
        let qkv = backend.linear(&normed, &layer.qkv, Activation::None, None)?;
        let attended = backend.attention(&qkv, shape)?;
        let x = backend.linear(&attended, &layer.attention_out, Activation::None, Some(&x))?;
        let normed = backend.layer_norm(&x, &layer.mlp_norm)?;
        let hidden = backend.linear(&normed, &layer.fc1, Activation::QuickGelu, None)?;
        backend.linear(&hidden, &layer.fc2, Activation::None, Some(&x))
    }
}
