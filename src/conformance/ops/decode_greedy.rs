//! Cases of decode_greedy: the whole loop in one launch, in every type of weights, with one to eight rows, some of which end
//! before the others.

use std::ops::ControlFlow;
use std::rc::Rc;

use super::host;
use crate::backend::cpu::Cpu;
use crate::backend::decode::{self, CacheRow, CacheShape, DecoderWeights, SmBudget, TransformerLayer};
use crate::backend::prelude::*;
use crate::backend::{Activation, LayerNormWeights, LinearWeights};
use crate::conformance::{Case, Deviation, Expected, Harness, Inputs, Output, Prepared, Size, TestBackend, stored};
use crate::tensor::{DType, HostTensor, Quantized, fp8};
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
/// Largest change of a logit by rounding, as a share of the largest logit: of sums in f32, and of keys and values in bf16.
const BLUR: [f32; 2] = [1e-4, 6e-3];

/// A matrix (N, K) with biases (N).
struct HostLinear(HostTensor, Vec<f32>);

/// A norm's weights and biases (C).
struct HostNorm(Vec<f32>, Vec<f32>);

/// A decoder and its images' tokens.
struct Host {
    shape: CacheShape,
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

/// A matrix (n, k) in this type.
fn matrix([n, k]: [usize; 2], values: Vec<f32>, dtype: DType) -> Result<HostTensor> {
    let weight = host(&[n, k], values)?;
    if dtype != DType::F8E4M3 {
        return Ok(weight.to_dtype(dtype));
    }
    let eight = fp8::quantize(&weight).map(|(codes, scales)| Quantized { codes, scales });
    eight.and_then(HostTensor::from_quantized).ok_or_else(|| Error::shape("decode_greedy", "no fp8 matrix"))
}

impl Host {
    /// Weights of about the size that keeps what passes at one; those of the layers in `dtype`, the others in `wide`.
    fn new(inputs: &Inputs, dims: [usize; 7], dtype: DType, wide: DType) -> Result<Host> {
        let [layers, heads, hidden, vocabulary, prefix, images, limit] = dims;
        let width = heads * HEAD_SIZE;
        let linear = |n: usize, k: usize| {
            let weight = matrix([n, k], inputs.scaled(n * k, (3.0 / k as f32).sqrt()), dtype)?;
            Ok::<_, Error>(HostLinear(weight, inputs.scaled(n, 0.125)))
        };
        let norm = || {
            let weight = inputs.scaled(width, 0.25).iter().map(|v| 1.0 + v).collect();
            HostNorm(weight, inputs.scaled(width, 0.25))
        };
        let layer = |_| {
            let four =
                [linear(3 * width, width)?, linear(width, width)?, linear(hidden, width)?, linear(width, hidden)?];
            Ok((four, [norm(), norm()]))
        };
        Ok(Host {
            shape: CacheShape { layers, heads, head_size: HEAD_SIZE, images, prefix, max_new_tokens: limit },
            layers: (0..layers).map(layer).collect::<Result<_>>()?,
            output: HostLinear(
                matrix([vocabulary, width], inputs.scaled(vocabulary * width, WORD), wide)?,
                inputs.values(vocabulary),
            ),
            position: matrix([limit, width], inputs.scaled(limit * width, POSITION), wide)?,
            embedding_norm: norm(),
            tokens: stored(wide, inputs.scaled(images * prefix * width, IMAGE)),
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
        let images: Vec<usize> = (0..self.shape.images).collect();
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
            backend.prefill_qkv(&mut cache, &images, n, &x, &layer.qkv)?;
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
}

impl Loaded<Cpu> {
    /// Logits of every row after `ids`.
    fn step(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
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
        Cpu.download(&Cpu.linear_decode(&x, &self.output, Activation::None, None)?)
    }

    /// Logits of every row after each of the tokens that `next` gives from (step, row, its logits) on; the first are `BOS`.
    fn steps(&mut self, rows: usize, steps: usize, mut next: impl FnMut(usize, usize, &[f32]) -> u32) -> Result<()> {
        let start: Vec<_> = (0..rows).map(|image| CacheRow { image, parent: None }).collect();
        Cpu.kv_reorder(&mut self.cache, &start)?;
        let mut ids = vec![BOS; rows];
        for step in 0..steps {
            let logits = self.step(&ids)?;
            let vocabulary = logits.len() / rows;
            for (row, id) in ids.iter_mut().enumerate() {
                *id = next(step, row, &logits[row * vocabulary..][..vocabulary]);
            }
        }
        Ok(())
    }

    /// The token that ends rows: one that the first row gives in the midst of its sequence, or after that.
    fn ending(&mut self, rows: usize, limit: usize) -> Result<u32> {
        let mut ending = NEVER;
        self.steps(rows, limit - 1, |step, row, logits| {
            let id = best(logits).0;
            if row == 0 && step + 1 >= limit / 2 && id != BOS && ending == NEVER {
                ending = id;
            }
            id
        })?;
        Ok(ending)
    }

    /// Distance of the tokens of a loop from the likeliest ones after the tokens before: the largest distance of a chosen
    /// logit from the best, as a share of that. Infinite if a row does not begin or end as it should.
    fn distance(&mut self, rows: &[Vec<u32>], eos: u32, limit: usize) -> Result<f32> {
        let ends_well = |row: &Vec<u32>| {
            let early = row.iter().position(|&id| id == eos).map_or(limit, |at| at + 1);
            row.first() == Some(&BOS) && row.len() == early
        };
        let vocabulary = Cpu.shape(&self.output.bias)[1];
        let known = |row: &Vec<u32>| row.iter().all(|&id| (id as usize) < vocabulary);
        if !rows.iter().all(|row| ends_well(row) && known(row)) {
            return Ok(f32::INFINITY);
        }
        let mut distance = 0.0f32;
        self.steps(rows.len(), limit - 1, |step, row, logits| {
            // A row that has ended takes part in the remaining steps, and nothing is compared.
            let Some(&id) = rows[row].get(step + 1) else { return BOS };
            let (_, likeliest) = best(logits);
            distance = distance.max((likeliest - logits[id as usize]) / likeliest.abs().max(1.0));
            id
        })?;
        Ok(distance)
    }
}

/// The likeliest token and its logit.
fn best(logits: &[f32]) -> (u32, f32) {
    let better = |best: (u32, f32), (id, &logit): (usize, &f32)| if logit > best.1 { (id as u32, logit) } else { best };
    logits.iter().enumerate().fold((0, f32::NEG_INFINITY), better)
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

    /// The loop; tokens of each row.
    fn decode(&self, backend: &B, eos: u32, limit: usize, images: usize) -> Result<Vec<Vec<u32>>> {
        let mut seen = vec![vec![BOS]; images];
        let on_token = &mut |row: usize, tokens: &[u32]| {
            seen[row] = tokens.to_vec();
            ControlFlow::Continue(())
        };
        // The blocks that there are change nothing.
        let budget = if images.is_multiple_of(2) { SmBudget::LeaveRoom } else { SmBudget::All };
        let rows = backend.decode_greedy(&self.decoder(eos), &self.cache, limit, budget, on_token);
        let rows = rows.ok_or_else(|| Error::shape("decode_greedy", "the kernel does not take this shape"))??;
        match seen == rows {
            true => Ok(rows),
            false => Err(Error::shape("decode_greedy", format!("reported {seen:?}, returned {rows:?}"))),
        }
    }
}

/// Rows of `limit` tokens, one after the other; what a row does not have is `NEVER`.
fn padded(rows: &[Vec<u32>], limit: usize) -> Vec<u32> {
    rows.iter().flat_map(|row| row.iter().copied().chain(std::iter::repeat(NEVER)).take(limit)).collect()
}

/// The rows that `padded` took.
fn unpadded(values: &[f32], limit: usize) -> Vec<Vec<u32>> {
    let row = |row: &[f32]| row.iter().map(|&id| id as u32).take_while(|&id| id != NEVER).collect();
    values.chunks_exact(limit).map(row).collect()
}

/// Against the CPU's steps, whose weights are exactly the device's: after the tokens that the device has chosen before, each
/// of its tokens is the CPU's likeliest, or as close to it as rounding.
pub(super) fn check<B: TestBackend>(harness: &mut Harness<'_, B>) -> Result<()> {
    let (backend, wide) = (harness.backend, harness.backend.dtype());
    for &(dims, size) in SHAPES {
        for dtype in backend.greedy_dtypes() {
            let [layers, heads, hidden, vocabulary, prefix, images, limit] = dims;
            let width = heads * HEAD_SIZE;
            let name = format!("{} {layers} layers of {width}/{hidden}, {images} rows after {prefix}", dtype.name());
            // Of sequences that do not end.
            let shape = CacheShape { layers, heads, head_size: HEAD_SIZE, images, prefix, max_new_tokens: limit };
            let cost =
                decode::steps_cost(shape, [hidden, vocabulary], [images, limit - 1], [dtype.size(), wide.size()]);
            harness.case(Case { name, dtype, size, cost }, |inputs| {
                let drawn = Rc::new(Host::new(inputs, dims, dtype, wide)?);
                let on_device = drawn.load(backend)?;
                if !backend.can_decode_greedy(&on_device.decoder(NEVER), shape, limit) {
                    return Ok(Prepared::Skipped("the loop does not fit this device: decoding goes by steps"));
                }
                // Long sequences never end, and timed ones take all steps.
                let eos = match limit < HEAD_SIZE && size < Size::Real {
                    true => drawn.load(&Cpu)?.ending(images, limit)?,
                    false => NEVER,
                };
                let run = move || Ok(Output::ids(&padded(&on_device.decode(backend, eos, limit, images)?, limit)));
                Prepared::new(run, move || {
                    Ok(Expected::judged(move |values| {
                        let error = drawn.load(&Cpu)?.distance(&unpadded(values, limit), eos, limit)?;
                        Ok(Deviation { error, allowed: BLUR[usize::from(wide == DType::BF16)] })
                    }))
                })
            })?;
        }
    }
    Ok(())
}
