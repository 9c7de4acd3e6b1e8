//! Runs the cases of the tables on a device and collects how they went.

use super::{difference, largest, round_bf16, tolerance, tolerance_bf16};
use crate::backend::cuda::{Cuda, Tensor};
use crate::backend::prelude::*;
use crate::cost::Cost;
use crate::tensor::DType;
use crate::{Error, Result};

/// A function that checks all cases of one operation.
pub type OpCheck = fn(&mut Harness<'_>) -> Result<()>;

/// Every operation that a device has, and its table.
pub const OPERATIONS: &[(&str, OpCheck)] = &[
    ("argmax", super::ops::argmax::check),
    ("attention", super::ops::attention::check),
    ("beam_candidates", super::ops::beam_candidates::check),
    ("cache", super::ops::cache::check),
    ("conv1d", super::ops::conv1d::check),
    ("conv_transpose1d", super::ops::conv_transpose1d::check),
    ("decode_greedy", super::ops::decode_greedy::check),
    ("embed", super::ops::embed::check),
    ("layer_norm", super::ops::layer_norm::check),
    ("linear", super::ops::linear::check_sequences),
    ("linear_decode", super::ops::linear::check_steps),
    ("patch_embed", super::ops::patch_embed::check),
    ("top_k", super::ops::top_k::check),
    ("transpose", super::ops::transpose::check),
];

/// Sizes of the cases that a harness runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Size {
    /// Small enough for a sanitizer that slows a kernel down a thousandfold.
    Small,
    /// Ragged shapes around every tile size; what an emulator does in seconds.
    Ragged,
    /// The shapes of real models.
    Real,
}

/// What is expected of one case.
pub struct Case {
    /// Its shape, for people.
    pub name: String,
    /// Small, ragged or real.
    pub size: Size,
    /// Terms of the longest sum.
    pub length: usize,
    /// The exact results: the CPU form in f32 on inputs as the device holds them.
    pub expected: Vec<f32>,
    /// The same with the roundings to bf16 that the kernel makes in between; empty if it makes none.
    pub rounded: Vec<f32>,
    /// Results have to be equal to the last bit: whole numbers.
    pub exact: bool,
    /// Operations and bytes.
    pub cost: Cost,
}

/// How one case went.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The operation.
    pub op: &'static str,
    /// The case.
    pub case: String,
    /// Type the device computes in.
    pub dtype: &'static str,
    /// Largest difference.
    pub error: f32,
    /// The largest that is allowed.
    pub allowed: f32,
    /// Time of one run, where it was asked for.
    pub microseconds: Option<f64>,
    /// Operations and bytes.
    pub cost: Cost,
}

impl Outcome {
    /// Whether the device computed what it should.
    pub fn passed(&self) -> bool {
        self.error <= self.allowed
    }
}

/// A case that can be timed.
pub struct Timing<'t> {
    /// The operation.
    pub op: &'static str,
    /// The case.
    pub case: &'t str,
    /// Type the device computes in.
    pub dtype: &'static str,
    /// Operations and bytes.
    pub cost: Cost,
    /// Seconds of one run on the device's own clock; nothing of its inputs is left in the L2 from the run before.
    pub run: &'t dyn Fn() -> Result<f64>,
}

/// Times a case as often as it wants to, and says how many seconds it took.
pub type Timer<'a> = &'a mut dyn FnMut(Timing<'_>) -> Result<f64>;

/// Runs cases on a device and collects how they went.
pub struct Harness<'a> {
    /// The device.
    pub cuda: &'a Cuda,
    /// Larger cases are left out.
    pub max: Size,
    /// The outcomes so far.
    pub outcomes: Vec<Outcome>,
    op: &'static str,
    timer: Option<Timer<'a>>,
    /// What is overwritten before a run is timed: twice the L2.
    flushed: Option<Tensor>,
}

impl<'a> Harness<'a> {
    /// A harness of cases up to this size, for correctness only.
    pub fn new(cuda: &'a Cuda, max: Size) -> Harness<'a> {
        Harness { cuda, max, outcomes: Vec::new(), op: "", timer: None, flushed: None }
    }

    /// One that hands every case to `timer` too.
    pub fn timed(cuda: &'a Cuda, max: Size, timer: Timer<'a>) -> Result<Harness<'a>> {
        let words = cuda.stream().properties().l2 / 2;
        let flushed = Some(cuda.upload([1, words], &vec![0.0; words])?);
        Ok(Harness { timer: Some(timer), flushed, ..Harness::new(cuda, max) })
    }

    /// Runs every case of the operations whose name contains `filter`.
    pub fn all(&mut self, filter: &str) -> Result<()> {
        OPERATIONS.iter().filter(|(op, _)| op.contains(filter)).try_for_each(|&(op, check)| self.operation(op, check))
    }

