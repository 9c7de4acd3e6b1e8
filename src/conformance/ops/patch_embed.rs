//! Cases of patch_embed.

use super::host;
use crate::Result;
use crate::backend::cpu::Cpu;
use crate::backend::parameters::ALIGNMENT;
use crate::backend::patch_embed;
use crate::backend::prelude::*;
use crate::backend::{Parameter, PatchParameters};
use crate::conformance::{Case, Expected, Harness, Inputs, Output, Prepared, Size, TestBackend, round_bf16, stored};
use crate::cost::Cost;
use crate::tensor::DType;

/// Images and how they are cut.
#[derive(Clone, Copy)]
struct Shape {
    batch: usize,
    side: usize,
    patch: usize,
    channels: usize,
}

/// Batch, side, patch, channels.
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
struct Values {
    pixels: Vec<f32>,
    class: Vec<f32>,
    weight: Vec<f32>,
    position: Vec<f32>,
}

/// The same on a backend.
struct Loaded<B: Backend> {
    pixels: B::Tensor,
    class: B::Tensor,
    weight: B::Matrix,
    position: B::Matrix,
}

impl<B: Backend> Loaded<B> {
    fn run(&self, backend: &B, patch: usize) -> Result<B::Tensor> {
        backend.patch_embed(&self.pixels, &self.weight, &self.class, &self.position, patch)
    }
}

impl Shape {
    fn tokens(self) -> usize {
        (self.side / self.patch).pow(2) + 1
    }

    fn depth(self) -> usize {
        3 * self.patch * self.patch
    }

    fn load<B: Backend>(self, backend: &B, values: &Values) -> Result<Loaded<B>> {
        let matrix = |rows: usize, values: &[f32]| backend.matrix(host(&[rows, values.len() / rows], values.to_vec())?);
        Ok(Loaded {
            pixels: backend.upload([self.batch, 3 * self.side * self.side], &values.pixels)?,
            class: backend.upload([1, self.channels], &values.class)?,
            weight: matrix(self.channels, &values.weight)?,
            position: matrix(self.tokens(), &values.position)?,
        })
    }

    fn on_cpu(self, values: &Values) -> Result<Vec<f32>> {
        Cpu.download(&self.load(&Cpu, values)?.run(&Cpu, self.patch)?)
    }

    fn case(self, what: &str, dtype: DType, size: Size) -> Case {
        let Shape { batch, side, patch, channels } = self;
        let cost = patch_embed::cost([batch, self.tokens(), channels, patch], dtype.size());
        let cost = if what.is_empty() { cost } else { Cost::default() };
        let name = format!("{batch} of {side}x{side} in {patch}x{patch}, {channels} channels{what}");
        Case { name, dtype, size, cost }
    }

    fn values(self, inputs: &Inputs, dtype: DType) -> Values {
        let Shape { batch, side, channels, .. } = self;
        Values {
            pixels: inputs.values(batch * 3 * side * side),
            class: inputs.values(channels),
            weight: stored(dtype, inputs.values(channels * self.depth())),
            position: stored(dtype, inputs.values(self.tokens() * channels)),
        }
    }

    /// Sparse whole numbers, so that every sum is one that bf16 holds.
    fn whole(self, inputs: &Inputs) -> Values {
        let Shape { batch, side, channels, .. } = self;
        let few = |len: usize, one_in: usize, max: usize| -> Vec<f32> {
            let value = |(chosen, n): (usize, usize)| if chosen == 0 { n as f32 - max as f32 } else { 0.0 };
            inputs.below(len, one_in).into_iter().zip(inputs.below(len, 2 * max + 1)).map(value).collect()
        };
        Values {
            pixels: few(batch * 3 * side * side, 2, 3),
            class: few(channels, 1, 8),
            weight: few(channels * self.depth(), 2 + self.depth() / 16, 3),
            position: few(self.tokens() * channels, 1, 8),
        }
    }
}

