//! `im2sp train`, `im2sp plot`: a run from a small data set, killed and resumed, and everything that can be wrong with one.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use super::*;

/// A folder with ten scenes, their units and a small model's dimensions.
fn workplace() -> TempDir {
    let directory = TempDir::new().unwrap();
    let mut lines = String::new();
    for n in 0..10 {
        let name = format!("scene_{n:04}.jpg");
        std::fs::copy(golden("scenes").join(&name), directory.path().join(&name)).unwrap();
        let units: Vec<usize> = (0..6 + n % 4).map(|k| (37 * n + 11 * k) % 200).collect();
        lines += &format!(
            "{{\"image\": {name:?}, \"units\": {units:?}, \"split\": \"{}\"}}\n",
            if n < 8 { "train" } else { "val" }
        );
    }
    std::fs::write(directory.path().join("all.jsonl"), lines).unwrap();
    let model = r#"{"format": "im2sp-1",
        "image": {"size": 28, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
        "vision": {"patch": 14, "width": 32, "layers": 1, "heads": 2, "mlp": 64, "eps": 1e-5},
        "decoder": {"width": 32, "layers": 2, "heads": 2, "mlp": 64, "vocabulary": 203, "max_positions": 32, "eps": 1e-12}}"#;
    std::fs::write(directory.path().join("model.json"), model).unwrap();
    directory
}

const BASE: [&str; 14] = [
    "--init",
    "model.json",
    "--manifest",
    "all.jsonl",
    "--freeze",
    "none",
    "--batch",
    "3",
    "--rate",
    "1e-3",
    "--warmup",
    "2",
    "--save-every",
    "4",
];

fn train(directory: &Path, arguments: &[&str]) -> Output {
    run_in(directory, &[&["train"], arguments].concat())
}

fn begin(directory: &Path, name: &str, more: &[&str]) -> Output {
    train(directory, &[&[name], &BASE[..], more].concat())
}

/// A second process in the directory of a run is refused, and changes nothing there.
#[test]
fn one_process_trains_in_a_directory() {
    let directory = workplace();
    let run = directory.path().join("run");
    let begun = begin(directory.path(), "run", &["--iterations", "2"]);
    assert_eq!(begun.status.code(), Some(0), "{}", String::from_utf8_lossy(&begun.stderr));
    let before = std::fs::read(run.join("log.jsonl")).unwrap();
    let lock = std::fs::File::create(run.join("lock")).unwrap();
    lock.lock().unwrap();
    let refused = train(directory.path(), &["run", "--resume"]);
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("another process works in"), "{said}");
    assert_eq!(std::fs::read(run.join("log.jsonl")).unwrap(), before);
    drop(lock);
    assert_eq!(train(directory.path(), &["run", "--resume"]).status.code(), Some(0));
}

/// The last checkpoint's folder.
fn last(run: &Path) -> PathBuf {
    let index: Value = serde_json::from_str(&std::fs::read_to_string(run.join("checkpoints.json")).unwrap()).unwrap();
    run.join(index["last"].as_str().unwrap())
}

/// Files of the last checkpoint, and the losses.
fn outcome(run: &Path) -> (Vec<Vec<u8>>, Vec<(Value, Value)>) {
    let files = ["captioner.safetensors", "moments.safetensors", "state.json"];
    let files = files.map(|name| std::fs::read(last(run).join(name)).unwrap()).to_vec();
    let log = std::fs::read_to_string(run.join("log.jsonl")).unwrap();
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    (files, lines.map(|line| (line["update"].clone(), line["loss"].clone())).collect())
}

#[test]
fn a_run_learns_and_its_checkpoint_captions() {
    let directory = workplace();
    let more = ["--iterations", "60", "--validate-every", "30", "--dropout", "0"];
    succeeds(&begin(directory.path(), "run", &more));
    let run = directory.path().join("run");
    let log = std::fs::read_to_string(run.join("log.jsonl")).unwrap();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let loss = |line: &Value| line["loss"].as_f64().unwrap();
    let updates: Vec<f64> = lines.iter().filter(|line| line["kind"] == "update").map(loss).collect();
    assert_eq!(updates.len(), 60);
    assert!(updates[59] < updates[0] - 0.5, "{updates:?}");
    let validations: Vec<&Value> = lines.iter().filter(|line| line["kind"] == "validation").collect();
    assert!(validations.len() == 2 && validations[1]["unit_error_rate"].as_f64().unwrap() > 0.0);
    assert_eq!(lines[0]["rate"], 0.0);
    let best = last(&run);
    let captions = run_in(directory.path(), &["caption", "scene_0000.jpg", "--no-audio", "--weights", path(&best)]);
    assert!(!succeeds(&captions).is_empty());
    succeeds(&run_in(directory.path(), &["plot", "run", "-o", "loss.svg"]));
    let drawing = std::fs::read_to_string(directory.path().join("loss.svg")).unwrap();
    assert!(drawing.contains("training") && drawing.contains("validation") && drawing.contains("<polyline"));
    assert!(
        run.join("config.toml").exists() && names_in(&run).iter().any(|name| name.starts_with("events.out.tfevents"))
    );
}

