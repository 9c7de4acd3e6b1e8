//! Continuous batching: images decoded together, one token of each a step. A KV cache has a slot for each image; slots are
//! filled and freed between steps, whatever the lengths and the options of the sequences in the others.

use super::sequence::{Choice, Sequence};
use super::{GenerateOptions, Generated, OnToken, TokenEvent, sample};
use crate::backend::rows::log_softmax;
use crate::backend::{Backend, BeamCandidate, CacheRow};
use crate::model::decoder::Decoder;
use crate::{Error, Result};

/// A slot that is free again, and what was generated there; an error if no token could be chosen from its logits.
pub type Finished = (usize, Result<Generated>);

/// A KV cache in use, and the sequences in its slots.
pub struct Slots<'a, B: Backend> {
    decoder: &'a Decoder<B>,
    cache: B::KvCache,
    slots: Vec<Option<Sequence>>,
    /// Rows of the last step.
    rows: usize,
    scratch: Scratch,
}

/// Tables of a step's rows; kept, so that a step need not allocate.
#[derive(Default)]
struct Scratch {
    rows: Vec<CacheRow>,
    /// Each row's last token.
    ids: Vec<u32>,
    scores: Vec<f32>,
    /// Rows of each live slot.
    counts: Vec<usize>,
    /// Each row's next token, for greedy ones.
    next: Vec<u32>,
}

impl<'a, B: Backend> Slots<'a, B> {
    /// `slots` images of `cache`, none of them in use.
    pub fn new(decoder: &'a Decoder<B>, cache: B::KvCache, slots: usize) -> Slots<'a, B> {
        let slots = (0..slots).map(|_| None).collect();
        Slots { decoder, cache, slots, rows: 0, scratch: Scratch::default() }
    }

    /// The cache, for prefilling slots that are not in use.
    pub fn cache(&mut self) -> &mut B::KvCache {
        &mut self.cache
    }

    /// Slots in use.
    pub fn live(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    /// Begins the sequence of the image whose prefix is in `slot`. `options` were checked; their limit is at most the
    /// cache's number of tokens.
    pub fn begin(&mut self, slot: usize, options: &GenerateOptions) {
        self.slots[slot] = Some(Sequence::new(options, options.limit(self.decoder)));
    }

    /// Every sequence grows by one token. Returns those that have ended, by their limit, by EOS, or because `on_token` said
    /// `Break`.
    ///
    /// # Errors
    /// If the device fails: all sequences are as before, and of no use.
    pub fn step(&mut self, backend: &B, on_token: OnToken<'_>) -> Result<Vec<Finished>> {
        let Scratch { rows, ids, scores, counts, .. } = &mut self.scratch;
        rows.clear();
        ids.clear();
        scores.clear();
        counts.clear();
        for (image, sequence) in self.slots.iter_mut().enumerate() {
            let Some(sequence) = sequence else { continue };
            let live = sequence.live();
            counts.push(live.len());
            for hypothesis in live {
                rows.push(CacheRow { image, parent: hypothesis.row.replace(rows.len()) });
                ids.extend(hypothesis.tokens.last());
                scores.push(hypothesis.score);
            }
        }
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        // Rows that continue themselves need no call.
        if rows.len() != self.rows || rows.iter().enumerate().any(|(r, row)| row.parent != Some(r)) {
            backend.kv_reorder(&mut self.cache, rows)?;
        }
        self.rows = rows.len();
        let logits = self.decoder.step(backend, &mut self.cache, ids)?;
        let mut finished = match self.choose(backend, &logits) {
            Err(Error::NotANumber { stage }) => self.choose_from_numbers(backend, &logits, stage)?,
            chosen => chosen?,
        };
        for (slot, place) in self.slots.iter_mut().enumerate() {
            let Some(sequence) = place else { continue };
            let event = TokenEvent { image: slot, length: sequence.len(), stable_prefix: sequence.stable_prefix() };
            if on_token(event).is_break() || sequence.is_done() {
                finished.extend(place.take().map(|sequence| (slot, Ok(sequence.best()))));
            }
        }
        Ok(finished)
    }

    /// Chooses for the sequences whose logits are numbers, and ends the others: one that is damaged costs no other anything.
    fn choose_from_numbers(&mut self, backend: &B, logits: &B::Tensor, stage: &'static str) -> Result<Vec<Finished>> {
        let vocabulary = backend.shape(logits)[1];
        let values = backend.download(logits)?;
        let rows: Vec<&[f32]> = values.chunks_exact(vocabulary).collect();
        let Scratch { scores, counts, .. } = &mut self.scratch;
        let (mut row, mut failed, mut kept) = (0, Vec::new(), Vec::new());
        let live = self.slots.iter_mut().enumerate().filter(|(_, sequence)| sequence.is_some());
        for ((slot, place), count) in live.zip(counts.iter_mut()) {
            if rows[row..row + *count].iter().all(|row| log_softmax(row).is_ok()) {
                kept.extend(row..row + *count);
            } else {
                failed.push((slot, Err(Error::NotANumber { stage })));
                *place = None;
            }
            row += std::mem::replace(count, if place.is_some() { *count } else { 0 });
        }
        if failed.is_empty() {
            return Err(Error::NotANumber { stage });
        }
        counts.retain(|&count| count > 0);
        *scores = kept.iter().map(|&row| scores[row]).collect();
        if !kept.is_empty() {
            let kept: Vec<f32> = kept.iter().flat_map(|&row| rows[row]).copied().collect();
            let logits = backend.upload([scores.len(), vocabulary], &kept)?;
            failed.extend(self.choose(backend, &logits)?);
        }
        Ok(failed)
    }

    /// Chooses the next token of every sequence. Each kind of choice looks at all rows, and leaves out those of the others:
    /// most steps have one kind.
    fn choose(&mut self, backend: &B, logits: &B::Tensor) -> Result<Vec<Finished>> {
        let Scratch { scores, counts, next, .. } = &mut self.scratch;
        let (mut greedy, mut draws, mut beams) = (false, sample::Draws::default(), 0);
        for sequence in self.slots.iter().flatten() {
            match &sequence.choice {
                Choice::Greedy(_) => greedy = true,
                Choice::Sampled(_, sampling, _) => draws.include(sampling),
                Choice::Beams(search) => beams = beams.max(search.beams()),
            }
        }
        if greedy {
            backend.argmax(logits, next)?;
        }
        let sampled = draws.read(backend, logits)?;
        let candidates: Vec<Vec<BeamCandidate>> =
            if beams > 0 { backend.beam_candidates(logits, scores, counts, 2 * beams)? } else { Vec::new() };
        let (mut row, mut failed) = (0, Vec::new());
        for (live, (slot, place)) in
            self.slots.iter_mut().enumerate().filter(|(_, sequence)| sequence.is_some()).enumerate()
        {
            let Some(sequence) = place else { continue };
            match &mut sequence.choice {
                Choice::Greedy(hypothesis) => hypothesis.tokens.push(next[row]),
                Choice::Sampled(hypothesis, sampling, state) => match sampled.draw(row, sampling, state) {
                    Ok(token) => hypothesis.tokens.push(token),
                    Err(error) => {
                        failed.push((slot, Err(error)));
                        *place = None;
                    }
                },
                Choice::Beams(search) => {
                    let own = &candidates[live];
                    search.step(&own[..own.len().min(2 * search.beams())]);
                }
            }
            row += counts[live];
        }
        Ok(failed)
    }
}
