//! Cases of dropout.

use crate::Result;
use crate::backend::cpu::Cpu;
use crate::backend::dropout::{self, DropoutMask};
use crate::backend::prelude::*;
use crate::conformance::{Case, Expected, Harness, Output, Prepared, Size, TestBackend, stored};

/// Rows, channels, and the probability of a zero.
const SHAPES: &[(usize, usize, f32, Size)] = &[
    (1, 1, 0.5, Size::Small),
    (3, 7, 0.1, Size::Small),
    (2, 8, 0.0, Size::Small),
    (0, 5, 0.1, Size::Small),
    (4, 12, 0.999, Size::Small),
    (7, 293, 0.1, Size::Ragged),
    (2, 2048, 0.1, Size::Ragged),
    (5, 1027, 0.75, Size::Ragged),
    (16 * 407, 768, 0.1, Size::Real),
];

/// Against the CPU form. Without a residual every bit is the same, zeros above all.
pub(super) fn check<B: TestBackend>(harness: &mut Harness<'_, B>) -> Result<()> {
    let (backend, dtype) = (harness.backend, harness.backend.dtype());
    for &(rows, channels, probability, size) in SHAPES {
        for with_residual in [false, true] {
            let (shape, count) = ([rows, channels], rows * channels);
            let name = format!("{probability} of {rows}x{channels}{}", if with_residual { ", residual" } else { "" });
            let cost = dropout::cost(count, usize::from(with_residual), dtype.size());
            harness.case(Case { name, dtype, size, cost }, |inputs| {
                let mask = DropoutMask { probability, seed: inputs.random().bits(), stream: 1 << 40 | 17 };
                let x = stored(dtype, inputs.values(count));
                let residual = with_residual.then(|| stored(dtype, inputs.values(count)));
                let on_device = backend.sequence(shape, &x)?;
                let also = residual.as_ref().map(|values| backend.sequence(shape, values)).transpose()?;
                let run = move || Ok(Output::Tensor(backend.dropout(&on_device, mask, also.as_ref())?));
                Prepared::new(run, move || {
                    let residual = residual.map(|values| Cpu.upload(shape, &values)).transpose()?;
                    let y = Cpu.dropout(&Cpu.upload(shape, &x)?, mask, residual.as_ref())?;
                    let y = Cpu.download(&y)?;
                    Ok(if with_residual { Expected::close(y, 1, dtype) } else { Expected::Exact(stored(dtype, y)) })
                })
            })?;
        }
    }
    Ok(())
}
