//! The CPU backend: runs everywhere, is the oracle of the others, and has to be quick, since it is what a user without
//! a GPU runs. One file per operation; threads come from rayon's global pool.

mod argmax;
mod attention;
mod beam_candidates;
mod buffer;
mod cache;
mod conv;
mod conv1d;
mod conv_transpose1d;
mod disjoint;
mod embed;
mod gemm;
mod int8;
mod layer_norm;
mod linear;
mod patch_embed;
mod peak;
pub(crate) mod simd;
mod top_k;
mod transpose;
mod winograd;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use half::bf16;

use buffer::Buffer;
use int8::Packed;

use super::{
    Activation, AttentionShape, Backend, BeamCandidate, CacheRow, CacheShape, ConvEpilogue, GraphId, LayerNormWeights,
    Linear, StepBody, TopValue,
};
use crate::tensor::{DType, HostTensor};
use crate::{Error, Result, trace};

pub use cache::KvCache;
pub use conv::ConvWeights;

/// The host processor.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu;

/// An activation of shape (rows, columns).
#[derive(Clone, Debug)]
pub struct Tensor {
    rows: usize,
    columns: usize,
    data: Buffer,
}

impl Tensor {
    fn new(rows: usize, columns: usize, data: impl Into<Buffer>) -> Tensor {
        let data = data.into();
        debug_assert_eq!(rows * columns, data.len());
        Tensor { rows, columns, data }
    }
}

/// Elements of a constant matrix.
#[derive(Clone, Copy)]
enum Elements<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
    Int8(&'a Packed),
}

impl Elements<'_> {
    /// Adds elements `start..start + out.len()` to `out`.
    fn add_to(&self, start: usize, out: &mut [f32]) {
        match self {
            Elements::F32(values) => {
                out.iter_mut().zip(&values[start..]).for_each(|(o, v)| *o += v);
            }
            Elements::Bf16(values) => {
                out.iter_mut().zip(&values[start..]).for_each(|(o, v)| *o += v.to_f32());
            }
            Elements::Int8(packed) => {
                out.iter_mut().zip(start..).for_each(|(o, index)| *o += packed.get(index));
            }
        }
    }

    /// Element `index` of the row-major matrix.
    fn get(&self, index: usize) -> f32 {
        match self {
            Elements::F32(values) => values[index],
            Elements::Bf16(values) => values[index].to_f32(),
            Elements::Int8(packed) => packed.get(index),
        }
    }
}

/// Weights (N, K).
pub struct Matrix {
    rows: usize,
    columns: usize,
    weights: Weights,
    /// Whether a product of a whole sequence has used it.
    used: AtomicBool,
}

/// Where the weights of a matrix are.
enum Weights {
    /// Where they were stored: usually a mapped file.
    Stored(HostTensor),
    /// Packed when they were loaded.
    Int8(Packed),
}

impl Matrix {
    /// Says that a product of a whole sequence has used it. After the first time, the pages of a mapped file are given
    /// back: a process that captions one picture never needs them again, and so never holds all weights at once. One
    /// that captions another faults them in once more and keeps them.
    fn release_after_first_use(&self) {
        if let Weights::Stored(tensor) = &self.weights
            && !self.used.swap(true, Ordering::Relaxed)
        {
            let bytes = tensor.bytes().clone();
            // Beside the next operation: it takes as long as reading the weights.
            rayon::spawn(move || bytes.release_pages());
        }
    }

    fn elements(&self) -> Result<Elements<'_>> {
        let tensor = match &self.weights {
            Weights::Int8(packed) => return Ok(Elements::Int8(packed)),
            Weights::Stored(tensor) => tensor,
        };
        match (tensor.as_f32(), tensor.as_bf16()) {
            (Some(values), _) => Ok(Elements::F32(values)),
            (_, Some(values)) => Ok(Elements::Bf16(values)),
            _ => Err(Error::shape("matrix", "weights must be f32, bf16 or int8 with scales")),
        }
    }
}

/// An error unless `ok`; the message is only built when it is needed.
fn ensure(ok: bool, op: &'static str, problem: impl FnOnce() -> String) -> Result<()> {
    if ok { Ok(()) } else { Err(Error::shape(op, problem())) }
}

impl Backend for Cpu {
    type Tensor = Tensor;
    type Matrix = Matrix;
    type ConvWeights = ConvWeights;
    type KvCache = KvCache;
    type Event = Instant;

    const CONVOLUTION_PERIOD: usize = winograd::FRAMES;

    fn new_stream(&self) -> Result<Cpu> {
        Ok(Cpu)
    }

    fn name(&self) -> String {
        format!("cpu ({:?}, {} threads)", simd::level(), rayon::current_num_threads()).to_lowercase()
    }

    fn record_event(&self) -> Result<Instant> {
        Ok(Instant::now())
    }

    fn elapsed(&self, from: &Instant, to: &Instant) -> Result<f64> {
        Ok(to.duration_since(*from).as_secs_f64() * 1e3)
    }

    fn upload(&self, [rows, columns]: [usize; 2], values: &[f32]) -> Result<Tensor> {
        ensure(rows.checked_mul(columns) == Some(values.len()), "upload", || {
            format!("{} values for a shape of ({rows}, {columns})", values.len())
        })?;
        Ok(Tensor::new(rows, columns, values.to_vec()))
    }

    fn download(&self, x: &Tensor) -> Result<Vec<f32>> {
        Ok(x.data.to_vec())
    }

    fn shape(&self, x: &Tensor) -> [usize; 2] {
        [x.rows, x.columns]
    }

