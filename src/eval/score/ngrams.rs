//! N-grams of captions, counted. Counts are sorted lists, so that every sum has one order.

use super::Words;

/// Longest n-gram.
pub const MAX_ORDER: usize = 4;

/// Up to four words; 0 after its last.
pub type Ngram = [u32; MAX_ORDER];

/// N-grams of one caption with their counts, sorted; those of each order follow each other.
pub struct Counts {
    /// Counts of each order.
    pub orders: [Vec<(Ngram, u32)>; MAX_ORDER],
    /// Number of words.
    pub words: usize,
}

/// Counts of a caption and its references.
pub struct Counted {
    /// Counts of the caption.
    pub caption: Counts,
    /// Counts of each reference.
    pub references: Vec<Counts>,
}

impl Counted {
    /// Counts a caption and its references.
    pub fn of(caption: &Words, references: &[Words]) -> Counted {
        let of = |words: &Words| Counts::of(&words.words);
        Counted { caption: of(caption), references: references.iter().map(of).collect() }
    }
}

impl Counts {
    /// Counts the n-grams of a list of words, each above 0.
    pub fn of(words: &[u32]) -> Counts {
        let orders = std::array::from_fn(|order| {
            let mut ngrams: Vec<Ngram> = words
                .windows(order + 1)
                .map(|window| std::array::from_fn(|at| window.get(at).copied().unwrap_or_default()))
                .collect();
            ngrams.sort_unstable();
            let mut counts: Vec<(Ngram, u32)> = Vec::with_capacity(ngrams.len());
            for ngram in ngrams {
                match counts.last_mut() {
                    Some((last, count)) if *last == ngram => *count += 1,
                    _ => counts.push((ngram, 1)),
                }
            }
            counts
        });
        Counts { orders, words: words.len() }
    }

    /// Number of n-grams of an order, repetitions included.
    pub fn total(&self, order: usize) -> usize {
        self.words.saturating_sub(order)
    }

    /// How often an n-gram of an order occurs.
    pub fn get(&self, order: usize, ngram: &Ngram) -> u32 {
        let counts = &self.orders[order];
        counts.binary_search_by(|(other, _)| other.cmp(ngram)).map_or(0, |at| counts[at].1)
    }
}

/// How many n-grams of each order a caption shares with its references: no more of one than the reference with the most has.
pub fn matches(caption: &Counts, references: &[Counts]) -> [usize; MAX_ORDER] {
    std::array::from_fn(|order| {
        let shared = |(ngram, count): &(Ngram, u32)| {
            let known = references.iter().map(|reference| reference.get(order, ngram)).max().unwrap_or_default();
            (*count).min(known) as usize
        };
        caption.orders[order].iter().map(shared).sum()
    })
}

/// The reference length closest to that of the caption; of two, the shorter.
pub fn closest_length(length: usize, references: impl Iterator<Item = usize>) -> usize {
    references.min_by_key(|&other| (length.abs_diff(other), other)).unwrap_or_default()
}
