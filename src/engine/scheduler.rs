//! The captioner thread: owns the captioner and its stream of work, and takes requests from their queue to their tokens.
//! Requests wait until there is a free slot of the KV cache, go through the vision encoder a few at a time, and then grow by
//! one token a step, together with the others, whatever their options. Greedy requests that begin together while nobody
//! else waits are decoded by the device's own loop, if it has one. This thread neither speaks nor calls back.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use super::request::{Delivery, Event, Reply};
use super::speech::{self, News};
use super::{Caption, CaptionOptions, Timings};
use crate::backend::{Backend, SmBudget};
use crate::error::panic_message;
use crate::generate::{Compat, Generated, Slots, TokenEvent, greedy};
use crate::model::captioner::{Captioner, VisionInput};
use crate::{Error, Result, trace, units};

/// Most captions that are decoded together: slots of a cache take memory.
pub(super) const MAX_IN_FLIGHT: usize = 1024;
/// Captions for which every cache has room, and that requests without a wish of their own are decoded together: a cache
/// that is too small keeps later requests out.
pub(super) const MIN_WIDTH: usize = 8;

/// A request whose image is ready for the vision encoder.
pub(super) struct Pending {
    pub input: VisionInput,
    pub options: CaptionOptions,
    pub delivery: Delivery,
    /// Reading and preprocessing.
    pub timings: Timings,
    pub reply: Arc<Reply>,
    pub plan: Plan,
}

/// How a caller wants its requests to be scheduled. No result depends on it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// Captions that may be decoded together with it, itself included.
    pub width: usize,
    /// Requests that it hands in together, with no more to come before they are done; 0 if more will come.
    pub together: usize,
    /// Whether the vocoder is to work at the same time.
    pub overlap: bool,
}

/// State of the captioner thread.
pub(super) struct CaptionWorker<B: Backend> {
    pub backend: Arc<B>,
    pub captioner: Arc<Captioner<B>>,
    /// Samples a second; 0 without a vocoder.
    pub sample_rate: u32,
    pub speech: Option<speech::Queue>,
    /// Captions for which every cache has room.
    pub min_width: usize,
}

impl<B: Backend> CaptionWorker<B> {
    /// Works until the queue is closed and empty.
    pub fn run(&self, queue: &Receiver<Vec<Pending>>) {
        let mut scheduler = Scheduler { worker: self, waiting: VecDeque::new(), entries: Vec::new(), session: None };
        while let Ok(requests) = queue.recv() {
            scheduler.waiting.extend(requests);
            while !scheduler.is_idle() {
                scheduler.waiting.extend(queue.try_iter().flatten());
                // After a panic the next requests are served: nothing of a session outlives it.
                if let Err(error) = catch_panic(|| scheduler.work()) {
                    scheduler.fail(&error);
                }
            }
        }
    }
}

/// Runs `work`; a panic in it is an internal error.
fn catch_panic<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|panic| Err(Error::internal(format!("the captioner's thread: {}", panic_message(&*panic)))))
}

/// A request in a slot.
struct Entry<B: Backend> {
    options: CaptionOptions,
    timings: Timings,
    reply: Arc<Reply>,
    plan: Plan,
    encoded: Rc<Encoded<B>>,
    /// Before its first step.
    begun: Option<Rc<B::Event>>,
    /// Units handed out so far; `None` unless streamed.
    emitted: Option<usize>,
    /// Most frames of the first chunk of a streamed caption.
    first_chunk: usize,
    /// Where its units are spoken as they come.
    speech: Option<u64>,
}

/// When images went through the encoder together: before, between vision and prefill, after.
struct Encoded<B: Backend>([B::Event; 3]);

/// A KV cache in use. Everything in it has the same device memory, so it is made anew for requests that do not fit.
struct Session<'a, B: Backend> {
    slots: Slots<'a, B>,
    /// Captions that may be decoded together; there are more slots, which the next images are brought into meanwhile.
    width: usize,
    max_tokens: usize,
    free: Vec<usize>,
    /// Slots whose image waits for its first step.
    ready: VecDeque<usize>,
}

