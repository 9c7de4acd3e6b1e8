//! safetensors files. Reading goes through the `safetensors` crate, which checks the header against the length of the
//! file before any tensor exists; the tensors are views of the mapped file. Writing streams: all shapes are known
//! beforehand, so the header goes first and then one tensor after the other, into a temporary file next to the
//! destination that takes its place only when it is complete and on disk.

use std::collections::HashMap;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use tempfile::NamedTempFile;

use super::stored::{Element, StoredTensor, map_file};
use super::torch::StateDict;
use crate::files::{folder_of, sync_file, sync_folder, temporary};
use crate::tensor::{Bytes, DType, HostTensor, element_count};
use crate::{Error, Result, files};

/// The data begins at a multiple of this many bytes; the header is padded with spaces.
const DATA_ALIGNMENT: usize = 64;

/// Maps `path` and lists its tensors in the order of their data.
pub fn open(path: &Path) -> Result<StateDict> {
    from_bytes(path, map_file(path)?)
}

/// Whether `bytes` begin as a safetensors file does: the length of a header that fits, and the header's brace.
pub fn is_safetensors(bytes: &[u8]) -> bool {
    let Some((length, rest)) = bytes.split_first_chunk() else { return false };
    rest.first() == Some(&b'{') && u64::from_le_bytes(*length) <= rest.len() as u64
}

/// As [`open`], of bytes in memory; `path` only names them in errors. A tensor that the writer left out because it
/// shares the data of another, and whose name stands in the metadata, is there under both names.
pub fn from_bytes(path: &Path, bytes: Bytes) -> Result<StateDict> {
    let lying = |problem: String| Error::weights(path, "header", format!("{problem}: the file is damaged or cut off"));
    let (header, metadata) = SafeTensors::read_metadata(&bytes).map_err(|error| {
        match files::mistaken_content(&bytes).filter(|_| !is_safetensors(&bytes)) {
            Some(problem) => Error::weights(path, "file", problem),
            None => lying(error.to_string()),
        }
    })?;
    let data = bytes.slice(8 + header..bytes.len()).ok_or_else(|| lying("is longer than the file".into()))?;
    let mut infos: Vec<(String, &TensorInfo)> = metadata.tensors().into_iter().collect();
    infos.sort_by(|(a, left), (b, right)| left.data_offsets.cmp(&right.data_offsets).then(a.cmp(b)));
    let mut tensors = Vec::with_capacity(infos.len());
    for (name, info) in infos {
        let tensor = element_of(info.dtype).and_then(|element| {
            let (start, end) = info.data_offsets;
            let storage = data.slice(start..end).ok_or("lies outside the file")?;
            StoredTensor::dense(info.shape.clone(), element, storage)
        });
        match tensor {
            Ok(tensor) => tensors.push((name, tensor)),
            Err(problem) => return Err(Error::weights(path, name, problem)),
        }
    }
    let names: HashMap<&str, usize> = tensors.iter().enumerate().map(|(at, (name, _))| (name.as_str(), at)).collect();
    let aliases = metadata.metadata().iter().flatten().filter(|(alias, _)| !names.contains_key(alias.as_str()));
    let mut shared: Vec<(String, StoredTensor)> = aliases
        .filter_map(|(alias, name)| Some((alias.clone(), tensors[*names.get(name.as_str())?].1.clone())))
        .collect();
    shared.sort_by(|(a, _), (b, _)| a.cmp(b));
    tensors.extend(shared);
    Ok(tensors)
}

fn element_of(dtype: Dtype) -> std::result::Result<Element, String> {
    Ok(match dtype {
        Dtype::F32 => Element::Float(DType::F32),
        Dtype::BF16 => Element::Float(DType::BF16),
        Dtype::F16 => Element::Float(DType::F16),
        Dtype::F8_E4M3 => Element::Float(DType::F8E4M3),
        Dtype::I8 => Element::Float(DType::I8),
        Dtype::F64 => Element::F64,
        Dtype::F8_E5M2 => Element::F8E5M2,
        Dtype::I64 | Dtype::U64 => Element::Integer(8),
        Dtype::I32 | Dtype::U32 => Element::Integer(4),
        Dtype::I16 | Dtype::U16 => Element::Integer(2),
        Dtype::U8 | Dtype::BOOL => Element::Integer(1),
        other => return Err(format!("has the element type {other:?}, which this reader does not know")),
    })
}

