//! Writing checkpoints as `torch.save` does: a zip archive of stored entries that begin at multiples of 64 bytes. Nothing in
//! it is sought back for, so any stream takes it. Lengths and places are in their 64-bit form throughout.

use std::collections::HashMap;
use std::io::{self, Write};

use flate2::Crc;

use crate::tensor::{DType, HostTensor};

/// Entries begin at multiples of this many bytes.
const ALIGNMENT: u64 = 64;
/// Folder of all entries.
const ROOT: &str = "archive";
/// Version of the zip format that has 64-bit fields.
const ZIP64: u16 = 45;
/// In place of a 32-bit field whose value is in the 64-bit form.
const ELSEWHERE: u32 = u32::MAX;
/// The first date that the format knows, 1980-01-01.
const DATE: u16 = 0x21;

/// Writes `{key: OrderedDict(tensors)}`. Tensors of the same bytes share one storage, as tied parameters do. `progress` is
/// called with the bytes of each storage.
///
/// # Errors
/// If `out` fails, or a tensor has eight bits.
pub fn save(
    out: impl Write,
    key: &str,
    tensors: &[(String, HostTensor)],
    progress: &mut dyn FnMut(u64),
) -> io::Result<()> {
    let (pickle, storages) = pickle(key, tensors)?;
    let mut archive = Archive { out, at: 0, directory: Vec::new(), entries: 0 };
    archive.add("data.pkl", &pickle)?;
    archive.add("byteorder", b"little")?;
    for (number, storage) in storages.iter().enumerate() {
        archive.add(&format!("data/{number}"), storage.bytes())?;
        progress(storage.bytes().len() as u64);
    }
    archive.add("version", b"3\n")?;
    archive.finish()
}

/// Layout of a list of integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IntegerLayout {
    /// A one-dimensional NumPy array of int64.
    Array,
    /// A one-dimensional tensor of int64.
    Tensor,
}

/// Writes whole numbers as `torch.save` writes an array or a tensor of them.
///
/// # Errors
/// If `out` fails.
pub fn save_integers(out: impl Write, values: &[i64], layout: IntegerLayout) -> io::Result<()> {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let mut pickle = b"\x80\x02".to_vec();
    match layout {
        IntegerLayout::Array => {
            pickle.extend(b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85c_codecs\nencode\n");
            text(&mut pickle, "b");
            text(&mut pickle, "latin1");
            pickle.extend(b"\x86R\x87R(K\x01");
            integer(&mut pickle, values.len());
            pickle.extend(b"\x85cnumpy\ndtype\n");
            text(&mut pickle, "i8");
            // The type: not aligned, copied; version 3, little-endian, no fields.
            pickle.extend(b"\x89\x88\x87R(K\x03");
            text(&mut pickle, "<");
            pickle.extend(b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89c_codecs\nencode\n");
            // Bytes as text of as many characters.
            text(&mut pickle, &bytes.iter().map(|&byte| char::from(byte)).collect::<String>());
            text(&mut pickle, "latin1");
            pickle.extend(b"\x86Rtb.");
        }
        IntegerLayout::Tensor => {
            pickle.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
            text(&mut pickle, "storage");
            pickle.extend(b"ctorch\nLongStorage\n");
            text(&mut pickle, "0");
            text(&mut pickle, "cpu");
            integer(&mut pickle, values.len());
            pickle.extend(b"tQK\0");
            integer(&mut pickle, values.len());
            pickle.extend(b"\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR.");
        }
    }
    let mut archive = Archive { out, at: 0, directory: Vec::new(), entries: 0 };
    archive.add("data.pkl", &pickle)?;
    archive.add("byteorder", b"little")?;
    if layout == IntegerLayout::Tensor {
        archive.add("data/0", &bytes)?;
    }
    archive.add("version", b"3\n")?;
    archive.finish()
}

/// The pickle (protocol 2) of the object, and the tensors whose bytes are its storages.
fn pickle<'a>(key: &str, tensors: &'a [(String, HostTensor)]) -> io::Result<(Vec<u8>, Vec<&'a HostTensor>)> {
    let mut storages = Vec::new();
    let mut places = HashMap::new();
    let mut out = b"\x80\x02}".to_vec();
    text(&mut out, key);
    out.extend(b"ccollections\nOrderedDict\n)R(");
    for (name, tensor) in tensors {
        let storage = *places.entry((tensor.bytes().as_ptr(), tensor.bytes().len())).or_insert_with(|| {
            storages.push(tensor);
            storages.len() - 1
        });
        text(&mut out, name);
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut out, "storage");
        out.extend(format!("ctorch\n{}\n", storage_class(tensor.dtype())?).bytes());
        text(&mut out, &storage.to_string());
        text(&mut out, "cpu");
        integer(&mut out, tensor.len());
        out.extend(b"tQK\0");
        for sizes in [tensor.shape(), &crate::weights::stored::dense_strides(tensor.shape())] {
            out.push(b'(');
            sizes.iter().for_each(|&size| integer(&mut out, size));
            out.push(b't');
        }
        // It requires no gradient and has no hooks.
        out.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    }
    out.extend(b"us.");
    Ok((out, storages))
}

