//! Cases of linear and linear_decode; `backward` has those of training.

mod backward;

use std::cell::{Cell, OnceCell};

use super::host;
use crate::backend::cpu::Cpu;
use crate::backend::linear::{self, Activation, LinearWeights};
use crate::backend::prelude::*;
use crate::conformance::{
    Case, Deviation, Expected, Harness, Inputs, Output, Prepared, Size, TestBackend, largest, stored, tolerance,
};
use crate::cost::Cost;
use crate::tensor::{DType, HostTensor, Quantized, int8};
use crate::{Error, Result};

/// A product of x (rows, depth) and weights (columns, depth).
#[derive(Clone, Copy)]
struct Shape {
    rows: usize,
    depth: usize,
    columns: usize,
    size: Size,
}

const fn shape(rows: usize, depth: usize, columns: usize, size: Size) -> Shape {
    Shape { rows, depth, columns, size }
}

/// Every tile shape takes these: edges in rows, columns and depth, more tiles of depth than stages.
const TILED: &[Shape] = &[
    shape(1, 8, 1, Size::Small),
    shape(3, 24, 40, Size::Small),
    shape(17, 72, 72, Size::Ragged),
    shape(65, 200, 100, Size::Ragged),
    shape(129, 328, 136, Size::Ragged),
    shape(130, 64, 264, Size::Ragged),
];

/// Chosen tiles: rows that no vector begins, minima, and the products of the models (vision, decoder, vocabulary).
const CHOSEN: &[Shape] = &[
    shape(1, 1, 1, Size::Small),
    shape(2, 3, 5, Size::Small),
    shape(9, 33, 7, Size::Ragged),
    shape(65, 99, 67, Size::Ragged),
    shape(40, 96, 203, Size::Ragged),
    shape(257, 64, 192, Size::Ragged),
    shape(257, 1024, 1024, Size::Real),
    shape(257, 1024, 3072, Size::Real),
    shape(257, 1024, 4096, Size::Real),
    shape(257, 4096, 1024, Size::Real),
    shape(197, 768, 2304, Size::Real),
    shape(197, 768, 3072, Size::Real),
    shape(197, 3072, 768, Size::Real),
    shape(16 * 257, 1024, 4096, Size::Real),
    shape(64 * 257, 1024, 3072, Size::Real),
    shape(4096, 4096, 4096, Size::Real),
    shape(1000, 768, 203, Size::Real),
];

/// Decode steps: (depth, columns). Sums of one chunk, of less, with ragged last chunks, shared by two blocks and by three.
const STEPS: &[(usize, usize, Size)] = &[
    (1, 1, Size::Small),
    (24, 5, Size::Small),
    (33, 7, Size::Ragged),
    (72, 40, Size::Ragged),
    (328, 96, Size::Ragged),
    (1032, 33, Size::Ragged),
    (1029, 9, Size::Ragged),
    (2200, 70, Size::Ragged),
    (768, 2304, Size::Real),
    (768, 768, Size::Real),
    (768, 3072, Size::Real),
    (3072, 768, Size::Real),
    (768, 203, Size::Real),
    (4096, 4096, Size::Real),
];

/// Rows of decode steps: around every number of rows that a block takes.
const STEP_ROWS: [usize; 10] = [1, 2, 3, 7, 8, 9, 16, 33, 64, 65];

/// All epilogues.
const EPILOGUES: [(Activation, bool); 10] = [
    (Activation::None, false),
    (Activation::None, true),
    (Activation::Gelu, false),
    (Activation::Gelu, true),
    (Activation::QuickGelu, false),
    (Activation::QuickGelu, true),
    (Activation::Tanh, false),
    (Activation::Tanh, true),
    (Activation::Relu6, false),
    (Activation::Relu6, true),
];

/// Rows of decode steps that are timed.
const TIMED_ROWS: [usize; 3] = [1, 8, 64];
/// Products of more operations are computed with one epilogue only.
const LARGE: f64 = 2e10;

