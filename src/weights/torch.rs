//! PyTorch checkpoints: the zip container (since 1.6) and the legacy stream before it. Storages are views of the mapped
//! file; the pickle that says which tensor is where is only read, never run ([`super::pickle`]). The tar container of
//! the very first releases is refused. Writing makes the zip container.

mod container;
mod tensor;
mod writer;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use super::pickle::{Pickle, View};
use super::stored::{StoredTensor, map_file};
use crate::tensor::Bytes;
use crate::{Error, Result, files};

pub use writer::{IntegerLayout, save, save_integers};

/// Levels of dicts below the object that are looked at.
const MAX_DEPTH: usize = 2;

/// Levels of modules in a module.
const MAX_MODULE_DEPTH: usize = 32;
/// Modules of a model at most, shared ones counted as often as they are named.
const MAX_MODULES: usize = 1 << 16;

/// Tensors by their dotted names, in the order of the file.
pub type StateDict = Vec<(String, StoredTensor)>;

/// An opened checkpoint: the object it holds, and where its storages lie.
pub struct Checkpoint {
    path: PathBuf,
    object: Pickle,
    storages: HashMap<String, Bytes>,
    big_endian: bool,
}

/// A dict of a checkpoint: the object itself, or one of the dicts in it.
pub struct Dict<'a> {
    checkpoint: &'a Checkpoint,
    /// Keys that lead to it, outermost first; none for the object itself.
    keys: Vec<&'a str>,
    value: View<'a>,
}

impl Checkpoint {
    /// Maps and reads `path`.
    pub fn open(path: &Path) -> Result<Checkpoint> {
        Checkpoint::from_bytes(path, map_file(path)?)
    }

    /// Reads a checkpoint that is in memory; `path` only names it in errors.
    pub fn from_bytes(path: &Path, bytes: Bytes) -> Result<Checkpoint> {
        if bytes.starts_with(b"PK\x03\x04") {
            container::read_zip(path, &bytes)
        } else if bytes.get(257..262) == Some(b"ustar") {
            let problem = "is the tar container of PyTorch 0.1: load and save it again with a newer release";
            Err(Error::weights(path, "container", problem))
        } else if bytes.first() == Some(&0x80) {
            container::read_legacy(path, &bytes)
        } else if bytes.is_empty() {
            Err(Error::weights(path, "container", "is no PyTorch checkpoint: the file is empty"))
        } else {
            let problem = files::mistaken_content(&bytes)
                .unwrap_or_else(|| "is no PyTorch checkpoint: neither a zip archive nor a pickle".into());
            Err(Error::weights(path, "container", problem))
        }
    }

