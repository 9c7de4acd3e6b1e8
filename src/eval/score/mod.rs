//! Scores of captions against those that people wrote: BLEU, ROUGE-L and CIDEr as pycocoevalcap computes them, corpus BLEU as
//! sacrebleu does, and the unit error rate. METEOR and SPICE need tables and parsers that only their authors' programs have:
//! [`external`] calls those.

pub mod bleu;
pub mod cider;
pub mod external;
mod ngrams;
pub mod predictions;
pub mod references;
pub mod rouge;
pub mod sacrebleu;
pub mod tokenize;
pub mod unit_error_rate;

use std::collections::HashMap;

use rayon::prelude::*;
use serde::Serialize;

use crate::{Error, Result};
use tokenize::Tokenizer;

/// A caption to be scored, with those it is compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Name of the image.
    pub image: String,
    /// The caption.
    pub caption: String,
    /// Captions that people wrote; at least one.
    pub references: Vec<String>,
}

/// A pair with the tokens of its captions, separated by spaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenPair {
    /// The tokens of the caption.
    pub caption: String,
    /// The tokens of each reference.
    pub references: Vec<String>,
}

/// Scores of a whole set, as fractions; CIDEr may exceed 1 and sacreBLEU is in percent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Scores {
    /// BLEU of n-grams up to 1, 2, 3 and 4.
    #[serde(rename = "Bleu")]
    pub bleu: [f64; 4],
    /// ROUGE-L.
    #[serde(rename = "ROUGE_L")]
    pub rouge_l: f64,
    /// CIDEr-D.
    #[serde(rename = "CIDEr")]
    pub cider: f64,
    /// sacreBLEU's corpus BLEU, in percent, of texts in lower case.
    #[serde(rename = "sacreBLEU")]
    pub sacrebleu: f64,
}

/// Scores of one image within its set.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ImageScores {
    /// BLEU of n-grams up to 4.
    #[serde(rename = "Bleu_4")]
    pub bleu4: f64,
    /// ROUGE-L.
    #[serde(rename = "ROUGE_L")]
    pub rouge_l: f64,
    /// CIDEr-D; depends on the other images of the set.
    #[serde(rename = "CIDEr")]
    pub cider: f64,
}

/// Scores of a set of captions, and of each.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// Scores of the set.
    pub scores: Scores,
    /// Scores of each pair, in their order.
    pub images: Vec<ImageScores>,
    /// Tokens of each pair, for [`external`].
    pub tokens: Vec<TokenPair>,
}

/// Words as numbers: those that white space separates, and those that single spaces separate. They differ where a token holds
/// a no-break space or there is none.
pub(crate) struct Words {
    /// As Python's `split()` finds them.
    words: Vec<u32>,
    /// As `split(" ")` finds them; never empty.
    pieces: Vec<u32>,
}

/// Scores a set of captions.
///
/// # Errors
/// If there are none, or an image has no reference.
pub fn score(pairs: &[Pair]) -> Result<Scored> {
    if let Some(pair) = pairs.iter().find(|pair| pair.references.is_empty()) {
        let problem = format!("the image {} has no caption to compare with", pair.image);
        return Err(Error::Option { option: "ref", problem });
    }
    if pairs.is_empty() {
        return Err(Error::Option { option: "pred", problem: "holds no caption to score".into() });
    }
    let tokenizer = Tokenizer::new()?;
    let tokens: Vec<TokenPair> = pairs
        .par_iter()
        .map_init(
            || tokenizer.cache(),
            |cache, pair| TokenPair {
                caption: tokenizer.tokenize(&pair.caption, cache),
                references: pair.references.iter().map(|text| tokenizer.tokenize(text, cache)).collect(),
            },
        )
        .collect();
    let mut vocabulary = Vocabulary::default();
    let words: Vec<(Words, Vec<Words>)> = tokens
        .iter()
        .map(|pair| {
            let references = pair.references.iter().map(|text| vocabulary.words(text)).collect();
            (vocabulary.words(&pair.caption), references)
        })
        .collect();
    let counted: Vec<ngrams::Counted> =
        words.par_iter().map(|(caption, references)| ngrams::Counted::of(caption, references)).collect();
    let bleu = bleu::score(&counted);
    let rouge_l: Vec<f64> = words.par_iter().map(|(caption, references)| rouge::score(caption, references)).collect();
    let cider = cider::score(&counted);
    let scores =
        Scores { bleu: bleu.corpus, rouge_l: mean(&rouge_l), cider: mean(&cider), sacrebleu: sacrebleu::score(pairs) };
    let image = |((bleu4, rouge_l), cider)| ImageScores { bleu4, rouge_l, cider };
    let images = bleu.images.into_iter().zip(rouge_l).zip(cider).map(image).collect();
    Ok(Scored { scores, images, tokens })
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Numbers of words.
#[derive(Default)]
struct Vocabulary(HashMap<String, u32>);

impl Vocabulary {
    fn words(&mut self, text: &str) -> Words {
        let words = text.split(is_python_space).filter(|word| !word.is_empty()).map(|word| self.number(word)).collect();
        Words { words, pieces: text.split(' ').map(|word| self.number(word)).collect() }
    }

    /// Numbers from 1; 0 stands for no word.
    fn number(&mut self, word: &str) -> u32 {
        if let Some(&number) = self.0.get(word) {
            return number;
        }
        let number = self.0.len() as u32 + 1;
        self.0.insert(word.to_owned(), number);
        number
    }
}

/// White space as Python has it: four separators of ASCII more than Unicode's property.
pub(crate) fn is_python_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1C}'..='\u{1F}')
}
