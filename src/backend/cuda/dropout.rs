//! Launches kernels/dropout.cu.

use super::driver::Launch;
use super::kernels::{self, DropoutParams};
use super::{Cuda, Layout, Tensor, pointer_of};
use crate::Result;
use crate::backend::{Dropout, DropoutMask, dropout};
use crate::tensor::DType;

/// Elements of a block.
const BLOCK: usize = 2048;

impl Dropout for Cuda {
    fn dropout(&self, x: &Tensor, mask: DropoutMask, residual: Option<&Tensor>) -> Result<Tensor> {
        dropout::check(self, x, mask, residual)?;
        let x = self.rows_of(x, x.dtype)?;
        let residual = residual.map(|residual| self.rows_of(residual, x.dtype)).transpose()?;
        let y = self.empty([x.rows, x.columns], x.dtype, Layout::Rows)?;
        let params = DropoutParams {
            x: x.pointer(),
            residual: pointer_of(residual.as_ref()),
            y: y.pointer(),
            count: x.len() as i64,
            seed: mask.seed.cast_signed(),
            stream: mask.stream.cast_signed(),
            threshold: mask.threshold(),
            keep_scale: mask.scale(),
        };
        let kernel = match x.dtype {
            DType::BF16 => &kernels::DROPOUT_FORWARD_BF16,
            _ => &kernels::DROPOUT_FORWARD_F32,
        };
        // SAFETY: x, y and the residual hold `count` elements and begin at a multiple of 256 bytes.
        unsafe { self.launch(kernel, Launch::blocks(x.len().div_ceil(BLOCK)), params)? };
        Ok(y)
    }
}
