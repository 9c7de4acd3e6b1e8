//! Launches kernels/adamw.cu.

use super::driver::Launch;
use super::kernels::{self, AdamwParams};
use super::{Block, Cuda, Tensor, pointer_of};
use crate::Result;
use crate::backend::{AdamW, AdamWStep, adamw};

/// Values of a block.
const BLOCK: usize = 1024;

impl AdamW for Cuda {
    fn adamw(&self, block: &mut Block, gradients: &Tensor, step: AdamWStep) -> Result<()> {
        let count = block.values.len();
        adamw::check(count, gradients.len(), step)?;
        let adamw::Factors { keep, step_size, root_scale } = step.factors();
        let params = AdamwParams {
            values: block.values.pointer(),
            first: block.first.pointer(),
            second: block.second.pointer(),
            gradients: gradients.pointer(),
            working: pointer_of(block.working.as_ref()),
            count: count as i64,
            keep,
            rest1: 1.0 - step.beta1,
            beta2: step.beta2,
            rest2: 1.0 - step.beta2,
            eps: step.eps,
            step_size,
            root_scale,
            gradient_scale: step.gradient_scale,
        };
        // SAFETY: every array holds `count` values, f32 or, the working copy, bf16, and begins at a multiple of 256 bytes;
        // earlier readers of the block are in the same stream.
        unsafe { self.launch(&kernels::ADAMW_FORWARD_F32, Launch::blocks(count.div_ceil(BLOCK)), params) }
    }
}
