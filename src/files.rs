//! Reading and writing whole files: a bounded read, so that no input can fill the memory, and an atomic write, so that
//! a reader never sees half a file and a failed run leaves the old one as it was. Mapped and streamed files live with
//! the formats that need them.

mod atomic;
mod folders;
mod identity;
mod mistaken;
mod unfinished;

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use crate::{Error, Result};

pub use atomic::AtomicFile;
pub use folders::{folder_of, follow_links, sync_file, sync_folder, temporary};
pub use identity::{FileId, names_descriptor};
pub use mistaken::{Placeholder, mistaken_content};
pub use unfinished::{Unfinished, Uninterrupted, remove_unfinished};

/// The content of the file at `path`, which may hold at most `max` bytes.
pub fn read_at_most(path: &Path, max: u64) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(Error::io("read", path))?;
    let about = file.metadata().map_err(Error::io("read", path))?;
    if about.is_dir() {
        return Err(refused("read", path, io::ErrorKind::IsADirectory, "it is a folder: give one file of it"));
    }
    if about.len() > max {
        return Err(too_large(path, max));
    }
    read_stream(file, path, max)
}

/// The rest of `stream`, which may hold at most `max` bytes; `name` is what errors call it. A device or a pipe has no
/// length, so the read itself is bounded.
pub fn read_stream(stream: impl Read, name: &Path, max: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.take(max.saturating_add(1)).read_to_end(&mut bytes).map_err(Error::io("read", name))?;
    if bytes.len() as u64 > max { Err(too_large(name, max)) } else { Ok(bytes) }
}

/// Writes `bytes` to `path`, all of them or none: see [`AtomicFile`].
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes).map_err(Error::io("write", path))?;
    file.commit()
}

/// Appends `bytes` to the open file at `path`; what could not be written whole is taken back, so that the next begin where the
/// last whole ones end.
pub fn append_whole(file: &mut File, path: &Path, bytes: &[u8]) -> Result<()> {
    let start = file.metadata().map_err(Error::io("write", path))?.len();
    file.write_all(bytes).map_err(|error| {
        let _ = file.set_len(start);
        Error::io("write", path)(error)
    })
}

fn too_large(path: &Path, max: u64) -> Error {
    let problem = format!("it holds more than the {max} bytes that are accepted here: give a smaller file");
    refused("read", path, io::ErrorKind::FileTooLarge, &problem)
}

/// An [`Error::Io`] whose reason is this crate's and not the system's.
fn refused(action: &'static str, path: &Path, kind: io::ErrorKind, problem: &str) -> Error {
    Error::Io { action, path: path.to_owned(), source: io::Error::new(kind, problem.to_owned()) }
}
