//! `convert` gives, for every published layout, exactly the tensors PyTorch saved, and refuses what is not a model.
//! The checkpoints come from recipes/golden/weights.py.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use im2sp::tensor::{DType, HostTensor};
use im2sp::weights::safetensors::{self, Entry, Writer};
use im2sp::weights::{ConvertOptions, ModelFiles, TensorStore, convert};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/weights").join(name)
}

fn options(source: &Path, output: &Path) -> ConvertOptions {
    ConvertOptions {
        quantize: None,
        source: source.to_owned(),
        vocoder: None,
        vocoder_config: None,
        tokenizer: None,
        codebook: None,
        preprocessor: None,
        dtype: DType::F32,
        output: output.to_owned(),
        domain: None,
        description: Some("a test".into()),
        force: false,
    }
}

/// Element `index` of the sequence `seed`, as in the recipe.
fn value(seed: &str, index: u64) -> f32 {
    let state = seed.bytes().fold(0x811C_9DC5u32, |state, byte| (state ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let mixed = u64::from(state).wrapping_add(index.wrapping_mul(2_654_435_761)) as u32;
    ((mixed >> 25) as f32 - 64.0) / 64.0
}

/// The expected tensors of `layout`: name, shape, values.
fn expected(layout: &str) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let text = fs::read_to_string(golden("expected.json")).unwrap();
    let all: serde_json::Value = serde_json::from_str(&text).unwrap();
    let number = |value: &serde_json::Value| value.as_u64().unwrap();
    let tensors = all[layout].as_object().unwrap().iter().map(|(name, tensor)| {
        let shape: Vec<usize> = tensor["shape"].as_array().unwrap().iter().map(|n| number(n) as usize).collect();
        let mut values = Vec::new();
        for part in tensor["parts"].as_array().unwrap() {
            let (seed, start, count) = (part["seed"].as_str().unwrap(), number(&part["start"]), number(&part["count"]));
            // A tensor stored transposed: element (r, c) of R rows is element c R + r of the sequence.
            let (rows, columns) = match part.get("transposed").map(number) {
                Some(rows) => (rows, count / rows),
                None => (1, 1),
            };
            let place = |i| if rows == 1 { i } else { i % columns * rows + i / columns };
            values.extend((0..count).map(|i| value(seed, start + place(i))));
        }
        (name.clone(), shape, values)
    });
    tensors.collect()
}

fn assert_captioner(mut store: TensorStore, layout: &str) {
    for (name, shape, values) in expected(layout) {
        let tensor = store.take(&name, &shape).unwrap();
        assert_eq!(*tensor.to_f32(), values, "{name}");
    }
    store.finish().unwrap();
}

#[test]
fn every_captioner_layout_converts() {
    let folder = tempfile::tempdir().unwrap();
    for (source, layout, dtype) in [
        ("reference.ckpt", "reference", DType::F32),
        ("reference.ckpt", "reference", DType::BF16),
        ("reference_legacy.ckpt", "reference", DType::F32),
        ("git", "git", DType::F32),
        ("git_bin", "git", DType::BF16),
    ] {
        let output = folder.path().join(format!("{source}-{dtype:?}"));
        let mut last = (0, 1);
        let options = ConvertOptions { dtype, ..options(&golden(source), &output) };
        let report = convert(&options, &mut |done, total| last = (done, total)).unwrap();
        assert_eq!(last, (report.bytes, report.bytes));
        let files = ModelFiles::open(&output).unwrap();
        assert_eq!(files.config, report.config);
        for (name, tensor) in files.captioner.iter() {
            let wanted = if name.contains("norm") { DType::F32 } else { dtype };
            assert_eq!(tensor.dtype(), wanted, "{name}");
        }
        assert_captioner(files.captioner, layout);
    }
}

#[test]
fn decoder_matrices_become_codes() {
    let folder = tempfile::tempdir().unwrap();
    for coded in [DType::I8, DType::F8E4M3] {
        let output = folder.path().join(coded.name());
        let options = ConvertOptions { quantize: Some(coded), ..options(&golden("git"), &output) };
        convert(&options, &mut |_, _| {}).unwrap();
        let mut store = ModelFiles::open(&output).unwrap().captioner;
        let names: Vec<String> = store.iter().map(|(name, _)| name.to_string()).collect();
        assert!(names.iter().any(|name| name == "decoder.layers.0.fc1.weight_scale"));
        for (name, shape, values) in expected("git") {
            let decoded = name.starts_with("decoder.layers.") && shape.len() == 2;
            assert_eq!(names.contains(&format!("{name}_scale")), decoded, "{name}");
            let tensor = store.take(&name, &shape).unwrap();
            let stored = tensor.quantized().map_or(tensor.dtype(), |quantized| quantized.codes.dtype());
            assert_eq!(stored, if decoded { coded } else { DType::F32 }, "{name}");
            let half_a_step = if coded == DType::I8 { 1.0 / 253.9 } else { 1.0 / 16.0 };
            let columns = shape[1..].iter().product();
            for (row, wanted) in tensor.to_f32().chunks(columns).zip(values.chunks(columns)) {
                let max = wanted.iter().fold(0.0f32, |max, v| max.max(v.abs()));
                let error = row.iter().zip(wanted).fold(0.0f32, |max, (a, b)| max.max((a - b).abs()));
                assert!(error <= if decoded { max * half_a_step } else { 0.0 }, "{name}: {error} of {max}");
            }
            if decoded && coded == DType::F8E4M3 {
                assert_eq!(tensor.to_dtype(DType::BF16).to_f32(), tensor.to_f32(), "{name} is exact in bf16");
            }
        }
        store.finish().unwrap();
        let again = ConvertOptions { quantize: Some(DType::BF16), ..options };
        assert!(convert(&again, &mut |_, _| {}).unwrap_err().to_string().contains("quantize"));
    }
}

#[test]
fn dimensions_come_from_shapes_and_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let reference = convert(&options(&golden("reference.ckpt"), &folder.path().join("a")), &mut |_, _| {}).unwrap();
    let (vision, decoder) = (&reference.config.vision, &reference.config.decoder);
    assert_eq!((vision.patch, vision.width, vision.layers, vision.heads, vision.mlp), (2, 64, 1, 1, 4));
    assert_eq!((decoder.vocabulary, decoder.max_positions, decoder.heads, decoder.mlp), (104, 6, 1, 4));
    assert_eq!((vision.eps, decoder.eps), (1e-5, 1e-12));
    assert_eq!(reference.config.image.size, 4);
    assert_eq!(reference.config.image.mean, [0.48145466, 0.4578275, 0.40821073]);
    let git = convert(&options(&golden("git_bin"), &folder.path().join("b")), &mut |_, _| {}).unwrap();
    assert_eq!((git.config.vision.heads, git.config.decoder.heads), (2, 4));
    assert_eq!(git.config.image.mean, [0.5, 0.25, 0.125]);
    assert_eq!(git.config.image.std, [0.5, 0.75, 1.0]);
}

