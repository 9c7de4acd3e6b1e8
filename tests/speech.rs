//! Speech encoders and recognisers against golden data of transformers, in both layouts of checkpoints and all variants:
//! features of every layer within tolerance, units and texts identical; what cannot be converted or read is one error.

mod common;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use common::{Golden, assert_close, golden};
use im2sp::backend::cpu::Cpu;
use im2sp::backend::{Backend, Device as _};
use im2sp::config::{ConvolutionNorm, SpeechKind};
use im2sp::model::loader::Loader;
use im2sp::model::speech_encoder::SpeechEncoder;
use im2sp::tensor::{DType, HostTensor};
use im2sp::weights::convert::{convert_speech, is_speech};
use im2sp::weights::speech::SpeechFiles;
use im2sp::weights::{ConvertOptions, centres};
use im2sp::{Device, Error, FeatureExtractor, LoadOptions, Recognizer, UnitExtractor};

/// Rough total length of all sums of these models: for the tolerance policy.
const DEPTH: usize = 6000;
const SOUNDS: [&str; 3] = ["short", "odd", "second"];
const CPU: LoadOptions = LoadOptions { device: Device::Cpu, dtype: None, no_mmap: false };

fn speech(path: &str) -> PathBuf {
    golden("speech").join(path)
}

fn options(source: &Path, output: &Path) -> ConvertOptions {
    ConvertOptions {
        source: source.to_owned(),
        vocoder: None,
        vocoder_config: None,
        tokenizer: None,
        codebook: None,
        preprocessor: None,
        dtype: DType::F32,
        quantize: None,
        output: output.to_owned(),
        domain: None,
        description: None,
        force: false,
    }
}

/// The model directory made of a golden checkpoint.
fn converted(source: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("model");
    assert!(is_speech(&speech(source)), "{source}");
    convert_speech(&options(&speech(source), &output), &mut |_, _| {}).unwrap();
    (folder, output)
}

fn expected() -> Golden {
    Golden::open("speech/expected.safetensors")
}

#[test]
fn features_of_every_layer_equal_golden() {
    let expected = expected();
    for (source, name) in [
        ("hubert", "hubert"),
        ("hubert.pt", "hubert"),
        ("ctc_base", "ctc_base"),
        ("ctc_large", "ctc_large"),
        ("ctc_large/checkpoint.pt", "ctc_large"),
    ] {
        let (_folder, model) = converted(source);
        for (sound, layer) in SOUNDS.into_iter().flat_map(|sound| [(sound, 1), (sound, 2)]) {
            let mut files = SpeechFiles::open(&model, true).unwrap();
            // Golden samples were normalised as transformers does it.
            files.config.normalize_eps = files.config.normalize_eps.map(|_| 1e-7);
            let mut loader = Loader { backend: &Cpu, store: &mut files.tensors, dtype: None };
            let encoder = SpeechEncoder::load(&mut loader, &files.config, layer).unwrap();
            let features = encoder.features(&Cpu, &expected.f32(&format!("samples.{sound}"))).unwrap();
            let features = Cpu.download(&features).unwrap();
            let what = format!("{source} {sound}, layer {layer}");
            assert_close(&what, &features, &expected.f32(&format!("{name}.{sound}.{layer}")), DEPTH);
        }
    }
}

#[test]
fn units_equal_golden() {
    let expected = expected();
    for source in ["hubert", "hubert.pt"] {
        let (_folder, model) = converted(source);
        for file in ["km.bin", "km_zlib.bin", "km.npy", "km_fortran.npy"] {
            let centres = centres::read(&speech(file)).unwrap();
            let extractor = UnitExtractor::load(&model, 2, centres, CPU).unwrap();
            for sound in SOUNDS {
                let units = extractor.units(&expected.f32(&format!("samples.{sound}"))).unwrap();
                assert_eq!(units, expected.u32(&format!("units.{sound}")), "{source} {file} {sound}");
            }
        }
    }
}

