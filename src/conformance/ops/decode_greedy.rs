//! Cases of decode_greedy: the whole loop in one launch, in every type of weights, with one to eight texts, some of which end
//! before the others.

use std::ops::ControlFlow;

use crate::backend::cpu::Cpu;
use crate::backend::prelude::*;
use crate::backend::{
    Activation, CacheRow, CacheShape, DecoderWeights, LayerNormWeights, LinearWeights, SmBudget, TopValue,
    TransformerLayer,
};
use crate::conformance::{Case, Harness, Size};
use crate::cost::Cost;
use crate::random::Random;
use crate::tensor::{DType, HostTensor, Quantized};
use crate::{Error, Result};

/// Layers, heads (of 64), hidden channels, vocabulary, image tokens, rows, limit.
const SHAPES: &[([usize; 7], Size)] = &[
    ([1, 1, 16, 5, 1, 1, 4], Size::Small),
    ([1, 1, 16, 9, 3, 2, 5], Size::Small),
    ([2, 2, 48, 37, 65, 3, 9], Size::Ragged),
    ([1, 2, 32, 203, 70, 8, 12], Size::Ragged),
    ([1, 1, 80, 40, 2, 1, 67], Size::Ragged),
    ([1, 2, 16, 64, 130, 1, 2], Size::Ragged),
    ([6, 12, 3072, 203, 257, 1, 40], Size::Real),
    ([6, 12, 3072, 203, 257, 8, 6], Size::Real),
];
const HEAD_SIZE: usize = 64;
const EPS: f32 = 1e-5;
const BOS: u32 = 1;
/// An id that no token has.
const NEVER: u32 = u32::MAX;
/// Words of this size give logits far enough apart that rounding keys and values to bf16 seldom chooses another token.
const WORD: f32 = 4.0;
/// Positions of this size hide the word before, which would otherwise always be the likeliest next one.
const POSITION: f32 = 32.0 * WORD;
/// Image tokens of this size make the rows say different things.
const IMAGE: f32 = 3.0;
/// What rounding may do to a logit, as a share of the largest: of sums in f32, and of keys and values in bf16.
const BLUR: [f32; 2] = [1e-4, 6e-3];

/// A matrix (N, K) with biases (N).
struct HostLinear(HostTensor, Vec<f32>);

/// A norm's weights and biases (C).
struct HostNorm(Vec<f32>, Vec<f32>);

/// A decoder and what its pictures give each layer.
struct Host {
    shape: CacheShape,
    limit: usize,
    layers: Vec<([HostLinear; 4], [HostNorm; 2])>,
    output: HostLinear,
    position: HostTensor,
    embedding_norm: HostNorm,
    /// (images * prefix, C).
    tokens: Vec<f32>,
}

/// The same on a backend.
struct Loaded<B: Backend> {
    layers: Vec<TransformerLayer<B>>,
    output: LinearWeights<B>,
    position: B::Matrix,
    embedding_norm: LayerNormWeights<B>,
    cache: B::KvCache,
}

fn tensor(shape: &[usize], values: Vec<f32>) -> Result<HostTensor> {
    HostTensor::from_f32(shape, values).ok_or_else(|| Error::shape("decode_greedy", format!("no weights {shape:?}")))
}

impl Host {
    /// Weights of about the size that keeps what passes at one; those of the layers in `dtype`, the others as wide as they
    /// are beside such.
    fn new(harness: &Harness<'_>, dims: [usize; 7], dtype: DType, random: &mut Random) -> Result<Host> {
        let [layers, heads, hidden, vocabulary, prefix, images, limit] = dims;
        let width = heads * HEAD_SIZE;
        let wide = harness.cuda.dtype();
        let mut matrix = |n: usize, k: usize, size: f32, dtype: DType| {
            let values = random.values(n * k).into_iter().map(|v| v * size).collect();
            let weight = tensor(&[n, k], values)?;
            if dtype != DType::F8E4M3 {
                return Ok::<_, Error>(weight.to_dtype(dtype));
            }
            let eight = crate::tensor::fp8::quantize(&weight).map(|(codes, scales)| Quantized { codes, scales });
            eight.and_then(HostTensor::from_quantized).ok_or_else(|| Error::shape("decode_greedy", "no matrix"))
        };
        let mut vectors = Random::new(width as u64);
        let mut linear = |n: usize, k: usize| {
            let weight = matrix(n, k, (3.0 / k as f32).sqrt(), dtype)?;
            Ok::<_, Error>(HostLinear(weight, vectors.values(n).iter().map(|v| v / 8.0).collect()))
        };
        let mut matrices = Vec::new();
        for _ in 0..layers {
            let four =
                [linear(3 * width, width)?, linear(width, width)?, linear(hidden, width)?, linear(width, hidden)?];
            matrices.push(four);
        }
        let mut norm = || {
            let weight = vectors.values(width).iter().map(|v| 1.0 + v / 4.0).collect();
            HostNorm(weight, vectors.values(width).iter().map(|v| v / 4.0).collect())
        };
        let layers: Vec<_> = matrices.into_iter().map(|four| (four, [norm(), norm()])).collect();
        Ok(Host {
            shape: CacheShape {
                layers: layers.len(),
                heads,
                head_size: HEAD_SIZE,
                images,
                prefix,
                max_new_tokens: limit,
            },
            limit,
            embedding_norm: norm(),
            layers,
            output: HostLinear(matrix(vocabulary, width, WORD, wide)?, vectors.values(vocabulary)),
            position: matrix(limit, width, POSITION, wide)?,
            tokens: Vec::new(),
        })
    }