/// Kind of a product and of its values.
#[derive(Clone, Copy)]
struct Kind {
    /// Decode steps keep f32 rows.
    decode: bool,
    /// Type of the weights.
    dtype: DType,
    activation: Activation,
    residual: bool,
    /// Size of the values of x; 0 for whole numbers, whose results are exact.
    scale: f32,
}

impl Kind {
    fn is_whole(self) -> bool {
        self.scale == 0.0
    }

    /// Activations as the backend holds them.
    fn held(self, values: Vec<f32>) -> Vec<f32> {
        stored(self.activations(), values)
    }

    fn activations(self) -> DType {
        if self.decode { DType::F32 } else { self.dtype }
    }

    fn values(self, inputs: &Inputs, len: usize) -> Vec<f32> {
        if self.is_whole() { inputs.whole(len) } else { inputs.scaled(len, self.scale) }
    }
}

fn cost(shape: Shape, kind: Kind) -> Cost {
    let Shape { rows, depth, columns, .. } = shape;
    linear::cost([rows, columns, depth], usize::from(kind.residual), kind.activations().size(), kind.dtype.size())
}

/// Weights and biases of a layer, drawn when the first case needs them and then used by others.
struct Layer<B: Backend> {
    /// As the backend holds them, in f32.
    weight: HostTensor,
    bias: Vec<f32>,
    /// Copies that take turns.
    on_device: Vec<LinearWeights<B>>,
    turn: Cell<usize>,
}

impl<B: TestBackend> Layer<B> {
    fn new(backend: &B, shape: Shape, kind: Kind) -> Result<Layer<B>> {
        let Shape { depth, columns, .. } = shape;
        let inputs = Inputs::new("linear", &format!("{depth}x{columns} of {:e}", kind.scale));
        let values = if kind.is_whole() { inputs.whole(columns * depth) } else { inputs.values(columns * depth) };
        let weight = host(&[columns, depth], stored(kind.dtype, values))?;
        let bias = kind.values(&inputs, columns);
        let copies = if kind.decode { backend.cold_copies(kind.dtype.size() * columns * depth) } else { 1 };
        let copy = |_| {
            // Clones of a tensor share their memory.
            let own = if copies > 1 { host(&[columns, depth], weight.to_f32().to_vec())? } else { weight.clone() };
            let weight = backend.matrix(in_dtype(&own, kind.dtype)?)?;
            Ok(LinearWeights { weight, bias: backend.upload([1, columns], &bias)? })
        };
        let on_device = (0..copies).map(copy).collect::<Result<_>>()?;
        Ok(Layer { weight, bias, on_device, turn: Cell::new(0) })
    }

    /// The copy whose turn it is.
    fn next(&self) -> &LinearWeights<B> {
        let turn = self.turn.replace((self.turn.get() + 1) % self.on_device.len());
        &self.on_device[turn]
    }

    fn on_cpu(&self) -> Result<LinearWeights<Cpu>> {
        Ok(LinearWeights {
            weight: Cpu.matrix(self.weight.clone())?,
            bias: Cpu.upload([1, self.bias.len()], &self.bias)?,
        })
    }
}

/// Weights in the type that a matrix is made of.
fn in_dtype(weight: &HostTensor, dtype: DType) -> Result<HostTensor> {
    match dtype {
        DType::I8 => int8::quantize(weight)
            .and_then(|(codes, scales)| HostTensor::from_quantized(Quantized { codes, scales }))
            .ok_or_else(|| Error::shape("linear", "no int8 matrix")),
        _ => Ok(weight.to_dtype(dtype)),
    }
}

/// Content of `cell`, made by `make` the first time.
fn shared<T>(cell: &OnceCell<T>, make: impl FnOnce() -> Result<T>) -> Result<&T> {
    match cell.get() {
        Some(value) => Ok(value),
        None => make().map(|value| cell.get_or_init(|| value)),
    }
}

