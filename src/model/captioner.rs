//! The captioner: vision encoder and unit decoder over the same weights file, from pixels to image tokens and to a KV cache
//! that holds their prefix. [`crate::generate`] takes it from there.

use super::decoder::Decoder;
use super::loader::Loader;
use super::vision::Vision;
use crate::Result;
use crate::backend::{Backend, CacheShape};
use crate::config::ModelConfig;

/// Weights of both models, on one backend.
pub struct Captioner<B: Backend> {
    /// Pixels to image tokens.
    pub vision: Vision<B>,
    /// Image tokens and unit tokens to logits.
    pub decoder: Decoder<B>,
    image_tokens: usize,
}

impl<B: Backend> Captioner<B> {
    /// Takes every tensor of `captioner.safetensors`.
    ///
    /// # Errors
    /// If one is missing or of another shape than `config` says, or the device has no room for it.
    pub fn load(loader: &mut Loader<'_, B>, config: &ModelConfig) -> Result<Captioner<B>> {
        Ok(Captioner {
            vision: Vision::load(loader, config)?,
            decoder: Decoder::load(loader, &config.decoder)?,
            image_tokens: config.image_tokens(),
        })
    }

    /// Pixels (B, 3, side, side), normalised, to image tokens (B*T, W).
    pub fn encode(&self, backend: &B, pixels: &[f32], batch: usize) -> Result<B::Tensor> {
        self.vision.tokens(backend, pixels, batch)
    }

    /// Image tokens (B*T, W) to a cache that holds their keys and values, with room for `max_new_tokens` a row.
    pub fn prefill(&self, backend: &B, tokens: &B::Tensor, batch: usize, max_new_tokens: usize) -> Result<B::KvCache> {
        self.decoder.prefill(backend, tokens, batch, max_new_tokens)
    }

    /// The shape of a cache for `images` images, with room for `max_new_tokens` a row.
    pub fn cache_shape(&self, images: usize, max_new_tokens: usize) -> CacheShape {
        self.decoder.cache_shape(images, self.image_tokens, max_new_tokens)
    }
}
