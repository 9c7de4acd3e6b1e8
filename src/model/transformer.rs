//! A transformer encoder: `x += out(attention(norm(x)))`, then `x += fc2(act(fc1(norm(x))))`, in every layer, or with the norms
//! after the sums. CLIP's and timm's vision transformers, the ViT-VQGAN encoder and wav2vec 2.0 with stable layer norm have them
//! before, HuBERT Base after.
//! Embeddings before the first layer and norms after the last belong to the models.

use super::loader::Loader;
use crate::backend::{Activation, AttentionShape, Backend, Sequences, TransformerLayer};
use crate::{Error, Result};

/// Dimensions of an encoder.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EncoderShape {
    /// Layers.
    pub layers: usize,
    /// Channels C.
    pub width: usize,
    /// Heads H.
    pub heads: usize,
    /// Channels of all heads together, H*D; the width in most models.
    pub inner: usize,
    /// Hidden channels F of the feed-forward part.
    pub mlp: usize,
    /// Activation of the feed-forward part.
    pub activation: Activation,
    /// Epsilon of the layer norms.
    pub eps: f32,
}

/// Division of rows into sequences, whose tokens all see each other.
#[derive(Clone, Copy, Debug)]
pub enum Division<'a> {
    /// So many of one length.
    Equal(usize),
    /// Sequences of different lengths.
    Ragged(&'a Sequences),
}

/// The layers of an encoder.
pub struct Encoder<B: Backend> {
    heads: usize,
    activation: Activation,
    layers: Vec<TransformerLayer<B>>,
}

impl<B: Backend> Encoder<B> {
    /// Takes the layers `prefix.0`, `prefix.1` and so on.
    pub fn load(loader: &mut Loader<'_, B>, prefix: &str, shape: &EncoderShape) -> Result<Encoder<B>> {
        let sizes = [shape.width, shape.inner, shape.mlp];
        let layers = (0..shape.layers).map(|n| loader.layer(&format!("{prefix}.{n}"), sizes, shape.eps));
        Ok(Encoder { heads: shape.heads, activation: shape.activation, layers: layers.collect::<Result<_>>()? })
    }

    /// Sequences (B*T, C) to the result of the last layer (B*T, C).
    pub fn forward(&self, backend: &B, x: B::Tensor, division: Division<'_>) -> Result<B::Tensor> {
        self.layers.iter().try_fold(x, |x, layer| self.layer(backend, layer, &x, division))
    }

    /// As [`Encoder::forward`], with the norms after the residuals.
    pub fn forward_post_norm(&self, backend: &B, x: B::Tensor, division: Division<'_>) -> Result<B::Tensor> {
        self.layers.iter().try_fold(x, |x, layer| self.layer_post_norm(backend, layer, &x, division))
    }

    fn attention(&self, backend: &B, qkv: &B::Tensor, division: Division<'_>) -> Result<B::Tensor> {
        let batch = match division {
            Division::Equal(batch) => batch,
            Division::Ragged(sequences) => return backend.attention_ragged(qkv, self.heads, sequences),
        };
        let rows = backend.shape(qkv)[0];
        let tokens = rows.checked_div(batch).unwrap_or(0);
        if batch * tokens != rows {
            return Err(Error::shape("encoder", format!("{rows} rows of {batch} sequences of one length")));
        }
        backend.attention(qkv, AttentionShape { batch, tokens, heads: self.heads, prefix: tokens })
    }

    fn layer(
        &self,
        backend: &B,
        layer: &TransformerLayer<B>,
        x: &B::Tensor,
        division: Division<'_>,
    ) -> Result<B::Tensor> {
        let normed = backend.layer_norm(x, &layer.attention_norm)?;
        let qkv = backend.linear(&normed, &layer.qkv, Activation::None, None)?;
        let attended = self.attention(backend, &qkv, division)?;
        let x = backend.linear(&attended, &layer.attention_out, Activation::None, Some(x))?;
        let normed = backend.layer_norm(&x, &layer.mlp_norm)?;
        let hidden = backend.linear(&normed, &layer.fc1, self.activation, None)?;
        backend.linear(&hidden, &layer.fc2, Activation::None, Some(&x))
    }

    fn layer_post_norm(
        &self,
        backend: &B,
        layer: &TransformerLayer<B>,
        x: &B::Tensor,
        division: Division<'_>,
    ) -> Result<B::Tensor> {
        let qkv = backend.linear(x, &layer.qkv, Activation::None, None)?;
        let attended = self.attention(backend, &qkv, division)?;
        let x = backend.linear(&attended, &layer.attention_out, Activation::None, Some(x))?;
        let x = backend.layer_norm(&x, &layer.attention_norm)?;
        let hidden = backend.linear(&x, &layer.fc1, self.activation, None)?;
        let x = backend.linear(&hidden, &layer.fc2, Activation::None, Some(&x))?;
        backend.layer_norm(&x, &layer.mlp_norm)
    }
}
