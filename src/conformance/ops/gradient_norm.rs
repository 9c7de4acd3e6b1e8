//! Cases of gradient_norm.

use super::gradients;
use crate::Result;
use crate::backend::cpu::Cpu;
use crate::backend::gradient_norm;
use crate::backend::prelude::*;
use crate::conformance::{Case, Expected, Harness, Output, Prepared, Size, TestBackend};
use crate::tensor::DType;

/// Gradients, and their largest magnitude.
const LENGTHS: &[(usize, f32, Size)] = &[
    (0, 1.0, Size::Small),
    (1, 1.0, Size::Small),
    (7, 1e-6, Size::Small),
    (1023, 1.0, Size::Small),
    (16_384, 1.0, Size::Ragged),
    (16_385, 1e3, Size::Ragged),
    (50_003, 1.0, Size::Ragged),
    ((1 << 25) + 3, 1e-3, Size::Real),
];
/// Additions in f32, one after the other, of a kernel: no more, however many gradients there are.
const ADDITIONS: usize = 80;

/// Against the CPU form; a gradient that is no number, or infinite, is seen in the norm.
pub(super) fn check<B: TestBackend>(harness: &mut Harness<'_, B>) -> Result<()> {
    for &(len, largest, size) in LENGTHS {
        close(harness, len, largest, size)?;
        if len > 0 && size < Size::Real {
            for bad in [f32::NAN, f32::NEG_INFINITY] {
                not_finite(harness, len, bad, size)?;
            }
        }
    }
    Ok(())
}

fn close<B: TestBackend>(harness: &mut Harness<'_, B>, len: usize, largest: f32, size: Size) -> Result<()> {
    let backend = harness.backend;
    let name = format!("{len} up to {largest}");
    harness.case(Case { name, dtype: DType::F32, size, cost: gradient_norm::cost(len) }, |inputs| {
        let values = inputs.scaled(len, largest);
        let on_device = gradients(backend, len, &values)?;
        let run = move || Ok(Output::Values(vec![backend.gradient_norm(&on_device)? as f32]));
        Prepared::new(run, move || Ok(Expected::close(vec![Cpu.gradient_norm(&values)? as f32], ADDITIONS, DType::F32)))
    })
}

fn not_finite<B: TestBackend>(harness: &mut Harness<'_, B>, len: usize, bad: f32, size: Size) -> Result<()> {
    let backend = harness.backend;
    let case = Case { name: format!("{len}, one {bad}"), dtype: DType::F32, size, cost: Default::default() };
    harness.case(case, |inputs| {
        let mut values = inputs.values(len);
        values[inputs.below(1, len)[0]] = bad;
        let on_device = gradients(backend, len, &values)?;
        let run = move || {
            let norm = backend.gradient_norm(&on_device)?;
            Ok(Output::Values(vec![f32::from(u8::from(norm.is_nan())), f32::from(u8::from(norm.is_infinite()))]))
        };
        let expected = [bad.is_nan(), bad.is_infinite()].map(|is| f32::from(u8::from(is)));
        Prepared::new(run, move || Ok(Expected::Exact(expected.to_vec())))
    })
}
