//! attention: softmax(query key^T / sqrt D) value over whole sequences, and backwards.
//!
//! Forward, one task per (sequence, head, block of query rows); the scores of a block stay in the L2 between the two products
//! with strided views of the packed qkv rows. Operations: 4 * B * T * T * H * D.
//!
//! Backward, one task per (sequence, head), block after block of query rows: with probabilities p, computed again from the
//! log-sum-exp, and the gradient g = dy value^T at them, that at the scores is ds = p (g - dy . y) / sqrt D. Then dquery = ds key,
//! and dvalue += p^T dy and dkey += ds^T query as products with D rows of transposed copies. Five products of the forward pass's
//! two.

use super::buffer::{Buffer, for_each_task, grown};
use super::disjoint::Disjoint;
use super::dropout::{RUN, factors};
use super::gemm::{self, Left, Right, Target};
use super::simd::{MAX_LANES, Simd, dispatch, exp, prefetch};
use super::{Cpu, Tensor};
use crate::backend::{Attention, AttentionBackward, AttentionShape, DropoutMask, Sequences, attention};
use crate::{Result, trace};

/// Query rows per task: 128 x 1024 scores are half a MiB.
const QUERY_BLOCK: usize = 128;
/// Query rows of a block of the backward pass: three panels of the matrix product.
const BACKWARD_BLOCK: usize = 144;

impl Attention for Cpu {
    fn attention(&self, qkv: &Tensor, shape: AttentionShape) -> Result<Tensor> {
        let _span = trace::span("attention");
        let size = attention::check(self, qkv, shape)?;
        Ok(attend(&qkv.data, shape, size, None).0)
    }

    fn attention_ragged(&self, qkv: &Tensor, heads: usize, sequences: &Sequences) -> Result<Tensor> {
        let _span = trace::span("attention");
        let size = attention::check_ragged(self, qkv, heads, sequences)?;
        let width = heads * size;
        let len = qkv.rows * width;
        let mut y = if sequences.cover_all() { Buffer::any(len) } else { Buffer::zeros(len) };
        for rows in sequences.parts() {
            let tokens = rows.len();
            let shape = AttentionShape { batch: 1, tokens, heads, prefix: tokens };
            let part = &qkv.data[rows.start * 3 * width..rows.end * 3 * width];
            attend_to(part, shape, size, None, &mut y[rows.start * width..rows.end * width]);
        }
        Ok(Tensor::new(qkv.rows, width, y))
    }
}

impl AttentionBackward for Cpu {
    fn attention_saving(
        &self,
        qkv: &Tensor,
        shape: AttentionShape,
        dropout: Option<DropoutMask>,
    ) -> Result<(Tensor, Tensor)> {
        let _span = trace::span("attention");
        let size = attention::check_saving(self, qkv, shape, dropout)?;
        Ok(attend(&qkv.data, shape, size, dropout))
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
        let _span = trace::span("attention_backward");
        let size = attention::check_backward(self, [dy, qkv, y, log_sum_exp], shape, dropout)?;
        let mut out = Buffer::any(qkv.data.len());
        if !out.is_empty() {
            let out = Disjoint::new(&mut out);
            let pass = Backward { dy, qkv, y, log_sum_exp, shape, size, dropout, out };
            for_each_task(shape.batch * shape.heads, |task, [scratch, _]| pass.head(task, scratch));
        }
        Ok(Tensor::new(qkv.rows, qkv.columns, out))
    }
}

/// Keys that any query before `end` sees.
fn visible_before(end: usize, prefix: usize) -> usize {
    end.max(prefix)
}

/// Index of the first block of random words of a query's row of probabilities; `row` is `(b H + h) T + q`.
fn first_block(row: usize, tokens: usize) -> u64 {
    row as u64 * tokens.div_ceil(4) as u64
}

/// Attention with heads of `size` values, and the log-sum-exp of each query's scores.
fn attend(qkv: &[f32], shape: AttentionShape, size: usize, dropout: Option<DropoutMask>) -> (Tensor, Tensor) {
    let (rows, width) = (shape.batch * shape.tokens, shape.heads * size);
    let mut out = Buffer::any(rows * width);
    let saved = attend_to(qkv, shape, size, dropout, &mut out);
    (Tensor::new(rows, width, out), saved)
}

