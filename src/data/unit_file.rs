//! `.unit` files: a one-dimensional array of integers, written by `torch.save` as a NumPy array or as a tensor.

use std::path::Path;

use crate::files::AtomicFile;
use crate::weights::torch::{Checkpoint, IntegerLayout, save_integers};
use crate::{Error, Result};

/// The units in a file, each below `known`.
///
/// # Errors
/// If it cannot be read, is no one-dimensional array of integers, is empty, or holds another number.
pub fn read(path: &Path, known: usize) -> Result<Vec<u32>> {
    let wrong = |problem: String| Error::weights(path, "units", problem);
    let tensor = Checkpoint::open(path)?.tensor()?;
    if tensor.shape().len() != 1 {
        return Err(wrong(format!("have shape {:?}, expected one dimension", tensor.shape())));
    }
    let values = tensor.load_integers().map_err(wrong)?;
    if values.is_empty() {
        return Err(wrong("there are none: extract the units of this recording again".into()));
    }
    let unit = |(at, &value): (usize, &i64)| match u32::try_from(value) {
        Ok(unit) if (unit as usize) < known => Ok(unit),
        _ => Err(wrong(format!("value {at} is {value}, expected 0 to {}", known.saturating_sub(1)))),
    };
    values.iter().enumerate().map(unit).collect()
}

/// Writes units to a file, all of it or nothing.
pub fn write(path: &Path, units: &[u32], layout: IntegerLayout) -> Result<()> {
    let values: Vec<i64> = units.iter().map(|&unit| i64::from(unit)).collect();
    let mut file = AtomicFile::create(path)?;
    save_integers(&mut file, &values, layout).map_err(Error::io("write", path))?;
    file.commit()
}
