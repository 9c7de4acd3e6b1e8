//! Pictures that are decoded together, one token of each text a step. They may come and go between steps: the place of one
//! that is done can be taken by another at once, whatever the lengths of their texts.

use std::ops::ControlFlow;

use super::beam::Search;
use super::{GenerateOptions, Generated, Told, sample};
use crate::Result;
use crate::backend::{Backend, CacheRow};
use crate::model::decoder::Decoder;
use crate::units::{BOS, EOS};

/// A sequence that is still growing.
#[derive(Clone)]
pub(super) struct Running {
    /// Its tokens, BOS first.
    pub tokens: Vec<u32>,
    /// Sum of log-probabilities; for beams.
    pub score: f32,
    /// Its row of the previous step.
    pub row: Option<usize>,
}

/// What is decoded for one picture.
enum Text<'a> {
    /// One sequence, and the state of its random numbers.
    Single(Running, u64),
    Beams(Search<'a>),
}

/// A place that is free again, and what was said there.
pub type Ended = (usize, Generated);

/// A cache in use: each of its pictures has a place, in which a text grows or not.
pub struct Batch<'a, B: Backend> {
    decoder: &'a Decoder<B>,
    cache: B::KvCache,
    options: &'a GenerateOptions,
    limit: usize,
    places: Vec<Option<Text<'a>>>,
    /// Live rows of the last step.
    rows: usize,
    /// What a step works in.
    scratch: Scratch,
}

/// The live rows of a step, and how many of them belong to each text; kept, so that a step need not allocate.
#[derive(Default)]
struct Scratch {
    rows: Vec<CacheRow>,
    /// Each row's last token.
    ids: Vec<u32>,
    scores: Vec<f32>,
    counts: Vec<usize>,
    /// The token that follows.
    next: Vec<u32>,
}

impl Running {
    pub(super) fn start() -> Running {
        Running { tokens: vec![BOS], score: 0.0, row: None }
    }
}

impl Text<'_> {
    fn running(&mut self) -> &mut [Running] {
        match self {
            Text::Single(running, _) => std::slice::from_mut(running),
            Text::Beams(search) => &mut search.running,
        }
    }

    /// The state of a single sequence's random numbers.
    fn random(&mut self) -> Option<&mut u64> {
        match self {
            Text::Single(_, random) => Some(random),
            Text::Beams(_) => None,
        }
    }

    fn settled(&self) -> &[u32] {
        match self {
            Text::Single(running, _) => &running.tokens,
            Text::Beams(search) => search.settled(),
        }
    }

    fn is_done(&self, limit: usize) -> bool {
        match self {
            Text::Single(running, _) => running.tokens.last() == Some(&EOS) || running.tokens.len() >= limit,
            Text::Beams(search) => search.done,
        }
    }

    fn best(self) -> Generated {
        match self {
            Text::Single(running, _) => Generated { tokens: running.tokens, score: None },
            Text::Beams(search) => search.best(),
        }
    }
}

impl<'a, B: Backend> Batch<'a, B> {
    /// `places` pictures of `cache`, none of them in use. `options` were checked.
    pub fn new(
        decoder: &'a Decoder<B>,
        cache: B::KvCache,
        places: usize,
        options: &'a GenerateOptions,
    ) -> Batch<'a, B> {
        let places = (0..places).map(|_| None).collect();
        Batch { decoder, cache, options, limit: options.limit(decoder), places, rows: 0, scratch: Scratch::default() }
    }

    /// The cache, for the prefixes of pictures at places that are not in use.
    pub fn cache(&mut self) -> &mut B::KvCache {
        &mut self.cache
    }

    /// How many pictures are being decoded.
    pub fn live(&self) -> usize {
        self.places.iter().flatten().count()
    }

    /// Begins the text of the picture at `place`, whose prefix is in the cache.
    pub fn begin(&mut self, place: usize) {
        self.places[place] = Some(match self.options.sampling {
            _ if self.options.beams > 1 => Text::Beams(Search::new(self.options, self.limit)),
            sampling => {
                let mut running = Running::start();
                running.tokens.reserve(self.limit);
                Text::Single(running, sampling.map_or(0, |sampling| sampling.seed))
            }
        });
    }

    /// Every text grows by one token, on the backend of the cache. Gives back the places that are free again, with what was
    /// said there. `told` hears of every text, and may ask for an end: then the step's last value is `Break`.
    pub fn step(
        &mut self,
        backend: &B,
        told: &mut dyn FnMut(Told<'_>) -> ControlFlow<()>,
    ) -> Result<(Vec<Ended>, ControlFlow<()>)> {
        let Scratch { rows, ids, scores, counts, .. } = &mut self.scratch;
        rows.clear();
        ids.clear();
        scores.clear();
        counts.clear();
        for (image, text) in self.places.iter_mut().enumerate() {
            let Some(text) = text else { continue };
            let running = text.running();
            counts.push(running.len());
            for sequence in running {
                rows.push(CacheRow { image, parent: sequence.row.replace(rows.len()) });
                ids.extend(sequence.tokens.last());
                scores.push(sequence.score);
            }
        }
        let mut done = Vec::new();
        if rows.is_empty() {
            return Ok((done, ControlFlow::Continue(())));
        }
        // Rows that go on as they are need no call.
        if rows.len() != self.rows || rows.iter().enumerate().any(|(r, row)| row.parent != Some(r)) {
            backend.kv_reorder(&mut self.cache, rows)?;
        }
        self.rows = rows.len();
        let logits = self.decoder.step(backend, &mut self.cache, ids)?;
        self.extend(backend, &logits)?;
        let mut flow = ControlFlow::Continue(());
        for (image, place) in self.places.iter_mut().enumerate() {
            let Some(text) = place else { continue };
            let growing = text.running().first().map_or(0, |sequence| sequence.tokens.len());
            let settled = text.settled();
            if told(Told { image, length: growing.max(settled.len()), settled }).is_break() {
                flow = ControlFlow::Break(());
            }
            if text.is_done(self.limit) {
                done.extend(place.take().map(|text| (image, text.best())));
            }
        }
        Ok((done, flow))
    }

    /// What has been said so far at every place in use.
    pub fn stop(self) -> Vec<Ended> {
        let texts = self.places.into_iter().enumerate();
        texts.filter_map(|(place, text)| Some((place, text?.best()))).collect()
    }

    /// Chooses the next token of every live text.
    fn extend(&mut self, backend: &B, logits: &B::Tensor) -> Result<()> {
        let Scratch { scores, counts, next, .. } = &mut self.scratch;
        if self.options.beams > 1 {
            let candidates = backend.beam_candidates(logits, scores, counts, 2 * self.options.beams)?;
            for (text, candidates) in self.places.iter_mut().flatten().zip(candidates) {
                if let Text::Beams(search) = text {
                    search.step(&candidates);
                }
            }
            return Ok(());
        }
        match &self.options.sampling {
            Some(sampling) => {
                let states = self.places.iter_mut().flatten().filter_map(Text::random);
                *next = sample::draw(backend, logits, sampling, states)?;
            }
            None => backend.argmax(logits, next)?,
        }
        for (text, &token) in self.places.iter_mut().flatten().zip(&*next) {
            if let Text::Single(running, _) = text {
                running.tokens.push(token);
            }
        }
        Ok(())
    }
}
