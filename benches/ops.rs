//! Every operation at the shapes of real models, under criterion, on the device that IM2SP_BENCH_DEVICE names (cpu unless it is
//! set; cuda:N, emulator): the cases of `im2sp doctor`, in operations or bytes a second, whichever is nearer to its peak. A GPU
//! is measured by its own events, with nothing of the inputs in its L2, and each result is compared with the CPU form first.
//! IM2SP_OP selects operations as `im2sp doctor --op` does, and `-- NAME` selects cases.

use std::time::Duration;

use criterion::{Criterion, Throughput};
use im2sp::backend::Peaks;
use im2sp::backend::cpu::Cpu;
use im2sp::conformance::{Harness, OpFilter, Size, TestBackend, Timing};
use im2sp::{Device, Result};

/// Criterion measures one case; the median of what it saw is the result.
fn measure(criterion: &mut Criterion, timing: &Timing<'_>, peaks: Peaks) -> Result<f64> {
    let Timing { op, case, run } = *timing;
    let [by_bytes, by_flops] = [case.cost.bytes / peaks.bytes, case.cost.flops / peaks.flops];
    let (mut times, mut failed) = (Vec::new(), None);
    let mut group = criterion.benchmark_group(op);
    group.throughput(match by_flops > by_bytes {
        true => Throughput::Elements(case.cost.flops as u64),
        false => Throughput::Bytes(case.cost.bytes as u64),
    });
    group.bench_function(format!("{}/{}", case.dtype.name(), case.name), |b| {
        b.iter_custom(|count| {
            let runs: Result<Vec<f64>> = (0..count).map(|_| run()).collect();
            let runs = runs.unwrap_or_else(|error| {
                failed.get_or_insert(error);
                vec![1.0]
            });
            times.extend(&runs);
            Duration::from_secs_f64(runs.iter().sum())
        })
    });
    group.finish();
    if let Some(error) = failed {
        return Err(error);
    }
    times.sort_by(f64::total_cmp);
    Ok(times.get(times.len() / 2).copied().unwrap_or(f64::NAN))
}

/// Measures all cases of these sizes on a backend.
fn run_all<B: TestBackend>(criterion: &mut Criterion, backend: &B, sizes: [Size; 2]) {
    let ops: OpFilter = std::env::var("IM2SP_OP").unwrap_or_default().parse().expect("IM2SP_OP");
    let peaks = backend.measure_peaks().expect("the peaks of the device");
    println!("{}, commit {}", backend.name(), env!("IM2SP_COMMIT"));
    println!("peaks: {:.1} GB/s, {:.2} TFLOP/s", peaks.bytes / 1e9, peaks.flops / 1e12);
    let mut timer = |timing: Timing<'_>| measure(criterion, &timing, peaks);
    let [min_size, max_size] = sizes;
    let flush = backend.flush_buffer().expect("memory to flush the L2");
    let mut harness = Harness::new(backend, max_size).timed(min_size, flush, &mut timer);
    let lost = harness.run(|op| ops.takes(op));
    for outcome in harness.outcomes.iter().filter(|_| B::COMPARED) {
        // A CPU's caches, and Winograd's form of a convolution, may go beyond its peaks.
        let Some(share) = outcome.share(&peaks).filter(|share| !share.is_nan()) else { continue };
        let fault = if share > 1.0 { ": the measurement is at fault" } else { "" };
        println!("{}/{}/{}: {:.1} % of the peak{fault}", outcome.op, outcome.dtype.name(), outcome.case, share * 100.0);
    }
    lost.expect("the device answers");
    let failed: Vec<_> = harness.outcomes.iter().filter(|outcome| !outcome.passed()).collect();
    assert!(failed.is_empty(), "wrong results: {failed:?}");
}

fn ops(criterion: &mut Criterion) {
    let name = std::env::var("IM2SP_BENCH_DEVICE").unwrap_or("cpu".into());
    let device: Device = name.parse().expect("IM2SP_BENCH_DEVICE is a device");
    match device {
        Device::Cpu => run_all(criterion, &Cpu, [Size::Real; 2]),
        device => on_cuda(criterion, device),
    }
}

#[cfg(any(feature = "cuda", feature = "emulator"))]
fn on_cuda(criterion: &mut Criterion, device: Device) {
    use im2sp::backend::cuda::Cuda;
    use im2sp::tensor::DType;

    let driver = match device.driver() {
        Ok(driver) => driver,
        Err(error) => return println!("not measured: {error}"),
    };
    for dtype in [DType::F32, DType::BF16] {
        let cuda = Cuda::new(driver.clone(), dtype).expect("a type that is computed in");
        // On the emulator only to see that this works: its clock says nothing about a GPU.
        let sizes = if cuda.is_emulated() { [Size::Small; 2] } else { [Size::Real; 2] };
        run_all(criterion, &cuda, sizes);
    }
}

#[cfg(not(any(feature = "cuda", feature = "emulator")))]
fn on_cuda(_: &mut Criterion, device: Device) {
    println!("{device} not measured: built without kernels for GPUs (--features cuda)");
}

criterion::criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(400)).without_plots();
    targets = ops
}
criterion::criterion_main!(benches);
