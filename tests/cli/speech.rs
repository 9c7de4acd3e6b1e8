//! `im2sp units`, `im2sp transcribe` and `im2sp kmeans`: what they print and write, how they resume, and recordings that cannot
//! be used.

use std::sync::OnceLock;

use im2sp::audio::write_wav;
use im2sp::data::unit_file;
use im2sp::weights::centres;

use super::*;
use common::Golden;

/// A folder with the golden models as model directories.
fn models() -> &'static Path {
    static MODELS: OnceLock<TempDir> = OnceLock::new();
    let folder = MODELS.get_or_init(|| {
        let folder = TempDir::new().unwrap();
        for name in ["hubert", "ctc_large"] {
            let source = golden("speech").join(name);
            succeeds(&run(&["convert", path(&source), "-o", path(&folder.path().join(name))]));
        }
        folder
    });
    folder.path()
}

/// Recordings `a.wav` and `deep/b.wav`, with the golden units of the first as they are at 16 bits.
fn recordings() -> TempDir {
    let folder = TempDir::new().unwrap();
    let expected = Golden::open("speech/expected.safetensors");
    std::fs::create_dir(folder.path().join("deep")).unwrap();
    write_wav(folder.path().join("a.wav"), &expected.f32("samples.odd"), 16_000).unwrap();
    write_wav(folder.path().join("deep/b.wav"), &expected.f32("samples.second"), 16_000).unwrap();
    folder
}

/// `im2sp units ARGUMENTS` with the golden encoder and centres.
fn units(directory: &Path, arguments: &[&str]) -> Output {
    let (model, centres) = (models().join("hubert"), golden("speech/km.bin"));
    let fixed = ["--weights", path(&model), "--kmeans", path(&centres), "--layer", "2"];
    run_in(directory, &[&["units"], arguments, &fixed].concat())
}

fn transcribe(directory: &Path, arguments: &[&str]) -> Output {
    let model = models().join("ctc_large");
    run_in(directory, &[&["transcribe"], arguments, &["--weights", path(&model)]].concat())
}

fn numbers(text: &str) -> Vec<u32> {
    text.split_whitespace().map(|number| number.parse().unwrap()).collect()
}

#[test]
fn units_are_printed_and_written_in_every_layout() {
    let folder = recordings();
    let at = folder.path();
    let printed = numbers(&succeeds(&units(at, &["a.wav"])));
    assert_eq!(printed.len(), 18);
    for layout in ["array", "tensor"] {
        succeeds(&units(at, &["a.wav", "-o", "one.unit", "--unit-layout", layout]));
        assert_eq!(unit_file::read(&at.join("one.unit"), 20).unwrap(), printed, "{layout}");
    }
    let record: Value = serde_json::from_str(&succeeds(&units(at, &["a.wav", "--json"]))).unwrap();
    assert_eq!(record["audio"], "a.wav");
    assert_eq!(numbers(record["hubert"].as_str().unwrap()), printed);
    assert_eq!(record["duration"], 6143.0 / 16_000.0);
    let lines = succeeds(&units(at, &["."]));
    assert_eq!(lines.lines().count(), 2, "{lines}");
    // Text that `im2sp speak` takes.
    assert!(lines.lines().all(|line| line.split_once('|').is_some_and(|(_, units)| !numbers(units).is_empty())));
}

