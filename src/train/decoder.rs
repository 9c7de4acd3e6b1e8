//! The decoder in training: teacher forcing over whole sequences, image tokens before units, and the way back. One flat function
//! each way; a layer's forward pass returns what its backward pass reads.

use super::buckets::OnFinal;
use super::parameters::{self, LayerPlaces, Layout};
use crate::backend::{
    Activation, AttentionShape, CrossEntropyResult, DropoutMask, EmbedTables, LayerNormWeights, LinearWeights,
    Parameter, Train, TransformerLayer, WeightAndBias,
};
use crate::config::DecoderConfig;
use crate::units::PAD;
use crate::{Error, Result};

/// Places of the decoder's parameters.
#[derive(Clone, Debug)]
pub struct DecoderPlaces {
    output: WeightAndBias,         // (V, C), also the word embedding
    position: Parameter,           // (P, C)
    embedding_norm: WeightAndBias, // (C)
    layers: Vec<LayerPlaces>,
}

impl DecoderPlaces {
    /// Adds the parameters `decoder.*`.
    pub fn new(layout: &mut Layout, config: &DecoderConfig) -> DecoderPlaces {
        let width = config.width;
        DecoderPlaces {
            // First, although it is the output too: as the word embedding its gradient is final last.
            output: WeightAndBias {
                weight: layout.matrix("decoder.word_embedding", [config.vocabulary, width]),
                bias: layout.vector("decoder.output_bias", config.vocabulary),
            },
            position: layout.matrix("decoder.position_embedding", [config.max_positions, width]),
            embedding_norm: layout.norm("decoder.embedding_norm", width),
            layers: (0..config.layers)
                .map(|n| layout.layer(&format!("decoder.layers.{n}"), width, config.mlp))
                .collect(),
        }
    }
}

/// Dropout of one forward and backward pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability of a zero, of embeddings and of both halves of a layer.
    pub hidden: f32,
    /// The same of attention's probabilities.
    pub attention: f32,
    /// Seed of the run.
    pub seed: u64,
    /// Number that no other pass of the run has.
    pub pass: u64,
}

/// Places of a pass where values are dropped, each with a stream of its own.
const PLACES: u64 = 1 << 12;
const PLACES_OF_LAYER: u64 = 3;

impl Dropout {
    /// Nothing is dropped.
    pub const NONE: Dropout = Dropout { hidden: 0.0, attention: 0.0, seed: 0, pass: 0 };

    fn mask(&self, probability: f32, place: u64) -> Option<DropoutMask> {
        let stream = self.pass.wrapping_mul(PLACES).wrapping_add(place);
        (probability > 0.0).then_some(DropoutMask { probability, seed: self.seed, stream })
    }

    fn embedding(&self) -> Option<DropoutMask> {
        self.mask(self.hidden, PLACES - 1)
    }

    /// Masks of layer `n`: attention, its output, the feed-forward part's output.
    fn layer(&self, n: usize) -> [Option<DropoutMask>; 3] {
        let place = n as u64 * PLACES_OF_LAYER;
        [self.mask(self.attention, place), self.mask(self.hidden, place + 1), self.mask(self.hidden, place + 2)]
    }
}

/// Unit sequences of a batch, padded to the same length U.
pub struct Sequences<'a> {
    /// Sequences B.
    pub batch: usize,
    /// Inputs (B*U): BOS and all ids but the last.
    pub inputs: &'a [u32],
    /// Targets (B*U): all ids but BOS; [`PAD`] where there is nothing to learn.
    pub targets: &'a [u32],
    /// Gradient at each token's loss: 1 / valid tokens for a mean.
    pub scale: f32,
}

/// A forward pass: the losses, and values that the backward pass reads.
pub struct Forward<B: Train> {
    shape: AttentionShape,
    positions: Vec<u32>,
    embedded: B::Tensor, // (B*U, C), before its norm
    norm: B::Tensor,     // (B*U, 2)
    layers: Vec<SavedLayer<B>>,
    x: B::Tensor, // (B*U, C), the last layer's result
    /// Losses of the units, and the gradient at the logits.
    pub loss: CrossEntropyResult<B>,
}

/// The decoder as views of a block.
pub struct DecoderView<'a, B: Train> {
    places: &'a DecoderPlaces,
    heads: usize,
    position: B::Matrix,
    embedding_norm: LayerNormWeights<B>,
    layers: Vec<TransformerLayer<B>>,
    output: LinearWeights<B>,
}

