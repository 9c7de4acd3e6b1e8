//! What launchers may rely on, of every driver: the emulator, a GPU where there is one, and the GPU's driver over a fake
//! driver library (tests/fake_driver), which also shows that every failure is said and nothing is left behind.
#![cfg(any(feature = "cuda", feature = "emulator"))]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use im2sp::Result;
use im2sp::backend::cuda::driver::{DevicePtr, Driver, Launch};
use im2sp::backend::cuda::kernels::{CAST_FORWARD_F32_TO_BF16, CastParams};

/// Odd sizes, and sizes around those of the staging memory.
const SIZES: [usize; 8] = [1, 255, 257, 4096, (4 << 20) - 1, 4 << 20, (4 << 20) + 1, 13_000_001];

/// Goes through everything a driver does, and checks it where `computes`: the fake runs no kernel.
fn goes_through(driver: &Arc<dyn Driver>, computes: bool) -> Result<()> {
    copies(driver, &SIZES)?;
    many_small_writes(driver)?;
    words(driver)?;
    launches(driver, computes)?;
    captures(driver, computes)?;
    too_much(driver)?;
    cooperative(driver)?;
    forks(driver, computes)?;
    // Any thread may call.
    std::thread::scope(|scope| scope.spawn(|| copies(driver, &SIZES[..4])).join().expect("no panic"))
}

fn bytes(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 251 + seed) as u8).collect()
}

fn read(driver: &Arc<dyn Driver>, from: DevicePtr, len: usize) -> Result<Vec<u8>> {
    let mut read = vec![0; len];
    // SAFETY: the tests read what they allocated.
    unsafe { driver.copy_to_host(from, &mut read)? };
    Ok(read)
}

/// Memory that is freed when the test ends, however it ends.
struct Memory<'a>(&'a Arc<dyn Driver>, DevicePtr);

impl<'a> Memory<'a> {
    fn new(driver: &'a Arc<dyn Driver>, bytes: usize) -> Result<Memory<'a>> {
        Ok(Memory(driver, driver.allocate(bytes)?))
    }
}

impl Drop for Memory<'_> {
    fn drop(&mut self) {
        // SAFETY: allocated by `new`.
        unsafe { self.0.free(self.1) };
    }
}

fn copies(driver: &Arc<dyn Driver>, sizes: &[usize]) -> Result<()> {
    let (free, total) = driver.memory()?;
    assert!(free <= total && driver.properties().memory <= total);
    for &size in sizes {
        let (a, b) = (Memory::new(driver, size)?, Memory::new(driver, size)?);
        assert!(a.1.0 % 256 == 0 && a.1 != DevicePtr::NULL && a.1 != b.1);
        let mut sent = bytes(size, 1);
        // SAFETY: both are `size` bytes long.
        unsafe {
            driver.copy_to_device(a.1, &sent)?;
            // The call is over: what it was given may change.
            sent.fill(0);
            driver.copy(b.1, a.1, size)?;
            driver.memset(a.1, 7, size / 2)?;
        }
        assert!(read(driver, b.1, size)? == bytes(size, 1), "{size} bytes are not what was written");
        let filled = read(driver, a.1, size)?;
        assert!(filled[..size / 2].iter().all(|&b| b == 7) && filled[size / 2..] == bytes(size, 1)[size / 2..]);
        // SAFETY: as above.
        unsafe { driver.poison(a.1, size)? };
        assert!(read(driver, a.1, size)?.iter().all(|&b| b == 0xff));
    }
    let nothing = Memory::new(driver, 0)?;
    // SAFETY: nothing is touched.
    unsafe {
        driver.copy_to_device(nothing.1, &[])?;
        driver.copy(nothing.1, nothing.1, 0)?;
        driver.memset(nothing.1, 1, 0)?;
    }
    assert!(read(driver, nothing.1, 0)?.is_empty());
    driver.synchronize()
}

/// More than the staging memory holds at once, so that it is used again while copies are under way.
fn many_small_writes(driver: &Arc<dyn Driver>) -> Result<()> {
    const COUNT: usize = 40_000;
    let memory = Memory::new(driver, COUNT * 300)?;
    let expected = bytes(COUNT * 300, 3);
    for index in 0..COUNT {
        // SAFETY: inside of the memory.
        unsafe { driver.copy_to_device(memory.1.offset(index * 300), &expected[index * 300..][..300])? };
    }
    assert!(read(driver, memory.1, COUNT * 300)? == expected);
    Ok(())
}

