//! The path from an image to sound: a request queue with one thread for each stream of work. [`Engine::caption`],
//! [`Engine::caption_batch`], [`Engine::caption_many`], [`Engine::stream`] and [`Engine::speak`] are thin callers of it, and
//! give the same bits. The command line, the tests and the benches call these; none has a path of its own.
//!
//! ```text
//! captioner thread   queue -> vision -> prefill -> decode steps, or the device's own loop -> units
//! vocoder thread     units -> durations -> chunks in time for a listener, or whole captions -> samples
//! ```

mod bulk;
mod load;
mod pipeline;
mod recordings;
mod request;
mod scheduler;
mod speech;
mod stream;
mod tokenize;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use crate::Result;
use crate::config::ModelConfig;
use crate::generate::GenerateOptions;
use crate::image::Image;
use crate::tensor::DType;
use crate::units::UnitGrid;
use crate::weights::directory::ModelFiles;

pub use bulk::{ImageSource, InputSource, OnCaption};
pub use load::Device;
pub use recordings::{CHUNK as RECORDING_CHUNK, FeatureExtractor, OnRecordings, Recognizer, Recorded, UnitExtractor};
pub use request::{CancelFlag, Delivery, Event, Events, Input, Request};
pub use stream::{CaptionStream, SpeechStream};
pub use tokenize::{ImageTokenizer, OnUnits};

use pipeline::Pipeline;

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

/// How an image is captioned.
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
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Caption {
    /// Tokens of the decoder, BOS and EOS included.
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
    /// Milliseconds that the vocoder took, by the device's clock.
    pub vocoder: f64,
}

/// The next piece of a sound.
#[derive(Clone, Debug, PartialEq)]
pub struct AudioChunk {
    /// Sound in -1..1, mono.
    pub samples: Vec<f32>,
    /// Samples per second.
    pub sample_rate: u32,
}

/// Milliseconds of each stage, by the device's own clock. Stages that take several images together report all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timings {
    /// Reading this image, if the engine read it; 0 if it was handed in.
    pub read: f64,
    /// Resizing, cropping and normalising it.
    pub preprocess: f64,
    /// The vision encoder and the projection, for all images that went through together.
    pub vision: f64,
    /// The decoder over the image tokens, likewise.
    pub prefill: f64,
    /// From the first decode step of this caption to its last, other captions' work included.
    pub decode: f64,
    /// The same for one token, on average.
    pub per_unit: f64,
    /// The vocoder on this caption.
    pub vocoder: f64,
}

/// Progress of captions, for a progress bar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Images are in the vision encoder.
    Vision,
    /// Image tokens are in the decoder.
    Prefill,
    /// The longest sequence of the batch has this many tokens of at most so many.
    Decode(usize, usize),
    /// This many captions of so many are done.
    Vocoder(usize, usize),
}

/// A loaded model on a device. Its threads end when it is dropped, and so are the streams and requests that came from it.
pub struct Engine {
    pipeline: Arc<Pipeline>,
    precisions: load::Precisions,
}

/// Use of a device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Allocations that went to the device so far; after a caption of every shape there are no more.
    pub allocations: u64,
    /// Peak of the bytes in use, weights included, by what makes units plus by what speaks them; recorded graphs keep
    /// their own besides.
    pub high_water: usize,
}

impl std::iter::Sum<(u64, usize)> for DeviceMemory {
    fn sum<I: Iterator<Item = (u64, usize)>>(streams: I) -> DeviceMemory {
        let (allocations, high_water) = streams.fold((0, 0), |sum, stream| (sum.0 + stream.0, sum.1 + stream.1));
        DeviceMemory { allocations, high_water }
    }
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

    /// The small model that is compiled into this crate with the feature `embedded-model`, a default one.
    ///
    /// # Errors
    /// If the crate was built without that feature, or the device cannot be used.
    ///
    /// ```
    /// # fn main() -> im2sp::Result<()> {
    /// # if !cfg!(feature = "embedded-model") { return Ok(()); }
    /// let engine = im2sp::Engine::embedded()?;
    /// let image = im2sp::Image::open("assets/scene.png")?;
    /// let caption = engine.caption(&image, &im2sp::CaptionOptions::default())?;
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

