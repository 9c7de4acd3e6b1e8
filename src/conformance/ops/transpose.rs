//! Cases of transpose: the physical one, which a download of a transposed tensor makes.

use crate::Result;
use crate::backend::cpu::Cpu;
use crate::backend::prelude::*;
use crate::backend::transpose;
use crate::conformance::{Case, Expected, Harness, Output, Prepared, Size, TestBackend, stored};

/// Rows and columns.
const SHAPES: &[(usize, usize, Size)] = &[
    (1, 1, Size::Small),
    (2, 6, Size::Small),
    (5, 3, Size::Small),
    (34, 66, Size::Small),
    (1, 40, Size::Ragged),
    (70, 1, Size::Ragged),
    (33, 95, Size::Ragged),
    (64, 64, Size::Ragged),
    (130, 62, Size::Ragged),
    (127, 258, Size::Ragged),
    (128, 200, Size::Real),
    (32_000, 512, Size::Real),
];

/// Against the CPU form.
pub(super) fn check<B: TestBackend>(harness: &mut Harness<'_, B>) -> Result<()> {
    let (backend, dtype) = (harness.backend, harness.backend.dtype());
    for &(rows, columns, size) in SHAPES {
        let case =
            Case { name: format!("{rows}x{columns}"), dtype, size, cost: transpose::cost(rows, columns, dtype.size()) };
        harness.case(case, |inputs| {
            let x = stored(dtype, inputs.values(rows * columns));
            let on_device = backend.sequence([rows, columns], &x)?;
            let run = move || Ok(Output::Tensor(backend.row_major(backend.transpose(&on_device)?)?));
            Prepared::new(run, move || {
                Ok(Expected::Exact(Cpu.download(&Cpu.transpose(&Cpu.upload([rows, columns], &x)?)?)?))
            })
        })?;
    }
    Ok(())
}