#[test]
fn weight_norm_is_folded_in_both_spellings() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["g_old.pt", "g_new.pt"] {
        let output = folder.path().join(name);
        let vocoder = Some(golden("vocoder").join(name));
        let report =
            convert(&ConvertOptions { vocoder, ..options(&golden("reference.ckpt"), &output) }, &mut |_, _| {});
        let config = report.unwrap().config.vocoder.unwrap();
        assert_eq!((config.num_speakers, config.f0_bins, config.hop()), (Some(3), None, 4));
        let mut store = ModelFiles::open(&output).unwrap().vocoder.unwrap();
        let expected = TensorStore::open(&golden("vocoder/expected.safetensors")).unwrap();
        for (name, tensor) in expected.iter() {
            let found = store.take(name, tensor.shape()).unwrap();
            for (found, expected) in found.to_f32().iter().zip(&*tensor.to_f32()) {
                // Division, product and PyTorch's f32 norm each round once; the norm is a sum of at most 56 squares.
                assert!((found - expected).abs() <= 4.0 * f32::EPSILON * expected.abs(), "{name}: {found} {expected}");
            }
        }
        store.finish().unwrap();
    }
}

#[test]
fn an_existing_model_is_replaced_only_when_asked() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("deep/er/model");
    let first = options(&golden("reference.ckpt"), &output);
    convert(&first, &mut |_, _| {}).unwrap();
    let second = options(&golden("git"), &output);
    let problem = convert(&second, &mut |_, _| {}).unwrap_err().to_string();
    assert!(problem.contains("--force"), "{problem}");
    convert(&ConvertOptions { force: true, ..second.clone() }, &mut |_, _| {}).unwrap();
    assert_captioner(ModelFiles::open(&output).unwrap().captioner, "git");
    fs::write(output.join("thesis.tex"), "years of work").unwrap();
    let problem = convert(&ConvertOptions { force: true, ..second }, &mut |_, _| {}).unwrap_err().to_string();
    assert!(problem.contains("thesis.tex"), "{problem}");
    assert_eq!(fs::read_dir(output.parent().unwrap()).unwrap().count(), 1, "something temporary was left");
}

