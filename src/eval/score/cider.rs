//! CIDEr-D (Vedantam, Zitnick and Parikh, 2015) as pycocoevalcap computes it. Words are weighted by how few images of the set
//! have them in a reference, so the score of one image depends on all others.

use std::collections::HashMap;

use rayon::prelude::*;

use super::ngrams::{Counted, Counts, MAX_ORDER, Ngram};

/// Width of the penalty for another length, in words.
const SIGMA: f64 = 6.0;
/// Factor of the score.
const SCALE: f64 = 10.0;

/// Weights of the n-grams of one caption.
struct Weighted {
    orders: [Vec<(Ngram, f64)>; MAX_ORDER],
    norms: [f64; MAX_ORDER],
    /// Number of bigrams.
    length: f64,
}

/// Scores of all images.
pub(super) fn score(pairs: &[Counted]) -> Vec<f64> {
    let mut frequencies: HashMap<Ngram, u32> = HashMap::new();
    for pair in pairs {
        let all = pair.references.iter().flat_map(|reference| reference.orders.iter().flatten());
        let mut ngrams: Vec<Ngram> = all.map(|(ngram, _)| *ngram).collect();
        ngrams.sort_unstable();
        ngrams.dedup();
        for ngram in ngrams {
            *frequencies.entry(ngram).or_default() += 1;
        }
    }
    let images = (pairs.len() as f64).ln();
    let weighted = |counts: &Counts| {
        let weight = |(ngram, count): &(Ngram, u32)| {
            let frequency = frequencies.get(ngram).copied().unwrap_or(1);
            (*ngram, f64::from(*count) * (images - f64::from(frequency).ln()))
        };
        let orders: [Vec<(Ngram, f64)>; MAX_ORDER] =
            std::array::from_fn(|order| counts.orders[order].iter().map(weight).collect());
        let norms = std::array::from_fn(|order| orders[order].iter().map(|(_, w)| w * w).sum::<f64>().sqrt());
        Weighted { orders, norms, length: counts.total(1) as f64 }
    };
    let image = |pair: &Counted| {
        let caption = weighted(&pair.caption);
        let sum: f64 = pair.references.iter().map(|reference| similarity(&caption, &weighted(reference))).sum();
        SCALE * sum / pair.references.len() as f64
    };
    pairs.par_iter().map(image).collect()
}

/// Mean over the orders of the clipped cosines, less for another length.
fn similarity(caption: &Weighted, reference: &Weighted) -> f64 {
    let penalty = (-(caption.length - reference.length).powi(2) / (2.0 * SIGMA * SIGMA)).exp();
    let cosine = |order: usize| {
        let known = &reference.orders[order];
        let product = |(ngram, weight): &(Ngram, f64)| {
            let found = known.binary_search_by(|(other, _)| other.cmp(ngram));
            found.map_or(0.0, |at| weight.min(known[at].1) * known[at].1)
        };
        let sum: f64 = caption.orders[order].iter().map(product).sum();
        let norms = caption.norms[order] * reference.norms[order];
        if norms == 0.0 { sum } else { sum / norms }
    };
    penalty * (0..MAX_ORDER).map(cosine).sum::<f64>() / MAX_ORDER as f64
}
