//! The image tokenizer: the encoder of a ViT-VQGAN and its codebook, from pixels to a grid of image units. Source: Yu et al.,
//! "Vector-quantized Image Modeling with Improved VQGAN" (2021), section 3; names of the published module in
//! `weights::convert`. The decoder, which makes images of units, is left out: nothing here needs it.

use super::codebook::{Codebook, Metric};
use super::loader::{Loader, expect_len};
use super::transformer::{Division, Encoder, EncoderShape};
use crate::backend::{Activation, Backend, GraphId, LayerNormWeights, LinearWeights, PatchShape};
use crate::config::TokenizerConfig;
use crate::{Error, Result};

/// Weights of the tokenizer; D channels, T = grid * grid tokens, P side of a patch, W width of a code.
pub struct Tokenizer<B: Backend> {
    config: TokenizerConfig,
    patch_embedding: B::Matrix, // (D, 3*P*P)
    position: B::Matrix,        // (T, D), with the bias of the patches
    encoder: Encoder<B>,
    norm: LayerNormWeights<B>,    // (D)
    projection: LinearWeights<B>, // (W, D)
    codebook: Codebook<B>,
    graph: GraphId,
}

impl<B: Backend> Tokenizer<B> {
    /// Takes every tensor of `tokenizer.safetensors`.
    ///
    /// # Errors
    /// If one is missing or of another shape than `config` says, or a code has no direction.
    pub fn load(loader: &mut Loader<'_, B>, config: &TokenizerConfig) -> Result<Tokenizer<B>> {
        let (width, tokens) = (config.width, config.units());
        let shape = EncoderShape {
            layers: config.layers,
            width,
            heads: config.heads,
            inner: config.inner,
            mlp: config.mlp,
            activation: Activation::Tanh,
            eps: config.eps,
        };
        let patch = PatchShape::rgb(config.patch);
        Ok(Tokenizer {
            config: config.clone(),
            patch_embedding: loader.matrix("patch_embedding.weight", [width, patch.depth()])?,
            position: loader.positions("position_embedding", "patch_embedding.bias", [tokens, width], 0)?,
            encoder: Encoder::load(loader, "layers", &shape)?,
            norm: loader.norm("norm", width, config.eps)?,
            projection: loader.linear("projection", config.code_width, width)?,
            codebook: Codebook::load(loader, "codebook", [config.codes, config.code_width], Metric::Cosine)?,
            graph: GraphId::new(),
        })
    }

    /// The dimensions.
    pub fn config(&self) -> &TokenizerConfig {
        &self.config
    }

    /// Pixels (B, 3, side, side) in 0..1 to the vectors that are quantized (B*T, W).
    pub fn features(&self, backend: &B, pixels: &[f32], batch: usize) -> Result<B::Tensor> {
        let values = 3 * self.config.image.size * self.config.image.size;
        expect_len("tokenizer pixels", pixels.len(), batch * values)?;
        let pixels = backend.upload([batch, values], pixels)?;
        backend.captured(&self.graph, &pixels, &|backend, pixels| {
            let patch = PatchShape::rgb(self.config.patch);
            let x = backend.patch_embed(pixels, &self.patch_embedding, None, &self.position, patch)?;
            let x = self.encoder.forward(backend, x, Division::Equal(batch))?;
            let x = backend.layer_norm(&x, &self.norm)?;
            backend.linear(&x, &self.projection, Activation::None, None)
        })
    }

    /// Pixels (B, 3, side, side) in 0..1 to the units of each image, row by row.
    pub fn units(&self, backend: &B, pixels: &[f32], batch: usize) -> Result<Vec<Vec<u16>>> {
        let mut codes = Vec::new();
        self.codebook.nearest(backend, &self.features(backend, pixels, batch)?, &mut codes)?;
        let codes: Vec<u16> = codes
            .into_iter()
            .map(u16::try_from)
            .collect::<std::result::Result<_, _>>()
            .map_err(|_| Error::internal("a codebook of more than 65536 codes"))?;
        Ok(codes.chunks_exact(self.config.units()).map(<[u16]>::to_vec).collect())
    }
}
