//! The seam between models and devices: a closed, short list of operations on two-dimensional tensors. Models are
//! written once against [`Backend`]; [`cpu`] runs everywhere and is the oracle of every other device.
//!
//! Letters: B batch, T tokens, C channels, H heads, D head size, V vocabulary, S samples or frames, R rows of a decode
//! step, M/N/K of a matrix product. Activations are f32 and row-major; weights have the type they were stored in.

pub mod cpu;
#[cfg(any(feature = "cuda", feature = "emulator"))]
pub mod cuda;
pub(crate) mod rows;

use std::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use crate::tensor::HostTensor;
use crate::{Error, Result};

/// What a device does at most, as measured on it.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Peaks {
    /// Bytes a second: read by a CPU, read and written by a GPU's copy, of more than the caches hold.
    pub bytes: f64,
    /// Floating-point operations a second: f32 multiply-adds on a CPU, bf16 products of a GPU's tensor cores.
    pub flops: f64,
}

/// What is applied to a matrix product before it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    None,
    /// 0.5 x (1 + erf(x / sqrt 2)).
    Gelu,
    /// x sigmoid(1.702 x).
    QuickGelu,
}

/// What is applied to a convolution before it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConvActivation {
    /// Nothing.
    None,
    /// max(x, 0).
    Relu,
    /// tanh(x).
    Tanh,
}

/// A fully connected layer on a backend: `x (M, K) -> x weight^T + bias (M, N)`.
pub struct Linear<B: Backend> {
    /// (N, K).
    pub weight: B::Matrix,
    /// (1, N).
    pub bias: B::Tensor,
}

/// A layer norm on a backend: normalise each row over C, then scale and shift.
pub struct LayerNormWeights<B: Backend> {
    /// (1, C).
    pub weight: B::Tensor,
    /// (1, C).
    pub bias: B::Tensor,
    /// Added to the biased variance.
    pub eps: f32,
}

/// How packed query, key and value rows (B*T, 3*H*D) are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Independent sequences B.
    pub batch: usize,
    /// Tokens T of each.
    pub tokens: usize,
    /// Heads H.
    pub heads: usize,
    /// The first tokens of each sequence, an image, which see each other and no other; later ones, text, see them and the
    /// text up to themselves. All tokens: attention of everything to everything.
    pub prefix: usize,
}

/// Sizes of a key-value cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheShape {
    /// Decoder layers.
    pub layers: usize,
    /// Heads H.
    pub heads: usize,
    /// Head size D.
    pub head_size: usize,
    /// Pictures; each has one prefix, shared by all of its rows.
    pub images: usize,
    /// Image tokens of a prefix.
    pub prefix: usize,
    /// Text tokens a row may hold.
    pub max_new_tokens: usize,
}

/// One live row of a cache: the picture it describes, and the earlier row whose text it continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheRow {
    /// Index of the picture.
    pub image: usize,
    /// Row of the previous step that this one continues; `None` starts a text.
    pub parent: Option<usize>,
}

/// What a convolution does around its sum. `y = act(conv(leaky(x)) + bias + residual)`, then `(y + sum) * scale`.
pub struct ConvEpilogue<'a, B: Backend> {
    /// Slope of the leaky ReLU applied to the input; 1 leaves it alone.
    pub slope: f32,
    /// Added after the bias: (C out, S) from this column on.
    pub residual: Option<(&'a B::Tensor, usize)>,
    /// Applied after the residual.
    pub activation: ConvActivation,
    /// Added after the activation, (C out, columns).
    pub sum: Option<&'a B::Tensor>,
    /// Multiplies everything.
    pub scale: f32,
}

impl<B: Backend> Default for ConvEpilogue<'_, B> {
    fn default() -> Self {
        ConvEpilogue { slope: 1.0, residual: None, activation: ConvActivation::None, sum: None, scale: 1.0 }
    }
}

