//! Cases of layer_norm.

use crate::Result;
use crate::backend::cpu::Cpu;
use crate::backend::layer_norm::{self, LayerNormWeights};
use crate::backend::prelude::*;
use crate::conformance::{Case, Expected, Harness, Output, Prepared, Size, TestBackend, stored};

/// Rows, channels, and how large the values are.
const SHAPES: &[(usize, usize, f32, Size)] = &[
    (1, 1, 1.0, Size::Small),
    (3, 8, 1.0, Size::Small),
    (5, 13, 1.0, Size::Small),
    (4, 256, 1e4, Size::Small),
    (7, 192, 1.0, Size::Ragged),
    (2, 1016, 1.0, Size::Ragged),
    (3, 1030, 1e4, Size::Ragged),
    (1, 768, 1.0, Size::Real),
    (257, 1024, 1.0, Size::Real),
    (197, 768, 1.0, Size::Real),
    (64 * 257, 1024, 1.0, Size::Real),
];
const EPS: f32 = 1e-5;

fn norm<B: Backend>(backend: &B, weight: &[f32], bias: &[f32]) -> Result<LayerNormWeights<B>> {
    let vector = |values: &[f32]| backend.upload([1, values.len()], values);
    Ok(LayerNormWeights { weight: vector(weight)?, bias: vector(bias)?, eps: EPS })
}

/// Against the CPU form.
pub(super) fn check<B: TestBackend>(harness: &mut Harness<'_, B>) -> Result<()> {
    let (backend, dtype) = (harness.backend, harness.backend.dtype());
    for &(rows, channels, scale, size) in SHAPES {
        let name = format!("{rows}x{channels} of {scale:e}");
        harness.case(Case { name, dtype, size, cost: layer_norm::cost(rows, channels, dtype.size()) }, |inputs| {
            let mut x = inputs.scaled(rows * channels, scale);
            x.iter_mut().for_each(|v| *v += 0.5);
            let x = stored(dtype, x);
            let (weight, bias) = (inputs.values(channels), inputs.values(channels));
            let on_device = (backend.sequence([rows, channels], &x)?, norm(backend, &weight, &bias)?);
            let run = move || Ok(Output::Tensor(backend.layer_norm(&on_device.0, &on_device.1)?));
            Prepared::new(run, move || {
                let y = Cpu.layer_norm(&Cpu.upload([rows, channels], &x)?, &norm(&Cpu, &weight, &bias)?)?;
                Ok(Expected::close(Cpu.download(&y)?, channels, dtype))
            })
        })?;
    }
    Ok(())
}
