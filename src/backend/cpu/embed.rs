//! embed: rows of tables. One form adds a word and a position (decoder), the other stacks rows of several tables as
//! columns (vocoder: unit, pitch, speaker). Bytes: 4 to 12 per element; never on the critical path.

use super::buffer::Buffer;
use super::{Matrix, Tensor, ensure};
use crate::Result;

fn check_ids(op: &'static str, table: &Matrix, ids: &[u32]) -> Result<()> {
    match ids.iter().find(|&&id| id as usize >= table.rows) {
        Some(id) => ensure(false, op, || format!("id {id} of a table of {} rows", table.rows)),
        None => Ok(()),
    }
}

/// See [`crate::backend::Backend::embed`].
pub fn embed(table: &Matrix, position: &Matrix, ids: &[u32], positions: &[u32]) -> Result<Tensor> {
    ensure(table.columns == position.columns && ids.len() == positions.len(), "embed", || {
        format!(
            "tables of {} and {} columns, {} ids, {} positions",
            table.columns,
            position.columns,
            ids.len(),
            positions.len()
        )
    })?;
    check_ids("embed", table, ids)?;
    check_ids("embed", position, positions)?;
    let columns = table.columns;
    let (words, places) = (table.elements()?, position.elements()?);
    let mut out = Buffer::zeros(ids.len() * columns);
    for (r, row) in out.chunks_exact_mut(columns.max(1)).enumerate() {
        words.add_to(ids[r] as usize * columns, row);
        places.add_to(positions[r] as usize * columns, row);
    }
    Ok(Tensor::new(ids.len(), columns, out))
}

/// See [`crate::backend::Backend::embed_frames`].
pub fn embed_frames(tables: &[(&Matrix, &[u32])]) -> Result<Tensor> {
    let frames = tables.first().map_or(0, |(_, ids)| ids.len());
    let mut out = Vec::new();
    let mut rows = 0;
    for (table, ids) in tables {
        ensure(ids.len() == frames, "embed_frames", || format!("{} ids beside {frames}", ids.len()))?;
        check_ids("embed_frames", table, ids)?;
        let values = table.elements()?;
        for channel in 0..table.columns {
            out.extend(ids.iter().map(|&id| values.get(id as usize * table.columns + channel)));
        }
        rows += table.columns;
    }
    Ok(Tensor::new(rows, frames, out))
}
