//! The promises of the command line: what it prints, what it writes, and how it fails. Every failure is one line on
//! standard error, exit status 1 (2 for usage), no panic and no partial file.

mod common;

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
    Command::new(env!("CARGO_BIN_EXE_im2sp")).args(arguments).current_dir(directory).output().expect("im2sp starts")
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
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
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

#[test]
fn the_first_command_speaks() {
    let directory = TempDir::new().unwrap();
    let target = directory.path().join("speech.wav");
    let output = run(&["caption", path(&scene()), "-o", path(&target)]);
    let said = succeeds(&output);
    assert!(said.contains("s of speech"), "{said}");
    let notes = text(&output.stderr);
    assert!(notes.contains("device cpu"), "the device is always said: {notes}");
    assert!(notes.contains("drawn scenes") && notes.contains("im2sp convert"), "{notes}");
    let (rate, samples) = wav(&target);
    assert_eq!(rate, 16_000);
    assert!(samples.len() > 16_000, "more than a second");
    let loud = samples.iter().filter(|s| s.unsigned_abs() > 1000).count();
    assert!(loud * 10 > samples.len(), "speech, not silence");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "nothing else was written");
}

#[test]
fn json_has_every_field_and_one_line_a_picture() {
    let directory = TempDir::new().unwrap();
    let copy = directory.path().join("again.png");
    std::fs::copy(scene(), &copy).unwrap();
    let target = directory.path().join("out/");
    let output = run(&["caption", path(&scene()), path(&copy), "-o", path(&target), "--json"]);
    let lines: Vec<Value> = succeeds(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    for line in &lines {
        let tokens: Vec<u64> = serde_json::from_value(line["tokens"].clone()).unwrap();
        assert_eq!((tokens.first(), tokens.last()), (Some(&101), Some(&102)), "BOS and EOS");
        assert_eq!(line["units"].as_array().unwrap().len(), tokens.len() - 2);
        let file = PathBuf::from(line["output"].as_str().unwrap());
        let seconds = wav(&file).1.len() as f64 / 16_000.0;
        assert!((line["duration_s"].as_f64().unwrap() - seconds).abs() < 1e-9);
        assert!(line["device"].as_str().unwrap().starts_with("cpu"));
        assert_eq!(line["dtype"], "bf16");
        for stage in ["decode_image", "preprocess", "vision", "prefill", "decode", "per_unit", "vocoder", "write"] {
            assert!(line["timings"][stage].as_f64().unwrap() > 0.0, "{stage}");
        }
    }
    assert_eq!(lines[0]["tokens"], lines[1]["tokens"], "the same picture, the same caption");
}

#[test]
fn a_directory_goes_on_where_it_was_interrupted() {
    let directory = TempDir::new().unwrap();
    let (pictures, spoken) = (directory.path().join("pictures"), directory.path().join("spoken/"));
    std::fs::create_dir_all(pictures.join("inside")).unwrap();
    for name in ["a.png", "b.PNG", "c.png", "inside/d.png"] {
        std::fs::copy(scene(), pictures.join(name)).unwrap();
    }
    std::fs::write(pictures.join("bad.jpg"), b"no picture").unwrap();
    std::fs::write(pictures.join("notes.txt"), b"no picture either").unwrap();
    let names = || {
        let mut names: Vec<String> = std::fs::read_dir(&spoken)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let arguments = ["caption", path(&pictures), "-o", path(&spoken), "--in-flight", "2"];
    let output = run(&arguments);
    assert!(fails(&output).contains("bad.jpg"));
    assert_eq!(text(&output.stdout).lines().count(), 3, "in the order of their names, whoever ended first");
    assert!(text(&output.stdout).lines().zip(["a.png", "b.PNG", "c.png"]).all(|(line, name)| line.contains(name)));
    assert_eq!(names(), ["a.wav", "b.wav", "c.wav"]);
    let alone = directory.path().join("alone.wav");
    succeeds(&run(&["caption", path(&scene()), "-o", path(&alone)]));
    let expected = std::fs::read(&alone).unwrap();
    assert!(names().iter().all(|name| std::fs::read(spoken.join(name)).unwrap() == expected));

    std::fs::remove_file(pictures.join("bad.jpg")).unwrap();
    std::fs::remove_file(spoken.join("b.wav")).unwrap();
    std::fs::write(spoken.join("a.wav"), b"kept").unwrap();
    let output = run(&arguments);
    assert_eq!(succeeds(&output).lines().count(), 1, "only what was missing");
    assert!(text(&output.stderr).contains("2 of 3 pictures are spoken already"));
    assert_eq!(std::fs::read(spoken.join("b.wav")).unwrap(), expected);
    assert_eq!(std::fs::read(spoken.join("a.wav")).unwrap(), b"kept");
    assert_eq!(succeeds(&run(&arguments)), "", "nothing is left");
    assert_eq!(succeeds(&run(&[&arguments[..], &["--overwrite"]].concat())).lines().count(), 3);
    assert_eq!(std::fs::read(spoken.join("a.wav")).unwrap(), expected);

    let empty = directory.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    assert!(fails(&run(&["caption", path(&empty), "-o", path(&spoken)])).contains("empty"));
    std::fs::copy(scene(), pictures.join("a.gif")).unwrap();
    let clash = fails(&run(&arguments));
    assert!(clash.contains("a.gif") && clash.contains("a.png") && clash.contains("a.wav"), "{clash}");
    let one = run(&["caption", path(&pictures), "-o", path(&alone)]);
    assert!(fails(&one).contains("no directory"), "a directory has many pictures, even if it has one");
}

/// What listens may go away; but what could not be said is not passed over.
#[test]
fn a_closed_pipe_is_no_error_and_a_full_disk_is_one() {
    let into = |stdout: std::process::Stdio| {
        Command::new(env!("CARGO_BIN_EXE_im2sp")).args(["info"]).stdout(stdout).output().unwrap()
    };
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    succeeds(&into(writer.into()));
    if let Ok(full) = std::fs::File::options().write(true).open("/dev/full") {
        assert!(fails(&into(full.into())).contains("standard output"));
    }
}

#[test]
fn the_same_command_gives_the_same_bytes() {
    let directory = TempDir::new().unwrap();
    let file = |name: &str| directory.path().join(name);
    for (name, more) in
        [("a", &["--beam", "3"][..]), ("b", &["--beam", "3"]), ("c", &["--top-p", "0.9", "--seed", "5"])]
    {
        let target = file(name);
        succeeds(&run(&[&["caption", path(&scene()), "-o", path(&target)], more].concat()));
    }
    assert_eq!(std::fs::read(file("a")).unwrap(), std::fs::read(file("b")).unwrap());
    assert!(wav(&file("c")).1.len() > 1000);
}

#[test]
fn units_can_be_spoken_again() {
    let directory = TempDir::new().unwrap();
    let (spoken, list, again) =
        (directory.path().join("a.wav"), directory.path().join("units.txt"), directory.path().join("b.wav"));
    succeeds(&run(&["caption", path(&scene()), "-o", path(&spoken)]));
    let units = succeeds(&run(&["caption", path(&scene()), "--no-audio"]));
    std::fs::write(&list, &units).unwrap();
    succeeds(&run(&["speak", path(&list), "-o", path(&again)]));
    assert_eq!(std::fs::read(&spoken).unwrap(), std::fs::read(&again).unwrap());
    let report: Value =
        serde_json::from_str(&succeeds(&run(&["speak", "--units", "71 71, 12 4", "-o", path(&again), "--json"])))
            .unwrap();
    assert_eq!(report["units"], 4);
}

#[test]
fn max_units_limits_a_caption() {
    let units = succeeds(&run(&["caption", path(&scene()), "--no-audio", "--max-units", "7"]));
    assert_eq!(units.split_whitespace().count(), 7);
}

#[test]
fn a_converted_model_captions() {
    let directory = TempDir::new().unwrap();
    let model = golden("models/small");
    let target = directory.path().join("x.wav");
    for dtype in ["auto", "f32", "bf16"] {
        let output = run(&[
            "caption",
            path(&scene()),
            "-o",
            path(&target),
            "--weights",
            path(&model),
            "--dtype",
            dtype,
            "--json",
        ]);
        let line: Value = serde_json::from_str(&succeeds(&output)).unwrap();
        assert_eq!(line["dtype"], if dtype == "bf16" { "bf16" } else { "f32" });
    }
    let coded = directory.path().join("coded");
    let source = golden("weights/git");
    succeeds(&run(&["convert", path(&source), "--quantize", "int8", "-o", path(&coded)]));
    assert!(succeeds(&run(&["info", path(&coded)])).contains("int8"));
    let scene = scene();
    let arguments = ["caption", path(&scene), "--weights", path(&coded), "--device", "cpu", "--no-audio", "--json"];
    let line: Value = serde_json::from_str(&succeeds(&run(&arguments))).unwrap();
    assert_eq!(line["dtype"], "int8");
    let info: Value = serde_json::from_str(&succeeds(&run(&["info", path(&model), "--json"]))).unwrap();
    assert_eq!(info["config"]["format"], "im2sp-1");
    assert!(succeeds(&run(&["info"])).contains("drawn scenes"));
}

#[test]
fn a_calibration_is_reported() {
    let directory = TempDir::new().unwrap();
    let pictures = directory.path().join("pictures");
    std::fs::create_dir(&pictures).unwrap();
    let model = directory.path().join("model");
    let convert = |more: &[&str]| {
        let (pictures, model) = (path(&pictures), path(&model));
        run(&[&["convert", "weights/demo", "--quantize", "fp8", "--calibrate", pictures, "-o", model], more].concat())
    };
    assert!(fails(&convert(&[])).contains("option calibrate:"));
    std::fs::copy(scene(), pictures.join("scene.png")).unwrap();
    let said = succeeds(&convert(&[]));
    assert!(said.contains("1 of 1 pictures keep all their units") && said.contains("decoder.layers.5.fc2"), "{said}");
    assert!(fails(&convert(&[])).contains("--force"));
    let line: Value = serde_json::from_str(&succeeds(&convert(&["--force", "--json"]))).unwrap();
    assert_eq!((&line["calibration"]["kept"], &line["calibration"]["pictures"]), (&1.into(), &1.into()));
    assert_eq!(line["calibration"]["matrices"].as_array().map(Vec::len), Some(24));
}

#[test]
fn bad_pictures_are_named_and_the_others_spoken() {
    let directory = TempDir::new().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let file = directory.path().join(name);
        std::fs::write(&file, bytes).unwrap();
        file
    };
    let whole = std::fs::read(scene()).unwrap();
    let truncated = file("truncated.png", &whole[..whole.len() / 2]);
    let empty = file("empty.png", b"");
    let words = file("words.jpg", b"this is no picture");
    let missing = directory.path().join("missing.png");
    for bad in [&truncated, &empty, &words, &missing, &directory.path().to_path_buf()] {
        let target = directory.path().join("bad.wav");
        let error = fails(&run(&["caption", path(bad), "-o", path(&target)]));
        assert!(error.contains(path(bad)), "the file is named: {error}");
        assert!(!target.exists(), "nothing is written");
    }
    let out = directory.path().join("out/");
    let error = fails(&run(&["caption", path(&empty), path(&scene()), "-o", path(&out)]));
    assert!(error.contains("empty.png"));
    assert!(wav(&out.join("scene.wav")).1.len() > 1000, "the good picture is spoken");
}

#[test]
fn outputs_that_cannot_be_written() {
    let directory = TempDir::new().unwrap();
    let nowhere = directory.path().join("no/such/place.wav");
    let error = fails(&run(&["caption", path(&scene()), "-o", path(&nowhere)]));
    assert!(error.contains(path(&nowhere)), "{error}");
    if Path::new("/dev/full").exists() {
        let error = fails(&run(&["caption", path(&scene()), "-o", "/dev/full"]));
        assert!(error.contains("/dev/full"), "{error}");
    }
    let twice = directory.path().join("scene.jpg");
    std::fs::copy(scene(), &twice).unwrap();
    let error = fails(&run_in(directory.path(), &["caption", path(&scene()), path(&twice)]));
    assert!(error.contains("scene.wav"), "{error}");
    let error = fails(&run(&["caption", path(&scene()), path(&twice), "-o", path(&directory.path().join("one.wav"))]));
    assert!(error.contains("no directory"), "{error}");
}

#[test]
fn units_that_cannot_be_spoken() {
    let directory = TempDir::new().unwrap();
    let target = directory.path().join("x.wav");
    let too_many = vec!["1 2"; 50_000].join(" ");
    for (units, word) in [("", "none"), ("1 200", "200"), ("5 -1", "-1"), ("5 x", "x"), (&too_many, "more than")] {
        // A command line has no room for 100,000 units; a file has.
        let list = directory.path().join("units.txt");
        std::fs::write(&list, units).unwrap();
        let error = fails(&run(&["speak", path(&list), "-o", path(&target)]));
        assert!(error.contains(word), "{error}");
        assert!(!target.exists());
    }
}

#[test]
fn devices_and_options_that_do_not_fit() {
    let error = fails(&run(&["caption", path(&scene()), "--no-audio", "--device", "cuda"]));
    assert!(error.contains("cuda:0") && error.contains("--device cpu"), "never a silent fallback: {error}");
    for (arguments, word) in [
        (&["--beam", "0"][..], "beam"),
        (&["--beam", "500"], "beam"),
        (&["--temperature", "0"], "temperature"),
        (&["--beam", "2", "--top-k", "3"], "beam"),
        (&["--max-units", "0"], "max-units"),
        (&["--weights", "no-such-model"], "no-such-model"),
    ] {
        let error = fails(&run(&[&["caption", path(&scene()), "--no-audio"], arguments].concat()));
        assert!(error.contains(word), "{error}");
    }
    let directory = TempDir::new().unwrap();
    let target = directory.path().join("x.wav");
    let error = fails(&run(&["caption", path(&scene()), "-o", path(&target), "--speaker", "3"]));
    assert!(error.contains("speaker"), "{error}");
}

#[test]
fn wrong_usage_is_status_2() {
    for arguments in [
        &[][..],
        &["caption"],
        &["caption", "x.png", "--device", "tpu"],
        &["caption", "x.png", "--dtype", "f64"],
        &["caption", "x.png", "--stream"],
        &["caption", "x.png", "--format", "mp3"],
        &["speak", "-o", "x.wav"],
        &["speak", "--units", "1", "units.txt", "-o", "x.wav"],
        &["convert", "x.ckpt"],
        &["convert", "x.ckpt", "-o", "x", "--calibrate", "pictures"],
        &["nonsense"],
    ] {
        assert_eq!(run(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn help_teaches() {
    for (arguments, word) in [
        (&["--help"][..], "caption picture.png"),
        (&["caption", "--help"], "--top-p"),
        (&["speak", "--help"], "im2sp speak --units"),
        (&["convert", "--help"], "im2sp convert Im2Sp.ckpt"),
        (&["info", "--help"], "embedded"),
        (&["--version"], "im2sp 0.1.0"),
    ] {
        let help = succeeds(&run(arguments));
        assert!(help.contains(word), "{help}");
    }
}

/// What a shell's pipe carries, and whether all went well.
fn piped(arguments: &[&str], listener: &str) -> (Vec<u8>, String) {
    let command = format!("set -o pipefail; \"$0\" \"$@\" | {listener}");
    let output = Command::new("bash").args(["-c", &command, env!("CARGO_BIN_EXE_im2sp")]).args(arguments).output();
    let output = output.expect("bash starts");
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{errors}");
    assert!(!errors.contains("panicked") && !errors.contains("error"), "{errors}");
    (output.stdout, errors)
}

#[test]
fn sound_is_streamed_into_a_pipe() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("whole.wav");
    let scene = scene();
    for more in [&[][..], &["--beam", "3"], &["--top-k", "5", "--seed", "3"], &["--compat", "reference"]] {
        succeeds(&run(&[&["caption", path(&scene), "-o", path(&file)], more].concat()));
        let whole = std::fs::read(&file).unwrap();
        let stream = [&["caption", path(&scene), "--stream", "-o", "-"], more].concat();
        let (wav, notes) = piped(&stream, "cat");
        assert!(notes.contains("the first sound after"), "{notes}");
        assert_eq!(
            (&wav[..4], &wav[4..8], &wav[8..40], &wav[40..44]),
            (&b"RIFF"[..], &[255; 4][..], &whole[8..40], &[255; 4][..])
        );
        assert!(wav[44..] == whole[44..], "the same samples as at once");
        let (pcm, _) = piped(&[&stream[..], &["--format", "pcm"]].concat(), "cat");
        assert!(pcm == whole[44..]);
        // A file appears whole, lengths and all.
        let target = directory.path().join("streamed.wav");
        let said = succeeds(&run(&[&["caption", path(&scene), "--stream", "-o", path(&target)], more].concat()));
        assert!(said.contains("the first sound after"), "{said}");
        assert!(std::fs::read(&target).unwrap() == whole);
    }
}

#[test]
fn a_listener_may_go_away() {
    let scene = scene();
    let (bytes, _) = piped(&["caption", path(&scene), "--stream", "-o", "-", "--format", "pcm"], "head -c 2");
    assert_eq!(bytes.len(), 2);
    let (bytes, _) = piped(&["caption", path(&scene), "--stream", "-o", "-"], "true");
    assert!(bytes.is_empty());
}

#[test]
fn sound_goes_to_standard_output_and_named_pipes() {
    let directory = TempDir::new().unwrap();
    let (file, pipe) = (directory.path().join("whole.wav"), directory.path().join("pipe"));
    succeeds(&run(&["caption", path(&scene()), "-o", path(&file)]));
    let whole = std::fs::read(&file).unwrap();
    assert!(piped(&["caption", path(&scene()), "-o", "-"], "cat").0 == whole);
    let pcm = directory.path().join("x.pcm");
    succeeds(&run(&["caption", path(&scene()), "-o", path(&pcm), "--format", "pcm"]));
    assert!(std::fs::read(&pcm).unwrap() == whole[44..]);
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let reader = std::thread::spawn({
        let pipe = pipe.clone();
        move || std::fs::read(pipe).unwrap()
    });
    let report = succeeds(&run(&["caption", path(&scene()), "--stream", "-o", path(&pipe), "--json"]));
    let heard = reader.join().unwrap();
    assert!(heard[44..] == whole[44..]);
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["tokens"].as_array().unwrap().len(), report["units"].as_array().unwrap().len() + 2);
    assert!(report["timings"]["first_sound"].as_f64().unwrap() < report["timings"]["total"].as_f64().unwrap());
    assert!((report["duration_s"].as_f64().unwrap() * 32_000.0 - (whole.len() - 44) as f64).abs() < 1e-6);
}

#[test]
fn streams_that_cannot_be() {
    let directory = TempDir::new().unwrap();
    let twice = directory.path().join("again.png");
    std::fs::copy(scene(), &twice).unwrap();
    let target = directory.path().join("x.wav");
    let scene = scene();
    for (arguments, word) in [
        (&["caption", path(&scene), path(&twice), "--stream", "-o", "-"][..], "one picture"),
        (&["caption", path(&scene), "--stream", "-o", "-", "--json"], "json"),
        (&["caption", path(&directory.path().join("none.png")), "--stream", "-o", path(&target)], "none.png"),
        (&["caption", path(&scene), "--stream", "-o", path(&target), "--speaker", "1"], "speaker"),
        (&["caption", path(&scene), "--stream", "-o", path(&target), "--beam", "0"], "beam"),
    ] {
        let error = fails(&run(arguments));
        assert!(error.contains(word), "{error}");
        assert!(!target.exists());
    }
    if Path::new("/dev/full").exists() {
        let error = fails(&run(&["caption", path(&scene), "--stream", "-o", "/dev/full"]));
        assert!(error.contains("/dev/full"), "{error}");
    }
}