/// Against the CPU form; with whole numbers whose sums bf16 holds, to the last bit; and each image alone.
pub(super) fn check<B: TestBackend>(harness: &mut Harness<'_, B>) -> Result<()> {
    let (backend, dtype) = (harness.backend, harness.backend.dtype());
    for &([batch, side, patch, channels], size) in SHAPES {
        let shape = Shape { batch, side, patch, channels };
        harness.case(shape.case("", dtype, size), |inputs| {
            let values = shape.values(inputs, dtype);
            let on_device = shape.load(backend, &values)?;
            Prepared::new(
                move || Ok(Output::Tensor(on_device.run(backend, patch)?)),
                move || {
                    let exact = shape.on_cpu(&values)?;
                    // Tensor cores take pixels as bf16.
                    let rounded = match dtype == DType::BF16 && patch % 2 == 0 {
                        true => {
                            let pixels = values.pixels.iter().map(|&v| round_bf16(v)).collect();
                            shape.on_cpu(&Values { pixels, ..values })?
                        }
                        false => Vec::new(),
                    };
                    Ok(Expected::Close { values: exact, rounded, terms: shape.depth(), stored: dtype })
                },
            )
        })?;
        if size == Size::Real {
            continue;
        }
        harness.case(shape.case(", whole numbers", dtype, size), |inputs| {
            let values = shape.whole(inputs);
            let on_device = shape.load(backend, &values)?;
            Prepared::new(
                move || Ok(Output::Tensor(on_device.run(backend, patch)?)),
                move || Ok(Expected::Exact(shape.on_cpu(&values)?)),
            )
        })?;
        alone(harness, shape, size)?;
    }
    SHAPES.iter().try_for_each(|&([batch, side, patch, channels], size)| {
        backward(harness, Shape { batch, side, patch, channels }, size)
    })
}

/// The gradients of all parameters, added to others.
fn backward<B: TestBackend>(harness: &mut Harness<'_, B>, shape: Shape, size: Size) -> Result<()> {
    let (backend, dtype) = (harness.backend, harness.backend.dtype());
    let Shape { batch, side, patch, channels } = shape;
    let mut len = 0;
    let mut parameter = |rows: usize, columns: usize| {
        let start = len;
        len += (rows * columns).next_multiple_of(ALIGNMENT);
        Parameter { start, rows, columns }
    };
    let at = PatchParameters {
        weight: parameter(channels, shape.depth()),
        class: parameter(1, channels),
        position: parameter(shape.tokens(), channels),
    };
    harness.case(shape.case(", backward", dtype, size), |inputs| {
        let pixels = stored(dtype, inputs.values(batch * 3 * side * side));
        let dy = stored(dtype, inputs.values(batch * shape.tokens() * channels));
        let before = inputs.values(len);
        let shapes = [[batch, 3 * side * side], [batch * shape.tokens(), channels]];
        let on_device = (backend.upload(shapes[0], &pixels)?, backend.sequence(shapes[1], &dy)?);
        let start = before.clone();
        Prepared::new(
            move || {
                let mut gradients = backend.gradients(len)?;
                backend.write_gradients(&mut gradients, &start)?;
                backend.patch_embed_backward(&on_device.1, &on_device.0, patch, &mut gradients, at)?;
                Ok(Output::Values(backend.read_gradients(&gradients)?))
            },
            move || {
                let (pixels, dy) = (Cpu.upload(shapes[0], &pixels)?, Cpu.upload(shapes[1], &dy)?);
                let mut gradients = before;
                Cpu.patch_embed_backward(&dy, &pixels, patch, &mut gradients, at)?;
                Ok(Expected::close(gradients, batch * shape.tokens(), DType::F32))
            },
        )
    })
}

/// The last image without its neighbours, and so perhaps in other tiles: the same bits.
fn alone<B: TestBackend>(harness: &mut Harness<'_, B>, shape: Shape, size: Size) -> Result<()> {
    let (backend, dtype) = (harness.backend, harness.backend.dtype());
    let Some(before) = shape.batch.checked_sub(1) else { return Ok(()) };
    harness.case(shape.case(", the last alone", dtype, size), |inputs| {
        let values = shape.values(inputs, dtype);
        let together = backend.download(&shape.load(backend, &values)?.run(backend, shape.patch)?)?;
        let pixels = values.pixels[before * 3 * shape.side * shape.side..].to_vec();
        let alone = Shape { batch: 1, ..shape }.load(backend, &Values { pixels, ..values })?;
        let expected = together[before * shape.tokens() * shape.channels..].to_vec();
        Prepared::new(
            move || Ok(Output::Tensor(alone.run(backend, shape.patch)?)),
            move || Ok(Expected::Exact(expected)),
        )
    })
}
