//! Cases of instance_norm.

use crate::Result;
use crate::backend::cpu::Cpu;
use crate::backend::instance_norm;
use crate::backend::prelude::*;
use crate::backend::{Activation, LayerNormWeights};
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
const EPS: f32 = 1e-5;

fn norm<B: Backend>(backend: &B, weight: &[f32], bias: &[f32]) -> Result<LayerNormWeights<B>> {
    let vector = |values: &[f32]| backend.upload([1, values.len()], values);
    Ok(LayerNormWeights { weight: vector(weight)?, bias: vector(bias)?, eps: EPS })
}

/// Against the CPU form.
pub(super) fn check<B: TestBackend>(harness: &mut Harness<'_, B>) -> Result<()> {
    let (backend, dtype) = (harness.backend, harness.backend.dtype());
    let cases = SHAPES.iter().flat_map(|&shape| [(shape, Activation::Gelu), (shape, Activation::None)]);
    for ((frames, channels, scale, mean, size), activation) in cases {
        let name = format!("{frames}x{channels} of {scale:e} around {mean} {activation:?}");
        let cost = instance_norm::cost(frames, channels, dtype.size());
        harness.case(Case { name, dtype, size, cost }, |inputs| {
            let mut x = inputs.scaled(frames * channels, scale);
            x.iter_mut().for_each(|v| *v += mean);
            let x = stored(dtype, x);
            let (weight, bias) = (inputs.values(channels), inputs.values(channels));
            let on_device = (backend.sequence([frames, channels], &x)?, norm(backend, &weight, &bias)?);
            let run = move || Ok(Output::Tensor(backend.instance_norm(&on_device.0, &on_device.1, activation)?));
            Prepared::new(run, move || {
                let x = Cpu.upload([frames, channels], &x)?;
                let y = Cpu.instance_norm(&x, &norm(&Cpu, &weight, &bias)?, activation)?;
                Ok(Expected::close(Cpu.download(&y)?, frames, dtype))
            })
        })?;
    }
    Ok(())
}
