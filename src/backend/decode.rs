//! decode: the key-value cache of a decoder, attention of new tokens over it, and whole decode steps and loops.

use std::ops::ControlFlow;

use super::{Device, GraphId, LayerNormWeights, Linear, LinearWeights, ensure, linear};
use crate::Result;
use crate::cost::Cost;

/// Sizes of a key-value cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheShape {
    /// Decoder layers.
    pub layers: usize,
    /// Heads H.
    pub heads: usize,
    /// Head size D.
    pub head_size: usize,
    /// Slots for images; each has one prefix, shared by all of its rows.
    pub images: usize,
    /// Image tokens of a prefix.
    pub prefix: usize,
    /// Generated tokens a row may hold.
    pub max_new_tokens: usize,
}

impl CacheShape {
    /// An error unless there is something in a head, and heads are of `max_size` values at most.
    pub(crate) fn check(&self, max_size: usize) -> Result<()> {
        let fits = self.heads > 0 && (1..=max_size).contains(&self.head_size);
        ensure(fits, "kv_cache", || format!("{self:?}"))
    }

    /// An error unless x are the prefixes of these images, and `qkv` makes rows of a layer of this cache of them.
    pub(crate) fn check_prefill<D: Device>(
        &self,
        device: &D,
        images: &[usize],
        layer: usize,
        x: &D::Tensor,
        qkv: &LinearWeights<D>,
    ) -> Result<()> {
        const OP: &str = "prefill_qkv";
        let known = images.iter().all(|&image| image < self.images);
        ensure(known, OP, || format!("images {images:?} of {}", self.images))?;
        linear::check(OP, device, x, qkv, None)?;
        let result = [device.shape(x)[0], device.matrix_shape(&qkv.weight)[0]];
        self.check_qkv(OP, result, images.len() * self.prefix, layer)
    }

    /// An error unless a sequence of `tokens` has room for one more.
    pub(crate) fn check_append(&self, tokens: usize) -> Result<()> {
        let max = self.max_new_tokens;
        ensure(tokens < max, "kv_append", || format!("position {tokens} of at most {max}"))
    }

    /// An error unless qkv (R, 3*H*D) has `rows` rows for a layer of this cache.
    pub(crate) fn check_qkv(
        &self,
        op: &'static str,
        [r, columns]: [usize; 2],
        rows: usize,
        layer: usize,
    ) -> Result<()> {
        let fits = (r, columns) == (rows, 3 * self.heads * self.head_size) && layer < self.layers;
        ensure(fits, op, || format!("qkv ({r}, {columns}) for {rows} rows, layer {layer} of {self:?}"))
    }

    /// An error unless these rows continue some of `before` rows, each for an image of this cache.
    pub(crate) fn check_rows(&self, rows: &[CacheRow], before: usize) -> Result<()> {
        let fits = |row: &CacheRow| row.image < self.images && row.parent.is_none_or(|parent| parent < before);
        match rows.iter().find(|row| !fits(row)) {
            Some(row) => ensure(false, "kv_reorder", || format!("{row:?} of {before} rows, {self:?}")),
            None => Ok(()),
        }
    }
}

/// An error unless room was made for the new token of every live row.
pub(crate) fn check_appended(appended: bool) -> Result<()> {
    ensure(appended, "attention_decode", || "a sequence without a new token: kv_append comes first".into())
}

/// One live row of a cache: the image it describes, and the earlier row that it continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheRow {
    /// Index of the image's slot.
    pub image: usize,
    /// Row of the previous step that this one continues; `None` starts a sequence.
    pub parent: Option<usize>,
}

/// Weights of one transformer layer; C channels, F hidden channels. The vision transformer and the decoder differ only in
/// where the norms stand.
pub struct TransformerLayer<D: Device> {
    /// `qkv`: (3C, C); rows of query, key, value.
    pub qkv: LinearWeights<D>,
    /// `attention_out`: (C, C).
    pub attention_out: LinearWeights<D>,
    /// `attention_norm`: before attention (vision), or after its residual (decoder).
    pub attention_norm: LayerNormWeights<D>,
    /// `fc1`: (F, C).
    pub fc1: LinearWeights<D>,
    /// `fc2`: (C, F).
    pub fc2: LinearWeights<D>,
    /// `mlp_norm`: before the feed-forward part (vision), or after its residual (decoder).
    pub mlp_norm: LayerNormWeights<D>,
}

/// Multiprocessors that a launch which stays on the device may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SmBudget {
    /// All of them: other streams wait for its end.
    All,
    /// All but a few, which are left to other streams.
    LeaveRoom,
}

/// A decoder as [`Decode::decode_greedy`] takes it: every decode step from ids to logits.
pub struct DecoderWeights<'a, D: Device> {
    /// In their order; norms follow the residuals.
    pub layers: &'a [TransformerLayer<D>],
    /// (V, C), also the word embedding.
    pub output: &'a LinearWeights<D>,
    /// (P, C).
    pub position: &'a D::Matrix,
    /// Applied to the sum of both embeddings.
    pub embedding_norm: &'a LayerNormWeights<D>,
    /// The id every sequence begins with.
    pub bos: u32,
    /// The id that ends it.
    pub eos: u32,
}

