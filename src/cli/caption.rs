//! `im2sp caption`: images to spoken captions.

mod jobs;
mod report;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::{Args, ValueEnum};
use im2sp::generate::{Compat, EarlyStopping, GenerateOptions, Sampling};
use im2sp::model::captioner::sees_pixels;
use im2sp::units::ImageUnits;
use im2sp::{CaptionOptions, Engine, Error, Image, Input, Progress, Result, image};

use super::output::{self, Destination, Format};
use super::print::{note, print_error};
use super::progress::Bar;
use super::{ModelArgs, SMALL, vocoder_of};
use jobs::{Job, Jobs};
use report::OrderedOutput;

/// Images that are decoded together, on the CPU and on a GPU; bounds the memory.
pub(super) const IN_FLIGHT: [usize; 2] = [8, 64];

/// Describe images aloud
///
/// JPEG, PNG, WebP, BMP and GIF are read; the content decides, not the name. In a directory, files with a suffix of these
/// formats are taken (jfif, jpe and jif too), and macOS's ._ files left out; images whose result exists already are skipped,
/// so the same command resumes after an interruption. The result of an image NAME.jpg is NAME.wav; where two images would
/// have the same, those two have longer names: NAME.jpg.wav, FOLDER_NAME.jpg.wav.
#[derive(Args)]
#[command(after_help = "\
Examples:
  im2sp caption scene.png -o speech.wav
  im2sp caption photos/ -o spoken/ --weights models/git-large-coco
  im2sp caption photo.jpg --beam 5 --json --no-audio --weights models/git-large-coco
  im2sp caption photo.jpg --temperature 0.9 --top-p 0.95 --seed 7
  im2sp caption scene.png --stream -o - | ffplay -nodisp -autoexit -i -
  im2sp caption scene.png --stream -o - --format pcm | aplay -t raw -f S16_LE -r 16000
  im2sp caption --units photos.units -o spoken/ --weights models/deit-token
  curl -s https://example.org/photo.jpg | im2sp caption - -o speech.wav

JSON: a name that is not UTF-8 has its bytes under \"image_bytes\" or \"output_bytes\" too.")]
pub struct Caption {
    /// Images to caption, or directories of them; - is standard input
    #[arg(required_unless_present = "units", value_name = "IMAGE|DIR|-")]
    images: Vec<PathBuf>,
    /// Caption the images of a file of image units (im2sp tokenize), for a model that sees them
    #[arg(long, value_name = "FILE", conflicts_with_all = ["images", "stream"])]
    units: Option<PathBuf>,
    /// A file; a directory for NAME.wav of each image, which DIR/ makes; or - for standard output [default: NAME.wav in the
    /// working directory]
    #[arg(short, long, value_name = "FILE|DIR|-")]
    output: Option<PathBuf>,
    /// A WAV file, or its 16-bit samples alone
    #[arg(long, default_value = "wav", value_name = "FORMAT", conflicts_with = "no_audio")]
    format: Format,
    /// Write sound as it is made, into standard output or another pipe; a file still appears whole
    #[arg(long, requires = "output", conflicts_with = "no_audio")]
    stream: bool,
    /// Redo images of a directory whose result exists already
    #[arg(long)]
    overwrite: bool,
    /// Decode this many images together [default: 8 on the CPU, 64 on a GPU]
    #[arg(long, value_name = "N")]
    in_flight: Option<usize>,
    /// Print one JSON object a line per image on standard output
    #[arg(long)]
    json: bool,
    /// Stop at the speech units: printed, or with -o in a file or NAME.units of each image
    #[arg(long)]
    no_audio: bool,
    /// Speaker of a multi-speaker vocoder
    #[arg(long, value_name = "N")]
    speaker: Option<u32>,
    #[command(flatten)]
    decoding: Decoding,
    #[command(flatten)]
    model: ModelArgs,
}

