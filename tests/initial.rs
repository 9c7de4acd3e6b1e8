//! Weights that training starts from: a model for units comes as it is, a model for text with a new head, and random
//! weights have the distributions they are said to have.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use im2sp::tensor::{DType, HostTensor};
use im2sp::weights::convert::{InitialCaptioner, initial_captioner, random_captioner};
use im2sp::weights::{ConvertOptions, ModelFiles, convert, directory, safetensors, torch};

const WORDS: &str = "git.embeddings.word_embeddings.weight";
const HEAD: [&str; 2] = ["decoder.word_embedding", "decoder.output_bias"];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn initial(path: &Path, units: usize, seed: u64) -> InitialCaptioner {
    let initial = initial_captioner(path, units, seed).unwrap();
    assert!(initial.tensors.values().all(|tensor| tensor.dtype() == DType::F32));
    initial
}

/// The tensors as `convert` gives them.
fn converted(source: &Path) -> BTreeMap<String, Vec<f32>> {
    let folder = tempfile::tempdir().unwrap();
    let options = ConvertOptions {
        source: source.into(),
        vocoder: None,
        vocoder_config: None,
        tokenizer: None,
        codebook: None,
        preprocessor: None,
        dtype: DType::F32,
        quantize: None,
        output: folder.path().join("model"),
        domain: None,
        description: None,
        force: false,
    };
    convert(&options, &mut |_, _| {}).unwrap();
    let captioner = ModelFiles::open_with(&options.output, false).unwrap().captioner;
    captioner.iter().map(|(name, tensor)| (name.to_string(), tensor.to_f32().into_owned())).collect()
}

fn values(tensors: &BTreeMap<String, HostTensor>) -> BTreeMap<String, Vec<f32>> {
    tensors.iter().map(|(name, tensor)| (name.clone(), tensor.to_f32().into_owned())).collect()
}

#[test]
fn a_model_for_units_comes_as_it_is() {
    for (name, units) in [
        ("weights/reference.ckpt", 101),
        ("weights/git", 101),
        ("weights/git_bin", 101),
        ("models/small", 200),
        ("models/wide_decoder", 107),
    ] {
        let model = initial(&golden(name), units, 1);
        assert_eq!(values(&model.tensors), converted(&golden(name)), "{name}");
        assert_eq!((model.config.decoder.vocabulary, &model.config.vocoder), (units + 3, &None));
        assert!(model.fresh.is_empty() && model.left_aside.is_empty(), "{name}");
    }
}

#[test]
fn a_model_for_text_gets_a_new_head() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.ckpt");
    // A tied and an untied one, under the reference's names.
    let stored = safetensors::open(&golden("weights/git/model.safetensors")).unwrap();
    let mut tensors: Vec<(String, HostTensor)> =
        stored.into_iter().map(|(name, tensor)| (format!("model.{name}"), tensor.load().unwrap())).collect();
    let words = tensors.iter().find(|(name, _)| name.ends_with(WORDS)).unwrap().1.clone();
    for output in [words, HostTensor::from_f32(&[104, 8], vec![0.5; 832]).unwrap()] {
        tensors.retain(|(name, _)| name != "model.output.weight");
        tensors.push(("model.output.weight".into(), output));
        torch::save(fs::File::create(&text).unwrap(), "state_dict", &tensors, &mut |_| {}).unwrap();
        // Its heads would be of 64 channels.
        let said = initial_captioner(&text, 200, 1).unwrap_err().to_string();
        assert!(said.contains("num_attention_heads"), "{said}");
    }
    let source = folder.path().join("git");
    fs::create_dir(&source).unwrap();
    fs::copy(golden("weights/git/config.json"), source.join("config.json")).unwrap();
    fs::rename(&text, source.join("pytorch_model.bin")).unwrap();
    let head = ["git.embeddings.word_embeddings.weight", "output.bias"];
    for (path, left_aside) in [
        (source, Vec::from_iter([head[0], head[1], "output.weight"])),
        (golden("weights/git"), head.to_vec()),
        (golden("models/wide_decoder"), Vec::new()),
    ] {
        let model = initial(&path, 200, 1);
        let config = &model.config.decoder;
        assert_eq!(model.fresh, HEAD);
        if !left_aside.is_empty() {
            assert_eq!(model.left_aside, left_aside);
        }
        assert_eq!(config.vocabulary, 203);
        // Everything else is that of the source.
        let other = if path.ends_with("git") { golden("weights/git") } else { path.clone() };
        let (mut found, mut expected) = (values(&model.tensors), converted(&other));
        let [words, bias] = HEAD.map(|name| found.remove(name).unwrap());
        HEAD.iter().for_each(|&name| drop(expected.remove(name)));
        assert_eq!(found, expected, "{path:?}");
        // The head is uniform.
        assert_eq!((words.len(), bias.len()), (203 * config.width, 203));
        let bound = (config.width as f32).powf(-0.5);
        assert_uniform(&words, bound);
        assert_uniform(&bias, bound);
        assert_ne!(words[..203], bias);
        assert_eq!(values(&initial(&path, 200, 1).tensors), values(&model.tensors));
        assert_ne!(values(&initial(&path, 200, 2).tensors)[HEAD[0]], words);
    }
}