/// Host memory that the device sees, and the end of work without waiting.
fn words(driver: &Arc<dyn Driver>) -> Result<()> {
    let words = driver.mapped_host(1000)?;
    assert!(words.device != DevicePtr::NULL && words.words().len() == 1000);
    assert!(words.words().iter().all(|word| word.load(Ordering::Relaxed) == 0));
    words.words()[999].store(7, Ordering::Relaxed);
    let memory = Memory::new(driver, 1 << 20)?;
    for byte in 0..10 {
        // SAFETY: inside of the memory.
        unsafe { driver.memset(memory.1, byte, 1 << 20)? };
    }
    while !driver.is_idle()? {
        std::thread::yield_now();
    }
    assert_eq!(words.words()[999].load(Ordering::Relaxed), 7);
    Ok(())
}

const VALUES: usize = 3000;

/// 1.0 and 2.0 in turn, as f32 and as bf16.
fn ones_and_twos() -> (Vec<u8>, Vec<u8>) {
    let value = |i: usize| (1 + i % 2) as f32;
    (
        (0..VALUES).flat_map(|i| value(i).to_le_bytes()).collect(),
        (0..VALUES).flat_map(|i| half::bf16::from_f32(value(i)).to_le_bytes()).collect(),
    )
}

fn cast(driver: &Arc<dyn Driver>, x: &Memory, y: &Memory, cooperative: bool) -> Result<()> {
    let params = CastParams { x: x.1, y: y.1, count: VALUES as i64 };
    let launch = Launch { cooperative, ..Launch::blocks(VALUES.div_ceil(1024)) };
    // SAFETY: the callers' memory holds so many values.
    unsafe { driver.launch(&CAST_FORWARD_F32_TO_BF16.info, launch, bytemuck::bytes_of(&params)) }
}

fn launches(driver: &Arc<dyn Driver>, computes: bool) -> Result<()> {
    let (x, y) = (Memory::new(driver, VALUES * 4)?, Memory::new(driver, VALUES * 2)?);
    let (narrow, wide) = {
        let (a, b) = ones_and_twos();
        (b, a)
    };
    let before = driver.record_event()?;
    for cooperative in [false, true] {
        // SAFETY: as long as the memory.
        unsafe {
            driver.copy_to_device(x.1, &wide)?;
            driver.poison(y.1, VALUES * 2)?;
        }
        cast(driver, &x, &y, cooperative)?;
        assert!(!computes || read(driver, y.1, VALUES * 2)? == narrow);
    }
    let after = driver.record_event()?;
    assert!(driver.elapsed(&before, &after)? >= 0.0);
    // SAFETY: nothing runs.
    let refused = unsafe {
        let launch = Launch::grid([1, 1_000_000, 1]);
        let launched = driver.launch(&CAST_FORWARD_F32_TO_BF16.info, launch, &[0; 24]);
        launched.and_then(|()| driver.synchronize())
    };
    let refused = refused.expect_err("a grid that no device takes").to_string();
    assert!(refused.contains("cast_forward_f32_to_bf16") && refused.contains("1000000"), "{refused}");
    driver.synchronize()
}

fn captures(driver: &Arc<dyn Driver>, computes: bool) -> Result<()> {
    let (x, y, z) =
        (Memory::new(driver, VALUES * 4)?, Memory::new(driver, VALUES * 2)?, Memory::new(driver, VALUES * 2)?);
    let (wide, narrow) = ones_and_twos();
    let early = Memory::new(driver, 1000)?;
    // SAFETY: as long as the memory, here and below.
    unsafe {
        driver.copy_to_device(x.1, &wide)?;
        driver.memset(z.1, 9, VALUES * 2)?;
    }
    assert!(driver.end_capture().is_err(), "nothing is being captured");
    driver.begin_capture()?;
    let recorded = (|| {
        // SAFETY: as above.
        unsafe {
            driver.memset(y.1, 5, VALUES * 2)?;
            cast(driver, &x, &y, false)?;
            driver.copy(z.1, y.1, VALUES * 2)
        }
    })();
    // What cannot be recorded says so, and freeing is put off.
    let refused = [
        driver.allocate(10).map(|_| ()),
        driver.synchronize(),
        driver.begin_capture(),
        read(driver, x.1, 1).map(|_| ()),
        // SAFETY: as above.
        unsafe { driver.copy_to_device(x.1, &[0]) },
    ];
    drop(early);
    let graph = driver.end_capture();
    recorded?;
    let graph = graph?;
    assert!(refused.iter().all(|refused| refused.is_err()), "{refused:?}");
    let before = read(driver, z.1, VALUES * 2)?;
    assert!(before.iter().all(|&byte| byte == 9), "recorded work was done");
    for _ in 0..2 {
        // SAFETY: the memory is still allocated.
        unsafe {
            driver.memset(z.1, 9, VALUES * 2)?;
            driver.replay(&graph)?;
        }
        let after = read(driver, z.1, VALUES * 2)?;
        assert!(if computes { after == narrow } else { after.iter().all(|&byte| byte == 5) });
    }
    Ok(())
}