#[test]
fn folders_are_mirrored_and_resumed() {
    let folder = recordings();
    let at = folder.path();
    std::fs::write(at.join("bad.wav"), b"RIFF").unwrap();
    std::fs::write(at.join("empty.wav"), b"").unwrap();
    let output = units(at, &[".", "-o", "out/"]);
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(errors.matches("im2sp: error: ").count(), 2, "{errors}");
    assert!(errors.contains("bad.wav") && errors.contains("empty.wav"), "{errors}");
    assert_eq!(names_in(&at.join("out")), ["a.unit", "deep"]);
    assert_eq!(names_in(&at.join("out/deep")), ["b.unit"]);
    let before = std::fs::read(at.join("out/a.unit")).unwrap();
    std::fs::remove_file(at.join("out/deep/b.unit")).unwrap();
    for name in ["bad.wav", "empty.wav"] {
        std::fs::remove_file(at.join(name)).unwrap();
    }
    let output = units(at, &[".", "-o", "out/"]);
    succeeds(&output);
    assert!(text(&output.stderr).contains("skipping 1 of 2 recordings"), "{}", text(&output.stderr));
    assert!(at.join("out/deep/b.unit").exists());
    std::fs::write(at.join("out/a.unit"), b"").unwrap();
    succeeds(&units(at, &[".", "-o", "out/", "--overwrite"]));
    assert_eq!(std::fs::read(at.join("out/a.unit")).unwrap(), before);
    // Recordings that differ in their suffixes alone keep both.
    std::fs::copy(golden("recordings/tone.flac"), at.join("a.flac")).unwrap();
    succeeds(&units(at, &[".", "-o", "two/"]));
    assert_eq!(names_in(&at.join("two")), ["a.flac.unit", "a.wav.unit", "deep"]);
    // So does one whose name without suffix is one of those.
    std::fs::copy(at.join("deep/b.wav"), at.join("a.wav.wav")).unwrap();
    succeeds(&units(at, &[".", "-o", "three/"]));
    assert_eq!(names_in(&at.join("three")), ["a.flac.unit", "a.wav.unit", "a.wav.wav.unit", "deep"]);
    let [own, other] = ["a.wav.unit", "a.wav.wav.unit"].map(|name| std::fs::read(at.join("three").join(name)).unwrap());
    assert!(own == before && own != other);
}

/// Results that nobody reads are not made; files are.
#[test]
#[cfg(target_os = "linux")]
fn a_reader_who_goes_away_or_a_full_disk_ends_a_folder() {
    let folder = recordings();
    let at = folder.path();
    std::fs::write(at.join("last.wav"), b"RIFF").unwrap();
    let (hubert, ctc, kmeans) = (models().join("hubert"), models().join("ctc_large"), golden("speech/km.bin"));
    let units = ["units", ".", "--weights", path(&hubert), "--kmeans", path(&kmeans), "--layer", "2"];
    let transcribe = ["transcribe", ".", "--weights", path(&ctc)];
    let into = |arguments: &[&str], stdout: std::process::Stdio| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_im2sp"));
        // On a CPU they are taken one by one.
        command.args(arguments).args(["--device", "cpu"]).current_dir(at).stdout(stdout).output().unwrap()
    };
    let unread = |arguments: &[&str]| {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        into(arguments, writer.into())
    };
    let full = |arguments: &[&str]| into(arguments, std::fs::File::create("/dev/full").unwrap().into());
    for command in [&units[..], &transcribe] {
        for more in [&[][..], &["--json"]] {
            let arguments = [command, more].concat();
            let output = unread(&arguments);
            succeeds(&output);
            assert!(!text(&output.stderr).contains("error"), "the last one is not reached");
            assert!(fails(&full(&arguments)).contains("standard output"));
        }
    }
    for (run, problem) in [(&unread as &dyn Fn(&[&str]) -> Output, "last.wav"), (&full, "standard output")] {
        let output = run(&[&units[..], &["--json", "-o", "out/"]].concat());
        let errors = text(&output.stderr);
        assert!(output.status.code() == Some(1) && errors.contains("last.wav") && errors.contains(problem), "{errors}");
        assert_eq!(errors.matches("error: ").count(), 1 + usize::from(problem == "standard output"), "{errors}");
        assert_eq!(names_in(&at.join("out")), ["a.unit", "deep"]);
        std::fs::remove_dir_all(at.join("out")).unwrap();
    }
    // One file more than there is room for.
    std::fs::create_dir(at.join("out")).unwrap();
    let mount = |program: &str, arguments: &[&str]| {
        let done = Command::new(program).args(arguments).arg(at.join("out")).output();
        done.is_ok_and(|output| output.status.success())
    };
    // Only root may mount, and not in every container.
    if mount("mount", &["-t", "tmpfs", "-o", "size=4k", "tmpfs"]) {
        for name in ["b.wav", "c.wav"] {
            std::fs::copy(at.join("a.wav"), at.join(name)).unwrap();
        }
        let output = into(&[&units[..], &["-o", "out/"]].concat(), std::process::Stdio::piped());
        assert!(mount("umount", &[]));
        assert!(fails(&output).contains("cannot write"), "{}", text(&output.stderr));
    }
}

