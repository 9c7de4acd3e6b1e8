//! Conformance of a device: the table of cases of every operation, run by the emulator, by the tests on a GPU and by `im2sp
//! doctor`. Each case is computed by the device and by the CPU form, on fresh random inputs, into poisoned memory.

#[cfg(any(feature = "cuda", feature = "emulator"))]
mod doctor;
#[cfg(any(feature = "cuda", feature = "emulator"))]
mod harness;
#[cfg(any(feature = "cuda", feature = "emulator"))]
mod ops;
mod tolerance;

pub use tolerance::{difference, largest, round_bf16, tolerance, tolerance_bf16};

#[cfg(any(feature = "cuda", feature = "emulator"))]
pub use doctor::{Diagnosis, DoctorOptions, examine};
#[cfg(any(feature = "cuda", feature = "emulator"))]
pub use harness::{Case, Harness, OPERATIONS, OpCheck, Outcome, Size, Timer, Timing};
