//! A case of an operation: its inputs, what it runs, what it should give, and how it went.

use std::cell::Cell;

use super::{difference, largest, tolerance, tolerance_bf16};
use crate::Result;
use crate::backend::{Backend, Peaks};
use crate::cost::Cost;
use crate::random::{Philox, Random};
use crate::tensor::DType;

/// Sizes of cases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Size {
    /// Small enough for a sanitizer that slows a kernel down a thousandfold.
    Small,
    /// Ragged shapes around every tile size; seconds on an emulator.
    Ragged,
    /// The shapes of real models.
    Real,
}

/// One case of an operation.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its shape, for people; with the operation it also seeds the inputs.
    pub name: String,
    /// Type of the weights, or of the sequences where there are none.
    pub dtype: DType,
    /// Small, ragged or real.
    pub size: Size,
    /// Operations and bytes; zero in cases that are not timed.
    pub cost: Cost,
}

/// Random inputs of a case: every call draws from a stream of its own, so all threads draw at the same time, and the inputs
/// do not depend on the cases before.
pub struct Inputs {
    seed: u64,
    streams: Cell<u64>,
}

impl Inputs {
    /// Inputs named by an operation and a case.
    pub fn new(op: &str, case: &str) -> Inputs {
        // FNV-1a.
        let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        let seed = op.bytes().chain([0]).chain(case.bytes()).fold(0xcbf2_9ce4_8422_2325, hash);
        Inputs { seed, streams: Cell::new(0) }
    }

    fn stream(&self) -> Philox {
        Philox::new(self.seed, self.streams.replace(self.streams.get() + 1))
    }

    /// `len` values in -1..1.
    pub fn values(&self, len: usize) -> Vec<f32> {
        self.stream().values(len)
    }

    /// `len` values in -size..size.
    pub fn scaled(&self, len: usize, size: f32) -> Vec<f32> {
        let unit = |word: u32| (word >> 8) as f32 / (1 << 23) as f32 - 1.0;
        self.stream().map(len, |word| unit(word) * size)
    }

    /// `len` whole numbers from -8 to 8, whose sums and products are exact.
    pub fn whole(&self, len: usize) -> Vec<f32> {
        self.stream().map(len, |word| ((u64::from(word) * 17) >> 32) as f32 - 8.0)
    }

    /// `len` whole numbers in 0..end.
    pub fn below(&self, len: usize, end: usize) -> Vec<usize> {
        self.stream().below(len, end)
    }

    /// A sequential generator.
    pub fn random(&self) -> Random {
        Random::new(u64::from(self.stream().word(0)))
    }
}

/// Result of an operation.
pub enum Output<B: Backend> {
    /// A tensor, which is downloaded for the comparison and dropped where a run is timed.
    Tensor(B::Tensor),
    /// Values on the host.
    Values(Vec<f32>),
}

impl<B: Backend> Output<B> {
    /// Whole numbers on the host, as values.
    pub fn ids(ids: &[u32]) -> Output<B> {
        Output::Values(ids.iter().map(|&id| id as f32).collect())
    }
}

/// Compares what a backend computed where no list of values can be expected.
type Judge<'c> = Box<dyn FnOnce(&[f32]) -> Result<Deviation> + 'c>;

/// Expected result of a case.
pub enum Expected<'c> {
    /// Equal numbers.
    Exact(Vec<f32>),
    /// Numbers within the tolerance.
    Close {
        /// The exact results: those of the CPU form in f32, on inputs as the device holds them.
        values: Vec<f32>,
        /// The same with the roundings to bf16 that the kernel makes in between; empty if it makes none.
        rounded: Vec<f32>,
        /// Terms of the longest sum.
        terms: usize,
        /// Type in which the backend stores the results.
        stored: DType,
    },
    /// Results that only a computation can judge.
    Judged(Judge<'c>),
}

impl<'c> Expected<'c> {
    /// Sums of `terms`, stored in `stored`, of a kernel that rounds nothing in between.
    pub fn close(values: Vec<f32>, terms: usize, stored: DType) -> Expected<'c> {
        Expected::Close { values, rounded: Vec::new(), terms, stored }
    }

    /// Whole numbers.
    pub fn ids(ids: &[u32]) -> Expected<'c> {
        Expected::Exact(ids.iter().map(|&id| id as f32).collect())
    }

    /// Results that `judge` compares.
    pub fn judged(judge: impl FnOnce(&[f32]) -> Result<Deviation> + 'c) -> Expected<'c> {
        Expected::Judged(Box::new(judge))
    }

    /// Deviation of `actual`.
    pub fn compare(self, actual: &[f32]) -> Result<Deviation> {
        Ok(match self {
            Expected::Exact(values) => Deviation { error: difference(actual, &values), allowed: 0.0 },
            Expected::Close { values, rounded, terms, stored } => {
                let allowed = match stored {
                    DType::BF16 => tolerance_bf16(terms, &values, &rounded),
                    _ => tolerance(terms, largest(&values)),
                };
                Deviation { error: difference(actual, &values), allowed }
            }
            Expected::Judged(judge) => judge(actual)?,
        })
    }
}

/// A case whose inputs are on the backend.
pub enum Prepared<'c, B: Backend> {
    /// It can be run.
    Ready {
        /// Computes on the backend.
        run: Box<dyn Fn() -> Result<Output<B>> + 'c>,
        /// Makes the expected results.
        expected: Box<dyn FnOnce() -> Result<Expected<'c>> + 'c>,
    },
    /// The device does not offer it, for this reason; models do without.
    Skipped(&'static str),
}

impl<'c, B: Backend> Prepared<'c, B> {
    /// `run` computes on the backend, as often as it is called; `expected` says what it should give, and is not called where
    /// nothing is compared.
    pub fn new(
        run: impl Fn() -> Result<Output<B>> + 'c,
        expected: impl FnOnce() -> Result<Expected<'c>> + 'c,
    ) -> Result<Prepared<'c, B>> {
        Ok(Prepared::Ready { run: Box::new(run), expected: Box::new(expected) })
    }
}

/// Largest error of a case and the largest that is allowed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Deviation {
    /// Largest difference.
    pub error: f32,
    /// Largest allowed difference.
    pub allowed: f32,
}

/// Result of a case.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Within the tolerance.
    Passed(Deviation),
    /// Outside of it.
    Wrong(Deviation),
    /// No result, or one that changes from run to run: an error's or a panic's text.
    Failed(String),
    /// Timed and not compared.
    Timed,
    /// Not run, for this reason.
    Skipped(&'static str),
}

/// Outcome of one case.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Place among all cases that were run.
    pub index: usize,
    /// The operation.
    pub op: &'static str,
    /// The case.
    pub case: String,
    /// Type of the weights, or of the sequences where there are none.
    pub dtype: DType,
    /// Its result.
    pub verdict: Verdict,
    /// Time of one run, where it was timed.
    pub microseconds: Option<f64>,
    /// Operations and bytes.
    pub cost: Cost,
}

impl Outcome {
    /// True if nothing is wrong.
    pub fn passed(&self) -> bool {
        matches!(self.verdict, Verdict::Passed(_) | Verdict::Timed | Verdict::Skipped(_))
    }

    /// Share of the peak that binds the case, above 1 if the measurement is at fault; none where it was not timed.
    pub fn share(&self, peaks: &Peaks) -> Option<f64> {
        let floor = (self.cost.flops / peaks.flops).max(self.cost.bytes / peaks.bytes);
        self.microseconds.filter(|_| floor > 0.0).map(|time| floor * 1e6 / time)
    }
}
