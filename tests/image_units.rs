//! Image units: the tokenizer and the captioner that sees them equal plain PyTorch, from pickled modules to tokens and
//! gradients, and so do the commands.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{Golden, assert_close, golden};
use im2sp::backend::Device as _;
use im2sp::backend::cpu::Cpu;
use im2sp::generate::GenerateOptions;
use im2sp::model::captioner::{Captioner, VisionInput};
use im2sp::model::loader::Loader;
use im2sp::model::unit_vision::CodeVectors;
use im2sp::model::vqgan::Tokenizer;
use im2sp::tensor::DType;
use im2sp::train::config::TrainConfig;
use im2sp::train::decoder::{Dropout, Sequences};
use im2sp::train::model::{Freeze, Images, TrainedCaptioner};
use im2sp::train::unit_images;
use im2sp::units::{EOS, ImageUnits};
use im2sp::weights::convert::{InitialCaptioner, initial_captioner};
use im2sp::weights::directory::{ModelFiles, TokenizerFiles};
use im2sp::weights::{ConvertOptions, TensorStore, convert, convert_tokenizer};
use im2sp::{CaptionOptions, Device, Engine, Image, ImageTokenizer, Input, LoadOptions};
use tempfile::TempDir;

/// Products along the deepest path of the small models.
const DEPTH: usize = 512;

fn data(name: &str) -> PathBuf {
    golden(&format!("image_units/{name}"))
}

fn options(source: &str, output: &Path) -> ConvertOptions {
    ConvertOptions {
        source: data(source),
        vocoder: None,
        vocoder_config: None,
        tokenizer: None,
        codebook: Some(data("codebook.ckpt")),
        preprocessor: None,
        dtype: DType::F32,
        quantize: None,
        output: output.to_owned(),
        domain: None,
        description: None,
        force: false,
    }
}

/// The captioner with its tokenizer, converted.
fn model(output: &Path) -> PathBuf {
    let tokenizer = Some(data("tokenizer.ckpt"));
    convert(&ConvertOptions { tokenizer, ..options("captioner.ckpt", output) }, &mut |_, _| {}).unwrap();
    output.to_owned()
}

fn expected() -> Golden {
    Golden::open("image_units/expected.safetensors")
}

/// The golden units, image by image.
fn golden_units(name: &str) -> Vec<Vec<u16>> {
    let (shape, ids) = expected().get(name);
    let each = ids.len() / shape[0];
    ids.chunks_exact(each).map(|ids| ids.iter().map(|&id| id as u16).collect()).collect()
}

/// The golden scene, which is no square.
fn scene() -> Image {
    let (shape, bytes) = expected().get("scene");
    Image::from_rgb(shape[1], shape[0], bytes.into_iter().map(|byte| byte as u8).collect()).unwrap()
}

fn cpu() -> LoadOptions {
    LoadOptions { device: Device::Cpu, ..LoadOptions::default() }
}

#[test]
fn the_tokenizer_equals_golden() {
    let folder = TempDir::new().unwrap();
    let expected = expected();
    for (number, codebook) in ["codebook.ckpt", "codebook_parameter.ckpt"].into_iter().enumerate() {
        let output = folder.path().join(codebook);
        let options = ConvertOptions { codebook: Some(data(codebook)), ..options("tokenizer.ckpt", &output) };
        let report = convert_tokenizer(&options, &mut |_, _| {}).unwrap();
        assert_eq!((report.config.grid(), report.config.codes, report.config.layers), (8, 391, 2), "{number}");
        assert!(report.left_aside.is_empty(), "{:?}", report.left_aside);
        let TokenizerFiles { config, mut store } = TokenizerFiles::open_with(&output, true).unwrap();
        let mut loader = Loader { backend: &Cpu, store: &mut store, dtype: None };
        let tokenizer = Tokenizer::load(&mut loader, &config).unwrap();
        store.finish().unwrap();
        let pixels = expected.f32("pixels");
        let features = Cpu.download(&tokenizer.features(&Cpu, &pixels, 4).unwrap()).unwrap();
        assert_close("features", &features, &expected.f32("features"), DEPTH);
        let units = tokenizer.units(&Cpu, &pixels, 4).unwrap();
        assert_eq!(units, golden_units("ids"));
        // An image alone has the units that it has among others.
        assert_eq!(tokenizer.units(&Cpu, &pixels[pixels.len() / 4 * 3..], 1).unwrap()[0], units[3]);
        assert!(tokenizer.units(&Cpu, &pixels[1..], 4).is_err());
    }
}

