//! The test table of every operation of a device: the same cases for the emulator, for the tests on a GPU and for `im2sp
//! doctor`. Each is computed by the device and by the CPU form, on fresh random inputs, into poisoned memory.

mod tolerance;

#[cfg(any(feature = "cuda", feature = "emulator"))]
mod argmax;
#[cfg(any(feature = "cuda", feature = "emulator"))]
mod attention;
#[cfg(any(feature = "cuda", feature = "emulator"))]
mod beam_candidates;
#[cfg(any(feature = "cuda", feature = "emulator"))]
mod cache;
#[cfg(any(feature = "cuda", feature = "emulator"))]
mod checker;
#[cfg(any(feature = "cuda", feature = "emulator"))]
mod conv1d;
#[cfg(any(feature = "cuda", feature = "emulator"))]
mod conv_transpose1d;
#[cfg(any(feature = "cuda", feature = "emulator"))]
#[cfg(any(feature = "cuda", feature = "emulator"))]
mod decode_greedy;
#[cfg(any(feature = "cuda", feature = "emulator"))]
mod doctor;
#[cfg(any(feature = "cuda", feature = "emulator"))]
mod embed;
#[cfg(any(feature = "cuda", feature = "emulator"))]
mod layer_norm;
#[cfg(any(feature = "cuda", feature = "emulator"))]
mod linear;
#[cfg(any(feature = "cuda", feature = "emulator"))]
mod patch_embed;
#[cfg(any(feature = "cuda", feature = "emulator"))]
mod top_k;
#[cfg(any(feature = "cuda", feature = "emulator"))]
mod transpose;

pub use tolerance::{Random, difference, largest, round_bf16, tolerance, tolerance_bf16};

#[cfg(any(feature = "cuda", feature = "emulator"))]
pub use checker::{Case, Checker, OPERATIONS, Outcome, Size, Timer, Timing, Work};
#[cfg(any(feature = "cuda", feature = "emulator"))]
pub use doctor::{Diagnosis, DoctorOptions, examine};
