//! Cases of argmax.

use crate::Result;
use crate::backend::argmax;
use crate::backend::cpu::Cpu;
use crate::backend::prelude::*;
use crate::conformance::{Case, Expected, Harness, Output, Prepared, Size, TestBackend};
use crate::tensor::DType;

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
pub(super) fn check<B: TestBackend>(harness: &mut Harness<'_, B>) -> Result<()> {
    let backend = harness.backend;
    for &(rows, columns, size) in SHAPES {
        for ties in [false, true] {
            let name = format!("{rows}x{columns}{}", if ties { ", ties" } else { "" });
            let case = Case { name, dtype: DType::F32, size, cost: argmax::cost(rows, columns) };
            harness.case(case, |inputs| {
                let mut x = inputs.values(rows * columns);
                if ties {
                    x.iter_mut().for_each(|v| *v = if *v < 0.5 { -3.0 } else { (*v - 0.75).signum() * 0.0 });
                    x.iter_mut().take(columns).for_each(|v| *v = f32::NEG_INFINITY);
                }
                let on_device = backend.upload([rows, columns], &x)?;
                let run = move || {
                    let mut best = Vec::new();
                    backend.argmax(&on_device, &mut best)?;
                    Ok(Output::ids(&best))
                };
                Prepared::new(run, move || {
                    let mut best = Vec::new();
                    Cpu.argmax(&Cpu.upload([rows, columns], &x)?, &mut best)?;
                    Ok(Expected::ids(&best))
                })
            })?;
        }
    }
    Ok(())
}