/// What there is not is refused, and nothing else is after that.
fn too_much(driver: &Arc<dyn Driver>) -> Result<()> {
    let (_, total) = driver.memory()?;
    let refused = driver.allocate(2 * total).expect_err("more than all");
    if !refused.to_string().contains("out of memory") {
        return Err(refused);
    }
    Memory::new(driver, 1000).map(|_| ())
}

/// One cooperative kernel at a time, whatever the stream.
fn cooperative(driver: &Arc<dyn Driver>) -> Result<()> {
    let other = driver.new_stream()?;
    assert!(excludes(driver, &other) && excludes(&other, driver), "streams share the lock");
    Ok(())
}

/// Whether `other` waits for the lock that `driver` holds.
fn excludes(driver: &Arc<dyn Driver>, other: &Arc<dyn Driver>) -> bool {
    let taken = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let held = driver.lock_cooperative();
        scope.spawn(|| {
            let _held = other.lock_cooperative();
            taken.store(true, Ordering::Release);
        });
        std::thread::sleep(std::time::Duration::from_millis(20));
        let waited = !taken.load(Ordering::Acquire);
        drop(held);
        waited
    })
}

/// Two streams of work: what the one is at is nothing to the other, whatever threads call them.
fn forks(driver: &Arc<dyn Driver>, computes: bool) -> Result<()> {
    const BYTES: usize = 1 << 20;
    let fork = driver.new_stream()?;
    assert_eq!(fork.properties().name, driver.properties().name);
    let (here, there) = (Memory::new(driver, BYTES)?, Memory::new(&fork, BYTES)?);
    assert_ne!(here.1, there.1);
    // SAFETY: as long as the memory, here and below.
    unsafe { fork.memset(there.1, 1, BYTES)? };
    fork.synchronize()?;
    for byte in 0..10 {
        // SAFETY: as above.
        unsafe { driver.memset(here.1, byte, BYTES)? };
    }
    let _mark = driver.record_event()?;
    assert!(fork.is_idle()?, "it waits for another's work");
    fork.synchronize()?;
    assert!(computes || !driver.is_idle()?, "the fork's end was taken for its own");
    assert!(read(&fork, there.1, BYTES)?.iter().all(|&byte| byte == 1));
    assert!(read(driver, here.1, BYTES)?.iter().all(|&byte| byte == 9));

    // All that a capture forbids itself is free to others.
    driver.begin_capture()?;
    // SAFETY: as above.
    let recorded = unsafe { driver.memset(here.1, 5, BYTES) };
    let go = || -> Result<()> {
        copies(&fork, &SIZES[..4])?;
        words(&fork)?;
        launches(&fork, computes)?;
        captures(&fork, computes)
    };
    let beside = go().and_then(|()| std::thread::scope(|scope| scope.spawn(go).join().expect("no panic")));
    let graph = driver.end_capture();
    recorded?;
    beside?;
    let graph = graph?;
    assert!(read(driver, here.1, BYTES)?.iter().all(|&byte| byte == 9), "recorded work was done");
    // SAFETY: as above.
    unsafe { driver.replay(&graph)? };
    assert!(read(driver, here.1, BYTES)?.iter().all(|&byte| byte == 5));

    // At the same time.
    let repeat = |driver: &Arc<dyn Driver>| -> Result<()> {
        for _ in 0..5 {
            copies(driver, &SIZES[..5])?;
            launches(driver, computes)?;
            captures(driver, computes)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| repeat(&fork));
        repeat(driver).and(other.join().expect("no panic"))
    })
}