/// [`attend`] with the result in `out`; the log-sum-exp.
fn attend_to(qkv: &[f32], shape: AttentionShape, size: usize, dropout: Option<DropoutMask>, out: &mut [f32]) -> Tensor {
    let AttentionShape { batch, tokens, heads, prefix } = shape;
    let width = heads * size;
    let blocks = tokens.div_ceil(QUERY_BLOCK);
    let mut saved = Buffer::any(batch * heads * tokens);
    if out.is_empty() {
        saved.fill(0.0);
        return Tensor::new(batch * heads, tokens, saved);
    }
    let (target, log_sum_exp) = (Disjoint::new(out), Disjoint::new(&mut saved));
    for_each_task(batch * heads * blocks, |task, [scores, scratch]| {
        let (sequence, head, block) = (task / blocks / heads, task / blocks % heads, task % blocks);
        let first = block * QUERY_BLOCK;
        let queries = QUERY_BLOCK.min(tokens - first);
        let keys = visible_before(first + queries, prefix);
        let rows = &qkv[sequence * tokens * 3 * width..][..tokens * 3 * width];
        let query = &rows[first * 3 * width + head * size..];
        let key = Right { values: &rows[width + head * size..], depth_stride: 1, column_stride: 3 * width };
        let value = Right { values: &rows[2 * width + head * size..], depth_stride: 3 * width, column_stride: 1 };
        let scores = grown(scores, queries * keys);
        let left = Left { values: query, row_stride: 3 * width, rows: queries, depth: size };
        // SAFETY: `scores` holds `queries` rows of `keys` and is this task's own.
        unsafe { gemm::serial(left, key, Target::plain(Disjoint::new(scores), keys, keys), scratch) };
        if prefix < tokens {
            hide(scores, keys, first, prefix);
        }
        let row = (sequence * heads + head) * tokens + first;
        // SAFETY: one value for each query of this task.
        let log_sum_exp = unsafe { log_sum_exp.slice(row, queries) };
        softmax_rows(scores, keys, 1.0 / (size as f32).sqrt(), log_sum_exp);
        if let Some(mask) = dropout {
            drop_rows(scores, keys, mask, row, tokens);
        }
        let left = Left { values: scores, row_stride: keys, rows: queries, depth: keys };
        let out = target.offset((sequence * tokens + first) * width + head * size);
        // SAFETY: these columns of these rows of the result are touched by no other task.
        unsafe { gemm::serial(left, value, Target::plain(out, width, size), scratch) };
    });
    Tensor::new(batch * heads, tokens, saved)
}

/// Takes from queries `first..` the keys that they must not see: of units, those after them; of an image, all units.
fn hide(scores: &mut [f32], keys: usize, first: usize, prefix: usize) {
    for (query, row) in scores.chunks_exact_mut(keys).enumerate() {
        row[visible_before(first + query + 1, prefix)..].fill(f32::NEG_INFINITY);
    }
}

dispatch! {
    /// Dropout of rows of `keys` probabilities, those of the queries from `row` on.
    fn drop_rows(p: &mut [f32], keys: usize, mask: DropoutMask, row: usize, tokens: usize) = drop_rows_body;
}

#[inline(always)]
fn drop_rows_body<S: Simd>(p: &mut [f32], keys: usize, mask: DropoutMask, row: usize, tokens: usize) {
    for (query, p) in p.chunks_exact_mut(keys).enumerate() {
        let block = first_block(row + query, tokens);
        for (run, p) in p.chunks_mut(RUN).enumerate() {
            let factors = factors::<S>(mask, block + (run * MAX_LANES) as u64);
            p.iter_mut().zip(&factors).for_each(|(p, factor)| *p *= factor);
        }
    }
}

dispatch! {
    /// Softmax of `scale` times each row, and the log-sum-exp of each.
    fn softmax_rows(scores: &mut [f32], columns: usize, scale: f32, log_sum_exp: &mut [f32]) = softmax_rows_body;
}

#[inline(always)]
fn softmax_rows_body<S: Simd>(scores: &mut [f32], columns: usize, scale: f32, log_sum_exp: &mut [f32]) {
    for (row, log_sum_exp) in scores.chunks_exact_mut(columns).zip(log_sum_exp) {
        *log_sum_exp = softmax::<S>(row, scale);
    }
}

