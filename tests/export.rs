//! An exported model, converted again, is the same bit for bit in both forms; what cannot be exported is one error that
//! leaves nothing behind. That PyTorch loads the results is checked by recipes/golden/export_check.py.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use im2sp::config::{Filter, ImageConfig, ModelConfig, Resize};
use im2sp::tensor::{DType, HostTensor};
use im2sp::weights::torch::Checkpoint;
use im2sp::weights::{
    ConvertOptions, ExportFormat, ExportOptions, ExportReport, ModelFiles, TensorStore, convert, export,
};
use tempfile::TempDir;

const FORMATS: [ExportFormat; 2] = [ExportFormat::HuggingFace, ExportFormat::Reference];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models").join(name)
}

fn exported(source: &Path, format: ExportFormat, output: &Path, force: bool) -> Result<ExportReport, String> {
    let options = ExportOptions { source: source.into(), format, output: output.into(), force };
    let mut last = (0, 1);
    let report = export(&options, &mut |done, total| last = (done, total)).map_err(|error| error.to_string())?;
    assert_eq!(last, (report.bytes, report.bytes));
    Ok(report)
}

fn converted(source: &Path, output: &Path, dtype: DType, quantize: Option<DType>) -> ModelFiles {
    let options = ConvertOptions {
        source: source.into(),
        vocoder: None,
        vocoder_config: None,
        tokenizer: None,
        codebook: None,
        preprocessor: None,
        dtype,
        quantize,
        output: output.into(),
        domain: None,
        description: None,
        force: true,
    };
    convert(&options, &mut |_, _| {}).unwrap();
    ModelFiles::open(output).unwrap()
}

/// Everything about the tensors of a captioner.
fn all(store: &TensorStore) -> Vec<(String, Vec<usize>, DType, Vec<u8>)> {
    let entry = |(name, tensor): (&str, &HostTensor)| {
        (name.to_string(), tensor.shape().to_vec(), tensor.dtype(), tensor.bytes().to_vec())
    };
    store.iter().map(entry).collect()
}

/// A model directory that is `golden("small")` with a changed configuration and tensors.
fn changed(folder: &TempDir, change: impl FnOnce(&mut ModelConfig, &mut BTreeMap<String, HostTensor>)) -> PathBuf {
    let files = ModelFiles::open(&golden("small")).unwrap();
    let mut config = ModelConfig { vocoder: None, description: None, ..files.config };
    let mut tensors = files.captioner.iter().map(|(name, tensor)| (name.to_string(), tensor.clone())).collect();
    change(&mut config, &mut tensors);
    let path = folder.path().join("changed");
    ModelFiles::write(&path, &config, &tensors, None, true).unwrap();
    path
}

#[test]
fn the_way_there_and_back_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["small", "wide_vision", "wide_decoder"] {
        for dtype in [DType::F32, DType::BF16] {
            let source = folder.path().join(format!("{name}-{}", dtype.name()));
            let model = converted(&golden(name), &source, dtype, None);
            for format in FORMATS {
                let output = folder.path().join(format!("{name}-{}-{format:?}", dtype.name()));
                let report = exported(&source, format, &output, false).unwrap();
                let vocoder = model.config.vocoder.is_some().then_some("the vocoder");
                assert_eq!(report.left_out, Vec::from_iter(vocoder));
                let again = converted(&output, &folder.path().join("again"), dtype, None);
                assert_eq!(all(&again.captioner), all(&model.captioner), "{name} {dtype:?} {format:?}");
                let plain = ModelConfig { vocoder: None, description: None, ..model.config.clone() };
                assert_eq!(again.config, plain, "{name} {dtype:?} {format:?}");
            }
        }
    }
}

