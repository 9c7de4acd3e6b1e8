//! The containers of a checkpoint: a zip archive, or the legacy stream of pickles. Stored zip entries are used where
//! they lie. Deflated ones, which PyTorch reads but never writes, are unpacked to an unnamed temporary file that is
//! mapped in turn; how much they may expand is bounded.

use std::collections::{HashMap, HashSet};
use std::io::{self, BufWriter, Cursor, Read, Write};
use std::ops::Range;
use std::path::Path;

use flate2::read::DeflateDecoder;
use zip::CompressionMethod;

use super::Checkpoint;
use super::tensor::StorageId;
use crate::tensor::Bytes;
use crate::weights::pickle::Pickle;
use crate::weights::stored::map_open_file;
use crate::{Error, Result};

/// First object of a legacy stream, little-endian.
const LEGACY_MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// Second object of a legacy stream.
const LEGACY_PROTOCOL: i64 = 1001;
/// Most bytes that deflated entries may hold for each byte of the file; weights compress little.
const MAX_EXPANSION: u64 = 16;
/// Most bytes that deflated entries may hold in any case.
const ALLOWED_EXPANSION: u64 = 1 << 26;
/// Most bytes of a pickle for each of its deflated bytes, and in any case: a pickle takes many times its length in memory.
const MAX_PICKLE_EXPANSION: u64 = 64;
const ALLOWED_PICKLE: u64 = 1 << 18;
/// Unpacked entries begin at multiples of this many bytes.
const ALIGNMENT: usize = 64;

/// One entry of the archive.
struct Entry {
    name: String,
    method: CompressionMethod,
    /// Bytes in the archive.
    data: Bytes,
    /// Bytes of its content.
    size: u64,
    crc: u32,
}

/// Reads the zip container.
pub(super) fn read_zip(path: &Path, bytes: &Bytes) -> Result<Checkpoint> {
    let entries = list_entries(path, bytes)?;
    let roots: Vec<&str> = entries
        .iter()
        .filter_map(|entry| entry.name.strip_suffix("data.pkl"))
        .filter(|root| root.is_empty() || root.ends_with('/'))
        .collect();
    let [root] = roots[..] else {
        let names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).take(4).collect();
        let problem = format!(
            "expected exactly one in the archive, which holds {}: this is no PyTorch checkpoint; if one is in it, \
             unpack that first",
            names.join(", ")
        );
        return Err(Error::weights(path, "data.pkl", problem));
    };
    let root = root.to_string();
    let of_checkpoint = |name: &str| {
        let name = name.strip_prefix(&root)?;
        (name == "data.pkl" || name == "byteorder" || name.starts_with("data/")).then(|| name.to_string())
    };
    let entries = entries.into_iter().filter_map(|entry| Some(Entry { name: of_checkpoint(&entry.name)?, ..entry }));
    let mut contents = unpack(path, entries.collect(), bytes.len() as u64)?;
    let big_endian = match contents.remove("byteorder").as_deref() {
        None | Some(b"little") => false,
        Some(b"big") => true,
        Some(_) => return Err(Error::weights(path, "byteorder", "is neither little nor big")),
    };
    let pickle = contents.remove("data.pkl").unwrap_or_else(|| Bytes::new(Vec::new()));
    let (object, _) = Pickle::parse(pickle).map_err(|problem| Error::weights(path, "data.pkl", problem))?;
    let storages =
        contents.into_iter().filter_map(|(name, data)| Some((name.strip_prefix("data/")?.to_string(), data)));
    Ok(Checkpoint { path: path.to_owned(), object, storages: storages.collect(), big_endian })
}

/// Reads the archive's directory and locates the data of every entry.
fn list_entries(path: &Path, bytes: &Bytes) -> Result<Vec<Entry>> {
    let damaged = |error: zip::result::ZipError| {
        Error::weights(path, "zip archive", format!("cannot be read ({error}): the file is damaged or cut off"))
    };
    let config = zip::read::Config { archive_offset: zip::read::ArchiveOffset::Known(0) };
    let mut archive = zip::ZipArchive::with_config(config, Cursor::new(&bytes[..])).map_err(damaged)?;
    let mut entries = Vec::new();
    let mut names = HashSet::new();
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index).map_err(damaged)?;
        let name = entry.name().map_err(damaged)?.into_owned();
        if entry.encrypted() {
            return Err(Error::weights(path, name, "is encrypted: unpack the archive and save the checkpoint again"));
        }
        let range = entry.data_start().and_then(|start| {
            let end = start.checked_add(entry.compressed_size())?;
            Some(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
        });
        let data = range.and_then(|range| bytes.slice(range)).ok_or_else(|| {
            Error::weights(path, name.as_str(), "lies outside the file: the archive is damaged or cut off")
        })?;
        if !names.insert(name.clone()) {
            return Err(Error::weights(path, name, "occurs twice in the archive"));
        }
        let method = entry.compression();
        entries.push(Entry { name, method, data, size: entry.size(), crc: entry.crc32() });
    }
    Ok(entries)
}