#[cfg(feature = "emulator")]
#[test]
fn the_emulator() {
    use im2sp::backend::cuda::driver::emulator::EmulatedDriver;
    let emulator = Arc::new(EmulatedDriver::new(1 << 30));
    let driver: Arc<dyn Driver> = emulator.clone();
    goes_through(&driver, true).expect("everything works");
    assert_eq!(emulator.in_use(), 0);

    // What goes wrong in one stream of work is told there.
    let fork = driver.new_stream().expect("a fork");
    let memory = Memory::new(&fork, 100).expect("memory");
    let broken = Memory(&fork, DevicePtr::NULL);
    cast(&fork, &broken, &memory, false).expect("it was started");
    driver.synchronize().expect("nothing is wrong here");
    let fault = fork.synchronize().expect_err("there is no such memory").to_string();
    assert!(fault.contains("cast_forward_f32_to_bf16"), "{fault}");
    assert_eq!(emulator.in_use(), 100, "a fork's memory counts");
    drop(memory);
    assert_eq!(emulator.in_use(), 0);
}

#[cfg(feature = "cuda")]
#[test]
fn a_gpu_if_there_is_one() {
    match im2sp::backend::cuda::driver::gpu::probe() {
        Err(error) => println!("left out: {error}"),
        Ok(devices) => {
            for (index, properties) in devices {
                println!("{properties:?}");
                let driver = im2sp::backend::cuda::driver::gpu::open(index).expect("it was found usable");
                goes_through(&driver, true).expect("everything works");
            }
        }
    }
}

#[cfg(all(feature = "cuda", target_os = "linux"))]
mod fake {
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::sync::OnceLock;
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use im2sp::backend::cuda::driver::gpu;

    /// Each function of the driver library that is used and may fail.
    const FUNCTIONS: [&str; 45] = [
        "cuInit",
        "cuDeviceGetCount",
        "cuDeviceGet",
        "cuDeviceGetName",
        "cuDeviceTotalMem_v2",
        "cuDeviceGetAttribute",
        "cuDevicePrimaryCtxRetain",
        "cuDevicePrimaryCtxRelease_v2",
        "cuCtxSetCurrent",
        "cuMemGetInfo_v2",
        "cuMemPoolCreate",
        "cuMemPoolSetAttribute",
        "cuMemPoolDestroy",
        "cuMemPoolTrimTo",
        "cuMemAllocFromPoolAsync",
        "cuMemFreeAsync",
        "cuMemHostAlloc",
        "cuMemHostGetDevicePointer_v2",
        "cuMemFreeHost",
        "cuMemcpyHtoDAsync_v2",
        "cuMemcpyDtoHAsync_v2",
        "cuMemcpyDtoDAsync_v2",
        "cuMemsetD8Async",
        "cuStreamCreate",
        "cuStreamDestroy_v2",
        "cuStreamSynchronize",
        "cuStreamQuery",
        "cuStreamBeginCapture_v2",
        "cuStreamEndCapture",
        "cuGraphInstantiateWithFlags",
        "cuGraphDestroy",
        "cuGraphExecDestroy",
        "cuGraphUpload",
        "cuGraphLaunch",
        "cuEventCreate",
        "cuEventDestroy_v2",
        "cuEventRecord",
        "cuEventSynchronize",
        "cuEventElapsedTime_v2",
        "cuModuleLoadData",
        "cuModuleUnload",
        "cuModuleGetFunction",
        "cuFuncGetAttribute",
        "cuLaunchKernel",
        "cuLaunchCooperativeKernel",
    ];

