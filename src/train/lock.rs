//! The lock of a run directory: one process at a time trains in it.

use std::fs::{File, TryLockError};
use std::path::Path;

use crate::{Error, Result};

/// The locked file's name in a run directory.
pub const LOCK: &str = "lock";

/// Locks a run directory until the file is dropped or the process ends, however it does; `None` on file systems without locks.
///
/// # Errors
/// If another process trains there.
pub fn take(run: &Path) -> Result<Option<File>> {
    let path = run.join(LOCK);
    let file = File::create(&path).map_err(Error::io("create", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Err(Error::Training {
            problem: format!("another process trains in {}: end it first, or name another directory", run.display()),
        }),
        Err(TryLockError::Error(_)) => Ok(None),
    }
}
