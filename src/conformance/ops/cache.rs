//! Cases of the key-value cache: steps of several rows that fork, die, begin anew and share a picture's prefix.

use crate::backend::cpu::Cpu;
use crate::backend::prelude::*;
use crate::backend::{CacheRow, CacheShape, GraphId, LinearWeights};
use crate::conformance::{Case, Harness, Size, round_bf16};
use crate::cost::Cost;
use crate::random::Random;
use crate::tensor::HostTensor;
use crate::{Error, Result};

/// Layers, heads, head size, pictures, prefix, most text.
const SHAPES: &[([usize; 6], Size)] = &[
    ([1, 1, 1, 1, 1, 8], Size::Small),
    ([1, 2, 5, 2, 3, 8], Size::Small),
    ([2, 2, 64, 2, 70, 8], Size::Ragged),
    ([1, 3, 64, 1, 64, 80], Size::Ragged),
    ([1, 1, 40, 3, 65, 70], Size::Ragged),
    ([6, 12, 64, 1, 257, 128], Size::Real),
    ([6, 12, 64, 8, 257, 64], Size::Real),
];

/// Columns of the prefixes before they become queries, keys and values.
const DEPTH: usize = 8;

/// Prefixes x (layers * images * prefix, DEPTH), and the layer (3*H*D, DEPTH) that makes queries, keys and values of them:
/// of such numbers that those are exact in bf16, and so the same wherever they are made.
struct Prefixes {
    x: Vec<f32>,
    weight: Vec<f32>,
}

impl Prefixes {
    fn new(shape: CacheShape, random: &mut Random) -> Prefixes {
        let mut quarters = |count| (0..count).map(|_| (random.below(5) as f32 - 2.0) / 2.0).collect();
        Prefixes {
            x: quarters(shape.layers * shape.images * shape.prefix * DEPTH),
            weight: quarters(3 * shape.heads * shape.head_size * DEPTH),
        }
    }
}

/// Every step's output for every row and layer, one after the other.
fn run<B: Backend>(
    backend: &B,
    shape: CacheShape,
    prefix: &Prefixes,
    steps: &[(Vec<CacheRow>, Vec<f32>)],
) -> Result<Vec<f32>> {
    let width = shape.heads * shape.head_size;
    let mut cache = backend.kv_cache(shape)?;
    let weight = HostTensor::from_f32(&[3 * width, DEPTH], prefix.weight.clone());
    let weight = weight.ok_or_else(|| Error::shape("cache", "no such weights"))?;
    let qkv =
        LinearWeights { weight: backend.matrix(weight)?, bias: backend.upload([1, 3 * width], &vec![0.0; 3 * width])? };
    for layer in 0..shape.layers {
        // The last picture first, the others after it.
        let last = shape.images - 1;
        for pictures in [vec![last], (0..last).collect()] {
            let rows = pictures.len() * shape.prefix;
            let first = (layer * shape.images + pictures.first().unwrap_or(&0)) * shape.prefix;
            let x = backend.upload([rows, DEPTH], &prefix.x[first * DEPTH..][..rows * DEPTH])?;
            backend.prefill_qkv(&mut cache, &pictures, layer, &x, &qkv)?;
        }
    }
    let mut out = Vec::new();
    let regions: Vec<GraphId> = (0..shape.layers).map(|_| GraphId::new()).collect();
    for (position, (rows, qkv)) in steps.iter().enumerate() {
        // Rows that go on as they are need no call.
        if position == 0
            || rows.iter().enumerate().any(|(r, row)| row.parent != Some(r))
            || rows.len() != steps[position - 1].0.len()
        {
            backend.kv_reorder(&mut cache, rows)?;
        }
        backend.kv_append(&mut cache)?;
        for (layer, region) in regions.iter().enumerate() {
            let part = &qkv[layer * rows.len() * 3 * width..][..rows.len() * 3 * width];
            let x = backend.upload([rows.len(), 3 * width], part)?;
            let y = backend.captured_step(region, &mut cache, &x, &|backend, cache, x| {
                backend.attention_decode(x, cache, layer)
            })?;
            out.extend(backend.download(&y)?);
        }
    }
    Ok(out)
}

/// One row a picture, then a fork into three, then beams that change places and die; and texts that end, so that the
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
            // One picture's rows become one that has just begun, in the midst of longer ones.
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

/// How many rows all steps have together, and how many text tokens those see.
fn seen(steps: &[(Vec<CacheRow>, Vec<f32>)]) -> (usize, usize) {
    let (mut lengths, mut rows, mut text) = (Vec::new(), 0, 0);
    for (step, _) in steps {
        lengths = step.iter().map(|row| row.parent.map_or(0, |parent: usize| lengths[parent]) + 1).collect::<Vec<_>>();
        rows += lengths.len();
        text += lengths.iter().sum::<usize>();
    }
    (rows, text)
}

/// Against the CPU form, whose keys and values are those that the device stores.
pub(in crate::conformance) fn check(harness: &mut Harness<'_>) -> Result<()> {
    let max = harness.max;
    for &([layers, heads, head_size, images, prefix, max_new_tokens], size) in
        SHAPES.iter().filter(|shape| shape.1 <= max)
    {
        let mut random = Random::new((heads * 100 + prefix) as u64);
        let shape = CacheShape { layers, heads, head_size, images, prefix, max_new_tokens };
        let width = heads * head_size;
        let length = if max_new_tokens > 64 && size < Size::Real { 67 } else { 8 };
        let bf16 = harness.is_bf16();
        let stored = |v: f32| if bf16 { round_bf16(v) } else { v };
        let image = Prefixes::new(shape, &mut random);
        let steps: Vec<(Vec<CacheRow>, Vec<f32>)> = scenario(images, length, &mut random)
            .into_iter()
            .map(|rows| {
                let mut qkv = random.values(layers * rows.len() * 3 * width);
                // Queries stay f32; keys and values are compared as they are stored.
                for row in qkv.chunks_exact_mut(3 * width) {
                    row[width..].iter_mut().for_each(|v| *v = stored(*v));
                }
                (rows, qkv)
            })
            .collect();
        let expected = run(&Cpu, shape, &image, &steps)?;
        let (rows, text) = seen(&steps);
        let element = harness.cuda.dtype().size() as f64;
        let case = Case {
            name: format!("{layers} layers {heads}x{head_size}, {images} pictures of {prefix}, {length} steps"),
            size,
            length: 2 * (head_size + prefix + length),
            expected,
            rounded: Vec::new(),
            exact: false,
            cost: Cost {
                flops: 4.0 * (layers * (rows * prefix + text) * width) as f64,
                bytes: 2.0 * (layers * (length * images * prefix + text) * width) as f64 * element,
            },
        };
        harness.case(case, true, &|cuda| {
            let out = run(cuda, shape, &image, &steps)?;
            cuda.upload([1, out.len()], &out)
        })?;
    }
    Ok(())
}