impl<B: Backend> ConvEpilogue<'_, B> {
    /// An error unless these columns of a sequence of `frames` have all that is added to them.
    pub(crate) fn check(&self, backend: &B, outputs: usize, frames: usize, columns: &Range<usize>) -> Result<()> {
        let known = |t: &B::Tensor, from: usize| {
            let [rows, columns] = backend.shape(t);
            (rows == outputs).then(|| columns.checked_sub(from)).flatten()
        };
        let inside = columns.start <= columns.end && columns.end <= frames;
        let residual = self.residual.is_none_or(|(t, from)| known(t, from).is_some_and(|there| there >= columns.len()));
        if inside && residual && self.sum.is_none_or(|t| known(t, 0) == Some(columns.len())) {
            return Ok(());
        }
        let residual = self.residual.map(|(t, from)| (backend.shape(t), from));
        let sum = self.sum.map(|t| backend.shape(t));
        let problem = format!(
            "columns {columns:?} of ({outputs}, {frames}), residual and its first column {residual:?}, sum {sum:?}"
        );
        Err(Error::shape("conv1d", problem))
    }
}

/// Weights of one transformer layer; C channels, F hidden channels. The vision transformer and the decoder differ only in
/// where the norms stand.
pub struct TransformerLayer<B: Backend> {
    /// `qkv`: (3C, C); rows of query, key, value.
    pub qkv: Linear<B>,
    /// `attention_out`: (C, C).
    pub attention_out: Linear<B>,
    /// `attention_norm`: before attention (vision), or after its residual (decoder).
    pub attention_norm: LayerNormWeights<B>,
    /// `fc1`: (F, C).
    pub fc1: Linear<B>,
    /// `fc2`: (C, F).
    pub fc2: Linear<B>,
    /// `mlp_norm`: before the feed-forward part (vision), or after its residual (decoder).
    pub mlp_norm: LayerNormWeights<B>,
}

/// Multiprocessors that a launch which stays on the device may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SmBudget {
    /// All of them: other streams wait for its end.
    All,
    /// All but a few, which are left to other streams.
    LeaveRoom,
}

/// A decoder as [`Backend::decode_greedy`] takes it: every decode step from ids to logits.
pub struct DecoderWeights<'a, B: Backend> {
    /// In their order; norms follow the residuals.
    pub layers: &'a [TransformerLayer<B>],
    /// (V, C), also the word embedding.
    pub output: &'a Linear<B>,
    /// (P, C).
    pub position: &'a B::Matrix,
    /// Of the sum of both embeddings.
    pub embedding_norm: &'a LayerNormWeights<B>,
    /// The id every text begins with.
    pub bos: u32,
    /// The id that ends it.
    pub eos: u32,
}

/// A value of a row, and where it stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TopValue {
    /// The value.
    pub value: f32,
    /// Its column.
    pub column: u32,
}

/// One way to extend one text of a picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BeamCandidate {
    /// Which of the picture's rows it extends, counted from the picture's first.
    pub row: usize,
    /// The token that follows.
    pub token: u32,
    /// Sum of log-probabilities, this token's included.
    pub score: f32,
}

/// A stretch of operations that always runs the same way for inputs of the same shape: what a device may record once and
/// replay.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct GraphId(u64);