/// A copy of the Hugging Face directory with `change` applied to its tensors, converted.
fn convert_changed(change: impl FnOnce(&mut BTreeMap<String, HostTensor>)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::copy(golden("git/config.json"), source.join("config.json")).unwrap();
    let stored = safetensors::open(&golden("git/model.safetensors")).unwrap();
    let mut tensors = stored.into_iter().map(|(name, tensor)| (name, tensor.load().unwrap())).collect();
    change(&mut tensors);
    let entry = |(name, tensor): (&String, &HostTensor)| Entry {
        name: name.clone(),
        shape: tensor.shape().to_vec(),
        dtype: tensor.dtype(),
    };
    let mut writer = Writer::create(&source.join("model.safetensors"), tensors.iter().map(entry).collect()).unwrap();
    for (name, tensor) in &tensors {
        writer.write(name, tensor).unwrap();
    }
    writer.finish().unwrap();
    let output = folder.path().join("output");
    let result = convert(&options(&source, &output), &mut |_, _| {});
    assert_eq!(output.exists(), result.is_ok());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1 + usize::from(result.is_ok()), "something was left");
    result.map_or_else(|error| error.to_string(), |_| String::new())
}

#[test]
fn shards_are_put_together() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::copy(golden("git/config.json"), source.join("config.json")).unwrap();
    let stored = safetensors::open(&golden("git/model.safetensors")).unwrap();
    let mut map = serde_json::Map::new();
    for (index, half) in stored.chunks(stored.len().div_ceil(2)).enumerate() {
        let file = format!("model-{index}.safetensors");
        let tensors: Vec<_> = half.iter().map(|(name, tensor)| (name, tensor.load().unwrap())).collect();
        let entry = |(name, tensor): &(&String, HostTensor)| Entry {
            name: name.to_string(),
            shape: tensor.shape().to_vec(),
            dtype: tensor.dtype(),
        };
        let mut writer = Writer::create(&source.join(&file), tensors.iter().map(entry).collect()).unwrap();
        for (name, tensor) in &tensors {
            writer.write(name, tensor).unwrap();
            map.insert(name.to_string(), file.clone().into());
        }
        writer.finish().unwrap();
    }
    let index = source.join("model.safetensors.index.json");
    fs::write(&index, serde_json::json!({ "weight_map": map }).to_string()).unwrap();
    let output = folder.path().join("output");
    convert(&options(&source, &output), &mut |_, _| {}).unwrap();
    assert_captioner(ModelFiles::open(&output).unwrap().captioner, "git");
    map.insert("x".into(), "../../etc/passwd".into());
    fs::write(&index, serde_json::json!({ "weight_map": map }).to_string()).unwrap();
    let said = convert(&options(&source, &folder.path().join("b")), &mut |_, _| {}).unwrap_err().to_string();
    assert!(said.contains("not a file of this directory"), "{said}");
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    assert_eq!(convert_changed(|_| {}), "");
    let bias = "git.encoder.layer.0.output.dense.bias";
    let said = convert_changed(|tensors| drop(tensors.remove(bias)));
    assert!(said.contains(bias) && said.contains("is missing") && said.contains("[8]"), "{said}");
    let said = convert_changed(|tensors| {
        tensors.insert(bias.into(), HostTensor::from_f32(&[9], vec![0.0; 9]).unwrap());
    });
    assert!(said.contains(bias) && said.contains("[9]") && said.contains("[8]"), "{said}");
    let said = convert_changed(|tensors| {
        tensors.insert("git.encoder.surprise".into(), HostTensor::from_f32(&[1], vec![0.0]).unwrap());
    });
    assert!(said.contains("git.encoder.surprise") && said.contains("not part"), "{said}");
    for bad in [f32::NAN, f32::INFINITY] {
        let said = convert_changed(|tensors| {
            tensors.insert(bias.into(), HostTensor::from_f32(&[8], vec![0., 0., bad, 0., 0., 0., 0., 0.]).unwrap());
        });
        assert!(said.contains(bias) && said.contains("NaN or infinity"), "{said}");
    }
    let words = "git.embeddings.word_embeddings.weight";
    let said = convert_changed(|tensors| {
        tensors.insert("output.weight".into(), tensors[words].clone());
    });
    assert_eq!(said, "");
    let said = convert_changed(|tensors| {
        let mut other = tensors[words].to_f32().into_owned();
        other[5] += 1.0;
        tensors.insert("output.weight".into(), HostTensor::from_f32(&[104, 8], other).unwrap());
    });
    assert!(said.contains("output.weight") && said.contains("tied"), "{said}");
    let said = convert_changed(|tensors| {
        let stem = "git.image_encoder.vision_model.patch_embed.proj.weight";
        tensors.insert(stem.into(), HostTensor::from_f32(&[1], vec![0.0]).unwrap());
    });
    assert!(said.contains("codebook: is needed for image units"), "{said}");
}

