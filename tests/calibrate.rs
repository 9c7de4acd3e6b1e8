//! Eight-bit weights rounded for images: the model loads and captions, it is
//! closer to the unrounded one than nearest rounding, and what cannot be used is refused with one error.

use std::fs;
use std::path::{Path, PathBuf};

use im2sp::tensor::DType;
use im2sp::weights::{ConvertOptions, ModelFiles, convert};
use im2sp::{CaptionOptions, Device, Engine, Error, Image, convert_calibrated};

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn options(output: &Path) -> ConvertOptions {
    ConvertOptions {
        source: root("tests/scenes"),
        vocoder: None,
        vocoder_config: None,
        tokenizer: None,
        codebook: None,
        preprocessor: None,
        dtype: DType::F32,
        quantize: Some(DType::F8E4M3),
        output: output.to_owned(),
        domain: None,
        description: None,
        force: false,
    }
}

/// A folder with the one image of this repository, and a file that is none.
fn folder(place: &Path) -> PathBuf {
    let folder = place.join("images");
    fs::create_dir(&folder).unwrap();
    fs::copy(root("assets/scene.png"), folder.join("scene.png")).unwrap();
    fs::write(folder.join("captions.json"), "[]").unwrap();
    folder
}

#[test]
fn a_calibrated_model_says_what_the_unrounded_one_does() {
    let place = tempfile::tempdir().unwrap();
    let output = place.path().join("model");
    let mut stages = Vec::new();
    let on_progress = &mut |stage, done, total| {
        assert!(done <= total, "{stage}: {done} of {total}");
        stages.push(stage);
    };
    let (report, calibrated) = convert_calibrated(&options(&output), &folder(place.path()), on_progress).unwrap();
    stages.dedup();
    assert_eq!(stages, ["convert", "captions", "layers"]);
    assert_eq!((calibrated.images, calibrated.kept, calibrated.matrices.len()), (1, 1, 24));
    assert!(calibrated.logit_error_rms < 0.1 * calibrated.logit_rms, "{calibrated:?}");
    assert!(calibrated.logit_error_rms <= calibrated.logit_error_max, "{calibrated:?}");
    for matrix in &calibrated.matrices {
        assert!(matrix.error < matrix.nearest, "{matrix:?}");
    }

    let mut files: Vec<_> = fs::read_dir(&output).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["captioner.safetensors", "config.json", "vocoder.safetensors"]);
    let size = |name: &str| fs::metadata(output.join(name)).unwrap().len();
    assert!(report.bytes < size("captioner.safetensors") + size("vocoder.safetensors"), "headers come on top");
    let stored = ModelFiles::open(&output).unwrap().captioner;
    for (name, tensor) in stored.iter().filter(|(name, _)| name.starts_with("decoder.layers.")) {
        let expected = if name.ends_with(".weight") && tensor.shape().len() == 2 { DType::F8E4M3 } else { DType::F32 };
        assert_eq!(tensor.dtype(), expected, "{name}");
    }

    let image = Image::open(root("assets/scene.png")).unwrap();
    let only_units = CaptionOptions { no_audio: true, ..CaptionOptions::default() };
    let units = |engine: Engine| engine.caption(&image, &only_units).unwrap().units;
    assert_eq!(
        units(Engine::load(&output, Device::Cpu).unwrap()),
        units(Engine::load(root("tests/scenes"), Device::Cpu).unwrap())
    );
}

#[test]
fn a_model_directory_converts_to_itself() {
    let place = tempfile::tempdir().unwrap();
    let output = place.path().join("again");
    let same = ConvertOptions { dtype: DType::BF16, quantize: None, ..options(&output) };
    convert(&same, &mut |_, _| {}).unwrap();
    let (new, old) = (ModelFiles::open(&output).unwrap(), ModelFiles::open(&root("tests/scenes")).unwrap());
    assert_eq!(new.config, old.config);
    let stores = [(new.captioner, old.captioner), (new.vocoder.unwrap(), old.vocoder.unwrap())];
    for (new, old) in &stores {
        assert_eq!(new.iter().count(), old.iter().count());
        for ((name, new), (expected, old)) in new.iter().zip(old.iter()) {
            assert_eq!((name, new.dtype(), new.shape()), (expected, old.dtype(), old.shape()));
            assert_eq!(&**new.bytes(), &**old.bytes(), "{name}");
        }
    }
}

#[test]
fn eight_bits_are_not_rounded_again() {
    let place = tempfile::tempdir().unwrap();
    let (first, second) = (place.path().join("first"), place.path().join("second"));
    convert(&options(&first), &mut |_, _| {}).unwrap();
    let again = ConvertOptions { source: first, ..options(&second) };
    let said = convert(&again, &mut |_, _| {}).unwrap_err().to_string();
    assert!(said.contains("decoder.layers.0.") && said.contains("eight-bit already"), "{said}");
    assert!(!second.exists());
}

#[test]
fn what_cannot_be_used_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let output = place.path().join("model");
    let refused = |options: &ConvertOptions, folder: &Path| -> Error {
        let error = convert_calibrated(options, folder, &mut |_, _, _| {}).unwrap_err();
        assert!(!output.exists(), "{error}");
        error
    };
    let good = folder(place.path());
    let wide = ConvertOptions { quantize: None, ..options(&output) };
    assert!(matches!(refused(&wide, &good), Error::Option { option: "calibrate", .. }));

    let empty = place.path().join("empty");
    fs::create_dir(&empty).unwrap();
    for _ in 0..2 {
        let said = refused(&options(&output), &empty).to_string();
        assert!(said.contains("empty: holds no file named as an image"), "{said}");
        fs::write(empty.join("notes.txt"), "no image").unwrap();
    }
    fs::write(empty.join("broken.PNG"), "no image either").unwrap();
    assert!(refused(&options(&output), &empty).to_string().contains("broken.PNG"));
    assert!(refused(&options(&output), &place.path().join("nowhere")).to_string().contains("nowhere"));
    assert!(refused(&options(&output), &good.join("scene.png")).to_string().contains("scene.png"));
    let left: Vec<_> = fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "nothing is left behind: {left:?}");
}