struct Scheduler<'a, B: Backend> {
    worker: &'a CaptionWorker<B>,
    waiting: VecDeque<Pending>,
    /// By slot.
    entries: Vec<Option<Entry<B>>>,
    session: Option<Session<'a, B>>,
}

impl<'a, B: Backend> Scheduler<'a, B> {
    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.entries.iter().all(Option::is_none)
    }

    /// One step of every caption that is being decoded, after those that wait were let in; or one loop of the device.
    ///
    /// # Errors
    /// Those that concern every request with an entry.
    fn work(&mut self) -> Result<()> {
        self.drop_unwanted();
        if self.session.is_none() {
            if self.waiting.is_empty() {
                return Ok(());
            }
            if let Some(count) = self.loop_size() {
                return self.greedy_loop(count);
            }
            self.open_session();
        }
        self.admit()?;
        self.step()
    }

    /// How many that wait go through the device's own loop: all, if they came together, or one of those that want to be
    /// decoded alone; `None` if they do not fit it.
    fn loop_size(&self) -> Option<usize> {
        let decoder = &self.worker.captioner.decoder;
        let first = self.waiting.front()?;
        let count = first.plan.together;
        let alone = count == 1 && self.waiting.iter().all(|pending| pending.plan.width == 1);
        let options = &first.options.generate;
        let shape = self.worker.captioner.cache_shape(count, options.limit(decoder));
        let fits = (alone || count == self.waiting.len())
            && self.waiting.iter().take(count).all(|pending| pending.options.generate == *options)
            && greedy::fits(&*self.worker.backend, decoder, shape, options);
        fits.then_some(count)
    }

    /// Requests that wait and are no longer wanted, or too late.
    fn drop_unwanted(&mut self) {
        self.waiting.retain(|pending| match pending.reply.check() {
            Ok(()) => true,
            Err(error) => {
                pending.reply.fail(error);
                false
            }
        });
    }

    /// A cache for what waits; where there is no memory for that, one for the first alone. If even that is too large, it is
    /// the first's error.
    fn open_session(&mut self) {
        let decoder = &self.worker.captioner.decoder;
        let wish = |pending: &Pending| [pending.plan.width, pending.options.generate.limit(decoder)];
        let Some(first) = self.waiting.front().map(wish) else { return };
        let [width, max_tokens] = self
            .waiting
            .iter()
            .map(wish)
            .fold([self.worker.min_width, 1], |all, one| [all[0].max(one[0]), all[1].max(one[1])]);
        let session = self.worker.session(width, max_tokens).or_else(|error| match first {
            [own_width, own_tokens] if (own_width, own_tokens) != (width, max_tokens) => {
                self.worker.session(own_width, own_tokens)
            }
            _ => Err(error),
        });
        match session {
            Ok(session) => {
                self.entries = session.free.iter().map(|_| None).collect();
                self.session = Some(session);
            }
            Err(error) => {
                if let Some(first) = self.waiting.pop_front() {
                    first.reply.fail(error);
                }
            }
        }
    }

    /// Brings requests into free slots, and begins as many as there may be together.
    fn admit(&mut self) -> Result<()> {
        loop {
            self.begin()?;
            let Some(session) = &self.session else { return Ok(()) };
            // A few at a time: the vision encoder is the more efficient, the more images it sees together.
            let few = lookahead(session.width);
            if session.free.len() < few {
                return Ok(());
            }
            let max = self.waiting.front().map_or(0, |first| first.plan.together).max(few).min(session.free.len());
            let decoder = &self.worker.captioner.decoder;
            // Who does not fit waits for a cache of its own, and those behind it with it.
            let fits = |pending: &&Pending| {
                pending.plan.width <= session.width && pending.options.generate.limit(decoder) <= session.max_tokens
            };
            let count = self.waiting.iter().take(max).take_while(fits).count();
            if count == 0 {
                return Ok(());
            }
            let taken: Vec<Pending> = self.waiting.drain(..count).collect();
            let replies: Vec<Arc<Reply>> = taken.iter().map(|pending| pending.reply.clone()).collect();
            if let Err(error) = self.prefill(taken) {
                // It is no error of those that are being decoded.
                replies.iter().for_each(|reply| reply.fail(error.duplicate()));
            }
        }
    }

    /// Requests through vision and prefill into free slots.
    fn prefill(&mut self, taken: Vec<Pending>) -> Result<()> {
        let Some(session) = &mut self.session else { return Ok(()) };
        let slots = session.free.split_off(session.free.len() - taken.len());
        let encoded = catch_panic(|| {
            self.worker.encode(&taken, |tokens| {
                self.worker.captioner.decoder.prefill_into(&self.worker.backend, session.slots.cache(), &slots, tokens)
            })
        });
        let encoded = match encoded {
            Ok(encoded) => Rc::new(encoded),
            Err(error) => {
                session.free.extend(slots);
                return Err(error);
            }
        };
        for (pending, slot) in taken.into_iter().zip(slots) {
            self.entries[slot] = Some(Entry::new(pending, &encoded));
            session.ready.push_back(slot);
        }
        Ok(())
    }

    /// Begins captions whose image is in the cache.
    fn begin(&mut self) -> Result<()> {
        let Some(session) = &mut self.session else { return Ok(()) };
        let mut begun = None;
        // Of callers that differ, the one who allows the most decides.
        let width = self.entries.iter().flatten().map(|entry| entry.plan.width).max().unwrap_or(1).min(session.width);
        while session.slots.live() < width {
            let Some(slot) = session.ready.pop_front() else { break };
            let Some(entry) = &mut self.entries[slot] else { continue };
            let event = match &begun {
                Some(event) => Rc::clone(event),
                None => begun.insert(Rc::new(self.worker.backend.record_event()?)).clone(),
            };
            self.worker.begin(entry, event);
            session.slots.begin(slot, &entry.options.generate);
        }
        Ok(())
    }

    /// Every caption in decoding grows by one token.
    fn step(&mut self) -> Result<()> {
        let Some(session) = &mut self.session else { return Ok(()) };
        let (worker, entries) = (self.worker, &mut self.entries);
        let finished = {
            let _span = trace::span("decode");
            session.slots.step(&worker.backend, &mut |event| match &mut entries[event.image] {
                Some(entry) => worker.on_token(entry, event),
                None => ControlFlow::Break(()),
            })?
        };
        for (slot, generated) in finished {
            session.free.push(slot);
            if let Some(mut entry) = entries[slot].take() {
                let result = generated.and_then(|generated| catch_panic(|| worker.finish(&mut entry, generated)));
                result.unwrap_or_else(|error| worker.fail(&entry, error));
            }
        }
        // The next requests may need another cache.
        if entries.iter().all(Option::is_none) {
            self.session = None;
        }
        Ok(())
    }

    /// The first `count` that wait, in one launch from the first to the last token.
    fn greedy_loop(&mut self, count: usize) -> Result<()> {
        let (worker, mut taken) = (self.worker, self.waiting.drain(..count).collect::<Vec<_>>());
        let Some(options) = taken.first().map(|pending| pending.options.generate) else { return Ok(()) };
        let (backend, decoder) = (&*worker.backend, &worker.captioner.decoder);
        let replies = taken.iter().map(|pending| pending.reply.clone()).collect::<Vec<_>>();
        let mut cache = None;
        let encoded = catch_panic(|| {
            worker.encode(&taken, |tokens| {
                cache = Some(decoder.prefill(backend, tokens, count, options.limit(decoder))?);
                Ok(())
            })
        });
        let encoded = match encoded {
            Ok(encoded) => Rc::new(encoded),
            Err(error) => {
                replies.iter().for_each(|reply| reply.fail(error.duplicate()));
                return Ok(());
            }
        };
        let inputs: Vec<_> = taken.iter_mut().map(|pending| std::mem::take(&mut pending.input)).collect();
        self.entries = taken.into_iter().map(|pending| Some(Entry::new(pending, &encoded))).collect();
        let begun = Rc::new(backend.record_event()?);
        self.entries.iter_mut().flatten().for_each(|entry| worker.begin(entry, begun.clone()));
        let overlap = self.entries.iter().flatten().any(|entry| entry.plan.overlap);
        let budget = if overlap { SmBudget::LeaveRoom } else { SmBudget::All };
        let entries = &mut self.entries;
        let generated = cache.and_then(|cache| {
            let _span = trace::span("decode");
            greedy::decode(backend, decoder, &cache, count, &options, budget, &mut |event| {
                entries[event.image].as_mut().map_or(ControlFlow::Break(()), |entry| worker.on_token(entry, event))
            })
        });
        let generated = generated.ok_or_else(|| Error::internal("a device without the loop that it offers"))?;
        if matches!(generated, Err(Error::NotANumber { .. })) && count > 1 {
            // The loop does not say which it concerns; steps do.
            let again = self.entries.drain(..).flatten().zip(inputs).map(|(entry, input)| entry.again(input));
            let behind = std::mem::replace(&mut self.waiting, again.collect());
            self.waiting.extend(behind);
            return Ok(());
        }
        let generated = generated?;
        for (mut entry, generated) in self.entries.drain(..).flatten().zip(generated) {
            let finished = catch_panic(|| worker.finish(&mut entry, generated));
            finished.unwrap_or_else(|error| worker.fail(&entry, error));
        }
        Ok(())
    }

    /// Ends the session and every request in it; where there is none, the first that waits, which led to the error.
    fn fail(&mut self, error: &Error) {
        self.session = None;
        let mut concerned = 0;
        for entry in self.entries.drain(..).flatten() {
            self.worker.fail(&entry, error.duplicate());
            concerned += 1;
        }
        if let (0, Some(first)) = (concerned, self.waiting.pop_front()) {
            first.reply.fail(error.duplicate());
        }
    }
}

