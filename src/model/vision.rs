//! The image encoder and the projection to the decoder's width. The encoder is an EfficientNet-lite, or a pre-LN vision
//! transformer whose tokens are all kept, over pixels or over the code vectors of image units. Source: transformers' GIT (GitVisionModel,
//! GitProjection) for pixels; for image units timm's VisionTransformer without its last norm. Checkpoint names in
//! `weights::convert`.

use super::efficient_net::EfficientNet;
use super::loader::{Loader, expect_len};
use super::transformer::{Division, Encoder, EncoderShape};
use crate::Result;
use crate::backend::{Activation, Backend, GraphId, LayerNormWeights, LinearWeights, PatchShape};
use crate::config::ModelConfig;

/// Weights of the encoder and the projection; C channels of a token, T tokens, W width of the decoder.
pub struct Vision<B: Backend> {
    values: usize,
    tower: Tower<B>,
    projection: LinearWeights<B>,         // (W, C)
    projection_norm: LayerNormWeights<B>, // (W)
    graph: GraphId,
}

/// The encoder.
enum Tower<B: Backend> {
    Transformer(Box<Transformer<B>>),
    EfficientNet(EfficientNet<B>),
}

impl<B: Backend> Vision<B> {
    /// Takes the tensors `vision.*` and `projection.*`.
    pub fn load(loader: &mut Loader<'_, B>, config: &ModelConfig) -> Result<Vision<B>> {
        let (vision, width) = (&config.vision, config.decoder.width);
        Ok(Vision {
            values: config.vision_values(),
            tower: match &vision.efficient_net {
                Some(net) => Tower::EfficientNet(EfficientNet::load(loader, net, vision.width, config.image.size)?),
                None => Tower::Transformer(Box::new(Transformer::load(loader, config)?)),
            },
            projection: loader.linear("projection.linear", width, vision.width)?,
            projection_norm: loader.norm("projection.norm", width, config.projection_eps())?,
            graph: GraphId::new(),
        })
    }

    /// Normalised pixels, or code vectors, (B, I, side, side) to image tokens (B*T, W).
    pub fn tokens(&self, backend: &B, pixels: &[f32], batch: usize) -> Result<B::Tensor> {
        let pixels = self.upload(backend, pixels, batch)?;
        backend.captured(&self.graph, &pixels, &|backend, pixels| self.project(backend, &self.encode(backend, pixels)?))
    }

    /// Pixels or code vectors (B, I, side, side) to the device.
    pub fn upload(&self, backend: &B, pixels: &[f32], batch: usize) -> Result<B::Tensor> {
        expect_len("vision pixels", pixels.len(), batch * self.values)?;
        backend.upload([batch, self.values], pixels)
    }

    /// Pixels or code vectors (B, I*side*side) to the encoder's output (B*T, C).
    pub fn encode(&self, backend: &B, pixels: &B::Tensor) -> Result<B::Tensor> {
        match &self.tower {
            Tower::Transformer(transformer) => transformer.forward(backend, pixels),
            Tower::EfficientNet(net) => net.forward(backend, pixels),
        }
    }

    /// The encoder's output to image tokens (B*T, W).
    pub fn project(&self, backend: &B, x: &B::Tensor) -> Result<B::Tensor> {
        let x = backend.linear(x, &self.projection, Activation::None, None)?;
        backend.layer_norm(&x, &self.projection_norm)
    }
}

/// Weights of a vision transformer; I channels of the input, P side of a patch.
struct Transformer<B: Backend> {
    patch: PatchShape,
    patch_embedding: B::Matrix,            // (C, I*P*P)
    class: B::Tensor,                      // (1, C)
    position: B::Matrix,                   // (T, C), with the bias of the patches
    pre_norm: Option<LayerNormWeights<B>>, // (C)
    encoder: Encoder<B>,
    post_norm: Option<LayerNormWeights<B>>, // (C)
}

impl<B: Backend> Transformer<B> {
    fn load(loader: &mut Loader<'_, B>, config: &ModelConfig) -> Result<Transformer<B>> {
        let (vision, tokens) = (&config.vision, config.image_tokens());
        let (width, eps, clip) = (vision.width, vision.eps, vision.units.is_none());
        let shape = EncoderShape {
            layers: vision.layers,
            width,
            heads: vision.heads,
            inner: width,
            mlp: vision.mlp,
            activation: activation(config),
            eps,
        };
        let patch = patch_shape(config);
        let mut outer_norm = |name: &str| clip.then(|| loader.norm(name, width, eps)).transpose();
        let (pre_norm, post_norm) = (outer_norm("vision.pre_norm")?, outer_norm("vision.post_norm")?);
        let (position, positions) = ("vision.position_embedding", [tokens, width]);
        Ok(Transformer {
            patch,
            patch_embedding: loader.matrix("vision.patch_embedding.weight", [width, patch.depth()])?,
            class: loader.vector("vision.class_embedding", width)?,
            position: match clip {
                true => loader.matrix(position, positions)?,
                // The class embedding has no such bias.
                false => loader.positions(position, "vision.patch_embedding.bias", positions, 1)?,
            },
            pre_norm,
            encoder: Encoder::load(loader, "vision.layers", &shape)?,
            post_norm,
        })
    }

    /// Pixels or code vectors (B, I*side*side) to the last layer's output (B*T, C).
    fn forward(&self, backend: &B, pixels: &B::Tensor) -> Result<B::Tensor> {
        let batch = backend.shape(pixels)[0];
        let x = backend.patch_embed(pixels, &self.patch_embedding, Some(&self.class), &self.position, self.patch)?;
        let x = normed(backend, x, self.pre_norm.as_ref())?;
        let x = self.encoder.forward(backend, x, Division::Equal(batch))?;
        normed(backend, x, self.post_norm.as_ref())
    }
}

/// How the patches of a model are cut.
pub fn patch_shape(config: &ModelConfig) -> PatchShape {
    let (inputs, patch) = (config.vision_inputs(), config.vision.patch);
    PatchShape { inputs, patch, stride: config.vision.units.as_ref().map_or(patch, |units| units.stride) }
}

/// A layer norm, where there is one.
fn normed<B: Backend>(backend: &B, x: B::Tensor, norm: Option<&LayerNormWeights<B>>) -> Result<B::Tensor> {
    norm.map_or(Ok(x.clone()), |norm| backend.layer_norm(&x, norm))
}

/// Activation of the layers of a model.
pub fn activation(config: &ModelConfig) -> Activation {
    if config.vision.units.is_some() { Activation::Gelu } else { Activation::QuickGelu }
}
