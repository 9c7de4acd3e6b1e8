//! Cases of attention.

use crate::Result;
use crate::backend::AttentionShape;
use crate::backend::cpu::Cpu;
use crate::backend::prelude::*;
use crate::conformance::{Case, Harness, Size, round_bf16};
use crate::cost::Cost;
use crate::random::Random;

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
pub(in crate::conformance) fn check(harness: &mut Harness<'_>) -> Result<()> {
    let max = harness.max;
    for &([batch, tokens, heads, size_of_head, prefix], scale, size) in SHAPES.iter().filter(|shape| shape.2 <= max) {
        let mut random = Random::new((tokens * 7 + heads) as u64);
        let (rows, width) = (batch * tokens, heads * size_of_head);
        let mut qkv = random.values(rows * 3 * width);
        for row in qkv.chunks_exact_mut(3 * width) {
            row[..2 * width].iter_mut().for_each(|v| *v *= scale);
        }
        let qkv = harness.stored(qkv);
        let shape = AttentionShape { batch, tokens, heads, prefix };
        let expected = Cpu.download(&Cpu.attention(&Cpu.upload([rows, 3 * width], &qkv)?, shape)?)?;
        let rounded =
            if harness.is_bf16() && size < Size::Real { plain(&qkv, shape, size_of_head) } else { expected.clone() };
        let element = harness.cuda.dtype().size() as f64;
        let pairs = (batch * heads * tokens * tokens) as f64;
        let case = Case {
            name: format!("{batch}x{tokens}x{heads}x{size_of_head} after {prefix} of {scale}"),
            size,
            // Scores of so many products go through an exponential.
            length: (size_of_head + tokens) * (1.0 + scale * scale) as usize,
            expected,
            rounded,
            exact: false,
            cost: Cost { flops: 4.0 * pairs * size_of_head as f64, bytes: 4.0 * (rows * width) as f64 * element },
        };
        let x = harness.cuda.sequence([rows, 3 * width], &qkv)?;
        harness.case(case, false, &|cuda| cuda.attention(&x, shape))?;
    }
    Ok(())
}

/// The definition, with probabilities and results rounded to bf16.
fn plain(qkv: &[f32], shape: AttentionShape, size: usize) -> Vec<f32> {
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
