//! `convert` finds a model under the names and in the dicts that training code puts around it, and gives for each the
//! model it gives for the plain checkpoint. The checkpoints are written here, in PyTorch's legacy container.

use std::fs;
use std::path::{Path, PathBuf};

use im2sp::tensor::{Bytes, DType, HostTensor};
use im2sp::weights::safetensors::{self, Entry, Writer};
use im2sp::weights::torch::Checkpoint;
use im2sp::weights::{ConvertOptions, ModelFiles, TensorStore, convert};
use tempfile::TempDir;

/// A value of a checkpoint.
#[derive(Clone)]
enum Value {
    Dict(Vec<(String, Value)>),
    Tensor(HostTensor),
    Integer(u8),
    /// `None`, as torch.save writes the extra state of a module without one.
    None,
    /// A whole module, which pickles by class.
    Module,
}

use Value::{Dict, Integer, Tensor};

fn dict<const N: usize>(entries: [(&str, Value); N]) -> Value {
    Dict(entries.into_iter().map(|(key, value)| (key.to_string(), value)).collect())
}

/// Appends the pickle of `value`. All tensors are windows of storage "0", whose values go to `storage`.
fn pickle(value: &Value, out: &mut Vec<u8>, storage: &mut Vec<f32>) {
    let text = |text: &str, out: &mut Vec<u8>| {
        out.push(b'X');
        out.extend((text.len() as u32).to_le_bytes());
        out.extend(text.as_bytes());
    };
    let integer = |value: usize, out: &mut Vec<u8>| {
        out.push(b'J');
        out.extend((value as u32).to_le_bytes());
    };
    match value {
        Value::None => out.push(b'N'),
        Value::Module => out.extend(b"cmodels\nGit\n)R}X\x08\0\0\0_modules}sb"),
        Integer(value) => out.extend([b'K', *value]),
        Dict(entries) => {
            out.extend(b"}(");
            for (key, value) in entries {
                text(key, out);
                pickle(value, out, storage);
            }
            out.push(b'u');
        }
        Tensor(tensor) => {
            out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
            text("storage", out);
            out.extend(b"ctorch\nFloatStorage\n");
            text("0", out);
            text("cpu", out);
            integer(storage.len() + tensor.len(), out);
            out.extend(b"NtQ");
            integer(storage.len(), out);
            let strides = im2sp::weights::stored::dense_strides(tensor.shape());
            for sizes in [tensor.shape(), &strides] {
                out.push(b'(');
                sizes.iter().for_each(|&size| integer(size, out));
                out.push(b't');
            }
            out.extend(b"\x89ccollections\nOrderedDict\n)RtR");
            storage.extend_from_slice(&tensor.to_f32());
        }
    }
}

/// Writes `value` as torch.save did before release 1.6.
fn save(value: &Value, path: &Path) {
    let mut file = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.".to_vec();
    file.extend(b"\x80\x02}X\x0d\0\0\0little_endian\x88s.\x80\x02");
    let mut storage = Vec::new();
    pickle(value, &mut file, &mut storage);
    if storage.is_empty() {
        file.extend(b".\x80\x02].");
    } else {
        file.extend(b".\x80\x02]X\x01\0\0\x000a.");
        file.extend((storage.len() as u64).to_le_bytes());
        storage.iter().for_each(|value| file.extend(value.to_le_bytes()));
    }
    fs::write(path, file).unwrap();
}

/// Writes `tensors` as a safetensors file.
fn save_safetensors(tensors: &[(String, Value)], path: &Path) {
    let tensors =
        || tensors.iter().filter_map(|(name, value)| if let Tensor(t) = value { Some((name, t)) } else { None });
    let entries = tensors().map(|(name, tensor)| Entry {
        name: name.clone(),
        shape: tensor.shape().to_vec(),
        dtype: tensor.dtype(),
    });
    let mut writer = Writer::create(path, entries.collect()).unwrap();
    tensors().for_each(|(name, tensor)| writer.write(name, tensor).unwrap());
    writer.finish().unwrap();
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/weights").join(name)
}

/// The tensors under `key` of a golden checkpoint, by the model's own names.
fn tensors_of(name: &str, key: &str, prefix: &str) -> Vec<(String, Value)> {
    let checkpoint = Checkpoint::open(&golden(name)).unwrap();
    let dicts = checkpoint.dicts().unwrap();
    let dict = dicts.iter().find(|dict| dict.keys() == [key]).unwrap();
    let tensors = dict.tensors(|name| !name.ends_with("position_ids")).unwrap();
    let plain = |tensor: im2sp::weights::stored::StoredTensor| Tensor(tensor.load().unwrap().to_dtype(DType::F32));
    tensors.into_iter().map(|(name, t)| (name.strip_prefix(prefix).unwrap().to_string(), plain(t))).collect()
}

