//! The emulator finds what it is for. kernels/emulator/faulty.cu and faulty_pair.cu hold kernels with one mistake each: every one
//! has to be found and named, and its twin without the mistake has to pass.
#![cfg(feature = "emulator")]

use std::sync::Arc;

use im2sp::backend::cuda::driver::emulator::faulty::{self, FaultyPairParams, FaultyParams};
use im2sp::backend::cuda::driver::emulator::{EmulatedDriver, Order, Settings};
use im2sp::backend::cuda::driver::{BoxedMatrix, Driver, Kernel, Launch, Stream};
use im2sp::random::Random;

type Faulty = Kernel<FaultyParams>;

const THREADS: usize = 128;
const SHARED: usize = faulty::SIZE_OF_VALUES;
const CHECKED: Settings = Settings { order: Order::Forward, checked: true };
const ORDERS: [Order; 3] = [Order::Forward, Order::Backward, Order::Shuffled(1)];

/// A device with memory for one kind of launch.
struct Bench {
    driver: EmulatedDriver,
    stream: Arc<dyn Stream>,
    params: FaultyParams,
    launch: Launch,
    results: usize,
}

impl Bench {
    /// `values` inputs 0, 1, 2..., as many `results`, some flags of zero.
    fn new(blocks: usize, values: usize, results: usize) -> Bench {
        let driver = EmulatedDriver::new(1 << 24);
        let stream = driver.new_stream().expect("a stream");
        let bytes = |n: usize| n * size_of::<f32>();
        let allocate = |n| stream.allocate(bytes(n)).expect("there is room");
        let params = FaultyParams {
            x: allocate(values),
            y: allocate(results),
            flag: allocate(16),
            count: values as i32,
            unused: 0,
        };
        let x: Vec<f32> = (0..values).map(|n| n as f32).collect();
        // SAFETY: as many bytes were allocated.
        unsafe { stream.copy_to_device(params.x, bytemuck::cast_slice(&x)) }.expect("the memory is the driver's");
        Bench { driver, stream, params, launch: Launch::blocks(blocks).shared_bytes(SHARED), results }
    }

    fn cooperative(mut self) -> Bench {
        self.launch.cooperative = true;
        self
    }

    /// The results, or what was found.
    fn run(&self, kernel: &'static Faulty, settings: Settings) -> Result<Vec<f32>, String> {
        self.driver.set(settings);
        let mut results = vec![0.0f32; self.results];
        // SAFETY: the memory is as large as `new` made it; kernels that leave it are what this is about, and the emulator
        // ends them, or they stay within the guards.
        unsafe {
            self.stream.poison(self.params.y, self.results * 4).map_err(|e| e.to_string())?;
            self.stream.memset(self.params.flag, 0, 64).map_err(|e| e.to_string())?;
            self.stream
                .launch(&kernel.info, self.launch, bytemuck::bytes_of(&self.params))
                .expect("it can be launched");
            self.stream
                .copy_to_host(self.params.y, bytemuck::cast_slice_mut(&mut results))
                .map_err(|e| e.to_string())?;
        }
        Ok(results)
    }

    /// The mistake is found, in words that contain all `parts`, and the twin passes in every way.
    #[track_caller]
    fn finds(&self, wrong: &'static Faulty, right: &'static Faulty, parts: &[&str]) {
        let found = self.run(wrong, CHECKED).expect_err("the mistake has to be found");
        let whole = [wrong.info.name];
        for part in parts.iter().chain(&whole) {
            assert!(found.contains(part), "{part:?} is missing in: {found}");
        }
        self.passes(right);
    }

    /// The same results, bit for bit, in every way.
    #[track_caller]
    fn passes(&self, right: &'static Faulty) -> Vec<f32> {
        let checked = self.run(right, CHECKED).unwrap_or_else(|error| panic!("{error}"));
        for order in ORDERS {
            let plain = self.run(right, Settings { order, checked: false }).unwrap_or_else(|error| panic!("{error}"));
            assert!(plain.iter().zip(&checked).all(|(a, b)| a.to_bits() == b.to_bits()), "{order:?} differs");
        }
        checked
    }