/// Values of a layer's forward pass that its backward pass reads; M rows, of which R go on after attention.
struct SavedLayer<B: Train> {
    x: B::Tensor,           // (M, C)
    qkv: B::Tensor,         // (M, 3C)
    attended: B::Tensor,    // (M, C)
    log_sum_exp: B::Tensor, // (B*H, T)
    kept: B::Tensor,        // (R, C), of attended
    sum: B::Tensor,         // (R, C), before its norm
    norm: B::Tensor,        // (R, 2)
    normed: B::Tensor,      // (R, C)
    before_gelu: B::Tensor, // (R, F)
    hidden: B::Tensor,      // (R, F)
    mlp_sum: B::Tensor,     // (R, C), before its norm
    mlp_norm: B::Tensor,    // (R, 2)
}

impl<'a, B: Train> DecoderView<'a, B> {
    /// Views of the parameters, until the next update.
    pub fn new(
        backend: &B,
        block: &B::Block,
        places: &'a DecoderPlaces,
        config: &DecoderConfig,
    ) -> Result<DecoderView<'a, B>> {
        let layer = |at: &LayerPlaces| parameters::layer(backend, block, at, config.eps);
        Ok(DecoderView {
            places,
            heads: config.heads,
            position: backend.parameter_matrix(block, places.position)?,
            embedding_norm: parameters::norm(backend, block, places.embedding_norm, config.eps)?,
            layers: places.layers.iter().map(layer).collect::<Result<_>>()?,
            output: parameters::linear(backend, block, places.output)?,
        })
    }

    /// Image tokens (B*P, C) and units to the loss of every unit.
    pub fn forward(
        &self,
        backend: &B,
        image: &B::Tensor,
        sequences: &Sequences<'_>,
        dropout: Dropout,
    ) -> Result<Forward<B>> {
        let Sequences { batch, inputs, targets, scale } = *sequences;
        let (prefix, units) = (backend.shape(image)[0] / batch.max(1), inputs.len() / batch.max(1));
        let shape = AttentionShape { batch, tokens: prefix + units, heads: self.heads, prefix };
        let positions: Vec<u32> = (0..inputs.len()).map(|at| (at % units.max(1)) as u32).collect();
        let embedded = backend.embed(&self.output.weight, &self.position, inputs, &positions)?;
        let (normed, norm) = backend.layer_norm_saving(&embedded, &self.embedding_norm)?;
        let mut x = backend.concat(image, &dropped(backend, normed, dropout.embedding())?, batch)?;
        let mut layers = Vec::with_capacity(self.layers.len());
        for (n, layer) in self.layers.iter().enumerate() {
            let (result, saved) = forward(backend, layer, x, shape, self.first(n, prefix), dropout.layer(n))?;
            layers.push(saved);
            x = result;
        }
        let logits = backend.linear(&x, &self.output, Activation::None, None)?;
        let loss = backend.cross_entropy(&logits, targets, PAD, scale)?;
        Ok(Forward { shape, positions, embedded, norm, layers, x, loss })
    }

    /// The gradient at the image tokens (B*P, C); gradients of all parameters are added.
    pub fn backward(
        &self,
        backend: &B,
        mut pass: Forward<B>,
        inputs: &[u32],
        dropout: Dropout,
        gradients: &mut B::Gradients,
        on_final: &mut OnFinal<'_, B::Gradients>,
    ) -> Result<B::Tensor> {
        let AttentionShape { batch, prefix, .. } = pass.shape;
        backend.linear_weight_backward(&pass.loss.dlogits, &pass.x, gradients, self.places.output)?;
        let mut dx = backend.linear_backward(&pass.loss.dlogits, &self.output, None, None)?;
        for (n, (layer, at)) in self.layers.iter().zip(&self.places.layers).enumerate().rev() {
            let saved = pass.layers.pop().ok_or_else(|| Error::internal("a layer without its forward pass"))?;
            let first = self.first(n, prefix);
            dx = backward(backend, layer, at, &saved, dx, pass.shape, first, dropout.layer(n), gradients)?;
            on_final(gradients, at.start())?;
        }
        let (dimage, dunits) = backend.split(&dx, batch, prefix)?;
        let dunits = dropped(backend, dunits, dropout.embedding())?;
        let into = Some((&mut *gradients, self.places.embedding_norm));
        let norm = &self.embedding_norm;
        let dembedded = backend.layer_norm_backward(&dunits, &pass.embedded, norm, &pass.norm, None, into)?;
        let tables = EmbedTables { table: self.places.output.weight, position: self.places.position };
        backend.embed_backward(&dembedded, inputs, &pass.positions, Some(PAD), gradients, tables)?;
        on_final(gradients, self.places.output.weight.start)?;
        Ok(dimage)
    }

    /// After the last attention only units go on: image rows have nobody left who sees them.
    fn first(&self, layer: usize, prefix: usize) -> Option<usize> {
        (layer + 1 == self.layers.len()).then_some(prefix)
    }
}

