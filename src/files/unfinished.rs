//! Temporary files and folders that exist at the moment, so that a program that is interrupted can remove them.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Attempts to remove a folder into which another thread may still write.
const ATTEMPTS: usize = 10;

static UNFINISHED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// An entry in the list of temporary paths, which ends when this is dropped.
#[derive(Debug)]
pub struct Unfinished(PathBuf);

impl Unfinished {
    /// Creates something temporary with `create` and enters its path. An interruption comes before or after both.
    pub fn create<T>(
        create: impl FnOnce() -> io::Result<T>,
        path: impl FnOnce(&T) -> &Path,
    ) -> io::Result<(T, Unfinished)> {
        let mut list = list();
        let created = create()?;
        let path = path(&created).to_owned();
        list.insert(path.clone());
        Ok((created, Unfinished(path)))
    }
}

/// While this exists no interruption removes anything; other threads wait with their temporary files. Within it no
/// [`Unfinished`] may begin or end.
pub struct Uninterrupted(MutexGuard<'static, BTreeSet<PathBuf>>);

impl Uninterrupted {
    /// Waits for other threads, and for ever once the process is about to end.
    pub fn begin() -> Uninterrupted {
        Uninterrupted(list())
    }

    /// Ends it, and enters `temporary` in the list, to be removed from then on.
    pub fn end_with(mut self, temporary: &Path) -> Unfinished {
        self.0.insert(temporary.to_owned());
        Unfinished(temporary.to_owned())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        list().remove(&self.0);
    }
}

/// Removes everything temporary, for a process that is about to end: whoever wants to create a temporary file after this
/// waits for ever.
pub fn remove_unfinished() {
    let list = list();
    for path in list.iter() {
        if fs::remove_file(path).is_err() {
            let _ = (0..ATTEMPTS).find(|_| fs::remove_dir_all(path).is_ok() || !path.exists());
        }
    }
    std::mem::forget(list);
}

/// The list; a panic elsewhere does not make it wrong.
fn list() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}