    /// Results of every order of threads.
    fn plain(&self, kernel: &'static Faulty) -> Vec<Result<Vec<f32>, String>> {
        ORDERS.map(|order| self.run(kernel, Settings { order, checked: false })).into()
    }
}

/// Whether two orders of threads computed different things.
fn differ(results: &[Result<Vec<f32>, String>]) -> bool {
    let bits = |result: &Result<Vec<f32>, String>| {
        result.as_ref().expect("plain launches do not see it").iter().map(|v| v.to_bits()).collect::<Vec<_>>()
    };
    results.iter().any(|result| bits(result) != bits(&results[0]))
}

#[test]
fn a_missing_barrier_of_the_block_is_a_race() {
    let bench = Bench::new(1, THREADS, THREADS);
    let parts = [
        "data race in shared memory: thread 37 of block (0, 0, 0) writes 4 bytes of shared memory + 148 (of 512 bytes)",
        "thread 0 of block (0, 0, 0) read there at kernels/emulator/faulty.cu:",
        "the block met at no barrier before",
    ];
    bench.finds(&faulty::FAULTY_BLOCK_BARRIER, &faulty::FAULTY_BLOCK_BARRIER_RIGHT, &parts);
    let parts = ["data race in shared memory", "the block last met in sync_block at kernels/emulator/faulty.cu:"];
    bench.finds(&faulty::FAULTY_SECOND_BARRIER, &faulty::FAULTY_SECOND_BARRIER_RIGHT, &parts);
}

#[test]
fn a_missing_barrier_shows_in_plain_launches_as_results_that_differ() {
    let bench = Bench::new(1, THREADS, THREADS);
    assert!(differ(&bench.plain(&faulty::FAULTY_BLOCK_BARRIER)));
    assert!(differ(&bench.plain(&faulty::FAULTY_SECOND_BARRIER)));
}

#[test]
fn a_missing_barrier_of_the_warp_is_a_race() {
    let bench = Bench::new(1, THREADS, THREADS);
    let parts =
        ["data race in shared memory: thread 0 of block (0, 0, 0) reads", "thread 1 of block (0, 0, 0) wrote there"];
    bench.finds(&faulty::FAULTY_WARP_BARRIER, &faulty::FAULTY_WARP_BARRIER_RIGHT, &parts);
    let (wrong, right) = (&faulty::FAULTY_WARP_BARRIER_FOR_BLOCK, &faulty::FAULTY_WARP_BARRIER_FOR_BLOCK_RIGHT);
    bench.finds(wrong, right, &["data race in shared memory: thread 32 of block (0, 0, 0)"]);
    let parts =
        ["data race in shared memory: thread 1 of block (0, 0, 0) writes", "thread 0 of block (0, 0, 0) read there"];
    bench.finds(&faulty::FAULTY_MATRIX_ROWS, &faulty::FAULTY_MATRIX_ROWS_RIGHT, &parts);
}

#[test]
fn blocks_must_not_write_to_the_same_place() {
    let bench = Bench::new(3, THREADS, THREADS);
    let parts = [
        "data race in device memory: thread 0 of block (1, 0, 0) writes 4 bytes of the memory of `y` + 0 (of 512 bytes)",
        "thread 0 of block (0, 0, 0) wrote there at kernels/emulator/faulty.cu:",
        "no release and acquire lie between",
    ];
    bench.finds(&faulty::FAULTY_SAME_PLACE, &faulty::FAULTY_SAME_PLACE_RIGHT, &parts);
}