    /// Runs every case of one operation.
    pub fn operation(&mut self, op: &'static str, check: OpCheck) -> Result<()> {
        self.op = op;
        // Inputs, too, lie in memory of just their size.
        self.cuda.poison(true);
        let done = check(self);
        self.cuda.poison(false);
        done
    }

    /// Whether the device stores sequences in bf16.
    pub fn is_bf16(&self) -> bool {
        self.cuda.dtype() == DType::BF16
    }

    /// Values as the device will hold them.
    pub fn stored(&self, values: Vec<f32>) -> Vec<f32> {
        if self.is_bf16() { values.into_iter().map(round_bf16).collect() } else { values }
    }

    /// Runs a case whose result is a tensor in the type of the device's sequences, or in f32 where `f32_result`.
    pub fn case(&mut self, case: Case, f32_result: bool, run: &dyn Fn(&Cuda) -> Result<Tensor>) -> Result<()> {
        let cuda = self.cuda;
        let stored = self.is_bf16() && !f32_result;
        self.compare(case, stored, &|| cuda.download(&run(cuda)?), &|| run(cuda).map(drop))
    }

    /// Runs a case whose f32 results the host receives.
    pub fn values(&mut self, case: Case, run: &dyn Fn(&Cuda) -> Result<Vec<f32>>) -> Result<()> {
        let cuda = self.cuda;
        self.compare(case, false, &|| run(cuda), &|| run(cuda).map(drop))
    }

    /// Runs a case whose results are whole numbers, which are compared exactly.
    pub fn ids(&mut self, mut case: Case, run: &dyn Fn(&Cuda) -> Result<Vec<u32>>) -> Result<()> {
        case.exact = true;
        self.values(case, &|cuda| Ok(run(cuda)?.into_iter().map(|id| id as f32).collect()))
    }

    /// Compares what `read` returns, stored in bf16 where `stored`, and times `run`.
    fn compare(
        &mut self,
        case: Case,
        stored: bool,
        read: &dyn Fn() -> Result<Vec<f32>>,
        run: &dyn Fn() -> Result<()>,
    ) -> Result<()> {
        let allowed = match (case.exact, stored) {
            (true, _) => 0.0,
            (_, true) => tolerance_bf16(case.length, &case.expected, &case.rounded),
            (_, false) => tolerance(case.length, largest(&case.expected)),
        };
        let (cuda, op) = (self.cuda, self.op);
        let named = |error: Error| Error::shape(op, format!("{}: {error}", case.name));
        let results = self.run_all_schedules(case.size, read).map_err(named)?;
        let mut error = difference(&results[0], &case.expected);
        // The order of threads, or a second run, must not change a bit.
        if results.iter().any(|r| r.iter().zip(&results[0]).any(|(a, b)| a.to_bits() != b.to_bits())) {
            error = f32::INFINITY;
        }
        cuda.poison(false);
        let dtype = if self.is_bf16() { "bf16" } else { "f32" };
        let (case, cost) = (&case.name, case.cost);
        let flushed = &self.flushed;
        let run = || seconds(cuda, flushed.as_ref(), run);
        let timer = self.timer.as_mut();
        let time = timer.map(|timer| timer(Timing { op, case, dtype, cost, run: &run })).transpose();
        let microseconds = time.map_err(named)?.map(|seconds| seconds * 1e6);
        cuda.poison(true);
        let case = case.clone();
        self.outcomes.push(Outcome { op, case, dtype, error, allowed, microseconds, cost });
        Ok(())
    }

    /// The result under every order of threads that the device can be made to take, and but for the largest cases with
    /// every access to memory checked; twice on a GPU.
    #[cfg_attr(not(feature = "emulator"), allow(unused_variables))]
    fn run_all_schedules(&self, size: Size, run: &dyn Fn() -> Result<Vec<f32>>) -> Result<Vec<Vec<f32>>> {
        #[cfg(feature = "emulator")]
        if let Some(emulator) = self.cuda.stream().driver().emulator() {
            return emulator.run_all_schedules(size < Size::Real, run);
        }
        Ok(vec![run()?, run()?])
    }
}

/// Seconds of a run between two events. The flush before it leaves the L2 without its inputs, and takes the device so long
/// that the launches of the run are waiting when it ends.
fn seconds(cuda: &Cuda, flushed: Option<&Tensor>, run: &dyn Fn() -> Result<()>) -> Result<f64> {
    let stream = cuda.stream();
    if let Some(flushed) = flushed {
        cuda.flush_l2(flushed)?;
    }
    let start = stream.record_event()?;
    run()?;
    let end = stream.record_event()?;
    Ok(f64::from(stream.elapsed(&start, &end)?) * 1e-3)
}
