//! The lock of a directory of results: one process at a time works in it.

use std::fs::{File, TryLockError};
use std::path::Path;

use crate::{Error, Result};

/// The locked file's name.
pub const LOCK: &str = "lock";

/// Locks a directory until the file is dropped or the process ends, however it does; `None` on file systems without locks.
///
/// # Errors
/// If another process works there.
pub fn take(run: &Path) -> Result<Option<File>> {
    let path = run.join(LOCK);
    let file = File::create(&path).map_err(Error::io("create", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => {
            let problem = "another process works in this directory: end it first, or name another";
            Err(Error::Io { action: "lock", path, source: std::io::Error::other(problem) })
        }
        Err(TryLockError::Error(_)) => Ok(None),
    }
}
