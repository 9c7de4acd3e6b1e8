//! The image encoder and the projection in training. A frozen encoder is `model::vision`'s; here are the projection over its
//! tokens, and the encoder for full fine-tuning.

use super::buckets::OnFinal;
use super::parameters::{self, LayerPlaces, Layout};
use crate::backend::{
    Activation, AttentionShape, LayerNormWeights, LinearWeights, PatchParameters, PatchShape, Train, TransformerLayer,
    WeightAndBias,
};
use crate::config::ModelConfig;
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
    pre_norm: WeightAndBias, // (C)
    layers: Vec<LayerPlaces>,
    post_norm: WeightAndBias, // (C)
}

impl EncoderPlaces {
    /// Adds the parameters `vision.*`.
    pub fn new(layout: &mut Layout, config: &ModelConfig) -> EncoderPlaces {
        let vision = &config.vision;
        EncoderPlaces {
            patch: PatchParameters {
                weight: layout.matrix("vision.patch_embedding.weight", [vision.width, 3 * vision.patch * vision.patch]),
                class: layout.vector("vision.class_embedding", vision.width),
                position: layout.matrix("vision.position_embedding", [config.image_tokens(), vision.width]),
            },
            pre_norm: layout.norm("vision.pre_norm", vision.width),
            layers: (0..vision.layers)
                .map(|n| layout.layer(&format!("vision.layers.{n}"), vision.width, vision.mlp))
                .collect(),
            post_norm: layout.norm("vision.post_norm", vision.width),
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
    norms: [LayerNormWeights<B>; 2],
    pixels: B::Tensor,   // (B, 3*side*side)
    embedded: B::Tensor, // (M, C)
    pre_norm: B::Tensor, // (M, 2)
    saved: Vec<SavedLayer<B>>,
    last: B::Tensor,      // (M, C), before the last norm
    post_norm: B::Tensor, // (M, 2)
}

impl<'a, B: Train> Encoder<'a, B> {
    /// Pixels (B, 3*side*side) to the encoder's output (B*T, C).
    pub fn forward(
        backend: &B,
        block: &B::Block,
        places: &'a EncoderPlaces,
        config: &ModelConfig,
        pixels: B::Tensor,
    ) -> Result<(B::Tensor, Encoder<'a, B>)> {
        let (vision, tokens) = (&config.vision, config.image_tokens());
        let shape = AttentionShape { batch: backend.shape(&pixels)[0], tokens, heads: vision.heads, prefix: tokens };
        let norm = |at| parameters::norm(backend, block, at, vision.eps);
        let norms = [norm(places.pre_norm)?, norm(places.post_norm)?];
        let patch = PatchShape::rgb(vision.patch);
        let embedded = backend.patch_embed(
            &pixels,
            &backend.parameter_matrix(block, places.patch.weight)?,
            Some(&backend.parameter_tensor(block, places.patch.class)?),
            &backend.parameter_matrix(block, places.patch.position)?,
            patch,
        )?;
        let (mut x, pre_norm) = backend.layer_norm_saving(&embedded, &norms[0])?;
        let (mut layers, mut saved) = (Vec::new(), Vec::new());
        for at in &places.layers {
            let layer = parameters::layer(backend, block, at, vision.eps)?;
            let (result, values) = forward(backend, &layer, x, shape)?;
            x = result;
            layers.push(layer);
            saved.push(values);
        }
        let (result, post_norm) = backend.layer_norm_saving(&x, &norms[1])?;
        let encoder =
            Encoder { places, patch, shape, layers, norms, pixels, embedded, pre_norm, saved, last: x, post_norm };
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
        let into = Some((&mut *gradients, self.places.post_norm));
        let mut dx = backend.layer_norm_backward(dresult, &self.last, &self.norms[1], &self.post_norm, None, into)?;
        for (layer, at) in self.layers.iter().zip(&self.places.layers).rev() {
            let saved = self.saved.pop().ok_or_else(|| Error::internal("a layer without its forward pass"))?;
            dx = backward(backend, layer, at, &saved, dx, self.shape, gradients)?;
            on_final(gradients, at.start())?;
        }
        let into = Some((&mut *gradients, self.places.pre_norm));
        let dembedded = backend.layer_norm_backward(&dx, &self.embedded, &self.norms[0], &self.pre_norm, None, into)?;
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
) -> Result<(B::Tensor, SavedLayer<B>)> {
    let (normed, norm) = backend.layer_norm_saving(&x, &layer.attention_norm)?;
    let qkv = backend.linear(&normed, &layer.qkv, Activation::None, None)?;
    let (attended, log_sum_exp) = backend.attention_saving(&qkv, shape, None)?;
    let after_attention = backend.linear(&attended, &layer.attention_out, Activation::None, Some(&x))?;
    let (mlp_normed, mlp_norm) = backend.layer_norm_saving(&after_attention, &layer.mlp_norm)?;
    let (hidden, before_gelu) = backend.linear_saving(&mlp_normed, &layer.fc1, Activation::QuickGelu)?;
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
    shape: AttentionShape,
    gradients: &mut B::Gradients,
) -> Result<B::Tensor> {
    let s = saved;
    backend.linear_weight_backward(&dresult, &s.hidden, gradients, at.fc2)?;
    let input = Some((Activation::QuickGelu, &s.before_gelu));
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
