//! BLEU of a corpus (Papineni et al., 2002) as pycocoevalcap computes it: no smoothing but two tiny numbers against division
//! by zero, and the reference length closest to that of each caption.

use super::ngrams::{Counted, MAX_ORDER, closest_length, matches};

/// Against counts of zero.
const TINY: f64 = 1e-15;
/// Against division by zero.
const SMALL: f64 = 1e-9;

/// BLEU of a corpus and of its images.
pub(super) struct Bleu {
    /// Scores of n-grams up to 1, 2, 3 and 4.
    pub corpus: [f64; MAX_ORDER],
    /// Scores of n-grams up to 4, for each image.
    pub images: Vec<f64>,
}

/// The counts that BLEU is computed from.
#[derive(Clone, Copy, Default)]
struct Statistics {
    correct: [usize; MAX_ORDER],
    guesses: [usize; MAX_ORDER],
    length: usize,
    reference_length: usize,
}

impl Statistics {
    fn of(pair: &Counted) -> Statistics {
        let length = pair.caption.words;
        Statistics {
            correct: matches(&pair.caption, &pair.references),
            guesses: std::array::from_fn(|order| pair.caption.total(order)),
            length,
            reference_length: closest_length(length, pair.references.iter().map(|reference| reference.words)),
        }
    }

    fn add(&mut self, other: &Statistics) {
        for order in 0..MAX_ORDER {
            self.correct[order] += other.correct[order];
            self.guesses[order] += other.guesses[order];
        }
        self.length += other.length;
        self.reference_length += other.reference_length;
    }

    fn bleu(&self) -> [f64; MAX_ORDER] {
        let ratio = (self.length as f64 + TINY) / (self.reference_length as f64 + SMALL);
        let penalty = if ratio < 1.0 { (1.0 - 1.0 / ratio).exp() } else { 1.0 };
        let mut product = 1.0;
        std::array::from_fn(|order| {
            product *= (self.correct[order] as f64 + TINY) / (self.guesses[order] as f64 + SMALL);
            product.powf(1.0 / (order + 1) as f64) * penalty
        })
    }
}

/// Scores a set of captions.
pub(super) fn score(pairs: &[Counted]) -> Bleu {
    let mut corpus = Statistics::default();
    let images = pairs.iter().map(|pair| {
        let image = Statistics::of(pair);
        corpus.add(&image);
        image.bleu()[MAX_ORDER - 1]
    });
    let images = images.collect();
    Bleu { corpus: corpus.bleu(), images }
}
