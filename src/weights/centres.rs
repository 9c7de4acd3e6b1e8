//! The centres of k-means: those of scikit-learn's `KMeans` and `MiniBatchKMeans` in a joblib file, or an array of NumPy. Nothing
//! in such a file is executed.
//!
//! joblib writes a pickle with the bytes of each array right behind the object that stands for it; it may be compressed as a
//! whole. Source: joblib's numpy_pickle, and NEP 1 for `.npy`.

use std::path::Path;

use super::pickle::{Pickle, View};
use super::stored::{Element, StoredTensor, read_file};
use crate::tensor::{Bytes, DType, HostTensor};
use crate::{Error, Result, files};

/// Most bytes of a compressed file, once it is not.
const MAX_UNPACKED: u64 = 1 << 30;
/// First bytes of `.npy` files.
const NPY: &[u8] = b"\x93NUMPY";

/// The centres (K, D) in the file at `path`, in f32.
///
/// # Errors
/// If it cannot be read, is none of the kinds above, or holds something that is not finite.
pub fn read(path: &Path) -> Result<HostTensor> {
    let wrong = |problem: String| Error::weights(path, "centres", problem);
    let bytes = unpacked(path, read_file(path)?)?;
    let stored = if bytes.starts_with(NPY) { of_array(&bytes) } else { of_joblib(&bytes) };
    let centres = stored.and_then(|stored| stored.load()).map_err(|problem| {
        let other = files::mistaken_content(&bytes).filter(|_| !bytes.starts_with(NPY));
        wrong(other.unwrap_or(problem))
    })?;
    let [count, width] = *centres.shape() else {
        return Err(wrong(format!("have shape {:?}, expected (K, D)", centres.shape())));
    };
    if count == 0 || width == 0 {
        return Err(wrong(format!("are {count} of {width} values: expected some")));
    }
    if !centres.to_f32().iter().all(|value| value.is_finite()) {
        return Err(wrong("hold NaN or infinity: the file is damaged".into()));
    }
    Ok(centres.to_dtype(DType::F32))
}

/// Writes centres (K, D) as a `.npy` file of f32, all of it or nothing.
pub fn write(path: &Path, centres: &[f32], [count, width]: [usize; 2]) -> Result<()> {
    let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({count}, {width}), }}");
    // Values begin at a multiple of 64 bytes; the header ends with a line break.
    let length = (NPY.len() + 4 + header.len() + 1).next_multiple_of(64) - NPY.len() - 4;
    let mut bytes = NPY.to_vec();
    bytes.extend([1, 0]);
    bytes.extend((length as u16).to_le_bytes());
    bytes.extend(format!("{header:width$}\n", width = length - 1).bytes());
    bytes.extend(centres.iter().flat_map(|value| value.to_le_bytes()));
    files::write_atomically(path, &bytes)
}

/// The content of a file that may be compressed as joblib does it.
fn unpacked(path: &Path, bytes: Bytes) -> Result<Bytes> {
    let zlib = matches!(bytes.get(..2), Some([0x78, 0x01 | 0x5e | 0x9c | 0xda]));
    if !zlib && !bytes.starts_with(b"\x1f\x8b") {
        return Ok(bytes);
    }
    match zlib {
        true => files::read_stream(flate2::read::ZlibDecoder::new(&bytes[..]), path, MAX_UNPACKED),
        false => files::read_stream(flate2::read::GzDecoder::new(&bytes[..]), path, MAX_UNPACKED),
    }
    .map(Bytes::new)
}

/// `cluster_centers_` of an estimator, or an array by itself.
fn of_joblib(bytes: &Bytes) -> std::result::Result<StoredTensor, String> {
    let (pickle, _) = Pickle::parse(bytes.clone())?;
    let root = pickle.root();
    let array = match root.state().and_then(|state| state.get("cluster_centers_")) {
        Some(centres) => centres,
        None if root.array_bytes().is_some() => root,
        None => return Err(format!("no `cluster_centers_` is here; found {}", root.describe())),
    };
    let unknown = || format!("expected an array of joblib, found {}", array.describe());
    let data = array.array_bytes().ok_or_else(unknown)?;
    let state = array.state().ok_or_else(unknown)?;
    let shape: Option<Vec<usize>> =
        state.get("shape").and_then(|shape| shape.as_tuple()?.iter().map(View::as_usize).collect());
    let shape = shape.ok_or("an array whose shape holds something else than sizes")?;
    let (kind, order) = dtype_of(state.get("dtype").ok_or_else(unknown)?).ok_or("an array of an unknown type")?;
    let fortran = state.get("order").and_then(|order| order.as_str()) == Some("F");
    array_of(data, shape, &kind, order, fortran)
}

/// The name of a `numpy.dtype`, as "f8", and its byte order.
fn dtype_of(dtype: View<'_>) -> Option<(String, char)> {
    let (("numpy", "dtype"), arguments) = dtype.as_call()? else { return None };
    let order = dtype.state()?.as_tuple()?.get(1)?.as_str()?.chars().next()?;
    Some((arguments.first()?.as_str()?.to_string(), order))
}

/// The array in a `.npy` file.
fn of_array(bytes: &Bytes) -> std::result::Result<StoredTensor, String> {
    let short = "is cut off: copy it again";
    let version = *bytes.get(NPY.len()).ok_or(short)?;
    let (start, size) = if version == 1 { (NPY.len() + 2, 2) } else { (NPY.len() + 2, 4) };
    let length = bytes.get(start..start + size).ok_or(short)?;
    let length = length.iter().rev().fold(0usize, |value, &byte| value << 8 | usize::from(byte));
    let from = start + size;
    let end = from.checked_add(length).ok_or(short)?;
    let header = bytes.get(from..end).and_then(|header| std::str::from_utf8(header).ok()).ok_or(short)?;
    let after = |key: &str| header.split_once(&format!("'{key}':")).map(|(_, rest)| rest.trim_start());
    let unknown = || format!("has the header {:?}, which is none of NumPy's", header.trim());
    let descr = after("descr").and_then(|rest| rest.strip_prefix('\'')?.split('\'').next()).ok_or_else(unknown)?;
    let fortran = after("fortran_order").ok_or_else(unknown)?.starts_with("True");
    let shape = after("shape").and_then(|rest| rest.strip_prefix('(')?.split(')').next()).ok_or_else(unknown)?;
    let shape: std::result::Result<Vec<usize>, _> =
        shape.split(',').map(str::trim).filter(|size| !size.is_empty()).map(str::parse).collect();
    let order = descr.chars().next().unwrap_or('?');
    let data = bytes.slice(end..bytes.len()).ok_or(short)?;
    array_of(data, shape.map_err(|_| unknown())?, descr.get(1..).unwrap_or_default(), order, fortran)
}

/// An array of floats.
fn array_of(
    data: Bytes,
    shape: Vec<usize>,
    kind: &str,
    order: char,
    fortran: bool,
) -> std::result::Result<StoredTensor, String> {
    let element = match kind {
        "f4" => Element::Float(DType::F32),
        "f8" => Element::F64,
        "f2" => Element::Float(DType::F16),
        _ => return Err(format!("are of type {kind:?}, expected floats of 16, 32 or 64 bits")),
    };
    let mut strides = vec![1usize; shape.len()];
    for axis in 1..shape.len() {
        let (at, from) = if fortran { (axis, axis - 1) } else { (shape.len() - 1 - axis, shape.len() - axis) };
        strides[at] = strides[from].saturating_mul(shape[from]);
    }
    let tensor = StoredTensor::new(shape, strides, 0, element, data)?;
    Ok(if order == '>' { tensor.big_endian() } else { tensor })
}