/// Softmax of `scale * row` in place; returns the log-sum-exp of `scale * row`.
#[inline(always)]
pub(super) fn softmax<S: Simd>(row: &mut [f32], scale: f32) -> f32 {
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
    let total = total + sums.iter().sum::<f32>();
    let inverse = 1.0 / total;
    row.iter_mut().for_each(|v| *v *= inverse);
    max + total.ln()
}

/// A backward pass; heads are of `size` values.
struct Backward<'a> {
    dy: &'a Tensor,
    qkv: &'a Tensor,
    y: &'a Tensor,
    log_sum_exp: &'a Tensor,
    shape: AttentionShape,
    size: usize,
    dropout: Option<DropoutMask>,
    /// (B*T, 3*H*D), the result.
    out: Disjoint,
}

impl Backward<'_> {
    /// Head `task % H` of sequence `task / H`, whose columns of the result belong to this call alone.
    fn head(&self, task: usize, scratch: &mut Vec<f32>) {
        let Backward { shape: AttentionShape { tokens, heads, prefix, .. }, size, .. } = *self;
        let (width, sequence, head, len) = (heads * size, task / heads, task % heads, tokens * size);
        let rows = &self.qkv.data[sequence * tokens * 3 * width..][..tokens * 3 * width];
        let [query, key, value] =
            [0, 1, 2].map(|part| Rows { values: &rows[part * width + head * size..], stride: 3 * width });
        let [dy, y] = [self.dy, self.y].map(|x| {
            let rows = &x.data[sequence * tokens * width..][..tokens * width];
            Rows { values: &rows[head * size..], stride: width }
        });
        let mut turned = Buffer::any(2 * len);
        for (rows, turned) in [query, dy].iter().zip(turned.chunks_exact_mut(len)) {
            turn(rows.values, rows.stride, [tokens, size], Disjoint::new(turned), tokens);
        }
        let turned = |n: usize, first: usize, depth: usize| Left {
            values: &turned[n * len + first..(n + 1) * len],
            row_stride: tokens,
            rows: size,
            depth,
        };
        let at = sequence * tokens * 3 * width + head * size;
        // The gradients at key and value, (D, T) each.
        let mut sums = Buffer::zeros(2 * len);
        let gradients = Disjoint::new(&mut sums);
        let mut block = Buffer::any(2 * BACKWARD_BLOCK * tokens);
        for first in (0..tokens).step_by(BACKWARD_BLOCK) {
            let queries = BACKWARD_BLOCK.min(tokens - first);
            let keys = visible_before(first + queries, prefix);
            let (p, ds) = block[..2 * queries * keys].split_at_mut(queries * keys);
            for (left, right, out) in [(query, key, &mut *p), (dy, value, &mut *ds)] {
                let left = Left { values: left.from(first), row_stride: left.stride, rows: queries, depth: size };
                let right = Right { values: right.values, depth_stride: 1, column_stride: right.stride };
                // SAFETY: `out` holds `queries` rows of `keys` and is this task's own.
                unsafe { gemm::serial(left, right, Target::plain(Disjoint::new(out), keys, keys), scratch) };
            }
            slopes(p, ds, keys, first, task, [dy, y], self);
            let down = |values| Right { values, depth_stride: keys, column_stride: 1 };
            let added = |n: usize| Target { adds: true, ..Target::plain(gradients.offset(n * len), tokens, keys) };
            let slopes = Left { values: &*ds, row_stride: keys, rows: queries, depth: keys };
            let across = Right { values: key.values, depth_stride: key.stride, column_stride: 1 };
            let dquery = Target::plain(self.out.offset(at + first * 3 * width), 3 * width, size);
            // SAFETY: two are inside of the sums, and the third in columns of the result; all are this task's own.
            unsafe {
                gemm::serial(turned(0, first, queries), down(ds), added(0), scratch);
                gemm::serial(turned(1, first, queries), down(p), added(1), scratch);
                gemm::serial(slopes, across, dquery, scratch);
            }
        }
        for (part, sums) in sums.chunks_exact(len).enumerate() {
            turn(sums, tokens, [size, tokens], self.out.offset(at + (1 + part) * width), 3 * width);
        }
    }
}

