//! The vocoder thread: owns the vocoder and its stream of work, and makes sound of units, while the captioner's thread goes
//! on. A streamed caption's next chunk is made when a listener needs it; whole captions are made in between, in their order.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use super::Caption;
use super::request::{Event, Reply};
use crate::backend::Backend;
use crate::config::VocoderConfig;
use crate::error::panic_message;
use crate::model::vocoder::{Synthesis, Vocoder};
use crate::{Error, Result, trace};

/// Time by which a chunk is begun earlier than its making may take.
const SAFETY_MARGIN: Duration = Duration::from_millis(30);
/// Chunks made ahead for a caller who takes them at his own pace.
const AHEAD: usize = 2;

/// The way to the vocoder thread.
#[derive(Clone)]
pub(super) struct Queue {
    sender: Sender<Message>,
    config: Arc<VocoderConfig>,
}

pub(super) enum Message {
    Open(Box<Job>),
    /// News of the job with this number.
    Of(u64, News),
    /// Jobs may have ended.
    Wake,
}

pub(super) enum News {
    /// More units.
    Units(Vec<u32>),
    /// There are no more; the caption has everything but the sound.
    Close(Caption),
    /// A caller has taken a chunk.
    Taken,
}

impl Queue {
    pub fn new(sender: Sender<Message>, config: &VocoderConfig) -> Queue {
        Queue { sender, config: Arc::new(config.clone()) }
    }

    /// Speaks a caption, all of whose units are known, in one piece.
    pub fn whole(&self, reply: &Arc<Reply>, speaker: Option<u32>, caption: Caption) -> u64 {
        self.complete(reply, speaker, Pace::Whole(Vec::new()), caption)
    }

    /// The same in chunks that are made as they are taken; returns the job's number.
    pub fn in_chunks(&self, reply: &Arc<Reply>, speaker: Option<u32>, caption: Caption) -> u64 {
        self.complete(reply, speaker, Pace::Taken(AHEAD), caption)
    }

    fn complete(&self, reply: &Arc<Reply>, speaker: Option<u32>, pace: Pace, caption: Caption) -> u64 {
        let mut synthesis = Synthesis::whole(&self.config, speaker);
        synthesis.extend(&caption.units);
        synthesis.finish();
        self.open(reply, synthesis, pace, Some(caption))
    }

    /// Speaks a caption that is played while its units are still being chosen; returns the job's number.
    pub fn playback(&self, reply: &Arc<Reply>, speaker: Option<u32>, first_chunk: usize) -> u64 {
        let mut synthesis = Synthesis::in_chunks(&self.config, speaker);
        synthesis.limit_chunk(first_chunk);
        self.open(reply, synthesis, Pace::Playback(PlaybackClock::default()), None)
    }

    fn open(&self, reply: &Arc<Reply>, synthesis: Synthesis, pace: Pace, caption: Option<Caption>) -> u64 {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let (id, reply) = (NEXT.fetch_add(1, Ordering::Relaxed), reply.clone());
        self.send(Message::Open(Box::new(Job {
            id,
            reply,
            synthesis,
            pace,
            caption,
            starved: false,
            milliseconds: 0.0,
        })));
        id
    }

    /// News of a job.
    pub fn tell(&self, id: u64, news: News) {
        self.send(Message::Of(id, news));
    }

    /// Has the thread look for jobs that have ended.
    pub fn wake(&self) {
        self.send(Message::Wake);
    }

    /// The thread lives as long as there are queues; if a mistake ended it before, replies say so.
    fn send(&self, message: Message) {
        let _gone = self.sender.send(message);
    }
}

/// When the sound of a job is made.
enum Pace {
    /// As soon as possible, handed out in one piece.
    Whole(Vec<f32>),
    /// In time for a listener.
    Playback(PlaybackClock),
    /// So many chunks may still be made before one is taken.
    Taken(usize),
}

/// Units on their way to sound.
pub(super) struct Job {
    id: u64,
    reply: Arc<Reply>,
    synthesis: Synthesis,
    pace: Pace,
    /// There when all units are.
    caption: Option<Caption>,
    /// Nothing can be made until more units come.
    starved: bool,
    milliseconds: f64,
}

impl Job {
    /// When its next chunk is to be begun, `now` if that does not matter; `None` while it waits for something else.
    fn deadline(&self, now: Instant) -> Option<Instant> {
        match &self.pace {
            _ if self.starved => None,
            Pace::Taken(0) => None,
            // All that is left is made as soon as possible.
            Pace::Playback(clock) if self.caption.is_none() => Some(clock.deadline().unwrap_or(clock.start)),
            Pace::Playback(_) | Pace::Whole(_) | Pace::Taken(_) => Some(now),
        }
    }

    /// A listener waits for it.
    fn is_urgent(&self) -> bool {
        matches!(self.pace, Pace::Playback(_))
    }

    /// Whether somebody still waits for it. A request past its deadline fails here.
    fn is_wanted(&self) -> bool {
        self.reply.check().unwrap_or_else(|error| self.reply.fail(error));
        !self.reply.has_ended()
    }
}

/// The job whose next chunk is to be begun first, and when. A listener's turn comes before that of whole captions, which
/// keep their order.
fn next(jobs: &[Job], now: Instant) -> Option<(Instant, usize)> {
    let waiting = jobs.iter().enumerate().filter_map(|(at, job)| Some((job.deadline(now)?, !job.is_urgent(), at)));
    let first = waiting.min_by_key(|&(deadline, whole, at)| (deadline > now, whole, deadline, at));
    first.map(|(deadline, _, at)| (deadline, at))
}

