//! Launches kernels/layer_norm.cu.

use super::driver::{DevicePtr, Kernel, Launch};
use super::kernels::{
    self, LayerNormBackwardParams, LayerNormParams, LayerNormReduceParams, SIZE_OF_BLOCK_SUMS, SIZE_OF_RUN_SUMS,
    SIZE_OF_WARP_SUMS,
};
use super::{Cuda, Layout, Tensor, int, pointer_of};
use crate::Result;
use crate::backend::{LayerNorm, LayerNormBackward, LayerNormWeights, WeightAndBias, layer_norm};
use crate::tensor::DType;

/// Rows up to this many values are kept in the registers of a warp.
const WARP_CHANNELS: usize = 1024;
/// Rows of a block of the warp-per-row kernel.
const WARP_ROWS: usize = 4;
/// Blocks of the backward pass at most, one row of partial sums each: three for each multiprocessor of a large GPU, as many as
/// have room.
const MAX_SHARES: usize = 396;
/// Columns of a block of the second stage.
const REDUCE_COLUMNS: usize = 8;

impl LayerNorm for Cuda {
    fn layer_norm(&self, x: &Tensor, norm: &LayerNormWeights<Cuda>) -> Result<Tensor> {
        layer_norm::check(self, x, norm)?;
        launch(self, x, norm, None)
    }
}

impl LayerNormBackward for Cuda {
    fn layer_norm_saving(&self, x: &Tensor, norm: &LayerNormWeights<Cuda>) -> Result<(Tensor, Tensor)> {
        layer_norm::check(self, x, norm)?;
        let saved = self.empty([x.rows, 2], DType::F32, Layout::Rows)?;
        Ok((launch(self, x, norm, Some(&saved))?, saved))
    }

    fn layer_norm_backward(
        &self,
        dy: &Tensor,
        x: &Tensor,
        norm: &LayerNormWeights<Cuda>,
        saved: &Tensor,
        residual: Option<&Tensor>,
        into: Option<(&mut Tensor, WeightAndBias)>,
    ) -> Result<Tensor> {
        let places = into.as_ref().map(|(gradients, at)| (*at, gradients.len()));
        layer_norm::check_backward(self, [dy, x, saved], norm, residual, places)?;
        launch_backward(self, [dy, x, saved], norm, residual, into)
    }
}

/// Whether a warp takes a row.
fn is_warp_wide(channels: usize) -> bool {
    channels.is_multiple_of(8) && channels <= WARP_CHANNELS
}

/// Each row of x (M, C) normalised, in the type of x.
fn launch(cuda: &Cuda, x: &Tensor, norm: &LayerNormWeights<Cuda>, saved: Option<&Tensor>) -> Result<Tensor> {
    let (rows, channels) = (x.rows, x.columns);
    let x = cuda.rows_of(x, x.dtype)?;
    let y = cuda.empty([rows, channels], x.dtype, Layout::Rows)?;
    let params = LayerNormParams {
        x: x.pointer(),
        y: y.pointer(),
        weight: norm.weight.pointer(),
        bias: norm.bias.pointer(),
        saved: pointer_of(saved),
        rows: int("layer_norm", rows)?,
        channels: int("layer_norm", channels)?,
        eps: norm.eps,
        unused: 0,
    };
    let warp = is_warp_wide(channels);
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
    // SAFETY: x and y hold rows * channels elements, weight and bias channels, saved two values a row; no row or channel beyond
    // is touched, and with C % 8 == 0 every row begins at a multiple of 16 bytes.
    unsafe { cuda.launch(kernel, grid, params)? };
    Ok(y)
}

/// The gradient at x (M, C), in the type of x, and those of weight and bias.
fn launch_backward(
    cuda: &Cuda,
    [dy, x, saved]: [&Tensor; 3],
    norm: &LayerNormWeights<Cuda>,
    residual: Option<&Tensor>,
    into: Option<(&mut Tensor, WeightAndBias)>,
) -> Result<Tensor> {
    const OP: &str = "layer_norm_backward";
    let (rows, channels, dtype) = (x.rows, x.columns, x.dtype);
    let [dy, x] = [cuda.rows_of(dy, dtype)?, cuda.rows_of(x, dtype)?];
    let saved = cuda.rows_of(saved, DType::F32)?;
    let residual = residual.map(|residual| cuda.rows_of(residual, dtype)).transpose()?;
    let dx = cuda.empty([rows, channels], dtype, Layout::Rows)?;
    let share = rows.div_ceil(MAX_SHARES).max(WARP_ROWS);
    let shares = rows.div_ceil(share);
    let sums = into.as_ref().map(|_| cuda.empty([shares, 2 * channels], DType::F32, Layout::Rows)).transpose()?;
    let params = LayerNormBackwardParams {
        dy: dy.pointer(),
        x: x.pointer(),
        weight: norm.weight.pointer(),
        saved: saved.pointer(),
        residual: pointer_of(residual.as_ref()),
        dx: dx.pointer(),
        sums: pointer_of(sums.as_ref()),
        rows: int(OP, rows)?,
        channels: int(OP, channels)?,
        share: int(OP, share)?,
        unused: 0,
    };
    let (kernel, shared): (&'static Kernel<_>, usize) = match (is_warp_wide(channels), dtype) {
        (true, DType::BF16) => (&kernels::LAYER_NORM_BACKWARD_WARP_PER_ROW_BF16, SIZE_OF_WARP_SUMS),
        (true, _) => (&kernels::LAYER_NORM_BACKWARD_WARP_PER_ROW_F32, SIZE_OF_WARP_SUMS),
        (false, DType::BF16) => (&kernels::LAYER_NORM_BACKWARD_BLOCK_PER_ROW_BF16, SIZE_OF_BLOCK_SUMS),
        (false, _) => (&kernels::LAYER_NORM_BACKWARD_BLOCK_PER_ROW_F32, SIZE_OF_BLOCK_SUMS),
    };
    // SAFETY: dy, x, dx and the residual hold rows * channels elements, saved two values a row, the weight channels, the sums
    // 2 * channels a block; no row or channel beyond is touched, and with C % 8 == 0 every row begins at a multiple of 16 bytes.
    unsafe { cuda.launch(kernel, Launch::blocks(shares).shared_bytes(shared), params)? };
    if let (Some(sums), Some((gradients, at))) = (sums, into) {
        let place = |start: usize| -> DevicePtr { gradients.pointer().offset(start * DType::F32.size()) };
        let params = LayerNormReduceParams {
            sums: sums.pointer(),
            dweight: place(at.weight.start),
            dbias: place(at.bias.start),
            blocks: int(OP, shares)?,
            channels: int(OP, channels)?,
        };
        let grid = Launch::blocks((2 * channels).div_ceil(REDUCE_COLUMNS)).shared_bytes(SIZE_OF_RUN_SUMS);
        // SAFETY: the sums hold 2 * channels values for each block of the first stage, and both parameters of channels values
        // lie within the gradients.
        unsafe { cuda.launch(&kernels::LAYER_NORM_BACKWARD_REDUCE_F32, grid, params)? };
    }
    Ok(dx)
}