/// A state dict of a captioner holds its tokenizer too.
#[test]
fn a_tokenizer_is_found_among_the_tensors_of_a_captioner() {
    let folder = TempDir::new().unwrap();
    let output = folder.path().join("tokenizer");
    convert_tokenizer(&options("captioner.ckpt", &output), &mut |_, _| {}).unwrap();
    let tokenizer = ImageTokenizer::load(&output, cpu()).unwrap();
    assert_eq!(tokenizer.units(&scene()).unwrap(), golden_units("scene_ids")[0]);
}

#[test]
fn an_image_is_squeezed_to_a_square_as_by_pillow() {
    let folder = TempDir::new().unwrap();
    let output = folder.path().join("tokenizer");
    convert_tokenizer(&options("tokenizer.ckpt", &output), &mut |_, _| {}).unwrap();
    let tokenizer = ImageTokenizer::load(&output, cpu()).unwrap();
    #[cfg(feature = "emulator")]
    {
        let emulated = LoadOptions { device: Device::Emulator, ..LoadOptions::default() };
        let units = ImageTokenizer::load(&output, emulated).unwrap().units(&scene()).unwrap();
        assert_eq!(units, golden_units("scene_ids")[0]);
    }
    assert_eq!(scene().preprocess(&tokenizer.config().image), expected().f32("scene_pixels"));
    let images = |index: usize| match index {
        0 | 2 => Some(Ok(scene())),
        1 => Some(Image::open(data("expected.safetensors"))),
        _ => None,
    };
    for together in [1, 2, 8] {
        let mut seen = Vec::new();
        tokenizer
            .units_of_many(&images, together, &mut |index, units| {
                seen.push((index, units.ok()));
                std::ops::ControlFlow::Continue(())
            })
            .unwrap();
        let scene = Some(golden_units("scene_ids")[0].clone());
        assert_eq!(seen, [(0, scene.clone()), (1, None), (2, scene)]);
    }
}

#[test]
fn the_captioner_equals_golden() {
    let folder = TempDir::new().unwrap();
    let mut files = ModelFiles::open(&model(&folder.path().join("model"))).unwrap();
    let mut loader = Loader { backend: &Cpu, store: &mut files.captioner, dtype: None };
    let captioner = Captioner::load(&mut loader, &files.config).unwrap();
    files.captioner.finish().unwrap();
    let (expected, units) = (expected(), golden_units("ids"));
    let inputs: Vec<VisionInput> = units.into_iter().map(VisionInput::Units).collect();
    let tokens = captioner.encode_inputs(&Cpu, &inputs.iter().collect::<Vec<_>>()).unwrap();
    assert_close("image tokens", &Cpu.download(&tokens).unwrap(), &expected.f32("image_tokens"), DEPTH);
    // The tower alone, over code vectors with their margin.
    let (shape, codes) = expected.get("codes");
    let [images, channels, side] = [shape[0], shape[1], shape[2]];
    let mut padded = vec![0.0; images * channels * (side + 2) * (side + 2)];
    for (at, code) in codes.iter().enumerate() {
        let (plane, y, x) = (at / side / side, at / side % side, at % side);
        padded[(plane * (side + 2) + y + 1) * (side + 2) + x + 1] = *code;
    }
    let planes = captioner.vision.upload(&Cpu, &padded, images).unwrap();
    let seen = Cpu.download(&captioner.vision.encode(&Cpu, &planes).unwrap()).unwrap();
    assert_close("vision", &seen, &expected.f32("vision"), DEPTH);
}

