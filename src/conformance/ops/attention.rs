//! Cases of attention, of its form that saves and drops, and of its backward pass.

use std::ops::Range;

use rayon::prelude::*;

use crate::Result;
use crate::backend::attention::{self, AttentionShape};
use crate::backend::cpu::Cpu;
use crate::backend::dropout::DropoutMask;
use crate::backend::prelude::*;
use crate::backend::sequences::Sequences;
use crate::conformance::{Case, Expected, Harness, Inputs, Output, Prepared, Size, TestBackend, round_bf16, stored};
use crate::cost::Cost;
use crate::tensor::DType;

/// Batch, tokens, heads, head size, prefix; and how large queries and keys are.
type Shape = ([usize; 5], f32, Size);

const SHAPES: &[Shape] = &[
    ([1, 1, 1, 64, 1], 1.0, Size::Small),
    ([1, 5, 2, 7, 5], 1.0, Size::Small),
    ([2, 17, 1, 64, 17], 1.0, Size::Small),
    ([1, 20, 1, 64, 9], 1.0, Size::Small),
    ([1, 6, 2, 3, 0], 1.0, Size::Small),
    ([2, 65, 3, 64, 65], 1.0, Size::Ragged),
    ([1, 64, 2, 64, 64], 30.0, Size::Ragged),
    ([1, 129, 1, 64, 65], 1.0, Size::Ragged),
    ([1, 70, 1, 64, 0], 1.0, Size::Ragged),
    ([1, 63, 2, 32, 40], 1.0, Size::Ragged),
    ([1, 40, 1, 200, 40], 1.0, Size::Ragged),
    ([1, 257, 16, 64, 257], 1.0, Size::Real),
    ([64, 257, 16, 64, 257], 1.0, Size::Real),
    ([1, 257, 12, 64, 257], 1.0, Size::Real),
    ([1, 385, 12, 64, 257], 1.0, Size::Real),
];
/// Rows in which there are sequences of different lengths, these, heads and head size.
type Ragged = (usize, &'static [Range<usize>], usize, usize);

const RAGGED: &[(Ragged, Size)] = &[
    ((7, &[0..1, 2..6], 1, 64), Size::Small),
    ((9, &[0..3, 3..3, 4..9], 2, 7), Size::Small),
    ((300, &[0..130, 131..132, 140..299], 2, 64), Size::Ragged),
    ((120, &[1..70, 80..120], 3, 32), Size::Ragged),
    ((1500, &[0..499, 501..999, 1000..1499], 12, 64), Size::Real),
];

/// The same in training: also with queries that see no whole tile, and with padding behind a prefix.
const TRAINING_SHAPES: &[Shape] = &[
    ([1, 1, 1, 64, 1], 1.0, Size::Small),
    ([0, 3, 2, 64, 3], 1.0, Size::Small),
    ([1, 5, 2, 7, 5], 1.0, Size::Small),
    ([2, 17, 1, 64, 17], 1.0, Size::Small),
    ([1, 20, 1, 64, 9], 1.0, Size::Small),
    ([1, 6, 2, 3, 0], 1.0, Size::Small),
    ([2, 65, 2, 64, 65], 1.0, Size::Ragged),
    ([1, 64, 1, 64, 64], 30.0, Size::Ragged),
    ([1, 129, 1, 64, 65], 1.0, Size::Ragged),
    ([1, 134, 1, 64, 0], 1.0, Size::Ragged),
    ([1, 70, 1, 64, 66], 1.0, Size::Ragged),
    ([1, 63, 2, 32, 40], 1.0, Size::Ragged),
    ([1, 40, 1, 200, 40], 1.0, Size::Ragged),
    ([8, 200, 3, 64, 65], 1.0, Size::Real),
    ([16, 407, 12, 64, 257], 1.0, Size::Real),
];

/// Against the CPU form; in bf16 also against the plain computation that rounds what the kernel rounds.
pub(super) fn check<B: TestBackend>(harness: &mut Harness<'_, B>) -> Result<()> {
    let (backend, dtype) = (harness.backend, harness.backend.dtype());
    for &([batch, tokens, heads, head_size, prefix], scale, size) in SHAPES {
        let shape = AttentionShape { batch, tokens, heads, prefix };
        let columns = 3 * heads * head_size;
        let name = format!("{batch}x{tokens}x{heads}x{head_size} after {prefix} of {scale}");
        let case = Case { name, dtype, size, cost: attention::cost(shape, head_size, dtype.size()) };
        harness.case(case, |inputs| {
            let qkv = packed(inputs, [batch * tokens, columns], scale, dtype);
            let x = backend.sequence([batch * tokens, columns], &qkv)?;
            let run = move || Ok(Output::Tensor(backend.attention(&x, shape)?));
            Prepared::new(run, move || {
                let y = Cpu.attention(&Cpu.upload([batch * tokens, columns], &qkv)?, shape)?;
                let plain = Rounded { qkv: &qkv, shape, head_size, mask: None };
                let rounded = rounded(dtype, &plain, |head| plain.forward(head));
                Ok(Expected::Close {
                    values: Cpu.download(&y)?,
                    rounded,
                    terms: terms(shape, head_size, scale),
                    stored: dtype,
                })
            })
        })?;
    }
    for &(ragged, size) in RAGGED {
        check_ragged(harness, ragged, size)?;
    }
    for &shape in TRAINING_SHAPES {
        for result in [Wanted::Y, Wanted::LogSumExp, Wanted::Dqkv] {
            check_training(harness, shape, result, None)?;
            check_training(harness, shape, result, Some(0.2))?;
        }
    }
    Ok(())
}

/// Sequences of different lengths.
fn check_ragged<B: TestBackend>(
    harness: &mut Harness<'_, B>,
    (rows, parts, heads, head_size): Ragged,
    size: Size,
) -> Result<()> {
    let (backend, dtype) = (harness.backend, harness.backend.dtype());
    let (columns, sequences) = (3 * heads * head_size, Sequences::new(rows, parts.to_vec())?);
    let shape = |tokens| AttentionShape { batch: 1, tokens, heads, prefix: tokens };
    let mut cost = Cost::default();
    for part in parts {
        let Cost { flops, bytes } = attention::cost(shape(part.len()), head_size, dtype.size());
        cost = Cost { flops: cost.flops + flops, bytes: cost.bytes + bytes };
    }
    let name = format!("{} sequences in {rows}x{heads}x{head_size}", parts.len());
    harness.case(Case { name, dtype, size, cost }, |inputs| {
        let qkv = packed(inputs, [rows, columns], 1.0, dtype);
        let (x, of_device) = (backend.sequence([rows, columns], &qkv)?, sequences.clone());
        let run = move || Ok(Output::Tensor(backend.attention_ragged(&x, heads, &of_device)?));
        Prepared::new(run, move || {
            let y = Cpu.attention_ragged(&Cpu.upload([rows, columns], &qkv)?, heads, &sequences)?;
            let first = &parts[0];
            let (before, shape) = (first.start * heads * head_size, shape(first.len()));
            let plain = Rounded { qkv: &qkv[first.start * columns..], shape, head_size, mask: None };
            let rounded = rounded(dtype, &plain, |head| plain.forward(head));
            Ok(Expected::Close {
                values: Cpu.download(&y)?,
                // Rows before the first sequence are zeros.
                rounded: [vec![0.0; before], rounded].concat(),
                terms: (head_size + sequences.longest()) * 2,
                stored: dtype,
            })
        })
    })
}

/// Rows of query, key and value as the backend holds them; queries and keys about `scale` large.
fn packed(inputs: &Inputs, [rows, columns]: [usize; 2], scale: f32, dtype: DType) -> Vec<f32> {
    let mut qkv = inputs.values(rows * columns);
    for row in qkv.chunks_exact_mut(columns).filter(|_| scale != 1.0) {
        row[..columns / 3 * 2].iter_mut().for_each(|v| *v *= scale);
    }
    stored(dtype, qkv)
}

/// Scores of so many products go through an exponential.
fn terms(shape: AttentionShape, head_size: usize, scale: f32) -> usize {
    (head_size + shape.tokens) * (1.0 + scale * scale) as usize
}

/// The compared result.
#[derive(Clone, Copy, PartialEq)]
enum Wanted {
    Y,
    LogSumExp,
    Dqkv,
}

/// One result of attention in training, with this probability of dropout.
fn check_training<B: TestBackend>(
    harness: &mut Harness<'_, B>,
    ([batch, tokens, heads, head_size, prefix], scale, size): Shape,
    wanted: Wanted,
    probability: Option<f32>,
) -> Result<()> {
    let (backend, dtype) = (harness.backend, harness.backend.dtype());
    let shape = AttentionShape { batch, tokens, heads, prefix };
    let (rows, width) = (batch * tokens, heads * head_size);
    let (kind, cost) = match wanted {
        Wanted::Y => ("saving", attention::cost(shape, head_size, dtype.size())),
        Wanted::LogSumExp => ("log-sum-exp", Default::default()),
        Wanted::Dqkv => ("backward", attention::backward_cost(shape, head_size, dtype.size())),
    };
    let dropped = probability.map_or(String::new(), |probability| format!(", dropout {probability}"));
    let name = format!("{kind} {batch}x{tokens}x{heads}x{head_size} after {prefix} of {scale}{dropped}");
    let stored_as = if wanted == Wanted::LogSumExp { DType::F32 } else { dtype };
    harness.case(Case { name, dtype: stored_as, size, cost }, |inputs| {
        let qkv = packed(inputs, [rows, 3 * width], scale, dtype);
        let dy = stored(dtype, inputs.values(rows * width));
        let mask =
            probability.map(|p| DropoutMask { probability: p, seed: inputs.random().bits(), stream: 3 << 33 | 5 });
        let on_cpu = Cpu.upload([rows, 3 * width], &qkv)?;
        let (y, log_sum_exp) = Cpu.attention_saving(&on_cpu, shape, mask)?;
        let exact = Cpu.download(&y)?;
        let y = stored(dtype, exact.clone());
        let x = backend.sequence([rows, 3 * width], &qkv)?;
        let there = |values: &[f32]| backend.sequence([rows, width], values);
        let (dy_there, y_there) = (there(&dy)?, there(&y)?);
        let saved = backend.upload([batch * heads, tokens], &Cpu.download(&log_sum_exp)?)?;
        let run = move || {
            Ok(Output::Tensor(match wanted {
                Wanted::Y => backend.attention_saving(&x, shape, mask)?.0,
                Wanted::LogSumExp => backend.attention_saving(&x, shape, mask)?.1,
                Wanted::Dqkv => backend.attention_backward(&dy_there, &x, &y_there, &saved, shape, mask)?,
            }))
        };
        Prepared::new(run, move || {
            let plain = Rounded { qkv: &qkv, shape, head_size, mask };
            let (values, rounded) = match wanted {
                Wanted::Y => (exact, rounded(dtype, &plain, |head| plain.forward(head))),
                Wanted::LogSumExp => (Cpu.download(&log_sum_exp)?, Vec::new()),
                Wanted::Dqkv => {
                    let here = |values: &[f32]| Cpu.upload([rows, width], values);
                    let values = Cpu.attention_backward(&here(&dy)?, &on_cpu, &here(&y)?, &log_sum_exp, shape, mask)?;
                    (Cpu.download(&values)?, rounded(dtype, &plain, |head| plain.backward(head, &dy, &y)))
                }
            };
            let terms = terms(shape, head_size, scale) * if wanted == Wanted::Dqkv { 4 } else { 1 };
            Ok(Expected::Close { values, rounded, terms, stored: stored_as })
        })
    })
}

/// The plain computation on the first sequence, rounded as the kernels on tensor cores round.
struct Rounded<'a> {
    qkv: &'a [f32],
    shape: AttentionShape,
    head_size: usize,
    mask: Option<DropoutMask>,
}