#[test]
fn configurations_that_cannot_be_spoken_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let published: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(golden("vocoder/config.json")).unwrap()).unwrap();
    for (field, value) in [
        ("embedder_params", serde_json::json!({"dim": 256})),
        ("f0_quant_num_bin", serde_json::json!(0)),
        ("code_hop_size", serde_json::json!(5)),
        ("resblock", serde_json::json!("2")),
        ("upsample_rates", serde_json::json!([])),
        ("num_embeddings", serde_json::json!(50)),
    ] {
        let mut changed = published.clone();
        changed[field] = value;
        changed["f0"] = (field == "f0_quant_num_bin").into();
        let config = folder.path().join("config.json");
        fs::write(&config, changed.to_string()).unwrap();
        let with_vocoder = ConvertOptions {
            vocoder: Some(golden("vocoder/g_old.pt")),
            vocoder_config: Some(config),
            ..options(&golden("reference.ckpt"), &folder.path().join("output"))
        };
        let said = convert(&with_vocoder, &mut |_, _| {}).unwrap_err().to_string();
        let named = match field {
            "upsample_rates" => "upsample_kernel_sizes",
            "num_embeddings" => "dict.weight",
            field => field,
        };
        assert!(said.contains(named), "{field}: {said}");
    }
}

#[test]
fn a_written_model_reads_back_and_an_embedded_one_too() {
    let folder = tempfile::tempdir().unwrap();
    let first = folder.path().join("first");
    let vocoder = Some(golden("vocoder/g_old.pt"));
    convert(&ConvertOptions { vocoder, ..options(&golden("git"), &first) }, &mut |_, _| {}).unwrap();
    let files = ModelFiles::open(&first).unwrap();
    let all = |store: &TensorStore| store.iter().map(|(n, t)| (n.to_string(), t.clone())).collect::<BTreeMap<_, _>>();
    let (captioner, vocoder) = (all(&files.captioner), all(files.vocoder.as_ref().unwrap()));
    let second = folder.path().join("second");
    ModelFiles::write(&second, &files.config, &captioner, Some(&vocoder), false).unwrap();
    assert!(ModelFiles::write(&second, &files.config, &captioner, None, true).is_err());
    let leak = |name: &str| -> &'static [u8] { fs::read(second.join(name)).unwrap().leak() };
    let text = fs::read_to_string(second.join("config.json")).unwrap();
    let embedded = ModelFiles::from_bytes(&text, leak("captioner.safetensors"), leak("vocoder.safetensors")).unwrap();
    assert_eq!(embedded.config, files.config);
    assert_captioner(embedded.captioner, "git");
    for (name, tensor) in ModelFiles::open(&second).unwrap().vocoder.unwrap().iter() {
        assert_eq!(tensor.to_f32(), vocoder[name].to_f32(), "{name}");
    }
    let wrong = text.replace("\"im2sp-1\"", "\"im2sp-9\"");
    assert!(ModelFiles::from_bytes(&wrong, b"", b"").unwrap_err().to_string().contains("convert again"));
    fs::remove_file(second.join("vocoder.safetensors")).unwrap();
    assert!(ModelFiles::open(&second).unwrap_err().to_string().contains("vocoder.safetensors"));
    fs::copy(golden("git/config.json"), second.join("config.json")).unwrap();
    assert!(ModelFiles::open(&second).unwrap_err().to_string().contains("config.json"));
}

