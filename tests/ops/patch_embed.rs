use im2sp::backend::PatchParameters;
use im2sp::backend::cpu::Cpu;
use im2sp::backend::prelude::*;

use crate::common::assert_close;
use crate::{matrix, parameters, random, row, tensor, values};

/// Golden data tests this inside the vision models; here, the definition on odd sizes.
#[test]
fn equals_the_definition() {
    let mut random = random(8);
    for (batch, side, patch, channels) in [(1, 1, 1, 1), (2, 6, 3, 5), (1, 35, 7, 20), (3, 12, 4, 64)] {
        let (grid, depth) = (side / patch, 3 * patch * patch);
        let tokens = grid * grid + 1;
        let pixels = random.values(batch * 3 * side * side);
        let (w, class, position) =
            (random.values(channels * depth), random.values(channels), random.values(tokens * channels));
        let mut expected = Vec::new();
        for (b, t, c) in
            (0..batch * tokens * channels).map(|i| (i / channels / tokens, i / channels % tokens, i % channels))
        {
            let mut y = f64::from(position[t * channels + c]);
            if t == 0 {
                y += f64::from(class[c]);
            } else {
                for k in 0..depth {
                    let (channel, line, column) = (k / patch / patch, k / patch % patch, k % patch);
                    let (py, px) = ((t - 1) / grid * patch + line, (t - 1) % grid * patch + column);
                    let pixel = pixels[((b * 3 + channel) * side + py) * side + px];
                    y += f64::from(pixel) * f64::from(w[c * depth + k]);
                }
            }
            expected.push(y as f32);
        }
        let out = Cpu
            .patch_embed(
                &tensor(batch, 3 * side * side, &pixels),
                &matrix(channels, depth, &w),
                &row(&class),
                &matrix(tokens, channels, &position),
                patch,
            )
            .unwrap();
        assert_close(&format!("{side}/{patch}"), &values(&out), &expected, depth);
    }
}

#[test]
fn misfits() {
    let run = |side: usize, patch: usize, tokens: usize| {
        Cpu.patch_embed(
            &tensor(1, 3 * side * side, &vec![0.0; 3 * side * side]),
            &matrix(2, 12, &[0.0; 24]),
            &row(&[0.0; 2]),
            &matrix(tokens, 2, &vec![0.0; tokens * 2]),
            patch,
        )
    };
    assert!(run(4, 2, 5).is_ok());
    assert!(run(4, 3, 2).is_err(), "the patch does not divide the side");
    assert!(run(4, 2, 4).is_err(), "other positions");
    assert!(run(4, 0, 5).is_err(), "no patch");
}

/// Places of weight (C, K), class (1, C) and position (T, C), and the length of their block.
fn places(channels: usize, depth: usize, tokens: usize) -> (PatchParameters, usize) {
    let ([weight, class, position], len) = parameters([[channels, depth], [1, channels], [tokens, channels]]);
    (PatchParameters { weight, class, position }, len)
}

/// Every value of the block, what lies between the parameters included.
#[test]
fn backward_equals_the_definition() {
    let mut random = random(26);
    for (batch, side, patch, channels) in [(1, 1, 1, 1), (2, 6, 3, 5), (1, 35, 7, 20), (3, 12, 4, 64), (5, 30, 2, 19)] {
        let (grid, depth) = (side / patch, 3 * patch * patch);
        let tokens = grid * grid + 1;
        let (at, len) = places(channels, depth, tokens);
        let (pixels, dy) = (random.values(batch * 3 * side * side), random.values(batch * tokens * channels));
        let mut gradients = random.values(len);
        let mut expected: Vec<f64> = gradients.iter().map(|&v| f64::from(v)).collect();
        for (b, t, c) in
            (0..batch * tokens * channels).map(|i| (i / channels / tokens, i / channels % tokens, i % channels))
        {
            let dy = f64::from(dy[(b * tokens + t) * channels + c]);
            expected[at.position.start + t * channels + c] += dy;
            if t == 0 {
                expected[at.class.start + c] += dy;
                continue;
            }
            for k in 0..depth {
                let (channel, line, column) = (k / patch / patch, k / patch % patch, k % patch);
                let (py, px) = ((t - 1) / grid * patch + line, (t - 1) % grid * patch + column);
                let pixel = pixels[((b * 3 + channel) * side + py) * side + px];
                expected[at.weight.start + c * depth + k] += dy * f64::from(pixel);
            }
        }
        let (dy, pixels) = (tensor(batch * tokens, channels, &dy), tensor(batch, 3 * side * side, &pixels));
        Cpu.patch_embed_backward(&dy, &pixels, patch, &mut gradients, at).unwrap();
        let expected: Vec<f32> = expected.iter().map(|&v| v as f32).collect();
        assert_close(&format!("{side}/{patch}"), &gradients, &expected, batch * tokens);
    }
}

#[test]
fn backward_edges_and_misfits() {
    let (at, len) = places(2, 12, 5);
    let run = |batch: usize, values: usize, patch: usize, rows: usize, at: PatchParameters| {
        let mut gradients = vec![1.0; len];
        let pixels = tensor(batch, values, &vec![0.0; batch * values]);
        let dy = tensor(rows, 2, &vec![0.0; rows * 2]);
        Cpu.patch_embed_backward(&dy, &pixels, patch, &mut gradients, at).map(|()| gradients)
    };
    assert_eq!(run(2, 48, 2, 10, at).unwrap(), vec![1.0; len]);
    assert_eq!(run(0, 48, 2, 0, at).unwrap(), vec![1.0; len]);
    assert!(run(2, 48, 2, 9, at).is_err(), "other tokens");
    assert!(run(2, 48, 3, 10, at).is_err(), "the patch does not divide the side");
    assert!(run(2, 48, 0, 10, at).is_err(), "no patch");
    assert!(run(2, 47, 2, 10, at).is_err(), "no square");
    assert!(run(2, 48, 2, 10, PatchParameters { class: at.position, ..at }).is_err(), "another class");
    assert!(run(2, 48, 2, 10, PatchParameters { position: at.class, ..at }).is_err(), "other positions");
}
