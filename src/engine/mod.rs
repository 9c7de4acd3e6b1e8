//! The whole path from a picture to sound, as one function: [`Engine::caption`]. The command line, the service, the
//! evaluation and the benches call it; none has a path of its own.

mod calibrate;
mod device;
mod many;
mod model;
mod stream;
mod turns;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use crate::config::ModelConfig;
use crate::generate::GenerateOptions;
use crate::image::Image;
use crate::model::vocoder::Utterance;
use crate::tensor::DType;
use crate::weights::directory::ModelFiles;
use crate::{Error, Result};

pub use calibrate::{CalibrateReport, MatrixReport, convert_calibrated};
pub use device::Device;
pub use many::{Heard, Pictures};
pub use stream::{AudioChunk, CaptionStream};

/// How a model is loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// Where it is to run.
    pub device: Device,
    /// Type of the weight matrices in memory; `None` leaves them as stored. Sums are always f32.
    pub dtype: Option<DType>,
    /// Reads the weights into memory instead of mapping their files. A mapped file must not change while it is used: one
    /// that is rewritten in place ends the program.
    pub no_mmap: bool,
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
    /// Getting hold of this picture, if the engine asked for it; 0 if it was handed over.
    pub read: f64,
    /// Resizing, cropping and normalising it.
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
    model: Arc<dyn Captioner>,
    config: ModelConfig,
    types: device::Types,
}

/// Use of a device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Allocations that went to the device so far; after a caption of every shape there are no more.
    pub allocations: u64,
    /// The most bytes in use at once, weights included, by what makes units plus by what speaks them; recorded graphs keep
    /// their own besides.
    pub high_water: usize,
}

/// The models on whatever backend they were loaded.
trait Captioner: Send + Sync {
    /// The device in words.
    fn device(&self) -> String;
    /// See [`Engine::memory`].
    fn memory(&self) -> Option<DeviceMemory>;
    /// See [`Engine::caption_batch`].
    fn caption(
        &self,
        config: &ModelConfig,
        images: &[&Image],
        options: &CaptionOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<Caption>>;
    /// See [`Engine::caption_many`].
    fn caption_many(
        &self,
        config: &ModelConfig,
        pictures: Receiver<many::Prepared>,
        options: &CaptionOptions,
        in_flight: usize,
        heard: Heard<'_>,
    ) -> Result<()>;
    /// Pixels of one picture to its tokens. `told` hears what they will begin with as it becomes known, and may end it.
    fn tokens(
        &self,
        pixels: &[f32],
        options: &GenerateOptions,
        told: &mut dyn FnMut(&[u32]) -> ControlFlow<()>,
    ) -> Result<Vec<u32>>;
    /// The next samples of `utterance`; `None` until more units are known, and after the last.
    fn advance(&self, utterance: &mut Utterance) -> Result<Option<Vec<f32>>>;
    /// See [`Engine::speak`].
    fn speak(&self, units: &[u32], speaker: Option<u32>) -> Result<Speech>;
}

impl Engine {
    /// Loads a model directory made by `im2sp convert`.
    ///
    /// # Errors
    /// If a file is missing or malformed, a tensor is missing, superfluous or of another shape than `config.json` says,
    /// or the device cannot be used.
    pub fn load(directory: impl AsRef<Path>, device: Device) -> Result<Engine> {
        Engine::load_with(directory, LoadOptions { device, ..LoadOptions::default() })
    }

