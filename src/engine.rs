//! The whole path from a picture to sound, as one function: [`Engine::caption`]. The command line, the service, the
//! evaluation and the benches call it; none has a path of its own.

use std::path::Path;
use std::str::FromStr;
use std::time::Instant;

use crate::backend::Backend;
use crate::backend::cpu::Cpu;
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
use crate::{Error, Result};

/// Where the models run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// A usable GPU if there is one, else the CPU.
    #[default]
    Auto,
    /// The host processor.
    Cpu,
    /// The GPU of this index.
    Cuda(usize),
}

impl FromStr for Device {
    type Err = String;

    /// `auto`, `cpu`, `cuda` or `cuda:N`.
    fn from_str(text: &str) -> std::result::Result<Device, String> {
        match text {
            "auto" => Ok(Device::Auto),
            "cpu" => Ok(Device::Cpu),
            "cuda" => Ok(Device::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|index| index.parse().ok())
                .map(Device::Cuda)
                .ok_or_else(|| "expected auto, cpu, cuda or cuda:N".to_string()),
        }
    }
}

/// How a model is loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// Where it is to run.
    pub device: Device,
    /// Type of the weight matrices in memory; `None` leaves them as stored. Sums are always f32.
    pub dtype: Option<DType>,
}

/// How a picture is captioned.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CaptionOptions {
    /// How tokens are chosen.
    pub generate: GenerateOptions,
    /// Speaker of a multi-speaker vocoder.
    pub speaker: Option<u32>,
    /// Stop at the units: leaves [`Caption::samples`] empty.
    pub no_audio: bool,
}

/// A spoken caption.
#[derive(Clone, Debug, PartialEq)]
pub struct Caption {
    /// What the decoder emitted, BOS and EOS included.
    pub tokens: Vec<u32>,
    /// The speech units in them.
    pub units: Vec<u32>,
    /// Sound in -1..1, mono.
    pub samples: Vec<f32>,
    /// Samples per second; 0 without sound.
    pub sample_rate: u32,
    /// How long each stage took.
    pub timings: Timings,
}

/// Spoken units.
#[derive(Clone, Debug, PartialEq)]
pub struct Speech {
    /// Sound in -1..1, mono.
    pub samples: Vec<f32>,
    /// Samples per second.
    pub sample_rate: u32,
}

/// Milliseconds spent in each stage. Stages that handle a batch at once report the whole batch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timings {
    /// Resizing, cropping and normalising this picture.
    pub preprocess: f64,
    /// The vision transformer and the projection, whole batch.
    pub vision: f64,
    /// The decoder over the image tokens, whole batch.
    pub prefill: f64,
    /// All decode steps, whole batch.
    pub decode: f64,
    /// One decode step of the batch, on average.
    pub per_unit: f64,
    /// The vocoder on this caption.
    pub vocoder: f64,
}

/// What a caption is at, for progress bars.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Pictures are in the vision transformer.
    Vision,
    /// Image tokens are in the decoder.
    Prefill,
    /// The longest sequence of the batch has this many tokens of at most so many.
    Decode(usize, usize),
    /// This many captions of so many have been spoken.
    Vocoder(usize, usize),
}

/// A loaded model on a device.
pub struct Engine {
    model: Model<Cpu>,
    config: ModelConfig,
    dtype: &'static str,
}

/// The models on a backend.
struct Model<B: Backend> {
    backend: B,
    vision: Vision<B>,
    decoder: Decoder<B>,
    vocoder: Option<Vocoder<B>>,
}

impl Engine {
    /// Loads a model directory made by `im2sp convert`.
    ///
    /// # Errors
    /// If a file is missing or malformed, a tensor is missing, superfluous or of another shape than `config.json` says,
    /// or the device cannot be used.
    pub fn load(directory: impl AsRef<Path>, device: Device) -> Result<Engine> {
        Engine::load_with(directory, LoadOptions { device, dtype: None })
    }

    /// As [`Engine::load`], with every option.
    pub fn load_with(directory: impl AsRef<Path>, options: LoadOptions) -> Result<Engine> {
        Engine::new(ModelFiles::open(directory.as_ref())?, options)
    }

