//! The speech-unit decoder: a post-LN transformer over image tokens and unit tokens, its output tied to the word
//! embedding. Image tokens never see units, so [`Decoder::prefill`] runs once per image, and every later step handles
//! one token a row. Source: transformers' GIT (GitForCausalLM) with the vocabulary replaced by units.

use super::loader::Loader;
use crate::backend::{
    Activation, AttentionShape, Backend, CacheShape, DecoderWeights, Device, GraphId, LayerNormWeights, LinearWeights,
    TransformerLayer,
};
use crate::config::DecoderConfig;
use crate::units::{BOS, EOS};
use crate::{Error, Result};

/// Weights of the decoder; C channels, V vocabulary, P positions.
pub struct Decoder<B: Backend> {
    config: DecoderConfig,
    position: B::Matrix,                 // (P, C)
    embedding_norm: LayerNormWeights<B>, // (C)
    layers: Vec<TransformerLayer<B>>,
    output: LinearWeights<B>, // (V, C), also the word embedding
    step: GraphId,
}

/// [`Backend::linear`] or [`Backend::linear_decode`].
type LinearForm<B> = fn(
    &B,
    &<B as Device>::Tensor,
    &LinearWeights<B>,
    Activation,
    Option<&<B as Device>::Tensor>,
) -> Result<<B as Device>::Tensor>;

impl<B: Backend> Decoder<B> {
    /// Takes the tensors `decoder.*`.
    pub fn load(loader: &mut Loader<'_, B>, config: &DecoderConfig) -> Result<Decoder<B>> {
        let (width, eps) = (config.width, config.eps);
        Ok(Decoder {
            config: config.clone(),
            position: loader.matrix("decoder.position_embedding", [config.max_positions, width])?,
            embedding_norm: loader.norm("decoder.embedding_norm", width, eps)?,
            layers: (0..config.layers)
                .map(|n| loader.layer(&format!("decoder.layers.{n}"), [width, width, config.mlp], eps))
                .collect::<Result<_>>()?,
            output: LinearWeights {
                weight: loader.matrix("decoder.word_embedding", [config.vocabulary, width])?,
                bias: loader.vector("decoder.output_bias", config.vocabulary)?,
            },
            step: GraphId::new(),
        })
    }

    /// The dimensions.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The output (V, C), whose weight is the word embedding.
    pub fn output(&self) -> &LinearWeights<B> {
        &self.output
    }

    /// The layers, in their order.
    pub fn layers(&self) -> &[TransformerLayer<B>] {
        &self.layers
    }

    /// Tokens at their positions to the input of the first layer (R, C).
    pub fn embed(&self, backend: &B, ids: &[u32], positions: &[u32]) -> Result<B::Tensor> {
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= self.config.vocabulary) {
            return Err(Error::shape("decoder", format!("token {id} of a vocabulary of {}", self.config.vocabulary)));
        }
        let x = backend.embed(&self.output.weight, &self.position, ids, positions)?;
        backend.layer_norm(&x, &self.embedding_norm)
    }

    /// The last layer's result (M, C) to logits (M, V), for whole sequences.
    pub fn logits(&self, backend: &B, x: &B::Tensor) -> Result<B::Tensor> {
        backend.linear(x, &self.output, Activation::None, None)
    }

    /// The shape of a cache for `images` images of `prefix` tokens each, with room for `max_new_tokens` in every row.
    pub fn cache_shape(&self, images: usize, prefix: usize, max_new_tokens: usize) -> CacheShape {
        let (layers, heads) = (self.layers.len(), self.config.heads);
        CacheShape { layers, heads, head_size: self.config.width / heads, images, prefix, max_new_tokens }
    }

    /// Image tokens (images*T, C) to a cache that holds their keys and values and nothing else.
    pub fn prefill(&self, backend: &B, tokens: &B::Tensor, images: usize, max_new_tokens: usize) -> Result<B::KvCache> {
        let prefix = backend.shape(tokens)[0].checked_div(images).unwrap_or(0);
        let mut cache = backend.kv_cache(self.cache_shape(images, prefix, max_new_tokens))?;
        self.prefill_into(backend, &mut cache, &(0..images).collect::<Vec<_>>(), tokens)?;
        Ok(cache)
    }

    /// Image tokens (images*T, C) to their keys and values in these slots of the cache.
    pub fn prefill_into(
        &self,
        backend: &B,
        cache: &mut B::KvCache,
        images: &[usize],
        tokens: &B::Tensor,
    ) -> Result<()> {
        let (batch, heads) = (images.len(), self.config.heads);
        let prefix = backend.shape(tokens)[0].checked_div(batch).unwrap_or(0);
        let mut x = tokens.clone();
        for (n, layer) in self.layers.iter().enumerate() {
            let qkv = backend.prefill_qkv(cache, images, n, &x, &layer.qkv)?;
            // Nothing but the last layer's keys and values is ever read.
            if n + 1 < self.layers.len() {
                let attended = backend.attention(&qkv, AttentionShape { batch, tokens: prefix, heads, prefix })?;
                x = self.after_attention(backend, B::linear, layer, &attended, &x)?;
            }
        }
        Ok(())
    }

    /// One more token in the sequence of every live row of the cache, to logits (R, V).
    pub fn step(&self, backend: &B, cache: &mut B::KvCache, ids: &[u32]) -> Result<B::Tensor> {
        let x = self.embed(backend, ids, backend.kv_append(cache)?)?;
        backend.captured_step(&self.step, cache, &x, &|backend, cache, x| {
            let mut x = x.clone();
            for (n, layer) in self.layers.iter().enumerate() {
                let qkv = backend.linear_decode(&x, &layer.qkv, Activation::None, None)?;
                let attended = backend.attention_decode(&qkv, cache, n)?;
                x = self.after_attention(backend, B::linear_decode, layer, &attended, &x)?;
            }
            backend.linear_decode(&x, &self.output, Activation::None, None)
        })
    }

    /// The weights of a step, for a device that decodes in one launch.
    pub fn weights(&self) -> DecoderWeights<'_, B> {
        DecoderWeights {
            layers: &self.layers,
            output: &self.output,
            position: &self.position,
            embedding_norm: &self.embedding_norm,
            bos: BOS,
            eos: EOS,
        }
    }

    /// The rest of a layer: output projection, residual, norm; feed-forward, residual, norm. `linear` is the form that
    /// fits the number of rows.
    fn after_attention(
        &self,
        backend: &B,
        linear: LinearForm<B>,
        layer: &TransformerLayer<B>,
        attended: &B::Tensor,
        x: &B::Tensor,
    ) -> Result<B::Tensor> {
        let x = linear(backend, attended, &layer.attention_out, Activation::None, Some(x))?;
        let x = backend.layer_norm(&x, &layer.attention_norm)?;
        let hidden = linear(backend, &x, &layer.fc1, Activation::Gelu, None)?;
        let x = linear(backend, &hidden, &layer.fc2, Activation::None, Some(&x))?;
        backend.layer_norm(&x, &layer.mlp_norm)
    }
}
