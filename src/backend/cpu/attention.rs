//! attention: softmax(query key^T / sqrt D) value over whole sequences, every token seeing every other.
//!
//! One task per (sequence, head, block of query rows); the scores of a block stay in the L2 between the two products
//! with strided views of the packed qkv rows. Operations: 4 * B * T * T * H * D.

use rayon::prelude::*;

use super::buffer::Buffer;
use super::disjoint::Disjoint;
use super::gemm::{self, Left, Right, Target};
use super::simd::{Simd, dispatch, exp};
use super::{Cpu, Tensor};
use crate::backend::{Attention, AttentionShape, attention};
use crate::{Result, trace};

/// Query rows per task: 128 x 1024 scores are half a MiB.
const QUERY_BLOCK: usize = 128;

impl Attention for Cpu {
    fn attention(&self, qkv: &Tensor, shape: AttentionShape) -> Result<Tensor> {
        let _span = trace::span("attention");
        let size = attention::check(self, qkv, shape)?;
        Ok(attend(qkv, shape, size))
    }
}

/// Attention with heads of `size` values.
fn attend(qkv: &Tensor, shape: AttentionShape, size: usize) -> Tensor {
    let AttentionShape { batch, tokens, heads, prefix } = shape;
    let width = heads * size;
    let blocks = tokens.div_ceil(QUERY_BLOCK);
    let mut out = Buffer::any(batch * tokens * width);
    if out.is_empty() {
        return Tensor::new(batch * tokens, width, out);
    }
    let target = Disjoint::new(&mut out);
    (0..batch * heads * blocks).into_par_iter().for_each_init(Default::default, |(scores, scratch), task| {
        let (sequence, head, block) = (task / blocks / heads, task / blocks % heads, task % blocks);
        let first = block * QUERY_BLOCK;
        let queries = QUERY_BLOCK.min(tokens - first);
        let rows = &qkv.data[sequence * tokens * 3 * width..][..tokens * 3 * width];
        let query = &rows[first * 3 * width + head * size..];
        let key = Right { values: &rows[width + head * size..], depth_stride: 1, column_stride: 3 * width };
        let value = Right { values: &rows[2 * width + head * size..], depth_stride: 3 * width, column_stride: 1 };
        let scores: &mut Vec<f32> = scores;
        scores.resize(queries * tokens, 0.0);
        let left = Left { values: query, row_stride: 3 * width, rows: queries, depth: size };
        // SAFETY: `scores` holds `queries` rows of `tokens` and is this task's own.
        unsafe { gemm::serial(left, key, Target::plain(Disjoint::new(scores), tokens, tokens), scratch) };
        if prefix < tokens {
            hide(scores, tokens, first, prefix);
        }
        softmax_rows(scores, tokens, 1.0 / (size as f32).sqrt());
        let left = Left { values: scores, row_stride: tokens, rows: queries, depth: tokens };
        let out = target.offset((sequence * tokens + first) * width + head * size);
        // SAFETY: these columns of these rows of the result are touched by no other task.
        unsafe { gemm::serial(left, value, Target::plain(out, width, size), scratch) };
    });
    Tensor::new(batch * tokens, width, out)
}

/// Takes from queries `first..` the keys that they must not see: of units, those after them; of an image, all units.
fn hide(scores: &mut [f32], tokens: usize, first: usize, prefix: usize) {
    for (query, row) in scores.chunks_exact_mut(tokens).enumerate() {
        let visible = (first + query + 1).max(prefix);
        row[visible..].fill(f32::NEG_INFINITY);
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
    let mut max = chunks.remainder().iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane = if v > *lane { v } else { *lane };
        }
    }
    max = lanes.into_iter().fold(max, f32::max) * scale;
    let mut sums = [0.0f32; 16];
    let mut chunks = row.chunks_exact_mut(16);
    for chunk in &mut chunks {
        for (sum, v) in sums.iter_mut().zip(chunk) {
            *v = exp::<S>(S::mul_add1(*v, scale, -max));
            *sum += *v;
        }
    }
    let mut total = 0.0;
    for v in chunks.into_remainder() {
        *v = exp::<S>(S::mul_add1(*v, scale, -max));
        total += *v;
    }
    let inverse = 1.0 / (total + sums.iter().sum::<f32>());
    row.iter_mut().for_each(|v| *v *= inverse);
}
