//! argmax: the column of the largest value of each row. NaN is an error, because it can only come from damaged weights
//! and would otherwise be spoken as some unit.

use super::{Tensor, ensure};
use crate::{Error, Result};

/// See [`crate::backend::Backend::argmax`].
pub fn argmax(x: &Tensor, columns: &mut Vec<u32>) -> Result<()> {
    ensure(x.columns > 0, "argmax", || "rows have no columns".into())?;
    columns.clear();
    for row in x.data.chunks_exact(x.columns) {
        let mut best = 0;
        for (column, value) in row.iter().enumerate() {
            if value.is_nan() {
                return Err(Error::NotANumber { stage: "argmax" });
            }
            if *value > row[best] {
                best = column;
            }
        }
        columns.push(best as u32);
    }
    Ok(())
}
