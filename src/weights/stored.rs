//! A tensor as some file stores it: any element type, any strides, not read yet. Loading one gives a dense
//! [`HostTensor`]; a dense floating-point tensor becomes a view of the mapped file, everything else is gathered.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use half::{bf16, f16};
#[cfg(unix)]
use memmap2::UncheckedAdvice;

use crate::tensor::{Bytes, DType, HostTensor, Pageable, element_count};
use crate::{Error, Result};

/// Element type of a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// A type the crate computes with.
    Float(DType),
    /// IEEE binary64; narrowed to f32 when loaded.
    F64,
    /// The upper half of a binary16 (1 sign, 5 exponent, 2 mantissa bits); widened to f32 when loaded.
    F8E5M2,
    /// Integers and truth values of so many bytes: known to be there, never loaded.
    Integer(usize),
}

impl Element {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Element::Float(dtype) => dtype.size(),
            Element::F64 => 8,
            Element::F8E5M2 => 1,
            Element::Integer(size) => size,
        }
    }
}

/// A checked window into a storage. Cloning copies no data.
#[derive(Clone, Debug)]
pub struct StoredTensor {
    shape: Vec<usize>,
    /// In elements, as many as dimensions.
    strides: Vec<usize>,
    /// In elements.
    offset: usize,
    element: Element,
    big_endian: bool,
    storage: Bytes,
}

impl StoredTensor {
    /// Checks that every element lies inside `storage` and that there are no more elements than the storage holds,
    /// so loading cannot take more memory than the file.
    pub fn new(
        shape: Vec<usize>,
        strides: Vec<usize>,
        offset: usize,
        element: Element,
        storage: Bytes,
    ) -> std::result::Result<StoredTensor, String> {
        let held = storage.len() / element.size();
        let count = element_count(&shape).filter(|&count| count <= held);
        let Some(count) = count else {
            return Err(format!("shape {shape:?} needs more than the {held} elements of its storage"));
        };
        if strides.len() != shape.len() {
            return Err(format!("{} strides for {} dimensions", strides.len(), shape.len()));
        }
        let reach = shape.iter().zip(&strides).try_fold(offset, |reach, (&dimension, &stride)| {
            dimension.saturating_sub(1).checked_mul(stride).and_then(|step| reach.checked_add(step))
        });
        if count > 0 && reach.is_none_or(|last| last >= held) {
            return Err(format!("shape {shape:?} with strides {strides:?} reaches outside its storage"));
        }
        Ok(StoredTensor { shape, strides, offset, element, big_endian: false, storage })
    }

    /// A row-major tensor that fills `storage`.
    pub fn dense(shape: Vec<usize>, element: Element, storage: Bytes) -> std::result::Result<StoredTensor, String> {
        StoredTensor::new(shape.clone(), dense_strides(&shape), 0, element, storage)
    }

    /// The same window over elements whose first byte is the most significant one.
    pub fn big_endian(self) -> StoredTensor {
        StoredTensor { big_endian: true, ..self }
    }

    /// Extent of every dimension, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Element type in the file.
    pub fn element(&self) -> Element {
        self.element
    }

    /// Whether both are the same window of the same storage: tied parameters.
    pub fn is_same_window(&self, other: &StoredTensor) -> bool {
        let window = |t: &StoredTensor| (t.storage.as_ptr(), t.storage.len(), t.offset, t.element);
        window(self) == window(other) && self.shape == other.shape && self.strides == other.strides
    }

    /// The elements, dense and row-major: f64 narrowed to f32, everything else as it is.
    pub fn load(&self) -> std::result::Result<HostTensor, String> {
        let dense = || "is larger than this machine can address".to_string();
        let count = element_count(&self.shape).ok_or_else(dense)?;
        let tensor = match self.element {
            Element::Integer(_) => return Err("holds integers where a weight is expected".into()),
            Element::Float(dtype) if self.is_dense() && !self.big_endian => {
                let start = self.offset * dtype.size();
                let bytes = self.storage.slice(start..start + count * dtype.size()).ok_or_else(dense)?;
                HostTensor::new(&self.shape, dtype, bytes)
            }
            Element::Float(DType::F32) => {
                HostTensor::from_f32(&self.shape, self.gather(|b: [u8; 4]| f32::from_le_bytes(b)))
            }
            Element::Float(DType::BF16) => {
                HostTensor::from_bf16(&self.shape, self.gather(|b: [u8; 2]| bf16::from_le_bytes(b)))
            }
            Element::Float(DType::F16) => {
                // f16 is exact in f32, and nothing computes in f16.
                HostTensor::from_f32(&self.shape, self.gather(|b: [u8; 2]| f16::from_le_bytes(b).to_f32()))
            }
            Element::Float(dtype @ (DType::F8E4M3 | DType::I8)) => {
                HostTensor::new(&self.shape, dtype, Bytes::new(self.gather(|[code]: [u8; 1]| code)))
            }
            Element::F64 => HostTensor::from_f32(&self.shape, self.gather(|b: [u8; 8]| f64::from_le_bytes(b) as f32)),
            Element::F8E5M2 => {
                HostTensor::from_f32(&self.shape, self.gather(|[code]: [u8; 1]| f16::from_le_bytes([0, code]).to_f32()))
            }
        };
        tensor.ok_or_else(dense)
    }

