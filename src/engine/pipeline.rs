//! The threads of an engine and the queues to them: one for each stream of work. The captioner's thread takes requests from
//! pixels to units, the vocoder's from units to sound. They end with the last who may wait for them.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use rayon::ThreadPoolBuilder;

use super::request::{Delivery, Events, Input, Request};
use super::scheduler::{CaptionWorker, MIN_WIDTH, Pending, Plan};
use super::speech::{News, Queue, VocoderWorker};
use super::{Caption, CaptionOptions, DeviceMemory, Timings};
use crate::backend::Backend;
use crate::config::{ModelConfig, VocoderConfig};
use crate::image::Image;
use crate::model::captioner::{Captioner, VisionInput, sees_pixels};
use crate::model::unit_vision::no_tokenizer;
use crate::model::vocoder::{self, Vocoder};
use crate::units::UnitGrid;
use crate::{Error, Result};

/// The models, and the threads that every engine has.
pub(super) struct Pipeline {
    pub config: ModelConfig,
    pub device: String,
    memory: Box<dyn Fn() -> Option<DeviceMemory> + Send + Sync>,
    bulk_lanes: Box<dyn Fn(usize) -> Vec<Lane> + Send + Sync>,
    pub main: Lane,
    /// Whether images become image units here.
    has_tokenizer: bool,
    /// Dimensions of the units of a model that sees image units.
    pub unit_grid: Option<UnitGrid>,
}

/// A captioner's thread and a vocoder's, with the queues to them. Lanes share the models and nothing else.
pub(super) struct Lane {
    /// `None` when it is closed.
    captioner: Option<Sender<Vec<Pending>>>,
    speech: Option<Queue>,
    threads: Vec<JoinHandle<()>>,
}

impl Lane {
    /// Hands requests to the captioner's thread, which sees them at the same time.
    pub fn submit(&self, requests: Vec<Pending>) {
        if let Some(queue) = &self.captioner {
            // A thread that is gone has failed all requests, and fails these by dropping them.
            let _ = queue.send(requests);
        }
    }

