//! A request for a caption: what callers hand in, the events they get back, and the thread-safe state that connects the two.
//! A request ends with exactly one of [`Event::Done`] and [`Event::Failed`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use super::pipeline::Pipeline;
use super::{Caption, CaptionOptions, Progress};
use crate::image::Image;
use crate::model::captioner::VisionInput;
use crate::{Error, Result};

/// The image of a request.
#[derive(Clone, Debug)]
pub enum Input {
    /// An image as it was read; [`super::Engine::submit`] resizes and normalises it on the calling thread.
    Image(Image),
    /// Pixels (3, side, side) as [`Image::preprocess`] gives them.
    Pixels(Vec<f32>),
    /// Image units, row by row, for a model that sees them.
    Units(Vec<u16>),
}

impl From<VisionInput> for Input {
    fn from(input: VisionInput) -> Input {
        match input {
            VisionInput::Pixels(pixels) => Input::Pixels(pixels),
            VisionInput::Units(units) => Input::Units(units),
        }
    }
}

impl From<Image> for Input {
    fn from(image: Image) -> Input {
        Input::Image(image)
    }
}

/// How a caption is delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Delivery {
    /// All of it with [`Event::Done`].
    #[default]
    Whole,
    /// Units and sound as soon as they are known, and [`Event::Done`] without samples.
    Streamed {
        /// Most vocoder frames of the first chunk; later chunks may each be twice as long as the one before. Changes when
        /// chunks come, and nothing about their samples.
        first_chunk: usize,
    },
}

/// One caption to be made.
#[derive(Clone, Debug)]
pub struct Request {
    /// The image.
    pub input: Input,
    /// Options of this caption alone: requests with different ones are decoded together.
    pub options: CaptionOptions,
    /// How it is delivered.
    pub delivery: Delivery,
    /// When the request fails with [`Error::Deadline`] unless it is done.
    pub deadline: Option<Instant>,
}

impl Request {
    /// A request without a deadline, delivered whole.
    pub fn new(image: Image, options: CaptionOptions) -> Request {
        Request { input: Input::Image(image), options, delivery: Delivery::Whole, deadline: None }
    }
}

/// News of a request.
#[derive(Debug)]
pub enum Event {
    /// More units, which are never retracted; only of a streamed request.
    Units(Vec<u32>),
    /// The next samples; only of a streamed request with sound.
    Chunk(Vec<f32>),
    /// The caption. Nothing follows.
    Done(Caption),
    /// The error that ended the request. Nothing follows.
    Failed(Error),
}

/// Cancels requests, from any thread.
#[derive(Clone, Debug, Default)]
pub struct CancelFlag(Arc<AtomicBool>);

impl CancelFlag {
    /// Ends the requests it belongs to at their next step. Whoever still listens gets [`Error::Cancelled`].
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// How far the requests of a group have come.
#[derive(Debug, Default)]
pub(super) struct Stage {
    stage: AtomicUsize,
    tokens: AtomicUsize,
}

impl Stage {
    const VISION: usize = 1;
    const PREFILL: usize = 2;
    const DECODE: usize = 3;

    pub fn vision(&self) {
        self.stage.fetch_max(Stage::VISION, Ordering::Relaxed);
    }

    pub fn prefill(&self) {
        self.stage.fetch_max(Stage::PREFILL, Ordering::Relaxed);
    }

    /// A sequence has this many tokens.
    pub fn decode(&self, tokens: usize) {
        self.stage.store(Stage::DECODE, Ordering::Relaxed);
        self.tokens.fetch_max(tokens, Ordering::Relaxed);
    }

    /// The same for a progress bar; `None` before the work.
    pub fn progress(&self, limit: usize) -> Option<Progress> {
        match self.stage.load(Ordering::Relaxed) {
            Stage::VISION => Some(Progress::Vision),
            Stage::PREFILL => Some(Progress::Prefill),
            Stage::DECODE => Some(Progress::Decode(self.tokens.load(Ordering::Relaxed), limit)),
            _ => None,
        }
    }
}

/// Where a request's events go.
pub(super) enum Sink {
    One(Sender<Event>),
    /// The events of several requests share a channel.
    Numbered(usize, Sender<(usize, Event)>),
}

/// The answering end of a request, shared by the threads that work on it. When the last of them lets go of a request that
/// has not ended, it fails.
pub(super) struct Reply {
    sink: Sink,
    cancel: CancelFlag,
    deadline: Option<Instant>,
    pub stage: Arc<Stage>,
    ended: AtomicBool,
}

impl Reply {
    pub fn new(sink: Sink, cancel: CancelFlag, deadline: Option<Instant>, stage: Arc<Stage>) -> Arc<Reply> {
        Arc::new(Reply { sink, cancel, deadline, stage, ended: AtomicBool::new(false) })
    }

