//! The Hugging Face side of a GIT directory: `config.json`, `preprocessor_config.json`, and weights in one file or in
//! shards. Of the configuration, only what shapes cannot tell is used; the rest has to agree with them.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use crate::config::ImageConfig;
use crate::weights::directory::read_small;
use crate::weights::safetensors;
use crate::weights::torch::{Checkpoint, StateDict};
use crate::{Error, Result};

/// Mean of CLIP's training pictures.
const CLIP_MEAN: [f32; 3] = [0.48145466, 0.4578275, 0.40821073];
/// Their standard deviation.
const CLIP_STD: [f32; 3] = [0.26862954, 0.2613026, 0.2757771];

/// What a configuration says of one transformer.
#[derive(Default)]
pub(super) struct TransformerSays {
    pub width: Option<usize>,
    pub layers: Option<usize>,
    pub heads: Option<usize>,
    pub mlp: Option<usize>,
    pub eps: Option<f32>,
}

/// What a `config.json` says; all empty for a checkpoint that comes without one.
#[derive(Default)]
pub(super) struct Extras {
    pub vision: TransformerSays,
    pub text: TransformerSays,
    pub patch: Option<usize>,
    pub image_size: Option<usize>,
    pub tied: bool,
}

impl Extras {
    /// Fails when the configuration says something else than the tensors.
    pub fn expect(&self, path: &Path, field: &str, said: Option<usize>, found: usize) -> Result<()> {
        match said {
            Some(said) if said != found => {
                Err(Error::weights(path, field, format!("is {said} in config.json, but the tensors have {found}")))
            }
            _ => Ok(()),
        }
    }
}

/// The parts of a `config.json` that matter here. What is absent has the value `transformers` gives it.
#[derive(Deserialize)]
#[serde(default)]
struct GitConfig {
    model_type: String,
    vision_config: VisionPart,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    layer_norm_eps: f32,
    hidden_act: String,
    position_embedding_type: String,
    num_image_with_embedding: Option<usize>,
    tie_word_embeddings: bool,
}

impl Default for GitConfig {
    fn default() -> GitConfig {
        GitConfig {
            model_type: "git".into(),
            vision_config: VisionPart::default(),
            hidden_size: 768,
            num_hidden_layers: 6,
            num_attention_heads: 12,
            intermediate_size: 3072,
            layer_norm_eps: 1e-12,
            hidden_act: "gelu".into(),
            position_embedding_type: "absolute".into(),
            num_image_with_embedding: None,
            tie_word_embeddings: false,
        }
    }
}

#[derive(Deserialize)]
#[serde(default)]
struct VisionPart {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    layer_norm_eps: f32,
    hidden_act: String,
    image_size: usize,
    patch_size: usize,
}

impl Default for VisionPart {
    fn default() -> VisionPart {
        VisionPart {
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            layer_norm_eps: 1e-5,
            hidden_act: "quick_gelu".into(),
            image_size: 224,
            patch_size: 16,
        }
    }
}

/// Opens the weights and the configuration of a directory.
pub(super) fn open(folder: &Path) -> Result<(StateDict, Extras)> {
    let path = folder.join("config.json");
    let config: GitConfig = serde_json::from_str(&read_small(&path)?)
        .map_err(|error| Error::weights(&path, "configuration", error.to_string()))?;
    for (field, value, expected) in [
        ("model_type", &config.model_type, "git"),
        ("hidden_act", &config.hidden_act, "gelu"),
        ("vision_config.hidden_act", &config.vision_config.hidden_act, "quick_gelu"),
        ("position_embedding_type", &config.position_embedding_type, "absolute"),
    ] {
        if value != expected {
            return Err(Error::weights(
                &path,
                field,
                format!("is {value:?}; im2sp runs models with {expected:?} only"),
            ));
        }
    }
    if config.num_image_with_embedding.is_some_and(|frames| frames > 0) {
        return Err(Error::weights(&path, "num_image_with_embedding", "this is a model for videos, not for pictures"));
    }
    let vision = config.vision_config;
    let extras = Extras {
        vision: TransformerSays {
            width: Some(vision.hidden_size),
            layers: Some(vision.num_hidden_layers),
            heads: Some(vision.num_attention_heads),
            mlp: Some(vision.intermediate_size),
            eps: Some(vision.layer_norm_eps),
        },
        text: TransformerSays {
            width: Some(config.hidden_size),
            layers: Some(config.num_hidden_layers),
            heads: Some(config.num_attention_heads),
            mlp: Some(config.intermediate_size),
            eps: Some(config.layer_norm_eps),
        },
        patch: Some(vision.patch_size),
        image_size: Some(vision.image_size),
        tied: config.tie_word_embeddings,
    };
    Ok((open_weights(folder)?, extras))
}

