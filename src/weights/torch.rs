//! PyTorch checkpoints: the zip container (since 1.6) and the legacy stream before it. Storages are views of the mapped
//! file; the pickle that says which tensor is where is only read, never run ([`super::pickle`]). The tar container of
//! the very first releases is refused.

use std::collections::HashMap;
use std::io::Cursor;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::pickle::{Pickle, View};
use super::stored::{Element, StoredTensor, map_file};
use crate::tensor::{Bytes, DType};
use crate::{Error, Result};

/// First object of a legacy stream, little-endian.
const LEGACY_MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// Second object of a legacy stream.
const LEGACY_PROTOCOL: i64 = 1001;
/// Most dimensions of a tensor.
const MAX_DIMENSIONS: usize = 16;

/// Tensors by their dotted names, in the order of the file.
pub type StateDict = Vec<(String, StoredTensor)>;

/// An opened checkpoint: the object it holds, and where its storages lie.
pub struct Checkpoint {
    path: PathBuf,
    object: Pickle,
    storages: HashMap<String, Bytes>,
}

impl Checkpoint {
    /// Maps and reads `path`.
    pub fn open(path: &Path) -> Result<Checkpoint> {
        Checkpoint::from_bytes(path, map_file(path)?)
    }

    /// Reads a checkpoint that is in memory; `path` only names it in errors.
    pub fn from_bytes(path: &Path, bytes: Bytes) -> Result<Checkpoint> {
        if bytes.starts_with(b"PK\x03\x04") {
            read_zip(path, &bytes)
        } else if bytes.get(257..262) == Some(b"ustar") {
            let problem = "is the tar container of PyTorch 0.1: load and save it again with a newer release";
            Err(Error::weights(path, "container", problem))
        } else if bytes.first() == Some(&0x80) {
            read_legacy(path, &bytes)
        } else {
            Err(Error::weights(path, "container", "is no PyTorch checkpoint: neither a zip archive nor a pickle"))
        }
    }

    /// The state dict under the first of `keys` that is there and holds a dict, otherwise the object itself. Every
    /// value has to be a tensor.
    pub fn state_dict(&self, keys: &[&str]) -> Result<StateDict> {
        let root = self.object.root();
        let nested = keys.iter().find_map(|key| root.get(key).map(|value| (*key, value)));
        let (field, dict) = nested.unwrap_or(("state dict", root));
        let entries = dict
            .as_dict()
            .ok_or_else(|| Error::weights(&self.path, field, format!("expected a dict, found {}", dict.describe())))?;
        let mut tensors = Vec::with_capacity(entries.len());
        let mut positions = HashMap::new();
        for (key, value) in entries {
            let name = key.as_str().ok_or_else(|| {
                Error::weights(&self.path, field, format!("expected a tensor's name, found {}", key.describe()))
            })?;
            let tensor = self.tensor(value).map_err(|problem| Error::weights(&self.path, name, problem))?;
            match positions.insert(name, tensors.len()) {
                None => tensors.push((name.to_string(), tensor)),
                Some(_) => return Err(Error::weights(&self.path, name, "occurs twice")),
            }
        }
        Ok(tensors)
    }

    /// The one dimension-checked tensor `value` stands for.
    fn tensor(&self, value: View<'_>) -> std::result::Result<StoredTensor, String> {
        let wanted = || format!("expected a tensor, found {}", value.describe());
        let ((module, name), arguments) = value.as_call().ok_or_else(wanted)?;
        if arguments.len() > MAX_DIMENSIONS {
            return Err("a tensor with too many arguments".into());
        }
        match (module, name) {
            // (tensor, requires_grad, hooks); a parameter holds a tensor, never another parameter.
            ("torch._utils", "_rebuild_parameter") => {
                let inner = arguments.first().ok_or("a parameter without a tensor")?;
                match inner.class() {
                    Some(("torch._utils", "_rebuild_tensor_v2")) => self.tensor(*inner),
                    _ => Err(format!("expected a tensor, found {}", inner.describe())),
                }
            }
            // (storage, offset, size, stride, requires_grad, hooks[, metadata])
            ("torch._utils", "_rebuild_tensor_v2") => {
                let [storage, offset, shape, strides, ..] = arguments[..] else {
                    return Err("a tensor with too few arguments".into());
                };
                let (element, storage) = self.storage(storage)?;
                let offset = offset.as_usize().ok_or("a tensor whose offset is no integer")?;
                StoredTensor::new(dimensions(shape)?, dimensions(strides)?, offset, element, storage)
            }
            _ => Err(wanted()),
        }
    }

