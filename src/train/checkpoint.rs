//! Checkpoints of a run: folders `step-NNNNNNNN`, each a model directory (`im2sp caption --weights`) with the optimizer's
//! moments and the run's position. A folder gets its name when it is complete and on disk; `checkpoints.json` then says which is
//! the last and which the best, and the others go. A process that is killed at any point leaves the run readable.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::parameters::Layout;
use crate::config::ModelConfig;
use crate::files::{Unfinished, sync_folder, temporary};
use crate::tensor::HostTensor;
use crate::weights::directory::{CAPTIONER, CONFIG, VOCODER, read_small, write_tensors};
use crate::weights::store::TensorStore;
use crate::{Error, Result, files};

/// Names the last and the best checkpoint.
pub const INDEX: &str = "checkpoints.json";
const STATE: &str = "state.json";
const MOMENTS: &str = "moments.safetensors";
const PREFIX: &str = "step-";
const FORMAT: &str = "im2sp-train-2";

/// Position of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// Updates done.
    pub update: u64,
    /// Current epoch, from 0.
    pub epoch: u64,
    /// Samples of this epoch that all ranks together have taken.
    pub samples: u64,
    /// The best validation so far.
    pub best: Option<Best>,
}

/// The best validation of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    /// Updates before it.
    pub update: u64,
    /// Its loss.
    pub loss: f64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StateFile {
    format: String,
    position: Position,
}

/// Content of [`INDEX`]: folders in the run directory.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Index {
    /// The checkpoint to resume from.
    pub last: Option<String>,
    /// The checkpoint of the best validation.
    pub best: Option<String>,
}

/// Contents of a checkpoint to be written.
pub struct Checkpoint<'a> {
    /// Position of the run.
    pub position: &'a Position,
    /// Dimensions.
    pub config: &'a ModelConfig,
    /// The model's tensors.
    pub captioner: &'a BTreeMap<String, HostTensor>,
    /// Those of the vocoder, if there is one.
    pub vocoder: Option<&'a BTreeMap<String, HostTensor>>,
    /// Places of the trained parameters.
    pub layout: &'a Layout,
    /// First and second moments, as in the block.
    pub moments: [&'a [f32]; 2],
}

/// Training state read back.
pub struct Resumed {
    /// Position of the run.
    pub position: Position,
    /// The model's tensors.
    pub captioner: TensorStore,
    /// First and second moments, as in the block.
    pub moments: [Vec<f32>; 2],
}

impl Index {
    /// Reads the index of a run; without one, the newest checkpoint is the last.
    ///
    /// # Errors
    /// If it is damaged.
    pub fn read(run: &Path) -> Result<Index> {
        let path = run.join(INDEX);
        if !path.exists() {
            // A folder under its name is whole: the newest is the last.
            let names =
                fs::read_dir(run).into_iter().flatten().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
            let last = names.filter(|name| update_of(name).is_some()).max_by_key(|name| update_of(name));
            return Ok(Index { last, best: None });
        }
        let text = read_small(&path)?;
        serde_json::from_str(&text).map_err(|error| Error::weights(&path, "checkpoints", error.to_string()))
    }

    fn write(&self, run: &Path) -> Result<()> {
        let path = run.join(INDEX);
        let text = serde_json::to_string_pretty(self)
            .map_err(|error| Error::weights(&path, "checkpoints", error.to_string()))?;
        files::write_atomically(&path, format!("{text}\n").as_bytes())
    }
}

