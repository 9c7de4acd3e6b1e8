//! Cases of patch_embed.

use super::host;
use crate::Result;
use crate::backend::cpu::Cpu;
use crate::backend::parameters::ALIGNMENT;
use crate::backend::patch_embed;
use crate::backend::prelude::*;
use crate::backend::{Parameter, PatchParameters, PatchShape};
use crate::conformance::{Case, Expected, Harness, Inputs, Output, Prepared, Size, TestBackend, round_bf16, stored};
use crate::cost::Cost;
use crate::tensor::DType;

/// Images and how they are cut.
#[derive(Clone, Copy)]
struct Shape {
    batch: usize,
    side: usize,
    cut: PatchShape,
    channels: usize,
    classes: usize,
}

/// Patches of RGB images after a class embedding: batch, side, patch, channels.
const RGB: &[([usize; 4], Size)] = &[
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

/// Other windows: batch, side, inputs, patch, stride, channels, class embeddings. The last two are those of image units: pixels
/// without a class embedding, and code vectors in windows that overlap.
const WINDOWS: &[([usize; 7], Size)] = &[
    ([1, 1, 1, 1, 1, 1, 0], Size::Small),
    ([2, 5, 2, 3, 1, 5, 1], Size::Small),
    ([2, 6, 4, 4, 2, 8, 0], Size::Small),
    ([0, 6, 1, 2, 2, 4, 0], Size::Small),
    ([3, 30, 32, 4, 2, 40, 1], Size::Ragged),
    ([2, 11, 3, 4, 7, 33, 0], Size::Ragged),
    ([2, 22, 5, 6, 4, 130, 1], Size::Ragged),
    ([3, 64, 3, 8, 8, 72, 0], Size::Ragged),
    ([8, 256, 3, 8, 8, 512, 0], Size::Real),
    ([8, 30, 32, 4, 2, 768, 1], Size::Real),
];

/// All of them.
fn shapes() -> impl Iterator<Item = (Shape, Size)> {
    let rgb = RGB.iter().map(|&([batch, side, patch, channels], size)| {
        (Shape { batch, side, cut: PatchShape::rgb(patch), channels, classes: 1 }, size)
    });
    let windows = WINDOWS.iter().map(|&([batch, side, inputs, patch, stride, channels, classes], size)| {
        (Shape { batch, side, cut: PatchShape { inputs, patch, stride }, channels, classes }, size)
    });
    rgb.chain(windows)
}

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
    class: Option<B::Tensor>,
    weight: B::Matrix,
    position: B::Matrix,
    cut: PatchShape,
}

impl<B: Backend> Loaded<B> {
    fn run(&self, backend: &B) -> Result<B::Tensor> {
        backend.patch_embed(&self.pixels, &self.weight, self.class.as_ref(), &self.position, self.cut)
    }
}

impl Shape {
    fn windows(self) -> usize {
        self.cut.grid(self.side).unwrap_or(0).pow(2)
    }

    fn tokens(self) -> usize {
        self.windows() + self.classes
    }

    fn depth(self) -> usize {
        self.cut.depth()
    }

    /// Whether tensor cores take it.
    fn in_pairs(self) -> bool {
        [self.side, self.cut.patch, self.cut.stride].iter().all(|size| size % 2 == 0)
    }

    /// Values of an image.
    fn image(self) -> usize {
        self.cut.inputs * self.side * self.side
    }

    fn load<B: Backend>(self, backend: &B, values: &Values) -> Result<Loaded<B>> {
        let matrix = |rows: usize, values: &[f32]| backend.matrix(host(&[rows, values.len() / rows], values.to_vec())?);
        Ok(Loaded {
            pixels: backend.upload([self.batch, self.image()], &values.pixels)?,
            class: (self.classes == 1).then(|| backend.upload([1, self.channels], &values.class)).transpose()?,
            weight: matrix(self.channels, &values.weight)?,
            position: matrix(self.tokens(), &values.position)?,
            cut: self.cut,
        })
    }

    fn on_cpu(self, values: &Values) -> Result<Vec<f32>> {
        Cpu.download(&self.load(&Cpu, values)?.run(&Cpu)?)
    }