    fn storage(&self, value: View<'_>) -> std::result::Result<(Element, Bytes), String> {
        let id = value.as_persistent().ok_or_else(|| format!("expected a storage, found {}", value.describe()))?;
        let id = StorageId::parse(id)?;
        let bytes = self.storages.get(id.key).ok_or_else(|| format!("its storage {:?} is not in the file", id.key))?;
        let (start, count) = id.window.unwrap_or((0, id.count));
        let range = byte_range(start, count, id.element.size()).and_then(|range| bytes.slice(range));
        range
            .map(|bytes| (id.element, bytes))
            .ok_or_else(|| format!("its storage {:?} holds fewer than {count} elements: the file is damaged", id.key))
    }
}

/// What a persistent id says: ("storage", class, key, location, count[, view]).
struct StorageId<'a> {
    element: Element,
    key: &'a str,
    count: usize,
    /// First element and number of elements, of a view in a legacy file.
    window: Option<(usize, usize)>,
}

impl<'a> StorageId<'a> {
    fn parse(id: View<'a>) -> std::result::Result<StorageId<'a>, String> {
        let fields = id.as_tuple().unwrap_or_default();
        let ([kind, class, key, _location, count] | [kind, class, key, _location, count, _]) = fields[..] else {
            return Err("a storage with the wrong number of fields".into());
        };
        if kind.as_str() != Some("storage") {
            return Err("a persistent id that is no storage".into());
        }
        let element = match class.class() {
            Some(("torch", class)) => element_of(class),
            _ => None,
        };
        let element = element.ok_or_else(|| format!("its storage is of an unknown type: {}", class.describe()))?;
        let window = match fields.get(5).and_then(View::as_tuple) {
            Some(view) => {
                let [_key, start, count] = view[..] else { return Err("a storage view with wrong fields".into()) };
                start.as_usize().zip(count.as_usize())
            }
            None => None,
        };
        Ok(StorageId {
            element,
            key: key.as_str().ok_or("a storage whose key is no text")?,
            count: count.as_usize().ok_or("a storage whose length is no integer")?,
            window,
        })
    }
}

fn element_of(class: &str) -> Option<Element> {
    Some(match class {
        "FloatStorage" => Element::Float(DType::F32),
        "DoubleStorage" => Element::F64,
        "HalfStorage" => Element::Float(DType::F16),
        "BFloat16Storage" => Element::Float(DType::BF16),
        "LongStorage" => Element::Integer(8),
        "IntStorage" => Element::Integer(4),
        "ShortStorage" => Element::Integer(2),
        "CharStorage" | "ByteStorage" | "BoolStorage" => Element::Integer(1),
        _ => return None,
    })
}

fn byte_range(start: usize, count: usize, size: usize) -> Option<Range<usize>> {
    let start = start.checked_mul(size)?;
    Some(start..start.checked_add(count.checked_mul(size)?)?)
}

fn dimensions(value: View<'_>) -> std::result::Result<Vec<usize>, String> {
    let fields = value.as_tuple().ok_or("a tensor whose shape is no tuple")?;
    if fields.len() > MAX_DIMENSIONS {
        return Err(format!("a tensor of {} dimensions", fields.len()));
    }
    let all: Option<Vec<usize>> = fields.iter().map(View::as_usize).collect();
    all.ok_or_else(|| "a tensor whose shape holds something else than sizes".into())
}

/// Reads the zip container. Entries have to be stored: the data is used where it lies, and nothing can expand.
fn read_zip(path: &Path, bytes: &Bytes) -> Result<Checkpoint> {
    let damaged = |error: zip::result::ZipError| {
        Error::weights(path, "zip archive", format!("cannot be read ({error}): the file is damaged or cut off"))
    };
    let config = zip::read::Config { archive_offset: zip::read::ArchiveOffset::Known(0) };
    let mut archive = zip::ZipArchive::with_config(config, Cursor::new(&bytes[..])).map_err(damaged)?;
    let mut entries: HashMap<String, Bytes> = HashMap::new();
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index).map_err(damaged)?;
        let name = entry.name().map_err(damaged)?.into_owned();
        if entry.compression() != zip::CompressionMethod::Stored || entry.encrypted() {
            return Err(Error::weights(
                path,
                name,
                "is compressed; PyTorch stores its entries, so this is no checkpoint",
            ));
        }
        let range = entry.data_start().filter(|_| entry.size() == entry.compressed_size()).and_then(|start| {
            let end = start.checked_add(entry.size())?;
            Some(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
        });
        let data = range.and_then(|range| bytes.slice(range)).ok_or_else(|| {
            Error::weights(path, name.as_str(), "lies outside the file: the archive is damaged or cut off")
        })?;
        if entries.insert(name.clone(), data).is_some() {
            return Err(Error::weights(path, name, "occurs twice in the archive"));
        }
    }
    let mut roots = entries.keys().filter_map(|name| name.strip_suffix("data.pkl")).filter(|root| root.ends_with('/'));
    let (Some(root), None) = (roots.next(), roots.next()) else {
        return Err(Error::weights(
            path,
            "data.pkl",
            "expected exactly one in the archive: this is no PyTorch checkpoint",
        ));
    };
    if entries.get(&format!("{root}byteorder")).is_some_and(|order| order[..] != *b"little") {
        return Err(Error::weights(path, "byteorder", "is not little-endian, which this reader needs"));
    }
    let pickle = entries.get(&format!("{root}data.pkl")).cloned().unwrap_or_else(|| Bytes::new(Vec::new()));
    let prefix = format!("{root}data/");
    let (object, _) = Pickle::parse(pickle).map_err(|problem| Error::weights(path, "data.pkl", problem))?;
    let storages = entries
        .into_iter()
        .filter_map(|(name, data)| name.strip_prefix(&prefix).map(|key| (key.to_string(), data)))
        .collect();
    Ok(Checkpoint { path: path.to_owned(), object, storages })
}