#[test]
fn captions_of_pixels_and_of_units_are_those_of_golden() {
    let folder = TempDir::new().unwrap();
    let stored = folder.path().join("stored");
    convert(&options("captioner.ckpt", &stored), &mut |_, _| {}).unwrap();
    let model = model(&folder.path().join("model"));
    let load = |options| Engine::load_with(&model, options).unwrap();
    #[cfg(feature = "emulator")]
    let engines = [
        load(cpu()),
        load(LoadOptions { device: Device::Emulator, dtype: Some(DType::F32), ..LoadOptions::default() }),
    ];
    #[cfg(not(feature = "emulator"))]
    let engines = [load(cpu())];
    let (shape, tokens) = expected().get("tokens");
    let expected_tokens: Vec<Vec<u32>> = tokens
        .chunks_exact(shape[1])
        .map(|row| {
            let row: Vec<u32> = row.iter().map(|&token| token as u32).collect();
            let end = row.iter().position(|&token| token == EOS).map_or(row.len(), |end| end + 1);
            row[..end].to_vec()
        })
        .collect();
    let generate = GenerateOptions { max_length: shape[1], ..Default::default() };
    let options = CaptionOptions { generate, no_audio: true, ..Default::default() };
    let pixels = expected().f32("pixels");
    let units = golden_units("ids");
    for engine in &engines {
        let mixed =
            pixels.chunks_exact(pixels.len() / 4).zip(&units).enumerate().map(|(n, (pixels, units))| match n % 2 {
                0 => Input::Pixels(pixels.to_vec()),
                _ => Input::Units(units.clone()),
            });
        let captions = engine.caption_inputs(mixed.collect(), &options, &mut |_| {}).unwrap();
        let tokens: Vec<Vec<u32>> = captions.into_iter().map(|caption| caption.tokens).collect();
        assert_eq!(tokens, expected_tokens);
        let one = engine.caption(&scene(), &options).unwrap();
        let same = Input::Units(golden_units("scene_ids")[0].clone());
        assert_eq!(engine.caption_inputs(vec![same], &options, &mut |_| {}).unwrap()[0].tokens, one.tokens);
        let mut short = units[0].clone();
        short.pop();
        let mut large = units[0].clone();
        large[5] = 391;
        for (wrong, what) in [(short, "63 image units, expected 64"), (large, "image unit 391 of a codebook of 391")] {
            let error = engine.caption_inputs(vec![Input::Units(wrong)], &options, &mut |_| {}).unwrap_err();
            assert!(error.to_string().contains(what), "{error}");
        }
    }
    // Without a tokenizer the grid is the published one, so these units are too few; an image is refused.
    let engine = Engine::load_with(&stored, cpu()).unwrap();
    let error = engine.caption(&scene(), &options).unwrap_err().to_string();
    assert!(error.contains("--tokenizer"), "{error}");
    let error = common::scenes::engine_with(cpu());
    let error = error.caption_inputs(vec![Input::Units(vec![0; 64])], &options, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("sees pixels"), "{error}");
}

