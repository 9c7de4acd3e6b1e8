//! Launches kernels/beam_candidates.cu.

use super::driver::Launch;
use super::kernels::{self, BeamCandidatesParams, SIZE_OF_BEAM_ROW, SIZE_OF_SELECT_SHARED};
use super::{Cuda, Layout, Tensor, ensure, int};
use crate::backend::BeamCandidate;
use crate::tensor::DType;
use crate::{Error, Result};

/// The best continuations of each picture's texts.
pub(super) fn beam_candidates(
    cuda: &Cuda,
    logits: &Tensor,
    scores: &[f32],
    pictures: &[usize],
    count: usize,
) -> Result<Vec<Vec<BeamCandidate>>> {
    const OP: &str = "beam_candidates";
    let (rows, vocabulary) = (logits.rows, logits.columns);
    ensure(vocabulary > 0 && scores.len() == rows && pictures.iter().sum::<usize>() == rows, OP, || {
        format!("logits ({rows}, {vocabulary}), {} scores, pictures of {pictures:?} rows", scores.len())
    })?;
    let most = pictures.iter().copied().max().unwrap_or(0);
    // Even without a candidate to hand out, the rows are looked at for NaN.
    let kept = count.max(1).min(most * vocabulary);
    int(OP, most * vocabulary)?;
    let shared = SIZE_OF_SELECT_SHARED + most * SIZE_OF_BEAM_ROW;
    let room = cuda.driver.properties().shared_per_block;
    ensure(shared <= room, OP, || format!("{most} texts of a picture; there is room for {}", room / SIZE_OF_BEAM_ROW))?;
    if kept == 0 {
        return Ok(vec![Vec::new(); pictures.len()]);
    }
    let logits = cuda.rows_of(logits, DType::F32)?;
    let y = cuda.empty([pictures.len(), 2 * kept], DType::F32, Layout::Rows)?;
    // One copy to the device: the scores, then where each picture's rows begin, and their end.
    let starts = std::iter::once(0).chain(pictures.iter().scan(0, |row, texts| {
        *row += *texts as u32;
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
    let launch = Launch::blocks(pictures.len()).shared_bytes(shared);
    // SAFETY: the starts rise from 0 to the number of rows, of which there are as many logits and scores; y holds two words
    // for each of `count` candidates of each picture, which has a block; shared memory has room for the rows of any.
    unsafe { cuda.launch(&kernels::BEAM_CANDIDATES_FORWARD_F32, launch, params)? };
    let words = cuda.get_words(&y, y.len())?;
    let of_picture = |(words, texts): (&[u32], &usize)| {
        let known = texts * vocabulary;
        if known > 0 && f32::from_bits(words[0]).is_nan() {
            return Err(Error::NotANumber { stage: "log_softmax" });
        }
        let candidates = words.chunks_exact(2).take(count.min(known)).map(|pair| {
            let (score, place) = (f32::from_bits(pair[0]), pair[1] as usize);
            BeamCandidate { row: place / vocabulary, token: (place % vocabulary) as u32, score }
        });
        Ok(candidates.collect())
    };
    words.chunks_exact(2 * kept).zip(pictures).map(of_picture).collect()
}
