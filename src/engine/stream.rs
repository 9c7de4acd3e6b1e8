//! A caption that is heard while it is being made. One thread decodes and tells units as they become certain; whoever
//! asks for the next chunk makes the sound of those that are known. Dropping the stream ends the decoding.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{CaptionOptions, Captioner};
use crate::config::ModelConfig;
use crate::generate::{Compat, GenerateOptions};
use crate::image::Image;
use crate::model::vocoder::Utterance;
use crate::units;
use crate::{Error, Result};

/// What the next chunk is begun early by, beside the time that it may take.
const SPARE: Duration = Duration::from_millis(30);

/// The next piece of a spoken caption.
#[derive(Clone, Debug, PartialEq)]
pub struct AudioChunk {
    /// Sound in -1..1, mono.
    pub samples: Vec<f32>,
    /// Samples per second.
    pub sample_rate: u32,
}

/// What [`super::Engine::stream`] hands out: chunks in their order, and at most one error, which ends them. A caption
/// without units has no chunks.
pub struct CaptionStream {
    model: Arc<dyn Captioner>,
    utterance: Utterance,
    sample_rate: u32,
    /// Frames of the vocoder a second.
    frame_rate: f64,
    tokens: Vec<u32>,
    units: Vec<u32>,
    /// `None` after the end.
    decoding: Option<Decoding>,
    playing: Playing,
    refused: Option<Error>,
}

/// A listener who began with the first chunk as soon as it was there, and plays it at its speed. Until more is due, units
/// gather: the fewer the chunks, the less their margins cost.
#[derive(Default)]
struct Playing {
    /// When the sound that was handed out will have been played; `None` before the first.
    until: Option<Instant>,
    /// How long the last chunk took, and lasts.
    effort: Duration,
    seconds: f64,
}

/// The decoding thread, and what it tells.
struct Decoding {
    heard: Option<Receiver<Heard>>,
    thread: Option<JoinHandle<()>>,
}

enum Heard {
    /// More units.
    Units(Vec<u32>),
    /// All tokens, after the last units, or what went wrong.
    End(Result<Vec<u32>>),
}

/// What tokens, BOS included, say.
pub(super) fn spoken(tokens: &[u32], compat: Compat) -> Vec<u32> {
    let row = tokens.get(1..).unwrap_or_default();
    match compat {
        Compat::Current => units::spoken(row),
        Compat::Reference => units::reference_spoken(row),
    }
}

/// The units that tokens which go on with these will begin with, whatever comes after them.
fn settled(tokens: &[u32], compat: Compat) -> Vec<u32> {
    let row = tokens.get(1..).unwrap_or_default();
    match compat {
        Compat::Current => units::spoken(row),
        // The reference's truncation changes the last of all tokens, which may be the last of these.
        Compat::Reference => units::spoken(row.split_last().map_or(&[], |(_, before)| before)),
    }
}

impl CaptionStream {
    pub(super) fn new(
        model: Arc<dyn Captioner>,
        config: &ModelConfig,
        image: &Image,
        options: &CaptionOptions,
    ) -> CaptionStream {
        let utterance = Utterance::in_chunks(options.speaker);
        let sample_rate = config.vocoder.as_ref().map_or(0, |vocoder| vocoder.sampling_rate);
        let hop = config.vocoder.as_ref().map_or(1, |vocoder| vocoder.hop().max(1));
        let frame_rate = f64::from(sample_rate) / hop as f64;
        let started = check(config, options).and_then(|()| {
            let pixels = image.preprocess(&config.image);
            Decoding::start(model.clone(), pixels, options.generate, config.decoder.max_positions)
        });
        let (decoding, refused) = match started {
            Ok(decoding) => (Some(decoding), None),
            Err(error) => (None, Some(error)),
        };
        let playing = Playing::default();
        CaptionStream {
            model,
            utterance,
            sample_rate,
            frame_rate,
            tokens: Vec::new(),
            units: Vec::new(),
            decoding,
            playing,
            refused,
        }
    }

    /// Samples per second; 0 for a model without a vocoder.
    pub fn sample_rate(&self) -> u32 {
        self.sample_rate
    }

    /// What the decoder emitted, BOS and EOS included: all of it after the last chunk, nothing before.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The speech units that are known so far.
    pub fn units(&self) -> &[u32] {
        &self.units
    }

    /// The first chunk has at most this many frames of the vocoder, and each later one at least up to twice as many as the one
    /// before. Changes when chunks come, and nothing about their samples.
    #[must_use]
    pub fn first_chunk(mut self, frames: usize) -> CaptionStream {
        self.utterance.next_chunk(frames);
        self
    }

    /// Takes in what the decoder told: waits for something, but not beyond `until`, and leaves nothing waiting.
    fn listen(&mut self, until: Option<Instant>) -> Result<()> {
        let Some(decoding) = &mut self.decoding else { return Ok(()) };
        let Some(mut next) = decoding.wait(until) else { return Ok(()) };
        loop {
            match next {
                Heard::Units(units) => {
                    units.iter().for_each(|&unit| self.utterance.push(unit));
                    self.units.extend(units);
                }
                Heard::End(tokens) => {
                    self.tokens = tokens?;
                    self.utterance.finish();
                    self.decoding = None;
                    return Ok(());
                }
            }
            match decoding.more() {
                Some(more) => next = more,
                None => return Ok(()),
            }
        }
    }

