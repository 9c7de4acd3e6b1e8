//! The image tokenizer: an encoder and a codebook, from pixels to a grid of image units. The encoder is that of a ViT-VQGAN (Yu
//! et al., "Vector-quantized Image Modeling with Improved VQGAN", 2021, section 3; names of the published module in
//! `weights::convert`), or an EfficientNet-lite whose tokens are cut into several vectors each, as in product quantization (Jégou
//! et al., "Product Quantization for Nearest Neighbor Search", 2011). Nothing here makes images of units.

use super::codebook::{Codebook, Metric};
use super::efficient_net::EfficientNet;
use super::loader::{Loader, expect_len};
use super::transformer::{Division, Encoder, EncoderShape};
use crate::backend::{Activation, Backend, GraphId, LayerNormWeights, LinearWeights, PatchShape};
use crate::config::TokenizerConfig;
use crate::{Error, Result};

/// Weights of the tokenizer; D channels of a token, T tokens, S units of a token, W width of a code.
pub struct Tokenizer<B: Backend> {
    config: TokenizerConfig,
    tower: Tower<B>,
    projection: LinearWeights<B>, // (S*W, D)
    codebook: Codebook<B>,
    graph: GraphId,
}

/// The encoder.
enum Tower<B: Backend> {
    Transformer(Box<Transformer<B>>),
    EfficientNet(EfficientNet<B>),
}

/// The encoder of a ViT-VQGAN; P side of a patch.
struct Transformer<B: Backend> {
    patch: PatchShape,
    patch_embedding: B::Matrix, // (D, 3*P*P)
    position: B::Matrix,        // (T, D), with the bias of the patches
    encoder: Encoder<B>,
    norm: LayerNormWeights<B>, // (D)
}

impl<B: Backend> Transformer<B> {
    fn load(loader: &mut Loader<'_, B>, config: &TokenizerConfig) -> Result<Transformer<B>> {
        let (width, tokens) = (config.width, config.tokens() * config.tokens());
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
        Ok(Transformer {
            patch,
            patch_embedding: loader.matrix("patch_embedding.weight", [width, patch.depth()])?,
            position: loader.positions("position_embedding", "patch_embedding.bias", [tokens, width], 0)?,
            encoder: Encoder::load(loader, "layers", &shape)?,
            norm: loader.norm("norm", width, config.eps)?,
        })
    }

    /// Pixels (B, 3*side*side) to tokens (B*T, D).
    fn forward(&self, backend: &B, pixels: &B::Tensor) -> Result<B::Tensor> {
        let batch = backend.shape(pixels)[0];
        let x = backend.patch_embed(pixels, &self.patch_embedding, None, &self.position, self.patch)?;
        let x = self.encoder.forward(backend, x, Division::Equal(batch))?;
        backend.layer_norm(&x, &self.norm)
    }
}

impl<B: Backend> Tokenizer<B> {
    /// Takes every tensor of `tokenizer.safetensors`.
    ///
    /// # Errors
    /// If one is missing or of another shape than `config` says, or a code has no direction.
    pub fn load(loader: &mut Loader<'_, B>, config: &TokenizerConfig) -> Result<Tokenizer<B>> {
        let (width, code_width) = (config.width, config.code_width);
        let values = config.token_units * config.token_units * code_width;
        Ok(Tokenizer {
            config: config.clone(),
            tower: match &config.efficient_net {
                Some(net) => Tower::EfficientNet(EfficientNet::load(loader, net, width, config.image.size)?),
                None => Tower::Transformer(Box::new(Transformer::load(loader, config)?)),
            },
            projection: loader.linear("projection", values, width)?,
            codebook: Codebook::load(loader, "codebook", [config.codes, code_width], Metric::Cosine)?,
            graph: GraphId::new(),
        })
    }

    /// The dimensions.
    pub fn config(&self) -> &TokenizerConfig {
        &self.config
    }

    /// Pixels (B, 3, side, side) to the vectors that are quantized (B*T, S*W).
    pub fn features(&self, backend: &B, pixels: &[f32], batch: usize) -> Result<B::Tensor> {
        let values = 3 * self.config.image.size * self.config.image.size;
        expect_len("tokenizer pixels", pixels.len(), batch * values)?;
        let pixels = backend.upload([batch, values], pixels)?;
        backend.captured(&self.graph, &pixels, &|backend, pixels| {
            let x = match &self.tower {
                Tower::Transformer(transformer) => transformer.forward(backend, pixels)?,
                Tower::EfficientNet(net) => net.forward(backend, pixels)?,
            };
            backend.linear(&x, &self.projection, Activation::None, None)
        })
    }

    /// Pixels (B, 3, side, side) to the units of each image, row by row.
    pub fn units(&self, backend: &B, pixels: &[f32], batch: usize) -> Result<Vec<Vec<u16>>> {
        let mut codes = Vec::new();
        self.codebook.nearest(backend, &self.vectors(backend, pixels, batch)?, &mut codes)?;
        let codes: Vec<u16> = codes
            .into_iter()
            .map(u16::try_from)
            .collect::<std::result::Result<_, _>>()
            .map_err(|_| Error::internal("a codebook of more than 65536 codes"))?;
        Ok(codes.chunks_exact(self.config.units()).map(|codes| self.arranged(codes)).collect())
    }

    /// As [`Tokenizer::features`], a row for each unit: (B*T*S, W).
    fn vectors(&self, backend: &B, pixels: &[f32], batch: usize) -> Result<B::Tensor> {
        let features = self.features(backend, pixels, batch)?;
        if self.config.token_units == 1 {
            return Ok(features);
        }
        // Small next to the pixels that came; a view of other rows and columns is no operation of a backend.
        let rows = [batch * self.config.units(), self.config.code_width];
        backend.upload(rows, &backend.download(&features)?)
    }

    /// The units of an image, token after token, in rows of the grid: those of a token are a square.
    fn arranged(&self, codes: &[u16]) -> Vec<u16> {
        let (side, grid) = (self.config.token_units, self.config.grid());
        let place = |row: usize, column: usize| {
            let token = row / side * self.config.tokens() + column / side;
            (token * side + row % side) * side + column % side
        };
        (0..grid * grid).map(|at| codes[place(at / grid, at % grid)]).collect()
    }
}