#[test]
fn texts_equal_golden() {
    let texts: serde_json::Value = serde_json::from_slice(&std::fs::read(speech("expected.json")).unwrap()).unwrap();
    let expected = expected();
    for (source, name) in
        [("ctc_base", "ctc_base"), ("ctc_large", "ctc_large"), ("ctc_large/checkpoint.pt", "ctc_large")]
    {
        let (_folder, model) = converted(source);
        let recognizer = Recognizer::load(&model, CPU).unwrap();
        for sound in SOUNDS {
            let text = recognizer.text(&expected.f32(&format!("samples.{sound}"))).unwrap();
            // fairseq calls the special symbols by other numbers: its blank is the first, its second pads.
            let golden = texts[format!("{name}.{sound}")].as_str().unwrap();
            let golden = if source.ends_with(".pt") { golden.replace("<s>", "<pad>") } else { golden.to_string() };
            assert_eq!(text, golden, "{source} {sound}");
        }
    }
}

#[test]
fn configurations_say_what_the_checkpoints_are() {
    for (source, kind, norm, eps) in [
        ("hubert", SpeechKind::SpeechEncoder, ConvolutionNorm::Group, None),
        ("hubert.pt", SpeechKind::SpeechEncoder, ConvolutionNorm::Group, None),
        ("ctc_base", SpeechKind::Ctc, ConvolutionNorm::Group, Some(1e-7)),
        ("ctc_large", SpeechKind::Ctc, ConvolutionNorm::Layer, Some(1e-7)),
        ("ctc_large/checkpoint.pt", SpeechKind::Ctc, ConvolutionNorm::Layer, Some(1e-5)),
    ] {
        let (_folder, model) = converted(source);
        let config = SpeechFiles::open(&model, false).unwrap().config;
        assert_eq!((config.kind, config.convolution_norm, config.normalize_eps), (kind, norm, eps), "{source}");
        assert_eq!((config.layers, config.heads, config.position_taps, config.position_groups), (2, 1, 16, 4));
        assert_eq!((config.window(), config.hop()), (400, 320));
        assert_eq!([399, 400, 719, 720, 16_000].map(|samples| config.frames(samples)), [0, 1, 1, 2, 49]);
    }
}

/// The task of a fairseq checkpoint says whether its recordings were normalised, among objects of classes that nobody has.
#[test]
fn checkpoints_of_fairseq_say_whether_they_normalise() {
    for (source, normalizes) in [("hubert.pt", false), ("ctc_large/checkpoint.pt", true)] {
        let checkpoint = im2sp::weights::torch::Checkpoint::open(&speech(source)).unwrap();
        for keys in [&["cfg", "task", "normalize"][..], &["args", "normalize"]] {
            assert_eq!(checkpoint.truth(keys), Some(normalizes), "{source} {keys:?}");
        }
        for keys in [&["cfg", "normalize"][..], &["cfg", "task", "_name"], &["cfg"], &["none"], &[]] {
            assert_eq!(checkpoint.truth(keys), None, "{source} {keys:?}");
        }
    }
}

#[test]
fn chunks_are_encoded_by_themselves() {
    let (_folder, model) = converted("hubert");
    let extractor = FeatureExtractor::load(&model, 1, CPU).unwrap();
    let second = expected().f32("samples.second");
    let long: Vec<f32> = second.iter().copied().cycle().take(im2sp::RECORDING_CHUNK + 16_000).collect();
    let features = extractor.features(&long).unwrap();
    let (first, last) = features.split_at(features.len() - 49 * extractor.width());
    assert_eq!(last, extractor.features(&second).unwrap());
    assert_eq!(first, extractor.features(&long[..im2sp::RECORDING_CHUNK]).unwrap());
    // A last chunk without a window has no frames.
    assert_eq!(extractor.features(&long[..im2sp::RECORDING_CHUNK + 399]).unwrap(), first);
    let error = extractor.features(&second[..399]).unwrap_err().to_string();
    assert!(error.contains("399 samples are too few: a window has 400"), "{error}");
}