    fn case(self, what: &str, dtype: DType, size: Size) -> Case {
        let Shape { batch, side, cut, channels, classes } = self;
        let PatchShape { inputs, patch, stride } = cut;
        let cost = patch_embed::cost([batch, self.windows(), classes, channels], cut, dtype.size());
        let cost = if what.is_empty() { cost } else { Cost::default() };
        let plain = (cut, classes) == (PatchShape::rgb(patch), 1);
        let windows = if plain { String::new() } else { format!(" every {stride} of {inputs}, {classes} classes") };
        let name = format!("{batch} of {side}x{side} in {patch}x{patch}{windows}, {channels} channels{what}");
        Case { name, dtype, size, cost }
    }

    fn values(self, inputs: &Inputs, dtype: DType) -> Values {
        let Shape { batch, channels, .. } = self;
        Values {
            pixels: inputs.values(batch * self.image()),
            class: inputs.values(channels),
            weight: stored(dtype, inputs.values(channels * self.depth())),
            position: stored(dtype, inputs.values(self.tokens() * channels)),
        }
    }

    /// Sparse whole numbers, so that every sum is one that bf16 holds.
    fn whole(self, inputs: &Inputs) -> Values {
        let Shape { batch, channels, .. } = self;
        let few = |len: usize, one_in: usize, max: usize| -> Vec<f32> {
            let value = |(chosen, n): (usize, usize)| if chosen == 0 { n as f32 - max as f32 } else { 0.0 };
            inputs.below(len, one_in).into_iter().zip(inputs.below(len, 2 * max + 1)).map(value).collect()
        };
        Values {
            pixels: few(batch * self.image(), 2, 3),
            class: few(channels, 1, 8),
            weight: few(channels * self.depth(), 2 + self.depth() / 16, 3),
            position: few(self.tokens() * channels, 1, 8),
        }
    }
}

/// Against the CPU form; with whole numbers whose sums bf16 holds, to the last bit; and each image alone.
pub(super) fn check<B: TestBackend>(harness: &mut Harness<'_, B>) -> Result<()> {
    let (backend, dtype) = (harness.backend, harness.backend.dtype());
    for (shape, size) in shapes() {
        harness.case(shape.case("", dtype, size), |inputs| {
            let values = shape.values(inputs, dtype);
            let on_device = shape.load(backend, &values)?;
            Prepared::new(
                move || Ok(Output::Tensor(on_device.run(backend)?)),
                move || {
                    let exact = shape.on_cpu(&values)?;
                    // Tensor cores take pixels as bf16.
                    let rounded = match dtype == DType::BF16 && shape.in_pairs() {
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
                move || Ok(Output::Tensor(on_device.run(backend)?)),
                move || Ok(Expected::Exact(shape.on_cpu(&values)?)),
            )
        })?;
        alone(harness, shape, size)?;
    }
    let with_class = |(shape, _): &(Shape, Size)| shape.classes == 1;
    shapes().filter(with_class).try_for_each(|(shape, size)| backward(harness, shape, size))
}

/// The gradients of all parameters, added to others.
fn backward<B: TestBackend>(harness: &mut Harness<'_, B>, shape: Shape, size: Size) -> Result<()> {
    let (backend, dtype) = (harness.backend, harness.backend.dtype());
    let Shape { batch, cut, channels, .. } = shape;
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
        let pixels = stored(dtype, inputs.values(batch * shape.image()));
        let dy = stored(dtype, inputs.values(batch * shape.tokens() * channels));
        let before = inputs.values(len);
        let shapes = [[batch, shape.image()], [batch * shape.tokens(), channels]];
        let on_device = (backend.upload(shapes[0], &pixels)?, backend.sequence(shapes[1], &dy)?);
        let start = before.clone();
        Prepared::new(
            move || {
                let mut gradients = backend.gradients(len)?;
                backend.write_gradients(&mut gradients, &start)?;
                backend.patch_embed_backward(&on_device.1, &on_device.0, cut, &mut gradients, at)?;
                Ok(Output::Values(backend.read_gradients(&gradients)?))
            },
            move || {
                let (pixels, dy) = (Cpu.upload(shapes[0], &pixels)?, Cpu.upload(shapes[1], &dy)?);
                let mut gradients = before;
                Cpu.patch_embed_backward(&dy, &pixels, cut, &mut gradients, at)?;
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
        let together = backend.download(&shape.load(backend, &values)?.run(backend)?)?;
        let pixels = values.pixels[before * shape.image()..].to_vec();
        let alone = Shape { batch: 1, ..shape }.load(backend, &Values { pixels, ..values })?;
        let expected = together[before * shape.tokens() * shape.channels..].to_vec();
        Prepared::new(move || Ok(Output::Tensor(alone.run(backend)?)), move || Ok(Expected::Exact(expected)))
    })
}
