use im2sp::backend::cpu::Cpu;
use im2sp::backend::prelude::*;
use im2sp::backend::{PatchParameters, PatchShape};

use crate::common::assert_close;
use crate::{matrix, parameters, random, row, tensor, values};

/// Batch, side, inputs, patch, stride, channels, class embeddings.
const SHAPES: [(usize, usize, usize, usize, usize, usize, usize); 9] = [
    (1, 1, 3, 1, 1, 1, 1),
    (2, 6, 3, 3, 3, 5, 1),
    (1, 35, 3, 7, 7, 20, 1),
    (3, 12, 3, 4, 4, 64, 1),
    (5, 30, 3, 2, 2, 19, 1),
    (2, 32, 3, 8, 8, 24, 0),
    (2, 10, 32, 4, 2, 9, 1),
    (1, 7, 1, 3, 2, 4, 0),
    (1, 9, 2, 2, 7, 3, 1),
];

/// Golden data tests this inside the vision models; here, the definition on odd sizes.
#[test]
fn equals_the_definition() {
    let mut random = random(8);
    for (batch, side, inputs, patch, stride, channels, classes) in SHAPES {
        let shape = PatchShape { inputs, patch, stride };
        let (grid, depth) = ((side - patch) / stride + 1, inputs * patch * patch);
        let tokens = grid * grid + classes;
        let pixels = random.values(batch * inputs * side * side);
        let (w, class, position) =
            (random.values(channels * depth), random.values(channels), random.values(tokens * channels));
        let mut expected = Vec::new();
        for (b, t, c) in
            (0..batch * tokens * channels).map(|i| (i / channels / tokens, i / channels % tokens, i % channels))
        {
            let mut y = f64::from(position[t * channels + c]);
            if t < classes {
                y += f64::from(class[c]);
            } else {
                for k in 0..depth {
                    let (channel, line, column) = (k / patch / patch, k / patch % patch, k % patch);
                    let window = t - classes;
                    let (py, px) = (window / grid * stride + line, window % grid * stride + column);
                    let pixel = pixels[((b * inputs + channel) * side + py) * side + px];
                    y += f64::from(pixel) * f64::from(w[c * depth + k]);
                }
            }
            expected.push(y as f32);
        }
        let out = Cpu
            .patch_embed(
                &tensor(batch, inputs * side * side, &pixels),
                &matrix(channels, depth, &w),
                Some(&row(&class)).filter(|_| classes == 1),
                &matrix(tokens, channels, &position),
                shape,
            )
            .unwrap();
        assert_close(&format!("{side}, {shape:?}"), &values(&out), &expected, depth);
    }
}

#[test]
fn misfits() {
    let run = |side: usize, (patch, stride): (usize, usize), tokens: usize, class: bool| {
        Cpu.patch_embed(
            &tensor(1, 3 * side * side, &vec![0.0; 3 * side * side]),
            &matrix(2, 12, &[0.0; 24]),
            Some(&row(&[0.0; 2])).filter(|_| class),
            &matrix(tokens, 2, &vec![0.0; tokens * 2]),
            PatchShape { inputs: 3, patch, stride },
        )
    };
    assert!(run(4, (2, 2), 5, true).is_ok());
    assert!(run(4, (2, 2), 4, false).is_ok());
    assert!(run(4, (2, 1), 10, true).is_ok());
    assert!(run(4, (3, 3), 2, true).is_err(), "the patch does not divide the side");
    assert!(run(5, (2, 2), 5, true).is_err(), "the last window ends before the image");
    assert!(run(1, (2, 2), 2, true).is_err(), "an image smaller than a window");
    assert!(run(4, (2, 2), 4, true).is_err(), "other positions");
    assert!(run(4, (2, 2), 5, false).is_err(), "no class embedding");
    assert!(run(4, (0, 2), 5, true).is_err(), "no patch");
    assert!(run(4, (2, 0), 5, true).is_err(), "no stride");
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
    for (batch, side, inputs, patch, stride, channels, _) in SHAPES {
        let shape = PatchShape { inputs, patch, stride };
        let (grid, depth) = ((side - patch) / stride + 1, inputs * patch * patch);
        let tokens = grid * grid + 1;
        let (at, len) = places(channels, depth, tokens);
        let (pixels, dy) = (random.values(batch * inputs * side * side), random.values(batch * tokens * channels));
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
                let (py, px) = ((t - 1) / grid * stride + line, (t - 1) % grid * stride + column);
                let pixel = pixels[((b * inputs + channel) * side + py) * side + px];
                expected[at.weight.start + c * depth + k] += dy * f64::from(pixel);
            }
        }
        let (dy, pixels) = (tensor(batch * tokens, channels, &dy), tensor(batch, inputs * side * side, &pixels));
        Cpu.patch_embed_backward(&dy, &pixels, shape, &mut gradients, at).unwrap();
        let expected: Vec<f32> = expected.iter().map(|&v| v as f32).collect();
        assert_close(&format!("{side}, {shape:?}"), &gradients, &expected, batch * tokens);
    }
}

#[test]
fn backward_edges_and_misfits() {
    let (at, len) = places(2, 12, 5);
    let run = |batch: usize, values: usize, patch: usize, rows: usize, at: PatchParameters| {
        let mut gradients = vec![1.0; len];
        let pixels = tensor(batch, values, &vec![0.0; batch * values]);
        let dy = tensor(rows, 2, &vec![0.0; rows * 2]);
        Cpu.patch_embed_backward(&dy, &pixels, PatchShape::rgb(patch), &mut gradients, at).map(|()| gradients)
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
