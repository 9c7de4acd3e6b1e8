//! Launches kernels/gradient_norm.cu and adds up the sums of its blocks.

use super::driver::Launch;
use super::kernels::{self, GradientNormParams, SIZE_OF_WARP_SQUARES};
use super::{Cuda, Layout, Tensor};
use crate::Result;
use crate::backend::{Device as _, GradientNorm};
use crate::tensor::DType;

/// Gradients of a block.
const SHARE: usize = 16_384;

impl GradientNorm for Cuda {
    fn gradient_norm(&self, gradients: &Tensor) -> Result<f64> {
        let count = gradients.len();
        let shares = count.div_ceil(SHARE);
        let sums = self.empty([1, shares], DType::F32, Layout::Rows)?;
        let params = GradientNormParams { gradients: gradients.pointer(), sums: sums.pointer(), count: count as i64 };
        let grid = Launch::blocks(shares).shared_bytes(SIZE_OF_WARP_SQUARES);
        // SAFETY: the gradients are `count` f32 values at a multiple of 256 bytes, and there is a sum for each block.
        unsafe { self.launch(&kernels::GRADIENT_NORM_FORWARD_F32, grid, params)? };
        Ok(self.download(&sums)?.into_iter().map(f64::from).sum::<f64>().sqrt())
    }
}
