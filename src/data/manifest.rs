//! Manifests: JSON lines `{"image": "a.jpg", "units": [71, 12], "split": "train"}`, paths relative to the manifest's folder. Units
//! may also be a text of numbers, or the path of a `.unit` file; a line without a split is for training.

use std::path::Path;

use serde::Deserialize;

use super::{Listing, MAX_JSON, Sample, Split, UnitSource};
use crate::units::parse;
use crate::{Error, Result, files};

#[derive(Deserialize)]
struct Line {
    image: String,
    units: LineUnits,
    #[serde(default = "train")]
    split: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum LineUnits {
    List(Vec<u32>),
    Text(String),
}

fn train() -> String {
    "train".into()
}

/// Samples of a split, units below `known`.
///
/// # Errors
/// Names the line that is malformed; or there is no sample of the split.
pub fn list(path: &Path, split: Split, known: usize) -> Result<Listing> {
    let bytes = files::read_at_most(path, MAX_JSON)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| {
        let problem = files::mistaken_content(&bytes).unwrap_or_else(|| "is no UTF-8 text".into());
        Error::weights(path, "file", problem)
    })?;
    let folder = files::folder_of(path);
    let mut listing = Listing::default();
    for (number, text) in text.lines().enumerate().filter(|(_, text)| !text.trim().is_empty()) {
        let wrong = |problem: String| Error::weights(path, format!("line {}", number + 1), problem);
        let line: Line = serde_json::from_str(text).map_err(|error| {
            wrong(format!("{error}: expected {{\"image\": \"a.jpg\", \"units\": [71, 12], \"split\": \"train\"}}"))
        })?;
        let of_line = Split::of(&line.split);
        let of_line =
            of_line.ok_or_else(|| wrong(format!("split: is {:?}, expected train, val or test", line.split)))?;
        if of_line != split {
            continue;
        }
        let units = match line.units {
            LineUnits::Text(name) if name.ends_with(".unit") => UnitSource::File(folder.join(name)),
            LineUnits::Text(text) => UnitSource::List(parse(&text, known).map_err(|error| wrong(error.to_string()))?),
            LineUnits::List(units) => {
                if let Some(unit) = units.iter().find(|&&unit| unit as usize >= known) {
                    return Err(wrong(format!("units: {unit} is none of the {known} that the model knows")));
                }
                UnitSource::List(units)
            }
        };
        if matches!(&units, UnitSource::List(units) if units.is_empty()) {
            return Err(wrong("units: there are none".into()));
        }
        listing.samples.push(Sample { image: folder.join(line.image), units });
    }
    if listing.samples.is_empty() && split != Split::Validation {
        return Err(Error::weights(path, "split", format!("no line is of the split {split:?}")));
    }
    Ok(listing)
}