#[test]
fn checkpoints_that_do_not_belong_together_are_refused() {
    let folder = TempDir::new().unwrap();
    let output = folder.path().join("model");
    let narrow = folder.path().join("narrow.safetensors");
    let codes: Vec<u8> = (0..391 * 16).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![391, 16], &codes).unwrap();
    std::fs::write(&narrow, safetensors::serialize([("codes", view)], None).unwrap()).unwrap();
    let error = |options: ConvertOptions, tokenizer: bool| {
        let result = match tokenizer {
            true => convert_tokenizer(&options, &mut |_, _| {}).map(|_| ()),
            false => convert(&options, &mut |_, _| {}).map(|_| ()),
        };
        assert!(!output.exists());
        result.unwrap_err().to_string()
    };
    let plain = |source| options(source, &output);
    let with = |source, codebook: &Path| ConvertOptions { codebook: Some(codebook.to_owned()), ..plain(source) };
    let problem = error(with("tokenizer.ckpt", &narrow), true);
    assert!(problem.contains("narrow.safetensors") && problem.contains("16 values"), "{problem}");
    let problem = error(with("captioner.ckpt", &narrow), false);
    assert!(problem.contains("16 values") && problem.contains("takes 32"), "{problem}");
    let problem = error(ConvertOptions { codebook: None, ..plain("captioner.ckpt") }, false);
    assert!(problem.contains("codebook"), "{problem}");
    let problem = error(with("tokenizer.ckpt", &data("tokenizer.ckpt")), true);
    assert!(problem.contains("tokenizer.ckpt"), "{problem}");
    let problem = error(with("codebook.ckpt", &data("codebook.ckpt")), true);
    assert!(problem.contains("codebook.ckpt"), "{problem}");
    let pixels = ConvertOptions { source: golden("weights/reference.ckpt"), ..plain("captioner.ckpt") };
    let problem = error(pixels, false);
    assert!(problem.contains("sees pixels"), "{problem}");
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

/// Names that are no text are stored as different texts.
#[cfg(target_os = "linux")]
#[test]
fn images_whose_names_are_no_text_are_all_stored() {
    use std::os::unix::ffi::OsStrExt;
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let [model, photos, units] = ["model", "photos", "photos.units"].map(at);
    let [tokenizer, codebook] = ["tokenizer.ckpt", "codebook.ckpt"].map(|name| data(name).to_str().unwrap().to_owned());
    ends(&run(&["convert", "--tokenizer", &tokenizer, "--codebook", &codebook, "-o", &model]), 0);
    std::fs::create_dir(&photos).unwrap();
    for (n, name) in [b"a\xe8.jpg", b"a\xe9.jpg"].into_iter().enumerate() {
        let name = std::ffi::OsStr::from_bytes(name);
        std::fs::copy(golden(&format!("scenes/scene_000{n}.jpg")), Path::new(&photos).join(name)).unwrap();
    }
    let tokenize = ["tokenize", &photos, "--weights", &model, "-o", &units, "--device", "cpu"];
    let [out, error] = ends(&run(&tokenize), 0);
    assert!(out.contains("2 images") && !error.contains("skipping"), "{out}{error}");
    let stored = ImageUnits::open(Path::new(&units)).unwrap();
    assert!(stored.len() == 2 && stored.name(0).unwrap() != stored.name(1).unwrap());
    let [out, error] = ends(&run(&tokenize), 0);
    assert!(out.contains("0 images") && error.contains("skipping 2 images"), "{out}{error}");
}

/// Options that count for nothing are refused, whatever is converted.
#[test]
fn options_without_effect_are_refused() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let source = |name: &str| data(name).to_str().unwrap().to_owned();
    let [captioner, tokenizer, codebook] = ["captioner.ckpt", "tokenizer.ckpt", "codebook.ckpt"].map(source);
    let (model, out) = (at("model"), at("out"));
    let speech = golden("speech/hubert.pt").to_str().unwrap().to_owned();
    ends(&run(&["convert", &captioner, "--codebook", &codebook, "-o", &model]), 0);
    let image_units = ["--tokenizer", &tokenizer, "--codebook", &codebook];
    for option in ["vocoder", "preprocessor", "quantize", "domain", "description"] {
        let value = if option == "quantize" { "int8" } else { "x" };
        let [_, error] =
            ends(&run(&[&["convert"], &image_units[..], &[&format!("--{option}"), value, "-o", &out]].concat()), 2);
        assert!(error.contains(&format!("option {option}: ")) && error.contains("SRC"), "{error}");
    }
    for (options, option) in [(&image_units[..], "tokenizer"), (&image_units[2..], "codebook")] {
        let [_, error] = ends(&run(&[&["convert", &speech, "-o", &out], options].concat()), 2);
        assert!(error.contains(&format!("option {option}: ")) && error.contains("speech model"), "{error}");
    }
    let [_, error] = ends(&run(&["convert", &model, "--codebook", &codebook, "-o", &out]), 2);
    assert!(error.contains("option codebook: ") && error.contains("--tokenizer"), "{error}");
    assert!(!Path::new(&out).exists());
    ends(&run(&[&["convert", &model, "-o", &out], &image_units[..]].concat()), 0);
}