    fn load<B: Backend>(&self, backend: &B) -> Result<Loaded<B>> {
        let vector = |values: &[f32]| backend.upload([1, values.len()], values);
        let linear = |host: &HostLinear| -> Result<LinearWeights<B>> {
            Ok(LinearWeights { weight: backend.matrix(host.0.clone())?, bias: vector(&host.1)? })
        };
        let norm = |host: &HostNorm| -> Result<LayerNormWeights<B>> {
            Ok(LayerNormWeights { weight: vector(&host.0)?, bias: vector(&host.1)?, eps: EPS })
        };
        let (mut layers, mut cache) = (Vec::new(), backend.kv_cache(self.shape)?);
        let pictures: Vec<usize> = (0..self.shape.images).collect();
        let width = self.shape.heads * HEAD_SIZE;
        for (n, ([qkv, out, fc1, fc2], [attention, mlp])) in self.layers.iter().enumerate() {
            let layer = TransformerLayer {
                qkv: linear(qkv)?,
                attention_out: linear(out)?,
                attention_norm: norm(attention)?,
                fc1: linear(fc1)?,
                fc2: linear(fc2)?,
                mlp_norm: norm(mlp)?,
            };
            let x = backend.upload([self.shape.images * self.shape.prefix, width], &self.tokens)?;
            backend.prefill_qkv(&mut cache, &pictures, n, &x, &layer.qkv)?;
            layers.push(layer);
        }
        Ok(Loaded {
            layers,
            output: linear(&self.output)?,
            position: backend.matrix(self.position.clone())?,
            embedding_norm: norm(&self.embedding_norm)?,
            cache,
        })
    }

    /// The loop on the CPU, an operation at a time: tokens of every row, and whether rounding could have changed one.
    fn expected(&self, eos: u32, blur: f32) -> Result<(Vec<Vec<u32>>, bool)> {
        let mut on = self.load(&Cpu)?;
        let mut rows = vec![vec![BOS]; self.shape.images];
        let start: Vec<_> = (0..rows.len()).map(|image| CacheRow { image, parent: None }).collect();
        Cpu.kv_reorder(&mut on.cache, &start)?;
        let mut blurred = false;
        for _ in 1..self.limit {
            let ids: Vec<u32> = rows.iter().map(|row| row[row.len() - 1]).collect();
            for (row, best) in rows.iter_mut().zip(on.step(&ids)?) {
                // A row that has ended goes on unheard.
                if row.last() != Some(&eos) {
                    let gap = best.get(1).map_or(f32::INFINITY, |next| best[0].value - next.value);
                    blurred |= gap < blur * best[0].value.abs().max(1.0);
                    row.push(best[0].column);
                }
            }
        }
        Ok((rows, blurred))
    }
}

impl Loaded<Cpu> {
    /// The two likeliest tokens of every row after `ids`.
    fn step(&mut self, ids: &[u32]) -> Result<Vec<Vec<TopValue>>> {
        let positions = Cpu.kv_append(&mut self.cache)?.to_vec();
        let x = Cpu.embed(&self.output.weight, &self.position, ids, &positions)?;
        let mut x = Cpu.layer_norm(&x, &self.embedding_norm)?;
        for (n, layer) in self.layers.iter().enumerate() {
            let qkv = Cpu.linear_decode(&x, &layer.qkv, Activation::None, None)?;
            let attended = Cpu.attention_decode(&qkv, &mut self.cache, n)?;
            let y = Cpu.linear_decode(&attended, &layer.attention_out, Activation::None, Some(&x))?;
            let y = Cpu.layer_norm(&y, &layer.attention_norm)?;
            let hidden = Cpu.linear_decode(&y, &layer.fc1, Activation::Gelu, None)?;
            let y = Cpu.linear_decode(&hidden, &layer.fc2, Activation::None, Some(&y))?;
            x = Cpu.layer_norm(&y, &layer.mlp_norm)?;
        }
        let logits = Cpu.linear_decode(&x, &self.output, Activation::None, None)?;
        Cpu.top_k(&logits, 2)
    }
}

