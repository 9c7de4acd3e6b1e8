//! attention: softmax(query key^T / sqrt D) value over whole sequences, every token seeing every other.
//!
//! One task per (sequence, head, block of query rows); the scores of a block stay in the L2 between the two products,
//! which the `gemm` crate computes on strided views of the packed qkv rows. Operations: 4 * B * T * T * H * D.

use rayon::prelude::*;

use super::disjoint::Disjoint;
use super::simd::{Simd, dispatch, exp};
use super::{Tensor, ensure};
use crate::Result;
use crate::backend::AttentionShape;

/// Query rows per task: 128 x 1024 scores are half a MiB.
const QUERY_BLOCK: usize = 128;

/// See [`crate::backend::Backend::attention`].
pub fn attention(qkv: &Tensor, shape: AttentionShape) -> Result<Tensor> {
    let AttentionShape { batch, tokens, heads } = shape;
    let width = qkv.columns / 3;
    ensure(
        heads > 0 && qkv.columns == 3 * width && width % heads == 0 && qkv.rows == batch * tokens,
        "attention",
        || format!("qkv ({}, {}) for {shape:?}", qkv.rows, qkv.columns),
    )?;
    let size = width / heads;
    let blocks = tokens.div_ceil(QUERY_BLOCK);
    let mut out = vec![0.0f32; batch * tokens * width];
    if out.is_empty() {
        return Ok(Tensor::new(batch * tokens, width, out));
    }
    let target = Disjoint::new(&mut out);
    (0..batch * heads * blocks).into_par_iter().for_each(|task| {
        let (sequence, head, block) = (task / blocks / heads, task / blocks % heads, task % blocks);
        let first = block * QUERY_BLOCK;
        let queries = QUERY_BLOCK.min(tokens - first);
        let rows = &qkv.data[sequence * tokens * 3 * width..][..tokens * 3 * width];
        let query = &rows[first * 3 * width + head * size..];
        let key = &rows[width + head * size..];
        let value = &rows[2 * width + head * size..];
        let mut scores = vec![0.0f32; queries * tokens];
        let (row, step) = (3 * width as isize, tokens as isize);
        // SAFETY: the first product reads `queries` rows of `query` and `tokens` rows of `key`, `size` elements each, all
        // inside `rows`, and writes `scores`. The second reads `scores` and `value` and writes `size` columns of
        // `queries` rows of the result, which no other task touches.
        unsafe {
            strided_product(
                [queries, tokens, size],
                scores.as_mut_ptr(),
                step,
                [query.as_ptr(), key.as_ptr()],
                [row, 1, row],
            );
            softmax_rows(&mut scores, tokens, 1.0 / (size as f32).sqrt());
            let y = target.at((sequence * tokens + first) * width + head * size);
            strided_product(
                [queries, size, tokens],
                y,
                width as isize,
                [scores.as_ptr(), value.as_ptr()],
                [step, row, 1],
            );
        }
    });
    Ok(Tensor::new(batch * tokens, width, out))
}

/// `out (m, n) = a (m, k) b (k, n)`; the columns of `out` and `a` are adjacent. Strides: rows of a, rows and columns of b.
///
/// # Safety
/// All three matrices have to lie inside their allocations, and nothing else may touch `out` meanwhile.
unsafe fn strided_product(
    [m, n, k]: [usize; 3],
    out: *mut f32,
    out_row: isize,
    [a, b]: [*const f32; 2],
    [a_row, b_row, b_column]: [isize; 3],
) {
    let serial = gemm::Parallelism::None;
    // SAFETY: the caller's promise. The strides of b are given as (column, row).
    unsafe {
        gemm::gemm(
            m, n, k, out, 1, out_row, false, a, 1, a_row, b, b_column, b_row, 0.0f32, 1.0, false, false, false, serial,
        )
    }
}

dispatch! {
    /// Softmax of `scale` times each row.
    fn softmax_rows(scores: &mut [f32], columns: usize, scale: f32) = softmax_rows_body;
}

#[inline(always)]
fn softmax_rows_body<S: Simd>(scores: &mut [f32], columns: usize, scale: f32) {
    for row in scores.chunks_exact_mut(columns) {
        softmax::<S>(row, scale);
    }
}

/// Softmax of `scale * row` in place.
#[inline(always)]
pub(super) fn softmax<S: Simd>(row: &mut [f32], scale: f32) {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let chunks = row.chunks_exact(16);
    let mut most = chunks.remainder().iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane = if v > *lane { v } else { *lane };
        }
    }
    most = lanes.into_iter().fold(most, f32::max) * scale;
    let mut sums = [0.0f32; 16];
    let mut chunks = row.chunks_exact_mut(16);
    for chunk in &mut chunks {
        for (sum, v) in sums.iter_mut().zip(chunk) {
            *v = exp::<S>(S::mul_add1(*v, scale, -most));
            *sum += *v;
        }
    }
    let mut total = 0.0;
    for v in chunks.into_remainder() {
        *v = exp::<S>(S::mul_add1(*v, scale, -most));
        total += *v;
    }
    let inverse = 1.0 / (total + sums.iter().sum::<f32>());
    row.iter_mut().for_each(|v| *v *= inverse);
}
