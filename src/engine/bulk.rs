//! Many captions: a batch whose images are all there, and any number of images that are read ahead while others are
//! captioned. Callbacks run on the thread that called.

use std::ops::ControlFlow;
use std::slice;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::pipeline::{Lane, Pipeline};
use super::request::{CancelFlag, Delivery, Event, Input, Reply, Sink, Stage};
use super::scheduler::{MAX_IN_FLIGHT, Pending, Plan};
use super::{Caption, CaptionOptions, Progress, Timings, milliseconds};
use crate::image::Image;
use crate::model::captioner::VisionInput;
use crate::{Error, Result};

/// Most threads that read images.
const MAX_READERS: usize = 16;
/// How often progress is looked at.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(20);

/// Gives the image of each number from 0 on, and `None` for those after the last. Called by several threads.
pub type ImageSource<'a> = &'a (dyn Fn(usize) -> Option<Result<Image>> + Sync);

/// As [`ImageSource`], of images in any form that the model takes.
pub type InputSource<'a> = &'a (dyn Fn(usize) -> Option<Result<Input>> + Sync);

/// Callback for every caption, in the order in which they end, with the number of its image; `Break` ends the whole.
pub type OnCaption<'a> = &'a mut dyn FnMut(usize, Result<Caption>) -> ControlFlow<()>;

/// See [`super::Engine::caption_batch`].
pub(super) fn caption_batch(
    pipeline: &Pipeline,
    inputs: impl ExactSizeIterator<Item = Result<(VisionInput, Timings)>>,
    options: &CaptionOptions,
    mut progress: Option<&mut dyn FnMut(Progress)>,
) -> Result<Vec<Caption>> {
    pipeline.check(options)?;
    let count = inputs.len();
    let together = count.min(MAX_IN_FLIGHT);
    let plan = Plan { width: together, together, overlap: false };
    let (cancel, stage, (sender, receiver)) = (CancelFlag::default(), Arc::<Stage>::default(), channel());
    // Whatever ends this call, nobody waits for the rest.
    let _cancelled = CancelOnDrop(&cancel);
    let pending = inputs.enumerate().map(|(number, prepared)| {
        let (input, timings) = prepared?;
        let reply = Reply::new(Sink::Numbered(number, sender.clone()), cancel.clone(), None, stage.clone());
        Ok(Pending { input, options: *options, delivery: Delivery::Whole, timings, reply, plan })
    });
    pipeline.main.submit(pending.collect::<Result<_>>()?);
    let limit = options.generate.max_length.min(pipeline.config.decoder.max_positions);
    let (mut captions, mut done, mut shown) = (vec![None; count], 0, None);
    while done < count {
        let (number, event) = match &mut progress {
            None => receiver.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(_) => receiver.recv_timeout(PROGRESS_INTERVAL),
        }
        .or_else(|error| match error {
            RecvTimeoutError::Timeout => Ok((0, Event::Units(Vec::new()))),
            RecvTimeoutError::Disconnected => Err(Error::internal("a request without an answer")),
        })?;
        match event {
            Event::Done(caption) => {
                captions[number] = Some(caption);
                done += 1;
            }
            Event::Failed(error) => return Err(error),
            Event::Units(_) | Event::Chunk(_) => {}
        }
        let now = if done > 0 { Some(Progress::Vocoder(done, count)) } else { stage.progress(limit) };
        if let (Some(progress), Some(at), true) = (&mut progress, now, now != shown) {
            progress(at);
            shown = now;
        }
    }
    Ok(captions.into_iter().flatten().collect())
}