#[test]
fn bf16_weights_give_nearly_the_same() {
    let (_folder, model) = converted("ctc_large");
    let options = LoadOptions { dtype: Some(DType::BF16), ..CPU };
    let [exact, narrow] = [CPU, options].map(|options| {
        FeatureExtractor::load(&model, 2, options).unwrap().features(&expected().f32("samples.odd")).unwrap()
    });
    let (mut error, mut size) = (0.0f32, 0.0f32);
    for (a, b) in exact.iter().zip(&narrow) {
        (error, size) = (error.max((a - b).abs()), size.max(a.abs()));
    }
    assert!(error > 0.0 && error < 0.05 * size, "{error} of {size}");
}

/// Recordings of different lengths, one of them shorter than a window, through the encoder together and each alone.
fn together_and_alone<B: Backend>(backend: &B, model: &Path, dtype: Option<DType>) {
    let expected = expected();
    let sounds = SOUNDS.map(|sound| expected.f32(&format!("samples.{sound}")));
    let recordings = [&sounds[0][..], &sounds[1], &[0.1; 399], &sounds[2], &sounds[1][..401]];
    let mut files = SpeechFiles::open(model, true).unwrap();
    let mut loader = Loader { backend, store: &mut files.tensors, dtype };
    let encoder = SpeechEncoder::load(&mut loader, &files.config, 2).unwrap();
    let (x, sequences) = encoder.features_of_many(backend, &recordings).unwrap();
    let x = backend.download(&x).unwrap();
    assert_eq!(sequences.parts().len(), recordings.len());
    for (recording, part) in recordings.iter().zip(sequences.parts()) {
        assert_eq!(part.len(), files.config.frames(recording.len()));
        let alone = backend.download(&encoder.features(backend, recording).unwrap()).unwrap();
        let width = files.config.width;
        assert_eq!(&x[part.start * width..part.end * width], &alone, "{} samples", recording.len());
    }
    let (x, none) = encoder.features_of_many(backend, &[]).unwrap();
    assert_eq!((backend.shape(&x)[0], none.parts().len()), (0, 0));
}

#[test]
fn features_do_not_depend_on_other_recordings() {
    for source in ["hubert", "ctc_large"] {
        let (_folder, model) = converted(source);
        together_and_alone(&Cpu, &model, None);
    }
}

/// The same of the kernels, bit for bit.
#[cfg(feature = "emulator")]
#[test]
fn features_of_the_kernels_do_not_depend_on_other_recordings() {
    use im2sp::backend::cuda::Cuda;
    for (source, dtype) in [("hubert", DType::BF16), ("hubert", DType::F32), ("ctc_large", DType::BF16)] {
        let (_folder, model) = converted(source);
        let backend = Cuda::new(Device::Emulator.driver().unwrap(), dtype).unwrap();
        backend.poison(true);
        together_and_alone(&backend, &model, Some(dtype));
    }
}