#[test]
fn the_last_block_sees_the_others_only_through_release_and_acquire() {
    let blocks = 4;
    let bench = Bench::new(blocks, blocks * THREADS, (blocks + 1) * THREADS);
    let parts = ["data race in device memory: thread 0 of block (3, 0, 0) reads", "of block (0, 0, 0) wrote there"];
    bench.finds(&faulty::FAULTY_LAST_BLOCK, &faulty::FAULTY_LAST_BLOCK_RIGHT, &parts);
    let parts =
        ["data race in device memory: thread 1 of block (3, 0, 0) reads", "thread 1 of block (0, 0, 0) wrote there"];
    bench.finds(&faulty::FAULTY_LAST_BLOCK_TOO_EARLY, &faulty::FAULTY_LAST_BLOCK_FENCED_RIGHT, &parts);
    let sums = bench.passes(&faulty::FAULTY_LAST_BLOCK_RIGHT);
    assert_eq!(sums[5], (0..blocks).map(|block| (block * THREADS + 5) as f32).sum::<f32>());
}

#[test]
fn a_flag_orders_what_one_thread_wrote_for_another() {
    let bench = Bench::new(3, THREADS, 6).cooperative();
    let parts = ["data race in device memory: thread 32 of block (1, 0, 0) reads", "thread 0 of block (0, 0, 0) wrote"];
    bench.finds(&faulty::FAULTY_FLAG, &faulty::FAULTY_FLAG_RIGHT, &parts);
}

#[test]
fn a_grid_barrier_orders_everything() {
    let blocks = 3;
    let bench = Bench::new(blocks, 1, 2 * blocks * THREADS).cooperative();
    let parts = ["data race in device memory", "the memory of `y`"];
    bench.finds(&faulty::FAULTY_GRID, &faulty::FAULTY_GRID_RIGHT, &parts);
    let seen = bench.passes(&faulty::FAULTY_GRID_RIGHT);
    assert_eq!(seen[blocks * THREADS], 2000.0 + 2.0 * THREADS as f32 - 1.0);
    // One block alone, too.
    Bench { launch: Launch { grid: [1, 1, 1], ..bench.launch }, ..bench }.passes(&faulty::FAULTY_GRID_RIGHT);
}

#[test]
fn accesses_out_of_bounds_are_found_before_they_happen() {
    let values = 200;
    let bench = Bench::new(2, values, values);
    let parts =
        ["out of bounds: thread 72 of block (1, 0, 0) writes 4 bytes of the memory of `y` + 800 (of 800 bytes)"];
    bench.finds(&faulty::FAULTY_OUT_OF_BOUNDS_WRITE, &faulty::FAULTY_OUT_OF_BOUNDS_WRITE_RIGHT, &parts);
    let parts = ["out of bounds: thread 72 of block (1, 0, 0) reads 4 bytes of the memory of `x` + 800 (of 800 bytes)"];
    bench.finds(&faulty::FAULTY_OUT_OF_BOUNDS_READ, &faulty::FAULTY_OUT_OF_BOUNDS_READ_RIGHT, &parts);
    let bench = Bench::new(1, values, values);
    let parts = ["out of bounds: thread 0 of block (0, 0, 0) writes 804 bytes of the memory of `y` + 0 (of 800 bytes)"];
    bench.finds(&faulty::FAULTY_SET_MEMORY, &faulty::FAULTY_SET_MEMORY_RIGHT, &parts);
    let bench = Bench::new(1, 90, 90);
    let parts = ["out of bounds: thread 10 of block (0, 0, 0)", "36 bytes of the memory of `y` + 360 (of 360 bytes)"];
    bench.finds(&faulty::FAULTY_WIDE_COPY, &faulty::FAULTY_WIDE_COPY_RIGHT, &parts);
    let bench = Bench::new(1, THREADS, THREADS);
    let parts = ["out of bounds: thread 124 of block (0, 0, 0) writes 4 bytes of shared memory + 512 (of 512 bytes)"];
    bench.finds(&faulty::FAULTY_SHARED_OUT_OF_BOUNDS, &faulty::FAULTY_SHARED_OUT_OF_BOUNDS_RIGHT, &parts);
    let parts = ["index beyond the end of an array at kernels/emulator/faulty.cu:", "by thread 15 of block (0, 0, 0)"];
    bench.finds(&faulty::FAULTY_ARRAY_INDEX, &faulty::FAULTY_ARRAY_INDEX_RIGHT, &parts);
}

