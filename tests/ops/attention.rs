use im2sp::backend::AttentionShape;
use im2sp::backend::cpu::Cpu;
use im2sp::backend::prelude::*;

use crate::common::assert_close;
use crate::{cases, ops, random, tensor, values};

#[test]
fn equals_golden() {
    let golden = ops();
    for case in cases(&golden, "attention", "qkv") {
        let (shape, qkv) = golden.get(&format!("{case}.qkv"));
        let (batch, tokens, heads) = (shape[0], shape[1], shape[2] / 192);
        let y = Cpu
            .attention(&tensor(batch * tokens, shape[2], &qkv), AttentionShape { batch, tokens, heads, prefix: tokens })
            .unwrap();
        assert_close(&case, &values(&y), &golden.f32(&format!("{case}.y")), 64 + tokens);
    }
}

/// The definition in f64, for head sizes and lengths that golden data does not have.
#[test]
fn equals_the_definition() {
    let mut random = random(3);
    for (batch, tokens, heads, size, prefix) in [
        (1, 1, 1, 1, 1),
        (2, 5, 3, 7, 5),
        (1, 130, 2, 32, 130),
        (3, 257, 1, 64, 257),
        (2, 9, 2, 8, 4),
        (1, 150, 1, 16, 131),
        (1, 6, 1, 4, 0),
    ] {
        let width = heads * size;
        let qkv: Vec<f32> = random.values(batch * tokens * 3 * width).into_iter().map(|v| 3.0 * v).collect();
        let at = |b: usize, t: usize, part: usize, h: usize, d: usize| {
            f64::from(qkv[(b * tokens + t) * 3 * width + part * width + h * size + d])
        };
        let mut expected = Vec::new();
        for (b, t) in (0..batch).flat_map(|b| (0..tokens).map(move |t| (b, t))) {
            for h in 0..heads {
                let visible = if t < prefix { prefix } else { t + 1 };
                let scores: Vec<f64> = (0..visible)
                    .map(|s| {
                        (0..size).map(|d| at(b, t, 0, h, d) * at(b, s, 1, h, d)).sum::<f64>() / (size as f64).sqrt()
                    })
                    .collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                let total: f64 = weights.iter().sum();
                expected.extend(
                    (0..size)
                        .map(|d| ((0..visible).map(|s| weights[s] * at(b, s, 2, h, d)).sum::<f64>() / total) as f32),
                );
            }
        }
        let y = Cpu
            .attention(&tensor(batch * tokens, 3 * width, &qkv), AttentionShape { batch, tokens, heads, prefix })
            .unwrap();
        // Scores of about 9 sqrt(size) pass through an exponential.
        assert_close(
            &format!("{batch}x{tokens}x{heads}x{size} after {prefix}"),
            &values(&y),
            &expected,
            16 * (size + tokens),
        );
    }
}

#[test]
fn edges_and_misfits() {
    let empty =
        Cpu.attention(&tensor(0, 12, &[]), AttentionShape { batch: 0, tokens: 5, heads: 2, prefix: 5 }).unwrap();
    assert_eq!(Cpu.shape(&empty), [0, 4]);
    let x = tensor(2, 12, &[0.0; 24]);
    for (batch, tokens, heads) in [(1, 3, 2), (2, 1, 3), (2, 1, 0)] {
        assert!(Cpu.attention(&x, AttentionShape { batch, tokens, heads, prefix: tokens }).is_err());
    }
}
