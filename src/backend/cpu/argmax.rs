//! argmax: the column of the largest value of each row. NaN is an error, because it can only come from damaged weights
//! and would otherwise be spoken as some unit.

use super::{Tensor, ensure};
use crate::{Error, Result};

/// See [`crate::backend::Backend::argmax`].
pub fn argmax(x: &Tensor) -> Result<Vec<u32>> {
    ensure(x.columns > 0, "argmax", || "rows have no columns".into())?;
    x.data
        .chunks_exact(x.columns)
        .map(|row| {
            let mut best = 0;
            for (column, value) in row.iter().enumerate() {
                if value.is_nan() {
                    return Err(Error::NotANumber { stage: "argmax" });
                }
                if *value > row[best] {
                    best = column;
                }
            }
            Ok(best as u32)
        })
        .collect()
}
