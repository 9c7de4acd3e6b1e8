//! A directory of a model on its way to its name: complete and on disk before it gets it, so that the old model under that name
//! is there until the new one is.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::directory::{CAPTIONER, CONFIG, TOKENIZER, TOKENIZER_CONFIG, VOCODER};
use crate::config::{ModelConfig, TokenizerConfig};
use crate::files::{Unfinished, Uninterrupted, folder_of, follow_links, sync_file, sync_folder, temporary};
use crate::{Error, Result, files};

/// Kind of directory, by its files.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// Name in errors, with its article.
    pub name: &'static str,
    /// Every file that one may hold. The first, without which there is no model, goes first and comes last.
    pub files: &'static [&'static str],
}

/// A model directory.
const MODEL: Kind = Kind { name: "a model", files: &[CONFIG, TOKENIZER_CONFIG, TOKENIZER, VOCODER, CAPTIONER] };
/// An image tokenizer alone.
pub const TOKENIZER_ALONE: Kind = Kind { name: "a tokenizer", files: &[TOKENIZER_CONFIG, TOKENIZER] };

/// A directory that does not have its name yet. Dropping it before [`StagedDirectory::commit`] removes it.
pub struct StagedDirectory {
    folder: TempDir,
    kind: Kind,
    /// Links followed.
    destination: PathBuf,
    force: bool,
    _unfinished: Unfinished,
}

impl StagedDirectory {
    /// Makes an empty directory for a model: see [`StagedDirectory::create_kind`].
    pub fn create(destination: &Path, force: bool) -> Result<StagedDirectory> {
        StagedDirectory::create_kind(destination, force, MODEL)
    }

    /// Makes an empty directory next to `destination`, or inside it where its parent takes none. Without `force`,
    /// `destination` must not exist or be empty; with it, it may also be a directory of the same kind, but never one that
    /// holds other files. That is checked now and at the commit.
    pub fn create_kind(destination: &Path, force: bool, kind: Kind) -> Result<StagedDirectory> {
        let destination = follow_links(destination).map_err(Error::io("write", destination))?;
        check_replaceable(kind, &destination, &destination, force, &[])?;
        let parent = folder_of(&destination);
        // The parent may be temporary itself: once an interruption has removed it, it stays away.
        let uninterrupted = Uninterrupted::begin();
        fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        drop(uninterrupted);
        let folder = match folder_in(parent) {
            Err(_) if destination.is_dir() => folder_in(&destination),
            other => other,
        };
        let (folder, _unfinished) = folder.map_err(Error::io("create a directory next to", &destination))?;
        Ok(StagedDirectory { folder, kind, destination, force, _unfinished })
    }

    /// Where to write the weights files.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Checks and writes the configuration of a model and publishes the directory.
    pub fn commit(self, config: &ModelConfig) -> Result<()> {
        config.check().map_err(|(field, problem)| Error::weights(&self.destination, field, problem))?;
        let text = serde_json::to_string_pretty(config)
            .map_err(|error| Error::weights(&self.destination, CONFIG, error.to_string()))?;
        files::write_atomically(&self.path().join(CONFIG), format!("{text}\n").as_bytes())?;
        self.publish()
    }

    /// Checks and writes the configuration of a tokenizer.
    pub fn write_tokenizer(&self, config: &TokenizerConfig) -> Result<()> {
        config.check().map_err(|(field, problem)| Error::weights(&self.destination, field, problem))?;
        let text = serde_json::to_string_pretty(config)
            .map_err(|error| Error::weights(&self.destination, TOKENIZER_CONFIG, error.to_string()))?;
        files::write_atomically(&self.path().join(TOKENIZER_CONFIG), format!("{text}\n").as_bytes())
    }

    /// Gives the directory, whose files are on disk, its name. A directory that had it before goes away only after that; one
    /// that cannot be renamed (a mount point) takes the files instead.
    pub fn publish(self) -> Result<()> {
        sync_folder(self.path())?;
        if self.is_inside() || !self.rename()? {
            return self.fill();
        }
        // It is under its final name now: nothing of it may be removed any more.
        let _ = self.folder.keep();
        sync_folder(folder_of(&self.destination))
    }

    /// Whether this directory is in its destination.
    fn is_inside(&self) -> bool {
        let holder = fs::canonicalize(folder_of(self.path()));
        holder.is_ok_and(|holder| fs::canonicalize(&self.destination).is_ok_and(|destination| destination == holder))
    }

