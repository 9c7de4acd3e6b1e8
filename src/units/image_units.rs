//! Image units in a file: one file holds the units of a data set, packed to as few bits as their codebook needs, with a checksum
//! for each image. Records are found by number, appended, and survive a crash: whatever is whole is read, wherever the damage
//! is. `docs/image_units.md` describes the format; the public layout of token files is read too.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use flate2::Crc;

use super::token_files::{self, TokenFile};
use crate::files::sync_file;
use crate::{Error, Result};

/// First bytes of a file.
const MAGIC: &[u8; 8] = b"im2sp-iu";
/// The version of the format.
const VERSION: u16 = 1;
/// Bytes of the head of a file.
const HEAD: usize = 40;
/// First bytes of a record.
const MARK: [u8; 2] = *b"IU";
/// Bytes of a record before its name: mark, length of the name, checksum.
const RECORD_HEAD: usize = 8;
/// Most bytes of a name.
pub const MAX_NAME: usize = 1024;
/// Most rows or columns of a grid.
pub const MAX_GRID: usize = 256;
/// Most codes of a codebook.
pub const MAX_CODES: usize = 1 << 16;
/// Bytes that are looked through together.
const WINDOW: usize = 1 << 22;
/// Most bytes of checksums that fail: so many for each byte of a file, and so many in addition. Each mark may seem to begin a
/// record, at any grid, and a file of nothing but marks would be summed many thousand times over.
const SUMMED: [u64; 2] = [64, 1 << 26];

/// Dimensions of the units of one file; all of its images share them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitGrid {
    /// Rows of units of an image.
    pub rows: usize,
    /// Units of a row.
    pub columns: usize,
    /// Codes of the codebook; every unit is below.
    pub codes: usize,
    /// First bytes of the SHA-256 of the codebook; zeros where it is not known.
    pub codebook: [u8; 16],
}

impl UnitGrid {
    /// Units of an image.
    pub fn units(&self) -> usize {
        self.rows * self.columns
    }

    /// Bits of a unit.
    pub fn bits(&self) -> usize {
        (usize::BITS - self.codes.saturating_sub(1).leading_zeros()).max(1) as usize
    }

    /// Bytes of the units of an image.
    pub fn bytes(&self) -> usize {
        (self.units() * self.bits()).div_ceil(8)
    }

    /// Whether such grids are stored.
    fn is_valid(&self) -> bool {
        let side = 1..=MAX_GRID;
        side.contains(&self.rows) && side.contains(&self.columns) && (1..=MAX_CODES).contains(&self.codes)
    }

    fn to_head(&self) -> [u8; HEAD] {
        let mut head = [0; HEAD];
        head[..8].copy_from_slice(MAGIC);
        let numbers = [VERSION, self.bits() as u16, self.rows as u16, self.columns as u16];
        for (to, number) in head[8..16].chunks_exact_mut(2).zip(numbers) {
            to.copy_from_slice(&number.to_le_bytes());
        }
        head[16..20].copy_from_slice(&(self.codes as u32).to_le_bytes());
        head[20..36].copy_from_slice(&self.codebook);
        let sum = checksum(&[&head[..36]]);
        head[36..].copy_from_slice(&sum.to_le_bytes());
        head
    }

    /// The grid of a file's first bytes; the error says what is wrong with them.
    fn of_head(head: &[u8]) -> std::result::Result<UnitGrid, String> {
        if !head.starts_with(MAGIC) {
            return Err("is no file of image units: make one with `im2sp tokenize`".into());
        }
        if head.len() < HEAD || checksum(&[&head[..36]]) != u32_at(head, 36) {
            return Err("its first 40 bytes are damaged: make it again with `im2sp tokenize`".into());
        }
        let version = u16_at(head, 8);
        if version != VERSION {
            return Err(format!("is of version {version}; this im2sp reads {VERSION}: use a newer one"));
        }
        let mut codebook = [0; 16];
        codebook.copy_from_slice(&head[20..36]);
        let (rows, columns) = (u16_at(head, 12).into(), u16_at(head, 14).into());
        let grid = UnitGrid { rows, columns, codes: u32_at(head, 16) as usize, codebook };
        if grid.is_valid() && usize::from(u16_at(head, 10)) == grid.bits() {
            Ok(grid)
        } else {
            Err(format!("holds {rows}x{columns} units of {} codes, which is no grid of images", grid.codes))
        }
    }
}

/// The units of a data set, by number.
pub struct ImageUnits {
    path: PathBuf,
    grid: UnitGrid,
    content: Content,
    damage: Vec<String>,
}

enum Content {
    /// This crate's format: where records start, and the lengths of their names.
    Records(Mutex<File>, Vec<(u64, u16)>),
    Tokens(TokenFile),
}