/// Reads the legacy stream: five pickles (magic, protocol, system, object, storage keys), then per key its number of
/// elements as an i64 and the elements.
fn read_legacy(path: &Path, bytes: &Bytes) -> Result<Checkpoint> {
    let mut at = 0;
    let mut next = |part: &'static str| -> Result<Pickle> {
        let rest = bytes.slice(at..bytes.len()).unwrap_or_else(|| Bytes::new(Vec::new()));
        let (pickle, taken) = Pickle::parse(rest).map_err(|problem| Error::weights(path, part, problem))?;
        at += taken;
        Ok(pickle)
    };
    if next("magic number")?.root().as_long() != Some(&LEGACY_MAGIC) {
        return Err(Error::weights(path, "container", "is a pickle, but no PyTorch checkpoint"));
    }
    if next("protocol")?.root().as_i64() != Some(LEGACY_PROTOCOL) {
        return Err(Error::weights(path, "protocol", "is not 1001, the only one there ever was"));
    }
    if next("system")?.root().get("little_endian").and_then(|value| value.as_bool()) != Some(true) {
        return Err(Error::weights(path, "system", "does not say that the data is little-endian"));
    }
    let object = next("object")?;
    let keys = next("storage keys")?;
    let mut sizes = HashMap::new();
    for id in object.persistent_ids() {
        let id = StorageId::parse(id).map_err(|problem| Error::weights(path, "object", problem))?;
        if *sizes.entry(id.key).or_insert(id.element.size()) != id.element.size() {
            return Err(Error::weights(path, "object", format!("storage {:?} has two element types", id.key)));
        }
    }
    let mut storages = HashMap::new();
    let names = keys.root().as_list();
    for name in names.ok_or_else(|| Error::weights(path, "storage keys", "expected a list"))? {
        let key = name.as_str().ok_or_else(|| Error::weights(path, "storage keys", "expected text"))?;
        let size = sizes.get(key).copied();
        let size = size.ok_or_else(|| Error::weights(path, "storage keys", format!("nothing uses storage {key:?}")))?;
        let data = legacy_storage(bytes, at, size);
        let data = data.ok_or_else(|| Error::weights(path, format!("storage {key:?}"), "the file is cut off here"))?;
        at += 8 + data.len();
        storages.insert(key.to_string(), data);
    }
    Ok(Checkpoint { path: path.to_owned(), object, storages })
}

fn legacy_storage(bytes: &Bytes, at: usize, size: usize) -> Option<Bytes> {
    let length: [u8; 8] = bytes.get(at..at.checked_add(8)?)?.try_into().ok()?;
    let count = usize::try_from(i64::from_le_bytes(length)).ok()?;
    let start = at + 8;
    bytes.slice(start..start.checked_add(count.checked_mul(size)?)?)
}
