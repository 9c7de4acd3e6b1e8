//! `im2sp doctor`: does every kernel compute on this device what it should, and how fast?

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use im2sp::{Device, Result};

/// Examine a GPU: its peaks, and every kernel against the CPU
///
/// Runs every operation's test table on the device and compares with the CPU form: error, allowed error, time, and the
/// share of the device's measured peak. Exit status 1 if anything is wrong.
#[derive(Args)]
pub struct Doctor {
    /// Device to examine: cuda or cuda:N
    #[arg(long, default_value = "cuda", value_name = "DEVICE")]
    device: Device,
    /// Only operations whose name contains this
    #[arg(long, default_value = "", value_name = "NAME")]
    op: String,
    /// Largest cases to run
    #[arg(long, default_value = "real", value_name = "SIZE")]
    size: MaxSize,
    /// Print one JSON object on standard output
    #[arg(long)]
    json: bool,
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
    #[cfg(any(feature = "cuda", feature = "emulator"))]
    pub fn run(self) -> Result<ExitCode> {
        use im2sp::conformance::{DoctorOptions, Size, examine};
        let max_size = match self.size {
            MaxSize::Small => Size::Small,
            MaxSize::Ragged => Size::Ragged,
            MaxSize::Real => Size::Real,
        };
        let options = DoctorOptions { device: self.device, operation: &self.op, max_size };
        let mut bar = super::progress::Bar::new();
        let mut count = 0;
        let diagnosis = examine(options, &mut |op| {
            count += 1;
            bar.show(op, count, count + 1);
        })?;
        drop(bar);
        if self.json {
            super::print_json(&diagnosis.json())?;
        } else {
            super::print_line(diagnosis.table().trim_end())?;
        }
        Ok(if diagnosis.failed() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// There is nothing to examine.
    #[cfg(not(any(feature = "cuda", feature = "emulator")))]
    pub fn run(self) -> Result<ExitCode> {
        let _ = (self.op, self.size, self.json);
        let problem = "this im2sp was built without kernels for GPUs: build it with --features cuda";
        Err(im2sp::Error::Device { device: self.device.to_string(), problem: problem.into() })
    }
}
