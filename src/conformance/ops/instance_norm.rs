//! Cases of instance_norm.

use std::ops::Range;

use crate::Result;
use crate::backend::cpu::Cpu;
use crate::backend::instance_norm;
use crate::backend::prelude::*;
use crate::backend::{Activation, LayerNormWeights, Sequences};
use crate::conformance::{Case, Expected, Harness, Output, Prepared, Size, TestBackend, stored};

/// Frames, channels, how large the values are, and their mean.
const SHAPES: &[(usize, usize, f32, f32, Size)] = &[
    (2, 1, 1.0, 0.0, Size::Small),
    (5, 3, 1.0, 0.5, Size::Small),
    (70, 8, 1.0, 0.5, Size::Small),
    (64, 16, 1e4, 0.0, Size::Small),
    (129, 258, 1.0, 4.0, Size::Ragged),
    (1000, 40, 1.0, 0.5, Size::Ragged),
    (16_500, 3, 1e-2, 0.1, Size::Ragged),
    (31_999, 512, 1.0, 0.5, Size::Real),
];
/// Frames in which there are sequences, and these.
type Parts = (usize, &'static [Range<usize>]);

const PARTS: &[(Parts, usize, Size)] = &[
    ((9, &[0..3, 4..8]), 5, Size::Small),
    ((400, &[0..70, 70..71, 75..75, 80..399]), 33, Size::Ragged),
    ((17_000, &[0..16_500, 16_600..17_000]), 3, Size::Ragged),
    ((12_000, &[0..3999, 4000..5875, 6000..11_999]), 512, Size::Real),
];
const EPS: f32 = 1e-5;

fn norm<B: Backend>(backend: &B, weight: &[f32], bias: &[f32]) -> Result<LayerNormWeights<B>> {
    let vector = |values: &[f32]| backend.upload([1, values.len()], values);
    Ok(LayerNormWeights { weight: vector(weight)?, bias: vector(bias)?, eps: EPS })
}

/// Against the CPU form.
pub(super) fn check<B: TestBackend>(harness: &mut Harness<'_, B>) -> Result<()> {
    for &((frames, parts), channels, size) in PARTS {
        let sequences = Sequences::new(frames, parts.to_vec())?;
        compare(harness, sequences, [frames, channels], (1.0, 0.5), size, Activation::Gelu)?;
    }
    let cases = SHAPES.iter().flat_map(|&shape| [(shape, Activation::Gelu), (shape, Activation::None)]);
    for ((frames, channels, scale, mean, size), activation) in cases {
        compare(harness, Sequences::one(frames), [frames, channels], (scale, mean), size, activation)?;
    }
    Ok(())
}

fn compare<B: TestBackend>(
    harness: &mut Harness<'_, B>,
    sequences: Sequences,
    [frames, channels]: [usize; 2],
    (scale, mean): (f32, f32),
    size: Size,
    activation: Activation,
) -> Result<()> {
    let (backend, dtype) = (harness.backend, harness.backend.dtype());
    let count = sequences.parts().len();
    let of = if count == 1 { String::new() } else { format!(" of {count} sequences") };
    let name = format!("{frames}x{channels}{of} of {scale:e} around {mean} {activation:?}");
    let cost = instance_norm::cost(frames, channels, dtype.size());
    harness.case(Case { name, dtype, size, cost }, |inputs| {
        let mut x = inputs.scaled(frames * channels, scale);
        x.iter_mut().for_each(|v| *v += mean);
        let x = stored(dtype, x);
        let (weight, bias) = (inputs.values(channels), inputs.values(channels));
        let on_device = (backend.sequence([frames, channels], &x)?, norm(backend, &weight, &bias)?);
        let of_device = sequences.clone();
        let run =
            move || Ok(Output::Tensor(backend.instance_norm(&on_device.0, &on_device.1, &of_device, activation)?));
        Prepared::new(run, move || {
            let x = Cpu.upload([frames, channels], &x)?;
            let y = Cpu.instance_norm(&x, &norm(&Cpu, &weight, &bias)?, &sequences, activation)?;
            Ok(Expected::close(Cpu.download(&y)?, sequences.longest(), dtype))
        })
    })
}
