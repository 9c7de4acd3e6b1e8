//! Features on disk: what a frozen encoder makes of every image, in bf16, computed once and mapped from then on.
//!
//! ```text
//! bytes 0..64     "im2sp-features-1", then items, rows and columns of an item (u64), zeros
//! 64..96          key: SHA-256 of what the features were made of
//! 4096..          CRC-32 of every item (u32), 0 where it is missing; up to a multiple of 4096
//! then            items, each (rows, columns) bf16
//! ```
//! All little-endian. An item's sum is written after the item, so a process that ends in between leaves it missing.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use half::bf16;

use crate::files::AtomicFile;
use crate::tensor::Bytes;
use crate::weights::stored::map_file;
use crate::{Error, Result};

const MAGIC: &[u8; 16] = b"im2sp-features-1";
const PAGE: usize = 4096;

/// Dimensions of a file of features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeatureShape {
    /// Images.
    pub items: usize,
    /// Tokens of an image.
    pub rows: usize,
    /// Values of a token.
    pub columns: usize,
}

impl FeatureShape {
    fn item_bytes(&self) -> Option<usize> {
        self.rows.checked_mul(self.columns)?.checked_mul(size_of::<bf16>())
    }

    /// Where the first item begins, and the length of the file.
    fn places(&self) -> Option<(usize, usize)> {
        let start = self.items.checked_mul(4)?.checked_next_multiple_of(PAGE)?.checked_add(PAGE)?;
        Some((start, self.item_bytes()?.checked_mul(self.items)?.checked_add(start)?))
    }

    fn header(&self, key: &[u8; 32]) -> [u8; 96] {
        let mut header = [0; 96];
        header[..16].copy_from_slice(MAGIC);
        for (place, value) in header[16..40].chunks_exact_mut(8).zip([self.items, self.rows, self.columns]) {
            place.copy_from_slice(&(value as u64).to_le_bytes());
        }
        header[64..].copy_from_slice(key);
        header
    }
}

/// A file of features that is being filled or read.
pub struct FeatureCache {
    path: PathBuf,
    file: File,
    shape: FeatureShape,
    start: usize,
    bytes: Bytes,
}

impl FeatureCache {
    /// Opens the file, or makes it anew if it is missing or was made of something else: `key` says of what.
    ///
    /// # Errors
    /// If it cannot be read or written, or the features are more than can be addressed.
    pub fn open(path: &Path, key: &[u8; 32], shape: FeatureShape) -> Result<FeatureCache> {
        FeatureCache::find_or(path, key, shape, true)
    }

    /// Opens the file that another process has filled.
    ///
    /// # Errors
    /// If it cannot be read, or was made of something else.
    pub fn existing(path: &Path, key: &[u8; 32], shape: FeatureShape) -> Result<FeatureCache> {
        FeatureCache::find_or(path, key, shape, false)
    }

    fn find_or(path: &Path, key: &[u8; 32], shape: FeatureShape, create: bool) -> Result<FeatureCache> {
        let too_large = || Error::weights(path, "features", format!("{shape:?} is more than can be addressed"));
        let (start, length) = shape.places().ok_or_else(too_large)?;
        let fail = || Error::io("write", path);
        let open = || File::options().read(true).write(true).open(path);
        let expected = shape.header(key);
        let is_same = |mut file: &File| {
            let mut found = [0; 96];
            file.read_exact(&mut found).is_ok()
                && found == expected
                && file.metadata().is_ok_and(|about| about.len() == length as u64)
        };
        let file = match open() {
            Ok(file) if is_same(&file) => file,
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(fail()(error)),
            _ if !create => {
                let problem = "are not those of this process: do all processes see the same images and encoder?";
                return Err(Error::weights(path, "features", problem));
            }
            _ => {
                // Another file under the same name: the old one may be mapped by a run that still reads it.
                let mut new = AtomicFile::create(path)?;
                let end = SeekFrom::Start(length as u64 - 1);
                let written = new.write_all(&expected).and_then(|()| new.seek(end)).and_then(|_| new.write_all(&[0]));
                written.map_err(fail())?;
                new.commit()?;
                open().map_err(fail())?
            }
        };
        Ok(FeatureCache { path: path.to_owned(), file, shape, start, bytes: map_file(path)? })
    }

