//! A model directory: `config.json`, `captioner.safetensors` and, unless it was converted without a vocoder,
//! `vocoder.safetensors`. A captioner that sees image units may have `tokenizer.json` and `tokenizer.safetensors`, which may
//! also be alone in a directory. Written next to its destination and renamed there whole, so a directory under its final name
//! is always complete.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::json::Json;
use super::safetensors::{Entry, Writer};
pub use super::staged::{StagedDirectory, TOKENIZER_ALONE};
use super::store::TensorStore;
use super::stored::read_file;
use crate::config::{ModelConfig, TokenizerConfig};
use crate::tensor::{Bytes, HostTensor};
use crate::{Error, Result, files};

/// The dimensions, for people and programs.
pub const CONFIG: &str = "config.json";
/// The vision transformer, the projection and the decoder.
pub const CAPTIONER: &str = "captioner.safetensors";
/// The unit HiFi-GAN with its weight norm folded.
pub const VOCODER: &str = "vocoder.safetensors";
/// The dimensions of the image tokenizer.
pub const TOKENIZER_CONFIG: &str = "tokenizer.json";
/// The image tokenizer and its codebook.
pub const TOKENIZER: &str = "tokenizer.safetensors";
/// Larger than any `config.json` there is.
const MAX_CONFIG: u64 = 1 << 20;
/// Fields of configurations that are not this crate's, and what to do about them.
const FOREIGN: [(&str, &str); 4] = [
    ("model_type", HUGGING_FACE),
    ("architectures", HUGGING_FACE),
    ("transformers_version", HUGGING_FACE),
    ("upsample_rates", "is missing: this configures a vocoder; give its checkpoint to `im2sp convert --vocoder`"),
];
const HUGGING_FACE: &str =
    "is missing: this is a Hugging Face directory; convert it first: `im2sp convert DIR -o MODEL`";

/// An opened model: its dimensions and its mapped tensors.
#[derive(Debug)]
pub struct ModelFiles {
    /// Checked with [`ModelConfig::check`].
    pub config: ModelConfig,
    /// Everything between pixels and units.
    pub captioner: TensorStore,
    /// Everything between units and samples; there exactly when `config.vocoder` is.
    pub vocoder: Option<TensorStore>,
    /// Everything between pixels and image units, if it is there.
    pub tokenizer: Option<TokenizerFiles>,
}

/// An opened image tokenizer.
#[derive(Debug)]
pub struct TokenizerFiles {
    /// Checked with [`TokenizerConfig::check`].
    pub config: TokenizerConfig,
    /// Its tensors.
    pub store: TensorStore,
}

impl TokenizerFiles {
    /// Reads `tokenizer.json` of `dir` and maps the weights; unless `map`, they are read into memory.
    pub fn open_with(dir: &Path, map: bool) -> Result<TokenizerFiles> {
        let path = dir.join(TOKENIZER_CONFIG);
        if !path.exists() {
            let problem = "is not there: make a tokenizer with `im2sp convert --tokenizer CKPT --codebook CKPT`";
            return Err(Error::weights(&path, "file", problem));
        }
        let config = parse_tokenizer(&path, &read_small(&path)?)?;
        Ok(TokenizerFiles { config, store: open_store(&dir.join(TOKENIZER), map)? })
    }
}

/// The tensors of a weights file, mapped or read into memory.
fn open_store(path: &Path, map: bool) -> Result<TensorStore> {
    if map { TensorStore::open(path) } else { TensorStore::from_bytes(path, read_file(path)?) }
}

/// Parses and checks the text of a `tokenizer.json`; `path` names it in errors.
pub fn parse_tokenizer(path: &Path, text: &str) -> Result<TokenizerConfig> {
    let config: TokenizerConfig = serde_json::from_str(text)
        .map_err(|error| Error::weights(path, "tokenizer configuration", error.to_string()))?;
    config.check().map_err(|(field, problem)| Error::weights(path, field, problem))?;
    Ok(config)
}

impl ModelFiles {
    /// Reads `config.json` of `dir` and maps the weights it speaks of.
    pub fn open(dir: &Path) -> Result<ModelFiles> {
        ModelFiles::open_with(dir, true)
    }

