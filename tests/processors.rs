//! Hugging Face image processors: the pixels are exactly those of the same processor in transformers, and what is not
//! done is refused by name. The golden data comes from recipes/golden/weights.py.

use std::fs;
use std::path::{Path, PathBuf};

use im2sp::Image;
use im2sp::config::{Filter, ImageConfig, Resize};
use im2sp::weights::TensorStore;
use im2sp::weights::convert::image_config;
use im2sp::weights::json::Json;
use proptest::prelude::*;
use serde_json::{Value, json};

/// Side of the squares.
const SIZE: usize = 10;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/weights").join(name)
}

fn config_of(processor: &Value) -> Result<ImageConfig, String> {
    let json = Json::parse(Path::new("preprocessor_config.json"), &processor.to_string()).unwrap();
    image_config(&json, SIZE).map_err(|error| error.to_string())
}

fn processors() -> serde_json::Map<String, Value> {
    serde_json::from_str(&fs::read_to_string(golden("processors.json")).unwrap()).unwrap()
}

#[test]
fn pixels_are_exactly_those_of_transformers() {
    let mut pixels = TensorStore::open(&golden("processors.safetensors")).unwrap();
    let images = [("wide", 43, 23), ("tall", 14, 31)].map(|(shape, width, height)| {
        let rgb = pixels.take(&format!("picture/{shape}"), &[height, width, 3]).unwrap();
        let rgb = rgb.to_f32().iter().map(|&value| value as u8).collect();
        (shape, Image::from_rgb(width, height, rgb).unwrap())
    });
    for (name, processor) in processors() {
        let config = config_of(&processor).unwrap_or_else(|error| panic!("{name}: {error}"));
        for (shape, image) in &images {
            let expected = pixels.take(&format!("{name}/{shape}"), &[3, SIZE, SIZE]).unwrap();
            assert_eq!(image.preprocess(&config), *expected.to_f32(), "{name}, {shape}");
        }
        // Through a model's config.json, and inside of transformers 5's processor_config.json.
        let written = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<ImageConfig>(&written).unwrap(), config, "{name}");
        let nested = json!({"image_processor": processor, "processor_class": "GitProcessor"});
        assert_eq!(config_of(&nested).unwrap(), config, "{name}");
    }
    pixels.finish().unwrap();
}

#[test]
fn a_plain_clip_processor_is_written_as_before() {
    let written = serde_json::to_value(config_of(&processors()["clip"]).unwrap()).unwrap();
    let names: Vec<&String> = written.as_object().unwrap().keys().collect();
    assert_eq!(names, ["mean", "size", "std"]);
    let old: ImageConfig = serde_json::from_value(json!({"size": 4, "mean": [0, 0, 0], "std": [1, 1, 1]})).unwrap();
    assert_eq!((old.resize, old.resized(), old.filter), (Resize::ShortSide, 4, Filter::Bicubic));
    assert_eq!(old.scale, 1.0 / 255.0);
    assert_eq!(config_of(&json!({})).unwrap(), ImageConfig::clip(SIZE));
}

/// The defaults of transformers' classes, as their source says them.
#[test]
fn a_class_without_a_size_has_its_own() {
    let config = |class: &str, size: usize| {
        let text = json!({"image_processor_type": format!("{class}ImageProcessor")}).to_string();
        let json = Json::parse(Path::new("preprocessor_config.json"), &text).unwrap();
        let config = image_config(&json, size).map_err(|error| error.to_string())?;
        Ok::<_, String>((config.resize, config.resized()))
    };
    for (class, size, resize, side) in [
        ("CLIP", 224, Resize::ShortSide, 224),
        ("Blip", 384, Resize::Square, 384),
        ("ViT", 224, Resize::Square, 224),
        ("DeiT", 224, Resize::Square, 256),
        ("Siglip", 224, Resize::Square, 224),
        ("VideoMAE", 224, Resize::ShortSide, 224),
    ] {
        assert_eq!(config(class, size), Ok((resize, side)), "{class}");
        let problem = config(class, 480).unwrap_err();
        assert!(problem.contains(&format!("size: is not set, which means {side}")), "{class}: {problem}");
    }
}

