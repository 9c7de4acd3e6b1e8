//! From image tokens to unit tokens: greedy, beam search and sampling over a KV cache. Every image is decoded as if it
//! were alone: its tokens do not depend on its neighbours in a batch, nor on their options. Sequences that have ended leave
//! the batch immediately, and others may take their slots ([`Slots`]).

mod beam;
pub mod greedy;
mod sample;
mod sequence;
mod slots;

use std::ops::ControlFlow;

use crate::backend::{Backend, SmBudget};
use crate::model::decoder::Decoder;
use crate::{Error, Result};

pub use crate::backend::rows::log_softmax;
pub use slots::{Finished, Slots};

/// When a beam search may stop looking for better hypotheses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EarlyStopping {
    /// As soon as there are as many finished hypotheses as beams.
    #[default]
    Yes,
    /// When the best running beam, at its current length, scores below the worst finished hypothesis.
    Heuristic,
    /// When no continuation up to the length limit could score better.
    Never,
}

/// Rules of one library, where libraries differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compat {
    /// Today's transformers (5.x), and unit sequences cut at the first EOS.
    #[default]
    Current,
    /// The reference implementation: transformers 4.33.3's beam search and the reference's truncation of sequences.
    Reference,
}

/// Draw each token at random instead of taking the likeliest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by this first; above 0.
    pub temperature: f32,
    /// Only this many likeliest tokens stay; 0 keeps all.
    pub top_k: usize,
    /// Only the likeliest tokens that together reach this probability stay; 1 keeps all.
    pub top_p: f32,
    /// Seed of every image's own random numbers.
    pub seed: u64,
}

/// How tokens are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GenerateOptions {
    /// Beams; 1 is greedy.
    pub beams: usize,
    /// Scores of finished beams are divided by their length to this power.
    pub length_penalty: f32,
    /// When a beam search may stop.
    pub early_stopping: EarlyStopping,
    /// Most tokens of a sequence, BOS and EOS included.
    pub max_length: usize,
    /// Sampling instead of the likeliest token; for one beam.
    pub sampling: Option<Sampling>,
    /// Library whose rules are followed.
    pub compat: Compat,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        GenerateOptions {
            beams: 1,
            length_penalty: 1.0,
            early_stopping: EarlyStopping::Yes,
            max_length: 512,
            sampling: None,
            compat: Compat::Current,
        }
    }
}

/// One decoded image.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// Token ids, BOS first, EOS last unless the length limit came before it.
    pub tokens: Vec<u32>,
    /// Sum of log-probabilities over the length to the power of the length penalty; beam search only.
    pub score: Option<f32>,
}

impl GenerateOptions {
    /// Refuses combinations that make no sense for a decoder of this `vocabulary`.
    pub fn check(&self, vocabulary: usize) -> Result<()> {
        let wrong = |option, problem: String| Err(Error::Option { option, problem });
        if self.beams == 0 || 2 * self.beams > vocabulary {
            return wrong("beam", format!("{} beams; expected 1 to {}", self.beams, vocabulary / 2));
        }
        if self.max_length < 2 {
            return wrong("max-units", "at least one unit is needed".into());
        }
        if !self.length_penalty.is_finite() {
            return wrong("length-penalty", "must be a number".into());
        }
        if self.compat == Compat::Reference && self.early_stopping != EarlyStopping::Yes {
            return wrong("compat", "the reference always stops early".into());
        }
        let Some(sampling) = self.sampling else { return Ok(()) };
        if self.beams > 1 {
            return wrong("beam", "sampling works with one beam".into());
        }
        if !(sampling.temperature.is_finite() && sampling.temperature > 0.0) {
            return wrong("temperature", format!("{} is not above 0", sampling.temperature));
        }
        if !(sampling.top_p > 0.0 && sampling.top_p <= 1.0) {
            return wrong("top-p", format!("{} is not in (0, 1]", sampling.top_p));
        }
        Ok(())
    }

    /// Unit tokens that can occur: the limit, or the decoder's positions if they are fewer.
    pub fn limit<B: Backend>(&self, decoder: &Decoder<B>) -> usize {
        self.max_length.min(decoder.config().max_positions)
    }
}

/// State of an image's tokens after a step.
#[derive(Clone, Copy, Debug)]
pub struct TokenEvent<'a> {
    /// The image: its slot in the batch.
    pub image: usize,
    /// Tokens of its longest hypothesis so far.
    pub length: usize,
    /// Tokens that its result begins with, BOS first: all of a single sequence, or the part that all beams that may still
    /// become the result have in common. It never shrinks.
    pub stable_prefix: &'a [u32],
}

/// Callback after each step of an image; `Break` ends that image's sequence as it is.
pub type OnToken<'a> = &'a mut dyn FnMut(TokenEvent<'_>) -> ControlFlow<()>;

/// Decodes the `images` images whose prefixes `cache` holds, from the first to the last token. `budget` changes no token.
///
/// # Errors
/// If an option does not fit the decoder, the device fails, or the logits are no numbers.
pub fn generate<B: Backend>(
    backend: &B,
    decoder: &Decoder<B>,
    cache: B::KvCache,
    images: usize,
    options: &GenerateOptions,
    budget: SmBudget,
    on_token: OnToken<'_>,
) -> Result<Vec<Generated>> {
    options.check(decoder.config().vocabulary)?;
    if let Some(generated) = greedy::decode(backend, decoder, &cache, images, options, budget, on_token) {
        return generated;
    }
    let mut slots = Slots::new(decoder, cache, images);
    (0..images).for_each(|image| slots.begin(image, options));
    let mut results: Vec<Option<Generated>> = vec![None; images];
    while slots.live() > 0 {
        for (image, generated) in slots.step(backend, on_token)? {
            results[image] = Some(generated?);
        }
    }
    Ok(results.into_iter().flatten().collect())
}
