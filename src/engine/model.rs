//! The three models on a device, and the path through them.

use std::ops::ControlFlow;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use super::many::Prepared;
use super::stream;
use super::turns::Turns;
use super::{Caption, CaptionOptions, Captioner, DeviceMemory, Heard, Progress, Speech, Timings};
use crate::backend::{Backend, Occupancy};
use crate::config::ModelConfig;
use crate::generate::{self, GenerateOptions, Generated, Told};
use crate::image::Image;
use crate::model::decoder::Decoder;
use crate::model::loader::Loader;
use crate::model::vision::Vision;
use crate::model::vocoder::{Utterance, Vocoder};
use crate::tensor::DType;
use crate::weights::directory::ModelFiles;
use crate::{Error, Result, trace};

/// What [`Model::generate`] is at.
enum Step<'a> {
    Stage(Progress),
    Told(Told<'a>),
}

/// The models. What makes units and what speaks them have backends of their own, so that each goes on beside the other. Who
/// has the vocoder's turn never asks for the other.
pub(super) struct Model<B: Backend> {
    /// Of `vision` and `decoder`.
    pub(super) backend: Turns<B>,
    pub(super) vision: Vision<B>,
    pub(super) decoder: Decoder<B>,
    speaker: Option<Speaker<B>>,
}

/// The vocoder and its backend.
struct Speaker<B: Backend> {
    backend: Turns<B>,
    vocoder: Vocoder<B>,
}

impl<B: Backend> Captioner for Model<B> {
    fn device(&self) -> String {
        self.backend.describe()
    }

    fn memory(&self) -> Option<DeviceMemory> {
        let made = self.backend.memory()?;
        let spoken = self.speaker.as_ref().and_then(|speaker| speaker.backend.memory());
        Some(spoken.map_or(made, |spoken| DeviceMemory {
            allocations: made.allocations + spoken.allocations,
            high_water: made.high_water + spoken.high_water,
        }))
    }

    fn caption(
        &self,
        config: &ModelConfig,
        images: &[&Image],
        options: &CaptionOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<Caption>> {
        Model::caption(self, config, images, options, progress)
    }

    fn caption_many(
        &self,
        config: &ModelConfig,
        pictures: Receiver<Prepared>,
        options: &CaptionOptions,
        in_flight: usize,
        heard: Heard<'_>,
    ) -> Result<()> {
        Model::caption_many(self, config, pictures, options, in_flight, heard)
    }

    fn tokens(
        &self,
        pixels: &[f32],
        options: &GenerateOptions,
        told: &mut dyn FnMut(&[u32]) -> ControlFlow<()>,
    ) -> Result<Vec<u32>> {
        let mut told = |step: Step<'_>| match step {
            Step::Stage(_) => told(&[]),
            Step::Told(step) => told(step.settled),
        };
        let mut timings = [Timings::default()];
        let generated = self.generate(pixels, options, Occupancy::Shared, &mut timings, &mut told)?;
        Ok(generated.into_iter().next().map_or_else(Vec::new, |generated| generated.tokens))
    }

    fn advance(&self, utterance: &mut Utterance) -> Result<Option<Vec<f32>>> {
        let Speaker { backend, vocoder } = self.speaker()?;
        let (backend, _span) = (backend.take(), trace::span("vocoder"));
        vocoder.advance(&backend, utterance)
    }

    fn speak(&self, units: &[u32], speaker: Option<u32>) -> Result<Speech> {
        Model::speak(self, units, speaker)
    }
}

impl<B: Backend> Model<B> {
    pub(super) fn load(backend: B, files: &mut ModelFiles, dtype: Option<DType>) -> Result<Model<B>> {
        let mut loader = Loader { backend: &backend, store: &mut files.captioner, dtype };
        let vision = Vision::load(&mut loader, &files.config)?;
        let decoder = Decoder::load(&mut loader, &files.config.decoder)?;
        let speaker = match (&files.config.vocoder, &mut files.vocoder) {
            (Some(config), Some(store)) => {
                let backend = backend.new_stream()?;
                let vocoder = Vocoder::load(&mut Loader { backend: &backend, store, dtype }, config)?;
                Some(Speaker { backend: Turns::new(backend), vocoder })
            }
            _ => None,
        };
        Ok(Model { backend: Turns::new(backend), vision, decoder, speaker })
    }

