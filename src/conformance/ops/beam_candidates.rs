//! Cases of beam_candidates.

use crate::Result;
use crate::backend::beam_candidates::{self, BeamCandidate};
use crate::backend::cpu::Cpu;
use crate::backend::prelude::*;
use crate::conformance::{Case, Expected, Harness, Inputs, Output, Prepared, Size, TestBackend};
use crate::cost::Cost;
use crate::tensor::DType;

/// Rows of each image, vocabulary, candidates.
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

/// Largest logit of a row.
const TOP: f32 = 8.0;
/// Distance of the best logits of a row; an image's rows share it out.
const STEP: f32 = 0.5;
/// Width of the logits below the best ones.
const SPREAD: f32 = 8.0;

/// Logits (rows, vocabulary) and the scores so far.
struct Scores {
    images: &'static [usize],
    vocabulary: usize,
    logits: Vec<f32>,
    so_far: Vec<f32>,
}

impl Scores {
    /// Sums of the backend may differ from those of the CPU form by rounding. So the best `count + 1` sequences of an image, one
    /// more than are wanted, lie on a grid: those of a row `STEP` apart, and the grids of an image's rows in between each
    /// other, since the scores so far take back each row's own sum. With `ties` all rows are equal.
    fn new(inputs: &Inputs, images: &'static [usize], vocabulary: usize, count: usize, ties: bool) -> Scores {
        let rows: usize = images.iter().sum();
        let best = vocabulary.min(count + 1);
        let below = TOP - STEP * best as f32;
        let mut logits: Vec<f32> =
            inputs.values(rows * vocabulary).into_iter().map(|v| below - SPREAD * (v + 1.0)).collect();
        let places = inputs.below(rows * best, vocabulary);
        for (row, places) in logits.chunks_exact_mut(vocabulary).zip(places.chunks_exact(best)) {
            let mut taken = Vec::new();
            for (n, &place) in places.iter().enumerate() {
                // The next one that is free.
                let place = (place..vocabulary).chain(0..place).find(|place| !taken.contains(place)).unwrap_or(place);
                taken.push(place);
                row[place] = TOP - STEP * n as f32;
            }
        }
        let mut so_far = Vec::new();
        let first = logits[..vocabulary.min(logits.len())].to_vec();
        for &beams in images {
            for beam in 0..beams {
                let row = &mut logits[so_far.len() * vocabulary..][..vocabulary];
                if ties {
                    row.copy_from_slice(&first);
                }
                let sum = row.iter().map(|&v| f64::from(v - TOP).exp()).sum::<f64>().ln() as f32;
                // The best sequence is in a row of the middle.
                let turn = (beam + beams / 2) % beams;
                so_far.push(if ties { -7.5 } else { sum - 20.0 - STEP * turn as f32 / beams as f32 });
            }
        }
        Scores { images, vocabulary, logits, so_far }
    }

    fn rows(&self) -> usize {
        self.so_far.len()
    }

    fn on<B: Backend>(&self, backend: &B) -> Result<B::Tensor> {
        backend.upload([self.rows(), self.vocabulary], &self.logits)
    }

    fn expected(&self, count: usize) -> Result<Vec<Vec<BeamCandidate>>> {
        Cpu.beam_candidates(&self.on(&Cpu)?, &self.so_far, self.images, count)
    }
}

fn scores(images: &[Vec<BeamCandidate>]) -> Vec<f32> {
    images.iter().flatten().map(|candidate| candidate.score).collect()
}

/// Rows and tokens in turn.
fn places(images: &[Vec<BeamCandidate>]) -> Vec<u32> {
    images.iter().flatten().flat_map(|candidate| [candidate.row as u32, candidate.token]).collect()
}

/// Against the CPU form: scores within the tolerance, rows and tokens exactly; and the last image without the others.
pub(super) fn check<B: TestBackend>(harness: &mut Harness<'_, B>) -> Result<()> {
    let backend = harness.backend;
    for &(images, vocabulary, count, size) in SHAPES {
        for ties in [false, true] {
            let shape = name(images, vocabulary, count, ties);
            let case = |what: &str, cost| Case { name: format!("{shape}, {what}"), dtype: DType::F32, size, cost };
            let inputs = Inputs::new("beam_candidates", &shape);
            let drawn = Scores::new(&inputs, images, vocabulary, count, ties);
            let drawn = &drawn;
            harness.case(case("scores", beam_candidates::cost(drawn.rows(), vocabulary)), |_| {
                let x = drawn.on(backend)?;
                let run =
                    move || Ok(Output::Values(scores(&backend.beam_candidates(&x, &drawn.so_far, images, count)?)));
                Prepared::new(run, move || Ok(Expected::close(scores(&drawn.expected(count)?), vocabulary, DType::F32)))
            })?;
            harness.case(case("places", Cost::default()), |_| {
                let x = drawn.on(backend)?;
                let run =
                    move || Ok(Output::ids(&places(&backend.beam_candidates(&x, &drawn.so_far, images, count)?)));
                Prepared::new(run, move || Ok(Expected::ids(&places(&drawn.expected(count)?))))
            })?;
            let Some((&beams, others)) = images.split_last() else { continue };
            let first: usize = others.iter().sum();
            // The same bits.
            harness.case(case("the last alone", Cost::default()), |_| {
                let x = backend.upload([beams, vocabulary], &drawn.logits[first * vocabulary..])?;
                let all = drawn.on(backend)?;
                let so_far = &drawn.so_far[first..];
                let run = move || Ok(Output::Values(scores(&backend.beam_candidates(&x, so_far, &[beams], count)?)));
                Prepared::new(run, move || {
                    let last = backend.beam_candidates(&all, &drawn.so_far, images, count)?.pop().unwrap_or_default();
                    Ok(Expected::Exact(scores(&[last])))
                })
            })?;
        }
    }
    Ok(())
}

/// Name of a shape, which its inputs are drawn by.
fn name(images: &[usize], vocabulary: usize, count: usize, ties: bool) -> String {
    format!("{count} of {}x{vocabulary}{}", rows_of(images), if ties { ", ties" } else { "" })
}

/// Rows of each image, for people.
fn rows_of(images: &[usize]) -> String {
    match images {
        [first, _, ..] if images.iter().all(|beams| beams == first) => format!("{}x{first}", images.len()),
        _ => format!("{images:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::tolerance;

    /// No rounding within the tolerance exchanges two of the best sequences, or the last of them with the next.
    #[test]
    fn best_texts_are_clear() -> Result<()> {
        for &(images, vocabulary, count, _) in SHAPES {
            let inputs = Inputs::new("beam_candidates", &name(images, vocabulary, count, false));
            let drawn = Scores::new(&inputs, images, vocabulary, count, false);
            for best in drawn.expected(count + 1)? {
                let close = best.windows(2).find(|w| w[0].score - w[1].score <= 2.0 * tolerance(vocabulary, 32.0));
                assert!(close.is_none(), "{images:?}x{vocabulary}: {close:?}");
                assert!(best.iter().all(|candidate| candidate.score.abs() <= 32.0));
            }
        }
        Ok(())
    }
}
