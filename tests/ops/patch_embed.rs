use im2sp::backend::cpu::Cpu;
use im2sp::backend::prelude::*;

use crate::common::assert_close;
use crate::{matrix, random, row, tensor, values};

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