#[test]
fn models_that_cannot_begin_are_refused() {
    let said = |path: &Path, units| initial_captioner(path, units, 1).unwrap_err().to_string();
    let small = golden("models/small/config.json");
    assert!(said(&small, 100).contains("decoder.vocabulary: is 203, but 100 units need 103"), "{}", said(&small, 100));
    assert!(said(&golden("weights/git"), 7).contains("decoder.vocabulary"));
    assert!(said(&golden("weights/git"), usize::MAX).contains("decoder.vocabulary"));
    assert!(said(&golden("weights/git/config.json"), 200).contains("im2sp convert DIR"));
    assert!(said(&golden("weights/vocoder/g_old.pt"), 200).contains("captioner"));
    // Neither the head that the units need nor one for other tokens.
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = torch::Checkpoint::open(&golden("weights/reference.ckpt")).unwrap();
    let dicts = checkpoint.dicts().unwrap();
    let tensors = dicts.iter().find(|dict| dict.keys() == ["state_dict"]).unwrap().tensors(|_| true).unwrap();
    let mut tensors: Vec<_> = tensors.into_iter().map(|(name, tensor)| (name, tensor.load())).collect();
    tensors.retain(|(name, _)| !name.ends_with("position_ids"));
    let mut tensors: Vec<_> = tensors.into_iter().map(|(name, tensor)| (name, tensor.unwrap())).collect();
    tensors.retain(|(name, _)| name != "model.output.weight");
    tensors.push(("model.output.weight".into(), HostTensor::from_f32(&[104, 64], vec![0.5; 104 * 64]).unwrap()));
    let untied = folder.path().join("untied.ckpt");
    torch::save(fs::File::create(&untied).unwrap(), "state_dict", &tensors, &mut |_| {}).unwrap();
    assert!(said(&untied, 101).contains("tied"), "{}", said(&untied, 101));
    assert_eq!(initial(&untied, 200, 1).fresh, HEAD);
}

/// Five standard deviations of the mean, and all within the bound and near to it.
#[track_caller]
fn assert_uniform(values: &[f32], bound: f32) {
    let mean = values.iter().sum::<f32>() / values.len() as f32;
    assert!(mean.abs() < 5.0 * bound / (3.0 * values.len() as f32).sqrt(), "mean {mean}");
    let max = values.iter().fold(0.0f32, |max, v| max.max(v.abs()));
    assert!(max <= bound && max > 0.9 * bound, "{max} of {bound}");
}

/// Five standard deviations of the mean and of the variance.
#[track_caller]
fn assert_normal(values: &[f32], deviation: f32) {
    let count = values.len() as f32;
    let mean = values.iter().sum::<f32>() / count / deviation;
    let square = values.iter().map(|v| v * v).sum::<f32>() / count / deviation / deviation;
    assert!(mean.abs() < 5.0 / count.sqrt() && (square - 1.0).abs() < 5.0 * (2.0 / count).sqrt(), "{mean} {square}");
}

#[test]
fn random_weights_have_their_distributions() {
    let path = golden("models/wide_vision/config.json");
    let config = directory::parse_config(&path, &fs::read_to_string(&path).unwrap()).unwrap();
    let tensors = random_captioner(&config, 3).unwrap();
    let stored = ModelFiles::open(&golden("models/wide_vision")).unwrap().captioner;
    let shapes = |tensors: &mut dyn Iterator<Item = (&str, &HostTensor)>| -> Vec<_> {
        tensors.map(|(name, tensor)| (name.to_string(), tensor.shape().to_vec())).collect()
    };
    assert_eq!(shapes(&mut tensors.iter().map(|(name, t)| (name.as_str(), t))), shapes(&mut stored.iter()));
    assert_eq!(values(&initial(&path, 200, 3).tensors), values(&tensors));
    for (name, tensor) in &tensors {
        let (values, columns) = (tensor.to_f32(), tensor.shape()[1..].iter().product::<usize>() as f32);
        match name.as_str() {
            "vision.position_embedding" => {}
            "vision.patch_embedding.weight" => assert_uniform(&values, columns.powf(-0.5)),
            name if name.ends_with("embedding") => assert_normal(&values, 0.02),
            name if name.ends_with("bias") => assert!(values.iter().all(|&v| v == 0.0), "{name}"),
            name if name.contains("norm") => assert!(values.iter().all(|&v| v == 1.0), "{name}"),
            _ => assert_normal(&values, columns.powf(-0.5)),
        }
    }
    // Positions without their waves: grid of 3 x 3, 128 channels, waves of 1 to 8 half turns.
    let mut positions = tensors["vision.position_embedding"].to_f32().into_owned();
    for row in 0..3 {
        for column in 0..3 {
            let position = &mut positions[(1 + 3 * row + column) * 128..][..128];
            for k in 1..=8usize {
                for (at, first) in [(row, 0), (column, 16)] {
                    let angle = std::f32::consts::PI * (k * at) as f32 / 3.0;
                    position[first + 2 * k - 2] -= 1.5 * angle.sin();
                    position[first + 2 * k - 1] -= 1.5 * angle.cos();
                }
            }
        }
    }
    assert_normal(&positions, 0.02);
    assert_ne!(tensors["decoder.layers.0.fc1.weight"].bytes()[..], tensors["decoder.layers.1.fc1.weight"].bytes()[..]);
}