    /// The integers of two, four or eight bytes, signed, in row-major order.
    pub fn load_integers(&self) -> std::result::Result<Vec<i64>, String> {
        match self.element {
            Element::Integer(8) => Ok(self.gather(i64::from_le_bytes)),
            Element::Integer(4) => Ok(self.gather(|b| i32::from_le_bytes(b).into())),
            Element::Integer(2) => Ok(self.gather(|b| i16::from_le_bytes(b).into())),
            other => Err(format!("holds {other:?} where integers of 16, 32 or 64 bits are expected")),
        }
    }

    fn is_dense(&self) -> bool {
        let dense = dense_strides(&self.shape);
        self.shape.iter().zip(self.strides.iter().zip(&dense)).all(|(&n, (a, b))| n <= 1 || a == b)
            || self.shape.contains(&0)
    }

    /// All elements in row-major order, each decoded from its N bytes, least significant first.
    fn gather<const N: usize, T>(&self, decode: impl Fn([u8; N]) -> T) -> Vec<T> {
        let count = element_count(&self.shape).unwrap_or(0);
        let mut values = Vec::with_capacity(count);
        let mut index = vec![0usize; self.shape.len()];
        let mut at = self.offset;
        for _ in 0..count {
            // `new` checked that the largest `at` lies inside the storage.
            let mut bytes = [0; N];
            bytes.copy_from_slice(&self.storage[at * N..(at + 1) * N]);
            if self.big_endian {
                bytes.reverse();
            }
            values.push(decode(bytes));
            for axis in (0..index.len()).rev() {
                index[axis] += 1;
                at += self.strides[axis];
                if index[axis] < self.shape[axis] {
                    break;
                }
                at -= self.strides[axis] * self.shape[axis];
                index[axis] = 0;
            }
        }
        values
    }
}

/// Row-major strides of `shape`, in elements.
pub fn dense_strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis].saturating_mul(shape[axis]);
    }
    strides
}

/// Maps a whole file; an empty one gives no bytes.
pub fn map_file(path: &Path) -> Result<Bytes> {
    map_open_file(path, &open_file(path)?)
}

/// Reads a whole file into memory, where no other process can change it.
pub fn read_file(path: &Path) -> Result<Bytes> {
    let mut bytes = Vec::new();
    open_file(path)?.read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    Ok(Bytes::new(bytes))
}

/// Opens a regular file.
fn open_file(path: &Path) -> Result<File> {
    let about = std::fs::metadata(path).map_err(Error::io("read", path))?;
    if about.is_dir() {
        return Err(Error::weights(path, "file", "is a folder: give the file in it"));
    }
    if !about.is_file() {
        return Err(Error::weights(path, "file", "is not a regular file"));
    }
    File::open(path).map_err(Error::io("read", path))
}

/// Maps an open file, which `path` names in errors.
pub(crate) fn map_open_file(path: &Path, file: &File) -> Result<Bytes> {
    if file.metadata().map_err(Error::io("read", path))?.len() == 0 {
        return Ok(Bytes::new(Vec::new()));
    }
    // SAFETY: the map is read-only and private to this process. As with every mapped file, another process that
    // truncates or rewrites it meanwhile can end this one with SIGBUS or change values (`read_file` is the way around
    // that); it cannot break memory safety of parsed structure, because headers are copied out before anything depends
    // on them, and every element is valid for every bit pattern. Files of this crate are replaced by renaming, never
    // rewritten in place.
    let map = unsafe { memmap2::Mmap::map(file) }.map_err(Error::io("map", path))?;
    Ok(Bytes::pageable(Mapped(map)))
}

/// A mapped file.
struct Mapped(memmap2::Mmap);

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Pageable for Mapped {
    #[cfg(unix)]
    fn release_pages(&self, range: std::ops::Range<usize>) {
        // SAFETY: the map is shared and read-only, so its pages come back from the file, never as zeroes.
        // A refusal only means that the memory stays.
        let _ = unsafe { self.0.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len()) };
    }

    #[cfg(not(unix))]
    fn release_pages(&self, _: std::ops::Range<usize>) {}
}
