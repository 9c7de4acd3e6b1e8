//! Cases of transpose: the physical one, which a download of a transposed tensor makes.

use crate::Result;
use crate::backend::Backend;
use crate::backend::cpu::Cpu;
use crate::conformance::{Case, Expected, Harness, Output, Prepared, Size, TestBackend, stored};
use crate::cost::Cost;
use crate::tensor::DType;

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

/// One read and one write of x (rows, columns).
fn cost(rows: usize, columns: usize, dtype: DType) -> Cost {
    Cost { flops: 0.0, bytes: (2 * rows * columns * dtype.size()) as f64 }
}

/// Against the CPU form.
pub(super) fn check<B: TestBackend>(harness: &mut Harness<'_, B>) -> Result<()> {
    let (backend, dtype) = (harness.backend, harness.backend.dtype());
    for &(rows, columns, size) in SHAPES {
        let case = Case { name: format!("{rows}x{columns}"), dtype, size, cost: cost(rows, columns, dtype) };
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