#[test]
fn lines_of_json_are_resumed_where_they_end() {
    let folder = recordings();
    let at = folder.path();
    succeeds(&units(at, &[".", "-o", "units.jsonl"]));
    let whole = std::fs::read_to_string(at.join("units.jsonl")).unwrap();
    assert_eq!(whole.lines().count(), 2);
    // A run that was ended in the middle of the second line.
    std::fs::write(at.join("units.jsonl"), &whole[..whole.len() - 30]).unwrap();
    let output = units(at, &[".", "-o", "units.jsonl"]);
    succeeds(&output);
    assert!(text(&output.stderr).contains("skipping 1 of 2"), "{}", text(&output.stderr));
    assert_eq!(std::fs::read_to_string(at.join("units.jsonl")).unwrap(), whole);
    for content in ["{\"some\": 1}\n", "{\"some\": 1}"] {
        std::fs::write(at.join("notes.jsonl"), content).unwrap();
        for more in [&[][..], &["--overwrite"]] {
            let output = units(at, &[&[".", "-o", "notes.jsonl"], more].concat());
            assert!(refuses(&output).contains("line 1"));
            assert_eq!(std::fs::read_to_string(at.join("notes.jsonl")).unwrap(), content);
        }
    }
    // Only the recordings of a call are made again, and nothing goes before they can be.
    let absent = ["units", "a.wav", "--cepstra", "--kmeans", "absent.npy", "-o", "units.jsonl", "--overwrite"];
    fails(&run_in(at, &absent));
    assert_eq!(std::fs::read_to_string(at.join("units.jsonl")).unwrap(), whole);
    succeeds(&units(at, &["a.wav", "-o", "units.jsonl", "--overwrite"]));
    let again = std::fs::read_to_string(at.join("units.jsonl")).unwrap();
    let audio = |line: &str| serde_json::from_str::<Value>(line).unwrap()["audio"].as_str().unwrap().to_owned();
    let mut named: Vec<String> = again.lines().map(audio).collect();
    named.sort();
    assert_eq!(named, ["./a.wav", "./deep/b.wav", "a.wav"]);
    assert!(refuses(&units(at, &[".", "-o", "one.unit"])).contains("add a /"));
}

#[test]
fn texts_are_those_of_the_golden_data() {
    let folder = recordings();
    let texts: Value = serde_json::from_slice(&std::fs::read(golden("speech/expected.json")).unwrap()).unwrap();
    let line = succeeds(&transcribe(folder.path(), &["deep/b.wav"]));
    assert_eq!(line.trim_end().len(), texts["ctc_large.second"].as_str().unwrap().len());
    let lines = succeeds(&transcribe(folder.path(), &["."]));
    assert!(lines.contains(&format!("deep/b.wav\t{line}")), "{lines}");
    let record: Value = serde_json::from_str(&succeeds(&transcribe(folder.path(), &["deep/b.wav", "--json"]))).unwrap();
    assert_eq!((record["text"].as_str(), record["duration"].as_f64()), (Some(line.trim_end()), Some(1.0)));
}