/// Files in one call: units, features and texts in order, with what cannot be used in its place.
#[test]
fn files_are_taken_together() {
    #[cfg(feature = "emulator")]
    let devices = [Device::Cpu, Device::Emulator];
    #[cfg(not(feature = "emulator"))]
    let devices = [Device::Cpu];
    let folder = tempfile::tempdir().unwrap();
    let expected = expected();
    let names = ["short", "odd", "tiny", "second", "bad", "odd"];
    let paths: Vec<PathBuf> = names.iter().map(|name| folder.path().join(format!("{name}.wav"))).collect();
    for (name, path) in names.iter().zip(&paths) {
        match *name {
            "bad" => std::fs::write(path, b"RIFF").unwrap(),
            "tiny" => im2sp::audio::write_wav(path, &[0.5; 300], 16_000).unwrap(),
            sound => im2sp::audio::write_wav(path, &expected.f32(&format!("samples.{sound}")), 16_000).unwrap(),
        }
    }
    let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
    let ((_hubert, hubert), (_ctc, ctc)) = (converted("hubert"), converted("ctc_large"));
    for device in devices {
        let options = LoadOptions { device, dtype: Some(DType::F32), no_mmap: false };
        let centres = centres::read(&speech("km.bin")).unwrap();
        let extractor = UnitExtractor::load(&hubert, 2, centres, options).unwrap();
        let recognizer = Recognizer::load(&ctc, options).unwrap();
        let (mut units, mut texts) = (Vec::new(), Vec::new());
        extractor
            .units_of_many(&paths, &mut |results| {
                units.extend(results);
                ControlFlow::Continue(())
            })
            .unwrap();
        recognizer
            .texts_of_many(&paths, &mut |results| {
                texts.extend(results);
                ControlFlow::Continue(())
            })
            .unwrap();
        for (n, path) in paths.iter().enumerate() {
            assert_eq!((units[n].0, texts[n].0), (n, n));
            match names[n] {
                "bad" => assert!(matches!(units[n].1, Err(Error::Audio { .. })), "{:?}", units[n]),
                "tiny" => assert!(matches!(texts[n].1, Err(Error::Shape { op: "speech", .. })), "{:?}", texts[n]),
                _ => {
                    let samples = im2sp::audio::read::read(path, 16_000).unwrap();
                    let (found, count) = units[n].1.as_ref().unwrap();
                    assert_eq!((found, *count), (&extractor.units(&samples).unwrap(), samples.len()));
                    assert_eq!(texts[n].1.as_ref().unwrap().0, recognizer.text(&samples).unwrap());
                }
            }
        }
        // Nobody wants more than the first.
        let mut calls = 0;
        extractor
            .units_of_many(&paths, &mut |_| {
                calls += 1;
                ControlFlow::Break(())
            })
            .unwrap();
        assert_eq!(calls, 1);
        extractor.units_of_many(&[], &mut |_| panic!("there is nothing")).unwrap();
    }
}

/// The kernels, on the emulator: features of f32 within tolerance, and those of bf16 near; units and texts identical in f32.
#[cfg(feature = "emulator")]
#[test]
fn the_kernels_give_the_same() {
    let expected = expected();
    let sound = expected.f32("samples.odd");
    let on = |dtype| LoadOptions { device: Device::Emulator, dtype: Some(dtype), no_mmap: false };
    for (source, name) in [("hubert", "hubert"), ("ctc_large", "ctc_large")] {
        let (_folder, model) = converted(source);
        let golden = expected.f32(&format!("{name}.odd.2"));
        let exact = FeatureExtractor::load(&model, 2, on(DType::F32)).unwrap().features(&sound).unwrap();
        assert_close(source, &exact, &golden, DEPTH);
        let narrow = FeatureExtractor::load(&model, 2, on(DType::BF16)).unwrap().features(&sound).unwrap();
        let size = golden.iter().fold(0.0f32, |max, v| max.max(v.abs()));
        let error = narrow.iter().zip(&golden).fold(0.0f32, |max, (a, b)| max.max((a - b).abs()));
        assert!(error < 0.1 * size, "{source}: {error} of {size}");
        if source == "hubert" {
            let centres = centres::read(&speech("km.bin")).unwrap();
            let units = UnitExtractor::load(&model, 2, centres, on(DType::F32)).unwrap().units(&sound).unwrap();
            assert_eq!(units, expected.u32("units.odd"));
        } else {
            let text = Recognizer::load(&model, on(DType::F32)).unwrap().text(&sound).unwrap();
            assert_eq!(text, Recognizer::load(&model, CPU).unwrap().text(&sound).unwrap());
        }
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let (_folder, hubert) = converted("hubert");
    let message = |error: Error| error.to_string();
    let centres = |shape: [usize; 2]| HostTensor::from_f32(&shape, vec![1.0; shape[0] * shape[1]]).unwrap();
    for (layer, expected) in [(0, "layers 1 to 2"), (3, "layers 1 to 2")] {
        let error = message(FeatureExtractor::load(&hubert, layer, CPU).err().unwrap());
        assert!(error.contains(expected), "{error}");
    }
    let error = message(UnitExtractor::load(&hubert, 1, centres([5, 63]), CPU).err().unwrap());
    assert!(error.contains("[5, 63]") && error.contains("64"), "{error}");
    let error = message(Recognizer::load(&hubert, CPU).err().unwrap());
    assert!(error.contains("speech encoder") && error.contains("recogniser"), "{error}");
    let error = message(Recognizer::load(&golden("models/small"), CPU).err().unwrap());
    assert!(error.contains("captioner"), "{error}");
    let error = message(Recognizer::load(&speech("ctc_base"), CPU).err().unwrap());
    assert!(error.contains("convert"), "{error}");
    // A checkpoint of another model.
    let output = hubert.with_file_name("other");
    assert!(!is_speech(&golden("weights/reference.ckpt")) && !is_speech(&golden("weights/git")));
    let result = convert_speech(&options(&golden("weights/reference.ckpt"), &output), &mut |_, _| {});
    assert!(result.is_err() && !output.exists());
    // A directory that holds a model already.
    let error = message(convert_speech(&options(&speech("hubert"), &hubert), &mut |_, _| {}).unwrap_err());
    assert!(error.contains("--force"), "{error}");
}

#[test]
fn a_changed_configuration_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    std::fs::create_dir(&source).unwrap();
    for file in ["model.safetensors", "vocab.json", "preprocessor_config.json"] {
        std::fs::copy(speech("ctc_large").join(file), source.join(file)).unwrap();
    }
    let config = std::fs::read_to_string(speech("ctc_large/config.json")).unwrap();
    for (field, value, expected) in [
        ("hidden_act", "\"relu\"", "hidden_act"),
        ("feat_extract_activation", "\"swish\"", "feat_extract_activation"),
        ("add_adapter", "true", "add_adapter"),
        ("num_attention_heads", "5", "heads"),
        ("conv_stride", "[5, 2]", "strides"),
        ("num_attention_heads", "\"two\"", "num_attention_heads"),
    ] {
        let mut json: serde_json::Value = serde_json::from_str(&config).unwrap();
        json[field] = serde_json::from_str(value).unwrap();
        std::fs::write(source.join("config.json"), json.to_string()).unwrap();
        let result = convert_speech(&options(&source, &folder.path().join("model")), &mut |_, _| {});
        let error = result.unwrap_err().to_string();
        assert!(error.contains(expected), "{field}: {error}");
        assert!(!folder.path().join("model").exists());
    }
}