/// The units of one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRecord {
    /// Its name: that of the image's file.
    pub name: String,
    /// Rows from the top, each from the left.
    pub units: Vec<u16>,
}

impl ImageUnits {
    /// Opens a file of image units, or a token file in the public layout, whose index lies next to it. Records that are
    /// damaged are left out; see [`ImageUnits::damage`].
    ///
    /// # Errors
    /// If it cannot be read or is neither.
    pub fn open(path: &Path) -> Result<ImageUnits> {
        let mut file = File::open(path).map_err(Error::io("read", path))?;
        let about = file.metadata().map_err(Error::io("read", path))?;
        if about.is_dir() {
            return Err(wrong(path, "is a folder: give the file of units in it"));
        }
        let mut head = Vec::new();
        (&mut file).take(HEAD as u64).read_to_end(&mut head).map_err(Error::io("read", path))?;
        if token_files::is_gzip(&head) {
            let tokens = TokenFile::open(path)?;
            let grid = token_files::GRID.clone();
            return Ok(ImageUnits {
                path: path.to_owned(),
                grid,
                content: Content::Tokens(tokens),
                damage: Vec::new(),
            });
        }
        let grid = UnitGrid::of_head(&head).map_err(|problem| wrong(path, problem))?;
        let found = Scan::of(&mut file, &grid).map_err(Error::io("read", path))?;
        let damage = found.damage.iter().map(|(at, bytes)| format!("{bytes} bytes from byte {at} on"));
        let damage = damage.collect();
        let content = Content::Records(Mutex::new(file), found.records);
        Ok(ImageUnits { path: path.to_owned(), grid, content, damage })
    }

    /// Dimensions of every image's units.
    pub fn grid(&self) -> &UnitGrid {
        &self.grid
    }

    /// An error unless the units are those of `grid`. A codebook that is not known may be any.
    pub fn check_grid(&self, grid: &UnitGrid) -> Result<()> {
        let numbers = |grid: &UnitGrid| [grid.rows, grid.columns, grid.codes];
        let ([rows, columns, codes], expected) = (numbers(&self.grid), numbers(grid));
        let holds = format!("holds {rows}x{columns} units of {codes} codes");
        if numbers(&self.grid) != expected {
            let [rows, columns, codes] = expected;
            let problem = format!("{holds}, not {rows}x{columns} of {codes}: use the tokenizer that made them");
            return Err(wrong(&self.path, problem));
        }
        let known = [&self.grid, grid].iter().all(|grid| grid.codebook != [0; 16]);
        if known && self.grid.codebook != grid.codebook {
            return Err(wrong(&self.path, format!("{holds}, but of another codebook: use the one that made them")));
        }
        Ok(())
    }

    /// Images.
    pub fn len(&self) -> usize {
        match &self.content {
            Content::Records(_, records) => records.len(),
            Content::Tokens(tokens) => tokens.len(),
        }
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Parts of the file that hold no whole record, in words.
    pub fn damage(&self) -> &[String] {
        &self.damage
    }

    /// The units of image `index`.
    ///
    /// # Errors
    /// If there is no such image, its units are none of the codebook, or it cannot be read any more.
    pub fn read(&self, index: usize) -> Result<ImageRecord> {
        match &self.content {
            Content::Tokens(tokens) => tokens.read(index).ok_or_else(|| self.absent(index))?,
            Content::Records(file, records) => {
                let record = self.record(file, records, index)?;
                parse(&record, &self.grid).map_err(|problem| wrong(&self.path, format!("image {index} {problem}")))
            }
        }
    }

    /// The name of image `index`, whatever its units are.
    pub fn name(&self, index: usize) -> Result<String> {
        match &self.content {
            Content::Tokens(tokens) if index < tokens.len() => Ok(tokens.name(index)),
            Content::Tokens(_) => Err(self.absent(index)),
            Content::Records(file, records) => self.record(file, records, index).map(|record| name_of(&record)),
        }
    }

    /// The bytes of a record.
    fn record(&self, file: &Mutex<File>, records: &[(u64, u16)], index: usize) -> Result<Vec<u8>> {
        let &(at, name) = records.get(index).ok_or_else(|| self.absent(index))?;
        let mut record = vec![0; RECORD_HEAD + usize::from(name) + self.grid.bytes()];
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        let read = file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut record));
        read.map_err(Error::io("read", &self.path))?;
        let changed = || wrong(&self.path, format!("image {index} has changed since the file was opened"));
        whole_record(&record, &self.grid).map(|_| record).ok_or_else(changed)
    }

    fn absent(&self, index: usize) -> Error {
        wrong(&self.path, format!("holds no image {index}: there are {}", self.len()))
    }
}

/// A file of image units that records are appended to.
pub struct UnitWriter {
    path: PathBuf,
    file: File,
    grid: UnitGrid,
    written: u64,
}

