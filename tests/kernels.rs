//! Every kernel on the device that IM2SP_TEST_DEVICE names ("cuda:0"); otherwise on the emulator and on every GPU of this
//! machine. The emulator takes three orders of threads, bit for bit the same, with every access to memory checked; a GPU the
//! shapes of real models too. IM2SP_OP selects operations, as `im2sp doctor --op` does.
#![cfg(any(feature = "cuda", feature = "emulator"))]

use std::sync::Arc;

use im2sp::Device;
use im2sp::backend::cuda::Cuda;
use im2sp::backend::cuda::driver::Driver;
use im2sp::conformance::{Harness, OpFilter, Size, Verdict, operations};
use im2sp::tensor::DType;

fn devices() -> Vec<Device> {
    if let Ok(name) = std::env::var("IM2SP_TEST_DEVICE") {
        return vec![name.parse().unwrap_or_else(|problem| panic!("IM2SP_TEST_DEVICE: {name}: {problem}"))];
    }
    #[cfg(feature = "emulator")]
    let emulator = std::iter::once(Device::Emulator);
    #[cfg(not(feature = "emulator"))]
    let emulator = std::iter::empty();
    emulator.chain(gpus()).collect()
}

#[cfg(feature = "cuda")]
fn gpus() -> Vec<Device> {
    match im2sp::backend::cuda::driver::gpu::probe() {
        Ok(found) => found.into_iter().map(|(index, _)| Device::Cuda(index)).collect(),
        Err(error) => {
            println!("left out: {error}");
            Vec::new()
        }
    }
}

#[cfg(not(feature = "cuda"))]
fn gpus() -> Vec<Device> {
    Vec::new()
}

fn selected() -> OpFilter {
    std::env::var("IM2SP_OP").unwrap_or_default().parse().expect("IM2SP_OP")
}

fn run_all(dtype: DType) {
    for device in devices() {
        let driver = device.driver().unwrap_or_else(|error| panic!("{device}: {error}"));
        let max_size = if matches!(device, Device::Cuda(_)) { Size::Real } else { Size::Ragged };
        let skipped = run(&device.to_string(), driver, dtype, max_size, &|op| selected().takes(op));
        assert!(skipped == 0 || matches!(device, Device::Cuda(_)), "the emulator skips {skipped} cases");
    }
}

/// Cases that the device does not offer; no other may fail.
fn run(device: &str, driver: Arc<dyn Driver>, dtype: DType, max_size: Size, takes: &dyn Fn(&str) -> bool) -> usize {
    let cuda = Cuda::new(driver, dtype).unwrap_or_else(|error| panic!("{device}: {error}"));
    let mut harness = Harness::new(&cuda, max_size);
    let lost = harness.run(takes).err();
    let failed: Vec<String> = harness.outcomes.iter().filter(|o| !o.passed()).map(|o| format!("{o:?}")).collect();
    let count = harness.outcomes.len();
    assert!(
        lost.is_none() && failed.is_empty(),
        "{device}: {lost:?}, {} of {count}:\n{}",
        failed.len(),
        failed.join("\n")
    );
    for op in operations().into_iter().filter(|op| takes(op)) {
        assert!(harness.outcomes.iter().any(|outcome| outcome.op == op), "{device}: no case of {op} was run");
    }
    let skipped = harness.outcomes.iter().filter(|o| matches!(o.verdict, Verdict::Skipped(_))).count();
    println!("{device}, {}: {count} cases, {skipped} skipped", dtype.name());
    skipped
}

#[test]
fn every_operation_in_f32() {
    run_all(DType::F32);
}

#[test]
fn every_operation_in_bf16() {
    run_all(DType::BF16);
}

/// The emulated device multiplies attention by warpgroups, as an H100 does; others do without.
#[cfg(feature = "emulator")]
#[test]
fn attention_where_warpgroups_do_not_multiply() {
    use im2sp::backend::cuda::driver::emulator::EmulatedDriver;

    if selected().takes("attention") {
        let ampere = Arc::new(EmulatedDriver::with_properties(8 << 30, |properties| properties.capability = (8, 0)));
        run("emulator of 8.0", ampere, DType::BF16, Size::Ragged, &|op| op == "attention");
    }
}