/// A folder of images through `convert`, `tokenize` and `caption`, an unreadable one among them.
#[test]
fn commands_store_units_and_caption_them() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let [model, photos, units, spoken] = ["model", "photos", "photos.units", "spoken"].map(at);
    let source = |name: &str| data(name).to_str().unwrap().to_owned();
    let [captioner, tokenizer, codebook] = ["captioner.ckpt", "tokenizer.ckpt", "codebook.ckpt"].map(source);
    let alone = at("tokenizer");
    ends(&run(&["convert", "--tokenizer", &tokenizer, "--codebook", &codebook, "-o", &alone]), 0);
    ends(&run(&["convert", &captioner, "--tokenizer", &tokenizer, "--codebook", &codebook, "-o", &model]), 0);
    ends(&run(&["info", &model]), 0);
    let [_, error] = ends(&run(&["convert", "--tokenizer", &tokenizer, "-o", &at("x")]), 2);
    assert!(error.contains("--codebook"), "{error}");
    let [_, error] = ends(&run(&["convert", "--tokenizer", &tokenizer, "--codebook", &codebook, "-o", &alone]), 1);
    assert!(error.contains("--force"), "{error}");
    std::fs::create_dir(&photos).unwrap();
    for n in 0..5 {
        let name = format!("scene_{n:04}.jpg");
        std::fs::copy(golden(&format!("scenes/{name}")), Path::new(&photos).join(name)).unwrap();
    }
    std::fs::write(Path::new(&photos).join("broken.png"), b"no image").unwrap();
    let tokenize = ["tokenize", &photos, "--weights", &alone, "-o", &units, "--device", "cpu"];
    let [out, error] = ends(&run(&tokenize), 1);
    assert!(out.contains("5 images") && out.contains("576 bits an image"), "{out}");
    assert!(error.contains("broken.png"), "{error}");
    std::fs::remove_file(Path::new(&photos).join("broken.png")).unwrap();
    let first = std::fs::read(&units).unwrap();
    let [out, error] = ends(&run(&tokenize), 0);
    assert!(out.contains("0 images") && error.contains("skipping 5 images"), "{out}{error}");
    assert_eq!(std::fs::read(&units).unwrap(), first);
    assert_eq!(ImageUnits::open(Path::new(&units)).unwrap().name(3).unwrap(), "scene_0003");

    // Another folder's image of a name that is there.
    let others = at("others");
    std::fs::create_dir(&others).unwrap();
    let other = golden("images/decode/cmyk.jpg");
    std::fs::copy(other, Path::new(&others).join("scene_0001.jpg")).unwrap();
    let [_, error] = ends(&run(&["tokenize", &others, "--weights", &alone, "-o", &units, "--device", "cpu"]), 1);
    assert!(error.contains("scene_0001: is of another image than"), "{error}");
    assert_eq!(std::fs::read(&units).unwrap(), first);

    let common = ["--weights", &model, "--no-audio", "--max-units", "20", "--device", "cpu"];
    let caption = |what: &[&str]| run(&[&["caption"], what, &common].concat());
    let [from_images, _] = ends(&caption(&[&photos]), 0);
    let [from_units, _] = ends(&caption(&["--units", &units]), 0);
    assert_eq!(from_images, from_units);
    assert_eq!(from_units.lines().count(), 5);
    ends(&caption(&["--units", &units, "-o", &format!("{spoken}/")]), 0);
    let written = std::fs::read_to_string(Path::new(&spoken).join("scene_0004.units")).unwrap();
    assert_eq!(written.trim(), from_units.lines().nth(4).unwrap());
    let [_, error] = ends(&caption(&["--units", &units, "-o", &spoken]), 0);
    assert!(error.contains("skipping 5 of 5"), "{error}");

    // Damage in the middle: the others are captioned.
    let mut damaged = first.clone();
    damaged[200] ^= 1;
    std::fs::write(&units, &damaged).unwrap();
    let [out, error] = ends(&caption(&["--units", &units]), 1);
    assert_eq!(out.lines().count(), 4);
    assert!(error.contains("damaged"), "{error}");
    let scenes = common::scenes::directory();
    let [_, error] = ends(&run(&["caption", "--units", &units, "--weights", scenes.to_str().unwrap()]), 1);
    assert!(error.contains("sees pixels"), "{error}");
    let [_, error] = ends(&run(&["caption", "--units", &captioner, "--weights", &model]), 1);
    assert!(error.contains("no file of image units"), "{error}");
    let [_, error] = ends(&run(&["tokenize", &photos, "-o", &at("x.units")]), 2);
    assert!(error.contains("weights"), "{error}");
    let copied = at("copied.units");
    let tokens = source("tokens.data.bin.gz");
    let [out, _] = ends(&run(&["tokenize", &tokens, "-o", &copied, "--json"]), 0);
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((report["stored"].as_u64(), report["bits_per_image"].as_f64()), (Some(3), Some(9216.0)));
    let [copied, tokens] = [copied, tokens].map(|path| ImageUnits::open(Path::new(&path)).unwrap());
    assert_eq!(copied.len(), tokens.len());
    (0..3).for_each(|index| assert_eq!(copied.read(index).unwrap(), tokens.read(index).unwrap()));
}