/// `x` with values dropped.
fn dropped<B: Train>(backend: &B, x: B::Tensor, mask: Option<DropoutMask>) -> Result<B::Tensor> {
    mask.map_or(Ok(x.clone()), |mask| backend.dropout(&x, mask, None))
}

/// `dropout(linear(x)) + residual`.
fn linear_dropped<B: Train>(
    backend: &B,
    x: &B::Tensor,
    layer: &LinearWeights<B>,
    mask: Option<DropoutMask>,
    residual: &B::Tensor,
) -> Result<B::Tensor> {
    match mask {
        None => backend.linear(x, layer, Activation::None, Some(residual)),
        Some(mask) => backend.dropout(&backend.linear(x, layer, Activation::None, None)?, mask, Some(residual)),
    }
}

/// A post-norm layer. With `first`, only the tokens from there on of each sequence go on after attention.
fn forward<B: Train>(
    backend: &B,
    layer: &TransformerLayer<B>,
    x: B::Tensor,
    shape: AttentionShape,
    first: Option<usize>,
    [attention, out, mlp]: [Option<DropoutMask>; 3],
) -> Result<(B::Tensor, SavedLayer<B>)> {
    let rest = |x: &B::Tensor| match first {
        Some(first) => backend.split(x, shape.batch, first).map(|(_, rest)| rest),
        None => Ok(x.clone()),
    };
    let qkv = backend.linear(&x, &layer.qkv, Activation::None, None)?;
    let (attended, log_sum_exp) = backend.attention_saving(&qkv, shape, attention)?;
    let kept = rest(&attended)?;
    let sum = linear_dropped(backend, &kept, &layer.attention_out, out, &rest(&x)?)?;
    let (normed, norm) = backend.layer_norm_saving(&sum, &layer.attention_norm)?;
    let (hidden, before_gelu) = backend.linear_saving(&normed, &layer.fc1, Activation::Gelu)?;
    let mlp_sum = linear_dropped(backend, &hidden, &layer.fc2, mlp, &normed)?;
    let (result, mlp_norm) = backend.layer_norm_saving(&mlp_sum, &layer.mlp_norm)?;
    let saved =
        SavedLayer { x, qkv, attended, log_sum_exp, kept, sum, norm, normed, before_gelu, hidden, mlp_sum, mlp_norm };
    Ok((result, saved))
}

/// The gradient at a layer's input from that at its result; gradients of its parameters are added.
#[allow(clippy::too_many_arguments, reason = "the arguments of forward, its result, and where gradients go")]
fn backward<B: Train>(
    backend: &B,
    layer: &TransformerLayer<B>,
    at: &LayerPlaces,
    saved: &SavedLayer<B>,
    dresult: B::Tensor,
    shape: AttentionShape,
    first: Option<usize>,
    [attention, out, mlp]: [Option<DropoutMask>; 3],
    gradients: &mut B::Gradients,
) -> Result<B::Tensor> {
    let s = saved;
    let into = Some((&mut *gradients, at.mlp_norm));
    let dmlp_sum = backend.layer_norm_backward(&dresult, &s.mlp_sum, &layer.mlp_norm, &s.mlp_norm, None, into)?;
    let dmlp = dropped(backend, dmlp_sum.clone(), mlp)?;
    backend.linear_weight_backward(&dmlp, &s.hidden, gradients, at.fc2)?;
    let dbefore = backend.linear_backward(&dmlp, &layer.fc2, Some((Activation::Gelu, &s.before_gelu)), None)?;
    backend.linear_weight_backward(&dbefore, &s.normed, gradients, at.fc1)?;
    let dnormed = backend.linear_backward(&dbefore, &layer.fc1, None, Some(&dmlp_sum))?;
    let into = Some((&mut *gradients, at.attention_norm));
    let dsum = backend.layer_norm_backward(&dnormed, &s.sum, &layer.attention_norm, &s.norm, None, into)?;
    let dout = dropped(backend, dsum.clone(), out)?;
    backend.linear_weight_backward(&dout, &s.kept, gradients, at.attention_out)?;
    let dkept = backend.linear_backward(&dout, &layer.attention_out, None, None)?;
    let [dattended, dresidual] = match first {
        None => [dkept, dsum],
        Some(first) => {
            let zeros = backend.zeros([shape.batch * first, backend.shape(&dkept)[1]])?;
            [backend.concat(&zeros, &dkept, shape.batch)?, backend.concat(&zeros, &dsum, shape.batch)?]
        }
    };
    let dqkv = backend.attention_backward(&dattended, &s.qkv, &s.attended, &s.log_sum_exp, shape, attention)?;
    backend.linear_weight_backward(&dqkv, &s.x, gradients, at.qkv)?;
    backend.linear_backward(&dqkv, &layer.qkv, None, Some(&dresidual))
}