/// With features that were computed before, a run gives what it gives without, but for their rounding to bf16.
#[test]
fn features_are_computed_once() {
    let directory = workplace();
    let frozen = ["--freeze", "vision", "--iterations", "8", "--dropout", "0"];
    let arguments = |name: &'static str, more: &[&'static str]| {
        let base = BASE.iter().filter(|word| !["--freeze", "none"].contains(word)).copied();
        [name].into_iter().chain(base).chain(frozen).chain(more.iter().copied()).collect::<Vec<_>>()
    };
    succeeds(&train(directory.path(), &arguments("plain", &[])));
    let output = train(directory.path(), &arguments("cached", &["--cache-features"]));
    succeeds(&output);
    assert!(text(&output.stderr).contains("features of 8 images"), "{}", text(&output.stderr));
    let [plain, cached] = ["plain", "cached"].map(|name| outcome(&directory.path().join(name)).1);
    for ((update, a), (_, b)) in plain.iter().zip(&cached) {
        let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
        assert!((a - b).abs() < 0.02 * a, "{update}: {a} {b}");
    }
    succeeds(&run_in(directory.path(), &["plot", "plain", "cached", "-o", "both.svg"]));
    let drawing = std::fs::read_to_string(directory.path().join("both.svg")).unwrap();
    assert!(drawing.contains("plain: training") && drawing.contains("cached: training"), "{drawing}");
    let resumed = train(directory.path(), &["cached", "--resume"]);
    succeeds(&resumed);
    assert!(!text(&resumed.stderr).contains("features of"), "{}", text(&resumed.stderr));
}

fn start(directory: &Path, arguments: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_im2sp"));
    command.arg("train").args(arguments).current_dir(directory).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("im2sp starts")
}