/// A captioner that sees image units, under the names that it came with; transformers has no such model.
#[test]
fn a_captioner_of_image_units_is_a_checkpoint_again() {
    let folder = tempfile::tempdir().unwrap();
    let data = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/image_units").join(name);
    let convert_to = |source: &Path, output: &Path, dtype| {
        let options = ConvertOptions {
            source: source.into(),
            vocoder: None,
            vocoder_config: None,
            tokenizer: Some(data("tokenizer.ckpt")),
            codebook: Some(data("codebook.ckpt")),
            preprocessor: None,
            dtype,
            quantize: None,
            output: output.into(),
            domain: None,
            description: None,
            force: true,
        };
        convert(&options, &mut |_, _| {}).unwrap();
        ModelFiles::open(output).unwrap()
    };
    for dtype in [DType::F32, DType::BF16] {
        let (source, output) = (folder.path().join("model"), folder.path().join("a.ckpt"));
        let model = convert_to(&data("captioner.ckpt"), &source, dtype);
        let report = exported(&source, ExportFormat::Reference, &output, true).unwrap();
        assert!(report.left_out.contains(&"the image tokenizer and its codebook"), "{:?}", report.left_out);
        let again = convert_to(&output, &folder.path().join("again"), dtype);
        assert_eq!(all(&again.captioner), all(&model.captioner), "{dtype:?}");
        assert_eq!(again.config, model.config, "{dtype:?}");
        if dtype == DType::F32 {
            // Every tensor is that of the checkpoint which PyTorch made.
            let [made, original] = [&output, &data("captioner.ckpt")].map(|path| {
                let checkpoint = Checkpoint::open(path).unwrap();
                let dicts = checkpoint.dicts().unwrap();
                let dict =
                    dicts.iter().find(|dict| dict.names().iter().any(|name| name.starts_with("model."))).unwrap();
                BTreeMap::from_iter(dict.tensors(|name| name.starts_with("model.")).unwrap())
            });
            assert_eq!(made.len(), report.tensors + 1);
            for (name, tensor) in &made {
                let [tensor, golden] = [tensor, &original[name]].map(|tensor| tensor.load().unwrap());
                assert_eq!((tensor.shape(), tensor.to_f32()), (golden.shape(), golden.to_f32()), "{name}");
            }
        }
    }
    let output = folder.path().join("hf");
    let said = exported(&folder.path().join("model"), ExportFormat::HuggingFace, &output, false).unwrap_err();
    assert!(said.contains("vision.units") && said.contains("--format reference"), "{said}");
    assert!(!output.exists());
}

#[test]
fn a_directory_tells_all_dimensions_and_a_checkpoint_those_of_its_tensors() {
    let folder = tempfile::tempdir().unwrap();
    let images = [
        ImageConfig { mean: [0.1, 0.2, 0.3], std: [0.9, 0.8, 0.7], ..ImageConfig::clip(24) },
        ImageConfig { resize: Resize::Square, filter: Filter::Bilinear, scale: 1.0, ..ImageConfig::clip(24) },
        ImageConfig { resize: Resize::Square, resize_to: Some(30), filter: Filter::Hamming, ..ImageConfig::clip(24) },
        ImageConfig { resize_to: Some(31), filter: Filter::Nearest, scale: 1.0 / 127.5, ..ImageConfig::clip(24) },
        ImageConfig { filter: Filter::Box, ..ImageConfig::clip(24) },
        ImageConfig { filter: Filter::Lanczos, ..ImageConfig::clip(24) },
    ];
    for image in images {
        let source = changed(&folder, |config, _| {
            config.image = image;
            (config.vision.heads, config.decoder.heads) = (4, 2);
            (config.vision.eps, config.decoder.eps) = (3e-6, 2e-7);
        });
        let config = ModelFiles::open(&source).unwrap().config;
        let output = folder.path().join("hf");
        assert!(exported(&source, ExportFormat::HuggingFace, &output, true).unwrap().left_out.is_empty());
        assert_eq!(converted(&output, &folder.path().join("again"), DType::F32, None).config, config);
        let output = folder.path().join("a.ckpt");
        let left_out = exported(&source, ExportFormat::Reference, &output, true).unwrap().left_out;
        assert_eq!(left_out.len(), 3, "{left_out:?}");
    }
}

#[test]
fn a_checkpoint_has_the_layout_of_torch_save() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("a.ckpt");
    let report = exported(&golden("small"), ExportFormat::Reference, &output, false).unwrap();
    let mut archive = zip::ZipArchive::new(fs::File::open(&output).unwrap()).unwrap();
    let mut names = Vec::new();
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).unwrap();
        assert_eq!(entry.compression(), zip::CompressionMethod::STORE);
        assert_eq!(entry.data_start().unwrap() % 64, 0, "{:?}", entry.name());
        // Reading compares the checksum.
        std::io::copy(&mut entry, &mut std::io::sink()).unwrap();
        names.push(entry.name().unwrap().into_owned());
    }
    let data = (0..report.tensors).map(|number| format!("archive/data/{number}"));
    let ends = ["archive/data.pkl", "archive/byteorder", "archive/version"].map(str::to_string);
    let (first, last) = ends.split_at(2);
    assert_eq!(names, first.iter().cloned().chain(data).chain(last.to_vec()).collect::<Vec<_>>());

    let checkpoint = Checkpoint::open(&output).unwrap();
    let dicts = checkpoint.dicts().unwrap();
    let dict = dicts.iter().find(|dict| dict.keys() == ["state_dict"]).unwrap();
    let tensors = BTreeMap::from_iter(dict.tensors(|_| true).unwrap());
    assert_eq!(tensors.len(), report.tensors + 1);
    assert!(tensors.keys().all(|name| name.starts_with("model.")));
    let words = &tensors["model.git.embeddings.word_embeddings.weight"];
    assert!(tensors["model.output.weight"].is_same_window(words), "the tied matrix is there once");
}

