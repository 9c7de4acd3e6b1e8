//! Launches kernels/beam_candidates.cu.

use super::driver::Launch;
use super::kernels::{self, BeamCandidatesParams, SIZE_OF_BEAM_ROW, SIZE_OF_SELECT_SHARED};
use super::{Cuda, Layout, Tensor, ensure, int};
use crate::backend::{BeamCandidate, BeamCandidates, beam_candidates};
use crate::tensor::DType;
use crate::{Error, Result};

impl BeamCandidates for Cuda {
    fn beam_candidates(
        &self,
        logits: &Tensor,
        scores: &[f32],
        images: &[usize],
        count: usize,
    ) -> Result<Vec<Vec<BeamCandidate>>> {
        beam_candidates::check(self, logits, scores, images)?;
        launch(self, logits, scores, images, count)
    }
}

/// The best continuations of each image's hypotheses.
fn launch(
    cuda: &Cuda,
    logits: &Tensor,
    scores: &[f32],
    images: &[usize],
    count: usize,
) -> Result<Vec<Vec<BeamCandidate>>> {
    const OP: &str = "beam_candidates";
    let vocabulary = logits.columns;
    let widest = images.iter().copied().max().unwrap_or(0);
    // Even without a candidate to hand out, the rows are looked at for NaN.
    let kept = count.max(1).min(widest * vocabulary);
    int(OP, widest * vocabulary)?;
    let shared = SIZE_OF_SELECT_SHARED + widest * SIZE_OF_BEAM_ROW;
    let room = cuda.stream.properties().shared_per_block;
    ensure(shared <= room, OP, || {
        format!("{widest} hypotheses of an image; there is room for {}", room / SIZE_OF_BEAM_ROW)
    })?;
    if kept == 0 {
        return Ok(vec![Vec::new(); images.len()]);
    }
    let logits = cuda.rows_of(logits, DType::F32)?;
    let y = cuda.empty([images.len(), 2 * kept], DType::F32, Layout::Rows)?;
    // One copy to the device: the scores, then where each image's rows begin, and their end.
    let starts = std::iter::once(0).chain(images.iter().scan(0, |row, beams| {
        *row += *beams as u32;
        Some(*row)
    }));
    let words: Vec<u32> = scores.iter().map(|score| score.to_bits()).chain(starts).collect();
    let words = cuda.put_ids(&words)?;
    let params = BeamCandidatesParams {
        logits: logits.pointer(),
        scores: words.pointer(),
        starts: words.pointer().offset(size_of_val(scores)),
        y: y.pointer(),
        vocabulary: int(OP, vocabulary)?,
        count: int(OP, kept)?,
    };
    let grid = Launch::blocks(images.len()).shared_bytes(shared);
    // SAFETY: the starts rise from 0 to the number of rows, of which there are as many logits and scores; y holds two words
    // for each of `count` candidates of each image, which has a block; shared memory has room for the rows of any.
    unsafe { cuda.launch(&kernels::BEAM_CANDIDATES_FORWARD_F32, grid, params)? };
    let words = cuda.get_words(&y, y.len())?;
    let of_image = |(words, beams): (&[u32], &usize)| {
        let known = beams * vocabulary;
        if known > 0 && f32::from_bits(words[0]).is_nan() {
            return Err(Error::NotANumber { stage: "log_softmax" });
        }
        let candidates = words.chunks_exact(2).take(count.min(known)).map(|pair| {
            let (score, place) = (f32::from_bits(pair[0]), pair[1] as usize);
            BeamCandidate { row: place / vocabulary, token: (place % vocabulary) as u32, score }
        });
        Ok(candidates.collect())
    };
    words.chunks_exact(2 * kept).zip(images).map(of_image).collect()
}
