//! Cases of embed and embed_frames.

use crate::backend::cpu::Cpu;
use crate::backend::prelude::*;
use crate::conformance::{Case, Harness, Size};
use crate::cost::Cost;
use crate::random::Random;
use crate::tensor::HostTensor;
use crate::{Error, Result};

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

fn host(rows: usize, columns: usize, values: &[f32]) -> Result<HostTensor> {
    HostTensor::from_f32(&[rows, columns], values.to_vec()).ok_or_else(|| Error::shape("embed", "no such table"))
}

/// Against the CPU form; both only add two values or none, so every bit is the same.
pub(in crate::conformance) fn check(harness: &mut Harness<'_>) -> Result<()> {
    let mut random = Random::new(33);
    let (cuda, max) = (harness.cuda, harness.max);
    let element = cuda.dtype().size() as f64;
    for &(rows, words, positions, channels, size) in SUMS.iter().filter(|shape| shape.4 <= max) {
        let (table, place) =
            (harness.stored(random.values(words * channels)), harness.stored(random.values(positions * channels)));
        let ids: Vec<u32> = (0..rows).map(|_| random.below(words) as u32).collect();
        let places: Vec<u32> = (0..rows).map(|_| random.below(positions) as u32).collect();
        let (table, place) = (host(words, channels, &table)?, host(positions, channels, &place)?);
        let (on_cpu, at) = (Cpu.matrix(table.clone())?, Cpu.matrix(place.clone())?);
        let expected = Cpu.download(&Cpu.embed(&on_cpu, &at, &ids, &places)?)?;
        let (table, place) = (cuda.matrix(table)?, cuda.matrix(place)?);
        let elements = (rows * channels) as f64;
        let cost = Cost { flops: elements, bytes: elements * (2.0 * element + 4.0) };
        let name = format!("{rows} of {words}+{positions}x{channels}");
        let case = Case { name, size, length: 1, expected, rounded: Vec::new(), exact: true, cost };
        harness.case(case, true, &|cuda| cuda.embed(&table, &place, &ids, &places))?;
    }
    for &(frames, shapes, size) in JOINED.iter().filter(|shape| shape.2 <= max) {
        let (mut host_tables, mut device_tables, mut ids) = (Vec::new(), Vec::new(), Vec::new());
        for &(rows, channels) in shapes {
            let table = host(rows, channels, &harness.stored(random.values(rows * channels)))?;
            host_tables.push(Cpu.matrix(table.clone())?);
            device_tables.push(cuda.matrix(table)?);
            ids.push((0..frames).map(|_| random.below(rows) as u32).collect::<Vec<_>>());
        }
        let ids = || ids.iter().map(Vec::as_slice);
        let expected = Cpu.download(&Cpu.embed_frames(&host_tables.iter().zip(ids()).collect::<Vec<_>>())?)?;
        let elements = expected.len() as f64;
        let cost = Cost { flops: 0.0, bytes: 2.0 * elements * element };
        let name = format!("{frames} columns of {shapes:?}");
        let case = Case { name, size, length: 1, expected, rounded: Vec::new(), exact: true, cost };
        harness.case(case, false, &|cuda| cuda.embed_frames(&device_tables.iter().zip(ids()).collect::<Vec<_>>()))?;
    }
    Ok(())
}
