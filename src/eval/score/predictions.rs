//! Captions to be scored: a folder of transcripts, `NAME.txt` for the image `NAME`, or COCO's results,
//! `[{"image_id": 42, "caption": "a dog"}]`.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::is_python_space;
use crate::data::{MAX_JSON, parse_json};
use crate::{Error, Result, files};

/// Maximum bytes of a transcript.
const MAX_TRANSCRIPT: u64 = 1 << 20;

/// A caption of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prediction {
    /// The image's name, or its number in COCO.
    pub image: String,
    /// Its caption; a space if nothing was said.
    pub caption: String,
}

#[derive(Deserialize)]
struct CocoResult {
    image_id: Value,
    caption: String,
}

/// Reads a folder of `.txt` files, in the order of their names, or a JSON file.
///
/// # Errors
/// If it cannot be read, is malformed, or holds no caption.
pub fn read(path: &Path) -> Result<Vec<Prediction>> {
    let predictions = if path.is_dir() { of_folder(path)? } else { of_json(path)? };
    if predictions.is_empty() {
        let expected = "expected a folder of .txt files or a JSON list of {\"image_id\": 42, \"caption\": \"a dog\"}";
        return Err(Error::weights(path, "captions", format!("there are none: {expected}")));
    }
    Ok(predictions)
}

/// The caption of a transcript: its first line, stripped.
pub fn caption_of(transcript: &str) -> String {
    let line = transcript.split(['\n', '\r']).next().unwrap_or_default().trim_matches(is_python_space);
    if line.is_empty() { " ".into() } else { line.into() }
}

fn of_folder(folder: &Path) -> Result<Vec<Prediction>> {
    let entries = fs::read_dir(folder).and_then(|entries| entries.collect::<std::io::Result<Vec<_>>>());
    let mut paths: Vec<PathBuf> = entries.map_err(Error::io("read", folder))?.iter().map(fs::DirEntry::path).collect();
    paths.retain(|path| path.extension().is_some_and(|suffix| suffix == "txt"));
    paths.sort();
    let prediction = |path: &PathBuf| {
        let bytes = files::read_at_most(path, MAX_TRANSCRIPT)?;
        let text = std::str::from_utf8(&bytes).map_err(|_| Error::weights(path, "text", "is not UTF-8"))?;
        let image = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Prediction { image, caption: caption_of(text) })
    };
    paths.iter().map(prediction).collect()
}

fn of_json(path: &Path) -> Result<Vec<Prediction>> {
    let results: Vec<CocoResult> = parse_json(path, &files::read_at_most(path, MAX_JSON)?)?;
    let prediction = |(at, result): (usize, CocoResult)| {
        let image = match result.image_id {
            Value::Number(number) => number.to_string(),
            Value::String(name) => name,
            other => {
                let problem = format!("image_id is {other}, expected a number or a name");
                return Err(Error::weights(path, format!("entry {}", at + 1), problem));
            }
        };
        Ok(Prediction { image, caption: caption_of(&result.caption) })
    };
    results.into_iter().enumerate().map(prediction).collect()
}
