//! `im2sp bench`: times of the stages of a caption, and throughput.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use im2sp::bench::{self, BenchOptions, InFlightOptions};
use im2sp::{Device, Engine, Image, Result, files, trace};

use super::progress::Bar;
use super::{ModelArgs, print_json, print_line};

/// Measure how long each stage of a caption takes
///
/// Captions one image repeatedly and prints the median time of each stage, its rate, and its share of the measured peaks of this
/// machine. With --in-flight, prints images per second instead.
#[derive(Args)]
#[command(after_help = "\
Examples:
  im2sp bench                                 the small embedded model
  im2sp bench --random --dtype bf16           random weights of the published dimensions: no file needed
  im2sp bench --in-flight 64 --images 512     images per second, units only and with sound
  im2sp bench --weights DIR --units 100 --json --plot budget.svg --profile trace.json")]
pub struct Bench {
    /// Random weights of the published dimensions (1.6 GB in f32), which never end a caption by themselves
    #[arg(long, conflicts_with = "weights")]
    random: bool,
    /// Image to caption [default: a grey one]
    #[arg(long, value_name = "IMAGE")]
    image: Option<PathBuf>,
    /// Maximum units of the caption
    #[arg(long, default_value_t = 100, value_name = "N")]
    units: usize,
    /// Captions that are timed, after one that is not
    #[arg(long, default_value_t = 10, value_name = "N")]
    repeat: usize,
    /// Decode this many captions together, and measure images per second
    #[arg(long, value_name = "N", conflicts_with_all = ["plot", "profile", "repeat"])]
    in_flight: Option<usize>,
    /// Captions of an --in-flight run [default: 4 for each in flight]
    #[arg(long, value_name = "N", requires = "in_flight")]
    images: Option<usize>,
    /// Print a JSON object on standard output
    #[arg(long)]
    json: bool,
    /// Write the latency budget as an SVG drawing
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
        if let Some(in_flight) = self.in_flight {
            return self.in_flight(&engine, &image, in_flight);
        }
        let mut bar = Bar::new();
        let device = self.model.device;
        let options = BenchOptions { units: self.units, repeat: self.repeat };
        let report =
            bench::run(&engine, device, &image, options, &mut |n| bar.show("bench", n as u64, self.repeat as u64))?;
        drop(bar);
        if let Some(path) = &self.plot {
            files::write_atomically(path, report.plot().as_bytes())?;
        }
        if let Some(path) = &self.profile {
            let profile = trace::record(|| {
                bench::run(&engine, device, &image, BenchOptions { repeat: 1, ..options }, &mut |_| {})
            })?;
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

    fn in_flight(&self, engine: &Engine, image: &Image, in_flight: usize) -> Result<ExitCode> {
        let images = self.images.unwrap_or(in_flight.saturating_mul(4));
        let options = InFlightOptions { in_flight, images, units: self.units };
        let mut bar = Bar::new();
        let report = bench::run_in_flight(engine, image, options, &mut |n| bar.show("bench", n as u64, images as u64))?;
        drop(bar);
        if self.json {
            print_json(&serde_json::to_value(&report).unwrap_or_default())?;
        } else {
            print_line(report.table().trim_end())?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Reason that the table holds no row of a GPU.
fn no_gpu() -> String {
    match Device::usable() {
        Ok(()) => "one is there: --device cuda".into(),
        Err(problem) => problem,
    }
}
