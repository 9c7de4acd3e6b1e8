//! Launches kernels/cast.cu.

use super::driver::Launch;
use super::kernels::{self, CastParams};
use super::{Cuda, Tensor};
use crate::tensor::DType;
use crate::{Error, Result};

/// Elements of a block.
const BLOCK: usize = 1024;

/// `x` in `dtype`, in its layout; itself if it is that already.
pub(super) fn cast(cuda: &Cuda, x: &Tensor, dtype: DType) -> Result<Tensor> {
    if x.dtype == dtype {
        return Ok(x.clone());
    }
    let kernel = match (x.dtype, dtype) {
        (DType::F32, DType::BF16) => &kernels::CAST_FORWARD_F32_TO_BF16,
        (DType::BF16, DType::F32) => &kernels::CAST_FORWARD_BF16_TO_F32,
        (from, to) => return Err(Error::shape("cast", format!("from {from:?} to {to:?}"))),
    };
    let y = cuda.empty([x.rows, x.columns], dtype, x.layout)?;
    let params = CastParams { x: x.pointer(), y: y.pointer(), count: x.len() as i64 };
    // SAFETY: both tensors hold `count` elements, and begin at a multiple of 256 bytes.
    unsafe { cuda.launch(kernel, Launch::blocks(x.len().div_ceil(BLOCK)), params)? };
    Ok(y)
}
