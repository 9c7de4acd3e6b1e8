//! The Hugging Face side of a GIT directory: `config.json`, `generation_config.json`, and weights in one file or in
//! shards. Only what shapes cannot tell is taken from the configuration; the rest has to agree with them.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::select::{self, Family, Opened, Selected};
use crate::units::{BOS, EOS};
use crate::weights::json::Json;
use crate::weights::torch::StateDict;
use crate::{Error, Result};

/// Dimensions of one transformer, as far as they are known.
#[derive(Default)]
pub(super) struct TransformerSays {
    pub width: Option<usize>,
    pub layers: Option<usize>,
    pub heads: Option<usize>,
    pub mlp: Option<usize>,
    pub eps: Option<f32>,
}

/// Contents of a `config.json`; all empty for a checkpoint that comes without one.
#[derive(Default)]
pub(super) struct Extras {
    pub vision: TransformerSays,
    pub text: TransformerSays,
    pub patch: Option<usize>,
    pub image_size: Option<usize>,
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

    /// Reads a GIT `config.json`. Absent fields have the value `transformers` gives them. Fails for a model that im2sp
    /// does not run.
    pub fn parse(config: &Json) -> Result<Extras> {
        let vision = config.object("vision_config")?;
        for (json, field, default) in [
            (config, "model_type", "git"),
            (config, "hidden_act", "gelu"),
            (&vision, "hidden_act", "quick_gelu"),
            (config, "position_embedding_type", "absolute"),
        ] {
            if let Some(value) = json.get::<String>(field)?.filter(|value| value != default) {
                return Err(json.wrong(field, format!("is {value:?}; im2sp runs models with {default:?} only")));
            }
        }
        Ok(Extras {
            text: transformer(config, [768, 6, 12, 3072], 1e-12)?,
            patch: Some(vision.get("patch_size")?.unwrap_or(16)),
            image_size: Some(vision.get("image_size")?.unwrap_or(224)),
            vision: transformer(&vision, [768, 12, 12, 3072], 1e-5)?,
        })
    }
}

/// Dimensions, or `defaults` (width, layers, heads, hidden channels).
fn transformer(json: &Json, defaults: [usize; 4], eps: f32) -> Result<TransformerSays> {
    let size = |field: &str, default: usize| Ok(Some(json.get(field)?.unwrap_or(default)));
    Ok(TransformerSays {
        width: size("hidden_size", defaults[0])?,
        layers: size("num_hidden_layers", defaults[1])?,
        heads: size("num_attention_heads", defaults[2])?,
        mlp: size("intermediate_size", defaults[3])?,
        eps: Some(json.get("layer_norm_eps")?.unwrap_or(eps)),
    })
}

/// Fields of a generation configuration that force or forbid tokens.
const FORCING: [&str; 8] = [
    "forced_bos_token_id",
    "forced_eos_token_id",
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
    "force_words_ids",
    "constraints",
    "sequence_bias",
];

/// Fields of a generation configuration that change the scores of tokens, each with the value that changes nothing.
const SCORING: [(&str, f64); 4] =
    [("repetition_penalty", 1.0), ("no_repeat_ngram_size", 0.0), ("min_length", 0.0), ("min_new_tokens", 0.0)];

/// Refuses a configuration by which other tokens begin or end a sequence, tokens are forced or forbidden, or their scores
/// depend on those before. Beams, sampling and lengths are options of each caption.
fn refuse_tokens(json: &Json) -> Result<()> {
    for (field, expected) in [("bos_token_id", BOS), ("eos_token_id", EOS)] {
        let usual = match json.value(field) {
            None => true,
            Some(Value::Array(ids)) => !ids.is_empty() && ids.iter().all(|id| *id == expected),
            Some(id) => *id == expected,
        };
        if !usual {
            let said = json.value(field).unwrap_or(&Value::Null);
            let problem = format!(
                "is {said}, but im2sp begins sequences with {BOS} and ends them with {EOS}, as the published models do: \
                 train with these"
            );
            return Err(json.wrong(field, problem));
        }
    }
    if json.is_null("eos_token_id") {
        let problem =
            format!("is null, by which transformers ends no sequence, but im2sp ends them with {EOS}: say {EOS}");
        return Err(json.wrong("eos_token_id", problem));
    }
    for field in FORCING {
        if json.is_truthy(field) {
            return Err(json.wrong(field, "is set, but im2sp neither forces nor forbids tokens: remove it"));
        }
    }
    for (field, neutral) in SCORING {
        if let Some(said) = json.value(field).filter(|said| said.as_f64() != Some(neutral)) {
            return Err(json.wrong(field, format!("is {said}, but im2sp does not change scores by it: remove it")));
        }
    }
    Ok(())
}