fn upload<B: TestBackend>(backend: &B, kind: Kind, shape: [usize; 2], values: &[f32]) -> Result<B::Tensor> {
    if kind.decode { backend.upload(shape, values) } else { backend.sequence(shape, values) }
}

fn run<B: TestBackend>(
    backend: &B,
    kind: Kind,
    tile: Option<&str>,
    x: &B::Tensor,
    layer: &LinearWeights<B>,
    residual: Option<&B::Tensor>,
) -> Result<B::Tensor> {
    match tile {
        Some(tile) => backend.linear_tiled(tile, x, layer, kind.activation, residual),
        None if kind.decode => backend.linear_decode(x, layer, kind.activation, residual),
        None => backend.linear(x, layer, kind.activation, residual),
    }
}

/// Random x and residual on the backend, and the CPU form's result.
fn prepared<'c, B: TestBackend>(
    backend: &'c B,
    inputs: &Inputs,
    shape: Shape,
    kind: Kind,
    tile: Option<&'static str>,
    layer: &'c Layer<B>,
) -> Result<Prepared<'c, B>> {
    let Shape { rows, depth, columns, .. } = shape;
    let mut x = kind.held(kind.values(inputs, rows * depth));
    if kind.is_whole() && kind.decode {
        // More bits than a bf16 has.
        x.iter_mut().zip(inputs.whole(rows * depth)).for_each(|(x, more)| *x = 257.0 * *x + more);
    }
    let residual = kind.residual.then(|| kind.held(kind.values(inputs, rows * columns)));
    let on_device = upload(backend, kind, [rows, depth], &x)?;
    let added = residual.as_ref().map(|r| upload(backend, kind, [rows, columns], r)).transpose()?;
    let again = move || Ok(Output::Tensor(run(backend, kind, tile, &on_device, layer.next(), added.as_ref())?));
    Prepared::new(again, move || {
        let added = residual.map(|r| Cpu.upload([rows, columns], &r)).transpose()?;
        let (x, layer) = (Cpu.upload([rows, depth], &x)?, layer.on_cpu()?);
        let y = Cpu.download(&Cpu.linear(&x, &layer, kind.activation, added.as_ref())?)?;
        // With bf16 weights a step multiplies the 16 leading bits of its rows, which errs like a sum of 64 values.
        let terms = if kind.decode && kind.dtype == DType::BF16 { depth.max(64) } else { depth };
        Ok(match kind.is_whole() {
            // Sums of whole numbers are exact, and rounded once when they are stored.
            true => Expected::Exact(kind.held(y)),
            false if is_bounded(kind.activation) => {
                // Its results are small; the errors of its sums are those of their size.
                let sums = Cpu.download(&Cpu.linear(&x, &layer, Activation::None, None)?)?;
                let of_sums = tolerance(terms, largest(&sums));
                Expected::judged(move |actual| {
                    let deviation = Expected::close(y, terms, kind.activations()).compare(actual)?;
                    Ok(Deviation { allowed: deviation.allowed + of_sums, ..deviation })
                })
            }
            false => Expected::close(y, terms, kind.activations()),
        })
    })
}

fn case(what: &str, shape: Shape, kind: Kind, cost: Cost) -> Case {
    let Shape { rows, depth, columns, size } = shape;
    let residual = if kind.residual { " +" } else { "" };
    let name = format!("{rows}x{depth}x{columns} {what} {:?}{residual}", kind.activation);
    Case { name, dtype: kind.dtype, size, cost }
}

/// Activations whose results are small however large their inputs are.
fn is_bounded(activation: Activation) -> bool {
    matches!(activation, Activation::Tanh | Activation::Relu6)
}