impl<B: Backend> Entry<B> {
    fn new(pending: Pending, encoded: &Rc<Encoded<B>>) -> Entry<B> {
        let Pending { options, delivery, timings, reply, plan, .. } = pending;
        let (emitted, first_chunk) = match delivery {
            Delivery::Whole => (None, 0),
            Delivery::Streamed { first_chunk } => (Some(0), first_chunk),
        };
        let encoded = encoded.clone();
        Entry { options, timings, reply, plan, encoded, begun: None, emitted, first_chunk, speech: None }
    }

    /// The request that this was, for steps instead of the device's loop.
    fn again(self, input: VisionInput) -> Pending {
        let Entry { options, timings, reply, plan, .. } = self;
        Pending { input, options, delivery: Delivery::Whole, timings, reply, plan: Plan { together: 0, ..plan } }
    }

    /// The units from the first that was not handed out yet.
    fn new_units(&mut self, units: &[u32]) -> Option<Vec<u32>> {
        let new = units.get(self.emitted?..).filter(|new| !new.is_empty())?.to_vec();
        self.emitted = Some(units.len());
        Some(new)
    }
}

impl<B: Backend> CaptionWorker<B> {
    /// An empty cache for `width` captions of `max_tokens` tokens, and for those that follow them.
    fn session(&self, width: usize, max_tokens: usize) -> Result<Session<'_, B>> {
        let count = width + lookahead(width);
        let cache = self.backend.kv_cache(self.captioner.cache_shape(count, max_tokens))?;
        let slots = Slots::new(&self.captioner.decoder, cache, count);
        let (free, ready) = ((0..count).rev().collect(), VecDeque::new());
        Ok(Session { slots, width, max_tokens, free, ready })
    }

    /// Images through vision, and their tokens through `prefill`.
    fn encode(&self, taken: &[Pending], prefill: impl FnOnce(&B::Tensor) -> Result<()> + Send) -> Result<Encoded<B>> {
        let inputs: Vec<&VisionInput> = taken.iter().map(|pending| &pending.input).collect();
        taken.iter().for_each(|pending| pending.reply.stage.vision());
        let before = self.backend.record_event()?;
        let tokens = {
            let _span = trace::span("vision");
            self.backend.run(|| self.captioner.encode_inputs(&self.backend, &inputs))?
        };
        taken.iter().for_each(|pending| pending.reply.stage.prefill());
        let between = self.backend.record_event()?;
        {
            let _span = trace::span("prefill");
            self.backend.run(|| prefill(&tokens))?;
        }
        Ok(Encoded([before, between, self.backend.record_event()?]))
    }

    /// A caption is about to have its first step.
    fn begin(&self, entry: &mut Entry<B>, event: Rc<B::Event>) {
        entry.begun = Some(event);
        if let (Some(_), Some(queue), false) = (entry.emitted, &self.speech, entry.options.no_audio) {
            entry.speech = Some(queue.playback(&entry.reply, entry.options.speaker, entry.first_chunk));
        }
    }

    /// Hands out what is new of a streamed caption; ends one that nobody wants any more.
    fn on_token(&self, entry: &mut Entry<B>, event: TokenEvent<'_>) -> ControlFlow<()> {
        if entry.reply.check().is_err() {
            return ControlFlow::Break(());
        }
        entry.reply.stage.decode(event.length);
        if entry.emitted.is_some() {
            self.emit(entry, &stable_units(event.stable_prefix, entry.options.generate.compat));
        }
        ControlFlow::Continue(())
    }

    fn emit(&self, entry: &mut Entry<B>, units: &[u32]) {
        let Some(new) = entry.new_units(units) else { return };
        if let (Some(queue), Some(id)) = (&self.speech, entry.speech) {
            queue.tell(id, News::Units(new.clone()));
        }
        entry.reply.send(Event::Units(new));
    }

    /// The end of decoding: a caption without sound is done, another goes to the vocoder.
    fn finish(&self, entry: &mut Entry<B>, generated: Generated) -> Result<()> {
        entry.reply.check()?;
        let Generated { tokens, .. } = generated;
        let units = units_of(&tokens, entry.options.generate.compat);
        self.emit(entry, &units);
        let timings = self.timings(entry, tokens.len())?;
        let has_audio = !entry.options.no_audio && !units.is_empty();
        let caption = Caption { tokens, units, samples: Vec::new(), sample_rate: self.sample_rate, timings };
        match (&self.speech, entry.speech) {
            (Some(queue), Some(id)) => queue.tell(id, News::Close(caption)),
            (Some(queue), None) if has_audio && entry.emitted.is_none() => {
                queue.whole(&entry.reply, entry.options.speaker, caption);
            }
            _ => entry.reply.done(caption),
        }
        Ok(())
    }

    fn fail(&self, entry: &Entry<B>, error: Error) {
        entry.reply.fail(error);
        if let Some(queue) = self.speech.as_ref().filter(|_| entry.speech.is_some()) {
            queue.wake();
        }
    }

    /// Milliseconds of the stages, read when their work is done.
    fn timings(&self, entry: &Entry<B>, tokens: usize) -> Result<Timings> {
        let [before, between, after] = &entry.encoded.0;
        let decode = match &entry.begun {
            Some(begun) => self.backend.elapsed(begun, &self.backend.record_event()?)?,
            None => 0.0,
        };
        Ok(Timings {
            vision: self.backend.elapsed(before, between)?,
            prefill: self.backend.elapsed(between, after)?,
            decode,
            per_unit: decode / tokens.saturating_sub(1).max(1) as f64,
            ..entry.timings
        })
    }
}

/// Slots beyond those in decoding, and images that the vision encoder takes together.
pub(super) fn lookahead(width: usize) -> usize {
    width.div_ceil(4)
}

/// Units of tokens, BOS included.
pub(super) fn units_of(tokens: &[u32], compat: Compat) -> Vec<u32> {
    let row = tokens.get(1..).unwrap_or_default();
    match compat {
        Compat::Current => units::units_of(row),
        Compat::Reference => units::reference_units_of(row),
    }
}

/// Units that a result which begins with these tokens begins with, whatever follows.
fn stable_units(tokens: &[u32], compat: Compat) -> Vec<u32> {
    let row = tokens.get(1..).unwrap_or_default();
    match compat {
        Compat::Current => units::units_of(row),
        // The reference's truncation changes the last of all tokens, which may be the last of these.
        Compat::Reference => units::units_of(row.split_last().map_or(&[], |(_, before)| before)),
    }
}
