//! Launches kernels/gelu.cu.

use super::driver::Launch;
use super::kernels::{self, GeluParams};
use super::{Cuda, Tensor};
use crate::Result;
use crate::backend::Gelu;
use crate::tensor::DType;

/// Elements of a block.
const BLOCK: usize = 2048;

impl Gelu for Cuda {
    fn gelu(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.empty([x.rows, x.columns], x.dtype, x.layout)?;
        let params = GeluParams { x: x.pointer(), y: y.pointer(), count: x.len() as i64 };
        let kernel = match x.dtype {
            DType::BF16 => &kernels::GELU_FORWARD_BF16,
            _ => &kernels::GELU_FORWARD_F32,
        };
        // SAFETY: both tensors hold `count` elements, and begin at a multiple of 256 bytes.
        unsafe { self.launch(kernel, Launch::blocks(x.len().div_ceil(BLOCK)), params)? };
        Ok(y)
    }
}
