//! A file that appears whole or not at all: written under a temporary name next to its destination and renamed there.
//! A destination that a rename cannot replace (a mount point, a file in a folder without write permission) is written
//! in place; so are devices, pipes and open descriptors, after everything is known. A file that replaces another keeps its
//! permissions. All bytes are on disk before the name changes: an error of the disk is one of the write.

use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, SpooledTempFile};

use super::{Unfinished, folder_of, follow_links, names_descriptor, refused, sync_file, temporary};
use crate::{Error, Result};

/// Bytes that a file without a temporary name next to its destination keeps in memory before it takes a disk.
const SPOOL_BYTES: usize = 1 << 26;

/// A file on its way to its destination. Dropping it before [`AtomicFile::commit`] leaves nothing behind.
pub struct AtomicFile {
    /// As the caller named it, for errors.
    name: PathBuf,
    /// The destination, links followed.
    destination: PathBuf,
    staging: Staging,
}

/// The bytes until the commit.
enum Staging {
    /// In the folder of the destination, to be renamed.
    Sibling(NamedTempFile, Unfinished),
    /// In memory or in the system's folder for temporary files, to be copied into the destination.
    Spooled(SpooledTempFile),
}

impl AtomicFile {
    /// Begins a file that is to be at `path`. A link is followed, also to a file that does not exist yet.
    ///
    /// # Errors
    /// If `path` is a folder, or its folder is missing or takes no new file and `path` is no file that can be written.
    pub fn create(path: &Path) -> Result<AtomicFile> {
        let file = |destination: PathBuf, staging| AtomicFile { name: path.to_owned(), destination, staging };
        let spooled = || Staging::Spooled(SpooledTempFile::new(SPOOL_BYTES));
        let fail = || Error::io("write", path);
        match fs::metadata(path) {
            Ok(about) if about.is_dir() => {
                Err(refused("write", path, ErrorKind::IsADirectory, "it is a folder: add a file name"))
            }
            Ok(about) if !about.is_file() || names_descriptor(path) => Ok(file(path.to_owned(), spooled())),
            Ok(about) => {
                let destination = fs::canonicalize(path).map_err(fail())?;
                let staging = match sibling(&destination, Some(&about.permissions())) {
                    Err(error) if cannot_rename(&error) && File::options().append(true).open(path).is_ok() => spooled(),
                    other => other.map_err(fail())?,
                };
                Ok(file(destination, staging))
            }
            Err(_) => {
                let destination = follow_links(path).map_err(fail())?;
                let staging = sibling(&destination, None).map_err(fail())?;
                Ok(file(destination, staging))
            }
        }
    }

    /// Gives the file its name.
    pub fn commit(self) -> Result<()> {
        let destination = &self.destination;
        let done = match self.staging {
            Staging::Sibling(file, _unfinished) => {
                sync_file(file.as_file()).and_then(|()| match file.persist(destination) {
                    Err(failed) if cannot_rename(&failed.error) && destination.is_file() => {
                        overwrite(destination, &mut failed.file.as_file())
                    }
                    other => other.map(drop).map_err(|failed| failed.error),
                })
            }
            Staging::Spooled(mut file) if destination.is_file() && !names_descriptor(destination) => {
                overwrite(destination, &mut file)
            }
            // A descriptor is not rewound: its file may hold something already.
            Staging::Spooled(mut file) => File::options().append(true).open(destination).and_then(|mut device| {
                file.rewind()?;
                io::copy(&mut file, &mut device)?;
                device.flush()?;
                if device.metadata()?.is_file() { sync_file(&device) } else { Ok(()) }
            }),
        };
        done.map_err(Error::io("write", &self.name))
    }

    fn staged(&mut self) -> &mut dyn ReadWriteSeek {
        match &mut self.staging {
            Staging::Sibling(file, _) => file,
            Staging::Spooled(file) => file,
        }
    }
}

trait ReadWriteSeek: Read + Write + Seek {}
impl<T: Read + Write + Seek> ReadWriteSeek for T {}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.staged().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.staged().flush()
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.staged().seek(to)
    }
}

/// A file with a temporary name in the folder of `path`, with the permissions of the file that it replaces.
fn sibling(path: &Path, old: Option<&Permissions>) -> io::Result<Staging> {
    if path.file_name().is_none() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "this is no file name"));
    }
    let folder = folder_of(path);
    if matches!(folder.try_exists(), Ok(false)) {
        let problem = format!("the folder {} does not exist: create it first", folder.display());
        return Err(io::Error::new(ErrorKind::NotFound, problem));
    }
    // Nobody may read it meanwhile who may not read the old one.
    let builder = temporary(if old.is_some() { 0o600 } else { 0o666 });
    let (file, unfinished) = Unfinished::create(|| builder.tempfile_in(folder), NamedTempFile::path)?;
    if cfg!(unix)
        && let Some(old) = old
    {
        file.as_file().set_permissions(old.clone())?;
    }
    Ok(Staging::Sibling(file, unfinished))
}

/// Whether the destination may still be written in place after a rename, or the file to be renamed, failed like this.
fn cannot_rename(error: &io::Error) -> bool {
    use ErrorKind::{CrossesDevices, PermissionDenied, ReadOnlyFilesystem, ResourceBusy};
    matches!(error.kind(), CrossesDevices | PermissionDenied | ReadOnlyFilesystem | ResourceBusy)
}

/// Copies all of `source` over the file at `path`. Where that fails, its old content comes back, if it can be read;
/// otherwise it is left empty rather than half written.
fn overwrite(path: &Path, source: &mut (impl Read + Seek)) -> io::Result<()> {
    let old = fs::read(path).unwrap_or_default();
    let mut file = File::options().write(true).open(path)?;
    source.rewind()?;
    let copied = io::copy(source, &mut file).and_then(|length| file.set_len(length)).and_then(|()| file.flush());
    let copied = copied.and_then(|()| sync_file(&file));
    if copied.is_err() {
        let restored = file.rewind().and_then(|()| file.write_all(&old));
        let length = if restored.is_ok() { old.len() as u64 } else { 0 };
        // The first error is the one to report.
        let _ = file.set_len(length);
    }
    copied
}