#[test]
fn a_write_beside_memory_shows_in_plain_launches() {
    let bench = Bench::new(2, 200, 200);
    for result in bench.plain(&faulty::FAULTY_OUT_OF_BOUNDS_WRITE) {
        let found = result.expect_err("the guard words changed");
        assert!(found.contains("faulty_out_of_bounds_write: wrote beside the 800 bytes"), "{found}");
    }
    let bench = Bench::new(2, THREADS, THREADS);
    for result in bench.plain(&faulty::FAULTY_SHARED_OUT_OF_BOUNDS) {
        let found = result.expect_err("the guard words changed");
        assert!(found.contains(", 0, 0) wrote beside its 512 bytes of shared memory"), "{found}");
    }
}

#[test]
fn misaligned_vectors_are_found() {
    let bench = Bench::new(1, 4 * THREADS + 4, THREADS);
    let parts = ["misaligned access at kernels/emulator/faulty.cu:", "by thread 0 of block (0, 0, 0)"];
    bench.finds(&faulty::FAULTY_MISALIGNED, &faulty::FAULTY_MISALIGNED_RIGHT, &parts);
}

#[test]
fn what_was_never_written_must_not_be_read() {
    let mut bench = Bench::new(1, 100, THREADS);
    // More memory than values.
    bench.params.x = bench.stream.allocate(4 * THREADS).expect("there is room");
    // SAFETY: as many bytes were allocated.
    unsafe { bench.stream.copy_to_device(bench.params.x, &[0; 400]) }.expect("the memory is the driver's");
    let parts =
        ["uninitialised read: thread 100 of block (0, 0, 0) reads 4 bytes of the memory of `x` + 400 (of 512 bytes)"];
    let found = bench.run(&faulty::FAULTY_UNINITIALISED, CHECKED).expect_err("the mistake has to be found");
    parts.iter().for_each(|part| assert!(found.contains(part), "{part:?} is missing in: {found}"));
    bench.passes(&faulty::FAULTY_UNINITIALISED_RIGHT);
    // A plain launch may have written anything; what is poisoned after it counts as never written.
    bench.run(&faulty::FAULTY_UNINITIALISED, CHECKED).expect("all of it may have been written");
    // SAFETY: as above.
    unsafe { bench.stream.poison(bench.params.x, 8) }.expect("the memory is the driver's");
    let found = bench.run(&faulty::FAULTY_UNINITIALISED_RIGHT, CHECKED).expect_err("it was poisoned");
    assert!(found.contains("uninitialised read: thread 0 of block (0, 0, 0)"), "{found}");

    let bench = Bench::new(1, THREADS, THREADS);
    let parts = [
        "uninitialised read: thread 0 of block (0, 0, 0) reads 4 bytes of shared memory + 12 (of 512 bytes)",
        "the block last met in sync_block at kernels/emulator/faulty.cu:",
    ];
    bench.finds(&faulty::FAULTY_UNINITIALISED_SHARED, &faulty::FAULTY_UNINITIALISED_SHARED_RIGHT, &parts);
}

