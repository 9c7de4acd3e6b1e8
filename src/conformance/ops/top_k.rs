//! Cases of top_k.

use crate::Result;
use crate::backend::cpu::Cpu;
use crate::backend::prelude::*;
use crate::backend::top_k::{self, TopValue};
use crate::conformance::{Case, Expected, Harness, Output, Prepared, Size, TestBackend};
use crate::tensor::DType;

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
pub(super) fn check<B: TestBackend>(harness: &mut Harness<'_, B>) -> Result<()> {
    let backend = harness.backend;
    for &(rows, columns, count, size) in SHAPES {
        for ties in [false, true] {
            let name = format!("{count} of {rows}x{columns}{}", if ties { ", ties" } else { "" });
            let case = Case { name, dtype: DType::F32, size, cost: top_k::cost(rows, columns, count) };
            harness.case(case, |inputs| {
                let mut x = inputs.values(rows * columns);
                if ties {
                    let few = |v: f32| if v < 0.5 { f32::NEG_INFINITY } else { (v - 0.75).signum() * 0.0 };
                    x.iter_mut().for_each(|v| *v = few(*v));
                }
                let on_device = backend.upload([rows, columns], &x)?;
                Prepared::new(
                    move || Ok(Output::Values(flat(backend.top_k(&on_device, count)?))),
                    move || Ok(Expected::Exact(flat(Cpu.top_k(&Cpu.upload([rows, columns], &x)?, count)?))),
                )
            })?;
        }
    }
    Ok(())
}
