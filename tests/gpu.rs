//! Every kernel on every GPU of this machine, by the same test tables as on the emulator, at the shapes of real models too.
//! Without a GPU nothing is run, and the output says so.
#![cfg(feature = "cuda")]

use im2sp::backend::cuda::Cuda;
use im2sp::backend::cuda::driver::gpu;
use im2sp::conformance::{Harness, Size};
use im2sp::tensor::DType;

#[test]
fn every_operation_on_every_gpu() {
    let devices = match gpu::probe() {
        Ok(devices) => devices,
        Err(error) => return println!("left out: {error}"),
    };
    let filter = std::env::var("IM2SP_OP").unwrap_or_default();
    for (index, properties) in devices {
        for dtype in [DType::F32, DType::BF16] {
            let driver = gpu::open(index).unwrap_or_else(|error| panic!("{error}"));
            let cuda = Cuda::new(driver, dtype).expect("a type that is computed in");
            let mut harness = Harness::new(&cuda, Size::Real);
            harness.all(&filter).unwrap_or_else(|error| panic!("{error}"));
            let failed: Vec<String> =
                harness.outcomes.iter().filter(|o| !o.passed()).map(|o| format!("{o:?}")).collect();
            let (count, name) = (harness.outcomes.len(), &properties.name);
            assert!(failed.is_empty(), "{name}: {} of {count} cases:\n{}", failed.len(), failed.join("\n"));
            println!("{name}, {dtype:?}: {count} cases");
        }
    }
}
