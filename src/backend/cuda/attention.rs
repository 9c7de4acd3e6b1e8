//! Launches kernels/attention/forward.cu and kernels/attention/backward.cu.

use super::driver::{Kernel, Launch};
use super::kernels::{
    self, AttentionBackwardParams, AttentionParams, SIZE_OF_ATTENTION_KEYS_SHARED, SIZE_OF_ATTENTION_QUERIES_SHARED,
    SIZE_OF_ATTENTION_SHARED,
};
use super::{Cuda, Layout, Tensor, ensure, int, pointer_of, tiles};
use crate::Result;
use crate::backend::{Attention, AttentionBackward, AttentionShape, DropoutMask, Sequences, attention};
use crate::tensor::DType;

/// Head size of the form on tensor cores, and its queries, or keys, of a block.
const TILED_SIZE: usize = 64;
const TILED_ROWS: usize = 64;
/// Queries, or keys, of a block of the other form, how many of the others it loads at a time, and the largest head size.
const PLAIN_ROWS: usize = 4;
const PLAIN_LOADED: usize = 32;
const MAX_SIZE: usize = 256;

/// No value is dropped.
const NO_MASK: DropoutMask = DropoutMask { probability: 0.0, seed: 0, stream: 0 };

impl Attention for Cuda {
    fn attention(&self, qkv: &Tensor, shape: AttentionShape) -> Result<Tensor> {
        let size = attention::check(self, qkv, shape)?;
        launch(self, qkv, shape, size, None, (None, NO_MASK))
    }

    fn attention_ragged(&self, qkv: &Tensor, heads: usize, sequences: &Sequences) -> Result<Tensor> {
        let size = attention::check_ragged(self, qkv, heads, sequences)?;
        let tokens = sequences.longest();
        let shape = AttentionShape { batch: sequences.parts().len(), tokens, heads, prefix: tokens };
        launch(self, qkv, shape, size, Some(sequences), (None, NO_MASK))
    }
}

impl AttentionBackward for Cuda {
    fn attention_saving(
        &self,
        qkv: &Tensor,
        shape: AttentionShape,
        dropout: Option<DropoutMask>,
    ) -> Result<(Tensor, Tensor)> {
        let size = attention::check_saving(self, qkv, shape, dropout)?;
        let log_sum_exp = self.empty([shape.batch * shape.heads, shape.tokens], DType::F32, Layout::Rows)?;
        let y = launch(self, qkv, shape, size, None, (Some(&log_sum_exp), dropout.unwrap_or(NO_MASK)))?;
        Ok((y, log_sum_exp))
    }

    fn attention_backward(
        &self,
        dy: &Tensor,
        qkv: &Tensor,
        y: &Tensor,
        log_sum_exp: &Tensor,
        shape: AttentionShape,
        dropout: Option<DropoutMask>,
    ) -> Result<Tensor> {
        let size = attention::check_backward(self, [dy, qkv, y, log_sum_exp], shape, dropout)?;
        launch_backward(self, [dy, qkv, y, log_sum_exp], shape, size, dropout.unwrap_or(NO_MASK))
    }
}

/// An error unless a kernel takes heads of `size` values.
fn check_size(op: &'static str, size: usize) -> Result<()> {
    ensure((1..=MAX_SIZE).contains(&size), op, || format!("heads of {size} values, of 1 to {MAX_SIZE} possible"))
}

/// Whether heads of `size` bf16 values are multiplied by warpgroups: the device chooses, never the number of rows.
fn is_wgmma(cuda: &Cuda, size: usize) -> bool {
    size == TILED_SIZE && tiles::has_wgmma(cuda.stream.properties())
}

/// A launch of the form on tensor cores.
fn tiled(shape: AttentionShape, shared_bytes: usize) -> Launch {
    Launch::grid([shape.tokens.div_ceil(TILED_ROWS), shape.heads, shape.batch]).shared_bytes(shared_bytes)
}

/// A launch of the other form, with `own` rows of each of a block's queries, or keys, in shared memory.
fn plain(shape: AttentionShape, size: usize, own: usize) -> Launch {
    let bytes = (2 * PLAIN_LOADED * (size + 1) + own * PLAIN_ROWS * size) * size_of::<f32>();
    Launch::grid([shape.tokens.div_ceil(PLAIN_ROWS), shape.heads, shape.batch]).shared_bytes(bytes)
}

