//! beam_candidates: one step of a beam search, from logits to the best continuations of each image's hypotheses.

use super::{Device, ensure};
use crate::Result;
use crate::cost::Cost;

/// One way to extend one hypothesis of an image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BeamCandidate {
    /// Index of the extended row, counted from the image's first.
    pub row: usize,
    /// The token that follows.
    pub token: u32,
    /// Sum of log-probabilities, this token's included.
    pub score: f32,
}

/// A step of a beam search.
pub trait BeamCandidates: Device {
    /// Logits (R, V) of live hypotheses, the sum of log-probabilities of each so far, and how many rows in turn belong to
    /// each image, to the `count` best hypotheses of each image that are longer by one token, or all if there are fewer:
    /// best first, the lower row and then the lower token first on ties; NaN is an error.
    fn beam_candidates(
        &self,
        logits: &Self::Tensor,
        scores: &[f32],
        images: &[usize],
        count: usize,
    ) -> Result<Vec<Vec<BeamCandidate>>>;
}

/// An error unless every row has a score and an image.
pub(crate) fn check<D: Device>(device: &D, logits: &D::Tensor, scores: &[f32], images: &[usize]) -> Result<()> {
    let [rows, vocabulary] = device.shape(logits);
    let fits = vocabulary > 0 && scores.len() == rows && images.iter().sum::<usize>() == rows;
    ensure(fits, "beam_candidates", || {
        format!("logits ({rows}, {vocabulary}), {} scores, images of {images:?} rows", scores.len())
    })
}

/// Cost over logits (rows, vocabulary) in f32: a difference, an exponential and two sums for each.
pub fn cost(rows: usize, vocabulary: usize) -> Cost {
    Cost { flops: (4 * rows * vocabulary) as f64, bytes: (4 * rows * vocabulary) as f64 }
}
