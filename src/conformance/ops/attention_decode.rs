//! Cases of attention_decode and the KV cache under it: steps of several rows that fork, die, begin anew and share an image's
//! prefix, and one step alone.

use std::cell::RefCell;
use std::rc::Rc;

use super::host;
use crate::backend::cpu::Cpu;
use crate::backend::decode::{self, CacheRow, CacheShape};
use crate::backend::prelude::*;
use crate::backend::{GraphId, LinearWeights};
use crate::conformance::{Case, Expected, Harness, Inputs, Output, Prepared, Size, TestBackend, stored};
use crate::cost::Cost;
use crate::random::Random;
use crate::tensor::DType;
use crate::{Error, Result};

/// Layers, heads, head size, images, prefix, most new tokens.
const SHAPES: &[([usize; 6], Size)] = &[
    ([1, 1, 1, 1, 1, 8], Size::Small),
    ([1, 2, 5, 2, 3, 8], Size::Small),
    ([2, 2, 64, 2, 70, 8], Size::Ragged),
    ([1, 3, 64, 1, 64, 80], Size::Ragged),
    ([1, 1, 40, 3, 65, 70], Size::Ragged),
    ([6, 12, 64, 1, 257, 128], Size::Real),
    ([6, 12, 64, 8, 257, 64], Size::Real),
];

/// Steps alone: heads (of 64), images, rows of each, prefix, tokens of each row before the step.
const STEPS: &[([usize; 5], Size)] = &[
    ([2, 1, 1, 3, 2], Size::Small),
    ([2, 2, 3, 70, 67], Size::Ragged),
    ([12, 1, 1, 257, 100], Size::Real),
    ([12, 1, 5, 257, 100], Size::Real),
    ([12, 64, 1, 257, 40], Size::Real),
];

/// Columns of the prefixes before they become queries, keys and values.
const DEPTH: usize = 8;
/// Head size of steps alone.
const HEAD_SIZE: usize = 64;

/// Prefixes x (layers * images * prefix, DEPTH), and the layer (3*H*D, DEPTH) that makes queries, keys and values of them:
/// of such numbers that those are exact in bf16, and so the same wherever they are made.
struct Prefixes {
    x: Vec<f32>,
    weight: Vec<f32>,
}

impl Prefixes {
    fn new(shape: CacheShape, inputs: &Inputs) -> Prefixes {
        let quarters = |count| inputs.below(count, 5).into_iter().map(|n| (n as f32 - 2.0) / 2.0).collect();
        Prefixes {
            x: quarters(shape.layers * shape.images * shape.prefix * DEPTH),
            weight: quarters(3 * shape.heads * shape.head_size * DEPTH),
        }
    }
}

/// A scenario and its values: the live rows of each step, and their packed queries, keys and values.
type Steps = Vec<(Vec<CacheRow>, Vec<f32>)>;

/// A cache with these prefixes.
fn with_prefixes<B: Backend>(backend: &B, shape: CacheShape, prefixes: &Prefixes) -> Result<B::KvCache> {
    let width = shape.heads * shape.head_size;
    let mut cache = backend.kv_cache(shape)?;
    let weight = backend.matrix(host(&[3 * width, DEPTH], prefixes.weight.clone())?)?;
    let qkv = LinearWeights { weight, bias: backend.upload([1, 3 * width], &vec![0.0; 3 * width])? };
    for layer in 0..shape.layers {
        // The last image first, the others after it.
        let last = shape.images - 1;
        for images in [vec![last], (0..last).collect()] {
            let rows = images.len() * shape.prefix;
            let first = (layer * shape.images + images.first().unwrap_or(&0)) * shape.prefix;
            let x = backend.upload([rows, DEPTH], &prefixes.x[first * DEPTH..][..rows * DEPTH])?;
            backend.prefill_qkv(&mut cache, &images, layer, &x, &qkv)?;
        }
    }
    Ok(cache)
}

/// Every step's output for every row and layer, one after the other.
fn run<B: Backend>(backend: &B, cache: &mut B::KvCache, shape: CacheShape, steps: &Steps) -> Result<Vec<f32>> {
    let width = shape.heads * shape.head_size;
    let mut out = Vec::new();
    let graphs: Vec<GraphId> = (0..shape.layers).map(|_| GraphId::new()).collect();
    for (position, (rows, qkv)) in steps.iter().enumerate() {
        // Rows that continue themselves need no call.
        if position == 0
            || rows.iter().enumerate().any(|(r, row)| row.parent != Some(r))
            || rows.len() != steps[position - 1].0.len()
        {
            backend.kv_reorder(cache, rows)?;
        }
        backend.kv_append(cache)?;
        for (layer, graph) in graphs.iter().enumerate() {
            let part = &qkv[layer * rows.len() * 3 * width..][..rows.len() * 3 * width];
            let x = backend.upload([rows.len(), 3 * width], part)?;
            let y = backend
                .captured_step(graph, cache, &x, &|backend, cache, x| backend.attention_decode(x, cache, layer))?;
            out.extend(backend.download(&y)?);
        }
    }
    Ok(out)
}

