//! `im2sp doctor`: does every operation compute on this device what it should, and how fast?

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use im2sp::conformance::{Case, Diagnosis, DoctorOptions, Event, OpFilter, Size, examine, operations};
use im2sp::{Device, Error, Result};

use super::progress::Bar;
use super::{print_json, print_line};

/// Examine a device: its peaks, and every operation against the CPU
///
/// Runs every operation's table of cases on the device and compares with the CPU form: error, allowed error, time, and the
/// share of the device's measured peak. The CPU itself is timed only. An operation that fails is reported, and the others are
/// run; only a device that does not answer any more ends the examination. Exit status 1 if anything is wrong.
#[derive(Args)]
#[command(after_help = "\
Examples:
  im2sp doctor                                 every operation on the first GPU
  im2sp doctor --op =linear --no-timing        one operation, without times
  im2sp doctor --timing-only --json            times only, one JSON object a line
  im2sp doctor --device cpu --op attention     times of the CPU")]
pub struct Doctor {
    /// Device to examine: cpu, cuda or cuda:N
    #[arg(long, default_value = "cuda", value_name = "DEVICE")]
    device: Device,
    /// Only operations whose name contains this; =NAME for exactly one
    #[arg(long, default_value = "", value_name = "NAME")]
    op: OpFilter,
    /// Largest cases to run
    #[arg(long, default_value = "real", value_name = "SIZE")]
    size: MaxSize,
    /// Compare results only; may run in several processes
    #[arg(long, conflicts_with = "timing_only")]
    no_timing: bool,
    /// Time the cases of real models only, without comparing results
    #[arg(long)]
    timing_only: bool,
    /// Print one JSON object a line on standard output, as results come: the device, each case, the summary
    #[arg(long)]
    json: bool,
    /// Print the names of all operations and exit
    #[arg(long)]
    list: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum MaxSize {
    /// For sanitizers
    Small,
    /// Around every tile size
    Ragged,
    /// The shapes of real models too
    Real,
}

impl Doctor {
    /// Examines and prints.
    pub fn run(self) -> Result<ExitCode> {
        if self.list {
            operations().iter().try_for_each(print_line)?;
            return Ok(ExitCode::SUCCESS);
        }
        let options = DoctorOptions {
            device: self.device,
            ops: self.op,
            max_size: match self.size {
                MaxSize::Small => Size::Small,
                MaxSize::Ragged => Size::Ragged,
                MaxSize::Real => Size::Real,
            },
            compare: !self.timing_only,
            time: !self.no_timing,
        };
        let mut status = Status::new();
        let mut written = Ok(());
        let diagnosis = examine(&options, &mut |event| {
            let line = match event {
                Event::Device(device, peaks) => Diagnosis::device_json(device, peaks),
                Event::Case(op, case) => return status.show(op, case),
                Event::Outcome(outcome, share) => outcome.json(share),
            };
            if self.json && written.is_ok() {
                written = print_json(&line);
            }
        })?;
        drop(status);
        written?;
        match self.json {
            true => print_json(&diagnosis.summary_json())?,
            false => print_line(diagnosis.table().trim_end())?,
        }
        match (&diagnosis.lost, diagnosis.passed()) {
            (Some(lost), _) => Err(Error::Device { device: self.device.to_string(), problem: lost.clone() }),
            (None, true) => Ok(ExitCode::SUCCESS),
            (None, false) => Ok(ExitCode::FAILURE),
        }
    }
}

/// The operation and case that is running, on standard error: a bar on a terminal, else a line for each operation and for
/// each of the large cases, which take long.
struct Status {
    bar: Option<Bar>,
    shown: String,
}

impl Status {
    fn new() -> Status {
        Status { bar: std::io::stderr().is_terminal().then(Bar::new), shown: String::new() }
    }

    fn show(&mut self, op: &str, case: &Case) {
        let heading = format!("{op} {}", case.dtype.name());
        if let Some(bar) = &mut self.bar {
            let at = operations().iter().position(|known| *known == op).unwrap_or(0);
            return bar.show(&format!("{heading}: {}", case.name), at as u64, operations().len() as u64);
        }
        // A closed standard error costs no result.
        let mut err = std::io::stderr().lock();
        if heading != self.shown {
            let _ = writeln!(err, "{heading}");
        }
        if case.size == Size::Real {
            let _ = writeln!(err, "  {}", case.name);
        }
        self.shown = heading;
    }
}