    /// A folder with the fake as libcuda.so.
    fn library() -> &'static Path {
        static FOLDER: OnceLock<PathBuf> = OnceLock::new();
        FOLDER.get_or_init(|| {
            let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("fake_driver");
            compile(&folder, "tests/fake_driver/fake_driver.c");
            folder
        })
    }

    fn compile(folder: &Path, source: &str) {
        std::fs::create_dir_all(folder).expect("a folder");
        // Another run of this test may be using the library that is there.
        let fresh = folder.join(format!("fresh_{}", std::process::id()));
        let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
        let mut command = Command::new(&compiler);
        command.args(["-shared", "-fPIC", "-O2", "-pthread", "-o"]).arg(&fresh).arg(source);
        let output = command.output().unwrap_or_else(|e| panic!("this test needs a C compiler, {compiler}: {e}"));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        std::fs::rename(fresh, folder.join("libcuda.so")).expect("a folder that can be written");
    }

    /// What became of a child: its error, if it met one, and the fake's report.
    struct Ending {
        error: Option<String>,
        report: String,
    }

    impl Ending {
        fn nothing_is_left(&self) -> bool {
            self.report.lines().take(9).all(|line| line.contains(": 0 of ")) && self.report.contains("violations: 0\n")
        }
    }

    /// Runs `child` in a process of its own, which finds `folder`'s library.
    fn run(folder: &Path, settings: &[(&str, &str)]) -> Ending {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let report = folder.join(format!("report_{}_{count}", std::process::id()));
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", "fake::child", "--ignored", "--nocapture", "--test-threads=1"]);
        command.env("LD_LIBRARY_PATH", folder).env("FAKE_REPORT", &report).env_remove("CUDA_VISIBLE_DEVICES");
        let output = command.envs(settings.iter().copied()).output().expect("this program runs again");
        let said = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{settings:?}: {}\n{said}\n{errors}", output.status);
        let error = said.lines().find_map(|line| line.split_once("ERROR ")).map(|(_, error)| error.to_string());
        let fate = std::fs::read_to_string(&report).unwrap_or_default();
        let _ = std::fs::remove_file(&report);
        Ending { error, report: fate + &errors }
    }

    fn error(folder: &Path, settings: &[(&str, &str)]) -> String {
        run(folder, settings).error.unwrap_or_else(|| panic!("{settings:?} is no error"))
    }

    /// What the other tests run with a library and settings of their choice.
    #[test]
    #[ignore = "run by the other tests, in a process of its own"]
    fn child() {
        let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse::<usize>().ok()).unwrap_or(0);
        let ended = (|| -> Result<()> {
            gpu::probe()?;
            let driver = gpu::open(number("CHILD_DEVICE"))?;
            if number("CHILD_ALLOCATES") > 0 {
                let _memory = Memory::new(&driver, number("CHILD_ALLOCATES"))?;
            }
            if number("CHILD_OPENS") > 0 {
                let (again, another) = (gpu::open(0)?, gpu::open(1)?);
                assert!(excludes(&driver, &again), "one device, one lock");
                assert!(!excludes(&driver, &another), "devices have nothing to do with each other");
            }
            let ended = goes_through(&driver, false);
            // Whatever happened, the device still answers, with the same words if it is lost.
            let after = driver.synchronize();
            let lost = |result: &Result<()>| result.as_ref().is_err_and(|e| e.to_string().contains("the GPU failed"));
            assert!(!lost(&after) || lost(&ended), "{ended:?}, then {after:?}");
            assert!(!lost(&ended) || driver.allocate(1).is_err());
            if std::env::var_os("CHILD_FORGETS").is_some() {
                driver.allocate(1000)?;
                driver.begin_capture()?;
            }
            // What was handed out may outlive the driver.
            let handed_out = (driver.record_event(), driver.mapped_host(10), driver.new_stream());
            drop(driver);
            let still = handed_out.2.as_ref().map_or(Ok(()), |fork| copies(fork, &SIZES[..2]));
            drop(handed_out);
            ended.and(still)
        })();
        if let Err(error) = ended {
            println!("ERROR {error}");
        }
    }

    #[test]
    fn everything_works_and_nothing_is_left() {
        for settings in [&[][..], &[("CHILD_FORGETS", "1")], &[("FAKE_DEVICES", "3"), ("CHILD_DEVICE", "2")]] {
            let ending = run(library(), settings);
            assert_eq!(ending.error, None);
            assert!(ending.nothing_is_left(), "{settings:?}: {}", ending.report);
        }
    }

    /// Every function of the driver library fails in turn.
    #[test]
    fn every_failure_is_said_and_nothing_is_left() {
        for function in FUNCTIONS {
            // The first call, a later one, all of them; and one after which the device is lost.
            for (nth, code) in [(1, 1), (3, 1), (0, 1), (2, 700)] {
                let fail = format!("{function}:{nth}:{code}");
                let ending = run(library(), &[("FAKE_FAIL", &fail)]);
                // Without waiting, nobody can know that memory is free to go.
                let blind = function == "cuStreamSynchronize" && nth == 0;
                assert!(blind || ending.nothing_is_left(), "{fail}: {:?} {}", ending.error, ending.report);
                let gives_back = ["Free", "Destroy", "Unload", "Release"].iter().any(|part| function.contains(part));
                if let Some(error) = &ending.error {
                    assert!(error.starts_with("device cuda") && error.contains("CUDA_ERROR"), "{fail}: {error}");
                } else {
                    assert!(gives_back || nth != 0, "{fail} is not an error");
                }
            }
        }
    }

    #[test]
    fn a_machine_without_a_usable_gpu_is_told_what_to_do() {
        let says = |settings: &[(&str, &str)], words: &[&str]| {
            let error = error(library(), settings);
            assert!(words.iter().all(|word| error.contains(word)), "{settings:?}: {error}");
        };
        says(&[("FAKE_VERSION", "11040")], &["too old", "11.4", "13.0", "580", "--device cpu"]);
        says(&[("FAKE_DEVICES", "0")], &["no GPU", "nvidia-smi"]);
        says(&[("FAKE_FAIL", "cuInit:0:100")], &["no GPU", "nvidia-smi"]);
        says(&[("FAKE_FAIL", "cuInit:0:100"), ("CUDA_VISIBLE_DEVICES", "7")], &["CUDA_VISIBLE_DEVICES is \"7\""]);
        says(&[("FAKE_FAIL", "cuInit:0:803")], &["start the machine again"]);
        says(&[("CHILD_DEVICE", "1")], &["cuda:1", "there is one GPU"]);
        says(&[("CHILD_DEVICE", "4"), ("FAKE_DEVICES", "4")], &["cuda:4", "there are 4 GPUs", "cuda:0 to cuda:3"]);
        says(&[("FAKE_CAPABILITY", "75")], &["Fake 0", "7.5", "8.0", "Ampere"]);
        says(&[("FAKE_FAIL", "cuModuleLoadData:2:209")], &["not compiled for Fake 0", "9.0", "no kernel image"]);
        says(
            &[("CHILD_ALLOCATES", "2000000000")],
            &["out of memory", "1907.3 MiB wanted", "1024.0 MiB free of 1024.0 MiB"],
        );
        says(&[("FAKE_MEMORY", "20000000")], &["out of memory", "12.4 MiB wanted"]);
        says(
            &[("FAKE_FAIL", "cuStreamSynchronize:9:700")],
            &["the GPU failed while waiting", "CUDA_ERROR_ILLEGAL_ADDRESS"],
        );
    }

    /// And what was made of it before is given back.
    #[test]
    fn a_fork_that_cannot_be_made_is_told() {
        for (function, what) in [
            ("cuStreamCreate:2:2", "making a stream"),
            ("cuMemPoolCreate:2:2", "making a reserve of memory"),
            ("cuMemHostAlloc:6:2", "pinned host memory"),
        ] {
            let ending = run(library(), &[("FAKE_FAIL", function)]);
            let error = ending.error.as_deref().unwrap_or_default();
            assert!(error.contains(what) && error.contains("CUDA_ERROR_OUT_OF_MEMORY"), "{function}: {error}");
            assert!(ending.nothing_is_left(), "{function}: {}", ending.report);
        }
    }

    #[test]
    fn cooperative_kernels_wait_for_those_of_their_device() {
        let ending = run(library(), &[("CHILD_OPENS", "1"), ("FAKE_DEVICES", "2")]);
        assert!(ending.error.is_none() && ending.nothing_is_left(), "{:?} {}", ending.error, ending.report);
    }

    #[test]
    fn a_lost_device_names_the_kernel_that_was_started_last() {
        let error = error(library(), &[("FAKE_FAIL", "cuEventElapsedTime_v2:1:700")]);
        assert!(error.contains("the kernel started last was cast_forward_f32_to_bf16"), "{error}");
    }

    #[test]
    fn a_library_that_is_no_driver_is_told() {
        let folder = library().with_extension("empty");
        std::fs::create_dir_all(&folder).expect("a folder");
        let source = folder.join("empty.c");
        std::fs::write(&source, "int nothing;\n").expect("a file");
        compile(&folder, &source.to_string_lossy());
        let error = error(&folder, &[]);
        assert!(error.contains("not NVIDIA's driver") && error.contains("LD_LIBRARY_PATH"), "{error}");
    }

    #[test]
    fn a_machine_without_a_driver_library_is_told() {
        let folder = library().with_extension("nothing");
        std::fs::create_dir_all(&folder).expect("a folder");
        match run(&folder, &[]).error {
            Some(error) => assert!(error.contains("libcuda.so") && error.contains("--device cpu"), "{error}"),
            None => println!("left out: this machine has a driver library"),
        }
    }
}