/// Header of one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its extents, outermost first.
    pub shape: Vec<usize>,
    /// Its element type.
    pub dtype: DType,
}

impl Entry {
    /// Bytes of its data, unless that is more than can be addressed.
    pub fn size(&self) -> Option<usize> {
        element_count(&self.shape)?.checked_mul(self.dtype.size())
    }
}

/// A safetensors file being written. Dropping it before [`Writer::finish`] removes what was written.
pub struct Writer {
    path: PathBuf,
    file: BufWriter<NamedTempFile>,
    entries: std::vec::IntoIter<Entry>,
}

impl Writer {
    /// Writes the header for `entries`, whose data has to follow in this order. To keep elements aligned, wider types
    /// should come first.
    pub fn create(path: &Path, entries: Vec<Entry>) -> Result<Writer> {
        let header = header(&entries).map_err(|problem| Error::weights(path, "header", problem))?;
        let file = temporary(0o666).tempfile_in(folder_of(path)).map_err(Error::io("create a file next to", path))?;
        let mut writer = Writer { path: path.to_owned(), file: BufWriter::new(file), entries: entries.into_iter() };
        let length = (header.len() as u64).to_le_bytes();
        writer.put(&length)?;
        writer.put(header.as_bytes())?;
        Ok(writer)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(Error::io("write", &self.path))
    }

    /// Writes the next tensor, which has to be the next entry in name, shape and element type.
    pub fn write(&mut self, name: &str, tensor: &HostTensor) -> Result<()> {
        let given = Entry { name: name.into(), shape: tensor.shape().to_vec(), dtype: tensor.dtype() };
        match self.entries.next() {
            Some(entry) if entry == given => self.put(tensor.bytes()),
            other => Err(Error::weights(&self.path, name, format!("was written where the header has {other:?}"))),
        }
    }

    /// Brings the file to disk and gives it its name.
    pub fn finish(mut self) -> Result<()> {
        if let Some(entry) = self.entries.next() {
            return Err(Error::weights(&self.path, entry.name, "was announced but never written"));
        }
        let file = self.file.into_inner().map_err(|error| Error::io("write", &self.path)(error.into_error()))?;
        publish(file, &self.path)
    }
}

fn header(entries: &[Entry]) -> std::result::Result<String, String> {
    let mut end = 0usize;
    let mut infos = Vec::with_capacity(entries.len());
    for entry in entries {
        let start = end;
        let size = entry.size().and_then(|size| start.checked_add(size));
        end = size.ok_or_else(|| format!("{} is larger than can be addressed", entry.name))?;
        let dtype = match entry.dtype {
            DType::F32 => Dtype::F32,
            DType::BF16 => Dtype::BF16,
            DType::F16 => Dtype::F16,
            DType::F8E4M3 => Dtype::F8_E4M3,
            DType::I8 => Dtype::I8,
        };
        let info = TensorInfo { dtype, shape: entry.shape.clone(), data_offsets: (start, end) };
        infos.push((entry.name.clone(), info));
    }
    let format = HashMap::from([("format".to_string(), "pt".to_string())]);
    let metadata = Metadata::new(Some(format), infos).map_err(|error| error.to_string())?;
    let mut header = serde_json::to_string(&metadata).map_err(|error| error.to_string())?;
    let padded = (8 + header.len()).next_multiple_of(DATA_ALIGNMENT) - 8;
    header.extend(std::iter::repeat_n(' ', padded - header.len()));
    Ok(header)
}

/// Flushes a finished temporary file, renames it to `path` and flushes the folder that now names it.
fn publish(file: NamedTempFile, path: &Path) -> Result<()> {
    sync_file(file.as_file()).map_err(Error::io("flush", path))?;
    file.persist(path).map_err(|error| Error::io("rename a temporary file to", path)(error.error))?;
    sync_folder(folder_of(path))
}
