//! Sums over ranks through NCCL: of one rank on a GPU where there is one, and over a fake library (tests/fake_driver), which shows
//! that a rank that died ends the waiting. Several GPUs are not tested.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::*;
use im2sp::Error;
use im2sp::backend::Peers;
use im2sp::backend::cuda::driver::gpu;

/// A run of one process, whose connections end after so many looks at them.
struct Alone {
    looks: Cell<usize>,
}

impl Peers for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn count(&self) -> usize {
        1
    }

    fn share(&mut self, _bytes: &mut [u8]) -> Result<()> {
        Ok(())
    }

    fn check(&self) -> Result<()> {
        match self.looks.get() {
            0 => Err(Error::Device { device: "ranks".into(), problem: "rank 1 has ended".into() }),
            looks => {
                self.looks.set(looks - 1);
                Ok(())
            }
        }
    }
}

/// Sums two ranges over one rank, after work that writes them: nothing changes.
fn sums(stream: &Arc<dyn Stream>, looks: usize, computes: bool) -> Result<()> {
    const BYTES: usize = 64 << 20;
    const FIRST: usize = 25 << 20;
    assert!(stream.communicates());
    let peers = &mut Alone { looks: Cell::new(looks) };
    let mut sums = stream.sums(peers)?;
    let memory = Memory::new(stream, BYTES)?;
    for byte in 1..=10 {
        // SAFETY: inside of the memory.
        unsafe { stream.memset(memory.1, byte, BYTES)? };
    }
    // SAFETY: both ranges are inside of the memory, which outlives the sums or their failure.
    let begun = unsafe {
        sums.start(memory.1.offset(FIRST), (BYTES - FIRST) / 4, peers)
            .and_then(|()| sums.start(memory.1, FIRST / 4, peers))
    };
    let ended = begun.and_then(|()| sums.finish(peers));
    if ended.is_err() {
        drop(sums);
        return ended;
    }
    // The fake does one thing more whenever it is asked: what came before the sums is done already.
    assert!(computes || stream.is_idle()?, "the sums did not wait for the work before them");
    assert!(read(stream, memory.1, BYTES)?.iter().all(|&byte| byte == 10));
    Ok(())
}

#[test]
fn sums_over_one_rank_change_nothing() {
    let devices = match gpu::probe() {
        Err(error) => return println!("left out: {error}"),
        Ok(devices) => devices,
    };
    for (index, _) in devices {
        let stream = gpu::open(index).and_then(|driver| driver.new_stream()).expect("it was found usable");
        match sums(&stream, usize::MAX, true) {
            Err(error) if error.to_string().contains("cannot be loaded") => println!("left out: {error}"),
            ended => ended.expect("one rank"),
        }
    }
}

/// A folder with the fakes as libcuda.so and libnccl.so.2.
fn libraries(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("fake_nccl_{name}_{}", std::process::id()));
    fake::compile(&folder, "tests/fake_driver/fake_driver.c", "libcuda.so");
    fake::compile(&folder, "tests/fake_driver/fake_nccl.c", "libnccl.so.2");
    folder
}

/// Sums in a process of its own that finds `folder`'s libraries: its error, if there was one, and the reports of both fakes.
fn run(folder: &Path, mode: &str) -> (Option<String>, String) {
    let reports = ["driver", "nccl"].map(|name| folder.join(format!("{name}_{mode}")));
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", "sums::child", "--ignored", "--nocapture", "--test-threads=1"]);
    command.env("LD_LIBRARY_PATH", folder).env("FAKE_NCCL", mode).env_remove("CUDA_VISIBLE_DEVICES");
    command.env("FAKE_REPORT", &reports[0]).env("FAKE_NCCL_REPORT", &reports[1]);
    let output = command.output().expect("this program runs again");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{mode}: {said}\n{}", String::from_utf8_lossy(&output.stderr));
    let error = said.lines().find_map(|line| line.split_once("ERROR ")).map(|(_, error)| error.to_string());
    let reports = reports.map(|report| std::fs::read_to_string(report).unwrap_or_default()).concat();
    (error, reports + &String::from_utf8_lossy(&output.stderr))
}

/// Child process of the tests below.
#[test]
#[ignore = "run by the other tests, in a process of its own"]
fn child() {
    let ended = gpu::open(0).and_then(|driver| driver.new_stream()).and_then(|stream| sums(&stream, 100, false));
    if let Err(error) = ended {
        println!("ERROR {error}");
    }
}

#[test]
fn sums_end_however_the_other_ranks_do() {
    let folder = libraries("with");
    for (mode, expected, count) in [
        ("works", None, 2),
        ("stuck", Some("rank 1 has ended"), 0),
        ("failed", Some("NCCL, starting a sum: remote process exited (in NCCL's words): NCCL_DEBUG=WARN"), 2),
        ("shared", Some("connecting the GPUs: invalid (in NCCL's words): start one process for each GPU"), 0),
    ] {
        let (error, report) = run(&folder, mode);
        let as_expected = match (&error, expected) {
            (Some(error), Some(words)) => error.contains(words),
            (error, words) => error.is_none() && words.is_none(),
        };
        assert!(as_expected, "{mode}: {error:?}");
        let nothing_is_left = report.lines().filter(|line| line.contains(" left")).all(|line| line.contains(": 0 of "));
        assert!(nothing_is_left && report.matches("violations: 0\n").count() == 2, "{mode}: {report}");
        assert!(report.contains(&format!("alive: 0\nsums: {count}\n")), "{mode}: {report}");
    }
    let _ = std::fs::remove_dir_all(folder);
}

#[test]
fn a_machine_without_nccl_is_told_what_to_do() {
    let folder = libraries("without");
    std::fs::remove_file(folder.join("libnccl.so.2")).expect("it was made");
    match run(&folder, "none").0 {
        Some(error) => {
            let words = ["libnccl.so.2 cannot be loaded", "nvidia-nccl-cu13", "LD_LIBRARY_PATH", "--sum-on-host"];
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
        None => println!("left out: this machine has NCCL"),
    }
    let _ = std::fs::remove_dir_all(folder);
}
