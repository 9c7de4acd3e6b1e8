//! The three models on one backend, and the path through them.

use std::time::Instant;

use super::{Caption, CaptionOptions, Captioner, DeviceMemory, Progress, Speech, Timings};
use crate::backend::Backend;
use crate::generate::{self, Compat, GenerateOptions, Generated};
use crate::image::Image;
use crate::model::config::ModelConfig;
use crate::model::decoder::Decoder;
use crate::model::layer::Loader;
use crate::model::vision::Vision;
use crate::model::vocoder::{Vocoder, Voice};
use crate::tensor::DType;
use crate::units;
use crate::weights::directory::ModelFiles;
use crate::{Error, Result, trace};

/// The models on a backend.
pub(super) struct Model<B: Backend> {
    backend: B,
    vision: Vision<B>,
    decoder: Decoder<B>,
    vocoder: Option<Vocoder<B>>,
}

impl<B: Backend> Captioner for Model<B> {
    fn device(&self) -> String {
        self.backend.describe()
    }

    fn memory(&self) -> Option<DeviceMemory> {
        self.backend.memory().map(|(allocations, high_water)| DeviceMemory { allocations, high_water })
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

    fn speak(&self, units: &[u32], speaker: Option<u32>) -> Result<Speech> {
        Model::speak(self, units, speaker)
    }
}

/// A device with one stream of work: callers wait for their turn.
#[cfg(any(feature = "cuda", feature = "emulator"))]
impl<C: Captioner> Captioner for std::sync::Mutex<C> {
    fn device(&self) -> String {
        turn(self).device()
    }

    fn memory(&self) -> Option<DeviceMemory> {
        turn(self).memory()
    }

    fn caption(
        &self,
        config: &ModelConfig,
        images: &[&Image],
        options: &CaptionOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<Caption>> {
        turn(self).caption(config, images, options, progress)
    }

    fn speak(&self, units: &[u32], speaker: Option<u32>) -> Result<Speech> {
        turn(self).speak(units, speaker)
    }
}

/// A caller that panicked has left nothing behind that the next would see.
#[cfg(any(feature = "cuda", feature = "emulator"))]
fn turn<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl<B: Backend> Model<B> {
    pub(super) fn load(backend: B, files: &mut ModelFiles, dtype: Option<DType>) -> Result<Model<B>> {
        let mut loader = Loader { backend: &backend, store: &mut files.captioner, dtype };
        let vision = Vision::load(&mut loader, &files.config)?;
        let decoder = Decoder::load(&mut loader, &files.config.decoder)?;
        let vocoder = match (&files.config.vocoder, &mut files.vocoder) {
            (Some(config), Some(store)) => {
                Some(Vocoder::load(&mut Loader { backend: &backend, store, dtype }, config)?)
            }
            _ => None,
        };
        Ok(Model { backend, vision, decoder, vocoder })
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
        // Said before the work, not after it.
        if !options.no_audio {
            self.vocoder()?;
        }
        options.generate.check(config.decoder.vocabulary)?;
        let mut timings = vec![Timings::default(); images.len()];
        let mut pixels = Vec::new();
        for (image, timings) in images.iter().zip(&mut timings) {
            let clock = Instant::now();
            pixels.extend(image.preprocess(&config.image));
            timings.preprocess = milliseconds(clock);
        }
        let generated = self.generate(&pixels, images.len(), &options.generate, &mut timings, progress)?;
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

    /// Pixels (B, 3, side, side) to tokens, filling in the batch's timings.
    fn generate(
        &self,
        pixels: &[f32],
        batch: usize,
        options: &GenerateOptions,
        timings: &mut [Timings],
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<Generated>> {
        progress(Progress::Vision);
        let (clock, span) = (Instant::now(), trace::span("vision"));
        let tokens = self.vision.tokens(&self.backend, pixels, batch)?;
        drop(span);
        let vision = milliseconds(clock);

        progress(Progress::Prefill);
        let (clock, span) = (Instant::now(), trace::span("prefill"));
        let limit = options.limit(&self.decoder);
        let mut cache = self.decoder.prefill(&self.backend, &tokens, batch, limit)?;
        drop(span);
        let prefill = milliseconds(clock);

        let (clock, span) = (Instant::now(), trace::span("decode"));
        let mut steps = 0;
        let mut told = |length: usize| {
            steps += 1;
            progress(Progress::Decode(length, limit));
        };
        let generated = generate::generate(&self.backend, &self.decoder, &mut cache, batch, options, &mut told)?;
        drop(span);
        let decode = milliseconds(clock);
        for t in timings {
            *t = Timings { vision, prefill, decode, per_unit: decode / f64::from(steps.max(1)), ..*t };
        }
        Ok(generated)
    }

    fn spoken(&self, generated: Generated, mut timings: Timings, options: &CaptionOptions) -> Result<Caption> {
        let row = &generated.tokens[1..];
        let units = match options.generate.compat {
            Compat::Current => units::spoken(row),
            Compat::Reference => units::reference_spoken(row),
        };
        let (clock, _span) = (Instant::now(), trace::span("vocoder"));
        let speech = if options.no_audio || units.is_empty() {
            Speech { samples: Vec::new(), sample_rate: self.vocoder.as_ref().map_or(0, |v| v.config().sampling_rate) }
        } else {
            self.speak(&units, options.speaker)?
        };
        timings.vocoder = milliseconds(clock);
        let Speech { samples, sample_rate } = speech;
        Ok(Caption { tokens: generated.tokens, units, samples, sample_rate, timings })
    }

    fn vocoder(&self) -> Result<&Vocoder<B>> {
        self.vocoder.as_ref().ok_or_else(|| Error::Units {
            problem: "this model has no vocoder: convert it again with --vocoder, or ask for units only (--no-audio)"
                .into(),
        })
    }

    fn speak(&self, units: &[u32], speaker: Option<u32>) -> Result<Speech> {
        let vocoder = self.vocoder()?;
        let units = units::deduplicated(units);
        let most = vocoder.config().num_embeddings;
        if let Some(unit) = units.iter().find(|&&unit| unit as usize >= most) {
            let problem = format!("unit {unit} is out of range: this vocoder knows 0 to {}", most - 1);
            return Err(Error::Units { problem });
        }
        let durations = vocoder.durations(&self.backend, &units)?;
        let voice = Voice { speaker, pitch: None };
        let samples = vocoder.synthesize(&self.backend, &units, &durations, voice)?;
        Ok(Speech { samples, sample_rate: vocoder.config().sampling_rate })
    }
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