/// A listener who began with the first chunk as soon as it was there, and plays it at its speed. Until more is due, units
/// gather: the fewer the chunks, the less their margins cost.
struct PlaybackClock {
    start: Instant,
    /// When the sound that was handed out will have been played; `None` before the first.
    until: Option<Instant>,
    /// How long the last chunk took to make, and lasts.
    render_time: Duration,
    seconds: f64,
}

impl Default for PlaybackClock {
    fn default() -> Self {
        PlaybackClock { start: Instant::now(), until: None, render_time: Duration::ZERO, seconds: 0.0 }
    }
}

impl PlaybackClock {
    /// Seconds of sound that can be made while what was handed out is played, by what the last chunk cost: it had a larger
    /// share of margins than the next will have.
    fn budget(&self) -> Option<f64> {
        let left = self.until?.saturating_duration_since(Instant::now());
        Some(left.as_secs_f64() * self.seconds / self.render_time.as_secs_f64().max(1e-6))
    }

    /// When the next chunk has to be begun; `None` before the first.
    fn deadline(&self) -> Option<Instant> {
        self.until?.checked_sub(2 * self.render_time + SAFETY_MARGIN)
    }

    /// Some seconds of sound, begun at `begun`, are handed out.
    fn push(&mut self, seconds: f64, begun: Instant) {
        let now = Instant::now();
        (self.render_time, self.seconds) = (now - begun, seconds);
        // Who has played all waits, and plays the next when it comes.
        let from = self.until.map_or(now, |until| until.max(now));
        self.until = Duration::try_from_secs_f64(seconds).ok().and_then(|played| from.checked_add(played));
    }
}

/// State of the vocoder thread.
pub(super) struct VocoderWorker<B: Backend> {
    pub backend: Arc<B>,
    pub vocoder: Vocoder<B>,
}

impl<B: Backend> VocoderWorker<B> {
    /// Works until the queue is closed and nothing is left that can be done.
    pub fn run(&self, queue: &Receiver<Message>) {
        let mut jobs: Vec<Job> = Vec::new();
        loop {
            queue.try_iter().for_each(|message| take_in(&mut jobs, message));
            jobs.retain(Job::is_wanted);
            let now = Instant::now();
            let received = match next(&jobs, now) {
                Some((deadline, job)) if deadline <= now => {
                    if self.advance_safely(&mut jobs[job]) {
                        jobs.remove(job);
                    } else if matches!(jobs[job].pace, Pace::Taken(_)) {
                        // As long as its chunks are taken it would come before all that follow.
                        jobs[job..].rotate_left(1);
                    }
                    continue;
                }
                Some((deadline, _)) => queue.recv_timeout(deadline - now),
                None => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match received {
                Ok(message) => take_in(&mut jobs, message),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// One chunk of a job; whether it has ended, by an error or a panic too.
    fn advance_safely(&self, job: &mut Job) -> bool {
        let advanced = catch_unwind(AssertUnwindSafe(|| self.advance(job)));
        let error = match advanced {
            Ok(Ok(ended)) => return ended,
            Ok(Err(error)) => error,
            Err(panic) => Error::internal(format!("the vocoder's thread: {}", panic_message(&*panic))),
        };
        job.reply.fail(error);
        true
    }

    fn advance(&self, job: &mut Job) -> Result<bool> {
        let config = self.vocoder.config();
        let begun = Instant::now();
        if let Pace::Playback(clock) = &job.pace
            && let Some(seconds) = clock.budget()
        {
            let frame_rate = f64::from(config.sampling_rate) / config.hop().max(1) as f64;
            job.synthesis.raise_chunk_limit((seconds * frame_rate) as usize);
        }
        let before = self.backend.record_event()?;
        let chunk = {
            let _span = trace::span("vocoder");
            self.backend.run(|| self.vocoder.next_chunk(&self.backend, &mut job.synthesis))?
        };
        let Some(chunk) = chunk else {
            job.starved = job.caption.is_none();
            return Ok(job.end());
        };
        job.milliseconds += self.backend.elapsed(&before, &self.backend.record_event()?)?;
        match &mut job.pace {
            Pace::Whole(samples) if samples.is_empty() => *samples = chunk,
            Pace::Whole(samples) => samples.extend(chunk),
            Pace::Playback(clock) => {
                clock.push(chunk.len() as f64 / f64::from(config.sampling_rate), begun);
                job.reply.send(Event::Chunk(chunk));
            }
            Pace::Taken(ahead) => {
                *ahead -= 1;
                job.reply.send(Event::Chunk(chunk));
            }
        }
        Ok(job.synthesis.is_done() && job.end())
    }
}

impl Job {
    /// Hands out the caption, if all of its units are known; then it has ended.
    fn end(&mut self) -> bool {
        let Some(mut caption) = self.caption.take() else { return false };
        if let Pace::Whole(samples) = &mut self.pace {
            caption.samples = std::mem::take(samples);
        }
        caption.timings.vocoder = self.milliseconds;
        self.reply.done(caption);
        true
    }
}

fn take_in(jobs: &mut Vec<Job>, message: Message) {
    let (id, news) = match message {
        Message::Open(job) => return jobs.push(*job),
        Message::Wake => return,
        Message::Of(id, news) => (id, news),
    };
    // A job that is gone has failed.
    let Some(job) = jobs.iter_mut().find(|job| job.id == id) else { return };
    job.starved = false;
    match (news, &mut job.pace) {
        (News::Units(units), _) => job.synthesis.extend(&units),
        (News::Close(caption), _) => {
            job.synthesis.finish();
            job.caption = Some(caption);
        }
        (News::Taken, Pace::Taken(ahead)) => *ahead += 1,
        (News::Taken, _) => {}
    }
}
