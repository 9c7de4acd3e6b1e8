//! Cases of concat and split.

use crate::Result;
use crate::backend::concat;
use crate::backend::cpu::Cpu;
use crate::backend::prelude::*;
use crate::conformance::{Case, Expected, Harness, Output, Prepared, Size, TestBackend, stored};

/// Sequences, tokens of each part, channels.
const SHAPES: &[([usize; 4], Size)] = &[
    ([1, 1, 1, 1], Size::Small),
    ([3, 2, 5, 8], Size::Small),
    ([2, 4, 3, 5], Size::Small),
    ([2, 0, 3, 4], Size::Small),
    ([2, 3, 0, 4], Size::Small),
    ([3, 0, 0, 4], Size::Small),
    ([5, 7, 11, 37], Size::Ragged),
    ([9, 10, 24, 64], Size::Ragged),
    ([2, 257, 3, 12], Size::Ragged),
    ([8, 257, 150, 768], Size::Real),
    ([16, 257, 150, 768], Size::Real),
];

/// Joined, and each part of what was joined: copies, so every bit is the same.
pub(super) fn check<B: TestBackend>(harness: &mut Harness<'_, B>) -> Result<()> {
    let (backend, dtype) = (harness.backend, harness.backend.dtype());
    for &([batch, first, second, channels], size) in SHAPES {
        let cost = concat::cost(batch * (first + second) * channels, dtype.size());
        let name = format!("{batch} of {first}+{second}x{channels}");
        let shapes = [first, second].map(|tokens| [batch * tokens, channels]);
        harness.case(Case { name: name.clone(), dtype, size, cost }, |inputs| {
            let parts = shapes.map(|[rows, columns]| inputs.values(rows * columns));
            // One in the type of sequences, one in f32.
            let a = backend.sequence(shapes[0], &parts[0])?;
            let b = backend.upload(shapes[1], &parts[1])?;
            let run = move || Ok(Output::Tensor(backend.concat(&a, &b, batch)?));
            Prepared::new(run, move || {
                let [a, b] = [0, 1].map(|n| Cpu.upload(shapes[n], &parts[n]));
                Ok(Expected::Exact(stored(dtype, Cpu.download(&Cpu.concat(&a?, &b?, batch)?)?)))
            })
        })?;
        for part in [0, 1] {
            let name = format!("{name}, {} of split", ["first", "second"][part]);
            harness.case(Case { name, dtype, size, cost }, |inputs| {
                let shape = [batch * (first + second), channels];
                let x = stored(dtype, inputs.values(shape[0] * channels));
                let on_device = backend.sequence(shape, &x)?;
                let run = move || {
                    let (a, b) = backend.split(&on_device, batch, first)?;
                    Ok(Output::Tensor(if part == 0 { a } else { b }))
                };
                Prepared::new(run, move || {
                    let (a, b) = Cpu.split(&Cpu.upload(shape, &x)?, batch, first)?;
                    Ok(Expected::Exact(Cpu.download(if part == 0 { &a } else { &b })?))
                })
            })?;
        }
    }
    Ok(())
}