impl Checkpoint<'_> {
    /// Writes the checkpoint, makes it the last one and, if it is the best, that, and removes those that are neither.
    ///
    /// # Errors
    /// If a file cannot be written: the checkpoints before stay as they are.
    pub fn save(&self, run: &Path) -> Result<()> {
        let name = format!("{PREFIX}{:08}", self.position.update);
        let fail = || Error::io("create a directory in", run);
        let (folder, _unfinished) =
            Unfinished::create(|| temporary(0o777).tempdir_in(run), tempfile::TempDir::path).map_err(fail())?;
        self.write_files(folder.path())?;
        sync_folder(folder.path())?;
        let destination = run.join(&name);
        // Left by a run that was killed before the index named it.
        if destination.exists() {
            fs::remove_dir_all(&destination).map_err(Error::io("remove", &destination))?;
        }
        fs::rename(folder.path(), &destination).map_err(Error::io("rename a new directory to", &destination))?;
        let _ = folder.keep();
        sync_folder(run)?;
        let before = Index::read(run)?;
        let is_best = self.position.best.is_some_and(|best| best.update == self.position.update);
        let best = if is_best { Some(name.clone()) } else { before.best };
        let index = Index { last: Some(name), best };
        index.write(run)?;
        remove_others(run, &index)
    }

    fn write_files(&self, folder: &Path) -> Result<()> {
        write_tensors(&folder.join(CAPTIONER), self.captioner)?;
        if let Some(vocoder) = self.vocoder {
            write_tensors(&folder.join(VOCODER), vocoder)?;
        }
        let mut moments = BTreeMap::new();
        for (prefix, values) in ["first", "second"].iter().zip(self.moments) {
            let tensors = self.layout.tensors(values)?;
            moments.extend(tensors.into_iter().map(|(name, tensor)| (format!("{prefix}.{name}"), tensor)));
        }
        write_tensors(&folder.join(MOMENTS), &moments)?;
        write_json(&folder.join(STATE), &StateFile { format: FORMAT.into(), position: self.position.clone() })?;
        write_json(&folder.join(CONFIG), self.config)
    }
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Error::weights(path, "file", error.to_string()))?;
    files::write_atomically(path, format!("{text}\n").as_bytes())
}

/// Removes checkpoints that the index does not name.
fn remove_others(run: &Path, index: &Index) -> Result<()> {
    for entry in fs::read_dir(run).map_err(Error::io("read", run))? {
        let name = entry.map_err(Error::io("read", run))?.file_name();
        let Some(name) = name.to_str().filter(|name| update_of(name).is_some()) else { continue };
        if ![&index.last, &index.best].iter().any(|kept| kept.as_deref() == Some(name)) {
            // What somebody still reads may stay: the next checkpoint tries again.
            let _ = fs::remove_dir_all(run.join(name));
        }
    }
    Ok(())
}

/// The update in the name of a checkpoint; `None` for other names.
fn update_of(name: &str) -> Option<u64> {
    name.strip_prefix(PREFIX)
        .filter(|digits| digits.len() >= 8 && digits.bytes().all(|byte| byte.is_ascii_digit()))?
        .parse()
        .ok()
}

/// Removes what a process that was killed had not finished, and the checkpoints that it was about to remove.
///
/// # Errors
/// If the run cannot be read, or its index is damaged.
pub fn remove_unfinished(run: &Path) -> Result<()> {
    for entry in fs::read_dir(run).map_err(Error::io("read", run))? {
        let entry = entry.map_err(Error::io("read", run))?;
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(".im2sp-")) {
            let _ = fs::remove_dir_all(entry.path()).or_else(|_| fs::remove_file(entry.path()));
        }
    }
    // Without an index nothing was to be removed yet.
    if run.join(INDEX).exists() { remove_others(run, &Index::read(run)?) } else { Ok(()) }
}

/// The last checkpoint of a run; `None` if it has none yet.
///
/// # Errors
/// If the index or the folder is damaged.
pub fn last(run: &Path) -> Result<Option<PathBuf>> {
    Ok(Index::read(run)?.last.map(|name| run.join(name)))
}

/// Reads a checkpoint for parameters of `layout`.
///
/// # Errors
/// If a file is damaged, or belongs to a model of another shape.
pub fn resume(checkpoint: &Path, layout: &Layout) -> Result<Resumed> {
    let path = checkpoint.join(STATE);
    let damaged = |error: serde_json::Error| Error::weights(&path, "training state", error.to_string());
    let state: serde_json::Value = serde_json::from_str(&read_small(&path)?).map_err(damaged)?;
    // Before the fields, which another version has others of.
    if state["format"] != FORMAT {
        let problem = format!("is {}, this version reads {FORMAT:?}", state["format"]);
        return Err(Error::weights(&path, "format", problem));
    }
    let state: StateFile = serde_json::from_value(state).map_err(damaged)?;
    let mut store = TensorStore::open(&checkpoint.join(MOMENTS))?;
    let mut read = |prefix: &str| {
        let mut values = vec![0.0; layout.len()];
        for entry in layout.entries() {
            let tensor = store.take(&format!("{prefix}.{}", entry.name), &entry.shape)?;
            values[entry.place.range()].copy_from_slice(&tensor.to_f32());
        }
        Ok::<_, Error>(values)
    };
    let moments = [read("first")?, read("second")?];
    store.finish()?;
    Ok(Resumed { position: state.position, captioner: TensorStore::open(&checkpoint.join(CAPTIONER))?, moments })
}
