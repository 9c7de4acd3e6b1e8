//! Cases of beam_candidates.

use crate::Result;
use crate::backend::BeamCandidate;
use crate::backend::cpu::Cpu;
use crate::backend::prelude::*;
use crate::conformance::{Case, Harness, Size, tolerance};
use crate::cost::Cost;
use crate::random::Random;

/// Rows of each picture, vocabulary, candidates.
const SHAPES: &[(&[usize], usize, usize, Size)] = &[
    (&[1], 1, 1, Size::Small),
    (&[1, 2], 5, 4, Size::Small),
    (&[], 5, 4, Size::Small),
    (&[3, 1, 2], 40, 6, Size::Small),
    (&[1, 5, 3], 203, 10, Size::Ragged),
    (&[11], 37, 22, Size::Ragged),
    (&[2, 0, 1], 7, 20, Size::Ragged),
    (&[2, 2], 700, 5, Size::Ragged),
    (&[5], 203, 10, Size::Real),
    (&[5; 64], 203, 10, Size::Real),
    (&[4; 8], 30_522, 8, Size::Real),
];

fn scores(pictures: &[Vec<BeamCandidate>]) -> Vec<f32> {
    pictures.iter().flatten().map(|candidate| candidate.score).collect()
}

/// Rows and tokens in turn.
fn places(pictures: &[Vec<BeamCandidate>]) -> Vec<u32> {
    pictures.iter().flatten().flat_map(|candidate| [candidate.row as u32, candidate.token]).collect()
}

/// Against the CPU form. Its sums may differ from the device's by rounding, so inputs are drawn until no two neighbours
/// among the candidates are so close that rounding could exchange them. Equal rows tie exactly on both sides.
pub(in crate::conformance) fn check(harness: &mut Harness<'_>) -> Result<()> {
    let mut random = Random::new(36);
    let (cuda, max) = (harness.cuda, harness.max);
    for &(pictures, vocabulary, count, size) in SHAPES.iter().filter(|shape| shape.3 <= max) {
        let rows: usize = pictures.iter().sum();
        for ties in [false, true] {
            let (mut logits, mut so_far);
            let expected = loop {
                logits = random.values(rows * vocabulary).iter().map(|v| v * 8.0).collect::<Vec<_>>();
                so_far = random.values(rows).iter().map(|v| v * 4.0 - 20.0).collect::<Vec<_>>();
                if ties {
                    let first = logits[..vocabulary.min(logits.len())].to_vec();
                    logits.chunks_exact_mut(vocabulary).for_each(|row| row.copy_from_slice(&first));
                    so_far.fill(-7.5);
                }
                let x = Cpu.upload([rows, vocabulary], &logits)?;
                // One more shows whether the last is clear.
                let mut expected = Cpu.beam_candidates(&x, &so_far, pictures, count + 1)?;
                let blurred = 2.0 * tolerance(vocabulary, 32.0);
                if ties || expected.iter().all(|best| best.windows(2).all(|w| w[0].score - w[1].score > blurred)) {
                    expected.iter_mut().for_each(|best| best.truncate(count));
                    break expected;
                }
            };
            let x = cuda.upload([rows, vocabulary], &logits)?;
            let case = |what: &str, expected: Vec<f32>| Case {
                name: format!("{count} of {pictures:?}x{vocabulary}{}, {what}", if ties { ", ties" } else { "" }),
                size,
                length: vocabulary,
                expected,
                rounded: Vec::new(),
                exact: false,
                cost: Cost { flops: (4 * rows * vocabulary) as f64, bytes: (4 * rows * vocabulary) as f64 },
            };
            let run = || cuda.beam_candidates(&x, &so_far, pictures, count);
            harness.values(case("scores", scores(&expected)), &|_| Ok(scores(&run()?)))?;
            let ids = places(&expected).into_iter().map(|id| id as f32).collect();
            harness.ids(case("places", ids), &|_| Ok(places(&run()?)))?;
            alone(harness, &logits, vocabulary, &so_far, pictures, count, size)?;
        }
    }
    Ok(())
}

/// The last picture without its neighbours: the same bits.
fn alone(
    harness: &mut Harness<'_>,
    logits: &[f32],
    vocabulary: usize,
    so_far: &[f32],
    pictures: &[usize],
    count: usize,
    size: Size,
) -> Result<()> {
    let (cuda, Some((&texts, before))) = (harness.cuda, pictures.split_last()) else { return Ok(()) };
    let first: usize = before.iter().sum();
    let x = cuda.upload([texts, vocabulary], &logits[first * vocabulary..])?;
    let together = cuda.upload([first + texts, vocabulary], logits)?;
    let last = cuda.beam_candidates(&together, so_far, pictures, count)?.pop().unwrap_or_default();
    let case = Case {
        name: format!("{count} of {pictures:?}x{vocabulary}, the last alone"),
        size,
        length: vocabulary,
        expected: scores(&[last]),
        rounded: Vec::new(),
        exact: true,
        cost: Cost::default(),
    };
    harness.values(case, &|cuda| Ok(scores(&cuda.beam_candidates(&x, &so_far[first..], &[texts], count)?)))
}
