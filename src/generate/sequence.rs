//! The growing token sequences of one image: a single one, or the beams of a search.

use super::beam::BeamSearch;
use super::{GenerateOptions, Generated, Sampling};
use crate::units::{BOS, EOS};

/// Tokens that may be continued.
#[derive(Clone)]
pub(super) struct Hypothesis {
    /// Its tokens, BOS first.
    pub tokens: Vec<u32>,
    /// Sum of log-probabilities; for beams.
    pub score: f32,
    /// Its row of the previous step.
    pub row: Option<usize>,
}

impl Hypothesis {
    pub fn start() -> Hypothesis {
        Hypothesis { tokens: vec![BOS], score: 0.0, row: None }
    }
}

/// How the next token is chosen, with the state of the search.
pub(super) enum Choice {
    /// The likeliest token.
    Greedy(Hypothesis),
    /// A token drawn at random, and the state of the random numbers.
    Sampled(Hypothesis, Sampling, u64),
    /// The best hypotheses of a beam search.
    Beams(BeamSearch),
}

/// Decoding of one image.
pub(super) struct Sequence {
    pub choice: Choice,
    /// Tokens at which it ends.
    limit: usize,
}

impl Sequence {
    /// BOS; `options` were checked, and `limit` is theirs for this decoder.
    pub fn new(options: &GenerateOptions, limit: usize) -> Sequence {
        let single = || {
            let mut hypothesis = Hypothesis::start();
            // A step need not allocate.
            hypothesis.tokens.reserve(limit);
            hypothesis
        };
        let choice = match options.sampling {
            _ if options.beams > 1 => Choice::Beams(BeamSearch::new(options, limit)),
            Some(sampling) => Choice::Sampled(single(), sampling, sampling.seed),
            None => Choice::Greedy(single()),
        };
        Sequence { choice, limit }
    }

    /// The hypotheses that are continued, a row of the step each.
    pub fn live(&mut self) -> &mut [Hypothesis] {
        match &mut self.choice {
            Choice::Greedy(hypothesis) | Choice::Sampled(hypothesis, ..) => std::slice::from_mut(hypothesis),
            Choice::Beams(search) => &mut search.live,
        }
    }

    /// Tokens that the result begins with, whatever follows.
    pub fn stable_prefix(&self) -> &[u32] {
        match &self.choice {
            Choice::Greedy(hypothesis) | Choice::Sampled(hypothesis, ..) => &hypothesis.tokens,
            Choice::Beams(search) => search.stable_prefix(),
        }
    }

    /// Tokens of the longest hypothesis.
    pub fn len(&self) -> usize {
        match &self.choice {
            Choice::Greedy(hypothesis) | Choice::Sampled(hypothesis, ..) => hypothesis.tokens.len(),
            Choice::Beams(search) => {
                search.live.first().map_or(0, |beam| beam.tokens.len()).max(search.stable_prefix().len())
            }
        }
    }

    pub fn is_done(&self) -> bool {
        match &self.choice {
            Choice::Greedy(hypothesis) | Choice::Sampled(hypothesis, ..) => {
                hypothesis.tokens.last() == Some(&EOS) || hypothesis.tokens.len() >= self.limit
            }
            Choice::Beams(search) => search.done,
        }
    }

    /// The result as far as it is known.
    pub fn best(self) -> Generated {
        match self.choice {
            Choice::Greedy(hypothesis) | Choice::Sampled(hypothesis, ..) => {
                Generated { tokens: hypothesis.tokens, score: None }
            }
            Choice::Beams(search) => search.best(),
        }
    }
}
