//! The GPU's driver over a fake driver library, which is compiled here: every failure of it is reported and nothing is left
//! behind.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::AtomicUsize;

use super::*;
use im2sp::backend::cuda::driver::{BoxedMatrix, gpu};

/// Each function of the driver library that is used and may fail.
const FUNCTIONS: [&str; 47] = [
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
    "cuStreamWaitEvent",
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
    "cuTensorMapEncodeTiled",
    "cuLaunchKernel",
    "cuLaunchCooperativeKernel",
];

/// A folder with the fake as libcuda.so.
fn library() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("fake_driver");
        compile(&folder, "tests/fake_driver/fake_driver.c", "libcuda.so");
        folder
    })
}

pub fn compile(folder: &Path, source: &str, name: &str) {
    std::fs::create_dir_all(folder).expect("a folder");
    // Another run of this test may be using the library that is there.
    let fresh = folder.join(format!("fresh_{}", std::process::id()));
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let mut command = Command::new(&compiler);
    command.args(["-shared", "-fPIC", "-O2", "-pthread", "-o"]).arg(&fresh).arg(source);
    let output = command.output().unwrap_or_else(|e| panic!("this test needs a C compiler, {compiler}: {e}"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::rename(fresh, folder.join(name)).expect("a folder that can be written");
}

/// Outcome of a child process: its error, if it met one, and the fake's report.
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

/// Child process of the other tests, with a library and settings of their choice.
#[test]
#[ignore = "run by the other tests, in a process of its own"]
fn child() {
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse::<usize>().ok()).unwrap_or(0);
    let ended = (|| -> Result<()> {
        gpu::probe()?;
        let driver = gpu::open(number("CHILD_DEVICE"))?;
        let stream = driver.new_stream()?;
        if number("CHILD_ALLOCATES") > 0 {
            let _memory = Memory::new(&stream, number("CHILD_ALLOCATES"))?;
        }
        if number("CHILD_OPENS") > 0 {
            let (again, another) = (gpu::open(0)?, gpu::open(1)?);
            assert!(excludes(&driver, &again, SHORT), "one device, one lock");
            assert!(!excludes(&driver, &another, LONG), "devices have nothing to do with each other");
        }
        let ended = goes_through(&stream, false).and_then(|()| maps(&stream));
        // Whatever happened, the device still answers, with the same words if it is lost.
        let after = stream.synchronize();
        let lost = |result: &Result<()>| result.as_ref().is_err_and(|e| e.to_string().contains("the GPU failed"));
        assert!(!lost(&after) || lost(&ended), "{ended:?}, then {after:?}");
        assert!(!lost(&ended) || stream.allocate(1).is_err());
        if std::env::var_os("CHILD_FORGETS").is_some() {
            stream.allocate(1000)?;
            stream.begin_capture()?;
        }
        // What was handed out may outlive the driver and the stream.
        let handed_out = (stream.record_event(), stream.mapped_host(10), driver.new_stream());
        drop(stream);
        drop(driver);
        let still = handed_out.2.as_ref().map_or(Ok(()), |other| copies(other, &SIZES[..2]));
        drop(handed_out);
        ended.and(still)
    })();
    if let Err(error) = ended {
        println!("ERROR {error}");
    }
}

/// Maps of matrices, and of none. The fake refuses those that no GPU would take.
fn maps(stream: &Arc<dyn Stream>) -> Result<()> {
    let memory = Memory::new(stream, 3 * 16)?;
    for rows in [3, 1, 2] {
        let map = stream.tensor_map(BoxedMatrix { pointer: memory.1, rows, columns: 8, box_rows: 64 })?;
        assert_eq!(bytemuck::bytes_of(&map)[..8], memory.1.0.to_ne_bytes());
    }
    let none = stream.tensor_map(BoxedMatrix { pointer: memory.1, rows: 0, columns: 8, box_rows: 64 })?;
    assert!(bytemuck::bytes_of(&none).iter().all(|&byte| byte == 0));
    Ok(())
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
fn a_stream_that_cannot_be_made_is_told() {
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
    compile(&folder, &source.to_string_lossy(), "libcuda.so");
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