/// Images that are read fast, and the end of the list, come before the first image is read.
#[test]
fn units_belong_to_their_images_however_long_each_is_read() {
    let folder = TempDir::new().unwrap();
    convert_tokenizer(&options("tokenizer.ckpt", &folder.path().join("tokenizer")), &mut |_, _| {}).unwrap();
    for device in DEVICES {
        let options = LoadOptions { device: *device, ..LoadOptions::default() };
        units_of_images_read_slowly(&ImageTokenizer::load(folder.path().join("tokenizer"), options).unwrap());
    }
}

#[cfg(not(feature = "emulator"))]
const DEVICES: &[Device] = &[Device::Cpu];
#[cfg(feature = "emulator")]
const DEVICES: &[Device] = &[Device::Cpu, Device::Emulator];

fn units_of_images_read_slowly(tokenizer: &ImageTokenizer) {
    let images: Vec<Image> = (0..5u8).map(|n| Image::from_rgb(9, 7, vec![50 * n; 9 * 7 * 3]).unwrap()).collect();
    let source = |number: usize| {
        let image = images.get(number)?;
        std::thread::sleep(std::time::Duration::from_millis(if number.is_multiple_of(3) { 60 } else { 0 }));
        Some(Ok(image.clone()))
    };
    for together in [1, 3, 8] {
        let mut found = Vec::new();
        let mut on_units = |number, units: im2sp::Result<Vec<u16>>| {
            found.push((number, units.unwrap()));
            std::ops::ControlFlow::Continue(())
        };
        tokenizer.units_of_many(&source, together, &mut on_units).unwrap();
        let expected = images.iter().map(|image| tokenizer.units(image).unwrap()).enumerate();
        assert_eq!(found, expected.collect::<Vec<_>>(), "{together} together");
    }
    // Whoever wants no more gets no more, with batches under way.
    let mut calls = 0;
    let mut first_two = |number, _| {
        calls += 1;
        if number == 1 { std::ops::ControlFlow::Break(()) } else { std::ops::ControlFlow::Continue(()) }
    };
    tokenizer.units_of_many(&source, 1, &mut first_two).unwrap();
    assert_eq!(calls, 2);
}