    /// A model whose files are open, or in memory.
    pub fn new(files: ModelFiles, options: LoadOptions) -> Result<Engine> {
        Engine::start(load::load(files, options)?)
    }

    /// As [`Engine::new`], on a device that the caller opened.
    #[cfg(any(feature = "cuda", feature = "emulator"))]
    pub fn on_driver(
        driver: std::sync::Arc<dyn crate::backend::cuda::driver::Driver>,
        files: ModelFiles,
        dtype: DType,
    ) -> Result<Engine> {
        Engine::start(load::on_gpu(driver, files, Some(dtype))?)
    }

    fn start((pipeline, precisions): (Pipeline, load::Precisions)) -> Result<Engine> {
        Ok(Engine { pipeline: Arc::new(pipeline), precisions })
    }

    /// The model's dimensions and origin.
    pub fn config(&self) -> &ModelConfig {
        &self.pipeline.config
    }

    /// Dimensions of the image units of an image, for a model that sees them.
    pub fn unit_grid(&self) -> Option<&UnitGrid> {
        self.pipeline.unit_grid.as_ref()
    }

    /// The device in use, in words.
    pub fn device(&self) -> String {
        self.pipeline.device.clone()
    }

    /// Device memory held by the model; `None` on the CPU.
    pub fn memory(&self) -> Option<DeviceMemory> {
        self.pipeline.memory()
    }

