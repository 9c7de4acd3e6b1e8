//! The models against golden data from transformers and a plain PyTorch vocoder, in f32: every stage's output, and
//! identical tokens of greedy and beam search under many settings.

mod common;

use std::ops::ControlFlow;

use common::{Golden, assert_close, golden};
use im2sp::backend::SmBudget;
use im2sp::backend::cpu::Cpu;
use im2sp::backend::prelude::*;
use im2sp::config::ModelConfig;
use im2sp::generate::{Compat, EarlyStopping, GenerateOptions, Generated, generate};
use im2sp::model::captioner::Captioner;
use im2sp::model::loader::Loader;
use im2sp::model::vocoder::{Vocoder, Voice};
use im2sp::tensor::{DType, HostTensor};
use im2sp::units::{BOS, EOS};
use im2sp::weights::ModelFiles;

const MODELS: [&str; 3] = ["small", "wide_vision", "wide_decoder"];
/// Rough total length of all sums of these shallow models: for the tolerance policy.
const DEPTH: usize = 4000;

struct Model {
    name: &'static str,
    config: ModelConfig,
    captioner: Captioner<Cpu>,
    vocoder: Option<Vocoder<Cpu>>,
    expected: Golden,
}

fn open(name: &'static str) -> Model {
    open_as(name, None)
}

/// With the matrices in `dtype`.
fn open_as(name: &'static str, dtype: Option<DType>) -> Model {
    let mut files = ModelFiles::open(&golden(&format!("models/{name}"))).unwrap();
    let mut loader = Loader { backend: &Cpu, store: &mut files.captioner, dtype };
    let captioner = Captioner::load(&mut loader, &files.config).unwrap();
    files.captioner.finish().unwrap();
    let vocoder = files.vocoder.map(|mut store| {
        let mut loader = Loader { backend: &Cpu, store: &mut store, dtype };
        let vocoder = Vocoder::load(&mut loader, files.config.vocoder.as_ref().unwrap()).unwrap();
        store.finish().unwrap();
        vocoder
    });
    let expected = Golden::open(&format!("models/{name}/expected.safetensors"));
    Model { name, config: files.config, captioner, vocoder, expected }
}

impl Model {
    /// Image tokens of the first `images` golden images.
    fn image_tokens(&self, images: usize) -> <Cpu as Device>::Tensor {
        let pixels = self.expected.f32("pixels");
        let each = pixels.len() / self.expected.get("pixels").0[0];
        self.captioner.encode(&Cpu, &pixels[..images * each], images).unwrap()
    }

    fn generate(&self, images: usize, options: &GenerateOptions) -> Vec<Generated> {
        let limit = options.limit(&self.captioner.decoder);
        let cache = self.captioner.prefill(&Cpu, &self.image_tokens(images), images, limit).unwrap();
        generate(&Cpu, &self.captioner.decoder, cache, images, options, SmBudget::All, &mut |_| {
            ControlFlow::Continue(())
        })
        .unwrap()
    }
}

#[test]
fn vision_and_projection_equal_golden() {
    for model in MODELS.map(open) {
        let (shape, expected) = model.expected.get("vision");
        let images = shape[0];
        let pixels = model.expected.f32("pixels");
        let each = 3 * model.config.image.size * model.config.image.size;
        let pixels = model.captioner.vision.upload(&Cpu, &pixels[..images * each], images).unwrap();
        let encoded = model.captioner.vision.encode(&Cpu, &pixels).unwrap();
        assert_close(&format!("{} vision", model.name), &Cpu.download(&encoded).unwrap(), &expected, DEPTH);
        let tokens = Cpu.download(&model.captioner.vision.project(&Cpu, &encoded).unwrap()).unwrap();
        assert_close(&format!("{} image tokens", model.name), &tokens, &model.expected.f32("image_tokens"), DEPTH);
    }
}

