//! The unit error rate: how much of the true units of a caption has to be changed for those that a model decoded, as a mean
//! over captions. Another wording counts as an error, so that values above 0.5 are usual.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use rayon::prelude::*;

use crate::data::unit_file;
use crate::units::{deduplicated, edit_distance, read_lists};
use crate::{Error, Result};

/// Larger than any number of units of a vocoder.
const KNOWN: usize = 1 << 20;

/// Lists of units by the name of their image.
pub type NamedUnits = Vec<(String, Vec<u32>)>;

/// Reads a folder of `.unit` files, `NAME.unit` for the image `NAME`, or a text of lists with names.
///
/// # Errors
/// If it cannot be read, is malformed, a list has no name, or there is none.
pub fn read(path: &Path) -> Result<NamedUnits> {
    let stem = |name: &Path| name.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    if !path.is_dir() {
        let named = |list: crate::units::UnitList| match &list.name {
            Some(name) => Ok((stem(Path::new(name)), list.units)),
            None => {
                let problem = "has no name: give {\"image\": \"a.jpg\", \"units\": [71, 12]} on each line";
                Err(Error::weights(path, format!("line {}", list.line), problem))
            }
        };
        return read_lists(path, KNOWN)?.into_iter().map(named).collect();
    }
    let entries = fs::read_dir(path).and_then(|entries| entries.collect::<std::io::Result<Vec<_>>>());
    let mut files: Vec<_> = entries.map_err(Error::io("read", path))?.iter().map(fs::DirEntry::path).collect();
    files.retain(|file| file.extension().is_some_and(|suffix| suffix == "unit"));
    files.sort();
    if files.is_empty() {
        return Err(Error::weights(path, "files", "there is no .unit file: give the folder that holds them"));
    }
    files.par_iter().map(|file| Ok((stem(file), unit_file::read(file, KNOWN)?))).collect()
}

/// Mean over captions.
pub struct Rate {
    /// The unit error rate; none of no captions.
    pub mean: Option<f64>,
    /// Number of the captions.
    pub captions: usize,
}

impl Rate {
    /// The mean of the captions' own rates.
    pub fn of(rates: &[f64]) -> Rate {
        let mean = rates.iter().sum::<f64>() / rates.len() as f64;
        Rate { mean: (!rates.is_empty()).then_some(mean), captions: rates.len() }
    }
}

/// Mean over the predictions of the file or folder `path` of their [`rates`].
///
/// # Errors
/// If there is no prediction, two have the same name, or one has no true units.
pub fn score(path: &Path, predictions: &NamedUnits, truths: NamedUnits) -> Result<f64> {
    let fail = |problem: String| Error::weights(path, "units", problem);
    let mut names: Vec<&str> = predictions.iter().map(|(name, _)| &**name).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(fail(format!("{} is there twice: leave one out", twice[0])));
    }
    let rates = rates(path, predictions, truths).into_iter().collect::<Result<Vec<f64>>>()?;
    Rate::of(&rates).mean.ok_or_else(|| fail("there are none to score".into()))
}

/// Distance of each prediction to its true units, divided by their number; repetitions removed on both sides. The truth of `NAME`
/// is that of the same name, or `NAME_0`: the first of several captions. A prediction without true units gets an error, which
/// names the file or folder `path`.
pub fn rates(path: &Path, predictions: &NamedUnits, truths: NamedUnits) -> Vec<Result<f64>> {
    let truths: HashMap<String, Vec<u32>> = truths.into_iter().collect();
    let rate = |(name, units): &(String, Vec<u32>)| {
        let truth = truths.get(name).or_else(|| truths.get(&format!("{name}_0")));
        let missing = || Error::weights(path, "units", format!("{name} has no true units: is it of another data set?"));
        let truth = truth.filter(|truth| !truth.is_empty()).ok_or_else(missing)?;
        let truth = deduplicated(truth);
        Ok(edit_distance(&deduplicated(units), &truth) as f64 / truth.len() as f64)
    };
    predictions.par_iter().map(rate).collect()
}
