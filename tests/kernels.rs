//! Every kernel on the emulated device, by the test tables that `im2sp doctor` runs on a GPU: three orders of threads, bit
//! for bit the same, within the tolerance of the CPU form.
#![cfg(feature = "emulator")]

use std::sync::Arc;

use im2sp::backend::cuda::Cuda;
use im2sp::backend::cuda::driver::emulator::EmulatedDriver;
use im2sp::conformance::{Harness, OPERATIONS, Size};
use im2sp::tensor::DType;

fn check(dtype: DType) {
    let cuda = Cuda::new(Arc::new(EmulatedDriver::new(4 << 30)), dtype).expect("the emulator is always there");
    let filter = std::env::var("IM2SP_OP").unwrap_or_default();
    let mut harness = Harness::new(&cuda, Size::Ragged);
    harness.all(&filter).unwrap_or_else(|error| panic!("{error}"));
    let failed: Vec<String> = harness.outcomes.iter().filter(|o| !o.passed()).map(|o| format!("{o:?}")).collect();
    assert!(failed.is_empty(), "{} of {} cases:\n{}", failed.len(), harness.outcomes.len(), failed.join("\n"));
    assert!(harness.outcomes.len() >= OPERATIONS.iter().filter(|(op, _)| op.contains(&filter)).count());
}

#[test]
fn every_operation_in_f32() {
    check(DType::F32);
}

#[test]
fn every_operation_in_bf16() {
    check(DType::BF16);
}
