//! `im2sp doctor`: a device, its measured peaks, and whether every operation computes on it what it should.

use std::fmt::Write;
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Case, Deviation, Harness, Outcome, Progress, Shared, Size, TestBackend, Timing, Verdict, operations};
use crate::backend::cpu::Cpu;
use crate::backend::{Device as _, Peaks};
use crate::cost::Cost;
use crate::tensor::DType;
use crate::{Device, Error, Result};

/// Runs of a case that are timed: at most, and at least however long they take.
const RUNS: std::ops::RangeInclusive<usize> = 3..=20;
/// Time after which a case has been timed often enough.
const ENOUGH: Duration = Duration::from_millis(300);

/// Operations by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum OpFilter {
    /// Every operation.
    #[default]
    All,
    /// Those whose name contains this.
    Containing(String),
    /// Exactly this one.
    Only(String),
}

impl OpFilter {
    /// True if the filter takes this operation.
    pub fn takes(&self, op: &str) -> bool {
        match self {
            OpFilter::All => true,
            OpFilter::Containing(part) => op.contains(part.as_str()),
            OpFilter::Only(name) => op == name,
        }
    }
}

impl FromStr for OpFilter {
    type Err = String;

    /// `=NAME` is exactly that operation, `NAME` all whose name contains it.
    fn from_str(text: &str) -> std::result::Result<OpFilter, String> {
        let filter = match text.strip_prefix('=') {
            Some(name) => OpFilter::Only(name.into()),
            None if text.is_empty() => OpFilter::All,
            None => OpFilter::Containing(text.into()),
        };
        match operations().iter().any(|op| filter.takes(op)) {
            true => Ok(filter),
            false => Err(format!("no such operation; there are {}", operations().join(", "))),
        }
    }
}

/// Options of an examination.
#[derive(Clone, Debug)]
pub struct DoctorOptions {
    /// The device.
    pub device: Device,
    /// Operations that are run.
    pub ops: OpFilter,
    /// Larger cases are left out.
    pub max_size: Size,
    /// Compare results with the CPU form. Nothing is compared on the CPU itself.
    pub compare: bool,
    /// Measure peaks, and time cases of the shapes of real models. Nothing is timed on the emulator.
    pub time: bool,
}

