//! Beam search by two sets of rules: today's transformers (5.x) and, for comparison with published figures, 4.33.3,
//! which the reference pins. They take the same candidates and differ in how hypotheses that meet the length limit are
//! scored and chosen. Log-probabilities are summed in f32, as both do.

use std::ops::ControlFlow;

use super::{Compat, EarlyStopping, GenerateOptions, Generated, Told};
use crate::Result;
use crate::backend::rows::top;
use crate::backend::{Backend, BeamCandidate, CacheRow};
use crate::model::decoder::Decoder;
use crate::units::{BOS, EOS};

/// What the libraries add to a score to take a candidate out of the running.
const EXCLUDED: f32 = -1.0e9;

/// A sequence that is still growing.
#[derive(Clone)]
struct Running {
    tokens: Vec<u32>,
    /// Sum of log-probabilities.
    score: f32,
    /// Its row of the previous step.
    row: Option<usize>,
}

/// A finished hypothesis; its score is divided by the length already.
struct Finished {
    tokens: Vec<u32>,
    score: f64,
}

/// The search for one picture.
struct Search<'a> {
    options: &'a GenerateOptions,
    limit: usize,
    running: Vec<Running>,
    /// Best first.
    finished: Vec<Finished>,
    done: bool,
}

/// Decodes all pictures in lockstep; see [`super::generate`].
pub(super) fn search<B: Backend>(
    backend: &B,
    decoder: &Decoder<B>,
    cache: &mut B::Cache,
    images: usize,
    options: &GenerateOptions,
    limit: usize,
    told: &mut dyn FnMut(Told<'_>) -> ControlFlow<()>,
) -> Result<Vec<Generated>> {
    let mut searches: Vec<Search<'_>> = (0..images).map(|_| Search::new(options, limit)).collect();
    for position in 0..limit - 1 {
        let (mut rows, mut ids, mut scores, mut pictures) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (image, search) in searches.iter_mut().enumerate().filter(|(_, search)| !search.done) {
            for beam in &mut search.running {
                rows.push(CacheRow { image, parent: beam.row.replace(rows.len()) });
                ids.extend(beam.tokens.last());
                scores.push(beam.score);
            }
            pictures.push(search.running.len());
        }
        if rows.is_empty() {
            break;
        }
        backend.cache_rows(cache, &rows)?;
        let logits = decoder.step(backend, cache, &ids, position)?;
        let candidates = backend.beam_candidates(&logits, &scores, &pictures, 2 * options.beams)?;
        let mut ended = false;
        let live = searches.iter_mut().enumerate().filter(|(_, search)| !search.done);
        for ((image, search), candidates) in live.zip(candidates) {
            search.step(&candidates);
            ended |= told(Told { image, length: position + 2, settled: search.settled() }).is_break();
        }
        if ended {
            break;
        }
    }
    Ok(searches.into_iter().map(Search::best).collect())
}

impl<'a> Search<'a> {
    fn new(options: &'a GenerateOptions, limit: usize) -> Self {
        // The libraries start with equal beams of which all but one are excluded; one row does the same.
        let running = vec![Running { tokens: vec![BOS], score: 0.0, row: None }];
        Search { options, limit, running, finished: Vec::new(), done: false }
    }

    /// Extends the running beams by one token; `candidates` are the best ways to, best first.
    fn step(&mut self, candidates: &[BeamCandidate]) {
        match self.options.compat {
            Compat::Current => self.step_current(candidates),
            Compat::Reference => self.step_reference(candidates),
        }
    }

    /// Tokens of a running beam, BOS included.
    fn length(&self) -> usize {
        self.running.first().map_or(0, |beam| beam.tokens.len())
    }

    fn extended(&self, candidate: &BeamCandidate) -> Vec<u32> {
        let mut tokens = self.running[candidate.row].tokens.clone();
        tokens.push(candidate.token);
        tokens
    }

    fn grow(&self, candidate: &BeamCandidate, score: f32) -> Running {
        Running { tokens: self.extended(candidate), score, row: self.running[candidate.row].row }
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
        let running: Vec<Running> = top(&open, beams).into_iter().map(|i| self.grow(&candidates[i], open[i])).collect();
        for candidate in candidates.iter().take(beams).filter(|c| ends(c)) {
            let score = candidate.score / (generated as f64).powf(penalty) as f32;
            self.offer(self.extended(candidate), f64::from(score));
        }
        self.running = running;
        let full = self.finished.len() == beams;
        let longest = match self.options.early_stopping {
            EarlyStopping::Never if penalty > 0.0 => self.limit - 1,
            _ => generated,
        };
        let best = self.running.first().map_or(EXCLUDED, |b| b.score / (longest as f64).powf(penalty) as f32);
        let worst = self.finished.last().filter(|_| full).map_or(f64::from(EXCLUDED), |f| f.score);
        let improvable = f64::from(best) > worst;
        self.done = at_limit || !improvable || (full && self.options.early_stopping == EarlyStopping::Yes);
    }

    fn step_reference(&mut self, candidates: &[BeamCandidate]) {
        let beams = self.options.beams;
        let mut running = Vec::new();
        for (rank, candidate) in candidates.iter().enumerate() {
            if candidate.token != EOS {
                running.push(self.grow(candidate, candidate.score));
            } else if rank < beams {
                // Scored without the EOS token, but with its log-probability.
                let tokens = self.running[candidate.row].tokens.clone();
                self.offer_reference(tokens, candidate.score);
            }
            if running.len() == beams {
                break;
            }
        }
        self.running = running;
        self.done = self.finished.len() == beams;
        if !self.done && self.length() >= self.limit {
            for beam in std::mem::take(&mut self.running) {
                self.offer_reference(beam.tokens, beam.score);
            }
            self.done = true;
        }
    }

    /// Of equal scores the later one is better.
    fn offer_reference(&mut self, tokens: Vec<u32>, score: f32) {
        let score = f64::from(score) / (tokens.len() as f64).powf(f64::from(self.options.length_penalty));
        if self.finished.len() == self.options.beams && self.finished.last().is_some_and(|worst| score <= worst.score) {
            return;
        }
        let place = self.finished.partition_point(|other| other.score > score);
        self.finished.insert(place, Finished { tokens, score });
        self.finished.truncate(self.options.beams);
    }

    /// What the result will begin with. It will be the best finished hypothesis, which a worse one never becomes, or grow
    /// out of a running beam.
    fn settled(&self) -> &[u32] {
        let running = if self.done { &[][..] } else { &self.running };
        let finished = self.finished.first().map(|finished| &finished.tokens);
        let mut all = finished.into_iter().chain(running.iter().map(|beam| &beam.tokens));
        let Some(first) = all.next() else { return &[] };
        all.fold(&first[..], |common, other| {
            let same = common.iter().zip(other).take_while(|(a, b)| a == b).count();
            &common[..same]
        })
    }

    fn best(self) -> Generated {
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
