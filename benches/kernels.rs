//! Every kernel at the shapes of real models, under criterion: measured with the device's own events, the inputs not in its
//! L2, with the share of the measured peak that binds it. The device is the first GPU, or what IM2SP_BENCH_DEVICE names;
//! IM2SP_OP selects operations. Every result is compared with the CPU form first.

#[cfg(any(feature = "cuda", feature = "emulator"))]
mod on_device {
    use std::time::Duration;

    use criterion::{Criterion, Throughput};
    use im2sp::backend::Peaks;
    use im2sp::backend::cuda::Cuda;
    use im2sp::conformance::{Harness, Size, Timing};
    use im2sp::tensor::DType;
    use im2sp::{Device, Result};

    /// Criterion measures one case, and the median of what it saw is kept for the share.
    fn measure(criterion: &mut Criterion, timing: &Timing<'_>, peaks: Peaks) -> Result<f64> {
        let Timing { op, case, dtype, cost, run } = *timing;
        let [by_bytes, by_flops] = [cost.bytes / peaks.bytes, cost.flops / peaks.flops];
        let (mut times, mut failed) = (Vec::new(), None);
        let mut group = criterion.benchmark_group(op);
        match by_flops > by_bytes {
            true => group.throughput(Throughput::Elements(cost.flops as u64)),
            false => group.throughput(Throughput::Bytes(cost.bytes as u64)),
        };
        group.bench_function(format!("{dtype}/{case}"), |b| {
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
        let median = times.get(times.len() / 2).copied().unwrap_or(f64::NAN);
        let (floor, what) = if by_flops > by_bytes { (by_flops, "tensor cores") } else { (by_bytes, "bandwidth") };
        println!("{op}/{dtype}/{case}: {:.1} % of the measured {what}", 100.0 * floor / median);
        Ok(median)
    }

    pub fn all(criterion: &mut Criterion) {
        let name = std::env::var("IM2SP_BENCH_DEVICE").unwrap_or("cuda".into());
        let device: Device = name.parse().expect("IM2SP_BENCH_DEVICE is a device");
        let driver = match device.driver() {
            Ok(driver) => driver,
            Err(error) => return println!("not measured: {error}"),
        };
        println!("{}, commit {}", driver.properties().name, env!("IM2SP_COMMIT"));
        // On the emulator only to see that this works: its clock says nothing about a GPU.
        let (max, bytes, repeats) = match name.as_str() {
            "emulator" => (Size::Small, 1 << 20, 4),
            _ => (Size::Real, 1 << 30, 4096),
        };
        let peaks = Cuda::new(driver.clone(), DType::BF16).and_then(|cuda| cuda.peaks(bytes, repeats));
        let peaks = peaks.expect("the peaks of the device");
        println!("peaks: {:.0} GB/s, {:.0} TFLOP/s", peaks.bytes / 1e9, peaks.flops / 1e12);
        for dtype in [DType::F32, DType::BF16] {
            let cuda = Cuda::new(driver.clone(), dtype).expect("a type that is computed in");
            let mut timer = |timing: Timing<'_>| measure(criterion, &timing, peaks);
            let mut harness = Harness::timed(&cuda, max, &mut timer).expect("memory for the sweep");
            harness.all(&std::env::var("IM2SP_OP").unwrap_or_default()).expect("every case can be run");
            let failed: Vec<_> = harness.outcomes.iter().filter(|outcome| !outcome.passed()).collect();
            assert!(failed.is_empty(), "wrong results: {failed:?}");
        }
    }
}

#[cfg(not(any(feature = "cuda", feature = "emulator")))]
mod on_device {
    pub fn all(_: &mut criterion::Criterion) {
        println!("not measured: built without kernels for GPUs (--features cuda)");
    }
}

criterion::criterion_group! {
    name = kernels;
    config = criterion::Criterion::default().sample_size(20).warm_up_time(std::time::Duration::from_millis(100))
        .measurement_time(std::time::Duration::from_millis(400)).without_plots();
    targets = on_device::all
}
criterion::criterion_main!(kernels);