#[derive(Args)]
#[command(next_help_heading = "Decoding")]
pub(super) struct Decoding {
    /// Beams of a beam search; 1 is greedy
    #[arg(long, default_value_t = 1, value_name = "N")]
    beam: usize,
    /// Stop a caption after this many units
    #[arg(long, default_value_t = 511, value_name = "N")]
    max_units: usize,
    /// Beam scores are divided by the length to this power
    #[arg(long, default_value_t = 1.0, value_name = "X")]
    length_penalty: f32,
    /// Stopping rule of a beam search: at as many finished captions as beams (yes), by a heuristic (no), or exactly (never)
    #[arg(long, default_value = "yes", value_name = "WHEN")]
    early_stopping: Early,
    /// Sample at this temperature instead of taking the likeliest unit
    #[arg(long, value_name = "X")]
    temperature: Option<f32>,
    /// Sample among this many likeliest units
    #[arg(long, value_name = "N")]
    top_k: Option<usize>,
    /// Sample among the likeliest units that together have this probability
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Seed of the sampling
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Rules to follow: today's transformers, or the reference implementation (4.33.3, with its truncation)
    #[arg(long, default_value = "current", value_name = "RULES")]
    compat: Rules,
}

#[derive(Clone, Copy, ValueEnum)]
enum Early {
    Yes,
    No,
    Never,
}

#[derive(Clone, Copy, ValueEnum)]
enum Rules {
    Current,
    Reference,
}

impl Decoding {
    /// How tokens are chosen.
    pub(super) fn options(&self) -> GenerateOptions {
        let sampled = self.temperature.is_some() || self.top_k.is_some() || self.top_p.is_some();
        GenerateOptions {
            beams: self.beam,
            length_penalty: self.length_penalty,
            early_stopping: match self.early_stopping {
                Early::Yes => EarlyStopping::Yes,
                Early::No => EarlyStopping::Heuristic,
                Early::Never => EarlyStopping::Never,
            },
            // BOS counts.
            max_length: self.max_units.saturating_add(1),
            sampling: sampled.then(|| Sampling {
                temperature: self.temperature.unwrap_or(1.0),
                top_k: self.top_k.unwrap_or(0),
                top_p: self.top_p.unwrap_or(1.0),
                seed: self.seed,
            }),
            compat: match self.compat {
                Rules::Current => Compat::Current,
                Rules::Reference => Compat::Reference,
            },
        }
    }
}

impl Caption {
    /// Captions every image. One that cannot be read is reported and does not stop the others.
    pub fn run(self) -> Result<ExitCode> {
        let started = Instant::now();
        let stored = self.units.as_deref().map(ImageUnits::open).transpose()?;
        let Jobs { jobs, skipped, failed } = jobs::of(&self, stored.as_ref())?;
        let status = |failed: bool| if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        if self.stream && jobs.len() > 1 {
            return Err(Error::Option { option: "stream", problem: "takes one image at a time".into() });
        }
        if skipped > 0 {
            let (all, what) = (skipped + jobs.len(), if self.no_audio { "units" } else { "audio" });
            note(format_args!("skipping {skipped} of {all} images that already have {what} (--overwrite redoes them)"));
        }
        if jobs.is_empty() {
            return Ok(status(failed));
        }
        let engine = self.model.load()?;
        if self.stream {
            vocoder_of(&engine)?;
        }
        if let Some(stored) = &stored {
            let grid = engine.unit_grid().ok_or_else(sees_pixels)?;
            stored.check_grid(grid)?;
        }
        note(format_args!("device {}, weights {}", engine.device(), engine.dtype()));
        match &engine.config().domain {
            _ if self.model.weights.is_none() => note(format_args!("{SMALL}")),
            Some(domain) => note(format_args!("this model knows {domain} only")),
            None => {}
        }
        let options =
            CaptionOptions { generate: self.decoding.options(), speaker: self.speaker, no_audio: self.no_audio };
        let all_done = match &jobs[..] {
            [job] if self.stream => self.stream(&engine, job, &options, started).map(|()| true),
            [job] => self.one(&engine, job, input(job, stored.as_ref()), &options).map(|()| true),
            _ => self.many(&engine, &jobs, stored.as_ref(), &options),
        };
        Ok(status(failed || !all_done?))
    }