    /// An error if nobody wants the rest, or it comes too late.
    pub fn check(&self) -> Result<()> {
        match self.deadline {
            _ if self.cancel.is_set() => Err(Error::Cancelled),
            Some(deadline) if deadline <= Instant::now() => Err(Error::Deadline),
            _ => Ok(()),
        }
    }

    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// News that ends nothing.
    pub fn send(&self, event: Event) {
        if !self.has_ended() {
            self.put(event);
        }
    }

    pub fn done(&self, caption: Caption) {
        self.end(Event::Done(caption));
    }

    pub fn fail(&self, error: Error) {
        self.end(Event::Failed(error));
    }

    /// The first end counts.
    fn end(&self, event: Event) {
        if !self.ended.swap(true, Ordering::AcqRel) {
            self.put(event);
        }
    }

    /// A receiver that is gone has set the cancel flag.
    fn put(&self, event: Event) {
        let _gone = match &self.sink {
            Sink::One(sender) => sender.send(event).is_err(),
            Sink::Numbered(number, sender) => sender.send((*number, event)).is_err(),
        };
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.fail(Error::internal("a thread of the engine ended before the caption was made"));
    }
}

/// The events of one request, in their order; blocks until the next. Dropping it cancels the request.
pub struct Events {
    receiver: Receiver<Event>,
    cancel: CancelFlag,
    deadline: Option<Instant>,
    ended: bool,
    /// The threads end with the last who waits for them.
    pipeline: Arc<Pipeline>,
}

impl Events {
    /// A request's two ends.
    pub(super) fn new(pipeline: Arc<Pipeline>, deadline: Option<Instant>) -> (Events, Arc<Reply>) {
        let ((sender, receiver), cancel) = (channel(), CancelFlag::default());
        let reply = Reply::new(Sink::One(sender), cancel.clone(), deadline, Arc::default());
        (Events { receiver, cancel, deadline, ended: false, pipeline }, reply)
    }

    /// The events of a request that is refused.
    pub(super) fn failed(pipeline: &Arc<Pipeline>, error: Error) -> Events {
        let (events, reply) = Events::new(pipeline.clone(), None);
        reply.fail(error);
        events
    }

    /// Waits for the caption.
    ///
    /// # Errors
    /// The request's own.
    pub fn finish(mut self) -> Result<Caption> {
        let ended = self.find_map(|event| match event {
            Event::Done(caption) => Some(Ok(caption)),
            Event::Failed(error) => Some(Err(error)),
            Event::Units(_) | Event::Chunk(_) => None,
        });
        ended.unwrap_or_else(|| Err(Error::internal("a request without an end")))
    }

    /// A flag with which others may cancel the request.
    pub fn cancel_flag(&self) -> CancelFlag {
        self.cancel.clone()
    }

    /// The next event if it comes within `timeout`.
    pub fn next_within(&mut self, timeout: Duration) -> Option<Event> {
        self.next_until(Instant::now().checked_add(timeout))
    }

    /// The next event if it comes before `until`, or before the deadline, which is an event too.
    fn next_until(&mut self, until: Option<Instant>) -> Option<Event> {
        if self.ended {
            return None;
        }
        let first = [until, self.deadline].into_iter().flatten().min();
        let received = match first {
            None => self.receiver.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(first) => self.receiver.recv_timeout(first.saturating_duration_since(Instant::now())),
        };
        let event = match received {
            Ok(event) => event,
            Err(RecvTimeoutError::Timeout) if self.deadline != first => return None,
            Err(RecvTimeoutError::Timeout) => {
                self.cancel.cancel();
                Event::Failed(Error::Deadline)
            }
            // A reply says so before it goes.
            Err(RecvTimeoutError::Disconnected) => Event::Failed(Error::internal("a request without an answer")),
        };
        self.ended = matches!(event, Event::Done(_) | Event::Failed(_));
        Some(event)
    }
}

impl Iterator for Events {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        self.next_until(None)
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.cancel.cancel();
        if !self.ended {
            self.pipeline.main.wake();
        }
    }
}
