//! Data sets of images with speech units, and batches of them: what `im2sp train` reads.
//!
//! A sample is one caption of one image. Data sets only list samples; files are read when their batch comes, on threads of the
//! loader, and one that cannot be read is left out and reported.

pub mod augment;
pub mod coco;
pub mod features;
pub mod flickr;
pub mod loader;
pub mod manifest;
pub mod order;
pub mod unit_file;

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::units::{BOS, EOS, deduplicated, to_token};
use crate::{Error, Result, files};

/// Larger than the JSON file of any data set: SpokenCOCO's with parse trees has 700 MB.
pub(crate) const MAX_JSON: u64 = 1 << 31;
/// Names that an error lists.
const LISTED: usize = 3;

/// Part of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// To learn from.
    Train,
    /// To choose the best checkpoint by.
    Validation,
    /// To report.
    Test,
}

impl Split {
    /// The split of its name in Karpathy's files and in manifests; `None` for `restval`, which the reference does not use.
    fn of(name: &str) -> Option<Split> {
        match name {
            "train" => Some(Split::Train),
            "val" | "dev" | "validation" => Some(Split::Validation),
            "test" => Some(Split::Test),
            _ => None,
        }
    }
}

/// Where the units of a sample are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnitSource {
    /// In a `.unit` file.
    File(PathBuf),
    /// In the listing itself.
    List(Vec<u32>),
}

/// One caption of one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The image file.
    pub image: PathBuf,
    /// Its speech units.
    pub units: UnitSource,
}

impl Sample {
    /// The units, repetitions included.
    ///
    /// # Errors
    /// If the file is missing or damaged, or holds none or others than 0 to `known - 1`.
    pub fn read_units(&self, known: usize) -> Result<Vec<u32>> {
        match &self.units {
            UnitSource::File(path) => unit_file::read(path, known),
            UnitSource::List(units) => Ok(units.clone()),
        }
    }
}

/// Samples of one split, and what was left out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Listing {
    /// The samples, in the order of the data set.
    pub samples: Vec<Sample>,
    /// Notes on samples that were left out, a line each, for people.
    pub notes: Vec<String>,
}

impl Listing {
    /// Adds the samples of another data set.
    pub fn extend(&mut self, other: Listing) {
        self.samples.extend(other.samples);
        self.notes.extend(other.notes);
    }

    /// Notes names that `path` has and nobody knows.
    fn note_unknown(&mut self, path: &Path, what: &str, names: &[String]) {
        if let Some(first) = names.get(..names.len().min(LISTED)).filter(|first| !first.is_empty()) {
            let more = if names.len() > LISTED { ", ..." } else { "" };
            let note = format!("{}: {} {what}: {}{more}", path.display(), names.len(), first.join(", "));
            self.notes.push(note);
        }
    }
}

/// Tokens of a training target: BOS, the units without repetitions, EOS.
pub fn target(units: &[u32]) -> Vec<u32> {
    let tokens = deduplicated(units).into_iter().map(to_token);
    std::iter::once(BOS).chain(tokens).chain([EOS]).collect()
}

/// Reads a JSON file of a data set.
fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    parse_json(path, &files::read_at_most(path, MAX_JSON)?)
}

/// The value in the bytes of the JSON file at `path`.
pub(crate) fn parse_json<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| {
        let problem = files::mistaken_content(bytes).filter(|_| error.is_syntax() && error.column() <= 1);
        let place = format!("line {}, column {}", error.line(), error.column());
        Error::weights(path, place, problem.unwrap_or_else(|| error.to_string()))
    })
}

/// The file of `folder` with the first of these names that exists.
fn find(folder: &Path, names: &[&str]) -> Result<PathBuf> {
    let found = names.iter().map(|name| folder.join(name)).find(|path| path.exists());
    found.ok_or_else(|| {
        let problem = format!("is not there: expected {}", names.join(" or "));
        Error::weights(folder, "file", problem)
    })
}
