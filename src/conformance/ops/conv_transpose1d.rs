//! Cases of conv_transpose1d.

use super::host;
use crate::Result;
use crate::backend::conv_transpose1d;
use crate::backend::cpu::Cpu;
use crate::backend::prelude::*;
use crate::conformance::{Case, Expected, Harness, Output, Prepared, Size, TestBackend, stored};

/// C in, C out, taps, stride, S.
type Shape = [usize; 5];

const SHAPES: &[(Shape, Size)] = &[
    ([1, 1, 1, 1, 1], Size::Small),
    ([8, 4, 4, 2, 3], Size::Small),
    ([3, 5, 11, 5, 4], Size::Small),
    ([16, 16, 8, 4, 40], Size::Ragged),
    ([40, 7, 11, 5, 33], Size::Ragged),
    ([192, 96, 11, 5, 20], Size::Ragged),
    ([12, 6, 3, 1, 70], Size::Ragged),
    ([512, 256, 11, 5, 200], Size::Real),
    ([256, 128, 8, 4, 1000], Size::Real),
    ([128, 64, 8, 4, 4000], Size::Real),
    ([64, 32, 4, 2, 16_000], Size::Real),
    ([32, 16, 4, 2, 32_000], Size::Real),
];

/// Against the CPU form.
pub(super) fn check<B: TestBackend>(harness: &mut Harness<'_, B>) -> Result<()> {
    let (backend, dtype) = (harness.backend, harness.backend.dtype());
    for &(shape, size) in SHAPES {
        for slope in [1.0, 0.1] {
            let [inputs, outputs, taps, stride, frames] = shape;
            let name = format!("{inputs}x{outputs}x{taps} stride {stride} over {frames}, slope {slope}");
            let cost = conv_transpose1d::cost([inputs, outputs, taps, stride], frames, dtype.size());
            harness.case(Case { name, dtype, size, cost }, |drawn| {
                let x = stored(dtype, drawn.values(inputs * frames));
                let weight = host(&[inputs, outputs, taps], stored(dtype, drawn.values(inputs * outputs * taps)))?;
                let bias = host(&[outputs], drawn.values(outputs))?;
                let weights = backend.conv_transpose_weights(&weight, &bias, stride)?;
                let on_device = backend.sequence([inputs, frames], &x)?;
                let run = move || Ok(Output::Tensor(backend.conv_transpose1d(&on_device, &weights, slope)?));
                Prepared::new(run, move || {
                    // The device rounds what the leaky ReLU gives.
                    let leaky = stored(dtype, x.into_iter().map(|v| v.max(v * slope)).collect());
                    let weights = Cpu.conv_transpose_weights(&weight, &bias, stride)?;
                    let y = Cpu.conv_transpose1d(&Cpu.upload([inputs, frames], &leaky)?, &weights, 1.0)?;
                    Ok(Expected::close(Cpu.download(&y)?, inputs * taps.div_ceil(stride), dtype))
                })
            })?;
        }
    }
    Ok(())
}