/// Copies the golden Hugging Face directory to `folder` with `change` applied to its config.json.
fn copy_git(folder: &Path, change: impl FnOnce(&mut serde_json::Value)) {
    fs::create_dir_all(folder).unwrap();
    fs::copy(golden("git/model.safetensors"), folder.join("model.safetensors")).unwrap();
    let mut config = serde_json::from_str(&fs::read_to_string(golden("git/config.json")).unwrap()).unwrap();
    change(&mut config);
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

/// Converts `source`; the report, or the error.
fn converted(source: &Path) -> Result<im2sp::weights::ConvertReport, String> {
    let output = tempfile::tempdir().unwrap();
    let options = options(source, &output.path().join("model"));
    convert(&options, &mut |_, _| {}).map_err(|error| error.to_string())
}

#[test]
fn other_tokens_at_the_ends_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("git");
    let generation = source.join("generation_config.json");
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    for (field, value, fits) in [
        ("bos_token_id", "101", true),
        ("bos_token_id", "5", false),
        ("eos_token_id", "102", true),
        ("eos_token_id", "[102]", true),
        ("eos_token_id", "32", false),
        ("eos_token_id", "[102, 32]", false),
        ("eos_token_id", "[]", false),
        ("eos_token_id", "null", false),
        ("forced_bos_token_id", "null", true),
        ("forced_bos_token_id", "7", false),
        ("suppress_tokens", "[3]", false),
        ("suppress_tokens", "[]", true),
        ("bad_words_ids", "[[3]]", false),
        ("repetition_penalty", "1.2", false),
        ("repetition_penalty", "1.0", true),
        ("repetition_penalty", "null", true),
        ("no_repeat_ngram_size", "3", false),
        ("min_length", "0", true),
        ("min_length", "5", false),
        ("num_beams", "4", true),
        ("max_length", "20", true),
    ] {
        let check = |file: &str| match converted(&source) {
            Ok(_) => assert!(fits, "{field}: {value}"),
            Err(said) => assert!(!fits && said.contains(&format!("{file}: {field}: is ")), "{said}"),
        };
        copy_git(&source, |config| config[field] = json(value));
        let _ = fs::remove_file(&generation);
        check("git/config.json");
        // Where there is a generation_config.json, transformers 5 looks nowhere else.
        fs::write(&generation, "{\"bos_token_id\": 101, \"eos_token_id\": 102}").unwrap();
        assert!(converted(&source).is_ok(), "{field}: {value}");
        copy_git(&source, |_| {});
        fs::write(&generation, serde_json::json!({ field: json(value) }).to_string()).unwrap();
        check("git/generation_config.json");
    }
}