    /// The dicts of the checkpoint, the object itself first, then what it holds, to a depth of two. A dict that is
    /// there twice counts once. Fails when the object is no dict.
    pub fn dicts(&self) -> Result<Vec<Dict<'_>>> {
        let root = self.object.root();
        if root.as_dict().is_none() {
            self.refuse_spent()?;
            let problem = format!(
                "expected a dict of tensors, found {}; save the model's state_dict() with torch.save",
                root.describe()
            );
            return Err(Error::weights(&self.path, "object", problem));
        }
        let mut seen = HashSet::from([root.id()]);
        let mut dicts = vec![Dict { checkpoint: self, keys: Vec::new(), value: root }];
        let mut level = 0..1;
        for _ in 0..MAX_DEPTH {
            for outer in level.clone() {
                for (key, value) in dicts[outer].value.as_dict().unwrap_or_default() {
                    let Some(key) = key.as_str().filter(|_| value.is_dict() && seen.insert(value.id())) else {
                        continue;
                    };
                    let keys = dicts[outer].keys.iter().copied().chain([key]).collect();
                    dicts.push(Dict { checkpoint: self, keys, value });
                }
            }
            level = level.end..dicts.len();
        }
        self.refuse_spent()?;
        Ok(dicts)
    }

    /// Whether the object is a dict.
    pub fn is_dict(&self) -> bool {
        self.object.root().is_dict()
    }

    /// The parameters and buffers of the object by their dotted names, if it is a whole module; it is read as data, and its
    /// classes mean nothing.
    pub fn module(&self) -> Result<Option<StateDict>> {
        let root = self.object.root();
        if !is_module(root) {
            return Ok(None);
        }
        let (mut tensors, mut reader) = (StateDict::new(), tensor::Reader::new(self));
        let mut modules = vec![(String::new(), root, 0)];
        let mut visits = 0;
        while let Some((prefix, module, depth)) = modules.pop() {
            visits += 1;
            if visits > MAX_MODULES {
                return Err(Error::weights(&self.path, prefix, "is one of more modules than a model has"));
            }
            let part = |name: &str| module.state()?.get(name)?.as_dict();
            for (key, value) in ["_parameters", "_buffers"].iter().filter_map(|name| part(name)).flatten() {
                let Some(name) = key.as_str().filter(|_| !value.is_none()) else { continue };
                let name = format!("{prefix}{name}");
                let tensor = reader.tensor(value);
                self.refuse_spent()?;
                tensors.push((name.clone(), tensor.map_err(|problem| Error::weights(&self.path, name, problem))?));
            }
            for (key, value) in part("_modules").into_iter().flatten() {
                let Some(name) = key.as_str().filter(|_| is_module(value)) else { continue };
                if depth == MAX_MODULE_DEPTH {
                    return Err(Error::weights(&self.path, prefix, "holds modules in too many levels"));
                }
                modules.push((format!("{prefix}{name}."), value, depth + 1));
            }
            self.refuse_spent()?;
        }
        Ok(Some(tensors))
    }

    /// The truth value that `keys` lead to, outermost first, through dicts and through objects with attributes.
    pub fn truth(&self, keys: &[&str]) -> Option<bool> {
        let mut value = self.object.root();
        for key in keys {
            value = value.get(key).or_else(|| value.state()?.get(key))?;
        }
        value.as_bool()
    }

    /// The object itself, which has to be a tensor or an array.
    pub fn tensor(&self) -> Result<StoredTensor> {
        let tensor = tensor::Reader::new(self).tensor(self.object.root());
        self.refuse_spent()?;
        tensor.map_err(|problem| Error::weights(&self.path, "object", problem))
    }

    /// Refuses an object whose values share their parts so often that reading them was given up.
    fn refuse_spent(&self) -> Result<()> {
        if self.object.is_spent() {
            let problem = "shares long containers among more values than a checkpoint does; save the model's \
                           state_dict() with torch.save";
            return Err(Error::weights(&self.path, "object", problem));
        }
        Ok(())
    }
}

impl<'a> Dict<'a> {
    /// Keys that lead to it, outermost first; none for the object itself.
    pub fn keys(&self) -> &[&'a str] {
        &self.keys
    }

    /// Its text keys.
    pub fn names(&self) -> Vec<&'a str> {
        self.value.as_dict().unwrap_or_default().into_iter().filter_map(|(key, _)| key.as_str()).collect()
    }

    /// Text keys whose values are whole modules, which are code and not read.
    pub fn modules(&self) -> Vec<&'a str> {
        let entries = self.value.as_dict().unwrap_or_default().into_iter();
        let modules = entries.filter(|(_, value)| is_module(*value));
        modules.filter_map(|(key, _)| key.as_str()).collect()
    }

    /// The values of the keys for which `wanted` is true, which have to be tensors.
    pub fn tensors(&self, wanted: impl Fn(&str) -> bool) -> Result<StateDict> {
        let path = &self.checkpoint.path;
        let (mut tensors, mut names) = (StateDict::new(), HashSet::new());
        let mut reader = tensor::Reader::new(self.checkpoint);
        for (key, value) in self.value.as_dict().unwrap_or_default() {
            let Some(name) = key.as_str().filter(|name| wanted(name)) else { continue };
            let tensor = reader.tensor(value);
            self.checkpoint.refuse_spent()?;
            let tensor = tensor.map_err(|problem| Error::weights(path, name, problem))?;
            if !names.insert(name) {
                return Err(Error::weights(path, name, "occurs twice"));
            }
            tensors.push((name.to_string(), tensor));
        }
        self.checkpoint.refuse_spent()?;
        Ok(tensors)
    }
}

/// Whether a value is a whole module.
fn is_module(value: View<'_>) -> bool {
    value.state().is_some_and(|state| state.get("_modules").is_some())
}
