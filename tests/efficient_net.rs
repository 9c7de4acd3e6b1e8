//! Captioners that see through an EfficientNet-lite equal PyTorch, from the checkpoint to tokens and gradients; they are trained
//! on kept features, exported, and stored in bf16, and so do the commands.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{Golden, assert_close, golden};
use im2sp::backend::Device as _;
use im2sp::backend::cpu::Cpu;
use im2sp::config::{FORMAT, ImageConfig, ModelConfig, Resize, TokenizerConfig};
use im2sp::generate::GenerateOptions;
use im2sp::model::captioner::Captioner;
use im2sp::model::loader::Loader;
use im2sp::model::vqgan::Tokenizer;
use im2sp::tensor::{DType, HostTensor};
use im2sp::train::decoder::{Dropout, Sequences};
use im2sp::train::model::{Freeze, Images, TrainedCaptioner};
use im2sp::units::EOS;
use im2sp::weights::directory::ModelFiles;
use im2sp::weights::{ConvertOptions, TensorStore, convert};
use im2sp::{CaptionOptions, Device, Engine, Image, ImageTokenizer, Input, LoadOptions};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tempfile::TempDir;

/// Products along the deepest path of the small model.
const DEPTH: usize = 2048;

fn data(name: &str) -> PathBuf {
    golden(&format!("efficient_net/{name}"))
}

fn options(source: PathBuf, output: &Path) -> ConvertOptions {
    ConvertOptions {
        source,
        vocoder: None,
        vocoder_config: None,
        tokenizer: None,
        codebook: None,
        preprocessor: Some(data("preprocessor_config.json")),
        dtype: DType::F32,
        quantize: None,
        output: output.to_owned(),
        domain: None,
        description: None,
        force: false,
    }
}

/// The golden captioner, converted.
fn model(folder: &TempDir) -> PathBuf {
    let output = folder.path().join("model");
    convert(&options(data("captioner.ckpt"), &output), &mut |_, _| {}).unwrap();
    output
}

fn expected() -> Golden {
    Golden::open("efficient_net/expected.safetensors")
}

#[test]
fn features_and_image_tokens_equal_golden() {
    let folder = TempDir::new().unwrap();
    let output = folder.path().join("model");
    let report = convert(&options(data("captioner.ckpt"), &output), &mut |_, _| {}).unwrap();
    assert_eq!(report.left_aside, ["git.image_encoder._fc.bias", "git.image_encoder._fc.weight"]);
    let mut files = ModelFiles::open(&output).unwrap();
    let net = files.config.vision.efficient_net.as_ref().unwrap();
    assert_eq!((files.config.image_tokens(), net.blocks().count(), files.config.vision.width), (4, 13, 72));
    let mut loader = Loader { backend: &Cpu, store: &mut files.captioner, dtype: None };
    let captioner = Captioner::load(&mut loader, &files.config).unwrap();
    files.captioner.finish().unwrap();
    let expected = expected();
    let pixels = expected.f32("pixels");
    let uploaded = captioner.vision.upload(&Cpu, &pixels, 2).unwrap();
    let features = Cpu.download(&captioner.vision.encode(&Cpu, &uploaded).unwrap()).unwrap();
    assert_close("features", &features, &expected.f32("features"), DEPTH);
    let tokens = Cpu.download(&captioner.encode(&Cpu, &pixels, 2).unwrap()).unwrap();
    assert_close("image tokens", &tokens, &expected.f32("image_tokens"), DEPTH);
    // An image alone has the bits that it has among others.
    let alone = Cpu.download(&captioner.encode(&Cpu, &pixels[pixels.len() / 2..], 1).unwrap()).unwrap();
    assert_eq!(alone, tokens[tokens.len() / 2..]);
}