#[test]
fn barriers_have_to_be_reached_by_all() {
    let bench = Bench::new(1, THREADS, THREADS);
    let cases: [(&'static Faulty, &'static Faulty, &[&str]); 4] = [
        (
            &faulty::FAULTY_DIVERGENT_BLOCK,
            &faulty::FAULTY_DIVERGENT_BLOCK_RIGHT,
            &[
                "divergent barrier of a block in block (",
                "thread 0 waits in sync_block at kernels/",
                "thread 64 has ended",
            ],
        ),
        (
            &faulty::FAULTY_DIVERGENT_WARP,
            &faulty::FAULTY_DIVERGENT_WARP_RIGHT,
            &["divergent barrier of a warp", "thread 0 waits in sync_warp at", "thread 16 waits in sync_block at"],
        ),
        (
            &faulty::FAULTY_TWO_BARRIERS,
            &faulty::FAULTY_TWO_BARRIERS_RIGHT,
            &["divergent barrier of a warp", "thread 0 waits in sync_warp at", "thread 16 waits in shuffle at"],
        ),
        (
            &faulty::FAULTY_ENDED_LANE,
            &faulty::FAULTY_ENDED_LANE_RIGHT,
            &["divergent barrier of a warp", "thread 0 waits in shuffle at", "thread 5 has ended"],
        ),
    ];
    for (wrong, right, parts) in cases {
        bench.finds(wrong, right, parts);
        for result in bench.plain(wrong) {
            let found = result.expect_err("plain launches see it too");
            assert!(found.contains(parts[0]), "{found}");
        }
    }
}

#[test]
fn threads_that_wait_for_ever_are_found() {
    let bench = Bench::new(1, THREADS, THREADS);
    let parts = [
        "deadlock in block (0, 0, 0): 127 threads from 0 on wait in sync_block at",
        "thread 77 waits in spin_pause at",
    ];
    bench.finds(&faulty::FAULTY_WAITS_FOR_EVER, &faulty::FAULTY_WAITS_FOR_EVER_RIGHT, &parts);
    let parts =
        ["waits for a flag in a loop without spin_pause at kernels/emulator/", "by thread 77 of block (0, 0, 0)"];
    bench.finds(&faulty::FAULTY_WAITS_WITHOUT_PAUSE, &faulty::FAULTY_WAITS_WITHOUT_PAUSE_RIGHT, &parts);
    let bench = Bench::new(2, 1, 2).cooperative();
    let parts =
        ["deadlock in block (0, 0, 0): thread 0 waits in spin_pause", "127 threads from 1 on wait in sync_block"];
    bench.finds(&faulty::FAULTY_BLOCKS_WAIT, &faulty::FAULTY_BLOCKS_WAIT_RIGHT, &parts);
    bench.plain(&faulty::FAULTY_BLOCKS_WAIT).into_iter().for_each(|result| {
        assert!(result.expect_err("plain launches see it too").contains("deadlock in block"));
    });
}

#[test]
fn copies_have_to_be_waited_for() {
    let bench = Bench::new(1, THREADS, THREADS);
    let right = &faulty::FAULTY_COPY_RIGHT;
    let parts =
        ["access to what an asynchronous copy has not been waited for: thread 0 of block (0, 0, 0) reads 4 bytes"];
    bench.finds(&faulty::FAULTY_COPY_NOT_WAITED, right, &parts);
    bench.finds(&faulty::FAULTY_COPY_NO_BARRIER, right, &["data race in shared memory"]);
    let parts = ["asynchronous copy has not been waited for: thread 0 of block (0, 0, 0) writes 4 bytes"];
    bench.finds(&faulty::FAULTY_COPY_OVERWRITTEN, right, &parts);
    // In a plain launch, little has arrived.
    let results = bench.plain(&faulty::FAULTY_COPY_NOT_WAITED);
    assert!(results.iter().all(|result| result.as_ref().is_ok_and(|values| values.iter().any(|v| v.is_nan()))));
}

#[test]
fn a_fault_ends_the_launch_and_leaves_the_driver_usable() {
    let bench = Bench::new(1, THREADS, THREADS);
    for settings in [CHECKED, Settings { order: Order::Backward, checked: false }] {
        bench.driver.set(settings);
        let bytes = bytemuck::bytes_of(&bench.params);
        // SAFETY: the kernel ends at its first barrier.
        unsafe { bench.stream.launch(&faulty::FAULTY_DIVERGENT_BLOCK.info, bench.launch, bytes) }
            .expect("reported later");
        let found = bench.stream.synchronize().expect_err("the launch failed").to_string();
        assert!(found.contains("kernel faulty_divergent_block: divergent barrier"), "{found}");
        bench.stream.synchronize().expect("a failure is reported once");
        bench.passes(&faulty::FAULTY_DIVERGENT_BLOCK_RIGHT);
    }
}

