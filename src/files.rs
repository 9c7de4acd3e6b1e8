//! Reading and writing whole files: a bounded read, so that no input can fill the memory, and an atomic write, so that
//! a reader never sees half a file and a failed run leaves the old one as it was. Mapped and streamed files live with
//! the formats that need them.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Bytes at the start of a file that tell whether it is text.
const MAX_TEXT_START: usize = 512;

/// The content of the file at `path`, which may hold at most `most` bytes.
pub fn read_at_most(path: &Path, most: u64) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(Error::io("read", path))?;
    let about = file.metadata().map_err(Error::io("read", path))?;
    if about.is_dir() {
        return Err(refused("read", path, io::ErrorKind::IsADirectory, "it is a folder: give one file of it"));
    }
    let too_large = || {
        let problem = format!("it holds more than the {most} bytes that are accepted here: give a smaller file");
        refused("read", path, io::ErrorKind::FileTooLarge, &problem)
    };
    if about.len() > most {
        return Err(too_large());
    }
    // A device or a pipe has no length: the read itself is bounded as well.
    let mut bytes = Vec::with_capacity(usize::try_from(about.len()).unwrap_or(0));
    file.take(most + 1).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    if bytes.len() as u64 > most { Err(too_large()) } else { Ok(bytes) }
}

/// What a file is that was taken for another kind by mistake, and what to do about it: an archive, a Git LFS pointer, a
/// web page or other text in place of a download. `None` of bytes that are none of these.
pub fn mistaken_content(bytes: &[u8]) -> Option<String> {
    const BINARY: [(&[u8], &str); 9] = [
        (b"\x1f\x8b", "is compressed with gzip: unpack it with gunzip"),
        (b"\xfd7zXZ\0", "is compressed with xz: unpack it with unxz"),
        (b"\x28\xb5\x2f\xfd", "is compressed with zstd: unpack it with unzstd"),
        (b"BZh", "is compressed with bzip2: unpack it with bunzip2"),
        (b"7z\xbc\xaf\x27\x1c", "is a 7z archive: unpack it"),
        (b"Rar!\x1a\x07", "is a RAR archive: unpack it"),
        (b"PK\x03\x04", "is a zip archive: unpack it"),
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file, which is not read: give the original"),
        (b"GGUF", "is a GGUF file, which is not read: give the original"),
    ];
    if let Some((_, problem)) = BINARY.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return Some(problem.to_string());
    }
    let start = &bytes[..bytes.len().min(MAX_TEXT_START)];
    let start = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
    // A character may be cut off at the end.
    let text = match std::str::from_utf8(start) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => std::str::from_utf8(&start[..error.valid_up_to()]).ok()?,
        Err(_) => return None,
    };
    if text.is_empty() || text.contains(|c: char| c.is_control() && !c.is_ascii_whitespace()) {
        None
    } else if text.starts_with("version https://git-lfs.github.com/spec/") {
        Some("is a Git LFS pointer that stands for the file: fetch the file itself with `git lfs pull`".into())
    } else if text.starts_with('<') {
        Some(
            "is a web page or an XML message, not the file: download it again (Google Drive asks a question before it \
              gives a large file away: answer it in a browser)"
                .into(),
        )
    } else {
        let line: String = text.lines().next().unwrap_or_default().chars().take(60).collect();
        Some(format!("is text that begins with {line:?}: download or copy the file itself"))
    }
}

/// Writes `bytes` beside `path` and renames, so that `path` holds either its old content or all of the new one.
/// A link is followed; a device or a pipe is written to as it is.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let fail = || Error::io("write", path);
    match fs::metadata(path) {
        Ok(about) if about.is_dir() => {
            let problem = "it is a folder: add a file name";
            Err(refused("write", path, io::ErrorKind::IsADirectory, problem))
        }
        Ok(about) if !about.is_file() => {
            let mut device = File::options().write(true).open(path).map_err(fail())?;
            device.write_all(bytes).and_then(|()| device.flush()).map_err(fail())
        }
        Ok(_) => replace(&fs::canonicalize(path).map_err(fail())?, bytes).map_err(fail()),
        Err(_) => replace(path, bytes).map_err(fail()),
    }
}

/// The write and the rename. The temporary file is removed when either fails.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if path.file_name().is_none() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "this is no file name"));
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    };
    if matches!(folder.try_exists(), Ok(false)) {
        let problem = format!("the folder {} does not exist: create it first", folder.display());
        return Err(io::Error::new(io::ErrorKind::NotFound, problem));
    }
    let mut beside = tempfile::Builder::new();
    beside.prefix(".im2sp-");
    #[cfg(unix)]
    {
        // As an ordinary new file: whatever the umask leaves. The default would be readable by its owner only.
        use std::os::unix::fs::PermissionsExt;
        beside.permissions(fs::Permissions::from_mode(0o666));
    }
    let mut file = beside.tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.flush()?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// An [`Error::Io`] whose reason is this crate's and not the system's.
fn refused(action: &'static str, path: &Path, kind: io::ErrorKind, problem: &str) -> Error {
    Error::Io { action, path: path.to_owned(), source: io::Error::new(kind, problem.to_owned()) }
}