impl GraphId {
    /// One that differs from all others.
    #[allow(clippy::new_without_default, reason = "two of them are never alike")]
    pub fn new() -> GraphId {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        GraphId(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// A number that no other region has.
    pub fn number(&self) -> u64 {
        self.0
    }
}

/// What a captured graph does: operations on its input and on constants, nothing else.
pub type GraphBody<'a, B> = &'a dyn Fn(&B, &<B as Backend>::Tensor) -> Result<<B as Backend>::Tensor>;

/// What a [`GraphId`] of a decode step does: operations on its input, on the cache and on constants, nothing else. Done
/// twice, it leaves what it leaves once.
pub type StepBody<'a, B> =
    &'a (dyn Fn(&B, &mut <B as Backend>::KvCache, &<B as Backend>::Tensor) -> Result<<B as Backend>::Tensor> + Sync);

/// A device that can run the models. Every operation checks its shapes and returns an error that names them.
pub trait Backend: Send + Sync + Sized + 'static {
    /// Activations: two-dimensional, f32.
    type Tensor: Clone + Send + Sync;
    /// A constant matrix (N, K): f32 or bf16.
    type Matrix: Send + Sync;
    /// The constant weights and bias of a convolution, in the layout its kernel wants.
    type ConvWeights: Send + Sync;
    /// Keys and values of a decoder.
    type KvCache: Send;
    /// A point in the stream of work.
    type Event: Send;

    /// The last bits of a result of `conv1d` may depend on where it stands in a run of this many times the dilation, counted
    /// from the first. A cut-out of a sequence that begins where a run does gives the same results as the whole.
    const CONVOLUTION_PERIOD: usize = 1;

    /// The same device for work that goes on beside that of `self`. Nothing made on one is used on the other.
    fn new_stream(&self) -> Result<Self>;
    /// The device in words, for people.
    fn name(&self) -> String;
    /// Allocations that went to the device so far, and the most bytes in use at once; `None` for host memory.
    fn memory_stats(&self) -> Option<(u64, usize)> {
        None
    }
    /// Marks this point in the stream of work, without waiting for it.
    fn record_event(&self) -> Result<Self::Event>;
    /// Milliseconds between two points of the stream, when its work came to them; waits for the later one.
    fn elapsed(&self, from: &Self::Event, to: &Self::Event) -> Result<f64>;
    /// Copies `values` (rows, columns) to the device.
    fn upload(&self, shape: [usize; 2], values: &[f32]) -> Result<Self::Tensor>;
    /// Copies a tensor to the host.
    fn download(&self, x: &Self::Tensor) -> Result<Vec<f32>>;
    /// Rows and columns.
    fn shape(&self, x: &Self::Tensor) -> [usize; 2];
    /// Makes (N, K) weights available to `linear` and the embeddings.
    fn matrix(&self, weight: HostTensor) -> Result<Self::Matrix>;
    /// Makes the weights (C out, C in, taps) of `conv1d` with its bias (C out).
    fn conv_weights(&self, weight: &HostTensor, bias: &HostTensor) -> Result<Self::ConvWeights>;
    /// Makes the weights (C in, C out, taps) of `conv_transpose1d` with its bias (C out) and stride.
    fn conv_transpose_weights(
        &self,
        weight: &HostTensor,
        bias: &HostTensor,
        stride: usize,
    ) -> Result<Self::ConvWeights>;

    /// `body(self, input)`. A device that can record its work does so, and replays it when the region is entered again
    /// with an input of this shape; so `body` hands nothing to the host and takes nothing from it.
    fn captured(&self, graph: &GraphId, input: &Self::Tensor, body: GraphBody<'_, Self>) -> Result<Self::Tensor> {
        let _ = graph;
        body(self, input)
    }

    /// As `region`, for a decode step: `body(self, cache, x)`, after `kv_append`, with a row of `x` for each live row. What
    /// was recorded serves later steps of as many rows, of this cache or of a later one of its shape. Where nothing is recorded,
    /// the many short operations of a step still run where each of them starts soonest.
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

    /// `act(x weight^T + bias) + residual`: x (M, K), residual and result (M, N). For whole sequences.
    fn linear(
        &self,
        x: &Self::Tensor,
        layer: &Linear<Self>,
        activation: Activation,
        residual: Option<&Self::Tensor>,
    ) -> Result<Self::Tensor>;
    /// As `linear`, for the few rows of a decode step: reads the weights once, and adds in another order. The caller
    /// chooses, not the number of rows, so that a row's result never depends on its neighbours.
    fn linear_decode(
        &self,
        x: &Self::Tensor,
        layer: &Linear<Self>,
        activation: Activation,
        residual: Option<&Self::Tensor>,
    ) -> Result<Self::Tensor>;
    /// Each row of x (M, C) normalised.
    fn layer_norm(&self, x: &Self::Tensor, norm: &LayerNormWeights<Self>) -> Result<Self::Tensor>;
    /// Attention: packed qkv (B*T, 3*H*D), each third H heads wide, to (B*T, H*D); scores over sqrt D.
    fn attention(&self, qkv: &Self::Tensor, shape: AttentionShape) -> Result<Self::Tensor>;

    /// An empty cache without rows.
    fn kv_cache(&self, shape: CacheShape) -> Result<Self::KvCache>;
    /// Prefixes x (pictures * prefix, C) of `pictures` to packed qkv (pictures * prefix, 3*H*D), as `linear` does, whose
    /// keys and values are also stored, as those of one decoder layer.
    fn prefill_qkv(
        &self,
        cache: &mut Self::KvCache,
        pictures: &[usize],
        layer: usize,
        x: &Self::Tensor,
        qkv: &Linear<Self>,
    ) -> Result<Self::Tensor>;
    /// Replaces the live rows; texts are carried over from the parents, and may differ in length.
    fn kv_reorder(&self, cache: &mut Self::KvCache, rows: &[CacheRow]) -> Result<()>;
    /// Makes room for one more token in the text of every live row, and says at which position.
    fn kv_append<'c>(&self, cache: &'c mut Self::KvCache) -> Result<&'c [u32]>;
    /// The new token of every live row: stores its key and value at the end of its text, then lets it attend to the
    /// prefix of its picture and to its text, itself included: packed qkv (R, 3*H*D) to (R, H*D).
    fn attention_decode(&self, qkv: &Self::Tensor, cache: &mut Self::KvCache, layer: usize) -> Result<Self::Tensor>;

