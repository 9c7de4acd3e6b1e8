//! Sound that is handed out while it is being made: of a caption, and of a list of units.

use std::sync::Arc;

use super::pipeline::Pipeline;
use super::request::{Delivery, Event, Events, Request};
use super::{AudioChunk, CaptionOptions};
use crate::image::Image;
use crate::{Error, Result};

/// Most frames of the first chunk, which a listener waits for.
const FIRST_CHUNK: usize = 8;

/// The chunks of a caption's sound, in their order, and at most one error, which ends them. A caption without units has no
/// chunks. Dropping the stream ends the work for it.
pub struct CaptionStream {
    events: Events,
    sample_rate: u32,
    tokens: Vec<u32>,
    units: Vec<u32>,
}

impl CaptionStream {
    pub(super) fn new(pipeline: &Arc<Pipeline>, image: &Image, options: &CaptionOptions) -> CaptionStream {
        CaptionStream::with_first_chunk(pipeline, image, options, FIRST_CHUNK)
    }

    pub(super) fn with_first_chunk(
        pipeline: &Arc<Pipeline>,
        image: &Image,
        options: &CaptionOptions,
        first_chunk: usize,
    ) -> CaptionStream {
        let delivery = Delivery::Streamed { first_chunk };
        let request = |input| Request { input, options: *options, delivery, deadline: None };
        let events = if options.no_audio {
            let problem = "a stream is sound: ask for a caption if only its units are wanted".into();
            Events::failed(pipeline, Error::Option { option: "no-audio", problem })
        } else {
            match pipeline.preprocess(image) {
                Ok((input, _)) => pipeline.request(request(input.into())),
                Err(error) => Events::failed(pipeline, error),
            }
        };
        let sample_rate = pipeline.config.vocoder.as_ref().map_or(0, |vocoder| vocoder.sampling_rate);
        CaptionStream { events, sample_rate, tokens: Vec::new(), units: Vec::new() }
    }

    /// Samples per second; 0 for a model without a vocoder.
    pub fn sample_rate(&self) -> u32 {
        self.sample_rate
    }

    /// Tokens of the decoder, BOS and EOS included: all of them after the last chunk, none before.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The speech units that are known so far.
    pub fn units(&self) -> &[u32] {
        &self.units
    }
}

impl Iterator for CaptionStream {
    type Item = Result<AudioChunk>;

    fn next(&mut self) -> Option<Result<AudioChunk>> {
        loop {
            match self.events.next()? {
                Event::Units(units) => self.units.extend(units),
                Event::Chunk(samples) => return Some(Ok(AudioChunk { samples, sample_rate: self.sample_rate })),
                Event::Done(caption) => {
                    self.tokens = caption.tokens;
                    return None;
                }
                Event::Failed(error) => return Some(Err(error)),
            }
        }
    }
}

/// The chunks of spoken units, each made shortly before it is taken, so memory does not grow with the length.
pub struct SpeechStream {
    events: Events,
    job: u64,
    pipeline: Arc<Pipeline>,
    sample_rate: u32,
}

impl SpeechStream {
    pub(super) fn new(pipeline: &Arc<Pipeline>, units: &[u32], speaker: Option<u32>) -> Result<SpeechStream> {
        let (events, job) = pipeline.speak(units, speaker, true)?;
        let sample_rate = pipeline.config.vocoder.as_ref().map_or(0, |vocoder| vocoder.sampling_rate);
        Ok(SpeechStream { events, job, pipeline: pipeline.clone(), sample_rate })
    }

    /// Samples per second.
    pub fn sample_rate(&self) -> u32 {
        self.sample_rate
    }
}

impl Iterator for SpeechStream {
    type Item = Result<AudioChunk>;

    fn next(&mut self) -> Option<Result<AudioChunk>> {
        loop {
            match self.events.next()? {
                Event::Chunk(samples) => {
                    self.pipeline.taken(self.job);
                    return Some(Ok(AudioChunk { samples, sample_rate: self.sample_rate }));
                }
                Event::Failed(error) => return Some(Err(error)),
                Event::Units(_) | Event::Done(_) => {}
            }
        }
    }
}