/// Callback for findings; a device is examined by several threads.
pub type OnEvent<'a> = &'a mut (dyn FnMut(Event<'_>) + Send);

/// Findings, as they come.
pub enum Event<'e> {
    /// The device is open: its properties, and its peaks if they were measured.
    Device(&'e Value, Option<Peaks>),
    /// A case begins.
    Case(&'static str, &'e Case),
    /// It has ended; with its share of the peak that binds it.
    Outcome(&'e Outcome, Option<f64>),
}

/// Findings of an examination.
#[derive(Clone, Debug)]
pub struct Diagnosis {
    /// Name, multiprocessors, memory and so on.
    pub device: Value,
    /// Measured peaks.
    pub peaks: Option<Peaks>,
    /// Times are those of inputs in memory, and so have a share of the peaks; a CPU's caches may go beyond them.
    pub cold: bool,
    /// Every case.
    pub outcomes: Vec<Outcome>,
    /// Reason for an early end: the device does not answer any more.
    pub lost: Option<String>,
}

/// Examines a device; `on_event` is called with each finding.
///
/// # Errors
/// If the device cannot be opened. An operation's error is an outcome.
pub fn examine(options: &DoctorOptions, on_event: OnEvent<'_>) -> Result<Diagnosis> {
    match options.device {
        Device::Cpu => examine_cpu(options, on_event),
        #[cfg(any(feature = "cuda", feature = "emulator"))]
        _ => on_cuda::examine(options, on_event),
        #[cfg(not(any(feature = "cuda", feature = "emulator")))]
        device => Err(crate::Error::Device {
            device: device.to_string(),
            problem:
                "this im2sp was built without kernels for GPUs: build it with --features cuda, or use --device cpu"
                    .into(),
        }),
    }
}

fn examine_cpu(options: &DoctorOptions, on_event: OnEvent<'_>) -> Result<Diagnosis> {
    let device = json!({ "name": Cpu.name(), "commit": env!("IM2SP_COMMIT") });
    let mut diagnosis = Diagnosis { device, peaks: None, cold: false, outcomes: Vec::new(), lost: None };
    diagnosis.begin(&Cpu, options, on_event);
    diagnosis.add(Part::default().run(&Cpu, options, None, &Shared::default(), on_event));
    Ok(diagnosis)
}

#[cfg(any(feature = "cuda", feature = "emulator"))]
mod on_cuda {
    use std::panic::resume_unwind;
    use std::sync::{Mutex, PoisonError};

    use super::*;
    use crate::backend::cuda::Cuda;
    use crate::tensor::DType;

    /// Threads that run cases, each on a stream of its own: while one case is computed on the device, the inputs of another are
    /// drawn and the results of a third compared. Small cases are over in seconds; one at a time they say by what a device
    /// was lost.
    fn threads(options: &DoctorOptions, free: usize) -> usize {
        const MAX_THREADS: usize = 8;
        /// Bytes on the device of the largest cases.
        const CASE: usize = 4 << 30;
        match options.compare && options.max_size >= Size::Real {
            true => rayon::current_num_threads().min(free / CASE).clamp(1, MAX_THREADS),
            false => 1,
        }
    }

    pub fn examine(options: &DoctorOptions, on_event: OnEvent<'_>) -> Result<Diagnosis> {
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
            "images": if cfg!(feature = "cuda") { "sm_80, sm_90a, PTX of compute_80" } else { "none" },
            "commit": env!("IM2SP_COMMIT"),
        });
        let mut diagnosis = Diagnosis { device, peaks: None, cold: true, outcomes: Vec::new(), lost: None };
        let mut options = options.clone();
        {
            let bf16 = Cuda::new(driver.clone(), DType::BF16)?;
            // Its clock would measure the host.
            options.time &= !bf16.is_emulated();
            diagnosis.begin(&bf16, &options, on_event);
        }
        let peaks = diagnosis.peaks;
        let (shared, on_event) = (Shared::default(), Mutex::new(on_event));
        let work = || {
            let tell = &mut |event: Event<'_>| on_event.lock().unwrap_or_else(PoisonError::into_inner)(event);
            [DType::F32, DType::BF16].into_iter().fold(Part::default(), |part, dtype| {
                if part.lost.is_some() {
                    return part;
                }
                match Cuda::new(driver.clone(), dtype) {
                    Ok(cuda) => part.run(&cuda, &options, peaks, &shared, tell),
                    Err(error) => Part { lost: Some(error.to_string()), ..part },
                }
            })
        };
        let parts: Vec<Part> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..threads(&options, free)).map(|_| scope.spawn(work)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
        });
        parts.into_iter().for_each(|part| diagnosis.add(part));
        diagnosis.outcomes.sort_by_key(|outcome| outcome.index);
        Ok(diagnosis)
    }
}