    /// Whether [`Backend::decode_greedy`] takes this decoder with a cache of this shape.
    fn can_decode_greedy(&self, decoder: &DecoderWeights<'_, Self>, shape: CacheShape, limit: usize) -> bool {
        let _ = (decoder, shape, limit);
        false
    }
    /// The whole greedy loop, one row for each image of `cache`, of at most `limit` tokens, where a device has a kernel
    /// for it; `None` sends the caller to the steps above. `on_token` is called with new tokens (row, its tokens so far) and
    /// may end the loop. `budget` changes how long it takes, and no bit of what it computes.
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

    /// Row `ids[r]` of `table` (V, C) plus row `positions[r]` of `position` (P, C), for every r: (R, C).
    fn embed(
        &self,
        table: &Self::Matrix,
        position: &Self::Matrix,
        ids: &[u32],
        positions: &[u32],
    ) -> Result<Self::Tensor>;
    /// Pictures (B, 3*side*side) to tokens (B*T, C), T = (side/patch)^2 + 1: the class embedding first, then the patches
    /// in row-major order times `weight` (C, 3*patch*patch); row t of `position` (T, C) is added to each token t.
    fn patch_embed(
        &self,
        pixels: &Self::Tensor,
        weight: &Self::Matrix,
        class: &Self::Tensor,
        position: &Self::Matrix,
        patch: usize,
    ) -> Result<Self::Tensor>;
    /// Columns of stacked tables: column s of the result (sum of widths, S) holds row `ids[s]` of each table in turn.
    fn embed_frames(&self, tables: &[(&Self::Matrix, &[u32])]) -> Result<Self::Tensor>;
    /// These columns of the convolution over time that keeps the length: x (C in, S) to (C out, columns), zero padding
    /// (taps - 1) * dilation / 2.
    fn conv1d(
        &self,
        x: &Self::Tensor,
        kernel: &Self::ConvWeights,
        dilation: usize,
        columns: Range<usize>,
        epilogue: ConvEpilogue<'_, Self>,
    ) -> Result<Self::Tensor>;
    /// Transposed convolution: leaky ReLU of x (C in, S) to (C out, S * stride), padding (taps - stride) / 2.
    fn conv_transpose1d(&self, x: &Self::Tensor, kernel: &Self::ConvWeights, slope: f32) -> Result<Self::Tensor>;
    /// (M, N) to (N, M).
    fn transpose(&self, x: &Self::Tensor) -> Result<Self::Tensor>;
    /// Column of the largest value of each row, the lowest such column on ties, into `columns`; NaN anywhere is an error.
    fn argmax(&self, x: &Self::Tensor, columns: &mut Vec<u32>) -> Result<()>;
    /// The `count` largest values of each row, largest first, the lower column first on ties; NaN anywhere is an error.
    fn top_k(&self, x: &Self::Tensor, count: usize) -> Result<Vec<Vec<TopValue>>>;
    /// One step of a beam search: logits (R, V) of live texts, the sum of log-probabilities of each so far, and how many
    /// rows in turn belong to each picture. The `count` best texts of each picture that are longer by one token, or all if
    /// there are fewer, best first, the lower row and then the lower token first on ties; NaN is an error.
    fn beam_candidates(
        &self,
        logits: &Self::Tensor,
        scores: &[f32],
        pictures: &[usize],
        count: usize,
    ) -> Result<Vec<Vec<BeamCandidate>>>;
}