#[test]
fn centres_of_every_kind_are_read() {
    let expected = expected();
    for (file, name) in [
        ("km.bin", "centres"),
        ("km_zlib.bin", "centres"),
        ("km.npy", "centres"),
        ("km_fortran.npy", "centres"),
        ("km_batch.bin", "centres_batch"),
    ] {
        let centres = centres::read(&speech(file)).unwrap();
        assert_eq!(centres.shape(), [20, 64], "{file}");
        assert_eq!(&*centres.to_f32(), &expected.f32(name)[..], "{file}");
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("own.npy");
    centres::write(&path, &expected.f32("centres"), [20, 64]).unwrap();
    assert_eq!(&*centres::read(&path).unwrap().to_f32(), &expected.f32("centres")[..]);
}

#[test]
fn damaged_centres_are_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("centres");
    let problem = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        centres::read(&path).unwrap_err().to_string()
    };
    for file in ["km.bin", "km.npy", "km_batch.bin", "km_zlib.bin"] {
        let bytes = std::fs::read(speech(file)).unwrap();
        // Every prefix is refused; none ends in a panic.
        for length in (0..bytes.len().min(3000)).step_by(7).chain([bytes.len() / 2, bytes.len() - 500]) {
            problem(&bytes[..length]);
        }
    }
    assert!(problem(b"").contains("centres"));
    assert!(problem(b"<!doctype html>").contains("web page"));
    let huge = b"\x93NUMPY\x01\x00\x46\x00{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 9), }    \n";
    assert!(problem(huge).contains("shape"));
    centres::write(&path, &[1.0, f32::NAN], [1, 2]).unwrap();
    assert!(centres::read(&path).unwrap_err().to_string().contains("NaN"));
    centres::write(&path, &[], [0, 2]).unwrap();
    assert!(centres::read(&path).is_err());
}