    /// Gives the directory its name; false if the one that has it cannot be renamed.
    fn rename(&self) -> Result<bool> {
        let (new, destination) = (self.path(), &self.destination);
        let fail = || Error::io("rename a new directory to", destination);
        let uninterrupted = Uninterrupted::begin();
        check_replaceable(self.kind, destination, destination, self.force, &[])?;
        let old_goes = destination.exists() && fs::remove_dir(destination).is_err() && self.force;
        if !old_goes {
            // Onto nothing or an empty directory; one that has been filled since the check stays.
            return match fs::rename(new, destination) {
                Ok(()) => Ok(true),
                Err(error) if matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists) => {
                    check_replaceable(self.kind, destination, destination, false, &[]).and(Err(fail()(error)))
                }
                Err(_) if destination.exists() => Ok(false),
                Err(error) => Err(fail()(error)),
            };
        }
        // Not in the list of temporary folders while it holds the only model.
        let Ok(aside) = temporary(0o777).tempdir_in(folder_of(destination)) else { return Ok(false) };
        let old = aside.path().join("old");
        if fs::rename(destination, &old).is_err() {
            return Ok(false);
        }
        // Under its new name nobody adds to it any more.
        let checked = check_replaceable(self.kind, &old, destination, true, &[]);
        if let Err(problem) = checked.and_then(|()| fs::rename(new, destination).map_err(fail())) {
            return Err(match fs::rename(&old, destination) {
                Ok(()) => problem,
                Err(error) => Error::io("move back the model now at", &aside.keep().join("old"))(error),
            });
        }
        let _unfinished = uninterrupted.end_with(aside.path());
        drop(aside);
        Ok(true)
    }

    /// Moves the files into the destination: onto its disk first, then each to its name.
    fn fill(&self) -> Result<()> {
        let destination = &self.destination;
        let (inside, _unfinished) =
            folder_in(destination).map_err(Error::io("create a temporary directory in", destination))?;
        for name in self.kind.files {
            let (from, to) = (self.path().join(name), inside.path().join(name));
            if from.exists() && fs::rename(&from, &to).is_err() {
                // The destination is on another disk.
                copy(&from, &to).map_err(Error::io("write", &destination.join(name)))?;
            }
        }
        sync_folder(inside.path())?;
        let uninterrupted = Uninterrupted::begin();
        let own = [self.path(), inside.path()].map(|folder| folder.file_name().unwrap_or_default());
        check_replaceable(self.kind, destination, destination, self.force, &own)?;
        let aside = temporary(0o777).tempdir_in(destination);
        let aside = aside.map_err(Error::io("create a temporary directory in", destination))?;
        let old = self.kind.files.iter().map(|name| (destination.join(name), aside.path().join(name)));
        let new = self.kind.files.iter().rev().map(|name| (inside.path().join(name), destination.join(name)));
        let moves: Vec<(PathBuf, PathBuf)> = old.chain(new).collect();
        let mut moved: Vec<(&PathBuf, &PathBuf)> = Vec::new();
        for (from, to) in &moves {
            if !from.exists() {
                continue;
            }
            if let Err(error) = fs::rename(from, to) {
                return Err(match moved.iter().rev().try_for_each(|(from, to)| fs::rename(to, from)) {
                    Ok(()) => Error::io("move a file to", to)(error),
                    Err(error) => Error::io("move back the model now in", &aside.keep())(error),
                });
            }
            moved.push((from, to));
        }
        let _unfinished_aside = uninterrupted.end_with(aside.path());
        drop(aside);
        sync_folder(destination)
    }
}

/// Copies a file, down to the disk.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut copy = File::create_new(to)?;
    io::copy(&mut File::open(from)?, &mut copy)?;
    sync_file(&copy)
}

/// A directory with a temporary name and the permissions an ordinary directory would get.
fn folder_in(parent: &Path) -> io::Result<(TempDir, Unfinished)> {
    Unfinished::create(|| temporary(0o777).tempdir_in(parent), TempDir::path)
}

/// Refuses destinations whose content would be lost: `folder`, which errors call `name`, apart from the entries `own`.
fn check_replaceable(kind: Kind, folder: &Path, name: &Path, force: bool, own: &[&OsStr]) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    if !folder.is_dir() {
        return Err(Error::weights(name, "output", "exists and is not a directory: choose another"));
    }
    for entry in fs::read_dir(folder).map_err(Error::io("read", name))? {
        let entry = entry.map_err(Error::io("read", name))?.file_name();
        if own.contains(&&*entry) {
            continue;
        }
        if !kind.files.iter().any(|known| entry == *known) {
            let problem = format!("holds {}, which is no part of {}: choose another", entry.display(), kind.name);
            return Err(Error::weights(name, "output", problem));
        }
        if !force {
            let problem = format!("holds {} already; --force replaces it", kind.name);
            return Err(Error::weights(name, "output", problem));
        }
    }
    Ok(())
}
