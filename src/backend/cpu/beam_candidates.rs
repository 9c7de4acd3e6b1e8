//! beam_candidates: one step of a beam search from logits to the best continuations of each picture's texts. Scores are
//! summed in f32, as the frameworks do.

use super::{Tensor, ensure};
use crate::Result;
use crate::backend::{BeamCandidate, rows};

/// See [`crate::backend::Backend::beam_candidates`].
pub fn beam_candidates(
    logits: &Tensor,
    scores: &[f32],
    pictures: &[usize],
    count: usize,
) -> Result<Vec<Vec<BeamCandidate>>> {
    let vocabulary = logits.columns;
    ensure(
        vocabulary > 0 && scores.len() == logits.rows && pictures.iter().sum::<usize>() == logits.rows,
        "beam_candidates",
        || format!("logits ({}, {vocabulary}), {} scores, pictures of {pictures:?} rows", logits.rows, scores.len()),
    )?;
    let mut live = logits.data.chunks_exact(vocabulary).zip(scores);
    pictures
        .iter()
        .map(|&texts| {
            let mut extended = Vec::with_capacity(texts * vocabulary);
            for (row, score) in live.by_ref().take(texts) {
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
