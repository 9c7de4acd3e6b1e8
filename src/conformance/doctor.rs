//! `im2sp doctor`: what a device is, what it does at max, and whether every operation computes on it what it should.

use serde_json::{Value, json};

use super::{Harness, Outcome, Size, Timing};
use crate::backend::Peaks;
use crate::backend::cuda::Cuda;
use crate::tensor::DType;
use crate::{Device, Result};

/// Times that a case is timed.
const TIMED: usize = 20;

/// What to examine.
#[derive(Clone, Copy, Debug)]
pub struct DoctorOptions<'a> {
    /// The device.
    pub device: Device,
    /// Only operations whose name contains this.
    pub operation: &'a str,
    /// Larger cases are left out.
    pub max_size: Size,
}

/// What was found.
#[derive(Clone, Debug)]
pub struct Diagnosis {
    /// Name, multiprocessors, memory and so on.
    pub device: Value,
    /// What it does at most.
    pub peaks: Peaks,
    /// Every case, in f32 and in bf16.
    pub outcomes: Vec<Outcome>,
}

/// Examines a device; `told` hears of each operation before it runs.
pub fn examine(options: DoctorOptions<'_>, told: &mut dyn FnMut(&'static str)) -> Result<Diagnosis> {
    let driver = options.device.driver()?;
    let properties = driver.properties().clone();
    let (free, total) = driver.memory()?;
    let device = json!({
        "name": properties.name,
        "multiprocessors": properties.multiprocessors,
        "capability": format!("{}.{}", properties.capability.0, properties.capability.1),
        "memory": total,
        "free": free,
        "l2": properties.l2,
        "shared_per_block": properties.shared_per_block,
        "cooperative": properties.cooperative,
        "kernels": crate::backend::cuda::kernels::ALL.len(),
        "images": images(),
        "commit": env!("IM2SP_COMMIT"),
    });
    let emulated = is_emulated(&*driver);
    let bf16 = Cuda::new(driver.clone(), DType::BF16)?;
    // What a GPU does in a moment takes an emulator hours.
    let (bytes, repeats) = if emulated { (1 << 20, 4) } else { (1 << 30, 4096) };
    let peaks = bf16.peaks(bytes, repeats)?;
    let mut outcomes = Vec::new();
    for cuda in [Cuda::new(driver, DType::F32)?, bf16] {
        let mut timer = median;
        let mut harness = match emulated {
            true => Harness::new(&cuda, options.max_size),
            false => Harness::timed(&cuda, options.max_size, &mut timer)?,
        };
        for &(op, check) in super::OPERATIONS.iter().filter(|(op, _)| op.contains(options.operation)) {
            told(op);
            harness.operation(op, check)?;
        }
        outcomes.extend(harness.outcomes);
    }
    Ok(Diagnosis { device, peaks, outcomes })
}

/// Seconds of the middle one of some runs.
fn median(timing: Timing<'_>) -> Result<f64> {
    let mut times = (0..TIMED).map(|_| (timing.run)()).collect::<Result<Vec<_>>>()?;
    times.sort_by(f64::total_cmp);
    Ok(times[TIMED / 2])
}

fn images() -> &'static str {
    if cfg!(feature = "cuda") { "sm_80, sm_90a, PTX of compute_80" } else { "none" }
}

#[cfg(feature = "emulator")]
fn is_emulated(driver: &dyn crate::backend::cuda::driver::Driver) -> bool {
    driver.emulator().is_some()
}

#[cfg(not(feature = "emulator"))]
fn is_emulated(_: &dyn crate::backend::cuda::driver::Driver) -> bool {
    false
}

impl Diagnosis {
    /// Cases that did not compute what they should.
    pub fn failed(&self) -> usize {
        self.outcomes.iter().filter(|outcome| !outcome.passed()).count()
    }

    /// Share of the peak that binds a case; none where it was not timed.
    fn share(&self, outcome: &Outcome) -> Option<f64> {
        let floor = (outcome.cost.bytes / self.peaks.bytes).max(outcome.cost.flops / self.peaks.flops);
        outcome.microseconds.filter(|_| floor > 0.0).map(|time| floor * 1e6 / time)
    }

    /// One object with everything.
    pub fn json(&self) -> Value {
        let cases: Vec<Value> = self
            .outcomes
            .iter()
            .map(|o| {
                json!({
                    "op": o.op, "case": o.case, "dtype": o.dtype, "passed": o.passed(),
                    "error": finite(o.error), "allowed": o.allowed, "microseconds": o.microseconds,
                    "flops": o.cost.flops, "bytes": o.cost.bytes, "share": self.share(o),
                })
            })
            .collect();
        json!({
            "device": self.device,
            "peaks": {"bytes": self.peaks.bytes, "flops": self.peaks.flops},
            "failed": self.failed(),
            "cases": cases,
        })
    }

    /// The table for people.
    pub fn table(&self) -> String {
        let text = |name: &str| self.device[name].to_string().trim_matches('"').to_string();
        let gib = |name: &str| self.device[name].as_f64().unwrap_or(0.0) / f64::from(1 << 30);
        let mut out = format!(
            "{}: compute capability {}, {} multiprocessors, {:.1} of {:.1} GiB free\n{} kernels; images: {}; commit {}\n\
             peaks: copy {:.0} GB/s, bf16 mma {:.1} TFLOP/s\n\n{:<17} {:<5} {:<46} {:>9} {:>9} {:>10} {:>6}\n",
            text("name"),
            text("capability"),
            text("multiprocessors"),
            gib("free"),
            gib("memory"),
            text("kernels"),
            text("images"),
            text("commit"),
            self.peaks.bytes / 1e9,
            self.peaks.flops / 1e12,
            "operation",
            "type",
            "case",
            "error",
            "allowed",
            "us",
            "share"
        );
        for o in &self.outcomes {
            let time = o.microseconds.map_or("-".into(), |us| format!("{us:.1}"));
            let share = self.share(o).map_or("-".into(), |share| format!("{:.0} %", share * 100.0));
            let mark = if o.passed() { "" } else { "  WRONG" };
            out += &format!(
                "{:<17} {:<5} {:<46} {:>9.1e} {:>9.1e} {time:>10} {share:>6}{mark}\n",
                o.op, o.dtype, o.case, o.error, o.allowed
            );
        }
        out + &format!("\n{} of {} cases are wrong\n", self.failed(), self.outcomes.len())
    }
}

/// JSON has no infinity.
fn finite(v: f32) -> Option<f32> {
    v.is_finite().then_some(v)
}
