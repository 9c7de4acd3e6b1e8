//! The threads of an engine and the queues to them: one for each stream of work. The captioner's thread takes requests from
//! pixels to units, the vocoder's from units to sound. They end with the last who may wait for them.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use super::request::{Delivery, Events, Input, Request};
use super::scheduler::{CaptionWorker, MIN_WIDTH, Pending, Plan};
use super::speech::{News, Queue, VocoderWorker};
use super::{Caption, CaptionOptions, DeviceMemory, Timings};
use crate::backend::Backend;
use crate::config::ModelConfig;
use crate::image::Image;
use crate::model::captioner::Captioner;
use crate::model::vocoder::{self, Vocoder};
use crate::{Error, Result};

/// The running threads.
pub(super) struct Pipeline {
    pub config: ModelConfig,
    pub device: String,
    memory: Box<dyn Fn() -> Option<DeviceMemory> + Send + Sync>,
    /// `None` when it is closed.
    captioner: Option<Sender<Vec<Pending>>>,
    speech: Option<Queue>,
    threads: Vec<JoinHandle<()>>,
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
        let (device, backend) = (backend.name(), Arc::new(backend));
        let mut streams = vec![backend.clone()];
        let mut threads = Vec::new();
        let speech = match (vocoder, &config.vocoder) {
            (Some((backend, vocoder)), Some(config)) => {
                let ((sender, receiver), backend) = (channel(), Arc::new(backend));
                streams.push(backend.clone());
                let worker = VocoderWorker { backend, vocoder };
                threads.push(spawn("im2sp-vocoder", move || worker.run(&receiver))?);
                Some(Queue::new(sender, config))
            }
            _ => None,
        };
        let (sender, receiver) = channel();
        let sample_rate = config.vocoder.as_ref().map_or(0, |vocoder| vocoder.sampling_rate);
        let worker = CaptionWorker { backend, captioner, sample_rate, speech: speech.clone() };
        threads.push(spawn("im2sp-captioner", move || worker.run(&receiver))?);
        let memory = Box::new(move || streams.iter().map(|stream| stream.memory_stats()).sum());
        Ok(Pipeline { config, device, memory, captioner: Some(sender), speech, threads })
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

    /// Hands requests to the captioner's thread, which sees them at the same time.
    pub fn submit(&self, requests: Vec<Pending>) {
        if let Some(queue) = &self.captioner {
            // A thread that is gone has failed all requests, and fails these by dropping them.
            let _ = queue.send(requests);
        }
    }

    /// A request that nobody else is involved with.
    pub fn request(self: &Arc<Pipeline>, request: Request) -> Events {
        let Request { input, options, delivery, deadline } = request;
        let (events, reply) = Events::new(self.clone(), deadline);
        let prepared = self.check(&options).and_then(|()| match input {
            Input::Image(image) => Ok(self.preprocess(&image)),
            Input::Pixels(pixels) => self.check_pixels(&pixels).map(|()| (pixels, Timings::default())),
        });
        let overlap = delivery != Delivery::Whole;
        let plan = Plan { width: MIN_WIDTH, together: 1, overlap };
        match prepared {
            Ok((pixels, timings)) => self.submit(vec![Pending { pixels, options, delivery, timings, reply, plan }]),
            Err(error) => reply.fail(error),
        }
        events
    }

    /// Pixels of an image, and how long they took.
    pub fn preprocess(&self, image: &Image) -> (Vec<f32>, Timings) {
        let clock = std::time::Instant::now();
        let pixels = image.preprocess(&self.config.image);
        (pixels, Timings { preprocess: super::milliseconds(clock), ..Timings::default() })
    }

    fn check_pixels(&self, pixels: &[f32]) -> Result<()> {
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
        let (queue, config) = self.speech.as_ref().zip(self.config.vocoder.as_ref()).ok_or_else(no_vocoder)?;
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
        if let Some(queue) = &self.speech {
            queue.tell(job, News::Taken);
        }
    }

    /// Has the vocoder's thread drop what was cancelled.
    pub fn wake(&self) {
        if let Some(queue) = &self.speech {
            queue.wake();
        }
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        // Closed queues end the threads: who waits for an answer holds the pipeline, so what is left is unwanted.
        self.captioner = None;
        self.speech = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.into()).spawn(work).map_err(|error| Error::Device {
        device: "cpu".into(),
        problem: format!("the system gives no thread ({error}): allow this process more of them (ulimit -u)"),
    })
}

fn no_vocoder() -> Error {
    let problem = "this model has no vocoder: convert it again with --vocoder, or ask for units only (--no-audio)";
    Error::Units { problem: problem.into() }
}
