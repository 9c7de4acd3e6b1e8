//! A model directory: `config.json`, `captioner.safetensors` and, unless it was converted without a vocoder,
//! `vocoder.safetensors`. Written next to its destination and renamed there whole, so a directory under its final name
//! is always complete.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::json::Json;
use super::safetensors::{Entry, Writer, readable_by_all, sync_folder, write_whole};
use super::store::TensorStore;
use super::stored::read_file;
use crate::config::ModelConfig;
use crate::files::Unfinished;
use crate::tensor::{Bytes, HostTensor};
use crate::{Error, Result, files};

/// The dimensions, for people and programs.
pub const CONFIG: &str = "config.json";
/// The vision transformer, the projection and the decoder.
pub const CAPTIONER: &str = "captioner.safetensors";
/// The unit HiFi-GAN with its weight norm folded.
pub const VOCODER: &str = "vocoder.safetensors";
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
}

impl ModelFiles {
    /// Reads `config.json` of `dir` and maps the weights it speaks of.
    pub fn open(dir: &Path) -> Result<ModelFiles> {
        ModelFiles::open_with(dir, true)
    }

    /// As [`ModelFiles::open`]; unless `map`, the weights are read into memory.
    pub fn open_with(dir: &Path, map: bool) -> Result<ModelFiles> {
        let open = |name: &str| {
            let path = dir.join(name);
            if map { TensorStore::open(&path) } else { TensorStore::from_bytes(&path, read_file(&path)?) }
        };
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
        Ok(ModelFiles { config, captioner, vocoder })
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
        Ok(ModelFiles { config, captioner, vocoder })
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
            _ => Error::weights(path, "model configuration", error.to_string()),
        },
    })?;
    config.check().map_err(|(field, problem)| Error::weights(path, field, problem))?;
    Ok(config)
}

/// A model directory that does not have its name yet. Dropping it before [`StagedDirectory::commit`] removes it.
pub struct StagedDirectory {
    folder: TempDir,
    destination: PathBuf,
    _unfinished: Unfinished,
}

impl StagedDirectory {
    /// Makes an empty directory next to `destination`, or inside it where its parent takes none. Without `force`,
    /// `destination` must not exist or be empty; with it, it may also be a model directory, but never one that holds other
    /// files.
    pub fn create(destination: &Path, force: bool) -> Result<StagedDirectory> {
        check_replaceable(destination, force)?;
        let parent = parent_of(destination);
        let folder = match folder_in(parent) {
            Err(_) if destination.is_dir() => folder_in(destination),
            other => other,
        };
        let (folder, _unfinished) = folder.map_err(Error::io("create a directory beside", destination))?;
        Ok(StagedDirectory { folder, destination: destination.to_owned(), _unfinished })
    }

    /// Where to write the weights files.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Checks and writes the configuration and gives the directory its name. A directory that had it before goes away
    /// only after that; one that cannot be renamed (a mount point) takes the files instead.
    pub fn commit(self, config: &ModelConfig) -> Result<()> {
        config.check().map_err(|(field, problem)| Error::weights(&self.destination, field, problem))?;
        let text = serde_json::to_string_pretty(config)
            .map_err(|error| Error::weights(&self.destination, CONFIG, error.to_string()))?;
        write_whole(&self.path().join(CONFIG), format!("{text}\n").as_bytes())?;
        let destination = &self.destination;
        if destination.exists() {
            let Ok((aside, _unfinished)) = folder_in(parent_of(destination)) else { return self.fill() };
            let old = aside.path().join("old");
            if fs::rename(destination, &old).is_err() {
                return self.fill();
            }
            if let Err(error) = fs::rename(self.folder.path(), destination) {
                if let Err(error) = fs::rename(&old, destination) {
                    let kept = aside.keep().join("old");
                    return Err(Error::io("move back the model now at", &kept)(error));
                }
                return Err(Error::io("rename a new directory to", destination)(error));
            }
        } else {
            fs::rename(self.folder.path(), destination).map_err(Error::io("rename a new directory to", destination))?;
        }
        // It is under its final name now: nothing of it may be removed any more.
        let _ = self.folder.keep();
        sync_folder(parent_of(destination))
    }

    /// Moves the files into the destination. Its configuration, without which there is no model, goes first and comes last.
    fn fill(&self) -> Result<()> {
        for stale in [CONFIG, VOCODER].map(|name| self.destination.join(name)).iter().filter(|path| path.exists()) {
            fs::remove_file(stale).map_err(Error::io("remove", stale))?;
        }
        for name in [CAPTIONER, VOCODER, CONFIG] {
            let (from, to) = (self.path().join(name), self.destination.join(name));
            if from.exists() && fs::rename(&from, &to).is_err() {
                // The destination may be on another disk.
                fs::copy(&from, &to).map_err(Error::io("write", &to))?;
            }
        }
        sync_folder(&self.destination)
    }
}

/// The directory that holds `path`.
fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A directory with a temporary name and the permissions an ordinary directory would get. Its parent is made in the
/// same step: an interruption may just have removed it as unfinished.
fn folder_in(parent: &Path) -> std::io::Result<(TempDir, Unfinished)> {
    let mut builder = readable_by_all();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o777));
    }
    let create = || fs::create_dir_all(parent).and_then(|()| builder.tempdir_in(parent));
    Unfinished::create(create, TempDir::path)
}

/// Refuses destinations whose content would be lost.
fn check_replaceable(destination: &Path, force: bool) -> Result<()> {
    if !destination.exists() {
        return Ok(());
    }
    if !destination.is_dir() {
        return Err(Error::weights(destination, "output", "exists and is not a directory"));
    }
    let entries = fs::read_dir(destination).map_err(Error::io("read", destination))?;
    for entry in entries {
        let name = entry.map_err(Error::io("read", destination))?.file_name();
        if ![CONFIG, CAPTIONER, VOCODER].iter().any(|known| name == *known) {
            let problem = format!("holds {}, which is no part of a model: choose another", name.display());
            return Err(Error::weights(destination, "output", problem));
        }
        if !force {
            return Err(Error::weights(destination, "output", "holds a model already; --force replaces it"));
        }
    }
    Ok(())
}