/// Folder and configuration that belong to `source`: a GIT directory, or one weights file of it.
pub(super) fn companion(source: &Path) -> Result<Option<(PathBuf, Json)>> {
    if source.is_dir() {
        let path = source.join("config.json");
        if !path.exists() {
            let problem = "is a folder without config.json: give a Hugging Face GIT directory, a model directory, or the \
                           checkpoint file in the folder";
            return Err(Error::weights(source, "source", problem));
        }
        return Ok(Some((source.to_owned(), Json::read(&path)?)));
    }
    let extension = source.extension().and_then(|extension| extension.to_str());
    let folder = match source.parent() {
        Some(folder) if matches!(extension, Some("safetensors" | "bin")) => folder,
        _ => return Ok(None),
    };
    let path = folder.join("config.json");
    if !path.is_file() {
        return Ok(None);
    }
    // A lone file may lie next to another model's configuration.
    let config = Json::read(&path)?;
    let is_git = config.value("model_type").and_then(Value::as_str) == Some("git");
    Ok(is_git.then(|| (folder.to_owned(), config)))
}

/// Reads the configuration files of `folder`. Where there is a `generation_config.json`, tokens are its matter alone, as
/// in transformers 5.
pub(super) fn extras(folder: &Path, config: &Json) -> Result<Extras> {
    let generation = folder.join("generation_config.json");
    if generation.is_file() {
        refuse_tokens(&Json::read(&generation)?)?
    } else {
        refuse_tokens(config)?
    }
    Extras::parse(config)
}

/// The model in a directory, in one file or several: safetensors where there are any.
pub(super) fn open_folder(folder: &Path, family: &Family) -> Result<Selected> {
    for name in ["model.safetensors", "pytorch_model.bin"] {
        let whole = folder.join(name);
        if whole.exists() {
            return family.select(&whole, select::open(&whole)?);
        }
        let index = folder.join(format!("{name}.index.json"));
        if index.is_file() {
            let mut tensors = StateDict::new();
            for shard in shards(folder, &index)? {
                tensors.extend(all_tensors(select::open(&shard)?)?);
            }
            return family.select_tensors(folder, tensors);
        }
    }
    let problem = if folder.join("adapter_config.json").exists() {
        "are those of an adapter (LoRA): merge it into its model and save that"
    } else {
        "neither model.safetensors nor pytorch_model.bin is here: give the weights file itself if it has another name"
    };
    Err(Error::weights(folder, "weights", problem))
}

/// All tensors of a shard.
fn all_tensors(opened: Opened) -> Result<StateDict> {
    match opened {
        Opened::Tensors(tensors) => Ok(tensors),
        Opened::Checkpoint(checkpoint) => {
            let dicts = checkpoint.dicts()?;
            let dict = dicts.iter().find(|dict| dict.keys() == ["state_dict"]).or(dicts.first());
            dict.map_or(Ok(StateDict::new()), |dict| dict.tensors(|_| true))
        }
    }
}

/// The files an index names, each once. They have to lie in `folder` itself.
fn shards(folder: &Path, index: &Path) -> Result<Vec<PathBuf>> {
    let index = Json::read(index)?;
    let map = match index.value("weight_map") {
        Some(Value::Object(map)) => map,
        _ => return Err(index.wrong("weight_map", "is missing")),
    };
    let mut names: Vec<&str> = Vec::new();
    for shard in map.values() {
        let name = shard.as_str().ok_or_else(|| index.wrong("weight_map", "holds something that is no file name"))?;
        if name.contains(['/', '\\']) || name.starts_with('.') {
            let problem = format!("names {name:?}, which is not a file of this directory");
            return Err(index.wrong("weight_map", problem));
        }
        names.push(name);
    }
    names.sort_unstable();
    names.dedup();
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}
