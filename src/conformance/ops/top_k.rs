//! Cases of top_k.

use crate::Result;
use crate::backend::TopValue;
use crate::backend::cpu::Cpu;
use crate::backend::prelude::*;
use crate::conformance::{Case, Harness, Size};
use crate::cost::Cost;
use crate::random::Random;

/// Rows, columns, and how many are wanted.
const SHAPES: &[(usize, usize, usize, Size)] = &[
    (1, 1, 1, Size::Small),
    (2, 5, 0, Size::Small),
    (0, 5, 2, Size::Small),
    (3, 9, 9, Size::Small),
    (2, 203, 10, Size::Ragged),
    (1, 255, 255, Size::Ragged),
    (2, 257, 3, Size::Ragged),
    (1, 1500, 40, Size::Ragged),
    (1, 203, 10, Size::Real),
    (64, 203, 50, Size::Real),
    (8, 30_522, 50, Size::Real),
];

/// Values and columns in one row, so that both are compared to the last bit.
fn flat(rows: Vec<Vec<TopValue>>) -> Vec<f32> {
    rows.iter().flatten().flat_map(|top| [top.value, top.column as f32]).collect()
}

/// Against the CPU form; every other case has many ties.
pub(in crate::conformance) fn check(harness: &mut Harness<'_>) -> Result<()> {
    let mut random = Random::new(35);
    let max = harness.max;
    for &(rows, columns, count, size) in SHAPES.iter().filter(|shape| shape.3 <= max) {
        for ties in [false, true] {
            let mut x = random.values(rows * columns);
            if ties {
                x.iter_mut().for_each(|v| *v = if *v < 0.5 { f32::NEG_INFINITY } else { (*v - 0.75).signum() * 0.0 });
            }
            let expected = flat(Cpu.top_k(&Cpu.upload([rows, columns], &x)?, count)?);
            let x = harness.cuda.upload([rows, columns], &x)?;
            let case = Case {
                name: format!("{count} of {rows}x{columns}{}", if ties { ", ties" } else { "" }),
                size,
                length: 1,
                expected,
                rounded: Vec::new(),
                exact: true,
                cost: Cost { flops: 0.0, bytes: (4 * rows * columns + 8 * rows * count) as f64 },
            };
            harness.values(case, &|cuda| Ok(flat(cuda.top_k(&x, count)?)))?;
        }
    }
    Ok(())
}
