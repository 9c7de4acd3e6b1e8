//! Cases of patch_embed.

use crate::Result;
use crate::backend::cpu::Cpu;
use crate::backend::cuda::Cuda;
use crate::backend::prelude::*;
use crate::conformance::{Case, Harness, Size, round_bf16};
use crate::cost::Cost;
use crate::random::Random;
use crate::tensor::HostTensor;

/// Pictures and how they are cut.
#[derive(Clone, Copy)]
struct Shape {
    batch: usize,
    side: usize,
    patch: usize,
    channels: usize,
}

const SHAPES: &[([usize; 4], Size)] = &[
    ([1, 1, 1, 1], Size::Small),
    ([2, 6, 3, 5], Size::Small),
    ([2, 4, 2, 6], Size::Small),
    ([0, 4, 2, 6], Size::Small),
    ([1, 28, 14, 70], Size::Ragged),
    ([3, 40, 8, 33], Size::Ragged),
    ([2, 35, 5, 20], Size::Ragged),
    ([65, 10, 10, 9], Size::Ragged),
    ([9, 32, 4, 258], Size::Ragged),
    ([4, 60, 10, 130], Size::Ragged),
    ([1, 224, 14, 1024], Size::Real),
    ([1, 224, 16, 768], Size::Real),
    ([8, 224, 14, 1024], Size::Real),
    ([64, 224, 14, 1024], Size::Real),
];

/// Values of one case.
#[derive(Clone)]
struct Inputs {
    pixels: Vec<f32>,
    class: Vec<f32>,
    weight: Vec<f32>,
    position: Vec<f32>,
}

impl Shape {
    fn tokens(self) -> usize {
        (self.side / self.patch).pow(2) + 1
    }

    fn depth(self) -> usize {
        3 * self.patch * self.patch
    }

    fn run<B: Backend>(self, backend: &B, x: &Inputs) -> Result<impl Fn(&B) -> Result<B::Tensor> + use<B>> {
        let Shape { batch, side, patch, channels } = self;
        let matrix = |rows: usize, values: &[f32]| {
            let host = HostTensor::from_f32(&[rows, values.len() / rows.max(1)], values.to_vec());
            backend.matrix(host.ok_or_else(|| crate::Error::shape("patch_embed", "no such weights"))?)
        };
        let (weight, position) = (matrix(channels, &x.weight)?, matrix(self.tokens(), &x.position)?);
        let pixels = backend.upload([batch, 3 * side * side], &x.pixels)?;
        let class = backend.upload([1, channels], &x.class)?;
        Ok(move |backend: &B| backend.patch_embed(&pixels, &weight, &class, &position, patch))
    }

    fn on_cpu(self, x: &Inputs) -> Result<Vec<f32>> {
        Cpu.download(&self.run(&Cpu, x)?(&Cpu)?)
    }

    fn case(self, what: &str, size: Size, element: usize) -> Case {
        let Shape { batch, side, patch, channels } = self;
        let (tokens, depth) = (self.tokens(), self.depth());
        Case {
            name: format!("{batch} of {side}x{side} in {patch}x{patch}, {channels} channels{what}"),
            size,
            length: depth,
            expected: Vec::new(),
            rounded: Vec::new(),
            exact: false,
            cost: Cost {
                flops: 2.0 * (batch * (tokens - 1) * channels * depth) as f64,
                bytes: (batch * 12 * side * side + element * channels * (depth + (batch + 1) * tokens)) as f64,
            },
        }
    }
}

/// Against the CPU form; with whole numbers whose sums bf16 holds, to the last bit; and each picture alone.
pub(in crate::conformance) fn check(harness: &mut Harness<'_>) -> Result<()> {
    let (cuda, max) = (harness.cuda, harness.max);
    let element = cuda.dtype().size();
    for &([batch, side, patch, channels], size) in SHAPES.iter().filter(|shape| shape.1 <= max) {
        let shape = Shape { batch, side, patch, channels };
        let mut random = Random::new((side * 31 + channels) as u64);
        let (depth, tokens) = (shape.depth(), shape.tokens());
        let x = Inputs {
            pixels: random.values(batch * 3 * side * side),
            class: random.values(channels),
            weight: harness.stored(random.values(channels * depth)),
            position: harness.stored(random.values(tokens * channels)),
        };
        let expected = shape.on_cpu(&x)?;
        // Tensor cores take pixels as bf16.
        let rounded = match harness.is_bf16() && patch % 2 == 0 {
            true => {
                let pixels = x.pixels.iter().map(|&v| round_bf16(v)).collect();
                shape.on_cpu(&Inputs { pixels, ..x.clone() })?
            }
            false => Vec::new(),
        };
        let run = shape.run(cuda, &x)?;
        harness.case(Case { expected, rounded, ..shape.case("", size, element) }, false, &run)?;
        if size != Size::Real {
            exactly(harness, shape, size, &mut random)?;
            alone(harness, shape, size, &x)?;
        }
    }
    Ok(())
}

/// Sparse whole numbers, so that every sum is one that bf16 holds.
fn exactly(harness: &mut Harness<'_>, shape: Shape, size: Size, random: &mut Random) -> Result<()> {
    let Shape { batch, side, channels, .. } = shape;
    let mut few = |len: usize, one_in: usize, max: usize| -> Vec<f32> {
        (0..len)
            .map(|_| match random.below(one_in) {
                0 => random.below(2 * max + 1) as f32 - max as f32,
                _ => 0.0,
            })
            .collect()
    };
    let x = Inputs {
        pixels: few(batch * 3 * side * side, 2, 3),
        class: few(channels, 1, 8),
        weight: few(channels * shape.depth(), 2 + shape.depth() / 16, 3),
        position: few(shape.tokens() * channels, 1, 8),
    };
    let expected = shape.on_cpu(&x)?;
    let run = shape.run(harness.cuda, &x)?;
    harness.case(Case { expected, exact: true, ..shape.case(", whole numbers", size, 0) }, false, &run)
}

/// The last picture without its neighbours, and so perhaps in other tiles: the same bits.
fn alone(harness: &mut Harness<'_>, shape: Shape, size: Size, x: &Inputs) -> Result<()> {
    let Some(before) = shape.batch.checked_sub(1) else { return Ok(()) };
    let cuda: &Cuda = harness.cuda;
    let together = cuda.download(&shape.run(cuda, x)?(cuda)?)?;
    let one = Shape { batch: 1, ..shape };
    let last = Inputs { pixels: x.pixels[before * 3 * shape.side * shape.side..].to_vec(), ..x.clone() };
    let expected = together[before * shape.tokens() * shape.channels..].to_vec();
    let run = one.run(cuda, &last)?;
    harness.case(Case { expected, exact: true, ..one.case(", the last alone", size, 0) }, false, &run)
}
