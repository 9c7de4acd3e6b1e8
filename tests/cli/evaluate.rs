//! `im2sp evaluate`, with a small script as listener: the stages and their report, a run that was ended, and a listener that
//! fails or hangs.

use super::*;
use std::process::Stdio;
use std::time::{Duration, Instant};

const IMAGES: usize = 4;
/// The listener, with a pause after each file.
const SLOW: &str = "f() { sh listen.sh \"$1\"; sleep 1; }; f";

/// A data set like Flickr8k with drawn scenes, and a listener that notes what it was given.
fn data_set() -> TempDir {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir_all(at("data/Images")).unwrap();
    let mut captions = String::new();
    for number in 0..IMAGES {
        let name = format!("scene_{number}.jpg");
        std::fs::copy(golden(&format!("scenes/scene_000{number}.jpg")), at("data/Images").join(&name)).unwrap();
        let first = if number == 1 { "A red circle .".into() } else { format!("A blue square {number} .") };
        for said in [&first, "One circle <b> & a square ."] {
            captions += &format!("{name}#0\t{said}\n");
        }
    }
    std::fs::write(at("captions.txt"), captions).unwrap();
    let listener =
        "#!/bin/sh\necho \"$1\" >> heard.log\ncase \"$1\" in *_1.wav) echo 'A RED CIRCLE' ;; *) echo 'A DOG' ;; esac\n";
    std::fs::write(at("listen.sh"), listener).unwrap();
    folder
}

/// A run in the data set's folder with a listener, and other or more options.
fn evaluate<'a>(listener: &'a str, options: &[(&'a str, &'a str)]) -> Vec<&'a str> {
    let mut all = vec![
        ("--dataset", "flickr8k"),
        ("--images", "data"),
        ("--captions", "captions.txt"),
        ("--device", "cpu"),
        ("--output", "out"),
        ("--asr-command", listener),
    ];
    for &(name, value) in options {
        all.retain(|(other, _)| *other != name);
        all.push((name, value));
    }
    ["evaluate", "--native"].into_iter().chain(all.into_iter().flat_map(|(name, value)| [name, value])).collect()
}

/// Files and their bytes, of all results but the lock.
fn results(folder: &TempDir) -> Vec<(String, Vec<u8>)> {
    let out = folder.path().join("out");
    let mut files = Vec::new();
    for part in ["", "wavs", "transcripts"] {
        for name in names_in(&out.join(part)) {
            let file = out.join(part).join(&name);
            if file.is_file() && name != "lock" {
                files.push((format!("{part}/{name}"), std::fs::read(file).unwrap()));
            }
        }
    }
    files
}

fn heard(folder: &TempDir) -> usize {
    std::fs::read_to_string(folder.path().join("heard.log")).map_or(0, |log| log.lines().count())
}

fn report(folder: &TempDir) -> Value {
    serde_json::from_slice(&std::fs::read(folder.path().join("out/report.json")).unwrap()).unwrap()
}

#[test]
fn all_stages_are_done_and_reported() {
    let folder = data_set();
    let printed = succeeds(&run_in(folder.path(), &evaluate("sh listen.sh", &[])));
    assert!(printed.contains("CIDEr") && printed.contains("METEOR               not computed: left out"), "{printed}");
    let report = report(&folder);
    assert_eq!(report["images"].as_array().unwrap().len(), IMAGES);
    assert_eq!(report["missing"].as_array().unwrap().len(), 0);
    let image = &report["images"][1];
    assert_eq!((&image["image"], &image["transcript"]), (&"scene_1".into(), &"A RED CIRCLE".into()));
    // The units and the sound are those of im2sp caption.
    let wav = std::fs::read(folder.path().join("out/wavs/scene_1.wav")).unwrap();
    assert_eq!(wav, sound_of(&golden("scenes/scene_0001.jpg")));
    assert!(image["units"].as_array().unwrap().len() > 5);
    // Equal to im2sp score of the same transcripts.
    let score = ["score", "--pred", "out/transcripts", "--ref", "captions.txt", "--native", "--json"];
    let scores: Value = serde_json::from_str(&succeeds(&run_in(folder.path(), &score))).unwrap();
    assert_eq!(scores["CIDEr"], report["scores"]["CIDEr"]);
    assert_eq!(scores["Bleu_1"], report["scores"]["BLEU-1"]);
    let markdown = std::fs::read_to_string(folder.path().join("out/report.md")).unwrap();
    assert!(markdown.contains("| scene\\_1 |") && markdown.contains("## Worst by CIDEr"), "{markdown}");
    // A second call does nothing again.
    let before = results(&folder);
    succeeds(&run_in(folder.path(), &evaluate("sh listen.sh", &[])));
    assert_eq!(heard(&folder), IMAGES);
    assert_eq!(results(&folder), before);
}