/// Records between two flushes to the disk.
const FLUSH_EVERY: u64 = 1024;

impl UnitWriter {
    /// Opens the file at `path` to append to it; one that does not exist is made. An unfinished record at its end, which a
    /// crash leaves, is cut off. Also gives the names that it holds.
    ///
    /// # Errors
    /// If it is no file of image units, holds units of another grid or codebook, is written by another process, or cannot be
    /// written.
    pub fn open(path: &Path, grid: &UnitGrid) -> Result<(UnitWriter, Vec<String>)> {
        if !grid.is_valid() {
            let problem = format!("{}x{} units of {} codes cannot be stored", grid.rows, grid.columns, grid.codes);
            return Err(wrong(path, problem));
        }
        let fail = || Error::io("write", path);
        // One that cannot be written may still be none of ours, which is the better error.
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let locked = opened.as_ref().is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)));
        if locked {
            return Err(wrong(path, "is being written by another process: wait for its end, or choose another output"));
        }
        if let Ok(mut file) = opened.as_ref()
            && file.metadata().is_ok_and(|about| about.len() == 0)
        {
            file.write_all(&grid.to_head()).map_err(fail())?;
        }
        let stored = ImageUnits::open(path)?;
        let Content::Records(_, records) = &stored.content else {
            return Err(wrong(path, "is a token file of another program, which is only read: choose another output"));
        };
        if stored.grid != *grid {
            stored.check_grid(grid)?;
            return Err(wrong(path, "holds units of an unknown codebook: choose another output"));
        }
        let names = (0..stored.len()).map(|index| stored.name(index)).collect::<Result<_>>()?;
        let end = records
            .last()
            .map_or(HEAD as u64, |&(at, name)| at + (RECORD_HEAD + usize::from(name) + grid.bytes()) as u64);
        let mut file = opened.map_err(fail())?;
        file.set_len(end).and_then(|()| file.seek(SeekFrom::Start(end))).map_err(fail())?;
        Ok((UnitWriter { path: path.to_owned(), file, grid: grid.clone(), written: 0 }, names))
    }

    /// Appends the units of an image. A record that could not be written whole is taken back.
    ///
    /// # Errors
    /// If the name is too long, the units are not those of the grid, or the file cannot be written.
    pub fn append(&mut self, name: &str, units: &[u16]) -> Result<()> {
        let grid = &self.grid;
        if name.len() > MAX_NAME {
            return Err(wrong(&self.path, format!("a name of {} bytes; at most {MAX_NAME} are stored", name.len())));
        }
        if units.len() != grid.units() || units.iter().any(|&unit| usize::from(unit) >= grid.codes) {
            let problem = format!("{name}: not {} units below {}", grid.units(), grid.codes);
            return Err(wrong(&self.path, problem));
        }
        let mut record = Vec::with_capacity(RECORD_HEAD + name.len() + grid.bytes());
        record.extend(MARK);
        record.extend((name.len() as u16).to_le_bytes());
        record.extend([0; 4]);
        record.extend(name.as_bytes());
        record.extend(pack(units, grid.bits()));
        let sum = checksum(&[&record[..4], &record[RECORD_HEAD..]]);
        record[4..RECORD_HEAD].copy_from_slice(&sum.to_le_bytes());
        let fail = || Error::io("write", &self.path);
        let start = self.file.stream_position().map_err(fail())?;
        if let Err(error) = self.file.write_all(&record) {
            // The next call, or the next run, begins where this one did.
            let _ = self.file.set_len(start).and_then(|()| self.file.seek(SeekFrom::Start(start)));
            return Err(fail()(error));
        }
        self.written += 1;
        if self.written.is_multiple_of(FLUSH_EVERY) { self.flush() } else { Ok(()) }
    }

    /// Brings all records to the disk.
    pub fn flush(&mut self) -> Result<()> {
        sync_file(&self.file).map_err(Error::io("write", &self.path))
    }

    /// Bytes of the file.
    pub fn size(&self) -> Result<u64> {
        fs::metadata(&self.path).map(|about| about.len()).map_err(Error::io("read", &self.path))
    }
}

/// The whole records of a file, and what lies between them.
struct Scan {
    records: Vec<(u64, u16)>,
    /// First byte and length.
    damage: Vec<(u64, u64)>,
}