    /// Type of the weight matrices in use: "f32", "bf16", or "fp8" or "int8" for those of the decoder, with wider ones
    /// elsewhere.
    pub fn dtype(&self) -> &'static str {
        self.precisions.step.name()
    }

    /// Types in which weight matrices are read.
    pub(crate) fn precisions(&self) -> load::Precisions {
        self.precisions
    }

    /// Hands in a request. Requests are decoded together, whatever their options, and each gets the caption that it would
    /// get alone; an error of one touches no other.
    ///
    /// ```
    /// # fn main() -> im2sp::Result<()> {
    /// use im2sp::{Event, Request};
    /// # if !cfg!(feature = "embedded-model") { return Ok(()); }
    /// let engine = im2sp::Engine::embedded()?;
    /// let image = im2sp::Image::open("assets/scene.png")?;
    /// for event in engine.submit(Request::new(image, im2sp::CaptionOptions::default())) {
    ///     match event {
    ///         Event::Done(caption) => assert!(!caption.samples.is_empty()),
    ///         Event::Failed(error) => return Err(error),
    ///         Event::Units(_) | Event::Chunk(_) => unreachable!("only streamed requests have them"),
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn submit(&self, request: Request) -> Events {
        self.pipeline.request(request)
    }

    /// Captions one image.
    ///
    /// # Errors
    /// If an option does not fit the model, the weights are damaged, or the device fails.
    pub fn caption(&self, image: &Image, options: &CaptionOptions) -> Result<Caption> {
        let prepared = std::iter::once_with(|| self.pipeline.preprocess(image));
        let captions = bulk::caption_batch(&self.pipeline, prepared, options, None)?;
        captions.into_iter().next().ok_or_else(|| crate::Error::internal("a batch of one without a caption"))
    }

    /// Captions several images in one batch, in their order. Each caption is the one that its image alone would get.
    /// `progress` is called about 50 times a second while something changes.
    ///
    /// # Errors
    /// Those of [`Engine::caption`], for the first image that has one.
    pub fn caption_batch(
        &self,
        images: &[&Image],
        options: &CaptionOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<Caption>> {
        let prepared = images.iter().map(|image| self.pipeline.preprocess(image));
        bulk::caption_batch(&self.pipeline, prepared, options, Some(progress))
    }

    /// As [`Engine::caption_batch`], of images in any form that the model takes.
    ///
    /// # Errors
    /// Those of [`Engine::caption_batch`], and if this model takes no such input.
    pub fn caption_inputs(
        &self,
        inputs: Vec<Input>,
        options: &CaptionOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<Caption>> {
        let prepared = inputs.into_iter().map(|input| self.pipeline.prepare(input));
        bulk::caption_batch(&self.pipeline, prepared, options, Some(progress))
    }

    /// Captions any number of images, `in_flight` of them together: images are read ahead on threads of their own, the slot
    /// of a caption that has ended is refilled immediately, and what was decoded is spoken while the next are decoded.
    /// `on_caption` is called on this thread with every caption, in the order in which they end, or with the error of
    /// its image in its place.
    ///
    /// ```
    /// # use std::ops::ControlFlow;
    /// # fn main() -> im2sp::Result<()> {
    /// # if !cfg!(feature = "embedded-model") { return Ok(()); }
    /// let engine = im2sp::Engine::embedded()?;
    /// let paths = ["assets/scene.png", "assets/no-such.png"];
    /// let images = |index: usize| paths.get(index).map(im2sp::Image::open);
    /// let options = im2sp::CaptionOptions::default();
    /// engine.caption_many(&images, &options, 8, &mut |index, caption| {
    ///     assert_eq!(caption.is_ok(), index == 0);
    ///     ControlFlow::Continue(())
    /// })?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// If an option does not fit the model, or the device fails: that ends all captions.
    pub fn caption_many(
        &self,
        images: ImageSource<'_>,
        options: &CaptionOptions,
        in_flight: usize,
        on_caption: OnCaption<'_>,
    ) -> Result<()> {
        let inputs = |number| images(number).map(|image| image.map(Input::Image));
        self.caption_many_inputs(&inputs, options, in_flight, on_caption)
    }

    /// As [`Engine::caption_many`], of images in any form that the model takes.
    ///
    /// # Errors
    /// Those of [`Engine::caption_many`].
    pub fn caption_many_inputs(
        &self,
        inputs: InputSource<'_>,
        options: &CaptionOptions,
        in_flight: usize,
        on_caption: OnCaption<'_>,
    ) -> Result<()> {
        bulk::caption_many(&self.pipeline, inputs, options, in_flight, on_caption)
    }

    /// Captions one image and yields audio chunks while later units are still being decoded: the samples of
    /// [`Engine::caption`], bit for bit, the first of them as early as possible.
    ///
    /// ```
    /// # fn main() -> im2sp::Result<()> {
    /// # if !cfg!(feature = "embedded-model") { return Ok(()); }
    /// let engine = im2sp::Engine::embedded()?;
    /// let image = im2sp::Image::open("assets/scene.png")?;
    /// for chunk in engine.stream(&image, &im2sp::CaptionOptions::default()) {
    ///     let chunk = chunk?;
    ///     assert_eq!(chunk.sample_rate, 16_000);
    ///     // Play chunk.samples.
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn stream(&self, image: &Image, options: &CaptionOptions) -> CaptionStream {
        CaptionStream::new(&self.pipeline, image, options)
    }

    /// As [`Engine::stream`], with at most `first_chunk` frames of the vocoder in the first chunk; each later one may have
    /// twice as many as the one before. Changes when chunks come, and nothing about their samples.
    pub fn stream_with(&self, image: &Image, options: &CaptionOptions, first_chunk: usize) -> CaptionStream {
        CaptionStream::with_first_chunk(&self.pipeline, image, options, first_chunk)
    }

    /// Speaks units. Where the vocoder predicts durations, a unit that repeats the one before is spoken once, as the vocoder
    /// was trained; elsewhere each unit lasts a frame.
    ///
    /// # Errors
    /// If there are no units, one is out of range, or the model has no vocoder.
    pub fn speak(&self, units: &[u32], speaker: Option<u32>) -> Result<Speech> {
        let (events, _) = self.pipeline.speak(units, speaker, false)?;
        let caption = events.finish()?;
        Ok(Speech { samples: caption.samples, sample_rate: caption.sample_rate, vocoder: caption.timings.vocoder })
    }

    /// As [`Engine::speak`], in chunks of up to 20 seconds, each made shortly before it is taken: the same samples, in
    /// memory that does not grow with the number of units.
    pub fn speak_in_chunks(&self, units: &[u32], speaker: Option<u32>) -> Result<SpeechStream> {
        SpeechStream::new(&self.pipeline, units, speaker)
    }
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