#[test]
fn graphs_replay_what_was_recorded() {
    let bench = Bench::new(2, 2 * THREADS, 2 * THREADS);
    let (driver, stream) = (&bench.driver, &bench.stream);
    driver.set(CHECKED);
    let bytes = bytemuck::bytes_of(&bench.params);
    stream.begin_capture().expect("none is under way");
    // SAFETY: the memory is as large as the kernel needs.
    unsafe {
        stream.poison(bench.params.y, 2 * THREADS * 4).expect("recorded");
        stream.launch(&faulty::FAULTY_OUT_OF_BOUNDS_READ_RIGHT.info, bench.launch, bytes).expect("recorded");
        stream.copy(bench.params.x, bench.params.y, 4).expect("recorded");
        stream.memset(bench.params.x.offset(4), 0, 4).expect("recorded");
    }
    let graph = stream.end_capture().expect("one is under way");
    assert_eq!(driver.launches(), 0);
    let mut seen = vec![0.0f32; 4];
    for _ in 0..2 {
        // SAFETY: as above; nothing was freed.
        unsafe { stream.replay(&graph) }.expect("all of it can be done");
        // SAFETY: the memory holds as many.
        unsafe { stream.copy_to_host(bench.params.y, bytemuck::cast_slice_mut(&mut seen)) }.expect("it passed");
    }
    assert_eq!((driver.launches(), seen), (2, vec![0.0, 0.0, 2.0, 3.0]));
}

#[test]
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
fn what_the_processor_refuses_ends_the_launch_not_the_process() {
    let bench = Bench::new(1, THREADS, THREADS);
    let cases: [(&'static Faulty, &'static Faulty, &str); 3] = [
        (&faulty::FAULTY_LARGE_FRAME, &faulty::FAULTY_LARGE_FRAME_RIGHT, "stack overflow"),
        (&faulty::FAULTY_WILD_POINTER, &faulty::FAULTY_WILD_POINTER_RIGHT, "where there is no memory"),
        (&faulty::FAULTY_DIVISION, &faulty::FAULTY_DIVISION_RIGHT, "division by zero"),
    ];
    for (wrong, right, part) in cases {
        for result in bench.plain(wrong) {
            let found = result.expect_err("the processor refused it");
            let parts = [part, wrong.info.name, " at kernels/emulator/faulty.cu:", "by thread "];
            // Division does not trap on every processor.
            let traps = part != "division by zero" || cfg!(target_arch = "x86_64");
            assert!(!traps || parts.iter().all(|part| found.contains(part)), "{found}");
        }
        bench.passes(right);
    }
    let found = bench.run(&faulty::FAULTY_LARGE_FRAME, CHECKED).expect_err("no stack holds it");
    assert!(found.contains("stack overflow"), "{found}");
    let parts = ["out of bounds: thread 0 of block (0, 0, 0) writes 4 bytes of 0x", "which is no memory of the device"];
    bench.finds(&faulty::FAULTY_WILD_POINTER, &faulty::FAULTY_WILD_POINTER_RIGHT, &parts);
    let parts = ["division by zero", " at kernels/emulator/faulty.cu:", "by thread 20 of block (0, 0, 0)"];
    bench.finds(&faulty::FAULTY_DIVISION, &faulty::FAULTY_DIVISION_RIGHT, &parts);
}