/// Rows of one head: of query, key, value or a gradient.
#[derive(Clone, Copy)]
struct Rows<'a> {
    values: &'a [f32],
    stride: usize,
}

impl<'a> Rows<'a> {
    fn from(&self, row: usize) -> &'a [f32] {
        &self.values[row * self.stride..]
    }
}

dispatch! {
    /// Scores to probabilities after dropout, and gradients at those to gradients at the scores: rows of `keys` values for
    /// queries `first..` of head `task`, with its rows of dy and y.
    fn slopes(
        p: &mut [f32],
        ds: &mut [f32],
        keys: usize,
        first: usize,
        task: usize,
        results: [Rows<'_>; 2],
        pass: &Backward<'_>,
    ) = slopes_body;
}

#[inline(always)]
fn slopes_body<S: Simd>(
    p: &mut [f32],
    ds: &mut [f32],
    keys: usize,
    first: usize,
    task: usize,
    [dy, y]: [Rows<'_>; 2],
    pass: &Backward<'_>,
) {
    let (AttentionShape { tokens, prefix, .. }, size) = (pass.shape, pass.size);
    let scale = 1.0 / (size as f32).sqrt();
    for (n, (p, ds)) in p.chunks_exact_mut(keys).zip(ds.chunks_exact_mut(keys)).enumerate() {
        let (query, row) = (first + n, task * tokens + first + n);
        let (visible, block) = (visible_before(query + 1, prefix), first_block(row, tokens));
        let log_sum_exp = pass.log_sum_exp.data[row];
        let delta = dot::<S>(&dy.from(query)[..size], &y.from(query)[..size]);
        for (run, (p, ds)) in p[..visible].chunks_mut(RUN).zip(ds[..visible].chunks_mut(RUN)).enumerate() {
            let factors = match pass.dropout {
                Some(mask) => factors::<S>(mask, block + (run * MAX_LANES) as u64),
                None => [1.0; RUN],
            };
            for ((p, ds), factor) in p.iter_mut().zip(ds).zip(&factors) {
                let probability = exp::<S>(S::mul_add1(*p, scale, -log_sum_exp));
                *p = probability * factor;
                *ds = probability * scale * S::mul_add1(*ds, *factor, -delta);
            }
        }
        p[visible..].fill(0.0);
        ds[visible..].fill(0.0);
    }
}

#[inline(always)]
fn dot<S: Simd>(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = S::splat(0.0);
    let whole = a.len() / S::N * S::N;
    for n in (0..whole).step_by(S::N) {
        sums = S::mul_add(S::load(&a[n..]), S::load(&b[n..]), sums);
    }
    (whole..a.len()).fold(S::sum(sums), |sum, n| S::mul_add1(a[n], b[n], sum))
}

dispatch! {
    /// Copies (M, N) with rows of `stride` to (N, M) with rows of `out_stride`, a square of registers at a time. The caller owns
    /// the rows of the copy.
    fn turn(from: &[f32], stride: usize, size: [usize; 2], out: Disjoint, out_stride: usize) = turn_body;
}

#[inline(always)]
fn turn_body<S: Simd>(from: &[f32], stride: usize, [rows, columns]: [usize; 2], out: Disjoint, out_stride: usize) {
    for row in (0..rows).step_by(S::N) {
        let height = S::N.min(rows - row);
        for column in (0..columns).step_by(S::N) {
            let width = S::N.min(columns - column);
            // SAFETY: a part of row `column + n` of the copy, by the promise of the caller.
            let out = |n: usize| unsafe { out.slice((column + n) * out_stride + row, height) };
            let from = |n: usize| &from[(row + n) * stride + column..][..width];
            if height < S::N || width < S::N {
                (0..width).for_each(|n| out(n).iter_mut().enumerate().for_each(|(m, out)| *out = from(m)[n]));
                continue;
            }
            let mut square = [S::splat(0.0); MAX_LANES];
            for (n, lanes) in square.iter_mut().enumerate().take(S::N) {
                // Rows are too far apart for the processor's own prefetcher.
                prefetch(from(n).as_ptr().wrapping_add(S::N * stride));
                *lanes = S::load(from(n));
            }
            S::transpose(&mut square);
            for (n, lanes) in square.iter().enumerate().take(S::N) {
                S::store(out(n), *lanes);
            }
        }
    }
}