impl<B: Backend> Loaded<B> {
    fn decoder(&self, eos: u32) -> DecoderWeights<'_, B> {
        DecoderWeights {
            layers: &self.layers,
            output: &self.output,
            position: &self.position,
            embedding_norm: &self.embedding_norm,
            bos: BOS,
            eos,
        }
    }
}

/// Rows of `limit` tokens, one after the other; what a row does not have is `NEVER`.
fn padded(rows: &[Vec<u32>], limit: usize) -> Vec<u32> {
    rows.iter().flat_map(|row| row.iter().copied().chain(std::iter::repeat(NEVER)).take(limit)).collect()
}

/// Against the CPU's steps, whose weights are exactly the device's. Where keys and values are stored in bf16, pictures are
/// drawn until no choice of a token is so close that this rounding could change it.
pub(in crate::conformance) fn check(harness: &mut Harness<'_>) -> Result<()> {
    let max = harness.max;
    if !harness.cuda.stream().properties().cooperative {
        return Ok(());
    }
    let types: &[DType] = if harness.is_bf16() { &[DType::BF16, DType::F8E4M3] } else { &[DType::F32] };
    for &(dims, size) in SHAPES.iter().filter(|shape| shape.1 <= max) {
        for &dtype in types {
            one(harness, dims, dtype, size)?;
        }
    }
    Ok(())
}

fn one(harness: &mut Harness<'_>, dims: [usize; 7], dtype: DType, size: Size) -> Result<()> {
    let [layers, heads, hidden, vocabulary, prefix, images, limit] = dims;
    let mut random = Random::new((100 * vocabulary + prefix) as u64);
    let blur = BLUR[usize::from(harness.is_bf16())];
    let width = heads * HEAD_SIZE;
    let mut host = Host::new(harness, dims, dtype, &mut random)?;
    let free = loop {
        host.tokens = random.values(images * prefix * width).iter().map(|v| v * IMAGE).collect();
        host.tokens = harness.stored(host.tokens);
        let (free, blurred) = host.expected(NEVER, blur)?;
        if !blurred {
            break free;
        }
    };
    // What the first row says in the midst of its text, or after that, ends every row that says it; but long texts run on.
    let late = free[0][limit / 2..].iter().copied().find(|&token| token != BOS);
    let eos = late.filter(|_| limit < HEAD_SIZE).unwrap_or(NEVER);
    let (expected, _) = host.expected(eos, blur)?;
    let steps = expected.iter().map(Vec::len).max().unwrap_or(1) - 1;
    let weights = layers * width * (4 * width + 2 * hidden);
    let bytes = weights * dtype.size() + vocabulary * width * harness.cuda.dtype().size();
    let case = Case {
        name: format!("{} {layers} layers of {width}/{hidden}, {images} rows after {prefix}", dtype.name()),
        size,
        length: width,
        expected: padded(&expected, limit).into_iter().map(|id| id as f32).collect(),
        rounded: Vec::new(),
        exact: true,
        cost: Cost {
            flops: 2.0 * (steps * images * (weights + vocabulary * width)) as f64,
            bytes: (steps * bytes) as f64,
        },
    };
    let on = host.load(harness.cuda)?;
    // Which blocks there are changes nothing.
    let budget = if images % 2 == 0 { SmBudget::LeaveRoom } else { SmBudget::All };
    harness.ids(case, &|cuda| {
        let mut heard = vec![vec![BOS]; images];
        let told = &mut |row: usize, tokens: &[u32]| {
            heard[row] = tokens.to_vec();
            ControlFlow::Continue(())
        };
        let rows = cuda.decode_greedy(&on.decoder(eos), &on.cache, limit, budget, told);
        let rows = rows.ok_or_else(|| Error::shape("decode_greedy", "the kernel does not take this shape"))??;
        // Who listened knows the same.
        if heard == rows { Ok(padded(&rows, limit)) } else { Err(Error::shape("decode_greedy", format!("{heard:?}"))) }
    })
}