/// Activations but ReLU6 are not exact; and of a few large values all may lie in a tail that is nearly 0, where the tolerance, which is
/// relative to the largest, has nothing to measure. Nor has it where nearly all results are a bound.
fn is_measurable(shape: Shape, kind: Kind) -> bool {
    let few = shape.rows * shape.columns < 64 || is_bounded(kind.activation);
    let tail = kind.scale > 1.0 && few;
    let exact = kind.activation == Activation::Relu6;
    kind.activation == Activation::None || !(kind.is_whole() && !exact || tail)
}

/// Whole sequences against the CPU form: every tile with every epilogue, and the tile that the launcher chooses.
pub(super) fn check<B: TestBackend>(harness: &mut Harness<'_, B>) -> Result<()> {
    let (backend, dtype) = (harness.backend, harness.backend.dtype());
    for (index, &shape) in TILED.iter().enumerate() {
        let (activation, residual) = EPILOGUES[index % EPILOGUES.len()];
        for (activation, residual, scale) in [(Activation::None, index % 2 == 0, 0.0), (activation, residual, 1.0)] {
            let kind = Kind { decode: false, dtype, activation, residual, scale };
            let layer = OnceCell::new();
            for tile in backend.linear_tiles(shape.columns, shape.depth) {
                harness.case(case(tile, shape, kind, Cost::default()), |inputs| {
                    let layer = shared(&layer, || Layer::new(backend, shape, kind))?;
                    prepared(backend, inputs, shape, kind, Some(tile), layer)
                })?;
            }
        }
    }
    for (index, &shape) in CHOSEN.iter().enumerate() {
        let one = index % EPILOGUES.len();
        let plain = Kind { decode: false, dtype, activation: Activation::None, residual: false, scale: 1.0 };
        let epilogues = match shape.size {
            Size::Real if cost(shape, plain).flops > LARGE => &EPILOGUES[one..=one],
            // The large ones need not be computed six times over.
            Size::Real => &EPILOGUES[1..5],
            _ => &EPILOGUES,
        };
        let scales = if shape.size == Size::Real { &[1.0][..] } else { &[1.0, 0.0, 1e4] };
        for &scale in scales {
            let layer = OnceCell::new();
            for &(activation, residual) in epilogues {
                let kind = Kind { activation, residual, scale, ..plain };
                if !is_measurable(shape, kind) {
                    continue;
                }
                harness.case(case(&format!("of {scale:e}"), shape, kind, cost(shape, kind)), |inputs| {
                    let layer = shared(&layer, || Layer::new(backend, shape, kind))?;
                    prepared(backend, inputs, shape, kind, None, layer)
                })?;
            }
        }
    }
    independence(harness)?;
    backward::check(harness)
}

/// Decode steps against the CPU form: every number of rows, every epilogue; and every row alone against the same row among
/// others.
pub(super) fn check_decode<B: TestBackend>(harness: &mut Harness<'_, B>) -> Result<()> {
    let backend = harness.backend;
    for dtype in backend.step_dtypes() {
        for (index, &(depth, columns, size)) in STEPS.iter().enumerate() {
            for (turn, scale) in [0.0, 1.0, 1e4].into_iter().enumerate() {
                let layer = OnceCell::new();
                for (n, rows) in STEP_ROWS.into_iter().enumerate().filter(|&(_, rows)| size != Size::Small || rows < 4)
                {
                    let shape = Shape { rows, depth, columns, size };
                    let (activation, residual) = EPILOGUES[(index + turn + n) % EPILOGUES.len()];
                    let mut kind = Kind { decode: true, dtype, activation, residual, scale };
                    if !is_measurable(shape, kind) {
                        kind.activation = Activation::None;
                    }
                    let timed = scale == 1.0 && TIMED_ROWS.contains(&rows);
                    let cost = if timed { cost(shape, kind) } else { Cost::default() };
                    harness.case(case(&format!("of {scale:e}"), shape, kind, cost), |inputs| {
                        let layer = shared(&layer, || Layer::new(backend, shape, kind))?;
                        prepared(backend, inputs, shape, kind, None, layer)
                    })?;
                }
            }
            if size >= Size::Ragged {
                decode_independence(harness, shape(65, depth, columns, size), dtype)?;
            }
        }
    }
    Ok(())
}

