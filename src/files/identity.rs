//! Identity of the file that a path leads to, whatever the path is called.

use std::fs::{self, File};
use std::io;
use std::path::Path;

/// The identity of an open or existing file: equal for two paths exactly if they lead to the same file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FileId(Key);

#[cfg(unix)]
type Key = (u64, u64); // device and inode
#[cfg(not(unix))]
type Key = std::path::PathBuf;

impl FileId {
    /// The file that `path` leads to, links followed; `None` if there is none.
    pub fn of(path: &Path) -> Option<FileId> {
        #[cfg(unix)]
        return fs::metadata(path).ok().map(|about| FileId(key(&about)));
        #[cfg(not(unix))]
        return fs::canonicalize(path).ok().map(FileId);
    }

    /// The identity of an open file; `None` where the system has no such notion.
    pub fn of_open(file: &File) -> io::Result<Option<FileId>> {
        #[cfg(unix)]
        return Ok(Some(FileId(key(&file.metadata()?))));
        #[cfg(not(unix))]
        return file.metadata().map(|_| None);
    }
}

#[cfg(unix)]
fn key(about: &fs::Metadata) -> Key {
    use std::os::unix::fs::MetadataExt;
    (about.dev(), about.ino())
}

/// Whether `path` stands for an open descriptor of this process: `/dev/fd/3`, `/dev/stdout`, `/proc/self/fd/1` or a link
/// to one of them. Opening it for writing may start at the beginning of a file that holds something already.
pub fn names_descriptor(path: &Path) -> bool {
    const MAX_LINKS: usize = 16;
    let own = fs::canonicalize("/proc/self").ok();
    let is_listing = |folder: &Path| {
        let folder = fs::canonicalize(folder).unwrap_or_default();
        let of_process = own.as_ref().is_some_and(|own| folder.starts_with(own));
        folder == Path::new("/dev/fd") || (of_process && folder.file_name().is_some_and(|name| name == "fd"))
    };
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        let Some(folder) = path.parent() else { return false };
        if is_listing(folder) {
            return true;
        }
        match fs::read_link(&path) {
            Ok(target) => path = folder.join(target),
            Err(_) => return false,
        }
    }
    false
}
