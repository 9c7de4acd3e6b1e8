//! The image encoder and the projection in training. A frozen encoder is `model::vision`'s; here are the projection over its
//! tokens, and the encoder for full fine-tuning.

use super::buckets::OnFinal;
use super::parameters::{self, LayerPlaces, Layout};
use crate::backend::{
    Activation, AttentionShape, LayerNormWeights, LinearWeights, PatchParameters, PatchShape, Train, TransformerLayer,
    WeightAndBias,
};
use crate::config::ModelConfig;
use crate::model::vision::{activation, patch_shape};
use crate::{Error, Result};

/// Places of the projection's parameters.
#[derive(Clone, Copy, Debug)]
pub struct ProjectionPlaces {
    linear: WeightAndBias, // (W, C)
    norm: WeightAndBias,   // (W)
}

impl ProjectionPlaces {
    /// Adds the parameters `projection.*`.
    pub fn new(layout: &mut Layout, config: &ModelConfig) -> ProjectionPlaces {
        ProjectionPlaces {
            linear: layout.linear("projection.linear", config.decoder.width, config.vision.width),
            norm: layout.norm("projection.norm", config.decoder.width),
        }
    }
}

/// The projection as views of a block, after its forward pass.
pub struct Projection<B: Train> {
    places: ProjectionPlaces,
    linear: LinearWeights<B>,
    norm: LayerNormWeights<B>,
    x: B::Tensor,     // (M, C)
    sum: B::Tensor,   // (M, W), before its norm
    saved: B::Tensor, // (M, 2)
}

impl<B: Train> Projection<B> {
    /// The encoder's output (M, C) to image tokens (M, W).
    pub fn forward(
        backend: &B,
        block: &B::Block,
        places: ProjectionPlaces,
        config: &ModelConfig,
        x: B::Tensor,
    ) -> Result<(B::Tensor, Projection<B>)> {
        let linear = parameters::linear(backend, block, places.linear)?;
        let norm = parameters::norm(backend, block, places.norm, config.projection_eps())?;
        let sum = backend.linear(&x, &linear, Activation::None, None)?;
        let (tokens, saved) = backend.layer_norm_saving(&sum, &norm)?;
        Ok((tokens, Projection { places, linear, norm, x, sum, saved }))
    }

    /// The gradient at the encoder's output from that at the image tokens, if it is wanted.
    pub fn backward(
        &self,
        backend: &B,
        dtokens: &B::Tensor,
        wanted: bool,
        gradients: &mut B::Gradients,
        on_final: &mut OnFinal<'_, B::Gradients>,
    ) -> Result<Option<B::Tensor>> {
        let into = Some((&mut *gradients, self.places.norm));
        let dsum = backend.layer_norm_backward(dtokens, &self.sum, &self.norm, &self.saved, None, into)?;
        backend.linear_weight_backward(&dsum, &self.x, gradients, self.places.linear)?;
        on_final(gradients, self.places.linear.weight.start)?;
        wanted.then(|| backend.linear_backward(&dsum, &self.linear, None, None)).transpose()
    }
}

/// Places of the encoder's parameters.
#[derive(Clone, Debug)]
pub struct EncoderPlaces {
    patch: PatchParameters,
    /// (C); `None` for image units.
    pre_norm: Option<WeightAndBias>,
    layers: Vec<LayerPlaces>,
    /// (C); `None` for image units.
    post_norm: Option<WeightAndBias>,
}

impl EncoderPlaces {
    /// Adds the parameters `vision.*`.
    pub fn new(layout: &mut Layout, config: &ModelConfig) -> EncoderPlaces {
        let (vision, pixels) = (&config.vision, config.vision.units.is_none());
        EncoderPlaces {
            patch: PatchParameters {
                weight: layout.matrix("vision.patch_embedding.weight", [vision.width, patch_shape(config).depth()]),
                class: layout.vector("vision.class_embedding", vision.width),
                position: layout.matrix("vision.position_embedding", [config.image_tokens(), vision.width]),
            },
            pre_norm: pixels.then(|| layout.norm("vision.pre_norm", vision.width)),
            layers: (0..vision.layers)
                .map(|n| layout.layer(&format!("vision.layers.{n}"), vision.width, vision.mlp))
                .collect(),
            post_norm: pixels.then(|| layout.norm("vision.post_norm", vision.width)),
        }
    }
}

