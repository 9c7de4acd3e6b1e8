//! `im2sp caption`: pictures to spoken captions.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::{Args, ValueEnum};
use im2sp::generate::{Compat, EarlyStopping, GenerateOptions, Sampling};
use im2sp::{Caption as Spoken, CaptionOptions, Engine, Error, Image, Progress, Result};
use serde_json::json;

use super::progress::Bar;
use super::sound::{self, Format};
use super::{ModelArgs, print_json};

/// Pictures that are decoded together; bounds the memory.
const BATCH: usize = 8;

/// Speak what is in pictures
///
/// JPEG, PNG, WebP, BMP and GIF are read; the content decides, not the name.
#[derive(Args)]
#[command(after_help = "\
Examples:
  im2sp caption scene.png -o speech.wav
  im2sp caption photos/*.jpg -o spoken/ --weights models/git-large-coco
  im2sp caption photo.jpg --beam 5 --json --no-audio --weights models/git-large-coco
  im2sp caption photo.jpg --temperature 0.9 --top-p 0.95 --seed 7
  im2sp caption scene.png --stream -o - | ffplay -nodisp -autoexit -i -
  im2sp caption scene.png --stream -o - --format pcm | aplay -t raw -f S16_LE -r 16000")]
pub struct Caption {
    /// Pictures to caption
    #[arg(required = true, value_name = "IMAGE")]
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
        let targets = self.targets()?;
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
        if self.stream {
            return self.stream(&engine, &options, started);
        }
        let mut failed = false;
        let mut bar = Bar::new();
        let work: Vec<(&PathBuf, &Option<PathBuf>)> = self.images.iter().zip(&targets).collect();
        for batch in work.chunks(BATCH) {
            let mut read = Vec::new();
            for &(path, target) in batch {
                let clock = Instant::now();
                match Image::open(path) {
                    Ok(image) => read.push((path, target, image, clock.elapsed().as_secs_f64() * 1e3)),
                    Err(error) => {
                        eprintln!("im2sp: error: {error}");
                        failed = true;
                    }
                }
            }
            let images: Vec<&Image> = read.iter().map(|(_, _, image, _)| image).collect();
            let captions = engine.caption_batch(&images, &options, &mut |progress| tell(&mut bar, progress))?;
            for ((path, target, _, decode), caption) in read.iter().zip(&captions) {
                self.report(&engine, path, target.as_deref(), *decode, caption)?;
            }
        }
        Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    /// One picture, heard while its caption is being made.
    fn stream(&self, engine: &Engine, options: &CaptionOptions, started: Instant) -> Result<ExitCode> {
        let ([image], Some(target)) = (&self.images[..], &self.output) else {
            return Err(Error::Option { option: "stream", problem: "one picture at a time can be heard".into() });
        };
        let mut stream = engine.stream(&Image::open(image)?, options);
        let written = sound::write_stream(target, self.format, &mut stream)?;
        let since = |at: Option<Instant>| at.map(|at| at.duration_since(started).as_secs_f64() * 1e3);
        let (first, total) = (since(written.first), started.elapsed().as_secs_f64() * 1e3);
        let seconds = written.samples as f64 / f64::from(stream.sample_rate().max(1));
        if self.json {
            print_json(&json!({
                "image": image.to_string_lossy(),
                "output": target.to_string_lossy(),
                "tokens": stream.tokens(),
                "units": stream.units(),
                "duration_s": seconds,
                "device": engine.device(),
                "dtype": engine.dtype(),
                "timings": { "first_sound": first, "total": total },
            }));
            return Ok(ExitCode::SUCCESS);
        }
        let first = first.map_or("none".into(), |first| format!("{first:.0} ms"));
        let said = format!(
            "{} -> {}: {seconds:.2} s of speech from {} units in {total:.0} ms, the first sound after {first}",
            image.display(),
            target.display(),
            stream.units().len()
        );
        if sound::is_standard_output(target) {
            eprintln!("im2sp: {said}")
        } else {
            println!("{said}")
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Where each picture's sound goes; `None` without sound.
    fn targets(&self) -> Result<Vec<Option<PathBuf>>> {
        if self.no_audio {
            return Ok(vec![None; self.images.len()]);
        }
        let wrong = |problem: String| Error::Option { option: "output", problem };
        if self.output.as_deref().is_some_and(sound::is_standard_output) {
            return match &self.images[..] {
                _ if self.json => Err(wrong("standard output cannot take both sound and --json".into())),
                [_] => Ok(vec![self.output.clone()]),
                _ => Err(wrong("standard output takes the sound of one picture: give a directory".into())),
            };
        }
        let directory = match &self.output {
            None => PathBuf::new(),
            Some(output) if output.is_dir() => output.clone(),
            Some(output) if output.as_os_str().as_encoded_bytes().ends_with(b"/") => {
                std::fs::create_dir_all(output).map_err(Error::io("create", output))?;
                output.clone()
            }
            Some(output) if self.images.len() == 1 => return Ok(vec![Some(output.clone())]),
            Some(output) => {
                let problem = format!("{} is no directory, but there are several pictures", output.display());
                return Err(wrong(problem));
            }
        };
        let mut seen = HashSet::new();
        self.images
            .iter()
            .map(|image| {
                let target = directory
                    .join(image.file_stem().unwrap_or(image.as_os_str()))
                    .with_extension(self.format.extension());
                if seen.insert(target.clone()) {
                    Ok(Some(target))
                } else {
                    Err(wrong(format!("two pictures would be spoken into {}", target.display())))
                }
            })
            .collect()
    }

    fn report(
        &self,
        engine: &Engine,
        image: &Path,
        target: Option<&Path>,
        decode_image: f64,
        caption: &Spoken,
    ) -> Result<()> {
        let clock = Instant::now();
        if let Some(target) = target {
            sound::write(target, self.format, &caption.samples, caption.sample_rate)?;
        }
        let write = clock.elapsed().as_secs_f64() * 1e3;
        let seconds = caption.samples.len() as f64 / f64::from(caption.sample_rate.max(1));
        let timings = &caption.timings;
        if self.json {
            print_json(&json!({
                "image": image.to_string_lossy(),
                "output": target.map(|target| target.to_string_lossy()),
                "tokens": caption.tokens,
                "units": caption.units,
                "duration_s": seconds,
                "device": engine.device(),
                "dtype": engine.dtype(),
                "timings": {
                    "decode_image": decode_image,
                    "preprocess": timings.preprocess,
                    "vision": timings.vision,
                    "prefill": timings.prefill,
                    "decode": timings.decode,
                    "per_unit": timings.per_unit,
                    "vocoder": timings.vocoder,
                    "write": write,
                },
            }));
            return Ok(());
        }
        match target {
            Some(target) => {
                let total = decode_image
                    + timings.preprocess
                    + timings.vision
                    + timings.prefill
                    + timings.decode
                    + timings.vocoder
                    + write;
                let said = format!(
                    "{} -> {}: {seconds:.2} s of speech from {} units in {total:.0} ms",
                    image.display(),
                    target.display(),
                    caption.units.len()
                );
                if sound::is_standard_output(target) { eprintln!("im2sp: {said}") } else { println!("{said}") }
            }
            None => {
                let units: Vec<String> = caption.units.iter().map(u32::to_string).collect();
                println!("{}", units.join(" "));
            }
        }
        Ok(())
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