#[test]
fn logits_equal_golden_token_by_token() {
    for model in MODELS.map(open) {
        let (shape, text) = model.expected.get("text");
        let (images, length) = (shape[0], shape[1]);
        let vocabulary = model.config.decoder.vocabulary;
        let logits = model.expected.f32("logits");
        let mut cache = model.captioner.prefill(&Cpu, &model.image_tokens(images), images, length).unwrap();
        let rows: Vec<_> = (0..images).map(|image| im2sp::backend::CacheRow { image, parent: None }).collect();
        Cpu.kv_reorder(&mut cache, &rows).unwrap();
        for t in 0..length {
            let ids: Vec<u32> = (0..images).map(|b| text[b * length + t] as u32).collect();
            let out = Cpu.download(&model.captioner.decoder.step(&Cpu, &mut cache, &ids).unwrap()).unwrap();
            let expected: Vec<f32> =
                (0..images).flat_map(|b| logits[(b * length + t) * vocabulary..][..vocabulary].to_vec()).collect();
            assert_close(&format!("{} token {t}", model.name), &out, &expected, DEPTH);
        }
    }
}

#[test]
fn greedy_and_beam_tokens_equal_golden() {
    // The golden weights are bf16 values, so storing them as such must change nothing.
    for model in MODELS.into_iter().flat_map(|name| [open_as(name, None), open_as(name, Some(DType::BF16))]) {
        let path = golden(&format!("models/{}/tokens.json", model.name));
        let cases: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        for case in cases.as_array().unwrap() {
            let early = match (case["early_stopping"].as_bool(), case["early_stopping"].as_str()) {
                (Some(true), _) => EarlyStopping::Yes,
                (Some(false), _) => EarlyStopping::Heuristic,
                (_, never) => never.filter(|word| *word == "never").map(|_| EarlyStopping::Never).unwrap(),
            };
            let options = GenerateOptions {
                beams: case["num_beams"].as_u64().unwrap() as usize,
                length_penalty: case["length_penalty"].as_f64().unwrap() as f32,
                early_stopping: early,
                max_length: case["max_length"].as_u64().unwrap() as usize,
                ..Default::default()
            };
            check(&model, options, &case["tokens"], &case["scores"]);
            if !case["compat_reference"].is_null() {
                let options = GenerateOptions { compat: Compat::Reference, ..options };
                check(&model, options, &case["compat_reference"], &case["compat_scores"]);
            }
        }
    }
}

/// Tokens identical and scores close, in a batch and each image alone.
fn check(model: &Model, options: GenerateOptions, tokens: &serde_json::Value, scores: &serde_json::Value) {
    let what = format!("{} {options:?}", model.name);
    let expected: Vec<Vec<u32>> = serde_json::from_value(tokens.clone()).unwrap();
    let batch = model.generate(expected.len(), &options);
    for (image, (generated, expected)) in batch.iter().zip(&expected).enumerate() {
        assert_eq!(generated.tokens[0], BOS);
        let end = generated.tokens.iter().position(|&token| token == EOS).unwrap_or(generated.tokens.len());
        assert_eq!(&generated.tokens[1..end], expected, "{what}, image {image}");
        assert!(generated.tokens.len() <= options.max_length);
        if let (Some(score), Some(expected)) = (generated.score, scores[image].as_f64()) {
            assert_close(&format!("{what} score"), &[score], &[expected as f32], DEPTH);
        }
    }
    assert_eq!(model.generate(1, &options)[0], batch[0], "{what}: the neighbours change a caption");
}

#[test]
fn vocoder_equals_golden() {
    let model = open("small");
    let vocoder = model.vocoder.unwrap();
    let expected = Golden::open("models/small/vocoder_expected.safetensors");
    for (units, durations, samples) in [
        ("units", "durations", "samples"),
        ("one_unit", "", "one_unit_samples"),
        ("units", "", "samples_one_frame_each"),
    ] {
        let units = expected.u32(units);
        let predicted = vocoder.durations(&Cpu, &units).unwrap();
        let durations: Vec<usize> = match durations {
            "" if samples == "samples_one_frame_each" => vec![1; units.len()],
            "" => predicted,
            name => {
                let expected: Vec<usize> = expected.u32(name).into_iter().map(|d| d as usize).collect();
                assert_eq!(predicted, expected);
                expected
            }
        };
        let out = vocoder.synthesize(&Cpu, &units, &durations, Voice::default()).unwrap();
        assert_close(samples, &out, &expected.f32(samples), DEPTH);
    }
}