/// One file or several: safetensors where there are any.
fn open_weights(folder: &Path) -> Result<StateDict> {
    for name in ["model.safetensors", "pytorch_model.bin"] {
        let whole = folder.join(name);
        if whole.is_file() {
            return open_file(&whole);
        }
        let index = folder.join(format!("{name}.index.json"));
        if index.is_file() {
            let mut tensors = StateDict::new();
            for shard in shards(folder, &index)? {
                tensors.extend(open_file(&shard)?);
            }
            return Ok(tensors);
        }
    }
    Err(Error::weights(folder, "weights", "neither model.safetensors nor pytorch_model.bin is here"))
}

fn open_file(path: &Path) -> Result<StateDict> {
    if path.extension().is_some_and(|extension| extension == "safetensors") {
        safetensors::open(path)
    } else {
        Checkpoint::open(path)?.state_dict(&["state_dict"])
    }
}

/// The files an index names, each once. They have to lie in `folder` itself.
fn shards(folder: &Path, index: &Path) -> Result<Vec<PathBuf>> {
    let wrong = |problem: String| Error::weights(index, "weight_map", problem);
    let value: Value = serde_json::from_str(&read_small(index)?).map_err(|error| wrong(error.to_string()))?;
    let map = value.get("weight_map").and_then(Value::as_object).ok_or_else(|| wrong("is missing".into()))?;
    let mut names: Vec<&str> = Vec::new();
    for shard in map.values() {
        let name = shard.as_str().ok_or_else(|| wrong("holds something that is no file name".into()))?;
        if name.contains(['/', '\\']) || name.starts_with('.') {
            return Err(wrong(format!("names {name:?}, which is not a file of this directory")));
        }
        names.push(name);
    }
    names.sort_unstable();
    names.dedup();
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

/// Reads how pictures become pixels from a `preprocessor_config.json`; without one, the values of CLIP. `size` is what
/// the position embedding was made for.
pub(super) fn image_config(path: Option<&Path>, size: usize) -> Result<ImageConfig> {
    let Some(path) = path else { return Ok(ImageConfig { size, mean: CLIP_MEAN, std: CLIP_STD }) };
    let value: Value = serde_json::from_str(&read_small(path)?)
        .map_err(|error| Error::weights(path, "configuration", error.to_string()))?;
    for field in ["crop_size", "size"] {
        let Some(said) = value.get(field).filter(|said| !said.is_null()) else { continue };
        // A number, {"shortest_edge": n}, or {"height": n, "width": n}.
        let sides: Vec<u64> = match said {
            Value::Object(sides) => sides.values().filter_map(Value::as_u64).collect(),
            said => said.as_u64().into_iter().collect(),
        };
        if sides.is_empty() || sides.iter().any(|&side| side != size as u64) {
            let problem = format!("is {said}, but the model was made for pictures of {size} x {size}");
            return Err(Error::weights(path, field, problem));
        }
    }
    let channels = |field: &str, default: [f32; 3]| match value.get(field).filter(|said| !said.is_null()) {
        None => Ok(default),
        Some(said) => <[f32; 3]>::deserialize(said)
            .map_err(|error| Error::weights(path, field, format!("expected three numbers: {error}"))),
    };
    Ok(ImageConfig { size, mean: channels("image_mean", CLIP_MEAN)?, std: channels("image_std", CLIP_STD)? })
}
