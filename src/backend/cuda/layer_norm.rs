//! Launches kernels/layer_norm.cu.

use super::driver::Launch;
use super::kernels::{self, LayerNormParams, SIZE_OF_BLOCK_SUMS};
use super::{Cuda, Layout, Tensor, int};
use crate::Result;
use crate::backend::{LayerNorm, LayerNormWeights, layer_norm};
use crate::tensor::DType;

/// Rows up to this many values are kept in the registers of a warp.
const WARP_CHANNELS: usize = 1024;
/// Rows of a block of the warp-per-row kernel.
const WARP_ROWS: usize = 4;

impl LayerNorm for Cuda {
    fn layer_norm(&self, x: &Tensor, norm: &LayerNormWeights<Cuda>) -> Result<Tensor> {
        layer_norm::check(self, x, norm)?;
        launch(self, x, norm)
    }
}

/// Each row of x (M, C) normalised, in the type of x.
fn launch(cuda: &Cuda, x: &Tensor, norm: &LayerNormWeights<Cuda>) -> Result<Tensor> {
    let (rows, channels) = (x.rows, x.columns);
    let x = cuda.rows_of(x, x.dtype)?;
    let y = cuda.empty([rows, channels], x.dtype, Layout::Rows)?;
    let params = LayerNormParams {
        x: x.pointer(),
        y: y.pointer(),
        weight: norm.weight.pointer(),
        bias: norm.bias.pointer(),
        rows: int("layer_norm", rows)?,
        channels: int("layer_norm", channels)?,
        eps: norm.eps,
        unused: 0,
    };
    let warp = channels % 8 == 0 && channels <= WARP_CHANNELS;
    let kernel = match (warp, x.dtype) {
        (true, DType::BF16) => &kernels::LAYER_NORM_FORWARD_WARP_PER_ROW_BF16,
        (true, _) => &kernels::LAYER_NORM_FORWARD_WARP_PER_ROW_F32,
        (false, DType::BF16) => &kernels::LAYER_NORM_FORWARD_BLOCK_PER_ROW_BF16,
        (false, _) => &kernels::LAYER_NORM_FORWARD_BLOCK_PER_ROW_F32,
    };
    let grid = if warp {
        Launch::blocks(rows.div_ceil(WARP_ROWS))
    } else {
        Launch::blocks(rows).shared_bytes(SIZE_OF_BLOCK_SUMS)
    };
    // SAFETY: x and y hold rows * channels elements, weight and bias channels; no row or channel beyond is touched, and
    // with C % 8 == 0 every row begins at a multiple of 16 bytes.
    unsafe { cuda.launch(kernel, grid, params)? };
    Ok(y)
}
