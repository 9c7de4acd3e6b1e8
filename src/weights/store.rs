//! The tensors of one weights file by name, handed out once each. A model takes what it needs with the shape it needs;
//! what is missing, misshapen or left over is an error, so a model never runs on half of its weights.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::safetensors;
use super::stored::{Element, map_file};
use crate::tensor::int8;
use crate::tensor::{Bytes, HostTensor, Quantized};
use crate::{Error, Result};

/// Most names an error lists.
const LISTED: usize = 5;

/// The tensors of one file that were not taken yet.
#[derive(Debug)]
pub struct TensorStore {
    path: PathBuf,
    tensors: BTreeMap<String, HostTensor>,
}

impl TensorStore {
    /// Maps a safetensors file of floating-point tensors.
    pub fn open(path: &Path) -> Result<TensorStore> {
        TensorStore::from_bytes(path, map_file(path)?)
    }

    /// As [`TensorStore::open`], of bytes in memory; `path` only names them in errors. Bytes that start at a multiple
    /// of 64 are used where they lie; others may be copied.
    pub fn from_bytes(path: &Path, bytes: Bytes) -> Result<TensorStore> {
        let mut tensors = BTreeMap::new();
        for (name, stored) in safetensors::from_bytes(path, bytes)? {
            let tensor = match stored.element() {
                Element::Float(_) => stored.load(),
                _ => Err("is not f32, bf16, f16, e4m3 or int8: convert the checkpoint again".to_string()),
            };
            tensors.insert(name.clone(), tensor.map_err(|problem| Error::weights(path, name, problem))?);
        }
        Ok(TensorStore { path: path.to_owned(), tensors })
    }

    /// A store of tensors that are in memory already; `path` only names it in errors.
    pub fn new(path: &Path, tensors: BTreeMap<String, HostTensor>) -> TensorStore {
        TensorStore { path: path.to_owned(), tensors }
    }

    /// The file the tensors come from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names that were not taken yet, sorted, with their tensors.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &HostTensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// Removes and returns the tensor `name`. Fails when it is not there or its shape is not `shape`.
    pub fn take(&mut self, name: &str, shape: &[usize]) -> Result<HostTensor> {
        let Some(tensor) = self.tensors.remove(name) else {
            let problem = format!("is missing; expected a tensor of shape {shape:?}");
            return Err(Error::weights(&self.path, name, problem));
        };
        if tensor.shape() != shape {
            let problem = format!("has shape {:?}, expected {shape:?}", tensor.shape());
            return Err(Error::weights(&self.path, name, problem));
        }
        if tensor.dtype().is_coded() { self.scaled(name, tensor) } else { Ok(tensor) }
    }

    /// An eight-bit matrix with the scales of its rows.
    fn scaled(&mut self, name: &str, codes: HostTensor) -> Result<HostTensor> {
        let scale = scale_name(name);
        let rows = codes.shape().first().copied().unwrap_or(0);
        let scales = self.take(&scale, &[rows])?;
        if !scales.to_f32().iter().all(|&scale| int8::is_scale(scale)) {
            return Err(Error::weights(&self.path, scale, "holds a scale that is not a positive number"));
        }
        HostTensor::from_quantized(Quantized { codes, scales })
            .ok_or_else(|| Error::weights(&self.path, name, "is eight-bit but no matrix: convert the checkpoint again"))
    }

    /// Fails when tensors are left that nothing has taken.
    pub fn finish(self) -> Result<()> {
        match list_names(self.tensors.keys()) {
            None => Ok(()),
            Some(names) => Err(Error::weights(&self.path, names, "not part of this model")),
        }
    }
}

/// Name of the scales of the eight-bit matrix `name`.
pub fn scale_name(name: &str) -> String {
    format!("{name}_scale")
}

/// The first few names and how many more there are; `None` of nothing.
pub fn list_names<'a>(names: impl ExactSizeIterator<Item = &'a String>) -> Option<String> {
    let more = names.len().saturating_sub(LISTED);
    let mut list = names.take(LISTED).map(String::as_str).collect::<Vec<_>>().join(", ");
    if list.is_empty() {
        return None;
    }
    if more > 0 {
        list.push_str(&format!(" and {more} more"));
    }
    Some(list)
}