#[test]
fn what_is_not_done_is_refused_by_name() {
    let clip = processors()["clip"].clone();
    let square = json!({"height": SIZE, "width": SIZE});
    for (field, value) in [
        ("do_resize", json!(false)),
        ("do_resize", json!(null)),
        ("do_center_crop", json!(false)),
        ("size", json!({"longest_edge": SIZE})),
        ("size", json!({"shortest_edge": SIZE, "longest_edge": 2 * SIZE})),
        ("size", json!({"height": SIZE, "width": 2 * SIZE})),
        ("size", json!({"max_height": SIZE, "max_width": SIZE})),
        ("size", json!({"shortest_edge": SIZE - 1})),
        ("size", json!([SIZE])),
        ("size", json!(0)),
        ("size", json!(null)),
        ("crop_size", json!(SIZE + 1)),
        ("crop_size", json!({"height": SIZE, "width": SIZE + 1})),
        ("resample", json!(6)),
        ("resample", json!(null)),
        ("resample", json!("bicubic")),
        ("rescale_factor", json!(0)),
        ("rescale_factor", json!(null)),
        ("image_mean", json!([0.5, 0.5])),
        ("image_mean", json!(null)),
        ("image_std", json!("0.5")),
        ("do_thumbnail", json!(true)),
        ("do_align_long_axis", json!(true)),
        ("rescale_offset", json!(true)),
        ("pad_size", square),
        ("image_processor_type", json!("ConvNextImageProcessor")),
        ("image_processor_type", json!(3)),
        ("do_normalize", json!("yes")),
    ] {
        let mut changed = clip.clone();
        changed[field] = value.clone();
        let said = config_of(&changed).expect_err(&format!("{field}: {value}"));
        assert!(said.starts_with(&format!("preprocessor_config.json: {field}: ")), "{field} {value}: {said}");
    }
    let said = config_of(&json!({"image_processor": {"do_resize": false}})).unwrap_err();
    assert!(said.starts_with("preprocessor_config.json: image_processor.do_resize: "), "{said}");
    // Steps that are not taken need no values.
    let mut changed = clip;
    changed["do_rescale"] = json!(false);
    changed["rescale_factor"] = json!(null);
    changed["do_normalize"] = json!(false);
    changed["image_mean"] = json!(null);
    let config = config_of(&changed).unwrap();
    assert_eq!((config.scale, config.mean, config.std), (1.0, [0.0; 3], [1.0; 3]));
}

#[test]
fn python_writes_numbers_that_json_has_not() {
    let parse = |text: &str| Json::parse(Path::new("config.json"), text).map_err(|error| error.to_string());
    let json =
        parse("\u{feff}{\"a\": NaN, \"b\": [-Infinity, Infinity], \"c\": \"NaN \\\" Infinity é\", \"d\": 1e-12}")
            .unwrap();
    assert_eq!(json.value("c"), Some(&json!("NaN \" Infinity é")));
    assert_eq!(json.value("b"), Some(&json!([null, null])));
    assert_eq!(json.get::<f32>("d").unwrap(), Some(1e-12));
    let said = json.get::<f32>("a").unwrap_err().to_string();
    assert!(said.starts_with("config.json: a: is null, NaN or infinite"), "{said}");
    assert!(parse("[1]").unwrap_err().contains("not an object"));
    for (text, words) in [
        ("{\"a\": 1,\n // best\n \"b\": 2}", "line 2"),
        ("{\"a\": Na}", "not valid JSON"),
        ("{\"\\", "not valid JSON"),
        ("", "not valid JSON"),
        ("<!DOCTYPE html><title>404</title>", "web page"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ] {
        let said = parse(text).unwrap_err();
        assert!(said.starts_with("config.json: ") && said.contains(words), "{text}: {said}");
    }
}

/// Parts of configurations, whole and broken.
const PARTS: [&str; 24] = [
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\"",
    "\\",
    "NaN",
    "-Infinity",
    "Infinity",
    "null",
    "true",
    "false",
    "1e999",
    "-0",
    "16",
    "\"size\":",
    "\"height\":",
    "\"do_resize\":",
    "\"image_mean\":",
    "\"image_processor\":",
    "é",
    "\u{feff}",
];

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn no_configuration_is_a_reason_to_panic(parts in prop::collection::vec(0..PARTS.len(), 0..20), whole in any::<bool>()) {
        let mut text: String = parts.into_iter().map(|part| PARTS[part]).collect();
        if whole {
            text = format!("{{{text}}}");
        }
        if let Ok(json) = Json::parse(Path::new("config.json"), &text) {
            let _ = image_config(&json, SIZE);
            let _ = im2sp::weights::convert::vocoder_config(&json);
        }
        let _ = im2sp::weights::directory::parse_config(Path::new("config.json"), &text);
    }

    #[test]
    fn any_field_of_a_processor_may_hold_anything(field in 0..14usize, value in 0..PARTS.len()) {
        let clip = processors()["clip"].clone();
        let names: Vec<&String> = clip.as_object().unwrap().keys().collect();
        let mut changed = clip.clone();
        let value = serde_json::from_str(PARTS[value]).unwrap_or(json!({"height": [1], "width": {}}));
        changed[names[field % names.len()]] = value;
        if let Err(said) = config_of(&changed) {
            prop_assert!(said.starts_with(&format!("preprocessor_config.json: {}", names[field % names.len()])) , "{said}");
        }
    }
}