impl Scan {
    /// Looks through a file from the end of its head on. Where no record begins, the next one is looked for.
    fn of(file: &mut File, grid: &UnitGrid) -> std::io::Result<Scan> {
        let longest = RECORD_HEAD + MAX_NAME + grid.bytes();
        file.seek(SeekFrom::Start(HEAD as u64))?;
        let mut reader = BufReader::with_capacity(WINDOW, file);
        let (mut scan, mut held, mut at) = (Scan { records: Vec::new(), damage: Vec::new() }, Vec::new(), HEAD as u64);
        let mut summed = 0;
        loop {
            let more =
                (&mut reader).take((WINDOW + longest - held.len().min(longest)) as u64).read_to_end(&mut held)?;
            let ended = more == 0;
            let mut from = 0;
            // As long as the longest record is held whole, or there is nothing more.
            while from < held.len() && (ended || held.len() - from >= longest) {
                match whole_record(&held[from..], grid) {
                    Some((name, length)) => {
                        scan.records.push((at + from as u64, name));
                        from += length;
                    }
                    None => {
                        summed += marked(&held[from..]).map_or(0, |_| longest as u64);
                        if summed > SUMMED[0] * (at + held.len() as u64) + SUMMED[1] {
                            return Err(std::io::Error::other("too much of it is damaged: make it again"));
                        }
                        let rest = &held[from + 1..];
                        let next = rest.windows(MARK.len()).position(|bytes| bytes == MARK);
                        // The last byte may begin a mark whose rest is not held yet.
                        let skipped = 1 + next.unwrap_or(if ended { rest.len() } else { rest.len().saturating_sub(1) });
                        scan.skip(at + from as u64, skipped as u64);
                        from += skipped;
                    }
                }
            }
            held.drain(..from);
            at += from as u64;
            if ended {
                return Ok(scan);
            }
        }
    }

    fn skip(&mut self, at: u64, bytes: u64) {
        match self.damage.last_mut() {
            Some((start, length)) if *start + *length == at => *length += bytes,
            _ => self.damage.push((at, bytes)),
        }
    }
}

/// Lengths of the name and of all of the record that `bytes` begin with, if it is whole.
fn whole_record(bytes: &[u8], grid: &UnitGrid) -> Option<(u16, usize)> {
    let name = marked(bytes)?;
    let length = RECORD_HEAD + usize::from(name) + grid.bytes();
    let record = bytes.get(..length)?;
    std::str::from_utf8(&record[RECORD_HEAD..][..usize::from(name)]).ok()?;
    (checksum(&[&record[..4], &record[RECORD_HEAD..]]) == u32_at(record, 4)).then_some((name, length))
}

/// Length of the name of a record that seems to begin here.
fn marked(bytes: &[u8]) -> Option<u16> {
    let head = bytes.get(..RECORD_HEAD).filter(|head| head.starts_with(&MARK))?;
    Some(u16_at(head, 2)).filter(|&name| usize::from(name) <= MAX_NAME)
}

/// The name in a whole record.
fn name_of(record: &[u8]) -> String {
    String::from_utf8_lossy(&record[RECORD_HEAD..][..usize::from(u16_at(record, 2))]).into_owned()
}

/// The content of a whole record, or what is wrong with it.
fn parse(record: &[u8], grid: &UnitGrid) -> std::result::Result<ImageRecord, String> {
    let name = name_of(record);
    let units = unpack(&record[RECORD_HEAD + name.len()..], grid.bits(), grid.units());
    match units.iter().find(|&&unit| usize::from(unit) >= grid.codes) {
        Some(unit) => Err(format!("({name}) has unit {unit} of {} codes: make it again", grid.codes)),
        None => Ok(ImageRecord { name, units }),
    }
}

/// Unit i in bits `bits * i` and following; bit j is bit `j % 8` of byte `j / 8`.
pub fn pack(units: &[u16], bits: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity((units.len() * bits).div_ceil(8));
    let (mut held, mut count) = (0u32, 0);
    for &unit in units {
        held |= u32::from(unit) << count;
        count += bits;
        while count >= 8 {
            bytes.push(held as u8);
            held >>= 8;
            count -= 8;
        }
    }
    if count > 0 {
        bytes.push(held as u8);
    }
    bytes
}

/// The first `count` units of `bytes`, as [`pack`] puts them.
pub fn unpack(bytes: &[u8], bits: usize, count: usize) -> Vec<u16> {
    let (mut held, mut have, mut bytes) = (0u32, 0, bytes.iter());
    let mut unit = || {
        while have < bits {
            held |= u32::from(*bytes.next().unwrap_or(&0)) << have;
            have += 8;
        }
        let unit = held & ((1 << bits) - 1);
        held >>= bits;
        have -= bits;
        unit as u16
    };
    (0..count).map(|_| unit()).collect()
}

fn checksum(parts: &[&[u8]]) -> u32 {
    let mut crc = Crc::new();
    parts.iter().for_each(|part| crc.update(part));
    crc.sum()
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// An error about a file of units.
pub(super) fn wrong(path: &Path, problem: impl std::fmt::Display) -> Error {
    Error::Units { problem: format!("{}: {problem}", path.display()) }
}
