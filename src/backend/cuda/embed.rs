//! Launches kernels/embed.cu.

use super::driver::Launch;
use super::kernels::{self, EmbedFramesParams, EmbedParams};
use super::{Cuda, Layout, Matrix, Tensor, int};
use crate::Result;
use crate::backend::{Embed, embed};
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