    /// Items that are not there yet, or damaged.
    pub fn missing(&self) -> Vec<usize> {
        (0..self.shape.items).filter(|&item| self.item(item).is_none()).collect()
    }

    /// Writes an item.
    ///
    /// # Errors
    /// If it has another size, or cannot be written.
    pub fn put(&self, item: usize, values: &[f32]) -> Result<()> {
        let FeatureShape { items, rows, columns } = self.shape;
        if item >= items || values.len() != rows * columns {
            let problem = format!("{} values for item {item} of {:?}", values.len(), self.shape);
            return Err(Error::shape("features", problem));
        }
        let values: Vec<bf16> = values.iter().map(|&value| bf16::from_f32(value)).collect();
        let bytes: &[u8] = bytemuck::cast_slice(&values);
        let data = self.start + item * bytes.len();
        for (place, bytes) in [(data, bytes), (PAGE + 4 * item, &sum(bytes).to_le_bytes()[..])] {
            let mut file = &self.file;
            let written = file.seek(SeekFrom::Start(place as u64)).and_then(|_| file.write_all(bytes));
            written.map_err(Error::io("write", &self.path))?;
        }
        Ok(())
    }

    /// Brings what was written to disk.
    ///
    /// # Errors
    /// If the system cannot.
    pub fn flush(&self) -> Result<()> {
        self.file.sync_data().map_err(Error::io("flush", &self.path))
    }

    /// Appends an item's values.
    ///
    /// # Errors
    /// If it is missing or damaged.
    pub fn append(&self, item: usize, values: &mut Vec<f32>) -> Result<()> {
        let bytes = self.item(item).ok_or_else(|| {
            let problem = "is missing or damaged: remove the file, to have it made again";
            Error::weights(&self.path, format!("item {item}"), problem)
        })?;
        values.extend(bytes.chunks_exact(2).map(|pair| bf16::from_le_bytes([pair[0], pair[1]]).to_f32()));
        Ok(())
    }

    /// The bytes of an item whose sum is right.
    fn item(&self, item: usize) -> Option<&[u8]> {
        let size = self.shape.item_bytes()?;
        let at = PAGE + 4 * item;
        let stored = u32::from_le_bytes(self.bytes.get(at..at + 4)?.try_into().ok()?);
        let bytes = self.bytes.get(self.start + item * size..self.start + (item + 1) * size)?;
        (item < self.shape.items && stored != 0 && stored == sum(bytes)).then_some(bytes)
    }
}

/// CRC-32 of an item, never 0.
fn sum(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_is_there_after_an_interruption() -> Result<()> {
        let folder = tempfile::tempdir().map_err(Error::io("create", Path::new("a folder")))?;
        let (path, shape) = (folder.path().join("features.bin"), FeatureShape { items: 3, rows: 2, columns: 5 });
        let cache = FeatureCache::open(&path, &[7; 32], shape)?;
        assert_eq!(cache.missing(), [0, 1, 2]);
        cache.put(1, &[0.5; 10])?;
        drop(cache);
        let cache = FeatureCache::open(&path, &[7; 32], shape)?;
        assert_eq!(cache.missing(), [0, 2]);
        let mut values = vec![1.0];
        cache.append(1, &mut values)?;
        assert_eq!(values, [[1.0].as_slice(), &[0.5; 10]].concat());
        assert!(cache.append(0, &mut values).unwrap_err().to_string().contains("item 0"));
        drop(cache);
        // A damaged item is missing; another key, or another shape, is another file.
        let mut bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
        let last = bytes.len() - 25;
        bytes[last] ^= 1;
        std::fs::write(&path, bytes).map_err(Error::io("write", &path))?;
        assert_eq!(FeatureCache::open(&path, &[7; 32], shape)?.missing(), [0, 1, 2]);
        let cache = FeatureCache::open(&path, &[7; 32], shape)?;
        cache.put(2, &[0.0; 10])?;
        assert_eq!(cache.missing(), [0, 1]);
        assert_eq!(FeatureCache::open(&path, &[8; 32], shape)?.missing().len(), 3);
        // A run that has mapped the old file reads on.
        assert_eq!(cache.missing(), [0, 1]);
        assert!(cache.put(3, &[0.0; 10]).is_err() && cache.put(0, &[0.0; 9]).is_err());
        Ok(())
    }
}
