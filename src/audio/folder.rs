//! Recordings of a folder and of the folders inside it, by their names.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Suffixes, in lower case, of the files that are taken from a folder.
pub const SUFFIXES: [&str; 3] = ["wav", "wave", "flac"];

/// The recordings in `folder`, however deep, sorted by their paths. Hidden ones are left out, and links to folders are not
/// followed.
///
/// # Errors
/// If a folder cannot be read, or no file is named as a recording.
pub fn recordings(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut waiting = vec![folder.to_owned()];
    while let Some(inner) = waiting.pop() {
        for entry in fs::read_dir(&inner).map_err(Error::io("read", &inner))? {
            let entry = entry.map_err(Error::io("read", &inner))?;
            let path = entry.path();
            let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
            let kind = entry.file_type().map_err(Error::io("read", &path))?;
            let suffix = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
            if kind.is_dir() && !hidden {
                waiting.push(path);
            } else if !hidden && SUFFIXES.contains(&&*suffix) && fs::metadata(&path).is_ok_and(|about| about.is_file())
            {
                found.push(path);
            }
        }
    }
    found.sort();
    if found.is_empty() {
        let problem = format!("holds no file named as a recording: expected .{}", SUFFIXES.join(", ."));
        return Err(Error::audio(folder, problem));
    }
    Ok(found)
}
