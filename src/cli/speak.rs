//! `im2sp speak`: speech units to sound.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use im2sp::{Error, Result, audio, units};
use serde_json::json;

use super::{ModelArgs, print_json, print_line};

/// Speak a list of units
///
/// Units are whole numbers; consecutive duplicates are spoken once.
#[derive(Args)]
#[command(after_help = "\
Examples:
  im2sp caption scene.png --no-audio > units.txt && im2sp speak units.txt -o speech.wav
  im2sp speak --units \"71 12 4 150\" -o out.wav")]
pub struct Speak {
    /// A text file with units
    #[arg(value_name = "FILE", required_unless_present = "units", conflicts_with = "units")]
    file: Option<PathBuf>,
    /// The units themselves
    #[arg(long, value_name = "UNITS")]
    units: Option<String>,
    /// The WAV file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Speaker of a multi-speaker vocoder
    #[arg(long, value_name = "N")]
    speaker: Option<u32>,
    /// Print a JSON object on standard output
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
}

impl Speak {
    /// Reads, speaks and writes.
    pub fn run(self) -> Result<ExitCode> {
        let engine = self.model.load()?;
        let Some(vocoder) = &engine.config().vocoder else {
            return Err(Error::Units { problem: "this model has no vocoder: convert it again with --vocoder".into() });
        };
        let units = match (&self.file, &self.units) {
            (Some(file), _) => units::read(file, vocoder.num_embeddings)?,
            (None, text) => units::parse(text.as_deref().unwrap_or_default(), vocoder.num_embeddings)?,
        };
        let speech = engine.speak(&units, self.speaker)?;
        audio::write_wav(&self.output, &speech.samples, speech.sample_rate)?;
        let seconds = speech.samples.len() as f64 / f64::from(speech.sample_rate);
        if self.json {
            print_json(&json!({
                "output": self.output.to_string_lossy(),
                "units": units.len(),
                "duration_s": seconds,
                "device": engine.device(),
                "dtype": engine.dtype(),
            }))?;
        } else {
            eprintln!("im2sp: device {}, weights {}", engine.device(), engine.dtype());
            print_line(format_args!("{}: {seconds:.2} s of speech from {} units", self.output.display(), units.len()))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