fn captioner() -> Vec<(String, Value)> {
    tensors_of("reference.ckpt", "state_dict", "model.")
}

fn generator() -> Vec<(String, Value)> {
    tensors_of("vocoder/g_old.pt", "generator", "")
}

/// `tensors` with `change` applied to each name.
fn renamed(tensors: &[(String, Value)], change: impl Fn(&str) -> String) -> Vec<(String, Value)> {
    tensors.iter().map(|(name, value)| (change(name), value.clone())).collect()
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
        description: None,
        force: true,
    }
}

/// A folder for sources, and the model that the plain checkpoints give.
struct Bench {
    folder: TempDir,
    captioner: Vec<(String, HostTensor)>,
    vocoder: Vec<(String, HostTensor)>,
}

fn all(store: TensorStore) -> Vec<(String, HostTensor)> {
    store.iter().map(|(name, tensor)| (name.to_string(), tensor.clone())).collect()
}

fn assert_same(case: &str, found: &[(String, HostTensor)], expected: &[(String, HostTensor)]) {
    assert_eq!(found.len(), expected.len(), "{case}");
    for ((name, found), (other, expected)) in found.iter().zip(expected) {
        assert_eq!((name, found.shape(), found.to_f32()), (other, expected.shape(), expected.to_f32()), "{case}");
    }
}

