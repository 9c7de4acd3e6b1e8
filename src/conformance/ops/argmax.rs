//! Cases of argmax.

use crate::Result;
use crate::backend::cpu::Cpu;
use crate::backend::prelude::*;
use crate::conformance::{Case, Harness, Size};
use crate::cost::Cost;
use crate::random::Random;

/// Rows and columns.
const SHAPES: &[(usize, usize, Size)] = &[
    (1, 1, Size::Small),
    (3, 7, Size::Small),
    (0, 5, Size::Small),
    (5, 203, Size::Small),
    (3, 255, Size::Ragged),
    (2, 257, Size::Ragged),
    (2, 1500, Size::Ragged),
    (1, 203, Size::Real),
    (64, 203, Size::Real),
    (8, 30_522, Size::Real),
];

/// Against the CPU form. Every other case has few different values, and so many ties, zeros of both signs among them.
pub(in crate::conformance) fn check(harness: &mut Harness<'_>) -> Result<()> {
    let mut random = Random::new(34);
    let max = harness.max;
    for &(rows, columns, size) in SHAPES.iter().filter(|shape| shape.2 <= max) {
        for ties in [false, true] {
            let mut x = random.values(rows * columns);
            if ties {
                x.iter_mut().for_each(|v| *v = if *v < 0.5 { -3.0 } else { (*v - 0.75).signum() * 0.0 });
                x.iter_mut().take(columns).for_each(|v| *v = f32::NEG_INFINITY);
            }
            let mut expected = Vec::new();
            Cpu.argmax(&Cpu.upload([rows, columns], &x)?, &mut expected)?;
            let x = harness.cuda.upload([rows, columns], &x)?;
            let case = Case {
                name: format!("{rows}x{columns}{}", if ties { ", ties" } else { "" }),
                size,
                length: 1,
                expected: expected.into_iter().map(|column| column as f32).collect(),
                rounded: Vec::new(),
                exact: true,
                cost: Cost { flops: 0.0, bytes: 4.0 * (rows * columns) as f64 },
            };
            harness.ids(case, &|cuda| {
                let mut best = Vec::new();
                cuda.argmax(&x, &mut best).map(|()| best)
            })?;
        }
    }
    Ok(())
}
