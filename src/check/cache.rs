//! Cases of the key-value cache: steps of several rows that fork, die and share a picture's prefix.

use super::{Case, Checker, Random, Size, Work, round_bf16};
use crate::Result;
use crate::backend::cpu::Cpu;
use crate::backend::{Backend, CacheRow, CacheShape};

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

/// Every step's output for every row and layer, one after the other.
fn run<B: Backend>(
    backend: &B,
    shape: CacheShape,
    prefix: &[f32],
    steps: &[(Vec<CacheRow>, Vec<f32>)],
) -> Result<Vec<f32>> {
    let width = shape.heads * shape.head_size;
    let mut cache = backend.cache(shape)?;
    for layer in 0..shape.layers {
        let rows = shape.images * shape.prefix;
        let part = &prefix[layer * rows * 3 * width..][..rows * 3 * width];
        backend.cache_prefix(&mut cache, layer, &backend.upload([rows, 3 * width], part)?)?;
    }
    let mut out = Vec::new();
    for (position, (rows, qkv)) in steps.iter().enumerate() {
        // Rows that go on as they are need no call.
        if position == 0
            || rows.iter().enumerate().any(|(r, row)| row.parent != Some(r))
            || rows.len() != steps[position - 1].0.len()
        {
            backend.cache_rows(&mut cache, rows)?;
        }
        for layer in 0..shape.layers {
            let part = &qkv[layer * rows.len() * 3 * width..][..rows.len() * 3 * width];
            let x = backend.upload([rows.len(), 3 * width], part)?;
            out.extend(backend.download(&backend.attention_cached(&x, &mut cache, layer, position)?)?);
        }
    }
    Ok(out)
}

/// One row a picture, then a fork into three, then beams that change places and die.
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
            _ => before.iter().enumerate().map(|(r, row)| CacheRow { image: row.image, parent: Some(r) }).collect(),
        };
        steps.push(rows);
    }
    steps
}

/// Against the CPU form, whose keys and values are those that the device stores.
pub(super) fn check(checker: &mut Checker<'_>) -> Result<()> {
    let most = checker.most;
    for &([layers, heads, head_size, images, prefix, max_text], size) in SHAPES.iter().filter(|shape| shape.1 <= most) {
        let mut random = Random::new((heads * 100 + prefix) as u64);
        let shape = CacheShape { layers, heads, head_size, images, prefix, max_text };
        let width = heads * head_size;
        let length = if max_text > 64 && size < Size::Real { 67 } else { 8 };
        let bf16 = checker.is_bf16();
        let stored = |v: f32| if bf16 { round_bf16(v) } else { v };
        let image = checker.stored(random.values(layers * images * prefix * 3 * width));
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
        let visible: usize = (0..length).map(|position| prefix + position + 1).sum();
        let element = checker.cuda.dtype().size() as f64;
        let case = Case {
            name: format!("{layers} layers {heads}x{head_size}, {images} pictures of {prefix}, {length} steps"),
            size,
            length: 2 * (head_size + prefix + length),
            expected,
            rounded: Vec::new(),
            exact: false,
            work: Work {
                flops: 4.0 * (layers * images * visible * width) as f64,
                bytes: 2.0 * (layers * images * visible * width) as f64 * element,
            },
        };
        checker.case(case, true, &|cuda| {
            let out = run(cuda, shape, &image, &steps)?;
            cuda.upload([1, out.len()], &out)
        })?;
    }
    Ok(())
}