#[test]
fn a_model_for_videos_describes_one_image() {
    let folder = tempfile::tempdir().unwrap();
    for spelling in ["temporal", "temperal"] {
        let source = folder.path().join(spelling);
        copy_git(&source, |config| config["num_image_with_embedding"] = 6.into());
        let stored = safetensors::open(&golden("git/model.safetensors")).unwrap();
        let mut tensors: Vec<_> = stored.into_iter().map(|(name, tensor)| (name, tensor.load().unwrap())).collect();
        let frame = |n| (format!("git.img_{spelling}_embedding.{n}"), HostTensor::from_f32(&[1, 1, 8], vec![1.0; 8]));
        tensors.extend((0..6).map(frame).map(|(name, tensor)| (name, tensor.unwrap())));
        let entry = |(name, tensor): &(String, HostTensor)| Entry {
            name: name.clone(),
            shape: tensor.shape().to_vec(),
            dtype: tensor.dtype(),
        };
        let mut writer =
            Writer::create(&source.join("model.safetensors"), tensors.iter().map(entry).collect()).unwrap();
        tensors.iter().for_each(|(name, tensor)| writer.write(name, tensor).unwrap());
        writer.finish().unwrap();
        let output = folder.path().join("model");
        let options = ConvertOptions { force: true, ..options(&source, &output) };
        let report = convert(&options, &mut |_, _| {}).unwrap();
        assert_eq!(report.left_aside, (0..6).map(|n| frame(n).0).collect::<Vec<_>>());
        assert_captioner(ModelFiles::open(&output).unwrap().captioner, "git");
    }
}

#[test]
fn configurations_are_read_as_python_writes_them() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("git");
    copy_git(&source, |_| {});
    let path = source.join("config.json");
    let plain = fs::read_to_string(&path).unwrap();
    let with = |field: &str, value: &str| format!("\u{feff}{{\"{field}\": {value}, {}", plain.trim_start_matches('{'));
    for value in ["NaN", "Infinity", "-Infinity"] {
        fs::write(&path, with("initializer_factor", value)).unwrap();
        assert!(converted(&source).is_ok(), "{value}");
        let used = plain.replace("\"layer_norm_eps\":1e-12", &format!("\"layer_norm_eps\":{value}"));
        assert_ne!(used, plain);
        fs::write(&path, used).unwrap();
        let said = converted(&source).unwrap_err();
        assert!(said.contains("config.json: layer_norm_eps: is null, NaN or infinite"), "{said}");
    }
    for (field, value, words) in [
        ("vision_config", "3", "vision_config: is no object"),
        ("hidden_size", "\"many\"", "hidden_size: invalid type"),
        ("hidden_act", "\"gelu_new\"", "hidden_act: is \"gelu_new\""),
    ] {
        copy_git(&source, |config| config[field] = serde_json::from_str(value).unwrap());
        let said = converted(&source).unwrap_err();
        assert!(said.contains(&format!("config.json: {words}")), "{said}");
    }
    // The vocoder's: no durations where their parameters are empty.
    let vocoder = folder.path().join("g.pt");
    fs::copy(golden("vocoder/g_old.pt"), &vocoder).unwrap();
    let published = fs::read_to_string(golden("vocoder/config.json")).unwrap();
    for empty in ["{}", "null", "false"] {
        let mut changed: serde_json::Value = serde_json::from_str(&published).unwrap();
        changed["dur_predictor_params"] = serde_json::from_str(empty).unwrap();
        let changed = changed.to_string().replacen('{', "{\"fmax\": Infinity, ", 1);
        fs::write(folder.path().join("config.json"), changed).unwrap();
        let output = folder.path().join("model");
        let plain = ConvertOptions { force: true, ..options(&golden("reference.ckpt"), &output) };
        let options = ConvertOptions { vocoder: Some(vocoder.clone()), ..plain };
        let said = convert(&options, &mut |_, _| {}).unwrap_err().to_string();
        assert!(said.contains("g.pt: dur_predictor.") && said.contains("not part of any model"), "{said}");
    }
}

