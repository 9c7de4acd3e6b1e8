//! Cases of gelu.

use crate::Result;
use crate::backend::cpu::Cpu;
use crate::backend::gelu;
use crate::backend::prelude::*;
use crate::conformance::{Case, Expected, Harness, Output, Prepared, Size, TestBackend, stored};

/// Rows, columns and how large the values are.
const SHAPES: &[(usize, usize, f32, Size)] = &[
    (1, 1, 1.0, Size::Small),
    (3, 5, 4.0, Size::Small),
    (2, 8, 100.0, Size::Small),
    (33, 67, 4.0, Size::Ragged),
    (64, 130, 4.0, Size::Ragged),
    (31_999, 512, 4.0, Size::Real),
];

/// Against the CPU form.
pub(super) fn check<B: TestBackend>(harness: &mut Harness<'_, B>) -> Result<()> {
    let (backend, dtype) = (harness.backend, harness.backend.dtype());
    for &(rows, columns, scale, size) in SHAPES {
        let name = format!("{rows}x{columns} of {scale}");
        let cost = gelu::cost(rows, columns, dtype.size());
        harness.case(Case { name, dtype, size, cost }, |inputs| {
            let x = stored(dtype, inputs.scaled(rows * columns, scale));
            let on_device = backend.sequence([rows, columns], &x)?;
            let run = move || Ok(Output::Tensor(backend.gelu(&on_device)?));
            Prepared::new(run, move || {
                let y = Cpu.gelu(&Cpu.upload([rows, columns], &x)?)?;
                Ok(Expected::close(Cpu.download(&y)?, 1, dtype))
            })
        })?;
    }
    Ok(())
}