/// The operations of a captured decode step: on their input, on the cache and on constants, nothing else. Done twice, they
/// leave what they leave once.
pub type StepBody<'a, D> =
    &'a (dyn Fn(&D, &mut <D as Decode>::KvCache, &<D as Device>::Tensor) -> Result<<D as Device>::Tensor> + Sync);

/// Decoding over a key-value cache.
pub trait Decode: Linear {
    /// Keys and values of a decoder.
    type KvCache: Send;

    /// An empty cache without rows.
    fn kv_cache(&self, shape: CacheShape) -> Result<Self::KvCache>;
    /// Prefixes x (images * prefix, C) of the slots `images` to packed qkv (images * prefix, 3*H*D), as `linear` does; its
    /// keys and values are also stored, as those of one decoder layer.
    fn prefill_qkv(
        &self,
        cache: &mut Self::KvCache,
        images: &[usize],
        layer: usize,
        x: &Self::Tensor,
        qkv: &LinearWeights<Self>,
    ) -> Result<Self::Tensor>;
    /// Replaces the live rows; sequences are carried over from the parents, and may differ in length.
    fn kv_reorder(&self, cache: &mut Self::KvCache, rows: &[CacheRow]) -> Result<()>;
    /// Makes room for one more token in the sequence of every live row; returns the position of each.
    fn kv_append<'c>(&self, cache: &'c mut Self::KvCache) -> Result<&'c [u32]>;
    /// The new token of every live row: stores its key and value at the end of its sequence, then lets it attend to the
    /// prefix of its image and to its sequence, itself included: packed qkv (R, 3*H*D) to (R, H*D).
    fn attention_decode(&self, qkv: &Self::Tensor, cache: &mut Self::KvCache, layer: usize) -> Result<Self::Tensor>;

    /// `body(self, cache, x)`, after `kv_append`, with a row of `x` for each live row. As [`Device::captured`]; the graph
    /// serves later steps of as many rows, of this cache or of a later one of its shape. Where nothing is captured, the
    /// many short operations of a step still run where each of them starts soonest.
    fn captured_step(
        &self,
        graph: &GraphId,
        cache: &mut Self::KvCache,
        x: &Self::Tensor,
        body: StepBody<'_, Self>,
    ) -> Result<Self::Tensor> {
        let _ = graph;
        body(self, cache, x)
    }

    /// Whether [`Decode::decode_greedy`] takes this decoder with a cache of this shape.
    fn can_decode_greedy(&self, decoder: &DecoderWeights<'_, Self>, shape: CacheShape, limit: usize) -> bool {
        let _ = (decoder, shape, limit);
        false
    }
    /// The whole greedy loop, one row for each image of `cache`, of at most `limit` tokens, where a device has a kernel
    /// for it; `None` sends the caller to the steps above. `on_token` gets new tokens (row, its tokens so far) and may end
    /// the loop. `budget` changes how long it takes, and no bit of what it computes.
    fn decode_greedy(
        &self,
        decoder: &DecoderWeights<'_, Self>,
        cache: &Self::KvCache,
        limit: usize,
        budget: SmBudget,
        on_token: &mut dyn FnMut(usize, &[u32]) -> ControlFlow<()>,
    ) -> Option<Result<Vec<Vec<u32>>>> {
        let _ = (decoder, cache, limit, budget, on_token);
        None
    }
}

/// Cost of one layer's `attention_decode` for `rows` rows that see `tokens` generated tokens each, their own included, with
/// elements of `element` bytes: rows of one image share the reads of its prefix.
pub fn attention_cost(shape: CacheShape, rows: usize, tokens: usize, element: usize) -> Cost {
    let CacheShape { heads, head_size, images, prefix, .. } = shape;
    let width = heads * head_size;
    Cost {
        flops: (4 * rows * (prefix + tokens) * width) as f64,
        bytes: (2 * (images * prefix + rows * tokens) * width * element) as f64,
    }
}

/// Cost of the products of `steps` decode steps of `rows` rows: layers of `hidden` channels with elements of `layer` bytes,
/// the output (vocabulary, C) with elements of `output` bytes, read once a step.
pub fn steps_cost(
    shape: CacheShape,
    [hidden, vocabulary]: [usize; 2],
    [rows, steps]: [usize; 2],
    [layer, output]: [usize; 2],
) -> Cost {
    let width = shape.heads * shape.head_size;
    let (layers, words) = (shape.layers * width * (4 * width + 2 * hidden), vocabulary * width);
    Cost {
        flops: (2 * steps * rows * (layers + words)) as f64,
        bytes: (steps * (layers * layer + words * output)) as f64,
    }
}
