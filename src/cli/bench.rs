//! `im2sp bench`: how long each stage takes on this machine.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use im2sp::bench::{self, BenchOptions};
use im2sp::{Device, Image, Result, files, trace};

use super::progress::Bar;
use super::{ModelArgs, print_json, print_line};

/// Measure how long each stage of a caption takes
///
/// Captions one picture again and again and prints the median time of each stage, what it had to do, and which share of
/// this machine's own peaks that is.
#[derive(Args)]
#[command(after_help = "\
Examples:
  im2sp bench                                 the embedded model
  im2sp bench --random --dtype bf16           random weights of the published dimensions: no file needed
  im2sp bench --weights DIR --units 100 --json --plot budget.svg --profile trace.json")]
pub struct Bench {
    /// Random weights of the published dimensions (1.6 GB in f32), which never end a caption by themselves
    #[arg(long, conflicts_with = "weights")]
    random: bool,
    /// Picture to caption; a grey one otherwise
    #[arg(long, value_name = "IMAGE")]
    image: Option<PathBuf>,
    /// Most units of the caption
    #[arg(long, default_value_t = 100, value_name = "N")]
    units: usize,
    /// Captions that are timed, after one that is not
    #[arg(long, default_value_t = 10, value_name = "N")]
    repeat: usize,
    /// Print a JSON object on standard output
    #[arg(long)]
    json: bool,
    /// Write the latency budget as an SVG picture
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Write one more caption as a Chrome trace of every operation (chrome://tracing, ui.perfetto.dev)
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
}

impl Bench {
    /// Measures and prints.
    pub fn run(self) -> Result<ExitCode> {
        let engine = if self.random { self.model.load_random()? } else { self.model.load()? };
        let image = match &self.image {
            Some(path) => Image::open(path)?,
            None => Image::from_rgb(640, 480, vec![127; 640 * 480 * 3])?,
        };
        let mut bar = Bar::new();
        let options = BenchOptions { units: self.units, repeat: self.repeat };
        let report = bench::run(&engine, &image, options, &mut |n| bar.show("bench", n as u64, self.repeat as u64))?;
        drop(bar);
        if let Some(path) = &self.plot {
            files::write_atomically(path, report.plot().as_bytes())?;
        }
        if let Some(path) = &self.profile {
            let profile =
                trace::record(|| bench::run(&engine, &image, BenchOptions { repeat: 1, ..options }, &mut |_| {}))?;
            files::write_atomically(path, profile.as_bytes())?;
        }
        if self.json {
            print_json(&serde_json::to_value(&report).unwrap_or_default())?;
        } else {
            print_line(report.table().trim_end())?;
            if engine.memory().is_none() {
                print_line(format_args!("GPU: not measured ({})", no_gpu()))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Why the table holds no row of a GPU.
fn no_gpu() -> String {
    match Device::usable() {
        Ok(()) => "one is there: --device cuda".into(),
        Err(problem) => problem,
    }
}