#[test]
fn an_image_processor_is_found_where_transformers_looks() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("git");
    copy_git(&source, |_| {});
    let mean = |source: &Path| converted(source).map(|report| report.config.image.mean[0]);
    let write = |name: &str, text: &str| fs::write(source.join(name), text).unwrap();
    assert_eq!(mean(&source), Ok(0.48145466));
    write("preprocessor_config.json", r#"{"image_mean": [0.25, 0.5, 0.5]}"#);
    assert_eq!(mean(&source), Ok(0.25));
    write("processor_config.json", r#"{"processor_class": "GitProcessor"}"#);
    assert_eq!(mean(&source), Ok(0.25));
    write("processor_config.json", r#"{"image_processor": {"image_mean": 0.75}}"#);
    assert_eq!(mean(&source), Ok(0.75));
    // A weights file of the directory comes with the rest of it.
    let whole = converted(&source).unwrap().config;
    fs::rename(source.join("model.safetensors"), source.join("model.fp16.safetensors")).unwrap();
    assert_eq!(converted(&source.join("model.fp16.safetensors")).unwrap().config, whole);
    let said = mean(&source).unwrap_err();
    assert!(said.contains("give the weights file itself"), "{said}");
    write("adapter_config.json", "{}");
    assert!(mean(&source).unwrap_err().contains("LoRA"));
}

#[test]
fn files_that_are_something_else_are_named() {
    const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1626000000\n";
    const PAGE: &str = "<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head></html>";
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("config.json"), fs::read_to_string(golden("vocoder/config.json")).unwrap()).unwrap();
    let vocoder = |path: PathBuf| {
        let plain = options(&golden("reference.ckpt"), &at("model"));
        convert(&ConvertOptions { vocoder: Some(path), ..plain }, &mut |_, _| {}).unwrap_err().to_string()
    };
    for (content, words) in [(POINTER, "git lfs pull"), (PAGE, "Google Drive")] {
        fs::write(at("a.ckpt"), content).unwrap();
        let said = converted(&at("a.ckpt")).unwrap_err();
        assert!(said.contains("a.ckpt") && said.contains(words), "{said}");
        let said = vocoder(at("a.ckpt"));
        assert!(said.contains("a.ckpt") && said.contains(words), "{said}");
        for name in ["model.safetensors", "config.json"] {
            let source = at("git");
            copy_git(&source, |_| {});
            fs::write(source.join(name), content).unwrap();
            let said = converted(&source).unwrap_err();
            assert!(said.contains(name) && said.contains(words), "{said}");
            let said = ModelFiles::open(&source).unwrap_err().to_string();
            assert!(name != "config.json" || said.contains(words), "{said}");
        }
    }
    let said = vocoder(at("missing.pt"));
    assert!(said.contains("cannot read") && said.contains("missing.pt"), "{said}");
    let said = vocoder(folder.path().to_owned());
    assert!(said.contains("is a folder") && said.contains("checkpoint"), "{said}");
    fs::remove_file(at("config.json")).unwrap();
    fs::copy(golden("vocoder/g_old.pt"), at("g.pt")).unwrap();
    let said = vocoder(at("g.pt"));
    assert!(said.contains("config.json") && said.contains("--vocoder-config"), "{said}");
    let said = converted(folder.path()).unwrap_err();
    assert!(said.contains("without config.json"), "{said}");
    let open = |path: &Path| ModelFiles::open(path).unwrap_err().to_string();
    assert!(open(&golden("git")).contains("im2sp convert DIR"), "{}", open(&golden("git")));
    assert!(open(&golden("vocoder")).contains("--vocoder"), "{}", open(&golden("vocoder")));
    assert!(open(folder.path()).contains("config.json: file: is not there: make a model directory"));
    assert!(open(&golden("reference.ckpt")).contains("make one with `im2sp convert`"));
}

#[test]
fn weights_can_be_read_into_memory() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("model");
    convert(&options(&golden("git"), &output), &mut |_, _| {}).unwrap();
    let files = ModelFiles::open_with(&output, false).unwrap();
    // Rewritten in place, as a mapped file must never be.
    let weights = output.join("captioner.safetensors");
    let length = fs::metadata(&weights).unwrap().len();
    fs::write(&weights, vec![0; length as usize]).unwrap();
    assert_captioner(files.captioner, "git");
}
