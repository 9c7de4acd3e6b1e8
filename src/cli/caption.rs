//! `im2sp caption`: pictures to spoken captions.

mod report;
mod work;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::{Args, ValueEnum};
use im2sp::generate::{Compat, EarlyStopping, GenerateOptions, Sampling};
use im2sp::{CaptionOptions, Engine, Error, Image, Progress, Result};

use super::ModelArgs;
use super::progress::Bar;
use super::sound::{self, Format};
use report::InOrder;
use work::{Item, Work};

/// Pictures that are decoded together, on the CPU and on a GPU; bounds the memory.
const IN_FLIGHT: [usize; 2] = [8, 64];

/// Speak what is in pictures
///
/// JPEG, PNG, WebP, BMP and GIF are read; the content decides, not the name. Of a directory, files are taken that are named
/// as pictures are; those whose sound is there already are left out, so the same command goes on after an interruption.
#[derive(Args)]
#[command(after_help = "\
Examples:
  im2sp caption scene.png -o speech.wav
  im2sp caption photos/ -o spoken/ --weights models/git-large-coco
  im2sp caption photo.jpg --beam 5 --json --no-audio --weights models/git-large-coco
  im2sp caption photo.jpg --temperature 0.9 --top-p 0.95 --seed 7
  im2sp caption scene.png --stream -o - | ffplay -nodisp -autoexit -i -
  im2sp caption scene.png --stream -o - --format pcm | aplay -t raw -f S16_LE -r 16000")]
pub struct Caption {
    /// Pictures to caption, or directories of them
    #[arg(required = true, value_name = "IMAGE|DIR")]
    images: Vec<PathBuf>,
    /// A sound file, a directory for NAME.wav of each picture, or - for standard output [default: NAME.wav in the working
    /// directory]
    #[arg(short, long, value_name = "FILE|DIR|-")]
    output: Option<PathBuf>,
    /// A WAV file, or its 16-bit samples alone
    #[arg(long, default_value = "wav", value_name = "FORMAT", conflicts_with = "no_audio")]
    format: Format,
    /// Hand out sound while it is being made, into standard output or another pipe; a file still appears whole
    #[arg(long, requires = "output", conflicts_with = "no_audio")]
    stream: bool,
    /// Speak pictures of a directory again whose sound is there already
    #[arg(long)]
    overwrite: bool,
    /// Decode this many pictures together [default: 8 on the CPU, 64 on a GPU]
    #[arg(long, value_name = "N")]
    in_flight: Option<usize>,
    /// Print one JSON object a line per picture on standard output
    #[arg(long)]
    json: bool,
    /// Stop at the speech units: no vocoder, no file
    #[arg(long, conflicts_with = "output")]
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
struct Decoding {
    /// Beams of a beam search; 1 is greedy
    #[arg(long, default_value_t = 1, value_name = "N")]
    beam: usize,
    /// Stop a caption after this many units
    #[arg(long, default_value_t = 511, value_name = "N")]
    max_units: usize,
    /// Beam scores are divided by the length to this power
    #[arg(long, default_value_t = 1.0, value_name = "X")]
    length_penalty: f32,
    /// When a beam search stops: at as many finished captions as beams (yes), by a heuristic (no), or exactly (never)
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
    /// Whose rules: today's transformers, or those of the reference implementation (4.33.3, with its truncation)
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
    fn options(&self) -> GenerateOptions {
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
    /// Captions every picture. One that cannot be read is reported and does not stop the others.
    pub fn run(self) -> Result<ExitCode> {
        let started = Instant::now();
        let Work { items, kept } = work::of(&self)?;
        if kept > 0 {
            eprintln!(
                "im2sp: {kept} of {} pictures are spoken already; --overwrite speaks them again",
                kept + items.len()
            );
        }
        if items.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
        let engine = self.model.load()?;
        eprintln!("im2sp: device {}, weights {}", engine.device(), engine.dtype());
        if let Some(domain) = &engine.config().domain {
            eprintln!(
                "im2sp: this model knows {domain} only; for photographs convert the published checkpoint, see \
                 im2sp convert --help"
            );
        }
        let options =
            CaptionOptions { generate: self.decoding.options(), speaker: self.speaker, no_audio: self.no_audio };
        match &items[..] {
            [item] if self.stream => self.stream(&engine, item, &options, started),
            _ if self.stream => {
                Err(Error::Option { option: "stream", problem: "one picture at a time can be heard".into() })
            }
            [item] => self.one(&engine, item, &options),
            _ => self.many(&engine, &items, &options),
        }
    }

    /// One picture, as soon as possible.
    fn one(&self, engine: &Engine, item: &Item, options: &CaptionOptions) -> Result<ExitCode> {
        let clock = Instant::now();
        let image = Image::open(&item.image)?;
        let read = clock.elapsed().as_secs_f64() * 1e3;
        let mut bar = Bar::new();
        for mut caption in engine.caption_batch(&[&image], options, &mut |progress| tell(&mut bar, progress))? {
            caption.timings.read = read;
            report::finish(self, engine, item, &caption)?.say()?;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Many pictures, as many a second as possible.
    fn many(&self, engine: &Engine, items: &[Item], options: &CaptionOptions) -> Result<ExitCode> {
        let in_flight = self.in_flight.unwrap_or(IN_FLIGHT[usize::from(engine.memory().is_some())]);
        let pictures = |index: usize| items.get(index).map(|item| Image::open(&item.image));
        let (mut bar, mut order, mut done, mut failed) = (Bar::new(), InOrder::default(), 0, false);
        let mut refused = None;
        engine.caption_many(&pictures, options, in_flight, &mut |index, caption| {
            done += 1;
            bar.show("pictures", done, items.len() as u64);
            let said = match caption {
                Ok(caption) => report::finish(self, engine, &items[index], &caption).map(Some),
                Err(error) => {
                    eprintln!("im2sp: error: {error}");
                    failed = true;
                    Ok(None)
                }
            };
            match said.and_then(|said| order.put(index, said)) {
                Ok(()) => ControlFlow::Continue(()),
                // What cannot be written ends the work: the next could not be either.
                Err(error) => {
                    refused = Some(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        match refused {
            Some(error) => Err(error),
            None => Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }),
        }
    }

    /// One picture, heard while its caption is being made.
    fn stream(&self, engine: &Engine, item: &Item, options: &CaptionOptions, started: Instant) -> Result<ExitCode> {
        let mut stream = engine.stream(&Image::open(&item.image)?, options);
        let target = item.target.clone().unwrap_or_default();
        let written = sound::write_stream(&target, self.format, &mut stream)?;
        report::streamed(self, engine, item, &stream, &written, started).say()?;
        Ok(ExitCode::SUCCESS)
    }
}

fn tell(bar: &mut Bar, progress: Progress) {
    match progress {
        Progress::Vision => bar.show("vision", 0, 1),
        Progress::Prefill => bar.show("prefill", 0, 1),
        Progress::Decode(length, limit) => bar.show("units", length as u64, limit as u64),
        Progress::Vocoder(done, count) => bar.show("speech", done as u64, count as u64),
    }
}
