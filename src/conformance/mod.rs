//! Conformance of a backend: a table of cases of every operation, run by the tests on the emulator and on GPUs, by `im2sp
//! doctor` and by `benches/ops.rs`. A device computes each case into poisoned memory and is compared with the CPU form; the CPU,
//! which is that form, is timed only.

mod case;
mod doctor;
mod harness;
mod ops;
mod test_backend;
mod tolerance;

pub use case::{Case, Deviation, Expected, Inputs, Outcome, Output, Prepared, Size, Verdict};
pub use doctor::{Diagnosis, DoctorOptions, Event, OpFilter, examine};
pub use harness::{Harness, Observer, Progress, Shared, Timer, Timing};
pub use ops::{OpCheck, operations};
pub use test_backend::TestBackend;
pub use tolerance::{difference, largest, round_bf16, stored, tolerance, tolerance_bf16};
