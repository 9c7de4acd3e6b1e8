//! The programs under examples/ run, and say the same as the library. Cargo builds them for its tests; `one_kernel`, which
//! needs the feature `emulator`, is run by .ci/run.
#![cfg(feature = "embedded-model")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use im2sp::{CaptionOptions, Engine, Image, audio};

fn scene() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/scene.png")
}

/// Runs an example, which cargo puts into a folder next to the program.
fn run(example: &str, arguments: &[&Path]) -> Output {
    let program = Path::new(env!("CARGO_BIN_EXE_im2sp"));
    let program = program.with_file_name("examples").join(format!("{example}{}", std::env::consts::EXE_SUFFIX));
    Command::new(&program).args(arguments).output().unwrap_or_else(|error| {
        panic!("{}: {error}; `cargo test --release` builds it, `--test examples` alone does not", program.display())
    })
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

/// The caption's samples in 16 bits, and its units, by the library.
fn expected() -> (Vec<u8>, String) {
    let engine = Engine::embedded().expect("the embedded model");
    let image = Image::open(scene()).expect("an image");
    let caption = engine.caption(&image, &CaptionOptions::default()).expect("a caption");
    let units: Vec<String> = caption.units.iter().map(u32::to_string).collect();
    (audio::pcm_bytes(&caption.samples), units.join(" "))
}

#[test]
fn caption_writes_the_speech() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("speech.wav");
    let output = run("caption", &[&scene(), &file]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let (samples, units) = expected();
    assert!(text(&output.stdout).starts_with(&format!("{} units, ", units.split(' ').count())));
    let wav = std::fs::read(&file).expect("the file");
    assert!(wav.starts_with(b"RIFF") && wav.ends_with(&samples) && samples.len() > 16_000, "{} bytes", wav.len());
}

#[test]
fn stream_writes_the_same_samples() {
    let output = run("stream", &[&scene()]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(output.stdout == expected().0, "{} bytes are not the caption's", output.stdout.len());
    assert!(text(&output.stderr).starts_with("first sound after "));
}

#[test]
fn batch_goes_past_a_file_that_is_missing() {
    let missing = Path::new("no-such.png");
    let output = run("batch", &[&scene(), missing, &scene()]);
    assert_eq!(output.status.code(), Some(1));
    let line = format!("{}|{}", scene().display(), expected().1);
    assert_eq!(text(&output.stdout).lines().collect::<Vec<_>>(), [&line, &line]);
    let errors = text(&output.stderr);
    assert!(errors.contains("no-such.png") && errors.ends_with("1 of 3 images failed\n"), "{errors}");
}

#[test]
fn wrong_usage_is_status_2_and_failures_are_status_1() {
    for example in ["caption", "stream", "batch"] {
        let output = run(example, &[]);
        assert_eq!(output.status.code(), Some(2), "{example}");
        assert!(text(&output.stderr).starts_with(&format!("usage: {example} ")), "{example}");
    }
    let output = run("stream", &[Path::new("no-such.png")]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    let errors = text(&output.stderr);
    assert!(errors.starts_with("error: ") && errors.lines().count() == 1, "{errors}");
}
