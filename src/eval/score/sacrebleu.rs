//! Corpus BLEU as sacrebleu computes it by default (Post, 2018): its tokeniser 13a, exponential smoothing, four orders. Captions
//! and references are turned to lower case first, and every image has as many references as the one with the fewest.

use std::collections::HashMap;

use rayon::prelude::*;

use super::ngrams::{Counts, MAX_ORDER, closest_length, matches};
use super::{Pair, is_python_space};

/// Logarithm of zero there.
const LOG_OF_ZERO: f64 = -9_999_999_999.0;

/// Scores a set of captions, in percent.
pub(super) fn score(pairs: &[Pair]) -> f64 {
    let streams = pairs.iter().map(|pair| pair.references.len()).min().unwrap_or_default();
    let statistics = |pair: &Pair| {
        let mut numbers = HashMap::new();
        let mut counts = |text: &str| {
            let tokens = tokenize(text);
            let words = tokens.split_ascii_whitespace().map(|word| {
                let next = numbers.len() as u32 + 1;
                *numbers.entry(word.to_owned()).or_insert(next)
            });
            Counts::of(&words.collect::<Vec<_>>())
        };
        let caption = counts(&pair.caption);
        let references: Vec<Counts> = pair.references[..streams].iter().map(|text| counts(text)).collect();
        let closest = closest_length(caption.words, references.iter().map(|reference| reference.words));
        let totals: [usize; MAX_ORDER] = std::array::from_fn(|order| caption.total(order));
        ([caption.words, closest], matches(&caption, &references), totals)
    };
    let all: Vec<_> = pairs.par_iter().map(statistics).collect();
    let (mut lengths, mut correct, mut totals) = ([0; 2], [0; MAX_ORDER], [0; MAX_ORDER]);
    for (of_lengths, of_correct, of_totals) in all {
        (0..2).for_each(|at| lengths[at] += of_lengths[at]);
        (0..MAX_ORDER).for_each(|order| correct[order] += of_correct[order]);
        (0..MAX_ORDER).for_each(|order| totals[order] += of_totals[order]);
    }
    from_statistics(lengths, correct, totals)
}

/// The score of sums: lengths of captions and references, n-grams that match, n-grams in all.
fn from_statistics([length, reference]: [usize; 2], correct: [usize; MAX_ORDER], totals: [usize; MAX_ORDER]) -> f64 {
    if correct.iter().all(|&count| count == 0) {
        return 0.0;
    }
    let penalty = if length < reference { (1.0 - reference as f64 / length as f64).exp() } else { 1.0 };
    let mut logarithms = [LOG_OF_ZERO; MAX_ORDER];
    let mut smoothing = 1.0;
    for order in 0..MAX_ORDER {
        if totals[order] == 0 {
            break;
        }
        let precision = if correct[order] == 0 {
            smoothing *= 2.0;
            100.0 / (smoothing * totals[order] as f64)
        } else {
            100.0 * correct[order] as f64 / totals[order] as f64
        };
        logarithms[order] = precision.ln();
    }
    penalty * (logarithms.iter().sum::<f64>() / MAX_ORDER as f64).exp()
}

/// Tokens of a text in lower case, with single spaces between them: mteval's rules (13a).
pub fn tokenize(text: &str) -> String {
    let text = text.to_lowercase();
    let text = text.trim_end_matches(is_python_space);
    let text = text.replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
    let text = text.replace("&quot;", "\"").replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">");
    let mut spaced = String::with_capacity(2 * text.len());
    spaced.push(' ');
    for c in text.chars() {
        match c {
            '{'..='~' | '['..='`' | ' '..='&' | '('..='+' | ':'..='@' | '/' => spaced.extend([' ', c, ' ']),
            _ => spaced.push(c),
        }
    }
    spaced.push(' ');
    let is_point = |c: char| c == '.' || c == ',';
    // Each rule takes pairs of characters that do not overlap, from the left.
    let spaced = pairs(&spaced, |a, b| !a.is_ascii_digit() && is_point(b), |a, b| [a, ' ', b, ' ']);
    let spaced = pairs(&spaced, |a, b| is_point(a) && !b.is_ascii_digit(), |a, b| [' ', a, ' ', b]);
    let spaced = pairs(&spaced, |a, b| a.is_ascii_digit() && b == '-', |a, b| [a, ' ', b, ' ']);
    spaced.split(is_python_space).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// `text` with pairs of neighbours that `fits` accepts replaced.
fn pairs(text: &str, fits: impl Fn(char, char) -> bool, replaced: impl Fn(char, char) -> [char; 4]) -> String {
    let mut output = String::with_capacity(2 * text.len());
    let mut rest = text.chars().peekable();
    while let Some(a) = rest.next() {
        match rest.next_if(|&b| fits(a, b)) {
            Some(b) => output.extend(replaced(a, b)),
            None => output.push(a),
        }
    }
    output
}