    fn matrix(&self, weight: HostTensor) -> Result<Matrix> {
        let &[rows, columns] = weight.shape() else {
            return Err(Error::shape("matrix", format!("weights of shape {:?}, expected (N, K)", weight.shape())));
        };
        let weights = match (weight.dtype(), weight.quantized()) {
            (DType::I8, Some(quantized)) => {
                let packed = Packed::new(quantized);
                // The packed codes are a copy.
                weight.bytes().release_pages();
                Weights::Int8(packed.ok_or_else(|| Error::shape("matrix", format!("no columns in {rows} rows")))?)
            }
            (DType::F16, _) => Weights::Stored(weight.to_dtype(DType::F32)),
            _ => Weights::Stored(weight),
        };
        Ok(Matrix { rows, columns, weights, used: AtomicBool::new(false) })
    }

    fn conv_weights(&self, weight: &HostTensor, bias: &HostTensor) -> Result<ConvWeights> {
        let kernel = conv1d::pack(weight, bias);
        // The packed weights are a copy.
        weight.bytes().release_pages();
        kernel
    }

    fn conv_transpose_weights(&self, weight: &HostTensor, bias: &HostTensor, stride: usize) -> Result<ConvWeights> {
        let kernel = conv_transpose1d::pack(weight, bias, stride);
        weight.bytes().release_pages();
        kernel
    }

    fn captured_step(&self, _: &GraphId, cache: &mut KvCache, x: &Tensor, body: StepBody<'_, Cpu>) -> Result<Tensor> {
        // From inside the pool an operation finds threads that still look for work, from outside sleeping ones.
        rayon::scope(|_| body(self, cache, x))
    }

    fn linear(
        &self,
        x: &Tensor,
        layer: &Linear<Cpu>,
        activation: Activation,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        let _span = trace::span("linear");
        let y = linear::linear(x, layer, activation, residual, linear::blocked);
        layer.weight.release_after_first_use();
        y
    }

    fn linear_decode(
        &self,
        x: &Tensor,
        layer: &Linear<Cpu>,
        activation: Activation,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        let _span = trace::span("linear_decode");
        linear::linear(x, layer, activation, residual, linear::step)
    }

    fn layer_norm(&self, x: &Tensor, norm: &LayerNormWeights<Cpu>) -> Result<Tensor> {
        let _span = trace::span("layer_norm");
        layer_norm::layer_norm(x, norm)
    }

    fn attention(&self, qkv: &Tensor, shape: AttentionShape) -> Result<Tensor> {
        let _span = trace::span("attention");
        attention::attention(qkv, shape)
    }

    fn kv_cache(&self, shape: CacheShape) -> Result<KvCache> {
        KvCache::new(shape)
    }

    fn prefill_qkv(
        &self,
        cache: &mut KvCache,
        pictures: &[usize],
        layer: usize,
        x: &Tensor,
        qkv: &Linear<Cpu>,
    ) -> Result<Tensor> {
        let qkv = self.linear(x, qkv, Activation::None, None)?;
        let _span = trace::span("prefill_qkv");
        cache.set_prefix(pictures, layer, &qkv)?;
        Ok(qkv)
    }

    fn kv_reorder(&self, cache: &mut KvCache, rows: &[CacheRow]) -> Result<()> {
        let _span = trace::span("kv_reorder");
        cache.set_rows(rows)
    }

    fn kv_append<'c>(&self, cache: &'c mut KvCache) -> Result<&'c [u32]> {
        cache.grow()
    }

    fn attention_decode(&self, qkv: &Tensor, cache: &mut KvCache, layer: usize) -> Result<Tensor> {
        let _span = trace::span("attention_decode");
        cache.attention(qkv, layer)
    }

    fn embed(&self, table: &Matrix, position: &Matrix, ids: &[u32], positions: &[u32]) -> Result<Tensor> {
        let _span = trace::span("embed");
        embed::embed(table, position, ids, positions)
    }

    fn patch_embed(
        &self,
        pixels: &Tensor,
        weight: &Matrix,
        class: &Tensor,
        position: &Matrix,
        patch: usize,
    ) -> Result<Tensor> {
        let _span = trace::span("patch_embed");
        patch_embed::patch_embed(pixels, weight, class, position, patch)
    }

    fn embed_frames(&self, tables: &[(&Matrix, &[u32])]) -> Result<Tensor> {
        let _span = trace::span("embed_frames");
        embed::embed_frames(tables)
    }

    fn conv1d(
        &self,
        x: &Tensor,
        kernel: &ConvWeights,
        dilation: usize,
        columns: Range<usize>,
        epilogue: ConvEpilogue<'_, Cpu>,
    ) -> Result<Tensor> {
        let _span = trace::span("conv1d");
        conv1d::conv1d(x, kernel, dilation, columns, epilogue)
    }

    fn conv_transpose1d(&self, x: &Tensor, kernel: &ConvWeights, slope: f32) -> Result<Tensor> {
        let _span = trace::span("conv_transpose1d");
        conv_transpose1d::conv_transpose1d(x, kernel, slope)
    }

    fn transpose(&self, x: &Tensor) -> Result<Tensor> {
        let _span = trace::span("transpose");
        transpose::transpose(x)
    }

    fn argmax(&self, x: &Tensor, columns: &mut Vec<u32>) -> Result<()> {
        let _span = trace::span("argmax");
        argmax::argmax(x, columns)
    }

    fn top_k(&self, x: &Tensor, count: usize) -> Result<Vec<Vec<TopValue>>> {
        let _span = trace::span("top_k");
        top_k::top_k(x, count)
    }

    fn beam_candidates(
        &self,
        logits: &Tensor,
        scores: &[f32],
        pictures: &[usize],
        count: usize,
    ) -> Result<Vec<Vec<BeamCandidate>>> {
        let _span = trace::span("beam_candidates");
        beam_candidates::beam_candidates(logits, scores, pictures, count)
    }
}
