//! Captions: speech, `--json`, reproducibility, converted and calibrated models.

use super::*;

#[test]
fn a_caption_is_spoken() {
    let directory = TempDir::new().unwrap();
    let target = directory.path().join("speech.wav");
    let output = run(&["caption", path(&scene()), "-o", path(&target)]);
    let said = succeeds(&output);
    assert!(said.contains("s of speech"), "{said}");
    let notes = text(&output.stderr);
    assert!(notes.contains("device cpu"), "the device is always said: {notes}");
    assert!(notes.contains("this model knows drawn scenes of coloured shapes only"), "{notes}");
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
    assert_eq!(lines[0]["tokens"], lines[1]["tokens"], "the same image, the same caption");
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
    assert!(succeeds(&run(&["info", "tests/scenes"])).contains("drawn scenes"));
}

#[test]
fn an_exported_model_captions_as_before() {
    let directory = TempDir::new().unwrap();
    let at = |name: &str| directory.path().join(name);
    let model = golden("models/small");
    let units = |model: &Path| succeeds(&run(&["caption", path(&scene()), "--no-audio", "--weights", path(model)]));
    for format in ["hf", "reference"] {
        let export = ["export", path(&model), "--format", format, "-o", path(&at(format))].map(str::to_string);
        let output = run(&export.each_ref().map(String::as_str));
        assert!(succeeds(&output).contains("48 tensors"), "{}", text(&output.stdout));
        assert_eq!(text(&output.stderr), "im2sp: not part of the result: the vocoder\n");
        assert!(fails(&run(&export.each_ref().map(String::as_str))).contains("--force"));
        succeeds(&run(&["convert", path(&at(format)), "-o", path(&at("again")), "--force"]));
        assert_eq!(units(&at("again")), units(&model));
    }
}

#[test]
fn a_calibration_is_reported() {
    let directory = TempDir::new().unwrap();
    let images = directory.path().join("images");
    std::fs::create_dir(&images).unwrap();
    let model = directory.path().join("model");
    let convert = |more: &[&str]| {
        let (images, model) = (path(&images), path(&model));
        run(&[&["convert", "tests/scenes", "--quantize", "fp8", "--calibrate", images, "-o", model], more].concat())
    };
    assert!(fails(&convert(&[])).contains("holds no file named as an image"));
    std::fs::copy(scene(), images.join("scene.png")).unwrap();
    std::fs::write(images.join("._scene.png"), b"attributes").unwrap();
    std::fs::write(images.join("broken.jpe"), b"no image").unwrap();
    let output = convert(&[]);
    let said = succeeds(&output);
    let notes = text(&output.stderr);
    assert!(notes.contains("broken.jpe") && !notes.contains("._"), "left out, and the calibration goes on: {notes}");
    assert!(said.contains("1 of 1 images keep all their units") && said.contains("decoder.layers.5.fc2"), "{said}");
    assert!(fails(&convert(&[])).contains("--force"));
    let line: Value = serde_json::from_str(&succeeds(&convert(&["--force", "--json"]))).unwrap();
    assert_eq!((&line["calibration"]["kept"], &line["calibration"]["images"]), (&1.into(), &1.into()));
    assert_eq!(line["calibration"]["matrices"].as_array().map(Vec::len), Some(24));
}