    /// Has the vocoder's thread drop what was cancelled.
    pub fn wake(&self) {
        if let Some(queue) = &self.speech {
            queue.wake();
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // Closed queues end the threads: who waits for an answer holds the lane, so what is left is unwanted.
        self.captioner = None;
        self.speech = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The models and devices that all lanes share.
struct Models<B: Backend> {
    backend: Arc<B>,
    captioner: Arc<Captioner<B>>,
    vocoder: Option<(Arc<VocoderWorker<B>>, VocoderConfig)>,
}

impl<B: Backend> Models<B> {
    /// A lane whose threads `spawn` starts.
    fn lane(&self, min_width: usize, spawn: impl Fn(&str, Work) -> Result<Vec<JoinHandle<()>>>) -> Result<Lane> {
        let mut lane = Lane { captioner: None, speech: None, threads: Vec::new() };
        if let Some((worker, config)) = &self.vocoder {
            let ((sender, receiver), worker) = (channel(), worker.clone());
            lane.speech = Some(Queue::new(sender, config));
            lane.threads = spawn("im2sp-vocoder", Box::new(move || worker.run(&receiver)))?;
        }
        let (sender, receiver) = channel();
        lane.captioner = Some(sender);
        let worker = CaptionWorker {
            backend: self.backend.clone(),
            captioner: self.captioner.clone(),
            sample_rate: self.vocoder.as_ref().map_or(0, |(_, config)| config.sampling_rate),
            speech: lane.speech.clone(),
            min_width,
        };
        lane.threads.extend(spawn("im2sp-captioner", Box::new(move || worker.run(&receiver)))?);
        Ok(lane)
    }

    /// Lanes for so many captions together, each with its share of the processors; none where the main lane does best, or
    /// the system does not give their threads.
    fn bulk_lanes(&self, in_flight: usize) -> Vec<Lane> {
        let count = self.backend.lanes(in_flight);
        if count < 2 {
            return Vec::new();
        }
        let lane = |number: usize| {
            let threads = ((rayon::current_num_threads() + number) / count).max(1);
            self.lane(1, |name, work| spawn_pool(name, threads, work))
        };
        (0..count).map(lane).collect::<Result<_>>().unwrap_or_default()
    }
}

impl Pipeline {
    /// Starts a thread for the captioner, and one for the vocoder if there is one. Each has a stream of its own.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start<B: Backend>(
        config: ModelConfig,
        (backend, captioner): (B, Captioner<B>),
        vocoder: Option<(B, Vocoder<B>)>,
    ) -> Result<Pipeline> {
        let (has_tokenizer, unit_grid) = (captioner.has_tokenizer(), captioner.unit_grid());
        let (device, backend) = (backend.name(), Arc::new(backend));
        let vocoder = vocoder.zip(config.vocoder.clone()).map(|((backend, vocoder), config)| {
            (Arc::new(VocoderWorker { backend: Arc::new(backend), vocoder }), config)
        });
        let speaking = vocoder.as_ref().map(|(worker, _)| worker.backend.clone());
        let streams: Vec<_> = std::iter::once(backend.clone()).chain(speaking).collect();
        let models = Models { backend, captioner: Arc::new(captioner), vocoder };
        let main = models.lane(MIN_WIDTH, |name, work| Ok(vec![spawn(name, work)?]))?;
        let memory = Box::new(move || streams.iter().map(|stream| stream.memory_stats()).sum());
        let bulk_lanes = Box::new(move |in_flight| models.bulk_lanes(in_flight));
        Ok(Pipeline { config, device, memory, bulk_lanes, main, has_tokenizer, unit_grid })
    }

    /// See [`Models::bulk_lanes`].
    pub fn bulk_lanes(&self, in_flight: usize) -> Vec<Lane> {
        (self.bulk_lanes)(in_flight)
    }

    /// Memory in use, of both streams together.
    pub fn memory(&self) -> Option<DeviceMemory> {
        (self.memory)()
    }

    /// An error if these options cannot be met by this model.
    pub fn check(&self, options: &CaptionOptions) -> Result<()> {
        if !options.no_audio {
            let config = self.config.vocoder.as_ref().ok_or_else(no_vocoder)?;
            vocoder::check_voice(config, options.speaker)?;
        }
        options.generate.check(self.config.decoder.vocabulary)
    }

    /// A request that nobody else is involved with.
    pub fn request(self: &Arc<Pipeline>, request: Request) -> Events {
        let Request { input, options, delivery, deadline } = request;
        let (events, reply) = Events::new(self.clone(), deadline);
        let prepared = self.check(&options).and_then(|()| self.prepare(input));
        let overlap = delivery != Delivery::Whole;
        let plan = Plan { width: MIN_WIDTH, together: 1, overlap };
        match prepared {
            Ok((input, timings)) => self.main.submit(vec![Pending { input, options, delivery, timings, reply, plan }]),
            Err(error) => reply.fail(error),
        }
        events
    }

    /// The form of an input that the captioner takes, and how long it took to make.
    ///
    /// # Errors
    /// If this model takes no such input.
    pub fn prepare(&self, input: Input) -> Result<(VisionInput, Timings)> {
        match input {
            Input::Image(image) => self.preprocess(&image),
            Input::Pixels(pixels) => {
                self.check_pixels(&pixels)?;
                Ok((VisionInput::Pixels(pixels), Timings::default()))
            }
            Input::Units(units) => {
                self.config.vision.units.as_ref().ok_or_else(sees_pixels)?.check_units(&units)?;
                Ok((VisionInput::Units(units), Timings::default()))
            }
        }
    }

    /// Pixels of an image, and how long they took.
    ///
    /// # Errors
    /// If this model takes image units alone.
    pub fn preprocess(&self, image: &Image) -> Result<(VisionInput, Timings)> {
        self.check_takes_images()?;
        let clock = std::time::Instant::now();
        let pixels = image.preprocess(&self.config.image);
        let timings = Timings { preprocess: super::milliseconds(clock), ..Timings::default() };
        Ok((VisionInput::Pixels(pixels), timings))
    }

    fn check_takes_images(&self) -> Result<()> {
        if self.config.vision.units.is_some() && !self.has_tokenizer { Err(no_tokenizer()) } else { Ok(()) }
    }

    fn check_pixels(&self, pixels: &[f32]) -> Result<()> {
        self.check_takes_images()?;
        let side = self.config.image.size;
        if pixels.len() != 3 * side * side {
            return Err(Error::shape(
                "request",
                format!("{} pixel values, expected (3, {side}, {side})", pixels.len()),
            ));
        }
        match pixels.iter().position(|value| !value.is_finite()) {
            Some(at) => Err(Error::shape("request", format!("pixel value {at} is {}", pixels[at]))),
            None => Ok(()),
        }
    }

    /// Sound of units, in one piece or in chunks that are made as they are taken.
    pub fn speak(self: &Arc<Pipeline>, units: &[u32], speaker: Option<u32>, in_chunks: bool) -> Result<(Events, u64)> {
        let (queue, config) = self.main.speech.as_ref().zip(self.config.vocoder.as_ref()).ok_or_else(no_vocoder)?;
        vocoder::check_voice(config, speaker)?;
        if units.is_empty() {
            return Err(Error::Units { problem: "there are none: nothing can be spoken".into() });
        }
        let (events, reply) = Events::new(self.clone(), None);
        let caption = Caption { units: units.to_vec(), sample_rate: config.sampling_rate, ..Caption::default() };
        let open = if in_chunks { Queue::in_chunks } else { Queue::whole };
        Ok((events, open(queue, &reply, speaker, caption)))
    }

    /// Allows the vocoder another chunk of such a job.
    pub fn taken(&self, job: u64) {
        if let Some(queue) = &self.main.speech {
            queue.tell(job, News::Taken);
        }
    }
}

type Work = Box<dyn FnOnce() + Send>;

fn spawn(name: &str, work: Work) -> Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.into()).spawn(work).map_err(no_thread)
}

/// Runs `work` on one of `count` threads, and what it does in parallel on all of them: on a single one nothing waits for
/// another thread. The threads end with the work.
fn spawn_pool(name: &str, count: usize, work: Work) -> Result<Vec<JoinHandle<()>>> {
    let mut threads = Vec::new();
    let pool = ThreadPoolBuilder::new()
        .num_threads(count)
        // As in a thread of its own: requests that it drops fail.
        .panic_handler(|_| {})
        .spawn_handler(|worker| {
            threads.push(std::thread::Builder::new().name(name.into()).spawn(|| worker.run())?);
            Ok(())
        })
        .build()
        .map_err(no_thread)?;
    pool.spawn(work);
    Ok(threads)
}

fn no_thread(error: impl std::fmt::Display) -> Error {
    Error::Device {
        device: "cpu".into(),
        problem: format!("the system gives no thread ({error}): allow this process more of them (ulimit -u)"),
    }
}

fn no_vocoder() -> Error {
    let problem = "this model has no vocoder: convert it again with --vocoder, or ask for units only (--no-audio)";
    Error::Units { problem: problem.into() }
}