    fn caption(
        &self,
        config: &ModelConfig,
        images: &[&Image],
        options: &CaptionOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<Caption>> {
        if images.is_empty() {
            return Ok(Vec::new());
        }
        self.check(config, options)?;
        let mut timings = vec![Timings::default(); images.len()];
        let mut pixels = Vec::new();
        for (image, timings) in images.iter().zip(&mut timings) {
            let clock = Instant::now();
            pixels.extend(image.preprocess(&config.image));
            timings.preprocess = milliseconds(clock);
        }
        let limit = options.generate.limit(&self.decoder);
        let mut told = |step: Step<'_>| {
            progress(match step {
                Step::Stage(stage) => stage,
                Step::Told(step) => Progress::Decode(step.length, limit),
            });
            ControlFlow::Continue(())
        };
        let generated = self.generate(&pixels, &options.generate, Occupancy::Whole, &mut timings, &mut told)?;
        let count = generated.len();
        generated
            .into_iter()
            .zip(timings)
            .enumerate()
            .map(|(index, (generated, timings))| {
                progress(Progress::Vocoder(index, count));
                self.spoken(generated, timings, options)
            })
            .collect()
    }

    /// What can be refused before the work.
    pub(super) fn check(&self, config: &ModelConfig, options: &CaptionOptions) -> Result<()> {
        if !options.no_audio {
            self.speaker()?;
        }
        options.generate.check(config.decoder.vocabulary)
    }

    /// Pixels (B, 3, side, side) to tokens, filling in the timings of all B. `told` may end it, and with it the result.
    fn generate(
        &self,
        pixels: &[f32],
        options: &GenerateOptions,
        occupancy: Occupancy,
        timings: &mut [Timings],
        told: &mut dyn FnMut(Step<'_>) -> ControlFlow<()>,
    ) -> Result<Vec<Generated>> {
        let (turn, batch) = (self.backend.take(), timings.len());
        let backend: &B = &turn;
        if told(Step::Stage(Progress::Vision)).is_break() {
            return Ok(Vec::new());
        }
        let (clock, span) = (Instant::now(), trace::span("vision"));
        let tokens = self.vision.tokens(backend, pixels, batch)?;
        drop(span);
        let vision = milliseconds(clock);

        if told(Step::Stage(Progress::Prefill)).is_break() {
            return Ok(Vec::new());
        }
        let (clock, span) = (Instant::now(), trace::span("prefill"));
        let limit = options.limit(&self.decoder);
        let cache = self.decoder.prefill(backend, &tokens, batch, limit)?;
        drop(span);
        let prefill = milliseconds(clock);

        let (clock, span) = (Instant::now(), trace::span("decode"));
        let mut longest = 1;
        let mut heard = |step: Told<'_>| {
            longest = longest.max(step.length);
            told(Step::Told(step))
        };
        let generated = generate::generate(backend, &self.decoder, cache, batch, options, occupancy, &mut heard)?;
        drop(span);
        let decode = milliseconds(clock);
        for t in timings {
            *t = Timings { vision, prefill, decode, per_unit: decode / (longest - 1).max(1) as f64, ..*t };
        }
        Ok(generated)
    }

    /// What was generated, as sound.
    pub(super) fn spoken(
        &self,
        generated: Generated,
        mut timings: Timings,
        options: &CaptionOptions,
    ) -> Result<Caption> {
        let units = stream::spoken(&generated.tokens, options.generate.compat);
        let (clock, _span) = (Instant::now(), trace::span("vocoder"));
        let speech = if options.no_audio || units.is_empty() {
            Speech {
                samples: Vec::new(),
                sample_rate: self.speaker.as_ref().map_or(0, |s| s.vocoder.config().sampling_rate),
            }
        } else {
            self.speak(&units, options.speaker)?
        };
        timings.vocoder = milliseconds(clock);
        let Speech { samples, sample_rate } = speech;
        Ok(Caption { tokens: generated.tokens, units, samples, sample_rate, timings })
    }

    fn speaker(&self) -> Result<&Speaker<B>> {
        self.speaker.as_ref().ok_or_else(no_vocoder)
    }

    fn speak(&self, units: &[u32], speaker: Option<u32>) -> Result<Speech> {
        let Speaker { backend, vocoder } = self.speaker()?;
        let mut utterance = Utterance::whole(speaker);
        units.iter().for_each(|&unit| utterance.push(unit));
        utterance.finish();
        let nothing = || Error::Units { problem: "there are none: nothing can be spoken".into() };
        let samples = vocoder.advance(&backend.take(), &mut utterance)?.ok_or_else(nothing)?;
        Ok(Speech { samples, sample_rate: vocoder.config().sampling_rate })
    }
}

/// What a model is told that was converted without a vocoder.
pub(super) fn no_vocoder() -> Error {
    let problem = "this model has no vocoder: convert it again with --vocoder, or ask for units only (--no-audio)";
    Error::Units { problem: problem.into() }
}

pub(super) fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
