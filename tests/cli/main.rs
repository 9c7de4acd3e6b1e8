//! The promises of the command line: what it prints, what it writes, and how it fails. Every failure is one line on
//! standard error, exit status 1 (2 for usage), no panic and no partial file.

#[path = "../common/mod.rs"]
mod common;

mod captions;
mod evaluate;
mod failures;
mod names;
mod score;
mod speak;
mod speech;
mod streams;
mod train;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::golden;
use serde_json::Value;
use tempfile::TempDir;

fn scene() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/scene.png")
}

fn run(arguments: &[&str]) -> Output {
    run_in(Path::new(env!("CARGO_MANIFEST_DIR")), arguments)
}

fn run_in(directory: &Path, arguments: &[&str]) -> Output {
    let arguments = with_model(arguments);
    Command::new(env!("CARGO_BIN_EXE_im2sp")).args(arguments).current_dir(directory).output().expect("im2sp starts")
}

/// Subcommands that use the embedded model unless `--weights` names another.
const SPEAKING: [&str; 4] = ["caption", "speak", "evaluate", "bench"];

/// A command with the model of drawn scenes, unless it names another.
fn with_model(arguments: &[&str]) -> Vec<String> {
    let mut arguments: Vec<String> = arguments.iter().map(|argument| argument.to_string()).collect();
    let speaks = arguments.len() > 1 && SPEAKING.contains(&arguments[0].as_str());
    if speaks && !arguments.iter().any(|argument| argument == "--weights" || argument == "--help") {
        arguments.splice(1..1, ["--weights".into(), path(&common::scenes::directory()).to_string()]);
    }
    arguments
}

/// Another image, with another caption.
fn other_scene() -> PathBuf {
    golden("scenes/scene_0001.jpg")
}

/// Runs a script in `directory`, in which `im2sp` is this program, with the model of drawn scenes, and `$scene` the image.
fn shell(directory: &Path, script: &str) -> Output {
    let speaking = SPEAKING.join("|");
    let function = format!(
        r#"im2sp() {{ case $1 in {speaking}) "$program" "$1" --weights "$model" "${{@:2}}" ;; *) "$program" "$@" ;; esac; }}"#
    );
    let mut bash = Command::new("bash");
    bash.args(["-c", &format!("set -o pipefail; {function}; {script}")]).current_dir(directory);
    bash.env("scene", scene()).env("model", common::scenes::directory()).env("program", env!("CARGO_BIN_EXE_im2sp"));
    bash.output().expect("bash starts")
}

/// The sound of a image by itself.
fn sound_of(image: &Path) -> Vec<u8> {
    let directory = TempDir::new().unwrap();
    let target = directory.path().join("alone.wav");
    succeeds(&run(&["caption", path(image), "-o", path(&target)]));
    std::fs::read(target).unwrap()
}

/// The names in a folder, in order.
fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = entries.map(|name| name.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

#[track_caller]
fn succeeds(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// The error message of a run that had to fail with status 1.
#[track_caller]
fn fails(output: &Output) -> String {
    ends(output, 1)
}

/// The error message of a run that had to fail with status 2: its options make no sense.
#[track_caller]
fn refuses(output: &Output) -> String {
    ends(output, 2)
}

#[track_caller]
fn ends(output: &Output, status: i32) -> String {
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{errors}");
    assert!(!errors.contains("panicked"), "{errors}");
    let lines: Vec<&str> = errors.lines().filter(|line| line.starts_with("im2sp: error: ")).collect();
    assert_eq!(lines.len(), 1, "one error, in one line: {errors}");
    lines[0].to_string()
}

/// Sample rate and samples of a 16-bit mono WAV file.
fn wav(file: &Path) -> (u32, Vec<i16>) {
    let mut reader = hound::WavReader::open(file).expect("a WAV file");
    let spec = reader.spec();
    assert_eq!((spec.channels, spec.bits_per_sample), (1, 16));
    (spec.sample_rate, reader.samples::<i16>().collect::<Result<_, _>>().expect("whole samples"))
}

/// Bytes that a shell's pipe carries, and whether all went well.
fn piped(arguments: &[&str], listener: &str) -> (Vec<u8>, String) {
    let command = format!("set -o pipefail; \"$0\" \"$@\" | {listener}");
    let output =
        Command::new("bash").args(["-c", &command, env!("CARGO_BIN_EXE_im2sp")]).args(with_model(arguments)).output();
    let output = output.expect("bash starts");
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{errors}");
    assert!(!errors.contains("panicked") && !errors.contains("error"), "{errors}");
    (output.stdout, errors)
}
