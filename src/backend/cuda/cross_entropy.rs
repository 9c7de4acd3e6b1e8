//! Launches kernels/cross_entropy.cu.

use super::driver::Launch;
use super::kernels::{self, CrossEntropyParams, SIZE_OF_CROSS_ENTROPY_SHARED};
use super::{Cuda, Layout, Tensor, int};
use crate::Result;
use crate::backend::{CrossEntropy, CrossEntropyResult, cross_entropy};
use crate::tensor::DType;

/// Logits up to this many are kept in the registers of a warp.
const WARP_COLUMNS: usize = 256;
/// Rows of a block of the warp-per-row kernel.
const WARP_ROWS: usize = 4;

impl CrossEntropy for Cuda {
    fn cross_entropy(
        &self,
        logits: &Tensor,
        targets: &[u32],
        ignored: u32,
        scale: f32,
    ) -> Result<CrossEntropyResult<Cuda>> {
        cross_entropy::check(self, logits, targets)?;
        launch(self, logits, targets, ignored, scale)
    }
}

/// Losses in f32, and the gradient in the type of the logits.
fn launch(cuda: &Cuda, logits: &Tensor, targets: &[u32], ignored: u32, scale: f32) -> Result<CrossEntropyResult<Cuda>> {
    const OP: &str = "cross_entropy";
    let (count, columns) = (logits.rows, logits.columns);
    let logits = cuda.rows_of(logits, logits.dtype)?;
    let targets = cuda.put_ids(targets)?;
    let rows = cuda.empty([count, 2], DType::F32, Layout::Rows)?;
    let dlogits = cuda.empty([count, columns], logits.dtype, Layout::Rows)?;
    let params = CrossEntropyParams {
        logits: logits.pointer(),
        targets: targets.pointer(),
        rows: rows.pointer(),
        dlogits: dlogits.pointer(),
        count: int(OP, count)?,
        columns: int(OP, columns)?,
        ignored,
        scale,
    };
    let warp = columns <= WARP_COLUMNS;
    let kernel = match (warp, logits.dtype) {
        (true, DType::BF16) => &kernels::CROSS_ENTROPY_FORWARD_WARP_PER_ROW_BF16,
        (true, _) => &kernels::CROSS_ENTROPY_FORWARD_WARP_PER_ROW_F32,
        (false, DType::BF16) => &kernels::CROSS_ENTROPY_FORWARD_BLOCK_PER_ROW_BF16,
        (false, _) => &kernels::CROSS_ENTROPY_FORWARD_BLOCK_PER_ROW_F32,
    };
    let grid = if warp {
        Launch::blocks(count.div_ceil(WARP_ROWS))
    } else {
        Launch::blocks(count).shared_bytes(SIZE_OF_CROSS_ENTROPY_SHARED)
    };
    // SAFETY: logits and dlogits hold count * columns elements, targets and rows one and two for each row; no row or column
    // beyond is touched, and every target was found to be a column.
    unsafe { cuda.launch(kernel, grid, params)? };
    Ok(CrossEntropyResult { rows, dlogits })
}
