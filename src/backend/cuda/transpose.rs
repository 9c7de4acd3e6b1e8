//! Launches kernels/transpose.cu. A transposed tensor is the same memory with the other layout; elements move only when
//! an operation needs a layout that its input does not have.

use super::driver::Launch;
use super::kernels::{self, SIZE_OF_TRANSPOSE_PAIRS, SIZE_OF_TRANSPOSE_TILE, TransposeParams};
use super::{Cuda, Layout, Tensor, int};
use crate::Result;
use crate::backend::Transpose;
use crate::tensor::DType;

/// Rows and columns of a tile of single elements; of pairs, twice as many.
const TILE: usize = 32;

impl Transpose for Cuda {
    fn transpose(&self, x: &Tensor) -> Result<Tensor> {
        Ok(transpose(x))
    }
}

/// (M, N) to (N, M), at no cost.
pub(super) fn transpose(x: &Tensor) -> Tensor {
    Tensor { rows: x.columns, columns: x.rows, layout: other(x.layout), ..x.clone() }
}

/// The same tensor in the other layout.
pub(super) fn physical(cuda: &Cuda, x: &Tensor) -> Result<Tensor> {
    let y = cuda.empty([x.rows, x.columns], x.dtype, other(x.layout))?;
    // As they lie in memory.
    let (rows, columns) = if x.layout == Layout::Rows { (x.rows, x.columns) } else { (x.columns, x.rows) };
    let pairs = x.dtype == DType::BF16 && rows % 2 == 0 && columns % 2 == 0;
    let (kernel, tile, shared) = match (x.dtype, pairs) {
        (DType::BF16, true) => (&kernels::TRANSPOSE_FORWARD_PAIRS_BF16, 2 * TILE, SIZE_OF_TRANSPOSE_PAIRS),
        (DType::BF16, false) => (&kernels::TRANSPOSE_FORWARD_BF16, TILE, SIZE_OF_TRANSPOSE_TILE),
        _ => (&kernels::TRANSPOSE_FORWARD_F32, TILE, SIZE_OF_TRANSPOSE_TILE),
    };
    let tiles = columns.div_ceil(tile);
    let params = TransposeParams {
        x: x.pointer(),
        y: y.pointer(),
        rows: int("transpose", rows)?,
        columns: int("transpose", columns)?,
        tiles: int("transpose", tiles)?,
        unused: 0,
    };
    let launch = Launch::blocks(rows.div_ceil(tile) * tiles).shared_bytes(shared);
    // SAFETY: x and y hold rows * columns elements, and no tile reads or writes beyond the last row or column; pairs are
    // read where both counts are even, so every row begins at a whole word.
    unsafe { cuda.launch(kernel, launch, params)? };
    Ok(y)
}

fn other(layout: Layout) -> Layout {
    match layout {
        Layout::Rows => Layout::Columns,
        Layout::Columns => Layout::Rows,
    }
}