#[test]
fn gradients_are_those_of_pytorch() {
    let folder = TempDir::new().unwrap();
    let files = ModelFiles::open(&model(&folder.path().join("model"))).unwrap();
    let codes = files.captioner.iter().find(|(name, _)| *name == "vision.codebook").unwrap().1.to_f32().into_owned();
    let codes = CodeVectors::new(files.config.vision.units.clone().unwrap(), codes);
    let tensors: BTreeMap<_, _> =
        files.captioner.iter().map(|(name, tensor)| (name.to_owned(), tensor.clone())).collect();
    let config = files.config.clone();
    let mut initial = InitialCaptioner { config, tensors, fresh: Vec::new(), left_aside: Vec::new() };
    unit_images::prepare(&TrainConfig::default(), &mut initial).unwrap();
    let InitialCaptioner { config, tensors, .. } = initial;
    assert!(tensors["vision.patch_embedding.bias"].to_f32().iter().all(|&bias| bias == 0.0));
    let store = TensorStore::new(Path::new("<prepared>"), tensors);
    let mut captioner = TrainedCaptioner::load(Cpu, &config, store, Freeze::None, None).unwrap();

    let (expected, mut planes) = (expected(), Vec::new());
    golden_units("ids")[..2].iter().for_each(|units| codes.planes(units, &mut planes).unwrap());
    let (shape, ids) = expected.get("train_ids");
    let rows = |range: std::ops::Range<usize>| -> Vec<u32> {
        ids.chunks_exact(shape[1]).flat_map(|row| row[range.clone()].iter().map(|&id| id as u32)).collect()
    };
    let (inputs, targets) = (rows(0..shape[1] - 1), rows(1..shape[1]));
    let valid = targets.iter().filter(|&&target| target != 0).count();
    let sequences = Sequences { batch: 2, inputs: &inputs, targets: &targets, scale: 1.0 / valid as f32 };
    let losses = captioner.pass(Images::Pixels(&planes), &sequences, Dropout::NONE).unwrap();
    assert_close("loss", &[(losses.loss / valid as f64) as f32], &expected.f32("train_loss"), DEPTH);
    let gradients = captioner.read_gradients().unwrap();
    let mut compared = 0;
    for entry in captioner.layout().entries() {
        let name = format!("gradient.{}", entry.name);
        if expected.has(&name) {
            assert_close(&name, &gradients[entry.place.range()], &expected.f32(&name), DEPTH);
            compared += 1;
        }
    }
    assert_eq!(compared, 15);
}

