//! Cases of attention.

use crate::Result;
use crate::backend::attention::{self, AttentionShape};
use crate::backend::cpu::Cpu;
use crate::backend::prelude::*;
use crate::conformance::{Case, Expected, Harness, Output, Prepared, Size, TestBackend, round_bf16, stored};
use crate::tensor::DType;

/// Batch, tokens, heads, head size, prefix; and how large queries and keys are.
const SHAPES: &[([usize; 5], f32, Size)] = &[
    ([1, 1, 1, 64, 1], 1.0, Size::Small),
    ([1, 5, 2, 7, 5], 1.0, Size::Small),
    ([2, 17, 1, 64, 17], 1.0, Size::Small),
    ([1, 20, 1, 64, 9], 1.0, Size::Small),
    ([1, 6, 2, 3, 0], 1.0, Size::Small),
    ([2, 65, 3, 64, 65], 1.0, Size::Ragged),
    ([1, 64, 2, 64, 64], 30.0, Size::Ragged),
    ([1, 129, 1, 64, 65], 1.0, Size::Ragged),
    ([1, 70, 1, 64, 0], 1.0, Size::Ragged),
    ([1, 63, 2, 32, 40], 1.0, Size::Ragged),
    ([1, 40, 1, 200, 40], 1.0, Size::Ragged),
    ([1, 257, 16, 64, 257], 1.0, Size::Real),
    ([64, 257, 16, 64, 257], 1.0, Size::Real),
    ([1, 257, 12, 64, 257], 1.0, Size::Real),
    ([1, 385, 12, 64, 257], 1.0, Size::Real),
];

/// Against the CPU form; in bf16 also against the plain computation that rounds what the kernel rounds.
pub(super) fn check<B: TestBackend>(harness: &mut Harness<'_, B>) -> Result<()> {
    let (backend, dtype) = (harness.backend, harness.backend.dtype());
    for &([batch, tokens, heads, head_size, prefix], scale, size) in SHAPES {
        let shape = AttentionShape { batch, tokens, heads, prefix };
        let (rows, width) = (batch * tokens, heads * head_size);
        let name = format!("{batch}x{tokens}x{heads}x{head_size} after {prefix} of {scale}");
        let case = Case { name, dtype, size, cost: attention::cost(shape, head_size, dtype.size()) };
        harness.case(case, |inputs| {
            let mut qkv = inputs.values(rows * 3 * width);
            for row in qkv.chunks_exact_mut(3 * width).filter(|_| scale != 1.0) {
                row[..2 * width].iter_mut().for_each(|v| *v *= scale);
            }
            let qkv = stored(dtype, qkv);
            let x = backend.sequence([rows, 3 * width], &qkv)?;
            let run = move || Ok(Output::Tensor(backend.attention(&x, shape)?));
            Prepared::new(run, move || {
                let plain = dtype == DType::BF16 && size < Size::Real;
                Ok(Expected::Close {
                    values: Cpu.download(&Cpu.attention(&Cpu.upload([rows, 3 * width], &qkv)?, shape)?)?,
                    rounded: if plain { rounded(&qkv, shape, head_size) } else { Vec::new() },
                    // Scores of so many products go through an exponential.
                    terms: (head_size + tokens) * (1.0 + scale * scale) as usize,
                    stored: dtype,
                })
            })
        })?;
    }
    Ok(())
}

/// The definition, with probabilities and results rounded to bf16.
fn rounded(qkv: &[f32], shape: AttentionShape, size: usize) -> Vec<f32> {
    let AttentionShape { batch, tokens, heads, prefix } = shape;
    let width = heads * size;
    let at = |row: usize, part: usize, head: usize| &qkv[row * 3 * width + part * width + head * size..][..size];
    let mut out = vec![0.0; batch * tokens * width];
    for (b, t, h) in (0..batch * tokens * heads).map(|i| (i / heads / tokens, i / heads % tokens, i % heads)) {
        let visible = if t < prefix { prefix } else { t + 1 };
        let row = b * tokens + t;
        let product = |s: usize| -> f32 {
            at(row, 0, h).iter().zip(at(b * tokens + s, 1, h)).map(|(q, k)| q * k).sum::<f32>() / (size as f32).sqrt()
        };
        let scores: Vec<f32> = (0..visible).map(product).collect();
        let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weights: Vec<f32> = scores.iter().map(|s| (s - max).exp()).collect();
        let total: f32 = weights.iter().sum();
        for d in 0..size {
            let sum: f32 = (0..visible).map(|s| round_bf16(weights[s]) * at(b * tokens + s, 2, h)[d]).sum();
            out[row * width + h * size + d] = round_bf16(sum / total);
        }
    }
    out
}
