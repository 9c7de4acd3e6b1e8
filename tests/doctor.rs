//! `im2sp doctor`: operations by name, what it prints and when, and that no failure of a device or of an operation loses what
//! was found before.

use std::process::{Command, Output};

use serde_json::Value;

fn doctor(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_im2sp"));
    command.arg("doctor").args(arguments);
    command
}

fn run(command: &mut Command) -> Output {
    command.output().expect("the program runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The lines of `--json`: the device, the outcomes, the summary.
fn lines(output: &Output) -> (Value, Vec<Value>, Value) {
    let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    let mut lines: Vec<Value> = text(&output.stdout).lines().map(parse).collect();
    assert!(lines.len() >= 2, "{lines:?}\n{}", text(&output.stderr));
    let summary = lines.pop().unwrap_or_default();
    (lines.remove(0), lines, summary)
}

#[test]
fn an_unknown_operation_is_wrong_usage_and_lists_the_names() {
    for unknown in ["=line", "convolution"] {
        let output = run(&mut doctor(&["--device", "cpu", "--op", unknown]));
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("attention_decode") && said.contains("transpose"), "{said}");
    }
    let output = run(&mut doctor(&["--list"]));
    let names = text(&output.stdout);
    assert!(output.status.success() && names.lines().any(|name| name == "linear_decode"), "{names}");
    let output = run(&mut doctor(&["--no-timing", "--timing-only"]));
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn the_cpu_is_timed_and_not_compared_with_itself() {
    let output = run(&mut doctor(&["--device", "cpu", "--op", "=argmax", "--json"]));
    assert!(output.status.success(), "{}", text(&output.stderr));
    let (device, outcomes, summary) = lines(&output);
    assert!(device["peaks"]["flops"].as_f64() > Some(1e8), "{device}");
    assert!(outcomes.len() >= 3 && summary["examined"] == outcomes.len(), "{summary}");
    for outcome in outcomes {
        assert!(outcome["microseconds"].as_f64() > Some(0.0) && outcome["error"].is_null(), "{outcome}");
    }
    // Standard error says where it is at.
    assert!(text(&output.stderr).contains("argmax f32\n  1x203\n"), "{}", text(&output.stderr));
}

#[cfg(feature = "emulator")]
#[test]
fn the_emulator_is_compared_and_not_timed() {
    let output = run(&mut doctor(&["--device", "emulator", "--size", "small", "--op", "=linear", "--json"]));
    assert!(output.status.success(), "{}", text(&output.stderr));
    let (device, outcomes, summary) = lines(&output);
    assert!(device["device"]["name"].is_string() && device["peaks"].is_null(), "{device}");
    assert!(outcomes.len() > 20 && summary["failed"] == 0, "{summary}");
    for outcome in outcomes {
        assert!(
            outcome["op"] == "linear" && outcome["passed"] == true && outcome["microseconds"].is_null(),
            "{outcome}"
        );
    }
    let table = run(&mut doctor(&["--device", "emulator", "--size", "small", "--op", "=argmax"]));
    let table = text(&table.stdout);
    assert!(table.contains("5x203, ties") && table.contains("\n0 of "), "{table}");
}

/// A driver library without kernels (tests/fake_driver): whatever is computed is wrong.
#[cfg(all(feature = "cuda", target_os = "linux"))]
mod fake {
    use std::path::PathBuf;
    use std::sync::OnceLock;
    use std::time::{Duration, Instant};

    use super::*;

    fn library() -> &'static PathBuf {
        static FOLDER: OnceLock<PathBuf> = OnceLock::new();
        FOLDER.get_or_init(|| {
            let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("doctor");
            std::fs::create_dir_all(&folder).expect("a folder");
            let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
            let mut command = Command::new(&compiler);
            command.args(["-shared", "-fPIC", "-O2", "-pthread", "-o"]).arg(folder.join("libcuda.so"));
            let output = command.arg("tests/fake_driver/fake_driver.c").output();
            let output = output.unwrap_or_else(|error| panic!("this test needs a C compiler, {compiler}: {error}"));
            assert!(output.status.success(), "{}", text(&output.stderr));
            folder
        })
    }

    fn on_fake(arguments: &[&str], fail: &str) -> Output {
        let clock = Instant::now();
        let mut command = doctor(arguments);
        command.env("LD_LIBRARY_PATH", library()).env("FAKE_FAIL", fail).env_remove("CUDA_VISIBLE_DEVICES");
        let output = run(command.arg("--json"));
        assert!(clock.elapsed() < Duration::from_secs(120), "{arguments:?} took {:?}", clock.elapsed());
        output
    }

    fn problems<'l>(outcomes: &'l [Value], word: &str) -> Vec<&'l Value> {
        let names_it = |outcome: &&Value| outcome["problem"].as_str().is_some_and(|problem| problem.contains(word));
        outcomes.iter().filter(names_it).collect()
    }

    /// One launch is refused: one outcome is an error, and everything after it is examined.
    #[test]
    fn an_error_of_an_operation_is_its_outcome() {
        let all = lines(&on_fake(&["--size", "small", "--no-timing"], "")).1;
        assert_eq!(problems(&all, "CUDA_ERROR").len(), 0);
        let output = on_fake(&["--size", "small", "--no-timing"], "cuLaunchKernel:40:1");
        assert_eq!(output.status.code(), Some(1));
        let (_, outcomes, summary) = lines(&output);
        let failed = problems(&outcomes, "CUDA_ERROR");
        assert_eq!(failed.len(), 1, "{failed:?}");
        assert_eq!(outcomes.len(), all.len());
        assert!(summary["lost"].is_null() && summary["failed"].as_u64() > Some(100), "{summary}");
        let last = outcomes.last().expect("outcomes");
        assert!(last["op"] == "transpose" && last["dtype"] == "bf16", "{last}");
    }

    /// The outcomes so far are printed, and why there are no more.
    #[test]
    fn a_lost_device_ends_the_examination_and_keeps_what_was_found() {
        for arguments in [&["--size", "small", "--no-timing"][..], &["--size", "small"]] {
            let output = on_fake(arguments, "cuLaunchKernel:40:700");
            assert_eq!(output.status.code(), Some(1));
            let (_, outcomes, summary) = lines(&output);
            assert!((1..100).contains(&outcomes.len()), "{}", outcomes.len());
            assert_eq!(problems(&outcomes, "CUDA_ERROR_ILLEGAL_ADDRESS").len(), 1);
            let lost = summary["lost"].as_str().unwrap_or_default();
            assert!(lost.contains("does not answer any more") && lost.contains("ILLEGAL_ADDRESS"), "{summary}");
            assert!(text(&output.stderr).contains("does not answer any more"), "{}", text(&output.stderr));
        }
    }

    /// Every case of the shapes of real models, of an operation whose inputs once were drawn for ever.
    #[test]
    fn inputs_with_gaps_are_made_and_not_waited_for() {
        let outcomes = lines(&on_fake(&["--op", "=beam_candidates", "--no-timing"], "")).1;
        assert!(outcomes.iter().any(|outcome| outcome["case"].as_str().is_some_and(|case| case.contains("30522"))));
    }
}