/// Seconds of the middle one of some runs, after one that is not timed.
fn median(timing: Timing<'_>) -> Result<f64> {
    (timing.run)()?;
    let (clock, mut times) = (Instant::now(), Vec::new());
    while times.len() < *RUNS.end() && (times.len() < *RUNS.start() || clock.elapsed() < ENOUGH) {
        times.push((timing.run)()?);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// Outcome of something that is no case and has failed.
fn failure([op, case]: [&'static str; 2], dtype: DType, error: &Error) -> Outcome {
    let (verdict, cost) = (Verdict::Failed(error.to_string()), Cost::default());
    Outcome { index: 0, op, case: case.into(), dtype, verdict, microseconds: None, cost }
}

/// The cases that one thread has run.
#[derive(Default)]
struct Part {
    outcomes: Vec<Outcome>,
    /// Cases of the tables so far, those of other threads too.
    cases: usize,
    lost: Option<String>,
}

impl Part {
    /// Runs the cases of a backend that no other part with the same `shared` has come to first.
    fn run<B: TestBackend>(
        mut self,
        backend: &B,
        options: &DoctorOptions,
        peaks: Option<Peaks>,
        shared: &Shared,
        on_event: OnEvent<'_>,
    ) -> Part {
        let mut timer = median;
        let flush = options.time.then(|| backend.flush_buffer()).transpose();
        if let Err(error) = &flush {
            let outcome = failure(["timing", "memory to flush the L2"], backend.dtype(), error);
            on_event(Event::Outcome(&outcome, None));
            self.outcomes.push(outcome);
        }
        let mut observer = |progress: Progress<'_>| match progress {
            Progress::Case(op, case) => on_event(Event::Case(op, case)),
            Progress::Outcome(outcome) => {
                on_event(Event::Outcome(outcome, peaks.and_then(|peaks| outcome.share(&peaks))));
            }
        };
        let mut harness = Harness::new(backend, options.max_size).observed(&mut observer).sharing(shared, self.cases);
        if !options.compare {
            harness = harness.not_compared();
        }
        if let Ok(Some(flush)) = flush {
            harness = harness.timed(Size::Real, flush, &mut timer);
        }
        self.lost = harness.run(|op| options.ops.takes(op)).err().map(|error| error.to_string());
        self.cases = harness.index();
        self.outcomes.append(&mut harness.outcomes);
        self
    }
}

impl Diagnosis {
    /// Measures the peaks. Without them there are no shares, and the examination has failed.
    fn begin<B: TestBackend>(&mut self, backend: &B, options: &DoctorOptions, on_event: OnEvent<'_>) {
        let peaks = options.time.then(|| backend.measure_peaks()).transpose();
        self.peaks = *peaks.as_ref().unwrap_or(&None);
        on_event(Event::Device(&self.device, self.peaks));
        if let Err(error) = peaks {
            let outcome = failure(["peak", "copy and products"], backend.dtype(), &error);
            on_event(Event::Outcome(&outcome, None));
            self.outcomes.push(outcome);
        }
    }

    /// Adds the findings of a part.
    fn add(&mut self, part: Part) {
        self.outcomes.extend(part.outcomes);
        let known = self.lost.clone().unwrap_or_default();
        let news = part.lost.filter(|lost| !known.contains(lost.as_str()));
        self.lost = [self.lost.take(), news].into_iter().flatten().reduce(|all, lost| format!("{all}; {lost}"));
    }

    /// Cases that did not compute what they should, or did not end.
    pub fn failed(&self) -> usize {
        self.outcomes.iter().filter(|outcome| !outcome.passed()).count()
    }

    /// Cases that this device does not offer.
    pub fn skipped(&self) -> usize {
        self.outcomes.iter().filter(|outcome| matches!(outcome.verdict, Verdict::Skipped(_))).count()
    }

    /// True if nothing is wrong.
    pub fn passed(&self) -> bool {
        self.failed() == 0 && self.lost.is_none()
    }

    fn share(&self, outcome: &Outcome) -> Option<f64> {
        self.peaks.filter(|_| self.cold).and_then(|peaks| outcome.share(&peaks))
    }

    /// Cases that took less time than the peaks allow: faults of the measurement.
    pub fn faults(&self) -> usize {
        self.outcomes.iter().filter(|outcome| self.share(outcome).is_some_and(|share| share > 1.0)).count()
    }

    /// The device, as the first line of the report in JSON.
    pub fn device_json(device: &Value, peaks: Option<Peaks>) -> Value {
        json!({ "device": device, "peaks": peaks })
    }

    /// The end of the report in JSON.
    pub fn summary_json(&self) -> Value {
        let (skipped, faults) = (self.skipped(), self.faults());
        let examined = self.outcomes.len() - skipped;
        json!({ "examined": examined, "failed": self.failed(), "skipped": skipped, "faults": faults, "lost": self.lost })
    }

    /// The table for people.
    pub fn table(&self) -> String {
        let mut out = self.head();
        let _ = writeln!(
            out,
            "\n{:<17} {:<5} {:<46} {:>9} {:>9} {:>10} {:>6}",
            "operation", "type", "case", "error", "allowed", "us", "share"
        );
        for outcome in &self.outcomes {
            out += &self.row(outcome);
        }
        let _ = writeln!(out, "\n{} of {} cases are wrong", self.failed(), self.outcomes.len() - self.skipped());
        if self.faults() > 0 {
            let _ = writeln!(
                out,
                "{} cases took less time than the peaks allow (marked !): the measurement is at fault",
                self.faults()
            );
        }
        if let Some(lost) = &self.lost {
            let _ = writeln!(out, "not all cases were run: {lost}");
        }
        out
    }

    fn head(&self) -> String {
        let text = |name: &str| self.device[name].to_string().trim_matches('"').to_string();
        let gib = |name: &str| self.device[name].as_f64().unwrap_or(0.0) / f64::from(1 << 30);
        let mut out = text("name");
        if self.device["multiprocessors"].is_u64() {
            let _ = write!(
                out,
                ": compute capability {}, {} multiprocessors, {:.1} of {:.1} GiB free\n{} kernels; images: {}",
                text("capability"),
                text("multiprocessors"),
                gib("free"),
                gib("memory"),
                text("kernels"),
                text("images"),
            );
        }
        let _ = writeln!(out, "; commit {}", text("commit"));
        if let Some(Peaks { bytes, flops }) = self.peaks {
            let _ = writeln!(out, "peaks: {:.0} GB/s, {:.2} TFLOP/s", bytes / 1e9, flops / 1e12);
        }
        out
    }

    fn row(&self, outcome: &Outcome) -> String {
        let (error, allowed, mark) = match &outcome.verdict {
            Verdict::Passed(Deviation { error, allowed }) => (format!("{error:.1e}"), format!("{allowed:.1e}"), ""),
            Verdict::Wrong(Deviation { error, allowed }) => {
                (format!("{error:.1e}"), format!("{allowed:.1e}"), "  WRONG")
            }
            Verdict::Failed(_) => ("-".into(), "-".into(), "  FAILED: "),
            Verdict::Skipped(_) => ("-".into(), "-".into(), "  skipped: "),
            Verdict::Timed => ("-".into(), "-".into(), ""),
        };
        let problem = match &outcome.verdict {
            Verdict::Failed(problem) => problem.as_str(),
            Verdict::Skipped(reason) => reason,
            _ => "",
        };
        let time = outcome.microseconds.map_or("-".into(), |us| format!("{us:.1}"));
        let share = self
            .share(outcome)
            .map_or("-".into(), |share| format!("{:.0} %{}", share * 100.0, if share > 1.0 { " !" } else { "" }));
        let (op, dtype, case) = (outcome.op, outcome.dtype.name(), &outcome.case);
        format!("{op:<17} {dtype:<5} {case:<46} {error:>9} {allowed:>9} {time:>10} {share:>6}{mark}{problem}\n")
    }
}

impl Outcome {
    /// One line of the report in JSON.
    pub fn json(&self, share: Option<f64>) -> Value {
        let mut line = json!({
            "op": self.op, "case": self.case, "dtype": self.dtype.name(), "passed": self.passed(),
            "microseconds": self.microseconds, "flops": self.cost.flops, "bytes": self.cost.bytes, "share": share,
        });
        if let Verdict::Passed(Deviation { error, allowed }) | Verdict::Wrong(Deviation { error, allowed }) =
            self.verdict
        {
            // JSON has no infinity.
            line["error"] = error.is_finite().then_some(error).into();
            line["allowed"] = allowed.into();
        }
        match &self.verdict {
            Verdict::Failed(problem) => line["problem"] = problem.as_str().into(),
            Verdict::Skipped(reason) => line["skipped"] = (*reason).into(),
            _ => {}
        }
        if share.is_some_and(|share| share > 1.0) {
            line["fault"] = "took less time than the peaks allow: the measurement is at fault".into();
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DType;

    #[test]
    fn operations_are_named_in_part_or_exactly() {
        let takes = |filter: &str| -> Vec<&str> {
            let filter: OpFilter = filter.parse().unwrap_or_else(|error| panic!("{error}"));
            operations().into_iter().filter(|op| filter.takes(op)).collect()
        };
        assert_eq!(takes("linear"), ["linear", "linear_decode"]);
        assert_eq!(takes("=linear"), ["linear"]);
        assert_eq!(takes(""), operations());
        for unknown in ["=line", "convolution", "="] {
            let error = OpFilter::from_str(unknown).expect_err("no such operation");
            assert!(operations().iter().all(|op| error.contains(op)), "{error}");
        }
    }

    /// 2 MFLOP and 1 MB at 1 TFLOP/s and 1 TB/s take 2 us at least.
    #[test]
    fn a_share_above_the_peak_is_a_fault_of_the_measurement() {
        let outcome = |microseconds| Outcome {
            index: 0,
            op: "linear",
            case: "a".into(),
            dtype: DType::BF16,
            verdict: Verdict::Passed(Deviation { error: 0.0, allowed: 0.0 }),
            microseconds,
            cost: Cost { flops: 2e6, bytes: 1e6 },
        };
        let mut diagnosis = Diagnosis {
            device: json!({ "name": "a", "commit": "b" }),
            peaks: Some(Peaks { bytes: 1e12, flops: 1e12 }),
            cold: true,
            outcomes: vec![outcome(Some(4.0)), outcome(None), outcome(Some(1.0))],
            lost: None,
        };
        let table = diagnosis.table();
        assert!(table.contains("  50 %\n") && table.contains("200 % !\n"), "{table}");
        assert!(table.contains("1 cases took less time than the peaks allow"), "{table}");
        assert_eq!((diagnosis.faults(), diagnosis.failed(), diagnosis.passed()), (1, 0, true));
        let peaks = Peaks { bytes: 1e12, flops: 1e12 };
        let json = |outcome: &Outcome| outcome.json(outcome.share(&peaks));
        assert!(json(&diagnosis.outcomes[2])["fault"].is_string() && json(&diagnosis.outcomes[0])["fault"].is_null());
        // In a CPU's caches more than the peak is no fault.
        diagnosis.cold = false;
        assert!(!diagnosis.table().contains('%') && diagnosis.faults() == 0);
    }
}
