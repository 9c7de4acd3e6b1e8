//! From image tokens to unit tokens: greedy, beam search and sampling over a key-value cache. Every picture is decoded as
//! if it were alone: a picture's tokens do not depend on its neighbours in a batch. Texts that have ended leave the batch
//! at once, and others may take their places ([`Batch`]).

mod batch;
mod beam;
mod sample;

use std::ops::ControlFlow;

use crate::backend::{Backend, Occupancy};
use crate::model::decoder::Decoder;
use crate::{Error, Result};

pub use crate::backend::rows::log_softmax;
pub use batch::{Batch, Ended};

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

/// Whose rules decide where several are in use.
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
    /// Seed of every picture's own random numbers.
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
    /// Whose rules.
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

/// One decoded picture.
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

    /// Text tokens that can occur: the limit, or the decoder's positions if they are fewer.
    pub fn limit<B: Backend>(&self, decoder: &Decoder<B>) -> usize {
        self.max_length.min(decoder.config().max_positions)
    }
}

/// What is known of a picture's tokens after a step.
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    /// Which picture: its place in the batch.
    pub image: usize,
    /// Tokens of its longest sequence so far.
    pub length: usize,
    /// What its result will begin with, BOS first: all of a single sequence, or what all beams that may still become the
    /// result have in common. It never shrinks.
    pub settled: &'a [u32],
}

/// Decodes `images` pictures whose prefixes `cache` holds, from the first to the last token. `told` hears of every picture
/// after each of its steps, and may end the whole, whose result is then as far as it came. `occupancy` changes no token.
pub fn generate<B: Backend>(
    backend: &B,
    decoder: &Decoder<B>,
    cache: B::KvCache,
    images: usize,
    options: &GenerateOptions,
    occupancy: Occupancy,
    told: &mut dyn FnMut(Told<'_>) -> ControlFlow<()>,
) -> Result<Vec<Generated>> {
    options.check(decoder.config().vocabulary)?;
    if options.beams == 1 && options.sampling.is_none() {
        let mut heard = |image: usize, tokens: &[u32]| told(Told { image, length: tokens.len(), settled: tokens });
        if let Some(done) =
            backend.decode_greedy(&decoder.greedy(occupancy), &cache, options.limit(decoder), &mut heard)
        {
            return Ok(done?.into_iter().map(|tokens| Generated { tokens, score: None }).collect());
        }
    }
    let mut batch = Batch::new(decoder, cache, images, options);
    (0..images).for_each(|image| batch.begin(image));
    let mut done = Vec::new();
    while batch.live() > 0 {
        let (ended, flow) = batch.step(backend, told)?;
        done.extend(ended);
        if flow.is_break() {
            break;
        }
    }
    done.extend(batch.stop());
    done.sort_by_key(|(image, _)| *image);
    Ok(done.into_iter().map(|(_, generated)| generated).collect())
}
