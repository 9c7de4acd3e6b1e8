//! Beam search by two sets of rules: today's transformers (5.x) and, for comparison with published figures, 4.33.3,
//! which the reference pins. They take the same candidates and differ in how hypotheses that meet the length limit are
//! scored and chosen. Log-probabilities are summed in f32, as both do.

use super::sequence::Hypothesis;
use super::{Compat, EarlyStopping, GenerateOptions, Generated};
use crate::backend::BeamCandidate;
use crate::backend::rows::top;
use crate::units::{BOS, EOS};

/// Added to a score, as the libraries do, to exclude a candidate.
const EXCLUDED: f32 = -1.0e9;

/// A finished hypothesis; its score is divided by the length already.
struct Finished {
    tokens: Vec<u32>,
    score: f64,
}

/// The search for one image.
pub(super) struct BeamSearch {
    options: GenerateOptions,
    limit: usize,
    /// Hypotheses that still grow, best first.
    pub live: Vec<Hypothesis>,
    /// Best first.
    finished: Vec<Finished>,
    /// Nothing better will be found.
    pub done: bool,
}

impl BeamSearch {
    pub fn new(options: &GenerateOptions, limit: usize) -> Self {
        // The libraries start with equal beams of which all but one are excluded; one row does the same.
        BeamSearch { options: *options, limit, live: vec![Hypothesis::start()], finished: Vec::new(), done: false }
    }

    /// Its number of beams.
    pub fn beams(&self) -> usize {
        self.options.beams
    }

    /// Extends the live hypotheses by one token; `candidates` are the best ways to, best first.
    pub fn step(&mut self, candidates: &[BeamCandidate]) {
        match self.options.compat {
            Compat::Current => self.step_current(candidates),
            Compat::Reference => self.step_reference(candidates),
        }
    }

    /// Tokens of a live hypothesis, BOS included.
    fn length(&self) -> usize {
        self.live.first().map_or(0, |beam| beam.tokens.len())
    }

    fn extended(&self, candidate: &BeamCandidate) -> Vec<u32> {
        let mut tokens = self.live[candidate.row].tokens.clone();
        tokens.push(candidate.token);
        tokens
    }

    fn grow(&self, candidate: &BeamCandidate, score: f32) -> Hypothesis {
        Hypothesis { tokens: self.extended(candidate), score, row: self.live[candidate.row].row }
    }

    /// Keeps the best hypotheses, earlier ones first on ties.
    fn offer(&mut self, tokens: Vec<u32>, score: f64) {
        let place = self.finished.partition_point(|other| other.score >= score);
        self.finished.insert(place, Finished { tokens, score });
        self.finished.truncate(self.options.beams);
    }

    fn step_current(&mut self, candidates: &[BeamCandidate]) {
        let beams = self.options.beams;
        let penalty = f64::from(self.options.length_penalty);
        let generated = self.length();
        let at_limit = generated + 1 >= self.limit;
        let ends = |candidate: &BeamCandidate| at_limit || candidate.token == EOS;
        let open: Vec<f32> = candidates.iter().map(|c| if ends(c) { c.score + EXCLUDED } else { c.score }).collect();
        let live: Vec<Hypothesis> = top(&open, beams).into_iter().map(|i| self.grow(&candidates[i], open[i])).collect();
        for candidate in candidates.iter().take(beams).filter(|c| ends(c)) {
            let score = candidate.score / (generated as f64).powf(penalty) as f32;
            self.offer(self.extended(candidate), f64::from(score));
        }
        self.live = live;
        let full = self.finished.len() == beams;
        let longest = match self.options.early_stopping {
            EarlyStopping::Never if penalty > 0.0 => self.limit - 1,
            _ => generated,
        };
        let best = self.live.first().map_or(EXCLUDED, |b| b.score / (longest as f64).powf(penalty) as f32);
        let worst = self.finished.last().filter(|_| full).map_or(f64::from(EXCLUDED), |f| f.score);
        let improvable = f64::from(best) > worst;
        self.done = at_limit || !improvable || (full && self.options.early_stopping == EarlyStopping::Yes);
    }

    fn step_reference(&mut self, candidates: &[BeamCandidate]) {
        let beams = self.options.beams;
        let mut live = Vec::new();
        for (rank, candidate) in candidates.iter().enumerate() {
            if candidate.token != EOS {
                live.push(self.grow(candidate, candidate.score));
            } else if rank < beams {
                // Scored without the EOS token, but with its log-probability.
                let tokens = self.live[candidate.row].tokens.clone();
                self.offer_reference(tokens, candidate.score);
            }
            if live.len() == beams {
                break;
            }
        }
        self.live = live;
        self.done = self.finished.len() == beams;
        if !self.done && self.length() >= self.limit {
            for beam in std::mem::take(&mut self.live) {
                self.offer_reference(beam.tokens, beam.score);
            }
            self.done = true;
        }
    }

    /// Keeps a finished hypothesis by the reference's rule: the later of equal scores is better.
    fn offer_reference(&mut self, tokens: Vec<u32>, score: f32) {
        let score = f64::from(score) / (tokens.len() as f64).powf(f64::from(self.options.length_penalty));
        if self.finished.len() == self.options.beams && self.finished.last().is_some_and(|worst| score <= worst.score) {
            return;
        }
        let place = self.finished.partition_point(|other| other.score > score);
        self.finished.insert(place, Finished { tokens, score });
        self.finished.truncate(self.options.beams);
    }

    /// Tokens that the result begins with. It will be the best finished hypothesis, which a worse one never becomes, or
    /// grow out of a live one.
    pub fn stable_prefix(&self) -> &[u32] {
        let live = if self.done { &[][..] } else { &self.live };
        let finished = self.finished.first().map(|finished| &finished.tokens);
        let mut all = finished.into_iter().chain(live.iter().map(|beam| &beam.tokens));
        let Some(first) = all.next() else { return &[] };
        all.fold(&first[..], |common, other| {
            let same = common.iter().zip(other).take_while(|(a, b)| a == b).count();
            &common[..same]
        })
    }

    pub fn best(self) -> Generated {
        let Some(best) = self.finished.into_iter().next() else {
            // Only without a single step: nothing was generated.
            return Generated { tokens: vec![BOS], score: None };
        };
        let mut tokens = best.tokens;
        if self.options.compat == Compat::Reference && tokens.len() < self.limit {
            tokens.push(EOS);
        }
        Generated { tokens, score: Some(best.score as f32) }
    }
}