/// The contents of `entries` by name. Deflated ones go to one temporary file of at most [`MAX_EXPANSION`] times
/// `length` bytes.
fn unpack(path: &Path, entries: Vec<Entry>, length: u64) -> Result<HashMap<String, Bytes>> {
    let mut contents = HashMap::new();
    let mut deflated = Vec::new();
    let mut total = 0u64;
    for entry in entries {
        match entry.method {
            CompressionMethod::STORE if entry.size == entry.data.len() as u64 => {
                contents.insert(entry.name, entry.data);
            }
            CompressionMethod::STORE => {
                return Err(Error::weights(path, entry.name, "has two sizes: the archive is damaged"));
            }
            CompressionMethod::DEFLATE => {
                let compressed = entry.data.len() as u64;
                let most = compressed.saturating_mul(MAX_PICKLE_EXPANSION).max(ALLOWED_PICKLE);
                if entry.name == "data.pkl" && entry.size > most {
                    let problem = format!("expands from {compressed} to {} bytes: this is no checkpoint", entry.size);
                    return Err(Error::weights(path, entry.name, problem));
                }
                total = total.saturating_add(entry.size.saturating_add(ALIGNMENT as u64));
                deflated.push(entry);
            }
            method => {
                let problem = format!("is compressed with {method}, which PyTorch does not read: zip it with deflate");
                return Err(Error::weights(path, entry.name, problem));
            }
        }
    }
    if deflated.is_empty() {
        return Ok(contents);
    }
    let most = length.saturating_mul(MAX_EXPANSION).max(ALLOWED_EXPANSION);
    if total > most {
        let problem = format!("expands to {total} bytes, more than the {most} that weights of this size can need");
        return Err(Error::weights(path, "zip archive", problem));
    }
    let fail = || Error::io("unpack to a temporary file (TMPDIR needs the room for it)", path);
    let file = tempfile::tempfile().map_err(fail())?;
    let mut writer = BufWriter::new(&file);
    let mut ranges = Vec::new();
    let mut at = 0;
    for entry in deflated {
        let size = inflate(path, &entry, &mut writer)?;
        ranges.push((entry.name, at..at + size));
        let padded = size.next_multiple_of(ALIGNMENT);
        writer.write_all(&[0; ALIGNMENT][..padded - size]).map_err(fail())?;
        at += padded;
    }
    writer.flush().map_err(fail())?;
    drop(writer);
    let unpacked = map_open_file(path, &file)?;
    for (name, range) in ranges {
        contents.insert(name, unpacked.slice(range).unwrap_or_else(|| Bytes::new(Vec::new())));
    }
    Ok(contents)
}

/// Writes the content of a deflated entry, which has to be as long as the archive says. Returns its length.
fn inflate(path: &Path, entry: &Entry, writer: &mut impl Write) -> Result<usize> {
    let damaged =
        |problem: String| Error::weights(path, entry.name.as_str(), format!("{problem}: the file is damaged"));
    let mut decoder = DeflateDecoder::new(&entry.data[..]).take(entry.size.saturating_add(1));
    let mut crc = flate2::Crc::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let count = match decoder.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(damaged(format!("cannot be decompressed ({error})"))),
        };
        crc.update(&buffer[..count]);
        writer.write_all(&buffer[..count]).map_err(Error::io("unpack to a temporary file", path))?;
    }
    let read = entry.size.saturating_add(1) - decoder.limit();
    if read != entry.size || crc.sum() != entry.crc {
        return Err(damaged("does not have the length and checksum that the archive gives".into()));
    }
    usize::try_from(read).map_err(|_| damaged("is longer than can be addressed".into()))
}

/// Reads the legacy stream: five pickles (magic, protocol, system, object, storage keys), then per key its number of
/// elements as an i64 and the elements. Those are little-endian whatever the system was.
pub(super) fn read_legacy(path: &Path, bytes: &Bytes) -> Result<Checkpoint> {
    let mut at = 0;
    let mut next = |part: &'static str| -> Result<Pickle> {
        let rest = bytes.slice(at..bytes.len()).unwrap_or_else(|| Bytes::new(Vec::new()));
        let (pickle, taken) = Pickle::parse(rest).map_err(|problem| Error::weights(path, part, problem))?;
        at += taken;
        Ok(pickle)
    };
    if next("magic number")?.root().as_long() != Some(&LEGACY_MAGIC) {
        return Err(Error::weights(
            path,
            "container",
            "is a pickle, but no PyTorch checkpoint: save it with torch.save",
        ));
    }
    if next("protocol")?.root().as_i64() != Some(LEGACY_PROTOCOL) {
        return Err(Error::weights(path, "protocol", "is not 1001, the only one there ever was"));
    }
    if next("system")?.root().get("little_endian").and_then(|value| value.as_bool()).is_none() {
        return Err(Error::weights(path, "system", "does not say the byte order of the data"));
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
    Ok(Checkpoint { path: path.to_owned(), object, storages, big_endian: false })
}

fn legacy_storage(bytes: &Bytes, at: usize, size: usize) -> Option<Bytes> {
    let length: [u8; 8] = bytes.get(at..at.checked_add(8)?)?.try_into().ok()?;
    let count = usize::try_from(i64::from_le_bytes(length)).ok()?;
    let start: usize = at + 8;
    let range: Range<usize> = start..start.checked_add(count.checked_mul(size)?)?;
    bytes.slice(range)
}