/// BINUNICODE.
fn text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.bytes());
}

/// BININT1, BININT or LONG1.
fn integer(out: &mut Vec<u8>, value: usize) {
    if let Ok(byte) = u8::try_from(value) {
        out.extend([b'K', byte]);
    } else if let Ok(word) = i32::try_from(value) {
        out.push(b'J');
        out.extend(word.to_le_bytes());
    } else {
        out.extend([0x8a, 8]);
        out.extend((value as i64).to_le_bytes());
    }
}

fn storage_class(dtype: DType) -> io::Result<&'static str> {
    match dtype {
        DType::F32 => Ok("FloatStorage"),
        DType::BF16 => Ok("BFloat16Storage"),
        DType::F16 => Ok("HalfStorage"),
        DType::F8E4M3 | DType::I8 => Err(io::Error::new(io::ErrorKind::InvalidInput, "eight bits are not written")),
    }
}

/// A zip archive being written.
struct Archive<W> {
    out: W,
    /// Bytes written.
    at: u64,
    /// The central directory so far.
    directory: Vec<u8>,
    entries: u64,
}

impl<W: Write> Archive<W> {
    /// Writes one entry: a local header, padded so that the data is aligned, and the data.
    fn add(&mut self, name: &str, data: &[u8]) -> io::Result<()> {
        let name = format!("{ROOT}/{name}");
        let mut crc = Crc::new();
        crc.update(data);
        let (place, size) = (self.at, (data.len() as u64).to_le_bytes());
        let common = |extra: usize| {
            let mut fields = Vec::new();
            [ZIP64, 0, 0, 0, DATE].iter().for_each(|field| fields.extend(field.to_le_bytes())); // no flags, stored, no time
            [crc.sum(), ELSEWHERE, ELSEWHERE].iter().for_each(|field| fields.extend(field.to_le_bytes()));
            [name.len(), extra].iter().for_each(|&field| fields.extend((field as u16).to_le_bytes()));
            fields
        };
        let sizes = [&[1, 0, 16, 0], &size[..], &size].concat();
        let header = 4 + 26 + name.len() + sizes.len() + 4;
        let padding = (place + header as u64).next_multiple_of(ALIGNMENT) - (place + header as u64);
        let padding = [b"FB", &(padding as u16).to_le_bytes()[..], &vec![b'Z'; padding as usize]].concat();
        let local =
            [b"PK\x03\x04", &common(sizes.len() + padding.len())[..], name.as_bytes(), &sizes, &padding].concat();
        self.put(&local)?;
        self.put(data)?;
        let sizes_and_place = [&[1, 0, 24, 0], &size[..], &size, &place.to_le_bytes()].concat();
        self.directory.extend(b"PK\x01\x02");
        self.directory.extend(ZIP64.to_le_bytes());
        self.directory.extend(common(sizes_and_place.len()));
        self.directory.extend([0; 10]); // no comment, the first disk, no attributes
        self.directory.extend(ELSEWHERE.to_le_bytes());
        self.directory.extend(name.bytes());
        self.directory.extend(sizes_and_place);
        self.entries += 1;
        Ok(())
    }

    /// Writes the directory and what leads to it.
    fn finish(mut self) -> io::Result<()> {
        let (place, directory) = (self.at, std::mem::take(&mut self.directory));
        self.put(&directory)?;
        let end = self.at;
        let mut tail = b"PK\x06\x06".to_vec();
        tail.extend(44u64.to_le_bytes());
        tail.extend([ZIP64.to_le_bytes(), ZIP64.to_le_bytes()].concat());
        tail.extend([0; 8]); // the first disk, twice
        [self.entries, self.entries, end - place, place].iter().for_each(|field| tail.extend(field.to_le_bytes()));
        tail.extend(b"PK\x06\x07\0\0\0\0");
        tail.extend(end.to_le_bytes());
        tail.extend(1u32.to_le_bytes()); // disk
        tail.extend(b"PK\x05\x06\0\0\0\0");
        tail.extend([u8::MAX; 12]); // all elsewhere
        tail.extend([0; 2]); // no comment
        self.put(&tail)?;
        self.out.flush()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.at += bytes.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Bytes;
    use crate::weights::pickle::Pickle;

    #[test]
    fn integers_have_the_length_that_they_need() {
        for (value, bytes) in [(0usize, 2), (255, 2), (256, 5), (i32::MAX as usize, 5), (1 << 31, 10), (1 << 40, 10)] {
            let mut out = b"\x80\x02".to_vec();
            integer(&mut out, value);
            assert_eq!(out.len(), 2 + bytes);
            out.push(b'.');
            let (pickle, _) = Pickle::parse(Bytes::new(out)).unwrap();
            assert_eq!(pickle.root().as_usize(), Some(value));
        }
    }
}