#[test]
fn vocoder_with_speaker_and_pitch_equals_golden() {
    let model = open("wide_decoder");
    let vocoder = model.vocoder.unwrap();
    let expected = Golden::open("models/wide_decoder/vocoder_expected.safetensors");
    let (units, speaker) = (expected.u32("units"), expected.u32("speaker")[0]);
    let one_each = vec![1; units.len()];
    for name in ["f0", "f0_shorter", "f0_longer"] {
        let pitch = expected.u32(name);
        let voice = Voice { speaker: Some(speaker), pitch: Some(&pitch) };
        let out = vocoder.synthesize(&Cpu, &units, &one_each, voice).unwrap();
        assert_close(name, &out, &expected.f32(&format!("{name}_samples")), DEPTH);
    }
    let wrong = Voice { speaker: Some(10_000), pitch: Some(&expected.u32("f0")) };
    assert!(vocoder.synthesize(&Cpu, &units, &one_each, wrong).unwrap_err().to_string().contains("speaker"));
    let uneven = [0; 7];
    let voice = Voice { speaker: None, pitch: Some(&uneven) };
    assert!(vocoder.synthesize(&Cpu, &units, &one_each, voice).unwrap_err().to_string().contains("do not divide"));
}

/// A converted checkpoint cannot hold NaN; a directory that was damaged afterwards can.
#[test]
fn nan_weights_are_reported_not_spoken() {
    let mut files = ModelFiles::open(&golden("models/small")).unwrap();
    let tensors = files.captioner.iter().map(|(name, tensor)| {
        let mut values = tensor.to_f32().into_owned();
        if name == "decoder.layers.0.fc1.weight" {
            values[17] = f32::NAN;
        }
        (name.to_string(), HostTensor::from_f32(tensor.shape(), values).unwrap())
    });
    let tensors = tensors.collect();
    let directory = tempfile::TempDir::new().unwrap();
    let vocoder = files.vocoder.take().unwrap();
    let vocoder = vocoder.iter().map(|(name, tensor)| (name.to_string(), tensor.clone())).collect();
    ModelFiles::write(directory.path(), &files.config, &tensors, Some(&vocoder), false).unwrap();
    let engine = im2sp::Engine::load(directory.path(), im2sp::Device::Cpu).unwrap();
    let image = im2sp::Image::from_rgb(2, 2, vec![9; 12]).unwrap();
    for beams in [1, 3] {
        let generate = GenerateOptions { beams, ..Default::default() };
        let options = im2sp::CaptionOptions { generate, ..Default::default() };
        let error = engine.caption(&image, &options).unwrap_err().to_string();
        assert!(error.contains("NaN") && error.contains("convert"), "{error}");
    }
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let model = open("small");
    let base = GenerateOptions { max_length: 8, ..Default::default() };
    let sampling = im2sp::generate::Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, seed: 0 };
    for (options, word) in [
        (GenerateOptions { beams: 0, ..base }, "beam"),
        (GenerateOptions { beams: 1000, ..base }, "beam"),
        (GenerateOptions { max_length: 1, ..base }, "max-units"),
        (GenerateOptions { length_penalty: f32::NAN, ..base }, "length-penalty"),
        (GenerateOptions { beams: 2, sampling: Some(sampling), ..base }, "beam"),
        (
            GenerateOptions { sampling: Some(im2sp::generate::Sampling { temperature: 0.0, ..sampling }), ..base },
            "temperature",
        ),
        (GenerateOptions { sampling: Some(im2sp::generate::Sampling { top_p: 0.0, ..sampling }), ..base }, "top-p"),
    ] {
        let cache = model.captioner.prefill(&Cpu, &model.image_tokens(1), 1, 8).unwrap();
        let error = generate(&Cpu, &model.captioner.decoder, cache, 1, &options, SmBudget::All, &mut |_| {
            ControlFlow::Continue(())
        })
        .unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
    }
}
