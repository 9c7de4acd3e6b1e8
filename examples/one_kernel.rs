//! Runs one kernel, kernels/layer_norm.cu, thread by thread on the emulator: no GPU and no CUDA are needed.
//!
//!     cargo run --release --features emulator --example one_kernel
//!
//! The launcher (src/backend/cuda/layer_norm.rs) and the kernel are those that a GPU runs. Change the kernel, run this
//! again, and see what becomes of the results; `checked` stops at the first access to memory that is out of bounds, of
//! something never written, or a race, and names the line.

use std::process::ExitCode;
use std::sync::Arc;

use im2sp::Result;
use im2sp::backend::LayerNormWeights;
use im2sp::backend::cpu::Cpu;
use im2sp::backend::cuda::Cuda;
use im2sp::backend::cuda::driver::emulator::EmulatedDriver;
use im2sp::backend::prelude::*;
use im2sp::conformance::{difference, largest, tolerance};
use im2sp::random::Random;
use im2sp::tensor::DType;

const ROWS: usize = 5;
const CHANNELS: usize = 768;
const EPS: f32 = 1e-5;
const DEVICE_BYTES: usize = 64 << 20;

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether the kernel computes the same as the CPU form, whatever the order of its threads.
fn run() -> Result<bool> {
    let mut random = Random::new(1);
    let (x, weight, bias) = (random.values(ROWS * CHANNELS), random.values(CHANNELS), random.values(CHANNELS));
    let expected = layer_norm(&Cpu, &x, &weight, &bias)?;

    let driver = Arc::new(EmulatedDriver::new(DEVICE_BYTES));
    let cuda = Cuda::new(driver.clone(), DType::F32)?;
    // Once with every access to memory checked, and once for each of three orders of the threads.
    let results = driver.run_all_schedules(true, &|| layer_norm(&cuda, &x, &weight, &bias))?;

    let error = difference(&results[0], &expected);
    let allowed = tolerance(CHANNELS, largest(&expected));
    let identical = results.iter().all(|values| *values == results[0]);
    println!("layer_norm of ({ROWS}, {CHANNELS}) on the {}: {} launches", cuda.name(), driver.launches());
    println!("largest difference from the CPU form: {error:e}, allowed {allowed:e}");
    println!("results of all orders of threads are {}", if identical { "identical" } else { "different" });
    Ok(error <= allowed && identical)
}

/// The same operation on any device.
fn layer_norm<D: LayerNorm>(device: &D, x: &[f32], weight: &[f32], bias: &[f32]) -> Result<Vec<f32>> {
    let row = |values: &[f32]| device.upload([1, values.len()], values);
    let norm = LayerNormWeights { weight: row(weight)?, bias: row(bias)?, eps: EPS };
    let x = device.upload([ROWS, CHANNELS], x)?;
    device.download(&device.layer_norm(&x, &norm)?)
}
