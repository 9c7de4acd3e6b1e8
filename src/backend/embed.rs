//! embed: rows of tables. One form adds a word and a position (decoder), the other stacks rows of several tables as
//! columns (vocoder: unit, pitch, speaker).

use super::parameters::{self, Parameter, TrainedParameters};
use super::{Device, ensure};
use crate::Result;
use crate::cost::Cost;

/// Embedding lookups.
pub trait Embed: Device {
    /// Row `ids[r]` of `table` (V, C) plus row `positions[r]` of `position` (P, C), for every r: (R, C).
    fn embed(
        &self,
        table: &Self::Matrix,
        position: &Self::Matrix,
        ids: &[u32],
        positions: &[u32],
    ) -> Result<Self::Tensor>;
    /// Columns of stacked tables: column s of the result (sum of widths, S) holds row `ids[s]` of each table in turn.
    fn embed_frames(&self, tables: &[(&Self::Matrix, &[u32])]) -> Result<Self::Tensor>;
}

fn check_ids<D: Device>(device: &D, op: &'static str, table: &D::Matrix, ids: &[u32]) -> Result<()> {
    let [rows, _] = device.matrix_shape(table);
    match ids.iter().find(|&&id| id as usize >= rows) {
        Some(id) => ensure(false, op, || format!("id {id} of a table of {rows} rows")),
        None => Ok(()),
    }
}

/// An error unless both tables are as wide and every id names a row of its table.
pub(crate) fn check<D: Device>(
    device: &D,
    table: &D::Matrix,
    position: &D::Matrix,
    ids: &[u32],
    positions: &[u32],
) -> Result<()> {
    let (words, places) = (device.matrix_shape(table)[1], device.matrix_shape(position)[1]);
    ensure(words == places && ids.len() == positions.len(), "embed", || {
        format!("tables of {words} and {places} columns, {} ids, {} positions", ids.len(), positions.len())
    })?;
    check_ids(device, "embed", table, ids)?;
    check_ids(device, "embed", position, positions)
}

/// The frames S; an error unless every table has as many ids, each the number of a row.
pub(crate) fn check_frames<D: Device>(device: &D, tables: &[(&D::Matrix, &[u32])]) -> Result<usize> {
    let frames = tables.first().map_or(0, |(_, ids)| ids.len());
    for (table, ids) in tables {
        ensure(ids.len() == frames, "embed_frames", || format!("{} ids for {frames} frames", ids.len()))?;
        check_ids(device, "embed_frames", table, ids)?;
    }
    Ok(frames)
}

/// Cost of writing (rows, channels) f32 from `tables` tables with elements of `element` bytes.
pub fn cost(rows: usize, channels: usize, tables: usize, element: usize) -> Cost {
    let elements = (rows * channels) as f64;
    Cost { flops: elements, bytes: elements * (4 + tables * element) as f64 }
}

/// Places of the two tables of [`Embed::embed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmbedTables {
    /// (V, C).
    pub table: Parameter,
    /// (P, C).
    pub position: Parameter,
}

/// Embedding lookups in training.
pub trait EmbedBackward: Embed + TrainedParameters {
    /// Adds row r of dy (R, C) to row `ids[r]` of the table, unless that is `ignored`, and to row `positions[r]` of the
    /// positions; rows of the same id are added in their order.
    fn embed_backward(
        &self,
        dy: &Self::Tensor,
        ids: &[u32],
        positions: &[u32],
        ignored: Option<u32>,
        gradients: &mut Self::Gradients,
        at: EmbedTables,
    ) -> Result<()>;
}

/// An error unless the shapes fit [`EmbedBackward::embed_backward`] with so many gradients.
pub(crate) fn check_backward(
    dy: [usize; 2],
    ids: &[u32],
    positions: &[u32],
    at: EmbedTables,
    gradients: usize,
) -> Result<()> {
    const OP: &str = "embed_backward";
    ensure(ids.len() == dy[0] && positions.len() == dy[0], OP, || {
        format!("dy {dy:?}, {} ids, {} positions", ids.len(), positions.len())
    })?;
    for (ids, table) in [(ids, at.table), (positions, at.position)] {
        parameters::check(OP, table, [table.rows, dy[1]], gradients)?;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= table.rows) {
            ensure(false, OP, || format!("id {id} of a table of {} rows", table.rows))?;
        }
    }
    Ok(())
}

/// The rows of dy by the row of a table to which they are added.
pub(crate) struct RowsById {
    /// (rows of the table + 1): where the list of each begins in `rows`, and the end of the last.
    pub starts: Vec<u32>,
    /// Numbers of rows of dy, in each list in their order.
    pub rows: Vec<u32>,
}

impl RowsById {
    /// The lists of all ids below `table`, that of `ignored` empty: a counting sort.
    pub fn new(ids: &[u32], table: usize, ignored: Option<u32>) -> RowsById {
        let kept = || (0..).zip(ids).filter(|(_, id)| Some(**id) != ignored);
        let mut starts = vec![0; table + 1];
        kept().for_each(|(_, &id)| starts[id as usize + 1] += 1);
        for id in 0..table {
            starts[id + 1] += starts[id];
        }
        let mut ends = starts.clone();
        let mut rows = vec![0; starts[table] as usize];
        for (row, &id) in kept() {
            let end = &mut ends[id as usize];
            rows[*end as usize] = row;
            *end += 1;
        }
        RowsById { starts, rows }
    }

    /// The list of an id.
    pub fn of(&self, id: usize) -> &[u32] {
        &self.rows[self.starts[id] as usize..self.starts[id + 1] as usize]
    }
}