    fn chunk(&mut self) -> Result<Option<Vec<f32>>> {
        loop {
            let clock = Instant::now();
            let due = self.playing.due().filter(|&due| due > clock && self.decoding.is_some());
            if due.is_none() {
                if let Some(frames) = self.playing.room().map(|seconds| (seconds * self.frame_rate) as usize) {
                    self.utterance.at_most(frames);
                }
                if let Some(samples) = self.model.advance(&mut self.utterance)? {
                    self.playing.more(samples.len() as f64 / f64::from(self.sample_rate), clock);
                    return Ok(Some(samples));
                }
                if self.decoding.is_none() {
                    return Ok(None);
                }
            }
            self.listen(due)?;
        }
    }
}

impl Playing {
    /// Seconds of sound that can be made while what was handed out is played, by what the last chunk cost: it had a larger
    /// share of margins than the next will have.
    fn room(&self) -> Option<f64> {
        let left = self.until?.saturating_duration_since(Instant::now());
        Some(left.as_secs_f64() * self.seconds / self.effort.as_secs_f64().max(1e-6))
    }

    /// When the next chunk has to be begun.
    fn due(&self) -> Option<Instant> {
        self.until?.checked_sub(2 * self.effort + SPARE)
    }

    /// Some seconds of sound, begun at `clock`, are handed out.
    fn more(&mut self, seconds: f64, clock: Instant) {
        let now = Instant::now();
        (self.effort, self.seconds) = (now - clock, seconds);
        // One who has played all waits, and goes on at once.
        let from = self.until.map_or(now, |until| until.max(now));
        self.until = Duration::try_from_secs_f64(seconds).ok().and_then(|played| from.checked_add(played));
    }
}

impl Iterator for CaptionStream {
    type Item = Result<AudioChunk>;

    fn next(&mut self) -> Option<Result<AudioChunk>> {
        if let Some(error) = self.refused.take() {
            return Some(Err(error));
        }
        if self.sample_rate == 0 {
            return None;
        }
        match self.chunk() {
            Ok(samples) => samples.map(|samples| Ok(AudioChunk { samples, sample_rate: self.sample_rate })),
            Err(error) => {
                // Nothing comes after an error.
                self.decoding = None;
                self.utterance = Utterance::whole(None);
                Some(Err(error))
            }
        }
    }
}

/// What can be refused before any work.
fn check(config: &ModelConfig, options: &CaptionOptions) -> Result<()> {
    if options.no_audio {
        let problem = "a stream is sound: ask for a caption if only its units are wanted".into();
        return Err(Error::Option { option: "no-audio", problem });
    }
    if config.vocoder.is_none() {
        return Err(super::model::no_vocoder());
    }
    options.generate.check(config.decoder.vocabulary)
}

impl Decoding {
    fn start(
        model: Arc<dyn Captioner>,
        pixels: Vec<f32>,
        options: GenerateOptions,
        max_positions: usize,
    ) -> Result<Decoding> {
        // Room for every message (two stages, every token, the rest of the units, the end): a decoder never waits for its
        // listener, while others wait for the backend that it holds.
        let (tell, heard) = sync_channel(options.max_length.min(max_positions) + 4);
        let thread = std::thread::Builder::new()
            .name("im2sp-decode".into())
            .spawn(move || decode(&*model, &pixels, &options, &tell))
            .map_err(|error| Error::Device {
                device: "cpu".into(),
                problem: format!("no thread to decode: {error}"),
            })?;
        Ok(Decoding { heard: Some(heard), thread: Some(thread) })
    }

    /// The next message; `None` if there is none before `until`.
    fn wait(&mut self, until: Option<Instant>) -> Option<Heard> {
        let message = match (&self.heard, until) {
            (None, _) => Err(RecvTimeoutError::Disconnected),
            (Some(heard), None) => heard.recv().map_err(RecvTimeoutError::from),
            (Some(heard), Some(until)) => heard.recv_timeout(until.saturating_duration_since(Instant::now())),
        };
        match message {
            Ok(message) => Some(message),
            Err(RecvTimeoutError::Timeout) => None,
            // Without a last message the thread has panicked: a mistake of this crate, which belongs to the caller.
            Err(RecvTimeoutError::Disconnected) => match self.thread.take().map(JoinHandle::join) {
                Some(Err(panic)) => std::panic::resume_unwind(panic),
                _ => Some(Heard::End(Ok(Vec::new()))),
            },
        }
    }

    /// The next message, if it is there.
    fn more(&self) -> Option<Heard> {
        self.heard.as_ref().and_then(|heard| heard.try_recv().ok())
    }
}

impl Drop for Decoding {
    fn drop(&mut self) {
        // The decoder notices at its next step that nobody listens.
        self.heard = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The decoding thread.
fn decode(model: &dyn Captioner, pixels: &[f32], options: &GenerateOptions, tell: &SyncSender<Heard>) {
    let mut sent = 0;
    let mut send = |units: Vec<u32>| {
        let more = units.get(sent..).unwrap_or_default().to_vec();
        sent += more.len();
        // An empty message asks whether anybody listens.
        match tell.send(Heard::Units(more)) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    };
    let result = model.tokens(pixels, options, &mut |tokens| send(settled(tokens, options.compat)));
    if let Ok(tokens) = &result {
        let _ = send(spoken(tokens, options.compat));
    }
    let _ = tell.send(Heard::End(result));
}
