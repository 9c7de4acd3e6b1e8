//! Cases of transpose: the physical one, which a download of a transposed tensor makes.

use crate::Result;
use crate::backend::cpu::Cpu;
use crate::backend::prelude::*;
use crate::conformance::{Case, Harness, Size};
use crate::cost::Cost;
use crate::random::Random;

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
pub(in crate::conformance) fn check(harness: &mut Harness<'_>) -> Result<()> {
    let mut random = Random::new(32);
    let max = harness.max;
    for &(rows, columns, size) in SHAPES.iter().filter(|shape| shape.2 <= max) {
        let x = harness.stored(random.values(rows * columns));
        let expected = Cpu.download(&Cpu.transpose(&Cpu.upload([rows, columns], &x)?)?)?;
        let cuda = harness.cuda;
        let x = cuda.sequence([rows, columns], &x)?;
        let elements = (rows * columns) as f64;
        let case = Case {
            name: format!("{rows}x{columns}"),
            size,
            length: 1,
            expected,
            rounded: Vec::new(),
            exact: true,
            cost: Cost { flops: 0.0, bytes: 2.0 * elements * cuda.dtype().size() as f64 },
        };
        harness.case(case, false, &|cuda| cuda.row_major(&cuda.transpose(&x)?))?;
    }
    Ok(())
}