    /// The model that is compiled into this crate. It describes drawn scenes of coloured shapes and nothing else.
    ///
    /// ```
    /// # fn main() -> im2sp::Result<()> {
    /// let engine = im2sp::Engine::embedded()?;
    /// let picture = im2sp::Image::open("assets/scene.png")?;
    /// let caption = engine.caption(&picture, &im2sp::CaptionOptions::default())?;
    /// assert_eq!(caption.sample_rate, 16_000);
    /// assert!(caption.samples.len() > 16_000, "more than a second of speech");
    /// let wav = im2sp::audio::wav_bytes(&caption.samples, caption.sample_rate)?;
    /// assert_eq!(&wav[..4], b"RIFF");
    /// # Ok(())
    /// # }
    /// ```
    pub fn embedded() -> Result<Engine> {
        Engine::embedded_with(LoadOptions::default())
    }

    /// As [`Engine::embedded`], with every option.
    pub fn embedded_with(options: LoadOptions) -> Result<Engine> {
        Engine::new(crate::weights::embedded::files()?, options)
    }

    fn new(mut files: ModelFiles, options: LoadOptions) -> Result<Engine> {
        if let Device::Cuda(index) = options.device {
            return Err(Error::Device {
                device: format!("cuda:{index}"),
                problem: "this version of im2sp runs on the CPU only: use --device cpu or auto".into(),
            });
        }
        let stored = files.captioner.iter().find(|(name, _)| *name == "decoder.word_embedding");
        let dtype = match options.dtype.or(stored.map(|(_, tensor)| tensor.dtype())) {
            Some(DType::BF16) => "bf16",
            _ => "f32",
        };
        let model = Model::load(Cpu, &mut files, options.dtype)?;
        files.captioner.finish()?;
        files.vocoder.map_or(Ok(()), |store| store.finish())?;
        Ok(Engine { model, config: files.config, dtype })
    }

    /// The model's dimensions and origin.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The device in use, in words.
    pub fn device(&self) -> String {
        self.model.backend.describe()
    }

    /// Type of the weight matrices in use: "f32" or "bf16".
    pub fn dtype(&self) -> &'static str {
        self.dtype
    }

    /// Captions one picture.
    ///
    /// # Errors
    /// If an option does not fit the model, or the weights are damaged.
    pub fn caption(&self, image: &Image, options: &CaptionOptions) -> Result<Caption> {
        let mut captions = self.caption_batch(&[image], options, &mut |_| {})?;
        captions.pop().ok_or_else(|| Error::shape("caption", "no caption was made"))
    }

    /// Captions several pictures in one batch, in their order. Each caption is what its picture alone would get.
    pub fn caption_batch(
        &self,
        images: &[&Image],
        options: &CaptionOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<Caption>> {
        self.model.caption(&self.config, images, options, progress)
    }

    /// Speaks units. Consecutive duplicates are spoken once, as the vocoder was trained.
    ///
    /// # Errors
    /// If there are no units, one is out of range, or the model has no vocoder.
    pub fn speak(&self, units: &[u32], speaker: Option<u32>) -> Result<Speech> {
        self.model.speak(units, speaker)
    }
}

impl<B: Backend> Model<B> {
    fn load(backend: B, files: &mut ModelFiles, dtype: Option<DType>) -> Result<Model<B>> {
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
        let clock = Instant::now();
        let encoded = self.vision.encode(&self.backend, pixels, batch)?;
        let tokens = self.vision.project(&self.backend, &encoded)?;
        let vision = milliseconds(clock);

        progress(Progress::Prefill);
        let clock = Instant::now();
        let limit = options.limit(&self.decoder);
        let mut cache = self.decoder.prefill(&self.backend, &tokens, batch, limit)?;
        let prefill = milliseconds(clock);

        let clock = Instant::now();
        let mut steps = 0;
        let mut told = |length: usize| {
            steps += 1;
            progress(Progress::Decode(length, limit));
        };
        let generated = generate::generate(&self.backend, &self.decoder, &mut cache, batch, options, &mut told)?;
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
        let clock = Instant::now();
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
