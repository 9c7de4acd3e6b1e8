//! The journal of a run: one JSON object a line in `log.jsonl`, and the same numbers for TensorBoard.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::tensorboard::EventFile;
use crate::{Error, Result, files};

/// The journal's name in a run directory.
pub const JOURNAL: &str = "log.jsonl";
/// Larger than the journal of any run.
const MAX_BYTES: u64 = 1 << 32;

/// A line of the journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Record {
    /// An update of the parameters.
    Update(Update),
    /// A validation.
    Validation(Validation),
}

/// Numbers of an update.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Update {
    /// Its number, from 1.
    pub update: u64,
    /// Epoch of its last batch, from 0.
    pub epoch: u64,
    /// Mean loss of a token.
    pub loss: f64,
    /// Share of tokens whose target was not the likeliest, with the true tokens before it given.
    pub error: f64,
    /// Norm of the gradients before clipping.
    pub gradient_norm: f64,
    /// Learning rate.
    pub rate: f64,
    /// Images, padding left out.
    pub images: u64,
    /// Tokens with a target.
    pub tokens: u64,
    /// Seconds since the update before.
    pub seconds: f64,
    /// Floating-point operations of its products as a share of what the devices can do in that time; none where their peak
    /// is not known.
    #[serde(default)]
    pub share_of_peak: Option<f64>,
}

/// Numbers of a validation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Validation {
    /// Updates before it.
    pub update: u64,
    /// Mean loss of a token.
    pub loss: f64,
    /// Edit distance between decoded and true units, as a share of the true ones.
    pub unit_error_rate: f64,
    /// Images.
    pub images: u64,
    /// Seconds it took.
    pub seconds: f64,
}

impl Record {
    /// Updates at this line.
    pub fn update(&self) -> u64 {
        match self {
            Record::Update(record) => record.update,
            Record::Validation(record) => record.update,
        }
    }
}

/// The open journal of a run.
pub struct Journal {
    path: PathBuf,
    file: File,
    events: EventFile,
}

impl Journal {
    /// Opens the journal in `run` for a run that has done `update` updates: lines about later ones, of a run that was ended
    /// after its last checkpoint, go.
    ///
    /// # Errors
    /// If a file cannot be read or written, or a line before the last is damaged.
    pub fn open(run: &Path, update: u64) -> Result<Journal> {
        let path = run.join(JOURNAL);
        let kept = if path.exists() { read(run)? } else { Vec::new() };
        let kept = kept.into_iter().filter(|record| record.update() <= update);
        let lines = kept.map(|record| line(&path, &record)).collect::<Result<String>>()?;
        files::write_atomically(&path, lines.as_bytes())?;
        let file = File::options().append(true).open(&path).map_err(Error::io("write", &path))?;
        Ok(Journal { path, file, events: EventFile::create(run, update)? })
    }

    /// Adds a line.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn add(&mut self, record: &Record) -> Result<()> {
        self.file.write_all(line(&self.path, record)?.as_bytes()).map_err(Error::io("write", &self.path))?;
        match record {
            Record::Update(r) => {
                let mut scalars = vec![
                    ("train/loss", r.loss),
                    ("train/token_error", r.error),
                    ("train/gradient_norm", r.gradient_norm),
                    ("train/learning_rate", r.rate),
                    ("train/images_per_second", r.images as f64 / r.seconds.max(1e-9)),
                ];
                scalars.extend(r.share_of_peak.map(|share| ("train/share_of_peak", share)));
                self.events.scalars(r.update, &scalars)
            }
            Record::Validation(r) => self
                .events
                .scalars(r.update, &[("validation/loss", r.loss), ("validation/unit_error_rate", r.unit_error_rate)]),
        }
    }
}

fn line(path: &Path, record: &Record) -> Result<String> {
    let text = serde_json::to_string(record).map_err(|error| Error::weights(path, "line", error.to_string()))?;
    Ok(text + "\n")
}

/// The lines of a run's journal. A last line that was not written whole is left out.
///
/// # Errors
/// If it is missing or a line is damaged.
pub fn read(run: &Path) -> Result<Vec<Record>> {
    let path = run.join(JOURNAL);
    let bytes = files::read_at_most(&path, MAX_BYTES)?;
    let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    let parse = |(number, line): (usize, &[u8])| {
        serde_json::from_slice(line)
            .map_err(|error| Error::weights(&path, format!("line {}", number + 1), format!("{error}: remove the line")))
    };
    bytes[..whole].split(|&byte| byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty()).map(parse).collect()
}