    /// As [`ModelFiles::open`]; unless `map`, the weights are read into memory.
    pub fn open_with(dir: &Path, map: bool) -> Result<ModelFiles> {
        let open = |name: &str| open_store(&dir.join(name), map);
        if !dir.is_dir() {
            return Err(Error::weights(dir, "model", "is not a directory: make one with `im2sp convert`"));
        }
        let path = dir.join(CONFIG);
        if !path.exists() {
            let problem = "is not there: make a model directory with `im2sp convert`";
            return Err(Error::weights(&path, "file", problem));
        }
        let config = parse_config(&path, &read_small(&path)?)?;
        let captioner = open(CAPTIONER)?;
        let vocoder = config.vocoder.is_some().then(|| open(VOCODER)).transpose()?;
        let has_tokenizer = dir.join(TOKENIZER_CONFIG).exists();
        let tokenizer = has_tokenizer.then(|| TokenizerFiles::open_with(dir, map)).transpose()?;
        Ok(ModelFiles { config, captioner, vocoder, tokenizer })
    }

    /// A model that is part of the program: the text of `config.json` and the bytes of the two weights files. An empty
    /// `vocoder` stands for none. The slices are used in place where they are aligned to 64 bytes.
    pub fn from_bytes(config: &str, captioner: &'static [u8], vocoder: &'static [u8]) -> Result<ModelFiles> {
        let place = |name: &str| PathBuf::from(format!("<embedded {name}>"));
        let config = parse_config(&place(CONFIG), config)?;
        let captioner = TensorStore::from_bytes(&place(CAPTIONER), Bytes::new(captioner))?;
        let vocoder = match &config.vocoder {
            Some(_) => Some(TensorStore::from_bytes(&place(VOCODER), Bytes::new(vocoder))?),
            None => None,
        };
        Ok(ModelFiles { config, captioner, vocoder, tokenizer: None })
    }

    /// Writes a model directory at `dir`: all of it or nothing. A directory that exists is kept unless `force`.
    pub fn write(
        dir: &Path,
        config: &ModelConfig,
        captioner: &BTreeMap<String, HostTensor>,
        vocoder: Option<&BTreeMap<String, HostTensor>>,
        force: bool,
    ) -> Result<()> {
        if vocoder.is_some() != config.vocoder.is_some() {
            return Err(Error::weights(dir, "vocoder", "weights and configuration disagree whether there is one"));
        }
        let staged = StagedDirectory::create(dir, force)?;
        write_tensors(&staged.path().join(CAPTIONER), captioner)?;
        if let Some(vocoder) = vocoder {
            write_tensors(&staged.path().join(VOCODER), vocoder)?;
        }
        staged.commit(config)
    }
}

/// Writes `tensors` to one safetensors file, the wider element types first so that all stay aligned.
pub(crate) fn write_tensors(path: &Path, tensors: &BTreeMap<String, HostTensor>) -> Result<()> {
    let mut order: Vec<(&String, &HostTensor)> = tensors.iter().collect();
    order.sort_by_key(|(_, tensor)| std::cmp::Reverse(tensor.dtype().size()));
    let entry = |(name, tensor): &(&String, &HostTensor)| Entry {
        name: name.to_string(),
        shape: tensor.shape().to_vec(),
        dtype: tensor.dtype(),
    };
    let mut writer = Writer::create(path, order.iter().map(entry).collect())?;
    for (name, tensor) in order {
        writer.write(name, tensor)?;
    }
    writer.finish()
}

/// Reads a text file that has no reason to be long.
pub fn read_small(path: &Path) -> Result<String> {
    String::from_utf8(files::read_at_most(path, MAX_CONFIG)?).map_err(|error| {
        let problem = files::mistaken_content(error.as_bytes()).unwrap_or_else(|| "is no UTF-8 text".into());
        Error::weights(path, "file", problem)
    })
}

/// Parses and checks the text of a model's `config.json`; `path` names it in errors.
pub fn parse_config(path: &Path, text: &str) -> Result<ModelConfig> {
    let config: ModelConfig = serde_json::from_str(text).map_err(|error| match Json::parse(path, text) {
        Err(problem) => problem,
        Ok(other) => match FOREIGN.iter().find(|(field, _)| other.value(field).is_some()) {
            Some((_, problem)) if other.value("format").is_none() => Error::weights(path, "format", *problem),
            _ if other.value("kind").is_some_and(|kind| kind == "ctc" || kind == "speech_encoder") => {
                let problem = "is that of a speech model: give it to `im2sp transcribe` (ctc) or `im2sp units`";
                Error::weights(path, "kind", problem)
            }
            _ => Error::weights(path, "model configuration", error.to_string()),
        },
    })?;
    config.check().map_err(|(field, problem)| Error::weights(path, field, problem))?;
    Ok(config)
}
