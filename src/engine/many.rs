//! Many pictures, as a pipeline of bounded stages: threads read and resize pictures ahead of the model; the vision
//! transformer takes them in small batches into spare places of the cache; the decoder fills the place of a caption that
//! has ended with the next picture at once; what has ended is spoken and handed out.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::time::Instant;

use super::model::{Model, milliseconds};
use super::{Caption, CaptionOptions, Captioner, Timings};
use crate::backend::Backend;
use crate::config::ModelConfig;
use crate::generate::{Batch, GenerateOptions, Generated};
use crate::image::Image;
use crate::{Error, Result, trace};

/// Most pictures that are decoded together: places of a cache take memory.
const MAX_IN_FLIGHT: usize = 1024;
/// Most threads that read pictures.
const READERS: usize = 16;

/// Gives the picture of each number from 0 on, and `None` for those after the last. Several threads ask.
pub type Pictures<'a> = &'a (dyn Fn(usize) -> Option<Result<Image>> + Sync);

/// What hears of every caption, in the order in which they end, with the number of its picture; and may end the whole.
pub type Heard<'a> = &'a mut dyn FnMut(usize, Result<Caption>) -> ControlFlow<()>;

/// A picture on its way into the model.
pub(super) struct Prepared {
    index: usize,
    /// Pixels (3, side, side), and how long they took to read and to preprocess.
    pixels: Result<(Vec<f32>, Timings)>,
}

/// Reads `pictures` on threads of their own and hands them to the model. At most twice `in_flight` pictures are held.
pub(super) fn caption_many(
    model: &dyn Captioner,
    config: &ModelConfig,
    pictures: Pictures<'_>,
    options: &CaptionOptions,
    in_flight: usize,
    heard: Heard<'_>,
) -> Result<()> {
    if !(1..=MAX_IN_FLIGHT).contains(&in_flight) {
        let problem = format!("{in_flight} pictures at a time; expected 1 to {MAX_IN_FLIGHT}");
        return Err(Error::Option { option: "in-flight", problem });
    }
    let readers = std::thread::available_parallelism().map_or(1, usize::from).min(READERS).min(in_flight);
    let (next, (send, receive)) = (AtomicUsize::new(0), sync_channel(in_flight));
    std::thread::scope(|scope| {
        let start = |_| {
            let (send, next) = (send.clone(), &next);
            let reader = std::thread::Builder::new().name("im2sp-read".into());
            reader.spawn_scoped(scope, move || read(config, pictures, next, &send)).map_err(|error| Error::Device {
                device: "cpu".into(),
                problem: format!("no thread to read pictures: {error}"),
            })
        };
        let readers = (0..readers).map(start).collect::<Result<Vec<_>>>()?;
        drop(send);
        // Readers end when they find that `receive`, which goes with this call, is gone.
        let result = model.caption_many(config, receive, options, in_flight, heard);
        for reader in readers {
            // A panic is a mistake in `pictures`, whose it is.
            reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        result
    })
}

/// One reading thread.
fn read(config: &ModelConfig, pictures: Pictures<'_>, next: &AtomicUsize, send: &SyncSender<Prepared>) {
    loop {
        let index = next.fetch_add(1, Ordering::Relaxed);
        let clock = Instant::now();
        let Some(picture) = pictures(index) else { return };
        let read = milliseconds(clock);
        let pixels = picture.map(|picture| {
            let clock = Instant::now();
            let pixels = picture.preprocess(&config.image);
            (pixels, Timings { read, preprocess: milliseconds(clock), ..Timings::default() })
        });
        if send.send(Prepared { index, pixels }).is_err() {
            return;
        }
    }
}

/// A picture in a place of the cache.
struct Seat {
    index: usize,
    timings: Timings,
    begun: Instant,
}

/// The places of a cache and those who sit in them.
struct Hall<'a, B: Backend> {
    model: &'a Model<B>,
    batch: Batch<'a, B>,
    /// Pictures decoded at once; there are more places, into which the next ones are brought meanwhile.
    in_flight: usize,
    seats: Vec<Option<Seat>>,
    free: Vec<usize>,
    /// Places whose picture waits for its turn.
    ready: VecDeque<usize>,
    /// A picture without a place.
    next: Option<Prepared>,
}