/// Values of a layer's forward pass that its backward pass reads; M rows.
struct SavedLayer<B: Train> {
    x: B::Tensor,               // (M, C)
    norm: B::Tensor,            // (M, 2)
    normed: B::Tensor,          // (M, C)
    qkv: B::Tensor,             // (M, 3C)
    attended: B::Tensor,        // (M, C)
    log_sum_exp: B::Tensor,     // (B*H, T)
    after_attention: B::Tensor, // (M, C)
    mlp_norm: B::Tensor,        // (M, 2)
    mlp_normed: B::Tensor,      // (M, C)
    before_gelu: B::Tensor,     // (M, F)
    hidden: B::Tensor,          // (M, F)
}

/// The encoder as views of a block, after its forward pass.
pub struct Encoder<'a, B: Train> {
    places: &'a EncoderPlaces,
    patch: PatchShape,
    shape: AttentionShape,
    layers: Vec<TransformerLayer<B>>,
    activation: Activation,
    pixels: B::Tensor, // (B, I*side*side)
    pre_norm: OuterNorm<B>,
    saved: Vec<SavedLayer<B>>,
    post_norm: OuterNorm<B>,
}

/// The norm before the first layer or after the last, after its forward pass; `None` where there is none.
type OuterNorm<B> = Option<SavedNorm<B>>;

/// A norm with its input.
struct SavedNorm<B: Train> {
    at: WeightAndBias,
    norm: LayerNormWeights<B>,
    x: B::Tensor,     // (M, C)
    saved: B::Tensor, // (M, 2)
}

impl<B: Train> SavedNorm<B> {
    /// x through the norm, if there is one.
    fn forward(
        backend: &B,
        block: &B::Block,
        at: Option<WeightAndBias>,
        eps: f32,
        x: B::Tensor,
    ) -> Result<(B::Tensor, OuterNorm<B>)> {
        let Some(at) = at else { return Ok((x, None)) };
        let norm = parameters::norm(backend, block, at, eps)?;
        let (result, saved) = backend.layer_norm_saving(&x, &norm)?;
        Ok((result, Some(SavedNorm { at, norm, x, saved })))
    }

    /// The gradient before the norm, if there is one, from that after it.
    fn backward(norm: &OuterNorm<B>, backend: &B, dy: B::Tensor, gradients: &mut B::Gradients) -> Result<B::Tensor> {
        let Some(SavedNorm { at, norm, x, saved }) = norm else { return Ok(dy) };
        backend.layer_norm_backward(&dy, x, norm, saved, None, Some((gradients, *at)))
    }
}

impl<'a, B: Train> Encoder<'a, B> {
    /// Pixels or code vectors (B, I*side*side) to the encoder's output (B*T, C).
    pub fn forward(
        backend: &B,
        block: &B::Block,
        places: &'a EncoderPlaces,
        config: &ModelConfig,
        pixels: B::Tensor,
    ) -> Result<(B::Tensor, Encoder<'a, B>)> {
        let (vision, tokens) = (&config.vision, config.image_tokens());
        let shape = AttentionShape { batch: backend.shape(&pixels)[0], tokens, heads: vision.heads, prefix: tokens };
        let (patch, activation) = (patch_shape(config), activation(config));
        let embedded = backend.patch_embed(
            &pixels,
            &backend.parameter_matrix(block, places.patch.weight)?,
            Some(&backend.parameter_tensor(block, places.patch.class)?),
            &backend.parameter_matrix(block, places.patch.position)?,
            patch,
        )?;
        let (mut x, pre_norm) = SavedNorm::forward(backend, block, places.pre_norm, vision.eps, embedded)?;
        let (mut layers, mut saved) = (Vec::new(), Vec::new());
        for at in &places.layers {
            let layer = parameters::layer(backend, block, at, vision.eps)?;
            let (result, values) = forward(backend, &layer, x, shape, activation)?;
            x = result;
            layers.push(layer);
            saved.push(values);
        }
        let (result, post_norm) = SavedNorm::forward(backend, block, places.post_norm, vision.eps, x)?;
        let encoder = Encoder { places, patch, shape, layers, activation, pixels, pre_norm, saved, post_norm };
        Ok((result, encoder))
    }