/// Rows together, and their results.
struct Together<B: Backend> {
    layer: Layer<B>,
    x: Vec<f32>,
    on_device: B::Tensor,
    y: Vec<f32>,
}

impl<B: TestBackend> Together<B> {
    fn new(backend: &B, inputs: &Inputs, shape: Shape, kind: Kind) -> Result<Together<B>> {
        let layer = Layer::new(backend, shape, kind)?;
        let x = kind.held(kind.values(inputs, shape.rows * shape.depth));
        let on_device = upload(backend, kind, [shape.rows, shape.depth], &x)?;
        let y = backend.download(&run(backend, kind, None, &on_device, layer.next(), None)?)?;
        Ok(Together { layer, x, on_device, y })
    }

    /// Rows of x and of the result.
    fn rows(&self, shape: Shape, rows: std::ops::Range<usize>) -> (&[f32], &[f32]) {
        let Shape { depth, columns, .. } = shape;
        (&self.x[rows.start * depth..rows.end * depth], &self.y[rows.start * columns..rows.end * columns])
    }
}

/// The first rows of a step are the same to the last bit, however many follow.
fn decode_independence<B: TestBackend>(harness: &mut Harness<'_, B>, shape: Shape, dtype: DType) -> Result<()> {
    let backend = harness.backend;
    let kind = Kind { decode: true, dtype, activation: Activation::Gelu, residual: false, scale: 1.0 };
    let together = OnceCell::new();
    for rows in [1, 8, 9, 16, 17, 64] {
        let name = format!("as of {} rows", shape.rows);
        harness.case(case(&name, Shape { rows, ..shape }, kind, Cost::default()), |inputs| {
            let together = shared(&together, || Together::new(backend, inputs, shape, kind))?;
            let (x, y) = together.rows(shape, 0..rows);
            let first = backend.upload([rows, shape.depth], x)?;
            let again = move || Ok(Output::Tensor(run(backend, kind, None, &first, together.layer.next(), None)?));
            Prepared::new(again, move || Ok(Expected::Exact(y.to_vec())))
        })?;
    }
    Ok(())
}

/// A row's result is the same to the last bit for every tile, alone and among others.
fn independence<B: TestBackend>(harness: &mut Harness<'_, B>) -> Result<()> {
    let (backend, dtype, shape) = (harness.backend, harness.backend.dtype(), shape(150, 328, 136, Size::Ragged));
    let kind = Kind { decode: false, dtype, activation: Activation::Gelu, residual: false, scale: 1.0 };
    let cell = OnceCell::new();
    for tile in backend.linear_tiles(shape.columns, shape.depth) {
        harness.case(case(&format!("as chosen, {tile}"), shape, kind, Cost::default()), |inputs| {
            let all = shared(&cell, || Together::new(backend, inputs, shape, kind))?;
            let again =
                move || Ok(Output::Tensor(run(backend, kind, Some(tile), &all.on_device, all.layer.next(), None)?));
            Prepared::new(again, move || Ok(Expected::Exact(all.y.clone())))
        })?;
    }
    for row in [0, 31, 64, 149] {
        let one = Shape { rows: 1, ..shape };
        harness.case(case(&format!("row {row} alone"), one, kind, Cost::default()), |inputs| {
            let all = shared(&cell, || Together::new(backend, inputs, shape, kind))?;
            let (x, y) = all.rows(shape, row..row + 1);
            let alone = backend.sequence([1, shape.depth], x)?;
            let again = move || Ok(Output::Tensor(run(backend, kind, None, &alone, all.layer.next(), None)?));
            Prepared::new(again, move || Ok(Expected::Exact(y.to_vec())))
        })?;
    }
    Ok(())
}
