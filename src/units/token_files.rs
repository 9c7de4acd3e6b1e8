//! Image tokens in the public layout of SeiT: `NAME.data.bin.gz` with the tokens of all images, `NAME.index.npy.gz` with where
//! each image begins, and perhaps `NAME-label.txt` with a class for each. Only read.

use std::fs::File;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use super::image_units::{ImageRecord, UnitGrid, wrong};
use crate::{Error, Result, files};

/// Images of 32x32 tokens over a codebook of 391; which codebook, the files do not say.
pub const GRID: &UnitGrid = &UnitGrid { rows: 32, columns: 32, codes: 391, codebook: [0; 16] };
/// Byte that adds itself to the next.
const ESCAPE: u8 = 255;
/// Most bytes of the tokens of a data set, unpacked: 1.3 million images have about as many times 1.3 thousand.
const MAX_BYTES: u64 = 1 << 32;
/// Most bytes of an index, unpacked.
const MAX_INDEX: u64 = 1 << 28;

/// Whether a file begins as gzip does.
pub fn is_gzip(head: &[u8]) -> bool {
    head.starts_with(&[0x1f, 0x8b])
}

/// An opened data set of tokens, in memory.
pub struct TokenFile {
    path: PathBuf,
    bytes: Vec<u8>,
    /// One more than there are images.
    offsets: Vec<u64>,
    labels: Option<Vec<String>>,
}

impl TokenFile {
    /// Reads `NAME.data.bin.gz` and its companions.
    ///
    /// # Errors
    /// If one cannot be read, or they do not belong together.
    pub fn open(path: &Path) -> Result<TokenFile> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !name.contains("data.bin") {
            return Err(wrong(path, "is compressed, but no token file: expected NAME.data.bin.gz"));
        }
        let bytes = unpacked(path, MAX_BYTES)?;
        let index = path.with_file_name(name.replace("data.bin", "index.npy"));
        let offsets = npy(&unpacked(&index, MAX_INDEX)?).map_err(|problem| wrong(&index, problem))?;
        let rising = offsets.windows(2).all(|pair| pair[0] <= pair[1]);
        if offsets.is_empty() || !rising || offsets.last().is_some_and(|&end| end > bytes.len() as u64) {
            let problem = format!("does not belong to {}, which holds {} bytes", path.display(), bytes.len());
            return Err(wrong(&index, problem));
        }
        let labels = name.split(".data.bin").next().map(|stem| path.with_file_name(format!("{stem}-label.txt")));
        let labels = labels.filter(|labels| labels.exists()).map(|path| read_labels(&path, offsets.len() - 1));
        Ok(TokenFile { path: path.to_owned(), bytes, offsets, labels: labels.transpose()? })
    }

    /// Images.
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// The name of image `index`: its number and its label.
    pub fn name(&self, index: usize) -> String {
        let label = self.labels.as_ref().and_then(|labels| labels.get(index));
        label.map_or(format!("{index:07}"), |label| format!("{index:07}-{label}"))
    }

    /// The tokens of image `index`, named by its number and its label; `None` beyond the last.
    pub fn read(&self, index: usize) -> Option<Result<ImageRecord>> {
        let (&start, &end) = (self.offsets.get(index)?, self.offsets.get(index + 1)?);
        let name = self.name(index);
        let units = decode(&self.bytes[start as usize..end as usize]);
        let units = units.ok_or_else(|| wrong(&self.path, format!("image {index} is damaged: it has no 1024 tokens")));
        Some(units.map(|units| ImageRecord { name, units }))
    }
}

/// The tokens of one image: a byte each, or two after an escape.
fn decode(bytes: &[u8]) -> Option<Vec<u16>> {
    if bytes.len() > 2 * GRID.units() {
        return None;
    }
    let (mut units, mut offset) = (Vec::with_capacity(GRID.units()), 0);
    for &byte in bytes {
        if byte == ESCAPE {
            offset = u16::from(ESCAPE);
        } else {
            units.push(u16::from(byte) + offset);
            offset = 0;
        }
    }
    (units.len() == GRID.units() && units.iter().all(|&unit| usize::from(unit) < GRID.codes)).then_some(units)
}

/// The content of a gzip file.
fn unpacked(path: &Path, max: u64) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(Error::io("read", path))?;
    files::read_stream(MultiGzDecoder::new(file), path, max)
}

fn read_labels(path: &Path, images: usize) -> Result<Vec<String>> {
    let text = files::read_at_most(path, MAX_INDEX)?;
    let text = String::from_utf8(text).map_err(|_| wrong(path, "is no text: expected a number a line"))?;
    let labels: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
    if labels.len() != images || !labels.iter().all(|label| label.parse::<i64>().is_ok()) {
        return Err(wrong(path, format!("has {} lines; expected a number for each of {images} images", labels.len())));
    }
    Ok(labels)
}

/// The integers of a one-dimensional .npy file.
fn npy(bytes: &[u8]) -> std::result::Result<Vec<u64>, String> {
    const NOT: &str = "is no .npy file";
    let version = *bytes.strip_prefix(b"\x93NUMPY").and_then(|rest| rest.first()).ok_or(NOT)?;
    let (length, start) = match (version, bytes) {
        (1, [_, _, _, _, _, _, _, _, a, b, ..]) => (usize::from(u16::from_le_bytes([*a, *b])), 10),
        (2 | 3, [_, _, _, _, _, _, _, _, a, b, c, d, ..]) => (u32::from_le_bytes([*a, *b, *c, *d]) as usize, 12),
        _ => return Err(NOT.into()),
    };
    let (head, data) = bytes[start..].split_at_checked(length).ok_or("ends within its head")?;
    let head: String = String::from_utf8_lossy(head).chars().filter(|c| !c.is_whitespace()).collect();
    let field = |name: &str| head.split_once(&format!("'{name}':")).map(|(_, rest)| rest);
    let kind = field("descr").and_then(|rest| rest.strip_prefix('\'')).and_then(|rest| rest.split('\'').next());
    let size = match kind {
        Some("<i8" | "<u8") => 8,
        Some("<i4" | "<u4") => 4,
        _ => return Err(format!("holds {}, expected integers of 32 or 64 bits", kind.unwrap_or("no numbers"))),
    };
    let count = field("shape").and_then(|rest| rest.strip_prefix('(')).and_then(|rest| rest.split(')').next());
    let count = count.and_then(|count| count.trim_end_matches(',').parse::<usize>().ok());
    let count = count.filter(|&count| count.checked_mul(size) == Some(data.len()));
    count.ok_or("is no list of numbers, or ends within it")?;
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |number, &byte| number << 8 | u64::from(byte));
    Ok(data.chunks_exact(size).map(number).collect())
}
