//! Cases of embed, its backward pass and embed_frames.

use super::{gradients, host, parameters};
use crate::Result;
use crate::backend::cpu::Cpu;
use crate::backend::prelude::*;
use crate::backend::{EmbedTables, embed};
use crate::conformance::{Case, Expected, Harness, Inputs, Output, Prepared, Size, TestBackend, stored};
use crate::cost::Cost;
use crate::tensor::{DType, HostTensor};

/// Rows of the result, words, positions, channels.
const SUMS: &[(usize, usize, usize, usize, Size)] = &[
    (1, 1, 1, 1, Size::Small),
    (3, 5, 4, 6, Size::Small),
    (2, 9, 3, 8, Size::Small),
    (0, 5, 4, 8, Size::Small),
    (5, 31, 17, 515, Size::Ragged),
    (7, 203, 40, 1028, Size::Ragged),
    (1, 203, 1024, 768, Size::Real),
    (320, 203, 1024, 768, Size::Real),
];

/// As [`SUMS`], for the backward pass: many rows of few ids.
const BACKWARD: &[(usize, usize, usize, usize, Size)] = &[
    (1, 1, 1, 1, Size::Small),
    (9, 4, 3, 6, Size::Small),
    (20, 3, 7, 8, Size::Small),
    (0, 5, 4, 8, Size::Small),
    (65, 31, 17, 515, Size::Ragged),
    (90, 203, 40, 1028, Size::Ragged),
    (32 * 150, 203, 1024, 768, Size::Real),
    (64 * 150, 203, 1024, 768, Size::Real),
];
/// The word whose rows are left out.
const IGNORED: u32 = 0;

/// Rows and channels of each table.
type Tables = &'static [(usize, usize)];

/// Frames and tables.
const JOINED: &[(usize, Tables, Size)] = &[
    (1, &[(1, 1)], Size::Small),
    (5, &[(3, 4), (2, 3)], Size::Small),
    (0, &[(3, 4)], Size::Small),
    (9, &[(7, 8), (5, 4), (2, 12)], Size::Ragged),
    (130, &[(200, 33), (64, 16)], Size::Ragged),
    (200, &[(200, 128)], Size::Real),
    (500, &[(200, 128), (32, 128), (200, 128)], Size::Real),
];

/// A table as a backend of this type holds it.
fn table(inputs: &Inputs, rows: usize, channels: usize, dtype: DType) -> Result<HostTensor> {
    host(&[rows, channels], stored(dtype, inputs.values(rows * channels)))
}

fn ids(inputs: &Inputs, count: usize, rows: usize) -> Vec<u32> {
    inputs.below(count, rows).into_iter().map(|id| id as u32).collect()
}

/// Against the CPU form; both only add two values or none, so every bit is the same.
pub(super) fn check<B: TestBackend>(harness: &mut Harness<'_, B>) -> Result<()> {
    let (backend, dtype) = (harness.backend, harness.backend.dtype());
    for &(rows, words, positions, channels, size) in SUMS {
        let name = format!("{rows} of {words}+{positions}x{channels}");
        harness.case(Case { name, dtype, size, cost: embed::cost(rows, channels, 2, dtype.size()) }, |inputs| {
            let (word, position) = (table(inputs, words, channels, dtype)?, table(inputs, positions, channels, dtype)?);
            let (at, places) = (ids(inputs, rows, words), ids(inputs, rows, positions));
            let (words, positions) = (backend.matrix(word.clone())?, backend.matrix(position.clone())?);
            let (also_at, also_places) = (at.clone(), places.clone());
            let run = move || Ok(Output::Tensor(backend.embed(&words, &positions, &at, &places)?));
            Prepared::new(run, move || {
                let y = Cpu.embed(&Cpu.matrix(word)?, &Cpu.matrix(position)?, &also_at, &also_places)?;
                Ok(Expected::Exact(Cpu.download(&y)?))
            })
        })?;
    }
    for &(rows, words, positions, channels, size) in BACKWARD {
        backward(harness, [rows, words, positions, channels], size)?;
    }
    for &(frames, shapes, size) in JOINED {
        let channels = shapes.iter().map(|shape| shape.1).sum();
        let name = format!("{frames} columns of {shapes:?}");
        harness.case(Case { name, dtype, size, cost: embed::cost(frames, channels, 1, dtype.size()) }, |inputs| {
            let (mut on_cpu, mut on_device) = (Vec::new(), Vec::new());
            for &(rows, channels) in shapes {
                let (table, ids) = (table(inputs, rows, channels, dtype)?, ids(inputs, frames, rows));
                on_device.push((backend.matrix(table.clone())?, ids.clone()));
                on_cpu.push((Cpu.matrix(table)?, ids));
            }
            Prepared::new(
                move || Ok(Output::Tensor(joined(backend, &on_device)?)),
                move || Ok(Expected::Exact(Cpu.download(&joined(&Cpu, &on_cpu)?)?)),
            )
        })?;
    }
    Ok(())
}

/// Both tables, and the values between them. Rows are added in their order, so every bit is the same.
fn backward<B: TestBackend>(
    harness: &mut Harness<'_, B>,
    [rows, words, places, channels]: [usize; 4],
    size: Size,
) -> Result<()> {
    let (backend, dtype) = (harness.backend, harness.backend.dtype());
    let name = format!("backward, {rows} of {words}+{places}x{channels}");
    // dy is read twice, and each table read and written.
    let bytes = (2 * rows * dtype.size() + 2 * (words + places) * size_of::<f32>()) * channels;
    let cost = Cost { flops: (2 * rows * channels) as f64, bytes: bytes as f64 };
    harness.case(Case { name, dtype, size, cost }, |inputs| {
        let ([table, position], len) = parameters([[words, channels], [places, channels]]);
        let at = EmbedTables { table, position };
        let (words, places) = (ids(inputs, rows, words), ids(inputs, rows, places));
        let dy = stored(dtype, inputs.values(rows * channels));
        let before = inputs.values(if size < Size::Real { len } else { 0 });
        let on_device = backend.sequence([rows, channels], &dy)?;
        let same = (words.clone(), places.clone(), before.clone());
        let run = move || {
            let mut gradients = gradients(backend, len, &before)?;
            backend.embed_backward(&on_device, &words, &places, Some(IGNORED), &mut gradients, at)?;
            Ok(Output::Tensor(backend.gradients_tensor(gradients)?))
        };
        Prepared::new(run, move || {
            let (words, places, before) = same;
            let mut gradients = gradients(&Cpu, len, &before)?;
            let dy = Cpu.upload([rows, channels], &dy)?;
            Cpu.embed_backward(&dy, &words, &places, Some(IGNORED), &mut gradients, at)?;
            Ok(Expected::Exact(gradients))
        })
    })
}

fn joined<B: Backend>(backend: &B, tables: &[(B::Matrix, Vec<u32>)]) -> Result<B::Tensor> {
    backend.embed_frames(&tables.iter().map(|(table, ids)| (table, ids.as_slice())).collect::<Vec<_>>())
}