#[test]
fn the_page_is_whole_and_can_be_read_without_looking() {
    let folder = data_set();
    succeeds(&run_in(folder.path(), &evaluate("sh listen.sh", &[])));
    let page = std::fs::read_to_string(folder.path().join("out/report.html")).unwrap();
    let count = |part: &str| page.matches(part).count();
    assert_eq!((count("<article "), count("<img "), count("<audio controls")), (IMAGES, IMAGES, IMAGES));
    assert_eq!(count("src=\"data:image/jpeg;base64,/9j/"), IMAGES);
    assert_eq!(count("src=\"data:audio/wav;base64,UklGR"), IMAGES);
    assert_eq!(count("alt=\"Image scene_"), IMAGES);
    assert_eq!((count("<h1>"), count("<main>"), count("<html lang=\"en\">"), count("<script")), (1, 1, 1, 0));
    assert!(page.contains("One circle &lt;b&gt; &amp; a square .") && page.contains("prefers-color-scheme: dark"));
    // The worst come first, the best in their own section.
    let at = |part: &str| page.find(part).unwrap_or_else(|| panic!("{part}"));
    assert!(at("id=\"worst\"") < at("<h3>scene_0</h3>") && at("id=\"best\"") < at("<h3>scene_1</h3>"));
    for tag in ["section", "article", "table", "ul", "li", "details", "q", "p"] {
        assert_eq!(count(&format!("<{tag}>")) + count(&format!("<{tag} ")), count(&format!("</{tag}>")), "{tag}");
    }
}

#[test]
fn a_run_that_was_killed_continues_exactly() {
    let folder = data_set();
    let other = data_set();
    succeeds(&run_in(other.path(), &evaluate("sh listen.sh", &[])));
    // Ended while it listens.
    let mut run = Command::new(env!("CARGO_BIN_EXE_im2sp"));
    run.args(with_model(&evaluate(SLOW, &[]))).current_dir(folder.path());
    let mut run = run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let began = Instant::now();
    // The first transcript may still be on its way to the disk when the second image is begun.
    let transcripts = folder.path().join("out/transcripts");
    let is_written = |name: std::ffi::OsString| !name.to_string_lossy().starts_with('.');
    let written = || {
        let entries = std::fs::read_dir(&transcripts).into_iter().flatten().flatten();
        entries.filter(|entry| is_written(entry.file_name())).count()
    };
    while (heard(&folder) < 2 || written() == 0) && began.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(20));
    }
    run.kill().unwrap();
    run.wait().unwrap();
    assert!((2..IMAGES).contains(&heard(&folder)) && written() > 0);
    // And in the middle of the units before that: one sound is lost, one line half written, after its sound.
    let units = folder.path().join("out/units.jsonl");
    let text = std::fs::read_to_string(&units).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), IMAGES);
    let lost = |line: &str| serde_json::from_str::<Value>(line).unwrap()["image"].as_str().unwrap().to_owned();
    std::fs::write(&units, format!("{}\n{}\n{}\n{}", lines[0], lines[1], lines[2], &lines[3][..20])).unwrap();
    std::fs::remove_file(folder.path().join(format!("out/wavs/{}.wav", lost(lines[2])))).unwrap();
    let before = heard(&folder);
    succeeds(&run_in(folder.path(), &evaluate(SLOW, &[])));
    assert!(heard(&folder) < before + IMAGES, "what was heard is not heard again");
    for ((name, bytes), (other_name, expected)) in results(&folder).iter().zip(results(&other)) {
        assert_eq!(*name, other_name);
        // These two name the listener or the folder, and lines of units are in the order in which captions ended.
        if !name.contains("evaluation.json") && !name.contains("report.") && !name.contains("units.jsonl") {
            assert_eq!(*bytes, expected, "{name}");
        }
    }
    let of = |folder: &TempDir| report(folder)["images"].clone();
    assert_eq!(of(&folder), of(&other));
}

