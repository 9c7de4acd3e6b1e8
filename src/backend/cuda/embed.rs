//! Launches kernels/embed.cu.

use super::driver::Launch;
use super::kernels::{self, EmbedBackwardParams, EmbedFramesParams, EmbedParams};
use super::{Cuda, Layout, Matrix, Tensor, int};
use crate::Result;
use crate::backend::embed::{self, RowsById};
use crate::backend::{Device as _, Embed, EmbedBackward, EmbedTables, Parameter};
use crate::tensor::DType;

/// Threads of a block.
const BLOCK: usize = 128;
/// Channels of a thread.
const VALUES: usize = 4;

impl Embed for Cuda {
    fn embed(&self, table: &Matrix, position: &Matrix, ids: &[u32], positions: &[u32]) -> Result<Tensor> {
        embed::check(self, table, position, ids, positions)?;
        launch(self, table, position, ids, positions)
    }

    fn embed_frames(&self, tables: &[(&Matrix, &[u32])]) -> Result<Tensor> {
        launch_frames(self, tables, embed::check_frames(self, tables)?)
    }
}

/// Rows of `table` plus rows of `position`, in f32.
fn launch(cuda: &Cuda, table: &Matrix, position: &Matrix, ids: &[u32], positions: &[u32]) -> Result<Tensor> {
    let (words, places) = (&table.tensor, &position.tensor);
    let (rows, channels) = (ids.len(), words.columns);
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
fn launch_frames(cuda: &Cuda, tables: &[(&Matrix, &[u32])], frames: usize) -> Result<Tensor> {
    let stride: usize = tables.iter().map(|(table, _)| table.tensor.columns).sum();
    let y = cuda.empty([stride, frames], cuda.dtype, Layout::Columns)?;
    let numbers = cuda.put_ids(&tables.iter().map(|(_, ids)| *ids).collect::<Vec<_>>().concat())?;
    let kernel = match cuda.dtype {
        DType::BF16 => &kernels::EMBED_FRAMES_FORWARD_BF16,
        _ => &kernels::EMBED_FRAMES_FORWARD_F32,
    };
    let mut first = 0;
    for (n, (table, ids)) in tables.iter().enumerate() {
        let channels = table.tensor.columns;
        let params = EmbedFramesParams {
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
        let grid = Launch::blocks(threads.div_ceil(BLOCK));
        // SAFETY: every id names a row of the table, y holds frames * stride elements of the same type, and a row of the
        // table ends before the next table's channels; vectors are used where everything is whole ones.
        unsafe { cuda.launch(kernel, grid, params)? };
        first += channels;
    }
    Ok(y)
}

impl EmbedBackward for Cuda {
    fn embed_backward(
        &self,
        dy: &Tensor,
        ids: &[u32],
        positions: &[u32],
        ignored: Option<u32>,
        gradients: &mut Tensor,
        at: EmbedTables,
    ) -> Result<()> {
        embed::check_backward(self.shape(dy), ids, positions, at, gradients.len())?;
        let dy = self.rows_of(dy, dy.dtype)?;
        add_rows(self, &dy, ids, ignored, gradients, at.table)?;
        add_rows(self, &dy, positions, None, gradients, at.position)
    }
}

/// Adds rows of dy to the rows of a table.
fn add_rows(
    cuda: &Cuda,
    dy: &Tensor,
    ids: &[u32],
    ignored: Option<u32>,
    gradients: &Tensor,
    table: Parameter,
) -> Result<()> {
    let RowsById { starts, rows } = RowsById::new(ids, table.rows, ignored);
    // Lists that are not empty lie one after the other.
    let ids: Vec<u32> = (0..).zip(starts.windows(2)).filter(|(_, at)| at[0] < at[1]).map(|(id, _)| id).collect();
    let begins = ids.iter().map(|&id| starts[id as usize]).chain(starts.last().copied());
    let numbers = cuda.put_ids(&ids.iter().copied().chain(begins).chain(rows).collect::<Vec<_>>())?;
    let word = |n: usize| numbers.pointer().offset(n * size_of::<u32>());
    let groups = dy.columns.div_ceil(BLOCK * VALUES);
    let params = EmbedBackwardParams {
        dy: dy.pointer(),
        gradients: gradients.pointer().offset(table.start * DType::F32.size()),
        ids: word(0),
        starts: word(ids.len()),
        rows: word(2 * ids.len() + 1),
        channels: int("embed_backward", dy.columns)?,
        groups: int("embed_backward", groups)?,
    };
    let kernel = if dy.dtype == DType::BF16 { &kernels::EMBED_BACKWARD_BF16 } else { &kernels::EMBED_BACKWARD_F32 };
    // SAFETY: every list is one of rows of dy, with an id of its own, which names a row of the table; the table lies in the
    // gradients. Threads beyond the channels stop; vectors are used where rows are whole ones, and the table is aligned.
    unsafe { cuda.launch(kernel, Launch::blocks(ids.len() * groups), params) }
}