#[test]
fn centres_are_found_and_used() {
    let folder = recordings();
    let at = folder.path();
    let model = models().join("hubert");
    let kmeans = |more: &[&str]| {
        let fixed = ["kmeans", ".", "--weights", path(&model), "--layer", "2", "-o", "km.npy", "--json"];
        run_in(at, &[&fixed[..], more].concat())
    };
    let report: Value = serde_json::from_str(&succeeds(&kmeans(&["--clusters", "5"]))).unwrap();
    assert_eq!((report["clusters"].as_u64(), report["frames"].as_u64()), (Some(5), Some(18 + 49)));
    let found = std::fs::read(at.join("km.npy")).unwrap();
    assert_eq!(centres::read(&at.join("km.npy")).unwrap().shape(), [5, 64]);
    succeeds(&kmeans(&["--clusters", "5"]));
    assert_eq!(std::fs::read(at.join("km.npy")).unwrap(), found, "the same seed");
    let drawn = kmeans(&["--clusters", "5", "--max-frames", "20", "--seed", "3"]);
    let report: Value = serde_json::from_str(&succeeds(&drawn)).unwrap();
    assert_eq!(report["frames"], 20);
    assert!(refuses(&kmeans(&["--clusters", "68"])).contains("67 frames"));
    let own = run_in(at, &["units", "a.wav", "--weights", path(&model), "--kmeans", "km.npy", "--layer", "2"]);
    assert!(numbers(&succeeds(&own)).iter().all(|&unit| unit < 5));
}

#[test]
fn what_cannot_be_used() {
    let folder = recordings();
    let at = folder.path();
    let hubert = models().join("hubert");
    write_wav(at.join("short.wav"), &[0.1; 160], 16_000).unwrap();
    write_wav(at.join("slow.wav"), &[0.1; 160], 8_000).unwrap();
    let error = fails(&units(at, &["short.wav"]));
    assert!(error.contains("short.wav: 160 samples are too few: a window has 400"), "{error}");
    let error = fails(&units(at, &["slow.wav"]));
    assert!(error.contains("slow.wav"), "{error}");
    assert!(fails(&transcribe(at, &["short.wav"])).contains("short.wav"));
    assert!(fails(&units(at, &["absent.wav"])).contains("absent.wav"));
    assert!(fails(&units(&at.join("deep"), &["../short.wav", "-o", "x.unit"])).contains("short.wav"));
    assert!(!at.join("deep/x.unit").exists());
    std::fs::create_dir(at.join("none")).unwrap();
    assert!(fails(&units(at, &["none"])).contains("no file named as a recording"));
    let kmeans = golden("speech/km.bin");
    let with = |arguments: &[&str]| run_in(at, &[&["units", "a.wav"], arguments].concat());
    let error = refuses(&with(&["--weights", path(&hubert), "--kmeans", path(&kmeans)]));
    assert!(error.contains("layer") && error.contains("1 to 2"), "{error}");
    let small = golden("models/small");
    let error = fails(&with(&["--weights", path(&small), "--kmeans", path(&kmeans), "--layer", "1"]));
    assert!(error.contains("captioner"), "{error}");
    let error = fails(&with(&["--weights", path(&hubert), "--kmeans", "a.wav", "--layer", "1"]));
    assert!(error.contains("a.wav"), "{error}");
    let error = fails(&run_in(at, &["transcribe", "a.wav", "--weights", path(&hubert)]));
    assert!(error.contains("recogniser"), "{error}");
    let error = fails(&run_in(at, &["caption", path(&scene()), "-o", "x.wav", "--weights", path(&hubert)]));
    assert!(error.contains("speech model"), "{error}");
    let about: Value = serde_json::from_str(&succeeds(&run(&["info", path(&hubert), "--json"]))).unwrap();
    assert_eq!(about["config"]["kind"], "speech_encoder");
    assert!(succeeds(&run(&["info", path(&hubert)])).contains("400 samples, 320 apart"));
    let vocoder = golden("weights/vocoder/g_new.pt");
    let source = golden("speech/hubert.pt");
    let error = refuses(&run_in(at, &["convert", path(&source), "--vocoder", path(&vocoder), "-o", "x"]));
    assert!(error.contains("vocoder") && error.contains("speech model"), "{error}");
}