#[test]
fn a_listener_that_fails_or_hangs_costs_its_file_alone() {
    let folder = data_set();
    let listener =
        "f() { case \"$1\" in *_0.wav) echo no model >&2; exit 3 ;; *_2.wav) sleep 100 ;; *) echo A DOG ;; esac; }; f";
    let began = Instant::now();
    let output = run_in(folder.path(), &evaluate(listener, &[("--asr-timeout", "2"), ("--asr-jobs", "2")]));
    assert!(began.elapsed() < Duration::from_secs(90));
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("scene_0.wav: the listener ended with exit status: 3: no model"), "{said}");
    assert!(said.contains("scene_2.wav: the listener took longer than 2 s"), "{said}");
    assert!(said.contains("2 of 4 images are not scored"), "{said}");
    let report = report(&folder);
    assert_eq!(report["missing"], serde_json::json!(["scene_0", "scene_2"]));
    assert_eq!(report["images"].as_array().unwrap().len(), 2);
}

#[test]
fn units_that_cannot_be_spoken_cost_their_image_alone() {
    let folder = data_set();
    let run = || run_in(folder.path(), &evaluate("sh listen.sh", &[]));
    succeeds(&run());
    let units = folder.path().join("out/units.jsonl");
    let whole = std::fs::read_to_string(&units).unwrap();
    let others: String =
        whole.lines().filter(|line| !line.contains("scene_1")).map(|line| format!("{line}\n")).collect();
    std::fs::write(&units, format!("{{\"image\":\"scene_1\",\"units\":[1,99999]}}\n{others}")).unwrap();
    for part in ["wavs/scene_0.wav", "wavs/scene_1.wav", "transcripts/scene_0.txt", "transcripts/scene_1.txt"] {
        std::fs::remove_file(folder.path().join("out").join(part)).unwrap();
    }
    for _ in 0..2 {
        let output = run();
        let error = fails(&output);
        assert!(error.contains("units.jsonl: scene_1: ") && error.contains("remove its line"), "{error}");
        assert_eq!(report(&folder)["missing"], serde_json::json!(["scene_1"]));
        assert_eq!(report(&folder)["images"].as_array().unwrap().len(), IMAGES - 1);
    }
    std::fs::write(&units, others).unwrap();
    succeeds(&run());
    assert_eq!(report(&folder)["images"].as_array().unwrap().len(), IMAGES);
}

/// A limit of threads and processes costs the files that it leaves no listener for.
#[cfg(target_os = "linux")]
#[test]
fn listeners_are_as_many_as_there_may_be() {
    use std::os::unix::fs::PermissionsExt;
    let folder = data_set();
    let out = folder.path().join("out");
    std::fs::create_dir(&out).unwrap();
    std::fs::set_permissions(&out, std::fs::Permissions::from_mode(0o777)).unwrap();
    let arguments = evaluate("echo A DOG #", &[("--asr-jobs", "5000")]);
    let Some(whole) = failures::as_somebody(folder.path(), &[], &arguments) else { return };
    succeeds(&whole);
    let mut succeeded = 0;
    for limit in [2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 100] {
        std::fs::remove_dir_all(out.join("transcripts")).unwrap();
        std::fs::set_permissions(&out, std::fs::Permissions::from_mode(0o777)).unwrap();
        let limit_option = format!("--nproc={limit}");
        let output = failures::as_somebody(folder.path(), &["prlimit", &limit_option], &arguments).unwrap();
        let errors = text(&output.stderr);
        assert!(!errors.contains("panicked") && !errors.contains("internal error"), "{limit}: {errors}");
        match output.status.code() {
            Some(0) => succeeded += 1,
            code => assert!(code == Some(1) && errors.contains("error: ") && limit < 100, "{limit}: {code:?} {errors}"),
        }
    }
    assert!(succeeded > 0);
}

/// A disk that is full in the middle of a line of units, as a limit of the size of files is.
#[cfg(target_os = "linux")]
#[test]
fn half_a_line_of_units_is_taken_back() {
    const LIMIT: usize = 400;
    let folder = data_set();
    succeeds(&run_in(folder.path(), &evaluate("sh listen.sh", &[])));
    let units = folder.path().join("out/units.jsonl");
    let line = |name: &str| format!("{{\"image\":\"{name}\",\"units\":[]}}\n");
    // Images that this data set does not have leave ten bytes.
    let others = line(&"x".repeat(LIMIT * 1024 - 10 - line("").len()));
    std::fs::write(&units, &others).unwrap();
    let words = evaluate("'sh listen.sh'", &[]).join(" ");
    let output = shell(folder.path(), &format!("ulimit -f {LIMIT}; im2sp {words}"));
    assert!(fails(&output).contains("units.jsonl"), "{}", text(&output.stderr));
    assert_eq!(std::fs::read_to_string(&units).unwrap(), others);
}