struct CancelOnDrop<'a>(&'a CancelFlag);

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// See [`super::Engine::caption_many`].
pub(super) fn caption_many(
    pipeline: &Pipeline,
    inputs: InputSource<'_>,
    options: &CaptionOptions,
    in_flight: usize,
    on_caption: OnCaption<'_>,
) -> Result<()> {
    if !(1..=MAX_IN_FLIGHT).contains(&in_flight) {
        let problem = format!("{in_flight} images at a time; expected 1 to {MAX_IN_FLIGHT}");
        return Err(Error::Option { option: "in-flight", problem });
    }
    pipeline.check(options)?;
    let readers = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_READERS).min(in_flight);
    // Those in decoding, those that wait for it, and those that wait for the vocoder.
    let permits = Permits::new(3 * in_flight + readers);
    let lanes = pipeline.bulk_lanes(in_flight);
    let reading = Reading {
        pipeline,
        inputs,
        options,
        shares: shares(if lanes.is_empty() { slice::from_ref(&pipeline.main) } else { &lanes }, in_flight),
        next: AtomicUsize::new(0),
        permits: &permits,
        cancel: CancelFlag::default(),
    };
    let (sender, receiver) = channel();
    std::thread::scope(|scope| {
        // However this ends, by a panic of the callback too, readers do not wait for permits any more.
        let closing = CloseOnDrop(&reading);
        let start = |_| {
            let (reading, sender) = (&reading, sender.clone());
            let reader = std::thread::Builder::new().name("im2sp-read".into());
            reader.spawn_scoped(scope, move || while reading.permits.take() && reading.one(&sender) {}).ok()
        };
        // A limit of threads leaves as many as it allows; without one, this thread reads.
        let readers: Vec<_> = (0..readers).map_while(start).collect();
        let mut sender = Some(sender).filter(|_| readers.is_empty());
        let mut result = Ok(());
        loop {
            while sender.is_some() && permits.try_take() {
                sender.take_if(|sender| !reading.one(sender));
            }
            let Ok((number, event)) = receiver.recv() else { break };
            let caption = match event {
                Event::Done(caption) => Ok(caption),
                // Every other caption would fail like this one.
                Event::Failed(error @ Error::Device { .. }) => {
                    result = Err(error);
                    break;
                }
                Event::Failed(error) => Err(error),
                Event::Units(_) | Event::Chunk(_) => continue,
            };
            permits.give();
            if on_caption(number, caption).is_break() {
                break;
            }
        }
        drop(closing);
        for reader in readers {
            // A panic is a mistake in `inputs`, whose it is.
            reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        result
    })
}

/// A lane's part of the captions.
struct Share<'a> {
    lane: &'a Lane,
    plan: Plan,
    /// Held by each of its requests, so references count them.
    stage: Arc<Stage>,
}

/// Divides the captions that are decoded together among lanes.
fn shares(lanes: &[Lane], in_flight: usize) -> Vec<Share<'_>> {
    let share = |(number, lane)| {
        let width = (in_flight + number) / lanes.len();
        let plan = Plan { width, together: usize::from(in_flight == 1), overlap: true };
        Share { lane, plan, stage: Arc::default() }
    };
    lanes.iter().enumerate().map(share).collect()
}

/// State that the reading threads share.
struct Reading<'a> {
    pipeline: &'a Pipeline,
    inputs: InputSource<'a>,
    options: &'a CaptionOptions,
    shares: Vec<Share<'a>>,
    next: AtomicUsize,
    permits: &'a Permits,
    cancel: CancelFlag,
}

impl Reading<'_> {
    /// Reads and prepares the next image and hands it to the lane with the fewest; false if there is none.
    fn one(&self, sender: &Sender<(usize, Event)>) -> bool {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let clock = Instant::now();
        let Some(input) = (self.inputs)(number) else { return false };
        let read = milliseconds(clock);
        let (sink, share) = (Sink::Numbered(number, sender.clone()), self.least_busy());
        let reply = Reply::new(sink, self.cancel.clone(), None, share.stage.clone());
        match input.and_then(|input| self.pipeline.prepare(input)) {
            Err(error) => reply.fail(error),
            Ok((input, timings)) => {
                let timings = Timings { read, ..timings };
                let (options, delivery, plan) = (*self.options, Delivery::Whole, share.plan);
                share.lane.submit(vec![Pending { input, options, delivery, timings, reply, plan }]);
            }
        }
        true
    }

    fn least_busy(&self) -> &Share<'_> {
        let requests = |&share: &usize| Arc::strong_count(&self.shares[share].stage);
        &self.shares[(0..self.shares.len()).min_by_key(requests).unwrap_or(0)]
    }
}

struct CloseOnDrop<'a, 'b>(&'a Reading<'b>);

impl Drop for CloseOnDrop<'_, '_> {
    fn drop(&mut self) {
        self.0.cancel.cancel();
        self.0.permits.close();
    }
}

/// Permits for images that are read but not yet captioned; closed when no more are wanted.
struct Permits {
    free: Mutex<Option<usize>>,
    changed: Condvar,
}

impl Permits {
    fn new(count: usize) -> Permits {
        Permits { free: Mutex::new(Some(count)), changed: Condvar::new() }
    }

    /// Waits for a permit; false when there are no more.
    fn take(&self) -> bool {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match &mut *free {
                None => return false,
                Some(0) => free = self.changed.wait(free).unwrap_or_else(PoisonError::into_inner),
                Some(count) => {
                    *count -= 1;
                    return true;
                }
            }
        }
    }

    /// Takes a permit if there is one.
    fn try_take(&self) -> bool {
        match &mut *self.free.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(count @ 1..) => {
                *count -= 1;
                true
            }
            _ => false,
        }
    }

    fn give(&self) {
        if let Some(count) = &mut *self.free.lock().unwrap_or_else(PoisonError::into_inner) {
            *count += 1;
        }
        self.changed.notify_one();
    }

    fn close(&self) {
        *self.free.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.changed.notify_all();
    }
}