/// Rows of the first sequence of what `head` computes of each head; empty unless results are stored in bf16.
fn rounded(dtype: DType, plain: &Rounded<'_>, head: impl Fn(usize) -> Vec<Vec<f32>> + Send + Sync) -> Vec<f32> {
    let AttentionShape { batch, tokens, heads, .. } = plain.shape;
    if dtype != DType::BF16 || batch == 0 {
        return Vec::new();
    }
    // Parts (T, D) of every head: one of a result, three of the gradient at qkv.
    let parts: Vec<Vec<Vec<f32>>> = (0..heads).into_par_iter().map(head).collect();
    let count = parts.first().map_or(0, Vec::len);
    let mut out = Vec::new();
    for (t, part) in (0..tokens).flat_map(|t| (0..count).map(move |part| (t, part))) {
        for head in &parts {
            out.extend(head[part][t * plain.head_size..][..plain.head_size].iter().map(|&v| round_bf16(v)));
        }
    }
    out
}

impl Rounded<'_> {
    fn row(&self, token: usize, part: usize, head: usize) -> &[f32] {
        let width = self.shape.heads * self.head_size;
        &self.qkv[token * 3 * width + part * width + head * self.head_size..][..self.head_size]
    }

    /// Scores of a query, with the keys that it sees.
    fn scores(&self, head: usize, query: usize) -> Vec<f32> {
        let visible = (query + 1).max(self.shape.prefix);
        let scale = 1.0 / (self.head_size as f32).sqrt();
        (0..visible).map(|k| dot(self.row(query, 0, head), self.row(k, 1, head)) * scale).collect()
    }

    /// Factors of a query's probabilities.
    fn factors(&self, head: usize, query: usize, count: usize) -> Vec<f32> {
        let Some(mask) = self.mask else { return vec![1.0; count] };
        let first = (head * self.shape.tokens + query) * self.shape.tokens.next_multiple_of(4);
        let kept = |k: usize| mask.words().word((first + k) as u64) >= mask.threshold();
        (0..count).map(|k| if kept(k) { mask.scale() } else { 0.0 }).collect()
    }

    fn forward(&self, head: usize) -> Vec<Vec<f32>> {
        let mut y = vec![0.0; self.shape.tokens * self.head_size];
        for (q, y) in y.chunks_exact_mut(self.head_size).enumerate() {
            let scores = self.scores(head, q);
            let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let weights: Vec<f32> = scores.iter().map(|s| (s - max).exp()).collect();
            let total: f32 = weights.iter().sum();
            let factors = self.factors(head, q, weights.len());
            for (k, (weight, factor)) in weights.iter().zip(factors).enumerate() {
                add(y, round_bf16(*weight) * factor, self.row(k, 2, head));
            }
            y.iter_mut().for_each(|y| *y /= total);
        }
        vec![y]
    }

    fn backward(&self, head: usize, dy: &[f32], y: &[f32]) -> Vec<Vec<f32>> {
        let (size, tokens) = (self.head_size, self.shape.tokens);
        let place = |token: usize| token * size..(token + 1) * size;
        let result = |values: &[f32], token: usize| {
            let start = (token * self.shape.heads + head) * size;
            values[start..start + size].to_vec()
        };
        let mut parts = vec![vec![0.0; tokens * size]; 3];
        for q in 0..tokens {
            let (dy, y, scores) = (result(dy, q), result(y, q), self.scores(head, q));
            let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let log_sum_exp = max + scores.iter().map(|s| (s - max).exp()).sum::<f32>().ln();
            let delta = dot(&dy, &y);
            let factors = self.factors(head, q, scores.len());
            for (k, (score, factor)) in scores.iter().zip(factors).enumerate() {
                let p = (score - log_sum_exp).exp();
                let ds = round_bf16(p * (dot(&dy, self.row(k, 2, head)) * factor - delta));
                add(&mut parts[0][place(q)], ds, self.row(k, 1, head));
                add(&mut parts[1][place(k)], ds, self.row(q, 0, head));
                add(&mut parts[2][place(k)], round_bf16(p * factor), &dy);
            }
        }
        let scale = 1.0 / (size as f32).sqrt();
        parts[..2].iter_mut().flatten().for_each(|v| *v *= scale);
        parts
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(sum: &mut [f32], scale: f32, values: &[f32]) {
    sum.iter_mut().zip(values).for_each(|(sum, v)| *sum += scale * v);
}
