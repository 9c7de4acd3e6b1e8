//! Launches kernels/attention_decode.cu: attention of one query per row over the KV cache.

use super::driver::Launch;
use super::kernels::{self, AttentionDecodeParams};
use super::kv_cache::{KvCache, Layer, SPLIT};
use super::{CacheShape, Cuda, Layout, Tensor, int};
use crate::Result;
use crate::tensor::DType;

/// Floats of shared memory besides keys, values and query: weights, and one of each warp.
const WARP_SCRATCH: usize = SPLIT + 4;

/// Packed qkv (R, 3*H*D) of the newest units to (R, H*D); their keys and values are stored on the way.
pub(super) fn attention_decode(cuda: &Cuda, qkv: &Tensor, cache: &mut KvCache, layer: usize) -> Result<Tensor> {
    const OP: &str = "attention_decode";
    let CacheShape { heads, head_size, images, prefix, .. } = cache.shape();
    let rows = cache.rows();
    let layer = cache.layer(qkv, layer)?;
    let y = cuda.empty([rows, heads * head_size], DType::F32, Layout::Rows)?;
    let Some(Layer { prefix: (prefix_keys, prefix_values), generated, tables, slots, splits }) = layer else {
        return Ok(y);
    };
    let qkv = cuda.rows_of(qkv, DType::F32)?;
    let prefix_splits = prefix.div_ceil(SPLIT);
    let all_splits = prefix_splits + splits;
    let partials = cuda.empty([rows * heads * all_splits, head_size + 2], DType::F32, Layout::Rows)?;
    let params = AttentionDecodeParams {
        qkv: qkv.pointer(),
        prefix_keys,
        prefix_values,
        generated_keys: generated.0,
        generated_values: generated.1,
        positions: tables.positions,
        slot: tables.slot,
        ancestor_len: tables.ancestor_len,
        order: tables.order,
        row_begin: tables.row_begin,
        ancestors: tables.ancestors,
        partials: partials.pointer(),
        y: y.pointer(),
        rows: int(OP, rows)?,
        images: int(OP, images)?,
        heads: int(OP, heads)?,
        head_size: int(OP, head_size)?,
        prefix: int(OP, prefix)?,
        slots: int(OP, slots)?,
        prefix_splits: int(OP, prefix_splits)?,
        splits: int(OP, all_splits)?,
        scale: std::f32::consts::LOG2_E / (head_size as f32).sqrt(),
        unused: 0,
    };
    let kernel = match cuda.dtype {
        DType::BF16 => &kernels::ATTENTION_DECODE_FORWARD_BF16,
        _ => &kernels::ATTENTION_DECODE_FORWARD_F32,
    };
    let blocks = if rows == 0 { 0 } else { images * prefix_splits + rows * splits };
    let shared = (2 * SPLIT * (head_size + 1) + head_size + WARP_SCRATCH) * size_of::<f32>();
    // SAFETY: rows, images and slots come from `set_rows`, which checked them; positions are below max_new_tokens; every
    // split of every row's units and prefix has its partial result before the second kernel adds them.
    unsafe {
        cuda.launch(kernel, Launch::grid([blocks, heads, 1]).shared_bytes(shared), params)?;
        let combine = &kernels::ATTENTION_DECODE_FORWARD_COMBINE_F32;
        cuda.launch(combine, Launch::grid([rows, heads, 1]), params)?;
    }
    Ok(y)
}