    /// Adds the gradients of all parameters from that at the encoder's output.
    pub fn backward(
        mut self,
        backend: &B,
        dresult: &B::Tensor,
        gradients: &mut B::Gradients,
        on_final: &mut OnFinal<'_, B::Gradients>,
    ) -> Result<()> {
        let mut dx = SavedNorm::backward(&self.post_norm, backend, dresult.clone(), gradients)?;
        for (layer, at) in self.layers.iter().zip(&self.places.layers).rev() {
            let saved = self.saved.pop().ok_or_else(|| Error::internal("a layer without its forward pass"))?;
            dx = backward(backend, layer, at, &saved, dx, (self.shape, self.activation), gradients)?;
            on_final(gradients, at.start())?;
        }
        let dembedded = SavedNorm::backward(&self.pre_norm, backend, dx, gradients)?;
        backend.patch_embed_backward(&dembedded, &self.pixels, self.patch, gradients, self.places.patch)?;
        on_final(gradients, self.places.patch.weight.start)
    }
}

/// A pre-norm layer.
fn forward<B: Train>(
    backend: &B,
    layer: &TransformerLayer<B>,
    x: B::Tensor,
    shape: AttentionShape,
    activation: Activation,
) -> Result<(B::Tensor, SavedLayer<B>)> {
    let (normed, norm) = backend.layer_norm_saving(&x, &layer.attention_norm)?;
    let qkv = backend.linear(&normed, &layer.qkv, Activation::None, None)?;
    let (attended, log_sum_exp) = backend.attention_saving(&qkv, shape, None)?;
    let after_attention = backend.linear(&attended, &layer.attention_out, Activation::None, Some(&x))?;
    let (mlp_normed, mlp_norm) = backend.layer_norm_saving(&after_attention, &layer.mlp_norm)?;
    let (hidden, before_gelu) = backend.linear_saving(&mlp_normed, &layer.fc1, activation)?;
    let result = backend.linear(&hidden, &layer.fc2, Activation::None, Some(&after_attention))?;
    let saved = SavedLayer {
        x,
        norm,
        normed,
        qkv,
        attended,
        log_sum_exp,
        after_attention,
        mlp_norm,
        mlp_normed,
        before_gelu,
        hidden,
    };
    Ok((result, saved))
}

/// The gradient at a layer's input from that at its result; gradients of its parameters are added.
fn backward<B: Train>(
    backend: &B,
    layer: &TransformerLayer<B>,
    at: &LayerPlaces,
    saved: &SavedLayer<B>,
    dresult: B::Tensor,
    (shape, activation): (AttentionShape, Activation),
    gradients: &mut B::Gradients,
) -> Result<B::Tensor> {
    let s = saved;
    backend.linear_weight_backward(&dresult, &s.hidden, gradients, at.fc2)?;
    let input = Some((activation, &s.before_gelu));
    let dbefore = backend.linear_backward(&dresult, &layer.fc2, input, None)?;
    backend.linear_weight_backward(&dbefore, &s.mlp_normed, gradients, at.fc1)?;
    let dnormed = backend.linear_backward(&dbefore, &layer.fc1, None, None)?;
    let into = Some((&mut *gradients, at.mlp_norm));
    let dafter = backend.layer_norm_backward(
        &dnormed,
        &s.after_attention,
        &layer.mlp_norm,
        &s.mlp_norm,
        Some(&dresult),
        into,
    )?;
    backend.linear_weight_backward(&dafter, &s.attended, gradients, at.attention_out)?;
    let dattended = backend.linear_backward(&dafter, &layer.attention_out, None, None)?;
    let dqkv = backend.attention_backward(&dattended, &s.qkv, &s.attended, &s.log_sum_exp, shape, None)?;
    backend.linear_weight_backward(&dqkv, &s.normed, gradients, at.qkv)?;
    let dnormed = backend.linear_backward(&dqkv, &layer.qkv, None, None)?;
    let into = Some((&mut *gradients, at.attention_norm));
    backend.layer_norm_backward(&dnormed, &s.x, &layer.attention_norm, &s.norm, Some(&dafter), into)
}