/// Killed at fifty moments spread over its course, a run ends as one that was never interrupted, and every checkpoint that is
/// named in between can be read.
#[test]
#[cfg(unix)]
fn a_killed_run_resumes_to_the_bit() {
    let directory = workplace();
    let more = ["--iterations", "400"];
    let clock = Instant::now();
    succeeds(&begin(directory.path(), "whole", &more));
    let whole_time = clock.elapsed();
    let run = directory.path().join("killed");
    let mut random = common::Random::new(17);
    let first = [&["killed"], &BASE[..], &more[..]].concat();
    for kill in 0..50 {
        let resumes = run.join("config.toml").exists();
        let mut child = start(directory.path(), if resumes { &["killed", "--resume"] } else { &first });
        let longest = whole_time.as_micros() as usize / 8;
        std::thread::sleep(Duration::from_micros(random.below(longest.max(1)) as u64));
        child.kill().unwrap();
        child.wait().unwrap();
        if !run.join("config.toml").exists() {
            // Killed before it was a run: what is left is an empty folder, or none.
            continue;
        }
        if run.join("checkpoints.json").exists() {
            let info = run_in(directory.path(), &["info", path(&last(&run))]);
            assert!(info.status.success(), "after kill {kill}: {}", text(&info.stderr));
        }
    }
    succeeds(&train(directory.path(), &["killed", "--resume"]));
    let [whole, killed] = ["whole", "killed"].map(|name| outcome(&directory.path().join(name)));
    assert!(whole == killed, "{:?}\n{:?}", whole.1, killed.1);
    let left: Vec<String> = names_in(&run).into_iter().filter(|name| name.starts_with("step-")).collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

/// Checkpoints that a killed process was about to remove, or had not named yet, are gone after a resume.
#[test]
fn a_resumed_run_removes_what_a_kill_left() {
    let directory = workplace();
    succeeds(&begin(directory.path(), "run", &["--iterations", "4"]));
    let run = directory.path().join("run");
    let kept = last(&run);
    for name in ["step-00000002", "step-00000900"] {
        std::fs::create_dir(run.join(name)).unwrap();
        std::fs::copy(kept.join("state.json"), run.join(name).join("state.json")).unwrap();
    }
    succeeds(&train(directory.path(), &["run", "--resume"]));
    let left = names_in(&run).into_iter().filter(|name| name.starts_with("step-"));
    assert_eq!(left.collect::<Vec<_>>(), [kept.file_name().unwrap().to_str().unwrap()]);
}

#[test]
#[cfg(unix)]
fn an_interrupted_run_saves_and_ends() {
    let directory = workplace();
    // All of it but the checkpoints.
    let arguments =
        [&["run"], &BASE[..BASE.len() - 2], &["--iterations", "1000000", "--save-every", "1000000"]].concat();
    let mut child = start(directory.path(), &arguments);
    let log = directory.path().join("run/log.jsonl");
    let clock = Instant::now();
    while std::fs::metadata(&log).map_or(0, |about| about.len()) < 2000 {
        assert!(clock.elapsed() < Duration::from_secs(60), "no update within a minute");
        std::thread::sleep(Duration::from_millis(5));
    }
    let id = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(id, rustix::process::Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let (_, losses) = outcome(&directory.path().join("run"));
    let state = std::fs::read_to_string(last(&directory.path().join("run")).join("state.json")).unwrap();
    let state: Value = serde_json::from_str(&state).unwrap();
    assert_eq!(state["position"]["update"].as_u64(), Some(losses.len() as u64));
}

#[test]
fn wrong_runs_are_refused() {
    let directory = workplace();
    let ends_in = |arguments: &[&str], status: i32| ends(&train(directory.path(), arguments), status);
    assert!(ends_in(&["run", "--manifest", "all.jsonl"], 2).contains("init"));
    assert!(ends_in(&["run", "--resume"], 1).contains("config.toml"));
    let with = |more: &[&str], status: i32| ends(&begin(directory.path(), "run", more), status);
    assert!(with(&["--iterations", "0"], 2).contains("iterations"));
    assert!(with(&["--dropout", "1"], 2).contains("dropout"));
    assert!(!directory.path().join("run").exists(), "nothing is left of what was refused");
    succeeds(&begin(directory.path(), "run", &["--iterations", "2"]));
    assert!(with(&["--iterations", "2"], 1).contains("--resume"));
    let message = ends_in(&["run", "--resume", "--rate", "1"], 1);
    assert!(message.contains("schedule.rate") && message.contains("config.toml"), "{message}");
    std::fs::write(directory.path().join("run.toml"), "bacth = 3").unwrap();
    assert!(ends_in(&["other", "--config", "run.toml"], 1).contains("bacth"));
    assert!(ends(&run_in(directory.path(), &["plot", "nothing"]), 1).contains("log.jsonl"));
}

#[test]
fn a_dry_run_estimates_and_writes_nothing() {
    let directory = workplace();
    let before = names_in(directory.path());
    let output = begin(directory.path(), "run", &["--iterations", "1000", "--dry-run"]);
    let words = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{words}");
    assert!(words.contains("8 samples, 1000 updates") && words.contains("ms an update"), "{words}");
    // Features of a frozen encoder are computed once, so no update has it.
    assert!(!words.contains("features"), "{words}");
    let data = ["--init", "model.json", "--manifest", "all.jsonl", "--freeze", "vision", "--cache-features"];
    let output = train(directory.path(), &[&["run", "--batch", "3", "--dry-run"], &data[..]].concat());
    let words = text(&output.stderr);
    assert!(output.status.success() && words.contains("for the features of"), "{words}");
    assert_eq!(names_in(directory.path()), before);
}

#[test]
fn damaged_images_are_left_out_and_many_end_the_run() {
    let directory = workplace();
    std::fs::remove_file(directory.path().join("scene_0002.jpg")).unwrap();
    std::fs::write(directory.path().join("scene_0003.jpg"), "no image").unwrap();
    let output = begin(directory.path(), "run", &["--iterations", "12"]);
    succeeds(&output);
    let words = text(&output.stderr);
    assert_eq!(words.matches("left out").count(), 2, "{words}");
    assert!(words.contains("scene_0002.jpg") && words.contains("scene_0003.jpg"), "{words}");
    for n in [4, 5] {
        std::fs::remove_file(directory.path().join(format!("scene_000{n}.jpg"))).unwrap();
    }
    let output = begin(directory.path(), "other", &["--iterations", "12"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("4 of 8 samples cannot be read"), "{}", text(&output.stderr));
}