/// A captioner of stored units, from random weights, with every change of the units; its checkpoint captions.
#[test]
fn a_run_on_stored_units_learns() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let [alone, units, run_folder] = ["tokenizer", "scenes.units", "run"].map(at);
    convert_tokenizer(&options("tokenizer.ckpt", Path::new(&alone)), &mut |_, _| {}).unwrap();
    let mut lines = String::new();
    for n in 0..12 {
        let name = format!("scene_{n:04}.jpg");
        std::fs::copy(golden("scenes").join(&name), at(&name)).unwrap();
        let units: Vec<usize> = (0..6 + n % 4).map(|k| (37 * n + 11 * k) % 200).collect();
        let split = if n < 9 { "train" } else { "val" };
        lines += &format!("{{\"image\": {name:?}, \"units\": {units:?}, \"split\": {split:?}}}\n");
    }
    std::fs::write(at("all.jsonl"), lines).unwrap();
    let config = r#"{"format": "im2sp-1", "image": {"size": 32, "mean": [0, 0, 0], "std": [1, 1, 1]},
        "vision": {"patch": 4, "width": 32, "layers": 1, "heads": 2, "mlp": 48, "eps": 1e-6,
            "units": {"grid": 8, "crop": 6, "codes": 391, "code_width": 32, "stride": 2, "padding": 1, "projection_eps": 1e-5}},
        "decoder": {"width": 32, "layers": 1, "heads": 2, "mlp": 48, "vocabulary": 203, "max_positions": 32, "eps": 1e-12}}"#;
    std::fs::write(at("model.json"), config).unwrap();
    ends(&run(&["tokenize", &at("."), "--weights", &alone, "-o", &units, "--device", "cpu"]), 0);
    // The images themselves are not read.
    (0..12).for_each(|n| std::fs::remove_file(at(&format!("scene_{n:04}.jpg"))).unwrap());
    let (model, manifest) = (at("model.json"), at("all.jsonl"));
    let base = ["train", &run_folder, "--init", &model, "--manifest", &manifest, "--freeze", "none", "--batch", "3"];
    let base = [&base[..], &["--rate", "3e-3", "--warmup", "2", "--iterations", "60"]].concat();
    let [_, error] = ends(&run(&[&base[..], &["--tokenizer", &alone]].concat()), 2);
    assert!(error.contains("--image-units"), "{error}");
    let given = ["--image-units", &units];
    let [_, error] = ends(&run(&[&base[..], &given].concat()), 2);
    assert!(error.contains("tokenizer"), "{error}");
    // Where a token is a square of units, a mirrored grid is no image's.
    let text = std::fs::read_to_string(&model).unwrap();
    std::fs::write(&model, text.replacen("\"stride\"", "\"token_units\": 4, \"stride\"", 1)).unwrap();
    let [_, error] = ends(&run(&[&base[..], &given, &["--tokenizer", &alone, "--flip"]].concat()), 2);
    assert!(error.contains("flip") && error.contains("square"), "{error}");
    // Windows lie over units, however small the images are.
    std::fs::write(&model, text.replacen("\"size\": 32", "\"size\": 2", 1)).unwrap();
    assert!(initial_captioner(Path::new(&model), 200, 1).is_ok());
    std::fs::write(&model, text).unwrap();
    let changes = ["--tokenizer", &alone, "--flip", "--unit-shift", "--unit-synonyms", "0.1", "--unit-noise", "0.05"];
    ends(&run(&[&base[..], &given, &changes, &["--device", "cpu"]].concat()), 0);
    let log = std::fs::read_to_string(Path::new(&run_folder).join("log.jsonl")).unwrap();
    let updates = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let losses: Vec<f64> =
        updates.filter(|line| line["update"].is_u64()).filter_map(|line| line["loss"].as_f64()).collect();
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    assert!(mean(&losses[50..60]) < 0.8 * mean(&losses[..5]), "{losses:?}");
    let index = std::fs::read_to_string(Path::new(&run_folder).join("checkpoints.json")).unwrap();
    let index: serde_json::Value = serde_json::from_str(&index).unwrap();
    let last = Path::new(&run_folder).join(index["last"].as_str().unwrap());
    let weights = last.to_str().unwrap();
    let [out, _] =
        ends(&run(&["caption", "--units", &units, "--weights", weights, "--no-audio", "--device", "cpu"]), 0);
    assert_eq!(out.lines().count(), 12);
    // A checkpoint gets the tokenizer and captions images.
    let with = at("with");
    let [ckpt, codes] = ["tokenizer.ckpt", "codebook.ckpt"].map(|name| data(name).to_str().unwrap().to_owned());
    ends(&run(&["convert", weights, "--tokenizer", &ckpt, "--codebook", &codes, "-o", &with]), 0);
    let scene = golden("scenes/scene_0003.jpg");
    let scene = ["caption", scene.to_str().unwrap(), "--weights", &with, "--no-audio", "--device", "cpu"];
    let [alone, _] = ends(&run(&scene), 0);
    assert_eq!(alone.trim(), out.lines().nth(3).unwrap());
}
