//! Launches kernels/attention.cu.

use super::driver::Launch;
use super::kernels::{self, AttentionParams, SIZE_OF_ATTENTION_SHARED};
use super::{Cuda, Layout, Tensor, ensure, int};
use crate::Result;
use crate::backend::{Attention, AttentionShape, attention};
use crate::tensor::DType;

/// Head size of the form on tensor cores, and its queries of a block.
const TILED_SIZE: usize = 64;
const TILED_QUERIES: usize = 64;
/// Queries of a block of the other form, keys it loads at a time, and the largest head size.
const PLAIN_QUERIES: usize = 4;
const PLAIN_KEYS: usize = 32;
const MAX_SIZE: usize = 256;

impl Attention for Cuda {
    fn attention(&self, qkv: &Tensor, shape: AttentionShape) -> Result<Tensor> {
        let size = attention::check(self, qkv, shape)?;
        launch(self, qkv, shape, size)
    }
}

/// Packed qkv (B*T, 3*H*D) of heads of `size` values to (B*T, H*D), in the type of the backend.
fn launch(cuda: &Cuda, qkv: &Tensor, shape: AttentionShape, size: usize) -> Result<Tensor> {
    const OP: &str = "attention";
    let AttentionShape { batch, tokens, heads, prefix } = shape;
    let width = heads * size;
    ensure((1..=MAX_SIZE).contains(&size), OP, || format!("heads of {size} values, of 1 to {MAX_SIZE} possible"))?;
    let qkv = cuda.rows_of(qkv, cuda.dtype)?;
    let y = cuda.empty([batch * tokens, width], cuda.dtype, Layout::Rows)?;
    let params = AttentionParams {
        qkv: qkv.pointer(),
        y: y.pointer(),
        tokens: int(OP, tokens)?,
        prefix: int(OP, prefix)?,
        heads: int(OP, heads)?,
        head_size: int(OP, size)?,
        scale: std::f32::consts::LOG2_E / (size as f32).sqrt(),
        unused: 0,
    };
    let plain = ((2 * PLAIN_KEYS) * (size + 1) + PLAIN_QUERIES * size) * size_of::<f32>();
    let plain = Launch::grid([tokens.div_ceil(PLAIN_QUERIES), heads, batch]).shared_bytes(plain);
    let (kernel, launch) = match cuda.dtype {
        DType::BF16 if size == TILED_SIZE => {
            let grid = [tokens.div_ceil(TILED_QUERIES), heads, batch];
            (&kernels::ATTENTION_FORWARD_BF16, Launch::grid(grid).shared_bytes(SIZE_OF_ATTENTION_SHARED))
        }
        DType::BF16 => (&kernels::ATTENTION_FORWARD_WARP_PER_QUERY_BF16, plain),
        _ => (&kernels::ATTENTION_FORWARD_WARP_PER_QUERY_F32, plain),
    };
    // SAFETY: the shape was checked; no row of a sequence from T on is read or written; with D = 64 every row begins at a
    // multiple of 16 bytes.
    unsafe { cuda.launch(kernel, launch, params)? };
    Ok(y)
}
