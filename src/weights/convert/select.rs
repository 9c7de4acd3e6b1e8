//! The model inside a checkpoint: which of its dicts, and which of that dict's names. Training code wraps a model in
//! modules (`module.`, `_orig_mod.`, `model.`), keeps copies of it (`ema.`) and saves its state dict with an
//! optimizer's, each in its own way; all ways share that the model's own names end the stored ones.

use std::collections::BTreeSet;
use std::path::Path;

use crate::weights::safetensors;
use crate::weights::store::list_names;
use crate::weights::stored::map_file;
use crate::weights::torch::{Checkpoint, Dict, StateDict};
use crate::{Error, Result};

/// Components that wrappers put into a name, anywhere: compilation, data parallelism, sharding, checkpointing.
const WRAPPERS: [&str; 5] =
    ["_orig_mod", "module", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];
/// Words in a key or prefix that mark a copy of the model next to the model itself.
const COPIES: [&str; 7] = ["ema", "swa", "shadow", "teacher", "average", "averaged", "avg"];

/// A kind of model, by its names.
pub(super) struct Family {
    /// For people.
    pub name: &'static str,
    /// Components that begin names of every such model and of no other.
    pub marker: &'static [&'static str],
    /// First components of the names that belong to it; empty: all that have its prefix.
    pub parts: &'static [&'static str],
    /// Key of the dict that holds it, where several do.
    pub key: &'static str,
}

/// The tensors of a model under its own names, and the stored names that are not part of it.
pub(super) struct Selected {
    pub tensors: StateDict,
    pub left_aside: Vec<String>,
}

/// An opened weights file.
pub(super) enum Opened {
    Checkpoint(Checkpoint),
    Tensors(StateDict),
}

/// Opens a checkpoint or a safetensors file, whatever its name is.
pub(super) fn open(path: &Path) -> Result<Opened> {
    let bytes = map_file(path)?;
    let named = path.extension().is_some_and(|extension| extension == "safetensors");
    if safetensors::is_safetensors(&bytes) || (named && !bytes.starts_with(b"PK\x03\x04")) {
        Ok(Opened::Tensors(safetensors::from_bytes(path, bytes)?))
    } else {
        Ok(Opened::Checkpoint(Checkpoint::from_bytes(path, bytes)?))
    }
}

impl Family {
    /// The model in an opened file. Fails, and says what is there, unless there is exactly one.
    pub fn select(&self, path: &Path, opened: Opened) -> Result<Selected> {
        let checkpoint = match opened {
            Opened::Tensors(tensors) => return self.select_tensors(path, tensors),
            Opened::Checkpoint(checkpoint) => checkpoint,
        };
        let dicts = checkpoint.dicts()?;
        let holders: Vec<&Dict> = dicts.iter().filter(|dict| !self.prefixes(&dict.names()).is_empty()).collect();
        let models = without_copies(&holders, |dict| dict.keys().join("."));
        let dict = match models[..] {
            [] => {
                let root = dicts.first();
                if let Some(key) = root.and_then(|root| root.modules().first().copied()) {
                    let problem = "is a whole module, which is not read: save its state_dict() with torch.save";
                    return Err(Error::weights(path, key, problem));
                }
                return Err(self.absent(path, &root.map(Dict::names).unwrap_or_default()));
            }
            [dict] => dict,
            _ => match models.iter().find(|dict| dict.keys().last() == Some(&self.key)) {
                Some(dict) => dict,
                None => return Err(self.several(path, models.iter().map(|dict| dict.keys().join(".")))),
            },
        };
        let names = dict.names();
        let prefix = self.prefix(path, &names)?;
        let tensors = dict.tensors(|name| self.own_name(name, &prefix).is_some())?;
        self.rename(path, &prefix, tensors, &names)
    }

    /// Whether an opened file holds such a model, once or several times.
    pub fn is_in(&self, opened: Opened) -> bool {
        let names = match opened {
            Opened::Tensors(tensors) => tensors.into_iter().map(|(name, _)| name).collect(),
            Opened::Checkpoint(checkpoint) => {
                let dicts = checkpoint.dicts().unwrap_or_default();
                dicts.iter().flat_map(|dict| dict.names()).map(String::from).collect::<Vec<_>>()
            }
        };
        self.is_among(&names)
    }