#[test]
fn another_model_at_the_same_place_is_another_configuration() {
    let folder = data_set();
    let model = folder.path().join("model");
    std::fs::create_dir(&model).unwrap();
    for name in ["config.json", "captioner.safetensors", "vocoder.safetensors"] {
        std::fs::copy(common::scenes::directory().join(name), model.join(name)).unwrap();
    }
    let run = || run_in(folder.path(), &evaluate("sh listen.sh", &[("--limit", "1"), ("--weights", "model")]));
    succeeds(&run());
    // What a training run keeps next to it is not part of it.
    std::fs::write(model.join("moments.safetensors"), "other").unwrap();
    succeeds(&run());
    for name in ["captioner.safetensors", "vocoder.safetensors"] {
        let whole = std::fs::read(model.join(name)).unwrap();
        let mut other = whole.clone();
        *other.last_mut().unwrap() ^= 1;
        std::fs::write(model.join(name), other).unwrap();
        let error = fails(&run());
        assert!(
            error.contains("evaluation.json: weights_sha256: is") && error.contains("another directory"),
            "{error}"
        );
        std::fs::write(model.join(name), whole).unwrap();
    }
    succeeds(&run());
    let absent = fails(&run_in(folder.path(), &evaluate("sh listen.sh", &[("--weights", "no"), ("--output", "new")])));
    assert!(absent.contains("no/config.json") && !folder.path().join("new").exists(), "{absent}");
}

#[test]
fn images_without_true_units_are_left_out_of_their_rate_alone() {
    let folder = data_set();
    let with = |truths: &str| {
        std::fs::write(folder.path().join("true.txt"), truths).unwrap();
        run_in(folder.path(), &evaluate("sh listen.sh", &[("--ref-units", "true.txt")]))
    };
    let output = with("scene_0_0|1 2 3\nscene_1_0|1 2 3\nscene_3_0|1 2 3\n");
    let error = fails(&output);
    assert!(error.contains("true.txt: units: scene_2 has no true units"), "{error}");
    assert!(text(&output.stdout).contains("images of that rate  3\n"), "{}", text(&output.stdout));
    let scores = report(&folder)["scores"].clone();
    assert!(scores["unit error rate"].as_f64().unwrap() > 0.0 && scores["images of that rate"] == IMAGES - 1);
    assert_eq!(report(&folder)["images"].as_array().unwrap().len(), IMAGES);
    let output = with("another|1 2 3\n");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stderr).matches("has no true units").count(), IMAGES);
    assert_eq!(report(&folder)["scores"]["unit error rate"], "not computed: no image has true units");
}

/// Truths and recogniser are opened before any image is captioned.
#[test]
fn a_listener_that_cannot_be_opened_costs_no_caption() {
    let folder = data_set();
    let truths = fails(&run_in(folder.path(), &evaluate("sh listen.sh", &[("--ref-units", "nosuch")])));
    assert!(truths.contains("nosuch") && !folder.path().join("out").exists(), "{truths}");
    let model = common::scenes::directory();
    for (asr, problem) in [("nosuch", "nosuch"), (path(&model), "captioner")] {
        let mut arguments = evaluate("", &[("--asr", asr)]);
        let at = arguments.iter().position(|word| *word == "--asr-command").unwrap();
        arguments.drain(at..at + 2);
        let error = fails(&run_in(folder.path(), &arguments));
        assert!(error.contains(problem), "{error}");
        assert!(!folder.path().join("out/units.jsonl").exists());
    }
}