/// A product of whole numbers as real kernels do it.
fn product(size: usize) -> (Bench, Vec<f32>) {
    let tiles = size / 64;
    let mut bench = Bench::new(1, 2 * size * size / 2, size * size);
    bench.launch = Launch::grid([tiles, tiles, 1]).shared_bytes(faulty::SIZE_OF_STAGES);
    bench.params.count = size as i32;
    let values = Random::new(5).whole(2 * size * size);
    let stored: Vec<half::bf16> = values.iter().map(|&v| half::bf16::from_f32(v)).collect();
    // SAFETY: as many bytes were allocated.
    unsafe { bench.stream.copy_to_device(bench.params.x, bytemuck::cast_slice(&stored)) }
        .expect("the memory is the driver's");
    let (a, b) = values.split_at(size * size);
    let dot = |row: &[f32], column: &[f32]| row.iter().zip(column).map(|(a, b)| a * b).sum::<f32>();
    let expected = a.chunks(size).flat_map(|row| b.chunks(size).map(move |column| dot(row, column))).collect();
    (bench, expected)
}

#[test]
fn tensor_cores_multiply_exactly() {
    let (bench, expected) = product(128);
    let parts = ["data race in shared memory", "at kernels/emulator/faulty.cu:"];
    bench.finds(&faulty::FAULTY_PRODUCT, &faulty::FAULTY_PRODUCT_RIGHT, &parts);
    assert_eq!(bench.passes(&faulty::FAULTY_PRODUCT_RIGHT), expected);
}

#[test]
fn warpgroups_multiply_exactly() {
    let (mut bench, expected) = product(64);
    bench.launch = Launch::blocks(1).shared_bytes(faulty::SIZE_OF_OPERANDS);
    let right = &faulty::FAULTY_WARPGROUP_RIGHT;
    bench.finds(&faulty::FAULTY_WARPGROUP_UNFENCED, right, &["without fence_async_proxy"]);
    bench.finds(&faulty::FAULTY_WARPGROUP_WITHOUT_BARRIER, right, &["data race in shared memory"]);
    bench.finds(&faulty::FAULTY_WARPGROUP_TOUCHED, right, &["data race in shared memory"]);
    assert_eq!(bench.passes(right), expected);
}

#[test]
#[ignore]
fn speed() {
    let (bench, expected) = product(256);
    let n: usize = std::env::var("N").map(|n| n.parse().unwrap()).unwrap_or(20);
    for checked in [false, true] {
        if std::env::var("ONLY").is_ok_and(|v| v != format!("{checked}")) {
            continue;
        }
        let start = std::time::Instant::now();
        for _ in 0..n {
            assert_eq!(
                bench.run(&faulty::FAULTY_PRODUCT_RIGHT, Settings { order: Order::Forward, checked }).unwrap(),
                expected
            );
        }
        println!("product checked {checked}: {:.2} ms", start.elapsed().as_secs_f64() * 1e3 / n as f64);
    }
}

#[test]
#[ignore]
fn speed_blocks() {
    let bench = Bench::new(4096, 128 * 4096, 128 * 4096);
    let n: usize = std::env::var("N").map(|n| n.parse().unwrap()).unwrap_or(20);
    for checked in [false, true] {
        if std::env::var("ONLY").is_ok_and(|v| v != format!("{checked}")) {
            continue;
        }
        for kernel in [&faulty::FAULTY_OUT_OF_BOUNDS_WRITE_RIGHT, &faulty::FAULTY_SAME_PLACE_RIGHT] {
            let start = std::time::Instant::now();
            for _ in 0..n {
                bench.run(kernel, Settings { order: Order::Forward, checked }).unwrap();
            }
            println!("blocks checked {checked}: {:.2} ms", start.elapsed().as_secs_f64() * 1e3 / n as f64);
        }
    }
}