    /// Whether names of such a model are among these.
    pub fn is_among(&self, names: &[String]) -> bool {
        !self.prefixes(&names.iter().map(String::as_str).collect::<Vec<_>>()).is_empty()
    }

    /// The model among `tensors`.
    pub fn select_tensors(&self, path: &Path, tensors: StateDict) -> Result<Selected> {
        let names: Vec<String> = tensors.iter().map(|(name, _)| name.clone()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let prefix = self.prefix(path, &names)?;
        self.rename(path, &prefix, tensors, &names)
    }

    /// The model's own of `tensors` under its own names, and which of `names` are not.
    fn rename(&self, path: &Path, prefix: &str, tensors: StateDict, names: &[&str]) -> Result<Selected> {
        let mut own = StateDict::with_capacity(tensors.len());
        for (name, tensor) in tensors {
            if let Some(name) = self.own_name(&name, prefix) {
                own.push((name, tensor));
            }
        }
        let mut seen = BTreeSet::new();
        if let Some((name, _)) = own.iter().find(|(name, _)| !seen.insert(name)) {
            return Err(Error::weights(path, name.as_str(), "is there twice, with and without a wrapper's name in it"));
        }
        let others = names.iter().filter(|name| self.own_name(name, prefix).is_none());
        Ok(Selected { tensors: own, left_aside: others.map(|name| name.to_string()).collect() })
    }

    /// The one prefix of the model's names.
    fn prefix(&self, path: &Path, names: &[&str]) -> Result<String> {
        let prefixes: Vec<String> = self.prefixes(names).into_iter().collect();
        match without_copies(&prefixes, |prefix| prefix.clone())[..] {
            [] => Err(self.absent(path, names)),
            [prefix] => Ok(prefix.clone()),
            ref several => Err(self.several(path, several.iter().map(|prefix| prefix.to_string()))),
        }
    }

    /// The prefixes of the marker, wrappers removed, in `names`.
    fn prefixes(&self, names: &[&str]) -> BTreeSet<String> {
        let marked = |name: &&str| {
            let components = without_wrappers(name);
            let at = components.windows(self.marker.len() + 1).position(|window| window.starts_with(self.marker))?;
            Some(components[..at].iter().map(|component| format!("{component}.")).collect())
        };
        names.iter().filter_map(marked).collect()
    }

    /// The model's own name of `name`, or `None` if that is not part of it.
    fn own_name(&self, name: &str, prefix: &str) -> Option<String> {
        let name = without_wrappers(name).join(".");
        let own = name.strip_prefix(prefix)?;
        let first = own.split('.').next().unwrap_or_default();
        if !self.parts.is_empty() && !self.parts.contains(&first) {
            return None;
        }
        // Spelling of TensorFlow checkpoints, which transformers takes as well.
        for (old, new) in [("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")] {
            if let Some(layer) = own.strip_suffix(old) {
                return Some(format!("{layer}{new}"));
            }
        }
        Some(own.to_string())
    }

    fn absent(&self, path: &Path, names: &[&str]) -> Error {
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        let problem = match list_names(names.iter()) {
            Some(names) => format!("is not there; the keys are {names}: is this another model's checkpoint?"),
            None => "is not there: the checkpoint is empty".into(),
        };
        Error::weights(path, self.title(), problem)
    }

    fn several(&self, path: &Path, places: impl Iterator<Item = String>) -> Error {
        let places: Vec<String> = places.map(|place| format!("`{place}`")).collect();
        let problem =
            format!("is there more than once, under {}: save the one to convert by itself", places.join(", "));
        Error::weights(path, self.title(), problem)
    }

    /// Name of the whole in errors.
    fn title(&self) -> String {
        format!("{} (`{}.…`)", self.name, self.marker.join("."))
    }
}

/// The components of a name without those that wrappers put there.
fn without_wrappers(name: &str) -> Vec<&str> {
    name.split('.').filter(|component| !WRAPPERS.contains(component)).collect()
}

/// `places` without the copies of a model, unless only copies are there.
fn without_copies<T>(places: &[T], name: impl Fn(&T) -> String) -> Vec<&T> {
    let is_copy = |place: &&T| {
        let name = name(place).to_ascii_lowercase();
        name.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| COPIES.contains(&word))
    };
    let models: Vec<&T> = places.iter().filter(|place| !is_copy(place)).collect();
    if models.is_empty() { places.iter().collect() } else { models }
}
