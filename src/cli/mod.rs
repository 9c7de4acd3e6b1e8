//! The command line: one file per subcommand. Each parses, calls the library and prints; none holds logic of its own.
//! Results go to standard output, everything said about them to standard error.

mod bench;
mod caption;
mod closed;
mod convert;
mod crash;
mod doctor;
mod evaluate;
mod export;
mod info;
mod interrupt;
mod kmeans;
mod names;
mod output;
mod plot;
mod print;
mod progress;
mod recordings;
mod score;
mod speak;
mod threads;
mod tokenize;
mod train;
mod transcribe;
mod units;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use im2sp::config::VocoderConfig;
use im2sp::tensor::DType;
use im2sp::{Device, Engine, Error, LoadOptions, Result};

use print::{print_error, print_json, print_line};

/// Exit status of wrong usage, as clap has it.
const WRONG_USAGE: u8 = 2;

/// Describe images aloud, without generating text in between.
#[derive(Parser)]
#[command(version, long_version = concat!(env!("CARGO_PKG_VERSION"), " (commit ", env!("IM2SP_COMMIT"), ")"), about, long_about = None, propagate_version = true, after_help = "\
Start with:
  im2sp caption image.png -o speech.wav       a spoken caption from the small embedded model
  im2sp convert --help                        use the published checkpoint, or your own

Exit status: 0 done, 1 something failed (reported on standard error), 2 wrong usage.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Caption(caption::Caption),
    Speak(speak::Speak),
    Convert(convert::Convert),
    Export(export::Export),
    Units(units::Units),
    Transcribe(transcribe::Transcribe),
    #[command(name = "kmeans")]
    KMeans(kmeans::KMeans),
    Info(info::Info),
    Bench(bench::Bench),
    Doctor(doctor::Doctor),
    Tokenize(tokenize::Tokenize),
    Train(Box<train::Train>),
    Plot(plot::Plot),
    Score(score::Score),
    Evaluate(Box<evaluate::Evaluate>),
}

/// Note on the model in the binary.
const SMALL: &str =
    "the embedded model is small; for better captions convert the published checkpoint, see im2sp convert --help";

/// Model and device options.
#[derive(Args)]
struct ModelArgs {
    /// Model directory made by `im2sp convert`; without it the small embedded model is used
    #[arg(long, value_name = "DIR", help_heading = "Model")]
    weights: Option<PathBuf>,
    /// Where to run: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto", value_name = "DEVICE", help_heading = "Model")]
    device: Device,
    /// Type of the weights in memory; auto leaves them as they are stored
    #[arg(long, default_value = "auto", value_name = "TYPE", help_heading = "Model")]
    dtype: Precision,
    /// Read the weights into memory instead of mapping their files: for files that may be rewritten meanwhile
    #[arg(long, help_heading = "Model")]
    no_mmap: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Precision {
    Auto,
    F32,
    Bf16,
}

impl ModelArgs {
    fn options(&self) -> LoadOptions {
        let dtype = match self.dtype {
            Precision::Auto => None,
            Precision::F32 => Some(DType::F32),
            Precision::Bf16 => Some(DType::BF16),
        };
        LoadOptions { device: self.device, dtype, no_mmap: self.no_mmap }
    }

    fn load_random(&self) -> Result<Engine> {
        Engine::random_with(self.options())
    }

    fn load(&self) -> Result<Engine> {
        let options = self.options();
        match &self.weights {
            Some(directory) => Engine::load_with(directory, options),
            None => Engine::embedded_with(options),
        }
    }
}

/// The vocoder of an engine's model, for a command that needs one.
fn vocoder_of(engine: &Engine) -> Result<&VocoderConfig> {
    let problem = || "this model has no vocoder: convert it again with --vocoder".into();
    engine.config().vocoder.as_ref().ok_or_else(|| Error::Units { problem: problem() })
}

/// Runs the program; the exit status is the caller's to return.
pub fn run() -> ExitCode {
    let command = Cli::parse().command;
    let result = crash::report_panics(|| {
        if !matches!(command, Command::Info(_)) {
            let has_free_thread = threads::start()?;
            // A training run answers signals by itself.
            interrupt::prepare(has_free_thread && !matches!(command, Command::Train(_)));
        }
        match command {
            Command::Caption(command) => command.run(),
            Command::Speak(command) => command.run(),
            Command::Convert(command) => command.run(),
            Command::Export(command) => command.run(),
            Command::Units(command) => command.run(),
            Command::Transcribe(command) => command.run(),
            Command::KMeans(command) => command.run(),
            Command::Info(command) => command.run(),
            Command::Bench(command) => command.run(),
            Command::Doctor(command) => command.run(),
            Command::Tokenize(command) => command.run(),
            Command::Train(command) => command.run(),
            Command::Plot(command) => command.run(),
            Command::Score(command) => command.run(),
            Command::Evaluate(command) => command.run(),
        }
    });
    interrupt::give_way();
    result.unwrap_or_else(|error| {
        print_error(&error);
        match error {
            Error::Option { .. } => ExitCode::from(WRONG_USAGE),
            _ => ExitCode::FAILURE,
        }
    })
}
