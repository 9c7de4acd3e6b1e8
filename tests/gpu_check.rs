//! The scripts around the GPU: `scripts/gpu-check.sh` against a fake driver library ends in time and records every step, the
//! comparison with PyTorch reads what it should, and BENCHMARKS.md is what `benches/results` gives.

use std::path::Path;
use std::process::{Command, Output};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Output of `python3` with `arguments` in the project's folder; `None` where there is no Python.
fn python(arguments: &[&str]) -> Option<Output> {
    match Command::new("python3").args(arguments).current_dir(ROOT).env("PYTHONDONTWRITEBYTECODE", "1").output() {
        Ok(output) => Some(output),
        Err(error) => {
            println!("left out: python3: {error}");
            None
        }
    }
}

fn text(path: &str) -> String {
    std::fs::read_to_string(Path::new(ROOT).join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn benchmarks_page_is_what_the_results_give() {
    if let Some(output) = python(&["benches/report.py", "--check"]) {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn the_comparison_with_pytorch_passes_its_own_tests() {
    if let Some(output) = python(&["-m", "unittest", "discover", "-s", "benches/peers"]) {
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !said.contains("Ran 0 tests"), "{said}");
    }
}

/// Names that the scripts mention: tests that are left out or run alone, and files of the bundle.
#[test]
fn the_scripts_name_what_exists() {
    let (check, bundle) = (text("scripts/gpu-check.sh"), text("scripts/gpu-bundle.sh"));
    let mut tests = String::new();
    for folder in ["tests", "tests/driver", "tests/end_to_end"] {
        let entries = std::fs::read_dir(Path::new(ROOT).join(folder)).expect("a folder of tests");
        tests.extend(entries.filter_map(|entry| std::fs::read_to_string(entry.ok()?.path()).ok()));
    }
    let after = |text: &str, flag: &str| -> Vec<String> {
        let word = |rest: &str| rest.split([' ', '"', '\n']).next().unwrap_or_default().to_string();
        text.split(flag).skip(1).map(word).collect()
    };
    let left_out = [after(&check, "--skip "), after(&check, "--exact ")].concat();
    assert!(left_out.len() > 3, "{left_out:?}");
    // Left out as a whole: tests of the emulator.
    let others = text("tests/end_to_end/main.rs");
    assert!(left_out.contains(&"emulated::".to_string()) && !others.contains("EmulatedDriver"));
    for name in left_out {
        let function = name.trim_end_matches("::");
        let found = tests.contains(&format!("fn {function}(")) || tests.contains(&format!("mod {function};"));
        assert!(found, "gpu-check.sh leaves out or runs {name}, which is no test");
    }
    for name in after(&bundle, "--test ") {
        let files = [format!("tests/{name}.rs"), format!("tests/{name}/main.rs")];
        assert!(files.iter().any(|file| Path::new(ROOT).join(file).exists()), "gpu-bundle.sh packs tests/{name}.rs");
    }
}

#[cfg(all(feature = "cuda", target_os = "linux"))]
mod fake {
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;
    use std::time::{Duration, Instant};

    use super::*;

    /// Seconds that the script is given.
    const SECONDS: u64 = 45;

    /// An operation that hangs, one that fails, all others by the program; a sanitizer that only runs what it should watch.
    const PROGRAM: &str = "#!/bin/sh\ncase \"$*\" in\n*=argmax*) trap '' TERM; sleep 600 ;;\n*=embed*) echo broken >&2; exit 3 ;;\n\
                           bench*) echo '{}' ;;\n*) exec PROGRAM \"$@\" ;;\nesac\n";
    const SANITIZER: &str = "#!/bin/sh\n[ \"$2\" = racecheck ] && sleep 600\nshift 4\nexec \"$@\"\n";

    fn write_program(path: &Path, source: &str) {
        std::fs::write(path, source).expect("a file");
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("an executable file");
    }

    /// An unpacked bundle, a folder of programs that come first, and the fake driver library.
    fn bundle(folder: &Path) {
        let _ = std::fs::remove_dir_all(folder);
        std::fs::create_dir_all(folder.join("bin")).expect("a folder");
        for file in ["scripts/gpu-check.sh", "benches/peers/gpu.py", "benches/peers/cases.py", "benches/peers/ends.py"]
        {
            let name = Path::new(file).file_name().expect("a name");
            std::fs::copy(Path::new(ROOT).join(file), folder.join(name)).expect("a copy");
        }
        write_program(&folder.join("im2sp"), &PROGRAM.replace("PROGRAM", env!("CARGO_BIN_EXE_im2sp")));
        write_program(&folder.join("bin/compute-sanitizer"), SANITIZER);
        let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
        let mut command = Command::new(&compiler);
        command.args(["-shared", "-fPIC", "-O2", "-pthread", "-o"]).arg(folder.join("libcuda.so"));
        let output = command.arg(Path::new(ROOT).join("tests/fake_driver/fake_driver.c")).output();
        let output = output.unwrap_or_else(|error| panic!("this test needs a C compiler, {compiler}: {error}"));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// {step: its line} of steps.jsonl as far as it has been written.
    fn steps(folder: &Path) -> Vec<serde_json::Value> {
        let lines = std::fs::read_to_string(folder.join("results/steps.jsonl")).unwrap_or_default();
        lines.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"))).collect()
    }

    #[test]
    fn a_check_ends_in_time_and_records_every_step() {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("gpu_check");
        bundle(&folder);
        let path = format!("{}:{}", folder.join("bin").display(), std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new("bash");
        command.arg(folder.join("gpu-check.sh")).arg(folder.join("results")).env("PATH", path);
        command.env("LD_LIBRARY_PATH", &folder).env_remove("CUDA_VISIBLE_DEVICES");
        command.env("GPU_CHECK_SECONDS", SECONDS.to_string()).env("GPU_CHECK_LIMIT", "8");
        command.env("GPU_CHECK_SIZE", "small").env("GPU_CHECK_JOBS", "3");
        let clock = Instant::now();
        let mut check = command.stdout(std::process::Stdio::null()).spawn().expect("bash");
        let mut early = false;
        let status = loop {
            if let Some(status) = check.try_wait().expect("a process") {
                break status;
            }
            assert!(clock.elapsed().as_secs() < SECONDS + 10, "the check does not end");
            std::thread::sleep(Duration::from_millis(100));
            // What has ended is in the summary while others still run.
            let summary = std::fs::read_to_string(folder.join("results/summary.txt")).unwrap_or_default();
            early |= summary.contains("doctor-embed") && !summary.contains("racecheck-");
        };
        let (done, elapsed) = (steps(&folder), clock.elapsed());
        let summary = std::fs::read_to_string(folder.join("results/summary.txt")).expect("a summary");
        assert!(elapsed.as_secs() <= SECONDS, "{elapsed:?}\n{summary}");
        assert_eq!(status.code(), Some(1), "{summary}");
        let of = |name: &str| {
            done.iter().find(|step| step["step"] == name).unwrap_or_else(|| panic!("no {name}\n{summary}"))
        };
        assert_eq!(of("doctor-argmax")["status"], "timed out", "{summary}");
        assert_eq!(
            (&of("doctor-embed")["status"], &of("doctor-embed")["remark"]),
            (&"failed".into(), &"3: broken".into())
        );
        assert!(early, "the summary is written at the end only");
        // The others were examined all the same, and the fake computes nothing.
        let wrong = done.iter().filter(|step| step["remark"].as_str().is_some_and(|r| r.contains("cases failed")));
        assert!(wrong.count() >= 3, "{summary}");
        // Every step that follows was run or says why not.
        for name in [
            "doctor-layer_norm",
            "timing",
            "bench-bf16",
            "bench-f32",
            "bulk",
            "recordings",
            "evaluate",
            "peers",
            "memcheck",
            "racecheck-top_k",
        ] {
            assert!(summary.contains(name), "no {name}\n{summary}");
        }
        assert!(summary.lines().last().is_some_and(|line| line.contains("timed out")), "{summary}");
    }
}