/// A tokenizer cuts what the golden encoder sees into squares of units: the nearest codes by the definition, in f64.
#[test]
fn a_tokenizer_cuts_tokens_into_units() {
    const SIDE: usize = 3;
    const CODES: usize = 23;
    const CODE_WIDTH: usize = 5;
    let folder = TempDir::new().unwrap();
    let files = ModelFiles::open(&model(&folder)).unwrap();
    let (width, net) = (files.config.vision.width, files.config.vision.efficient_net.clone());
    let mut random = common::Random::new(8);
    let outputs = SIDE * SIDE * CODE_WIDTH;
    let [weight, bias, codes] = [outputs * width, outputs, CODES * CODE_WIDTH].map(|len| random.values(len));
    let tensor = |shape: &[usize], values: &[f32]| HostTensor::from_f32(shape, values.to_vec()).unwrap();
    let encoder = files.captioner.iter().filter(|(name, _)| name.starts_with("vision."));
    let mut tensors: BTreeMap<String, HostTensor> =
        encoder.map(|(name, tensor)| (name.to_owned(), tensor.clone())).collect();
    tensors.insert("projection.weight".into(), tensor(&[outputs, width], &weight));
    tensors.insert("projection.bias".into(), tensor(&[outputs], &bias));
    tensors.insert("codebook".into(), tensor(&[CODES, CODE_WIDTH], &codes));
    let config = TokenizerConfig {
        format: FORMAT.into(),
        image: files.config.image.clone(),
        patch: 0,
        width,
        layers: 0,
        heads: 0,
        inner: 0,
        mlp: 0,
        eps: 0.0,
        efficient_net: net,
        token_units: SIDE,
        codes: CODES,
        code_width: CODE_WIDTH,
    };
    config.check().unwrap();
    let (field, _) = TokenizerConfig { patch: 8, ..config.clone() }.check().unwrap_err();
    assert_eq!(field, "patch");
    let (field, _) = TokenizerConfig { token_units: 0, ..config.clone() }.check().unwrap_err();
    assert_eq!(field, "token_units");

    // As a recipe writes it, it is loaded like any other.
    let directory = folder.path().join("tokenizer");
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(directory.join("tokenizer.json"), serde_json::to_string(&config).unwrap()).unwrap();
    let bytes: Vec<(&String, &HostTensor, Vec<u8>)> = tensors
        .iter()
        .map(|(name, tensor)| (name, tensor, tensor.to_f32().iter().flat_map(|v| v.to_le_bytes()).collect()))
        .collect();
    let views = bytes.iter().map(|(name, tensor, bytes)| {
        (name.as_str(), TensorView::new(Dtype::F32, tensor.shape().to_vec(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &directory.join("tokenizer.safetensors")).unwrap();
    let mut store = TensorStore::new(Path::new("tokenizer"), tensors);
    let tokenizer = Tokenizer::load(&mut Loader { backend: &Cpu, store: &mut store, dtype: None }, &config).unwrap();
    store.finish().unwrap();
    let (seen_golden, pixels) = (expected().f32("features"), expected().f32("pixels"));
    let made = tokenizer.units(&Cpu, &pixels, 2).unwrap();
    let (tokens, grid) = (config.tokens(), config.grid());
    assert_eq!((grid, made.len()), (tokens * SIDE, 2));
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let wide = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>();
    let codes: Vec<Vec<f64>> = codes.chunks(CODE_WIDTH).map(wide).collect();
    for (image, at) in (0..2).flat_map(|image| (0..grid * grid).map(move |at| (image, at))) {
        let (row, column) = (at / grid, at % grid);
        let token = image * tokens * tokens + row / SIDE * tokens + column / SIDE;
        let seen = wide(&seen_golden[token * width..][..width]);
        let part = (row % SIDE * SIDE + column % SIDE) * CODE_WIDTH;
        let vector: Vec<f64> = (part..part + CODE_WIDTH)
            .map(|n| f64::from(bias[n]) + dot(&wide(&weight[n * width..][..width]), &seen))
            .collect();
        let cosine = |code: &Vec<f64>| dot(code, &vector) / dot(code, code).sqrt();
        let best = codes.iter().map(cosine).fold(f64::NEG_INFINITY, f64::max);
        let found = cosine(&codes[usize::from(made[image][at])]);
        // As near as rounding tells them apart.
        assert!(best - found <= 1e-4 * dot(&vector, &vector).sqrt(), "image {image}, {row}, {column}: {found} {best}");
    }
    assert!(made[0].iter().collect::<std::collections::BTreeSet<_>>().len() > 5, "{made:?}");
    let image = Image::open(golden("scenes/scene_0000.jpg")).unwrap();
    let units = tokenizer.units(&Cpu, &image.preprocess(&config.image), 1).unwrap();
    #[cfg(feature = "emulator")]
    let devices = [Device::Cpu, Device::Emulator];
    #[cfg(not(feature = "emulator"))]
    let devices = [Device::Cpu];
    for device in devices {
        let options = LoadOptions { device, dtype: Some(DType::F32), ..LoadOptions::default() };
        assert_eq!(ImageTokenizer::load(&directory, options).unwrap().units(&image).unwrap(), units[0]);
    }
}

#[test]
fn captions_are_those_of_golden() {
    let folder = TempDir::new().unwrap();
    let model = model(&folder);
    let load = |device| {
        Engine::load_with(&model, LoadOptions { device, dtype: Some(DType::F32), ..LoadOptions::default() }).unwrap()
    };
    #[cfg(feature = "emulator")]
    let engines = [load(Device::Cpu), load(Device::Emulator)];
    #[cfg(not(feature = "emulator"))]
    let engines = [load(Device::Cpu)];
    let (shape, tokens) = expected().get("tokens");
    let rows = tokens.chunks_exact(shape[1]).map(|row| {
        let row: Vec<u32> = row.iter().map(|&token| token as u32).collect();
        let end = row.iter().position(|&token| token == EOS).map_or(row.len(), |end| end + 1);
        row[..end].to_vec()
    });
    let expected_tokens: Vec<Vec<u32>> = rows.collect();
    let generate = GenerateOptions { max_length: shape[1], ..Default::default() };
    let options = CaptionOptions { generate, no_audio: true, ..Default::default() };
    let pixels = expected().f32("pixels");
    for engine in &engines {
        let inputs = pixels.chunks_exact(pixels.len() / 2).map(|pixels| Input::Pixels(pixels.to_vec()));
        let captions = engine.caption_inputs(inputs.collect(), &options, &mut |_| {}).unwrap();
        let tokens: Vec<Vec<u32>> = captions.into_iter().map(|caption| caption.tokens).collect();
        assert_eq!(tokens, expected_tokens);
    }
}

/// The loss and the gradients of the projection of a frozen network, over pixels and over its features.
#[test]
fn gradients_are_those_of_pytorch() {
    let folder = TempDir::new().unwrap();
    let path = model(&folder);
    let expected = expected();
    let (shape, ids) = expected.get("train_ids");
    let rows = |range: std::ops::Range<usize>| -> Vec<u32> {
        ids.chunks_exact(shape[1]).flat_map(|row| row[range.clone()].iter().map(|&id| id as u32)).collect()
    };
    let (inputs, targets) = (rows(0..shape[1] - 1), rows(1..shape[1]));
    let valid = targets.iter().filter(|&&target| target != 0).count();
    let sequences = Sequences { batch: 2, inputs: &inputs, targets: &targets, scale: 1.0 / valid as f32 };
    let load = |freeze| {
        let files = ModelFiles::open(&path).unwrap();
        TrainedCaptioner::load(Cpu, &files.config, files.captioner, freeze, None)
    };
    let pixels = expected.f32("pixels");
    let features = load(Freeze::Encoder).unwrap().features(&pixels, 2).unwrap();
    assert_close("features", &features, &expected.f32("features"), DEPTH);
    for images in [Images::Pixels(&pixels), Images::Features(&features)] {
        let mut captioner = load(Freeze::Encoder).unwrap();
        let losses = captioner.pass(images, &sequences, Dropout::NONE).unwrap();
        assert_close("loss", &[(losses.loss / valid as f64) as f32], &expected.f32("train_loss"), DEPTH);
        let gradients = captioner.read_gradients().unwrap();
        let entries = captioner.layout().entries().iter().filter(|entry| entry.name.starts_with("projection."));
        let compared = entries.map(|entry| {
            let name = format!("gradient.{}", entry.name);
            assert_close(&name, &gradients[entry.place.range()], &expected.f32(&name), DEPTH);
        });
        assert_eq!(compared.count(), 4);
    }
    let error = load(Freeze::None).err().unwrap().to_string();
    assert!(error.contains("freeze") && error.contains("EfficientNet"), "{error}");
}

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_im2sp")).args(arguments).output().expect("im2sp starts")
}

#[track_caller]
fn ends(output: &Output, code: i32) -> [String; 2] {
    let [out, error] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    assert_eq!(output.status.code(), Some(code), "{out}{error}");
    assert!(!error.contains("panicked"), "{error}");
    [out, error]
}

/// Conversion, captions, training with and without kept features, and export, by the commands.
#[test]
fn commands_convert_caption_train_and_export() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let [model, narrow, again, back] = ["model", "narrow", "again", "back.ckpt"].map(at);
    let [checkpoint, processor] =
        ["captioner.ckpt", "preprocessor_config.json"].map(|name| data(name).to_str().unwrap().to_owned());
    let convert = ["convert", &checkpoint, "--preprocessor", &processor];
    ends(&run(&[&convert[..], &["-o", &model]].concat()), 0);
    let [out, _] = ends(&run(&["info", &model]), 0);
    assert!(out.contains("EfficientNet-lite, 13 blocks, 72 channels, 4 tokens"), "{out}");
    // Every convolution keeps its value through a checkpoint, with its batch norm folded in.
    let [out, _] = ends(&run(&["export", &model, "--format", "reference", "-o", &back]), 0);
    assert!(!out.contains("heads"), "{out}");
    ends(&run(&["convert", &back, "--preprocessor", &processor, "-o", &again]), 0);
    for file in ["config.json", "captioner.safetensors"] {
        let [first, second] =
            [&model, &again].map(|folder| std::fs::read(Path::new(folder).join(file)).expect("a file of a model"));
        assert!(first == second, "{file} changed");
    }
    let [_, error] = ends(&run(&["export", &model, "--format", "hf", "-o", &at("hf")]), 1);
    assert!(error.contains("efficient_net") && !Path::new(&at("hf")).exists(), "{error}");

    let scene = golden("scenes/scene_0003.jpg");
    let caption = |weights: &str| {
        let options = ["--weights", weights, "--no-audio", "--max-units", "20", "--device", "cpu"];
        ends(&run(&[&["caption", scene.to_str().unwrap()][..], &options].concat()), 0)[0].clone()
    };
    assert!(!caption(&model).trim().is_empty());
    ends(&run(&[&convert[..], &["--dtype", "bf16", "-o", &narrow]].concat()), 0);
    assert!(!caption(&narrow).trim().is_empty());

    let mut lines = String::new();
    for n in 0..6 {
        let name = format!("scene_{n:04}.jpg");
        std::fs::copy(golden("scenes").join(&name), at(&name)).unwrap();
        let units: Vec<usize> = (0..6 + n % 4).map(|k| (37 * n + 11 * k) % 200).collect();
        let split = if n < 4 { "train" } else { "val" };
        lines += &format!("{{\"image\": {name:?}, \"units\": {units:?}, \"split\": {split:?}}}\n");
    }
    std::fs::write(at("all.jsonl"), lines).unwrap();
    let manifest = at("all.jsonl");
    let train = |run_folder: &str, init: &str, others: &[&str], code: i32| {
        let base = ["train", run_folder, "--init", init, "--manifest", &manifest, "--batch", "2", "--device", "cpu"];
        ends(&run(&[&base[..], &["--iterations", "2", "--warmup", "1"], others].concat()), code)
    };
    // A checkpoint begins a run as well as a model directory does.
    train(&at("kept"), &model, &["--freeze", "encoder", "--cache-features"], 0);
    train(&at("computed"), &model, &["--freeze", "encoder", "--flip", "--crop-jitter", "0.1"], 0);
    assert!(Path::new(&at("kept")).join("features.bin").exists());
    let [_, error] = train(&at("none"), &model, &["--freeze", "none"], 2);
    assert!(error.contains("freeze") && error.contains("EfficientNet"), "{error}");
    let index = std::fs::read_to_string(Path::new(&at("kept")).join("checkpoints.json")).unwrap();
    let index: serde_json::Value = serde_json::from_str(&index).unwrap();
    let last = Path::new(&at("kept")).join(index["last"].as_str().unwrap());
    assert!(!caption(last.to_str().unwrap()).trim().is_empty());
}

/// Without an image processor images are squeezed to squares of 224 pixels, by the statistics of the network.
#[test]
fn images_are_those_of_the_network() {
    let folder = TempDir::new().unwrap();
    let output = folder.path().join("model");
    let plain = ConvertOptions { preprocessor: None, ..options(data("captioner.ckpt"), &output) };
    let config: ModelConfig = convert(&plain, &mut |_, _| {}).unwrap().config;
    assert_eq!((config.image.size, config.image.resize, config.image_tokens()), (224, Resize::Square, 49));
    assert_eq!(config.image, ImageConfig::efficient_net(224));
}
