//! Launches kernels/embed.cu.

use super::driver::Launch;
use super::kernels::{self, EmbedColumnsParams, EmbedParams};
use super::{Cuda, Layout, Matrix, Tensor, ensure, int};
use crate::Result;
use crate::tensor::DType;

/// Threads of a block.
const BLOCK: usize = 128;
/// Channels of a thread.
const VALUES: usize = 4;

fn check_ids(op: &'static str, table: &Matrix, ids: &[u32]) -> Result<()> {
    match ids.iter().find(|&&id| id as usize >= table.tensor.rows) {
        Some(id) => ensure(false, op, || format!("id {id} of a table of {} rows", table.tensor.rows)),
        None => Ok(()),
    }
}

/// Rows of `table` plus rows of `position`, in f32.
pub(super) fn embed(cuda: &Cuda, table: &Matrix, position: &Matrix, ids: &[u32], positions: &[u32]) -> Result<Tensor> {
    let (words, places) = (&table.tensor, &position.tensor);
    let (rows, channels) = (ids.len(), words.columns);
    ensure(channels == places.columns && rows == positions.len(), "embed", || {
        let (places, count) = (places.columns, positions.len());
        format!("tables of {channels} and {places} columns, {rows} ids, {count} positions")
    })?;
    check_ids("embed", table, ids)?;
    check_ids("embed", position, positions)?;
    let y = cuda.empty([rows, channels], DType::F32, Layout::Rows)?;
    // One copy to the device for both.
    let numbers = cuda.put_ids(&[ids, positions].concat())?;
    let groups = channels.div_ceil(BLOCK * VALUES);
    let params = EmbedParams {
        words: words.pointer(),
        positions: places.pointer(),
        ids: numbers.pointer(),
        places: numbers.pointer().offset(size_of_val(ids)),
        y: y.pointer(),
        channels: int("embed", channels)?,
        groups: int("embed", groups)?,
    };
    let kernel = if words.dtype == DType::BF16 { &kernels::EMBED_FORWARD_BF16 } else { &kernels::EMBED_FORWARD_F32 };
    // SAFETY: every id names a row of its table, y holds a row for each, and threads beyond the channels stop; vectors are
    // used where rows are whole ones. Both tables have the type of the backend.
    unsafe { cuda.launch(kernel, Launch::blocks(rows * groups), params)? };
    Ok(y)
}

/// Stacked rows of tables as columns, in the type of the backend, column after column.
pub(super) fn embed_frames(cuda: &Cuda, tables: &[(&Matrix, &[u32])]) -> Result<Tensor> {
    let frames = tables.first().map_or(0, |(_, ids)| ids.len());
    let stride: usize = tables.iter().map(|(table, _)| table.tensor.columns).sum();
    for (table, ids) in tables {
        ensure(ids.len() == frames, "embed_frames", || format!("{} ids beside {frames}", ids.len()))?;
        check_ids("embed_frames", table, ids)?;
    }
    let y = cuda.empty([stride, frames], cuda.dtype, Layout::Columns)?;
    let numbers = cuda.put_ids(&tables.iter().map(|(_, ids)| *ids).collect::<Vec<_>>().concat())?;
    let kernel = match cuda.dtype {
        DType::BF16 => &kernels::EMBED_FORWARD_COLUMNS_BF16,
        _ => &kernels::EMBED_FORWARD_COLUMNS_F32,
    };
    let mut first = 0;
    for (n, (table, ids)) in tables.iter().enumerate() {
        let channels = table.tensor.columns;
        let params = EmbedColumnsParams {
            table: table.tensor.pointer(),
            ids: numbers.pointer().offset(n * size_of_val(*ids)),
            y: y.pointer(),
            frames: int("embed_frames", frames)?,
            channels: int("embed_frames", channels)?,
            stride: int("embed_frames", stride)?,
            first: int("embed_frames", first)?,
        };
        let threads = frames * channels.div_ceil(VALUES);
        int("embed_frames", threads)?;
        let launch = Launch::blocks(threads.div_ceil(BLOCK));
        // SAFETY: every id names a row of the table, y holds frames * stride elements of the same type, and a row of the
        // table ends before the next table's channels; vectors are used where everything is whole ones.
        unsafe { cuda.launch(kernel, launch, params)? };
        first += channels;
    }
    Ok(y)
}