/// Sums of the pair's threads, or what was found, over boxes of a matrix of ones.
fn run_pair(kernel: &'static Kernel<FaultyPairParams>, settings: Settings) -> Result<Vec<f32>, String> {
    const LINES: usize = 5 * 64;
    const ONE: u16 = 0x3f80;
    let driver = EmulatedDriver::new(1 << 24);
    let stream = driver.new_stream().expect("a stream");
    driver.set(settings);
    let matrix = stream.allocate(LINES * 128).expect("there is room");
    let mut sums = vec![0.0f32; 2 * THREADS];
    let y = stream.allocate(sums.len() * 4).expect("there is room");
    // The last lines lie outside, and count as zeros.
    let map = BoxedMatrix { pointer: matrix, rows: LINES - 40, columns: 64, box_rows: 32 };
    let map = stream.tensor_map(map).expect("a map");
    let params = FaultyPairParams { map, y, lines: LINES as i32, unused: [0; 29] };
    let launch = Launch::blocks(2).shared_bytes(faulty::SIZE_OF_BOXES);
    // SAFETY: as many bytes were allocated; the emulator ends kernels that leave them.
    unsafe {
        stream.copy_to_device(matrix, bytemuck::cast_slice(&[ONE; LINES * 64])).expect("the memory is the driver's");
        stream.launch(&kernel.info, launch, bytemuck::bytes_of(&params)).expect("it can be launched");
        stream.copy_to_host(y, bytemuck::cast_slice_mut(&mut sums)).map_err(|e| e.to_string())?;
    }
    Ok(sums)
}

#[test]
fn pairs_of_blocks_share_boxes() {
    // Five boxes of 64 lines, a thread for each half of a line; the last forty lines are zeros.
    let expected: Vec<f32> =
        (0..2 * THREADS).map(|n| if n % THREADS / 2 < 24 { 5.0 * 32.0 } else { 4.0 * 32.0 }).collect();
    for settings in ORDERS.map(|order| Settings { order, checked: false }).into_iter().chain([CHECKED]) {
        assert_eq!(run_pair(&faulty::FAULTY_PAIR_RIGHT, settings).as_deref(), Ok(&expected[..]), "{settings:?}");
    }
}

#[test]
fn mistakes_of_pairs_are_found() {
    let not_waited = "access to what an asynchronous copy has not been waited for";
    for (wrong, part) in [
        // The box that is still on its way to the other block.
        (&faulty::FAULTY_PAIR_UNFENCED, "sync_pair after barrier_init without fence_barriers"),
        (&faulty::FAULTY_PAIR_OVERWRITTEN, not_waited),
        (&faulty::FAULTY_PAIR_OVERWRITTEN, "of block (0, 0, 0)"),
        (&faulty::FAULTY_PAIR_NOT_WAITED, not_waited),
        (&faulty::FAULTY_PAIR_TOO_FEW_BYTES, not_waited),
        (&faulty::FAULTY_PAIR_TOO_MANY, "more arrivals than a phase of the barrier counts"),
        (&faulty::FAULTY_PAIR_LEFT, "a copy of a box arrives when the block that began it has ended"),
    ] {
        let found = run_pair(wrong, CHECKED).expect_err(wrong.info.name);
        assert!(found.contains(part), "{}: {part:?} is missing in: {found}", wrong.info.name);
    }
    // Copies that arrive early show an overwritten box by other results; those that arrive late never do where nobody waits.
    let plain = |kernel| ORDERS.map(|order| run_pair(kernel, Settings { order, checked: false }));
    let right = run_pair(&faulty::FAULTY_PAIR_RIGHT, Settings::default());
    assert!(plain(&faulty::FAULTY_PAIR_OVERWRITTEN).iter().any(|result| result.is_ok() && *result != right));
    let stuck = |result: &Result<_, String>| result.as_ref().is_err_and(|found| found.contains("deadlock in block"));
    let results = plain(&faulty::FAULTY_PAIR_NOT_WAITED);
    assert!(results.iter().any(stuck), "{results:?}");
    let driver = EmulatedDriver::new(1 << 24);
    let stream = driver.new_stream().expect("a stream");
    let map = BoxedMatrix { pointer: Default::default(), rows: 3, columns: 7, box_rows: 32 };
    assert!(stream.tensor_map(map).is_err(), "rows of 14 bytes");
}