#[test]
fn models_that_cannot_be_exported_are_one_error() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let refused = |source: &Path, words: &[&str]| {
        for format in FORMATS {
            let said = exported(source, format, &output, false).unwrap_err();
            assert!(words.iter().all(|word| said.contains(word)), "{said}");
            assert!(!output.exists(), "something was left");
        }
    };
    for coded in [DType::I8, DType::F8E4M3] {
        let source = folder.path().join(coded.name());
        converted(&golden("small"), &source, DType::F32, Some(coded));
        refused(&source, &["decoder.layers.0.", "eight bits", "export the model it was made of"]);
    }
    let bias = "decoder.layers.0.fc1.bias";
    refused(&changed(&folder, |_, tensors| drop(tensors.remove(bias))), &[bias, "is missing"]);
    let source = changed(&folder, |_, tensors| {
        tensors.insert("decoder.surprise".into(), HostTensor::from_f32(&[1], vec![0.0]).unwrap());
    });
    refused(&source, &["decoder.surprise", "not part"]);
    let source = changed(&folder, |_, tensors| {
        tensors.insert(bias.into(), HostTensor::from_f32(&[1], vec![0.0]).unwrap());
    });
    refused(&source, &[bias, "has shape [1]"]);
    let source = changed(&folder, |config, tensors| {
        tensors.insert(
            bias.into(),
            HostTensor::from_f32(&[config.decoder.mlp], vec![f32::NAN; config.decoder.mlp]).unwrap(),
        );
    });
    refused(&source, &[bias, "NaN"]);
    fs::write(source.join("captioner.safetensors"), "half").unwrap();
    refused(&source, &["captioner.safetensors"]);
    refused(&folder.path().join("nowhere"), &["nowhere", "is not a directory"]);
    refused(folder.path(), &["config.json", "is not there"]);
    let left: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "something temporary was left: {left:?}");
}

#[test]
fn only_an_earlier_export_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    for (format, name) in FORMATS.into_iter().zip(["hf", "a.ckpt"]) {
        let output = folder.path().join(name);
        exported(&golden("wide_decoder"), format, &output, false).unwrap();
        let said = exported(&golden("small"), format, &output, false).unwrap_err();
        assert!(said.contains("--force"), "{said}");
        exported(&golden("small"), format, &output, true).unwrap();
        let again = converted(&output, &folder.path().join("again"), DType::F32, None);
        assert_eq!(all(&again.captioner), all(&ModelFiles::open(&golden("small")).unwrap().captioner));
    }
    let (hf, file) = (folder.path().join("hf"), folder.path().join("a.ckpt"));
    let model = changed(&folder, |_, _| {});
    fs::write(hf.join("thesis.tex"), "years of work").unwrap();
    for (output, format, word) in [
        (&hf, ExportFormat::HuggingFace, "thesis.tex"),
        (&model, ExportFormat::HuggingFace, "captioner.safetensors, which is no part of a Hugging Face model"),
        (&file, ExportFormat::HuggingFace, "is not a directory"),
        (&hf, ExportFormat::Reference, "it is a folder"),
        (&folder.path().join("no/such.ckpt"), ExportFormat::Reference, "does not exist"),
    ] {
        let said = exported(&golden("small"), format, output, true).unwrap_err();
        assert!(said.contains(word), "{said}");
    }
    assert!(ModelFiles::open(&model).is_ok() && hf.join("thesis.tex").exists());
    if cfg!(target_os = "linux") {
        let said = exported(&golden("small"), ExportFormat::Reference, Path::new("/dev/full"), false).unwrap_err();
        assert!(said.contains("cannot write /dev/full"), "{said}");
    }
}