/// Packed qkv (B*T, 3*H*D) of heads of `size` values to (B*T, H*D), in the type of the backend, and the log-sum-exp of each
/// query where it is wanted. T of sequences of different lengths is that of the longest.
fn launch(
    cuda: &Cuda,
    qkv: &Tensor,
    shape: AttentionShape,
    size: usize,
    sequences: Option<&Sequences>,
    (log_sum_exp, mask): (Option<&Tensor>, DropoutMask),
) -> Result<Tensor> {
    const OP: &str = "attention";
    let AttentionShape { tokens, heads, prefix, .. } = shape;
    check_size(OP, size)?;
    let qkv = cuda.rows_of(qkv, cuda.dtype)?;
    let (result, whole) = ([qkv.rows, heads * size], Sequences::one(qkv.rows));
    let y = cuda.empty_for(sequences.unwrap_or(&whole), result, cuda.dtype)?;
    let table = sequences.map(|sequences| cuda.put_ids(&sequences.table(OP)?)).transpose()?;
    let params = AttentionParams {
        qkv: qkv.pointer(),
        y: y.pointer(),
        log_sum_exp: pointer_of(log_sum_exp),
        sequences: pointer_of(table.as_ref()),
        seed: mask.seed.cast_signed(),
        stream: mask.stream.cast_signed(),
        threshold: mask.threshold(),
        keep_scale: mask.scale(),
        tokens: int(OP, tokens)?,
        prefix: int(OP, prefix)?,
        heads: int(OP, heads)?,
        head_size: int(OP, size)?,
        scale: std::f32::consts::LOG2_E / (size as f32).sqrt(),
        unused: 0,
    };
    let plain = plain(shape, size, 1);
    let tiled = tiled(shape, SIZE_OF_ATTENTION_SHARED);
    let wgmma = is_wgmma(cuda, size);
    let (kernel, launch): (&'static Kernel<_>, _) = match (cuda.dtype, log_sum_exp.is_some()) {
        (DType::BF16, false) if wgmma => (&kernels::ATTENTION_FORWARD_WGMMA_BF16, tiled),
        (DType::BF16, true) if wgmma => (&kernels::ATTENTION_FORWARD_SAVING_WGMMA_BF16, tiled),
        (DType::BF16, false) if size == TILED_SIZE => (&kernels::ATTENTION_FORWARD_BF16, tiled),
        (DType::BF16, true) if size == TILED_SIZE => (&kernels::ATTENTION_FORWARD_SAVING_BF16, tiled),
        (DType::BF16, false) => (&kernels::ATTENTION_FORWARD_WARP_PER_QUERY_BF16, plain),
        (DType::BF16, true) => (&kernels::ATTENTION_FORWARD_SAVING_WARP_PER_QUERY_BF16, plain),
        (_, false) => (&kernels::ATTENTION_FORWARD_WARP_PER_QUERY_F32, plain),
        (_, true) => (&kernels::ATTENTION_FORWARD_SAVING_WARP_PER_QUERY_F32, plain),
    };
    // SAFETY: the shape was checked; no row behind a sequence's last is read or written, nor is a log-sum-exp; with D = 64 every
    // row begins at a multiple of 16 bytes.
    unsafe { cuda.launch(kernel, launch, params)? };
    Ok(y)
}

/// The gradient at qkv, in the type of the backend: at the queries first, with what the kernel of the keys needs of each.
fn launch_backward(
    cuda: &Cuda,
    [dy, qkv, y, log_sum_exp]: [&Tensor; 4],
    shape: AttentionShape,
    size: usize,
    mask: DropoutMask,
) -> Result<Tensor> {
    const OP: &str = "attention_backward";
    let AttentionShape { batch, tokens, heads, prefix } = shape;
    check_size(OP, size)?;
    let rows = |x: &Tensor| cuda.rows_of(x, cuda.dtype);
    let (dy, qkv, y) = (rows(dy)?, rows(qkv)?, rows(y)?);
    let log_sum_exp = cuda.rows_of(log_sum_exp, DType::F32)?;
    let delta = cuda.empty([batch * heads, tokens], DType::F32, Layout::Rows)?;
    let dqkv = cuda.empty([batch * tokens, 3 * heads * size], cuda.dtype, Layout::Rows)?;
    let params = AttentionBackwardParams {
        qkv: qkv.pointer(),
        y: y.pointer(),
        dy: dy.pointer(),
        log_sum_exp: log_sum_exp.pointer(),
        delta: delta.pointer(),
        dqkv: dqkv.pointer(),
        seed: mask.seed.cast_signed(),
        stream: mask.stream.cast_signed(),
        threshold: mask.threshold(),
        keep_scale: mask.scale(),
        tokens: int(OP, tokens)?,
        prefix: int(OP, prefix)?,
        heads: int(OP, heads)?,
        head_size: int(OP, size)?,
        scale: 1.0 / (size as f32).sqrt(),
        unused: 0,
    };
    let plain = plain(shape, size, 2);
    let launches: [(&'static Kernel<_>, Launch); 2] = match cuda.dtype {
        DType::BF16 if is_wgmma(cuda, size) => [
            (&kernels::ATTENTION_BACKWARD_QUERIES_WGMMA_BF16, tiled(shape, SIZE_OF_ATTENTION_QUERIES_SHARED)),
            (&kernels::ATTENTION_BACKWARD_KEYS_WGMMA_BF16, tiled(shape, SIZE_OF_ATTENTION_KEYS_SHARED)),
        ],
        DType::BF16 if size == TILED_SIZE => [
            (&kernels::ATTENTION_BACKWARD_QUERIES_BF16, tiled(shape, SIZE_OF_ATTENTION_QUERIES_SHARED)),
            (&kernels::ATTENTION_BACKWARD_KEYS_BF16, tiled(shape, SIZE_OF_ATTENTION_KEYS_SHARED)),
        ],
        DType::BF16 => [
            (&kernels::ATTENTION_BACKWARD_WARP_PER_QUERY_BF16, plain),
            (&kernels::ATTENTION_BACKWARD_WARP_PER_KEY_BF16, plain),
        ],
        _ => [
            (&kernels::ATTENTION_BACKWARD_WARP_PER_QUERY_F32, plain),
            (&kernels::ATTENTION_BACKWARD_WARP_PER_KEY_F32, plain),
        ],
    };
    for (kernel, launch) in launches {
        // SAFETY: all shapes were checked; no row of a sequence from T on is read or written, nor is a sum of its queries; with
        // D = 64 every row begins at a multiple of 16 bytes. The first kernel writes every delta that the second reads.
        unsafe { cuda.launch(kernel, launch, params)? };
    }
    Ok(dqkv)
}
