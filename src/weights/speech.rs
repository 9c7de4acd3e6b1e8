//! The directory of a speech encoder or recogniser: `config.json` with its kind, and one safetensors file.

use std::path::Path;

use super::directory::{CONFIG, read_small};
use super::json::Json;
use super::staged::{Kind, StagedDirectory};
use super::store::TensorStore;
use super::stored::read_file;
use crate::config::SpeechConfig;
use crate::{Error, Result, files};

/// All weights of the model.
pub const SPEECH: &str = "speech.safetensors";
/// The directory, by its files.
const KIND: Kind = Kind { name: "a speech model", files: &[CONFIG, SPEECH] };

/// An opened speech model: its dimensions and its mapped tensors.
#[derive(Debug)]
pub struct SpeechFiles {
    /// Checked with [`SpeechConfig::check`].
    pub config: SpeechConfig,
    /// Everything from samples to features, or to symbols.
    pub tensors: TensorStore,
}

impl SpeechFiles {
    /// Reads `config.json` of `dir` and maps the weights; unless `map`, they are read into memory.
    pub fn open(dir: &Path, map: bool) -> Result<SpeechFiles> {
        if !dir.is_dir() {
            return Err(Error::weights(dir, "model", "is not a directory: make one with `im2sp convert`"));
        }
        let path = dir.join(CONFIG);
        if !path.exists() {
            let problem = "is not there: make the directory of a speech model with `im2sp convert`";
            return Err(Error::weights(&path, "file", problem));
        }
        let config = parse_config(&path, &read_small(&path)?)?;
        let path = dir.join(SPEECH);
        let tensors = if map { TensorStore::open(&path)? } else { TensorStore::from_bytes(&path, read_file(&path)?)? };
        Ok(SpeechFiles { config, tensors })
    }
}

/// Makes the directory of a model on its way to `destination`: [`commit`] gives it its name.
pub(super) fn stage(destination: &Path, force: bool) -> Result<StagedDirectory> {
    StagedDirectory::create_kind(destination, force, KIND)
}

/// Writes the configuration and publishes the directory.
pub(super) fn commit(staged: StagedDirectory, config: &SpeechConfig) -> Result<()> {
    let path = staged.path().join(CONFIG);
    let text =
        serde_json::to_string_pretty(config).map_err(|error| Error::weights(&path, CONFIG, error.to_string()))?;
    files::write_atomically(&path, format!("{text}\n").as_bytes())?;
    staged.publish()
}

/// Parses and checks the text of a `config.json`; `path` names it in errors.
fn parse_config(path: &Path, text: &str) -> Result<SpeechConfig> {
    let config: SpeechConfig = serde_json::from_str(text).map_err(|error| match Json::parse(path, text) {
        Err(problem) => problem,
        Ok(other) if other.value("kind").is_none() && other.value("format").is_some() => {
            Error::weights(path, "kind", "is missing: this is a captioner, not a speech model")
        }
        Ok(other) if other.value("format").is_none() => {
            let problem = "is missing: this is no model directory; convert it first: `im2sp convert DIR -o MODEL`";
            Error::weights(path, "format", problem)
        }
        Ok(_) => Error::weights(path, "model configuration", error.to_string()),
    })?;
    config.check().map_err(|(field, problem)| Error::weights(path, field, problem))?;
    Ok(config)
}
