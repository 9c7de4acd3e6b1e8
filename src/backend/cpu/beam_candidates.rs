//! beam_candidates: one step of a beam search from logits to the best continuations of each image's sequences. Scores are
//! summed in f32, as the frameworks do.

use super::{Cpu, Tensor};
use crate::backend::{BeamCandidate, BeamCandidates, beam_candidates, rows};
use crate::{Result, trace};

impl BeamCandidates for Cpu {
    fn beam_candidates(
        &self,
        logits: &Tensor,
        scores: &[f32],
        images: &[usize],
        count: usize,
    ) -> Result<Vec<Vec<BeamCandidate>>> {
        let _span = trace::span("beam_candidates");
        beam_candidates::check(self, logits, scores, images)?;
        best(logits, scores, images, count)
    }
}

fn best(logits: &Tensor, scores: &[f32], images: &[usize], count: usize) -> Result<Vec<Vec<BeamCandidate>>> {
    let vocabulary = logits.columns;
    let mut live = logits.data.chunks_exact(vocabulary).zip(scores);
    images
        .iter()
        .map(|&beams| {
            let mut extended = Vec::with_capacity(beams * vocabulary);
            for (row, score) in live.by_ref().take(beams) {
                extended.extend(rows::log_softmax(row)?.into_iter().map(|log| log + score));
            }
            let candidate = |i: usize| {
                let (row, token) = (i / vocabulary, (i % vocabulary) as u32);
                BeamCandidate { row, token, score: extended[i] }
            };
            Ok(rows::top(&extended, count).into_iter().map(candidate).collect())
        })
        .collect()
}