/// One row an image, then a fork into three, then beams that change places and die; and sequences that end, so that the
/// next begins in the row of the last.
fn scenario(images: usize, length: usize, random: &mut Random) -> Vec<Vec<CacheRow>> {
    let mut steps: Vec<Vec<CacheRow>> = vec![(0..images).map(|image| CacheRow { image, parent: None }).collect()];
    for position in 1..length {
        let before = &steps[position - 1];
        let rows: Vec<CacheRow> = match position {
            2 => (0..3 * images).map(|r| CacheRow { image: r / 3, parent: Some(r / 3) }).collect(),
            // Some stay, some are replaced by a sibling's child, one dies now and then.
            p if p > 2 && p % 3 == 0 && before.len() > 1 => {
                let keep = if p % 9 == 0 { before.len() - 1 } else { before.len() };
                (0..keep)
                    .map(|r| {
                        let image = before[r].image;
                        let siblings: Vec<usize> = (0..before.len()).filter(|&s| before[s].image == image).collect();
                        CacheRow { image, parent: Some(siblings[random.below(siblings.len())]) }
                    })
                    .collect()
            }
            // One image's rows become one that has just begun, in the midst of longer ones.
            p if p % 5 == 0 => {
                let image = random.below(images);
                let others = before.iter().enumerate().filter(|(_, row)| row.image != image);
                let mut rows: Vec<_> = others.map(|(r, row)| CacheRow { image: row.image, parent: Some(r) }).collect();
                rows.insert(random.below(rows.len() + 1), CacheRow { image, parent: None });
                rows
            }
            _ => before.iter().enumerate().map(|(r, row)| CacheRow { image: row.image, parent: Some(r) }).collect(),
        };
        steps.push(rows);
    }
    steps
}

/// Random values of these steps. Queries stay f32; keys and values are such as `dtype` holds.
fn with_values(steps: Vec<Vec<CacheRow>>, layers: usize, width: usize, dtype: DType, inputs: &Inputs) -> Steps {
    let values = |rows: Vec<CacheRow>| {
        let mut qkv = inputs.values(layers * rows.len() * 3 * width);
        let narrow = stored(dtype, qkv.clone());
        for (row, narrow) in qkv.chunks_exact_mut(3 * width).zip(narrow.chunks_exact(3 * width)) {
            row[width..].copy_from_slice(&narrow[width..]);
        }
        (rows, qkv)
    };
    steps.into_iter().map(values).collect()
}

/// Against the CPU form, whose keys and values are those that the device stores.
pub(super) fn check<B: TestBackend>(harness: &mut Harness<'_, B>) -> Result<()> {
    let (backend, dtype) = (harness.backend, harness.backend.dtype());
    for &([layers, heads, head_size, images, prefix, max_new_tokens], size) in SHAPES {
        let shape = CacheShape { layers, heads, head_size, images, prefix, max_new_tokens };
        let length = if max_new_tokens > 64 && size < Size::Real { 67 } else { 8 };
        let name = format!("{layers} layers {heads}x{head_size}, {images} images of {prefix}, {length} steps");
        harness.case(Case { name, dtype, size, cost: Cost::default() }, |inputs| {
            let prefixes = Prefixes::new(shape, inputs);
            let rows = scenario(images, length, &mut inputs.random());
            let steps = with_values(rows, layers, heads * head_size, dtype, inputs);
            let drawn = Rc::new((prefixes, steps));
            let expected = drawn.clone();
            let all = move |(prefixes, steps): &(Prefixes, Steps)| {
                run(backend, &mut with_prefixes(backend, shape, prefixes)?, shape, steps)
            };
            Prepared::new(
                move || Ok(Output::Values(all(&drawn)?)),
                move || {
                    let (prefixes, steps) = &*expected;
                    let values = run(&Cpu, &mut with_prefixes(&Cpu, shape, prefixes)?, shape, steps)?;
                    Ok(Expected::close(values, 2 * (head_size + prefix + length), DType::F32))
                },
            )
        })?;
    }
    for &(shape, size) in STEPS {
        step(harness, shape, size)?;
    }
    Ok(())
}

/// One step of one layer after `before` tokens. It stores what it stored before, so it can be run again.
fn step<B: TestBackend>(harness: &mut Harness<'_, B>, sizes: [usize; 5], size: Size) -> Result<()> {
    let (backend, dtype) = (harness.backend, harness.backend.dtype());
    let [heads, images, rows, prefix, before] = sizes;
    let shape = CacheShape { layers: 1, heads, head_size: HEAD_SIZE, images, prefix, max_new_tokens: before + 1 };
    let cost = decode::attention_cost(shape, images * rows, before + 1, dtype.size());
    let name = format!("{images} images of {prefix} with {rows} rows x {heads}x{HEAD_SIZE} after {before}");
    harness.case(Case { name, dtype, size, cost }, |inputs| {
        let prefixes = Prefixes::new(shape, inputs);
        let first: Vec<_> = (0..images * rows).map(|row| CacheRow { image: row / rows, parent: None }).collect();
        let later: Vec<_> = (0..images * rows).map(|row| CacheRow { image: row / rows, parent: Some(row) }).collect();
        let steps = (0..=before).map(|n| if n == 0 { first.clone() } else { later.clone() });
        let mut steps = with_values(steps.collect(), 1, heads * HEAD_SIZE, dtype, inputs);
        let Some((_, last)) = steps.pop() else { return Err(Error::shape("attention_decode", "no steps")) };
        let x = backend.upload([images * rows, 3 * heads * HEAD_SIZE], &last)?;
        let mut cache = with_prefixes(backend, shape, &prefixes)?;
        run(backend, &mut cache, shape, &steps)?;
        backend.kv_append(&mut cache)?;
        let cache = RefCell::new(cache);
        let again = move || Ok(Output::Tensor(backend.attention_decode(&x, &mut cache.borrow_mut(), 0)?));
        Prepared::new(again, move || {
            let mut cache = with_prefixes(&Cpu, shape, &prefixes)?;
            run(&Cpu, &mut cache, shape, &steps)?;
            Cpu.kv_append(&mut cache)?;
            let x = Cpu.upload([images * rows, 3 * heads * HEAD_SIZE], &last)?;
            let y = Cpu.download(&Cpu.attention_decode(&x, &mut cache, 0)?)?;
            Ok(Expected::close(y, 2 * (HEAD_SIZE + prefix + before + 1), DType::F32))
        })
    })
}