    /// As [`Engine::load`], with every option.
    pub fn load_with(directory: impl AsRef<Path>, options: LoadOptions) -> Result<Engine> {
        Engine::new(ModelFiles::open_with(directory.as_ref(), !options.no_mmap)?, options)
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

    /// Random weights of the published dimensions, for measuring; see [`crate::weights::random`].
    pub fn random_with(options: LoadOptions) -> Result<Engine> {
        let dtype = if options.dtype == Some(DType::F32) { DType::F32 } else { DType::BF16 };
        Engine::new(crate::weights::random::files(crate::weights::random::published(), dtype)?, options)
    }

    /// As [`Engine::embedded_with`], on a device that the caller opened.
    #[cfg(any(feature = "cuda", feature = "emulator"))]
    pub fn embedded_on(
        driver: std::sync::Arc<dyn crate::backend::cuda::driver::Driver>,
        dtype: DType,
    ) -> Result<Engine> {
        Engine::new_with(crate::weights::embedded::files()?, |files| device::on_gpu(driver, files, Some(dtype)))
    }

    fn new(files: ModelFiles, options: LoadOptions) -> Result<Engine> {
        Engine::new_with(files, |files| device::load(files, options))
    }

    fn new_with(
        mut files: ModelFiles,
        load: impl FnOnce(&mut ModelFiles) -> Result<(Arc<dyn Captioner>, device::Types)>,
    ) -> Result<Engine> {
        let (model, types) = load(&mut files)?;
        files.captioner.finish()?;
        files.vocoder.map_or(Ok(()), |store| store.finish())?;
        Ok(Engine { model, config: files.config, types })
    }

    /// The model's dimensions and origin.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The device in use, in words.
    pub fn device(&self) -> String {
        self.model.device()
    }

    /// What the model holds of the device's memory; `None` on the CPU.
    pub fn memory(&self) -> Option<DeviceMemory> {
        self.model.memory()
    }

    /// Type of the weight matrices in use: "f32", "bf16", or "fp8" or "int8" for those of the decoder beside wider
    /// ones.
    pub fn dtype(&self) -> &'static str {
        self.types.step.name()
    }

    /// In which types weight matrices are read.
    pub(crate) fn types(&self) -> device::Types {
        self.types
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

    /// Captions any number of pictures, `in_flight` of them together, as a pipeline: pictures are read ahead, and the place
    /// of a caption that has ended is taken at once. `heard` gets every caption, the same that its picture alone would get,
    /// in the order in which they end, and a picture's own error in its place. In the timings, a caption's decoding lasts
    /// from its first step to its last, with what was done for others meanwhile.
    ///
    /// ```
    /// # use std::ops::ControlFlow;
    /// # fn main() -> im2sp::Result<()> {
    /// let engine = im2sp::Engine::embedded()?;
    /// let paths = ["assets/scene.png", "assets/no-such.png"];
    /// let pictures = |index: usize| paths.get(index).map(im2sp::Image::open);
    /// let options = im2sp::CaptionOptions::default();
    /// engine.caption_many(&pictures, &options, 8, &mut |index, caption| {
    ///     assert_eq!(caption.is_ok(), index == 0);
    ///     ControlFlow::Continue(())
    /// })?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// If an option does not fit the model, the weights are damaged, or the device fails: that ends all captions.
    pub fn caption_many(
        &self,
        pictures: Pictures<'_>,
        options: &CaptionOptions,
        in_flight: usize,
        heard: Heard<'_>,
    ) -> Result<()> {
        many::caption_many(&*self.model, &self.config, pictures, options, in_flight, heard)
    }

    /// Captions one picture and hands out its sound while it is being made: the samples of [`Engine::caption`], bit for bit,
    /// in chunks of which the first comes as early as possible.
    ///
    /// ```
    /// # fn main() -> im2sp::Result<()> {
    /// let engine = im2sp::Engine::embedded()?;
    /// let picture = im2sp::Image::open("assets/scene.png")?;
    /// for chunk in engine.stream(&picture, &im2sp::CaptionOptions::default()) {
    ///     let chunk = chunk?;
    ///     assert_eq!(chunk.sample_rate, 16_000);
    ///     // Play chunk.samples.
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn stream(&self, image: &Image, options: &CaptionOptions) -> CaptionStream {
        CaptionStream::new(self.model.clone(), &self.config, image, options)
    }

    /// Speaks units. Consecutive duplicates are spoken once, as the vocoder was trained.
    ///
    /// # Errors
    /// If there are no units, one is out of range, or the model has no vocoder.
    pub fn speak(&self, units: &[u32], speaker: Option<u32>) -> Result<Speech> {
        self.model.speak(units, speaker)
    }
}