    /// One image, as soon as possible.
    fn one(
        &self,
        engine: &Engine,
        job: &Job,
        input: impl FnOnce() -> Result<Input>,
        options: &CaptionOptions,
    ) -> Result<()> {
        let clock = Instant::now();
        let input = input()?;
        let read = clock.elapsed().as_secs_f64() * 1e3;
        let mut bar = Bar::new();
        let captions = engine.caption_inputs(vec![input], options, &mut |progress| show(&mut bar, progress))?;
        drop(bar);
        for mut caption in captions {
            caption.timings.read = read;
            report::finish(self, engine, job, &mut caption)?.print().map(drop)?;
        }
        Ok(())
    }

    /// Many images, as many a second as possible. Gives back whether all could be captioned.
    fn many(
        &self,
        engine: &Engine,
        jobs: &[Job],
        stored: Option<&ImageUnits>,
        options: &CaptionOptions,
    ) -> Result<bool> {
        let in_flight = self.in_flight.unwrap_or(IN_FLIGHT[usize::from(engine.memory().is_some())]);
        let inputs = |index: usize| jobs.get(index).map(|job| input(job, stored)());
        let (mut bar, mut order, mut done, mut failed) = (Bar::new(), OrderedOutput::default(), 0, false);
        // The reason that nothing more can be printed: an error, or nobody who reads.
        let mut unprinted = None;
        engine.caption_many_inputs(&inputs, options, in_flight, &mut |index, caption| {
            done += 1;
            bar.show("images", done, jobs.len() as u64);
            let finished = caption.and_then(|mut caption| report::finish(self, engine, &jobs[index], &mut caption));
            let mut full = false;
            let output = finished.map_err(|error| {
                print_error(&error);
                (failed, full) = (true, output::is_full(&error));
            });
            if unprinted.is_none() {
                unprinted = match order.put(index, output.ok()) {
                    Ok(ControlFlow::Continue(())) => None,
                    Ok(ControlFlow::Break(())) => Some(Ok(())),
                    Err(error) => Some(Err(error)),
                };
            }
            // The rest would be lost where nothing more can be written or nobody reads; what cannot be printed costs no file.
            if full || (unprinted.is_some() && jobs[index].destination.is_none()) {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        unprinted.unwrap_or(Ok(()))?;
        Ok(!failed)
    }

    /// One image, its sound written as it is made.
    fn stream(&self, engine: &Engine, job: &Job, options: &CaptionOptions, started: Instant) -> Result<()> {
        let mut stream = engine.stream(&open(&job.image)?, options);
        let destination = job.destination.as_ref().unwrap_or(&Destination::Standard);
        let rate = stream.sample_rate();
        let written = output::write_sound(destination, self.format, rate, true, &mut stream)?;
        report::streamed(self, engine, job, &stream, &written, started).print().map(drop)
    }
}

/// Reads the image of a job, or its units.
fn input<'a>(job: &'a Job, stored: Option<&'a ImageUnits>) -> impl FnOnce() -> Result<Input> {
    move || match (job.record, stored) {
        (Some(record), Some(stored)) => stored.read(record).map(|record| Input::Units(record.units)),
        _ => open(&job.image).map(Input::Image),
    }
}

/// Reads the image at `path`, or from standard input for "-".
fn open(path: &Path) -> Result<Image> {
    Image::decode(&output::read_input(path, image::MAX_FILE_BYTES)?, output::input_name(path))
}

fn show(bar: &mut Bar, progress: Progress) {
    match progress {
        Progress::Vision => bar.show("vision", 0, 1),
        Progress::Prefill => bar.show("prefill", 0, 1),
        Progress::Decode(length, limit) => bar.show("units", length as u64, limit as u64),
        Progress::Vocoder(done, count) => bar.show("speech", done as u64, count as u64),
    }
}