#[test]
fn what_cannot_be_evaluated_is_one_error() {
    let folder = data_set();
    let with = |options: &[(&str, &str)]| run_in(folder.path(), &evaluate("sh listen.sh", options));
    succeeds(&with(&[("--limit", "1")]));
    let other = fails(&with(&[("--limit", "1"), ("--beam", "2")]));
    assert!(other.contains("evaluation.json: decoding: is") && other.contains("choose another directory"), "{other}");
    std::fs::create_dir(folder.path().join("full")).unwrap();
    std::fs::write(folder.path().join("full/a.txt"), "").unwrap();
    let full = fails(&with(&[("--output", "full")]));
    assert!(full.contains("is no evaluation, and not empty"), "{full}");
    assert_eq!(names_in(&folder.path().join("full")), ["a.txt"]);
    let missing = refuses(&with(&[("--output", "new"), ("--images", "out")]));
    assert!(missing.contains("holds none of them, such as out/scene_0.jpg"), "{missing}");
    let coco = fails(&with(&[("--output", "new"), ("--dataset", "coco")]));
    assert!(coco.contains("are of another data set"), "{coco}");
    std::fs::write(folder.path().join("list"), "scene_9.jpg\n").unwrap();
    let list = fails(&with(&[("--output", "new"), ("--list", "list")]));
    assert!(list.contains("line 1: \"scene_9.jpg\" has no captions"), "{list}");
    assert!(!folder.path().join("new").exists());
    // An image that cannot be read is left out.
    std::fs::write(folder.path().join("data/Images/scene_2.jpg"), "no image").unwrap();
    let broken = with(&[("--output", "broken")]);
    assert_eq!(broken.status.code(), Some(1));
    assert!(text(&broken.stderr).contains("1 of 4 images are not scored"), "{}", text(&broken.stderr));
}

#[test]
fn the_references_rules_and_true_units_are_options() {
    let folder = data_set();
    let caption = ["caption", "data/Images/scene_1.jpg", "--no-audio", "--compat", "reference", "--device", "cpu"];
    let expected = succeeds(&run_in(folder.path(), &caption));
    let units: Vec<u32> = expected.split_whitespace().map(|unit| unit.parse().unwrap()).collect();
    // The truth of all scenes is said to be that of one.
    let lines: String = (0..IMAGES).map(|number| format!("scene_{number}_0|{}\n", expected.trim())).collect();
    std::fs::write(folder.path().join("true.txt"), lines).unwrap();
    let options = [("--compat", "reference"), ("--ref-units", "true.txt")];
    succeeds(&run_in(folder.path(), &evaluate("sh listen.sh", &options)));
    let report = report(&folder);
    assert_eq!(report["images"][1]["units"], serde_json::json!(units));
    assert!(report["scores"]["unit error rate"].as_f64().unwrap() > 0.0, "of the other scenes");
    assert!(report["configuration"]["decoding"].as_str().unwrap().contains("Reference"));
}

#[test]
fn a_recogniser_of_this_program_listens() {
    let folder = data_set();
    succeeds(&run_in(folder.path(), &["convert", path(&golden("speech/ctc_base")), "-o", "listener"]));
    let mut arguments = evaluate("", &[("--limit", "2"), ("--asr", "listener")]);
    let at = arguments.iter().position(|word| *word == "--asr-command").unwrap();
    arguments.drain(at..at + 2);
    succeeds(&run_in(folder.path(), &arguments));
    let wav = "out/wavs/scene_1.wav";
    let transcribed =
        succeeds(&run_in(folder.path(), &["transcribe", wav, "--weights", "listener", "--device", "cpu"]));
    let kept = std::fs::read_to_string(folder.path().join("out/transcripts/scene_1.txt")).unwrap();
    assert_eq!(kept.trim(), transcribed.trim());
    assert_eq!(report(&folder)["images"].as_array().unwrap().len(), 2);
}

/// An interruption ends the listener too, however long it would have run.
#[cfg(target_os = "linux")]
#[test]
fn an_interruption_ends_the_listener() {
    let folder = data_set();
    let listener = "f() { echo $$ > listener.pid.new; mv listener.pid.new listener.pid; sleep 300; }; f";
    let mut run = Command::new(env!("CARGO_BIN_EXE_im2sp"));
    run.args(evaluate(listener, &[("--asr-timeout", "300")])).current_dir(folder.path());
    let mut run = run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let file = folder.path().join("listener.pid");
    let began = Instant::now();
    while !file.exists() && began.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(20));
    }
    let listener = std::fs::read_to_string(&file).unwrap().trim().to_owned();
    assert!(Path::new("/proc").join(&listener).exists());
    let interrupt = Command::new("bash").args(["-c", &format!("kill -INT {}", run.id())]).status().unwrap();
    assert!(interrupt.success() && !run.wait().unwrap().success());
    // Whoever inherits it waits for it in its own time.
    let ended = || {
        std::fs::read_to_string(Path::new("/proc").join(&listener).join("stat")).map_or(true, |s| s.contains(") Z "))
    };
    while !ended() && began.elapsed() < Duration::from_secs(180) {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(ended(), "the listener runs on");
}
