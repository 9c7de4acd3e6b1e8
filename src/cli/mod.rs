//! The command line: one file per subcommand. Each parses, calls the library and prints; none holds logic of its own.
//! Results go to standard output, everything said about them to standard error.

mod bench;
mod caption;
mod convert;
mod doctor;
mod info;
mod progress;
mod sound;
mod speak;

use std::fmt::Display;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use im2sp::tensor::DType;
use im2sp::{Device, Engine, Error, LoadOptions, Result};

/// Speak what is in a picture, without text in between.
#[derive(Parser)]
#[command(version, long_version = concat!(env!("CARGO_PKG_VERSION"), " (commit ", env!("IM2SP_COMMIT"), ")"), about, long_about = None, propagate_version = true, after_help = "\
Start with:
  im2sp caption picture.png -o speech.wav     a spoken caption from the embedded model
  im2sp convert --help                        use the published checkpoint, or your own

Exit status: 0 done, 1 something failed (said on standard error), 2 wrong usage.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Caption(caption::Caption),
    Speak(speak::Speak),
    Convert(convert::Convert),
    Info(info::Info),
    Bench(bench::Bench),
    Doctor(doctor::Doctor),
}

/// Which model, and where it runs.
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
        LoadOptions { device: self.device, dtype }
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

/// Runs the program; the exit status is the caller's to return.
pub fn run() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Caption(command) => command.run(),
        Command::Speak(command) => command.run(),
        Command::Convert(command) => command.run(),
        Command::Info(command) => command.run(),
        Command::Bench(command) => command.run(),
        Command::Doctor(command) => command.run(),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("im2sp: error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Prints one line of JSON.
fn print_json(value: &serde_json::Value) -> Result<()> {
    print_line(value)
}

/// Prints one line on standard output. A closed pipe is no error, a full disk is one.
fn print_line(line: impl Display) -> Result<()> {
    match writeln!(std::io::stdout(), "{line}") {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Error::io("write", Path::new("standard output"))(error))
        }
        _ => Ok(()),
    }
}