impl<B: Backend> Model<B> {
    /// See [`super::Engine::caption_many`].
    pub(super) fn caption_many(
        &self,
        config: &ModelConfig,
        pictures: Receiver<Prepared>,
        options: &CaptionOptions,
        in_flight: usize,
        heard: Heard<'_>,
    ) -> Result<()> {
        self.check(config, options)?;
        let mut hall = Hall::new(self, &self.backend.take(), config, &options.generate, in_flight)?;
        let mut open = true;
        while open || !hall.is_empty() {
            if hall.is_empty() {
                // There is nothing else to do, and others may have the device meanwhile.
                hall.next = pictures.recv().ok();
            }
            // Nobody is told anything while others wait for the device: they may be told to ask for it.
            let backend = self.backend.take();
            let refused = hall.fill(&backend, &pictures, &mut open)?;
            let (done, _) = hall.batch.step(&backend, &mut |_| ControlFlow::Continue(()))?;
            drop(backend);
            let spoken = done.into_iter().filter_map(|(place, generated)| hall.leave(place, generated, options));
            let spoken = spoken.collect::<Result<Vec<_>>>()?;
            let refused = refused.into_iter().map(|(index, error)| (index, Err(error)));
            for (index, caption) in refused.chain(spoken.into_iter().map(|(index, caption)| (index, Ok(caption)))) {
                if heard(index, caption).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

impl<'a, B: Backend> Hall<'a, B> {
    fn new(
        model: &'a Model<B>,
        backend: &B,
        config: &ModelConfig,
        options: &'a GenerateOptions,
        in_flight: usize,
    ) -> Result<Hall<'a, B>> {
        let places = in_flight + spare(in_flight);
        let limit = options.limit(&model.decoder);
        let cache = model.decoder.cache(backend, places, config.image_tokens(), limit)?;
        Ok(Hall {
            model,
            batch: Batch::new(&model.decoder, cache, places, options),
            in_flight,
            seats: (0..places).map(|_| None).collect(),
            free: (0..places).rev().collect(),
            ready: VecDeque::new(),
            next: None,
        })
    }

    fn is_empty(&self) -> bool {
        self.batch.live() == 0 && self.ready.is_empty()
    }

    /// Brings the pictures that are there into free places, and begins as many captions as there may be at once. Gives back
    /// the pictures that could not be read. After the last picture it is no longer `open`.
    fn fill(&mut self, backend: &B, pictures: &Receiver<Prepared>, open: &mut bool) -> Result<Vec<(usize, Error)>> {
        let mut refused = Vec::new();
        loop {
            while self.batch.live() < self.in_flight {
                let Some(place) = self.ready.pop_front() else { break };
                if let Some(seat) = &mut self.seats[place] {
                    seat.begun = Instant::now();
                }
                self.batch.begin(place);
            }
            // A batch at a time: the vision transformer is the more efficient, the more pictures it sees together.
            if !*open || self.free.len() < spare(self.in_flight) {
                return Ok(refused);
            }
            let mut taken = Vec::new();
            while taken.len() < spare(self.in_flight) && *open {
                match self.next.take().map_or_else(|| pictures.try_recv(), Ok) {
                    Ok(Prepared { index, pixels: Ok((pixels, timings)) }) => taken.push((index, pixels, timings)),
                    Ok(Prepared { index, pixels: Err(error) }) => refused.push((index, error)),
                    Err(TryRecvError::Disconnected) => *open = false,
                    Err(TryRecvError::Empty) => break,
                }
            }
            if taken.is_empty() {
                return Ok(refused);
            }
            self.bring(backend, taken)?;
        }
    }

    /// What was said at `place`, which is free again, as a caption with the number of its picture.
    fn leave(
        &mut self,
        place: usize,
        generated: Generated,
        options: &CaptionOptions,
    ) -> Option<Result<(usize, Caption)>> {
        let Seat { index, mut timings, begun } = self.seats[place].take()?;
        self.free.push(place);
        timings.decode = milliseconds(begun);
        timings.per_unit = timings.decode / (generated.tokens.len() - 1).max(1) as f64;
        Some(self.model.spoken(generated, timings, options).map(|caption| (index, caption)))
    }

    /// Pictures (number, pixels, timings so far) through vision and prefill into free places.
    fn bring(&mut self, backend: &B, pictures: Vec<(usize, Vec<f32>, Timings)>) -> Result<()> {
        let Model { vision, decoder, .. } = self.model;
        let places = self.free.split_off(self.free.len() - pictures.len());
        let (clock, span) = (Instant::now(), trace::span("vision"));
        let pixels: Vec<f32> = pictures.iter().flat_map(|(_, pixels, _)| pixels).copied().collect();
        let tokens = vision.tokens(backend, &pixels, pictures.len())?;
        drop(span);
        let vision = milliseconds(clock);
        let (clock, span) = (Instant::now(), trace::span("prefill"));
        decoder.prefill_into(backend, self.batch.cache(), &places, &tokens)?;
        drop(span);
        let prefill = milliseconds(clock);
        for ((index, _, timings), place) in pictures.into_iter().zip(places) {
            let timings = Timings { vision, prefill, ..timings };
            self.seats[place] = Some(Seat { index, timings, begun: Instant::now() });
            self.ready.push_back(place);
        }
        Ok(())
    }
}

/// Places beside those in flight, and pictures that the vision transformer takes at once.
fn spare(in_flight: usize) -> usize {
    in_flight.div_ceil(4)
}