impl Bench {
    fn new() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let plain = ConvertOptions {
            vocoder: Some(golden("vocoder/g_old.pt")),
            ..options(&golden("reference.ckpt"), &folder.path().join("plain"))
        };
        convert(&plain, &mut |_, _| {}).unwrap();
        let files = ModelFiles::open(&plain.output).unwrap();
        let (captioner, vocoder) = (all(files.captioner), all(files.vocoder.unwrap()));
        fs::copy(golden("vocoder/config.json"), folder.path().join("config.json")).unwrap();
        Bench { folder, captioner, vocoder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Converts a captioner's file; the names left aside, or the error.
    fn convert(&self, case: &str, source: &Path) -> Result<Vec<String>, String> {
        let options = options(source, &self.path("model"));
        let report = convert(&options, &mut |_, _| {}).map_err(|error| error.to_string())?;
        assert_same(case, &all(ModelFiles::open(&options.output).unwrap().captioner), &self.captioner);
        Ok(report.left_aside)
    }

    fn captioner(&self, case: &str, value: &Value) -> Result<Vec<String>, String> {
        save(value, &self.path("a.ckpt"));
        self.convert(case, &self.path("a.ckpt"))
    }

    /// As [`Bench::convert`], of a vocoder's file.
    fn convert_vocoder(&self, case: &str, vocoder: &Path) -> Result<Vec<String>, String> {
        let plain = options(&golden("reference.ckpt"), &self.path("model"));
        let options = ConvertOptions { vocoder: Some(vocoder.to_owned()), ..plain };
        let report = convert(&options, &mut |_, _| {}).map_err(|error| error.to_string())?;
        assert_same(case, &all(ModelFiles::open(&options.output).unwrap().vocoder.unwrap()), &self.vocoder);
        Ok(report.left_aside)
    }

    fn vocoder(&self, case: &str, value: &Value) -> Result<Vec<String>, String> {
        save(value, &self.path("g.pt"));
        self.convert_vocoder(case, &self.path("g.pt"))
    }
}

#[test]
fn names_lose_what_wrappers_put_before_and_into_them() {
    let bench = Bench::new();
    let (captioner, generator) = (captioner(), generator());
    for prefix in [
        "",
        "model.",
        "module.",
        "_orig_mod.",
        "model._orig_mod.",
        "model.module.",
        "module.model.",
        "model.model.",
        "_forward_module.model.",
        "net.",
        "module._orig_mod.trainer.captioner.",
    ] {
        let named = |name: &str| format!("{prefix}{name}");
        let inner = Dict(renamed(&captioner, named));
        assert_eq!(bench.captioner(prefix, &dict([("state_dict", inner.clone())])), Ok(vec![]));
        assert_eq!(bench.captioner(prefix, &inner), Ok(vec![]));
        assert_eq!(bench.vocoder(prefix, &dict([("generator", Dict(renamed(&generator, named)))])), Ok(vec![]));
        save_safetensors(&renamed(&captioner, named), &bench.path("a.safetensors"));
        assert_eq!(bench.convert(prefix, &bench.path("a.safetensors")), Ok(vec![]));
        save_safetensors(&renamed(&generator, named), &bench.path("g.safetensors"));
        assert_eq!(bench.convert_vocoder(prefix, &bench.path("g.safetensors")), Ok(vec![]));
    }
    // Parts of a model are compiled or sharded by themselves.
    for (part, wrapper) in [
        ("git.", "git._orig_mod."),
        ("git.encoder.layer.0.", "git.encoder.layer.0._checkpoint_wrapped_module."),
        ("git.image_encoder.", "git.image_encoder._fsdp_wrapped_module._orig_mod."),
        ("git.embeddings.", "git.embeddings.module."),
        ("LayerNorm.weight", "LayerNorm.gamma"),
        ("LayerNorm.bias", "LayerNorm.beta"),
    ] {
        let value = Dict(renamed(&captioner, |name| format!("model.{}", name.replace(part, wrapper))));
        assert_eq!(bench.captioner(wrapper, &dict([("state_dict", value)])), Ok(vec![]));
    }
    let mut both = renamed(&captioner, |name| format!("model.{name}"));
    both.extend(renamed(&captioner, |name| format!("model.module.{name}")));
    let said = bench.captioner("both", &Dict(both)).unwrap_err();
    assert!(said.contains("is there twice"), "{said}");
}

#[test]
fn the_one_dict_that_holds_the_model_is_found() {
    let bench = Bench::new();
    let plain = Dict(captioner());
    let spoken = Dict(generator());
    let optimizer = || dict([("state", dict([("0", Integer(1))])), ("param_groups", Value::None)]);
    for key in ["model", "model_state_dict", "module", "net", "params", "weights", "ema_state_dict", "state_dict"] {
        let value = dict([("epoch", Integer(3)), (key, plain.clone()), ("optimizer", optimizer())]);
        assert_eq!(bench.captioner(key, &value), Ok(vec![]));
        assert_eq!(bench.captioner(key, &dict([("checkpoint", value)])), Ok(vec![]));
        let value = dict([("optim_g", optimizer()), (key, spoken.clone()), ("mpd", dict([("w", Integer(1))]))]);
        assert_eq!(bench.vocoder(key, &value), Ok(vec![]));
    }
    assert_eq!(bench.vocoder("nested", &dict([("model", dict([("generator", spoken.clone())]))])), Ok(vec![]));
    // Beside a copy, the model itself; of several, the one under the usual key.
    let other = Dict(vec![("git.embeddings.x".into(), Integer(1))]);
    for keys in [["model_ema", "model"], ["state_dict_ema", "state_dict"], ["net", "state_dict"]] {
        let value = dict([(keys[0], other.clone()), (keys[1], plain.clone())]);
        assert_eq!(bench.captioner(keys[0], &value), Ok(vec![]));
    }
    let said = bench.captioner("two", &dict([("net", other.clone()), ("model", plain.clone())])).unwrap_err();
    assert!(said.contains("more than once, under `net`, `model`"), "{said}");
    let said = bench.captioner("none", &dict([("epoch", Integer(3)), ("optimizer", optimizer())])).unwrap_err();
    assert!(said.contains("the keys are epoch, optimizer"), "{said}");
    let said = bench.captioner("deep", &dict([("a", dict([("b", dict([("c", plain.clone())]))]))])).unwrap_err();
    assert!(said.contains("the keys are a:"), "{said}");
    let said = bench.vocoder("captioner", &dict([("state_dict", plain)])).unwrap_err();
    assert!(said.contains("vocoder (`conv_pre.…`): is not there"), "{said}");
    let said = bench.captioner("module", &dict([("epoch", Integer(3)), ("model", Value::Module)])).unwrap_err();
    assert!(said.contains("model: is a whole module") && said.contains("state_dict()"), "{said}");
    let said = bench.captioner("list", &Integer(3)).unwrap_err();
    assert!(said.contains("expected a dict of tensors") && said.contains("torch.save"), "{said}");
}

#[test]
fn either_half_of_the_tied_pair_is_enough() {
    const WORDS: &str = "git.embeddings.word_embeddings.weight";
    const OUTPUT: &str = "output.weight";
    let bench = Bench::new();
    let whole = captioner();
    let without = |left_out: &str| whole.iter().filter(|(name, _)| name != left_out).cloned().collect::<Vec<_>>();
    // Two storages of the same values.
    assert_eq!(bench.captioner("both", &Dict(whole.clone())), Ok(vec![]));
    for left_out in [WORDS, OUTPUT] {
        assert_eq!(bench.captioner(left_out, &Dict(without(left_out))), Ok(vec![]));
        save_safetensors(&without(left_out), &bench.path("a.safetensors"));
        assert_eq!(bench.convert(left_out, &bench.path("a.safetensors")), Ok(vec![]));
    }
    let neither = without(WORDS).into_iter().filter(|(name, _)| name != OUTPUT).collect();
    let said = bench.captioner("neither", &Dict(neither)).unwrap_err();
    assert!(said.contains(WORDS) && said.contains("is missing"), "{said}");
    let mut different = without(OUTPUT);
    different.push((OUTPUT.into(), Tensor(HostTensor::from_f32(&[104, 64], vec![0.5; 104 * 64]).unwrap())));
    let said = bench.captioner("different", &Dict(different)).unwrap_err();
    assert!(said.contains(OUTPUT) && said.contains("tied"), "{said}");
    let mut other_shape = without(OUTPUT);
    other_shape.push((OUTPUT.into(), Tensor(HostTensor::from_f32(&[1], vec![0.5]).unwrap())));
    let said = bench.captioner("other shape", &Dict(other_shape)).unwrap_err();
    assert!(said.contains(OUTPUT), "{said}");
}

#[test]
fn what_is_not_the_models_is_left_aside_by_name() {
    let bench = Bench::new();
    let one = Tensor(HostTensor::from_f32(&[1], vec![1.0]).unwrap());
    let beside = [
        ("criterion.weight", one.clone()),
        ("val_bleu.total", Integer(3)),
        ("criterion._extra_state", Value::None),
        ("n_averaged", one.clone()),
    ];
    let others: Vec<(String, Value)> = beside.iter().map(|(name, value)| (name.to_string(), value.clone())).collect();
    let names: Vec<String> = others.iter().map(|(name, _)| name.clone()).collect();
    for prefix in ["", "model.", "module.model."] {
        let mut state = renamed(&captioner(), |name| format!("{prefix}{name}"));
        state.extend(others.clone());
        assert_eq!(bench.captioner(prefix, &dict([("state_dict", Dict(state))])).as_ref(), Ok(&names));
    }
    // A copy of the model, with other values.
    for copy in ["ema.", "model_ema.", "ema_model.module.", "swa_model.", "teacher."] {
        let mut state = renamed(&captioner(), |name| format!("model.{name}"));
        let count = state.len();
        state.extend(captioner().into_iter().map(|(name, _)| (format!("{copy}{name}"), one.clone())));
        let left = bench.captioner(copy, &dict([("state_dict", Dict(state))])).unwrap();
        assert!(left.len() == count && left.iter().all(|name| name.starts_with(copy)), "{copy}");
    }
    let mut two = renamed(&captioner(), |name| format!("left.{name}"));
    two.extend(renamed(&captioner(), |name| format!("right.{name}")));
    let said = bench.captioner("two", &Dict(two)).unwrap_err();
    assert!(said.contains("under `left.`, `right.`"), "{said}");
    // Inside of the model's own parts, and in a vocoder, everything has to be known.
    let mut inside = captioner();
    inside.push(("git.encoder.adapter.weight".into(), one.clone()));
    let said = bench.captioner("inside", &Dict(inside)).unwrap_err();
    assert!(said.contains("git.encoder.adapter.weight: not part"), "{said}");
    let mut units = captioner();
    units.push(("git.image_encoder.vision_model.patch_embed.proj.weight".into(), one.clone()));
    let said = bench.captioner("units", &Dict(units)).unwrap_err();
    assert!(said.contains("codebook: is needed for image units"), "{said}");
    let mut spoken = renamed(&generator(), |name| format!("generator.{name}"));
    spoken.push(("mpd.0.weight".into(), one.clone()));
    assert_eq!(bench.vocoder("mpd", &Dict(spoken.clone())), Ok(vec!["mpd.0.weight".to_string()]));
    spoken.push(("generator.encoder.weight".into(), one));
    let said = bench.vocoder("encoder", &Dict(spoken)).unwrap_err();
    assert!(said.contains("encoder.weight: not part"), "{said}");
}

#[test]
fn floats_of_eight_bits_are_numbers() {
    let bench = Bench::new();
    let state = renamed(&captioner(), |name| format!("model.{name}"));
    let bias: Vec<f32> = (0..104).map(|i| (i % 8) as f32 - 4.0).collect();
    let coded = HostTensor::from_f32(&[104], bias.clone()).unwrap().to_dtype(DType::F8E4M3);
    let state: Vec<(String, Value)> = state
        .into_iter()
        .map(|(name, value)| if name == "model.output.bias" { (name, Tensor(coded.clone())) } else { (name, value) })
        .collect();
    let path = bench.path("a.safetensors");
    save_safetensors(&state, &path);
    let options = options(&path, &bench.path("model"));
    convert(&options, &mut |_, _| {}).unwrap();
    let mut store = ModelFiles::open(&options.output).unwrap().captioner;
    assert_eq!(*store.take("decoder.output_bias", &[104]).unwrap().to_f32(), bias);
    let stored = safetensors::from_bytes(&path, Bytes::new(fs::read(&path).unwrap())).unwrap();
    assert!(stored.iter().any(|(name, tensor)| name == "model.output.bias" && tensor.load().is_ok()));
}
