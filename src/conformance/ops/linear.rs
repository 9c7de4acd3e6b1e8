//! Cases of linear and linear_decode.

use crate::backend::cpu::Cpu;
use crate::backend::cuda::linear::{TILES, linear_tiled};
use crate::backend::cuda::{Cuda, Tensor};
use crate::backend::prelude::*;
use crate::backend::{Activation, LinearWeights};
use crate::conformance::{Case, Harness, Size};
use crate::cost::Cost;
use crate::random::Random;
use crate::tensor::HostTensor;
use crate::{Error, Result};

/// What a case computes, besides its values.
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

/// Every tile shape takes these: edges in rows, columns and depth, more slabs than stages.
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
    shape(1000, 768, 203, Size::Real),
    shape(4096, 4096, 4096, Size::Real),
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

/// All epilogues of the trait.
const EPILOGUES: [(Activation, bool); 6] = [
    (Activation::None, false),
    (Activation::None, true),
    (Activation::Gelu, false),
    (Activation::Gelu, true),
    (Activation::QuickGelu, false),
    (Activation::QuickGelu, true),
];

/// What is computed, and from which kind of values.
#[derive(Clone, Copy)]
struct Kind {
    /// Decode steps keep f32 rows.
    step: bool,
    activation: Activation,
    residual: bool,
    /// Size of the values of x; 0 for whole numbers, whose results are exact.
    scale: f32,
}

/// The inputs of a case on the device, and what they should give.
struct Inputs {
    x: Tensor,
    layer: LinearWeights<Cuda>,
    residual: Option<Tensor>,
    expected: Vec<f32>,
}

/// Random inputs, and the results of the CPU form.
fn inputs(harness: &Harness<'_>, random: &mut Random, shape: Shape, kind: Kind) -> Result<Inputs> {
    let Shape { rows, depth, columns, .. } = shape;
    let whole = kind.scale == 0.0;
    let mut values = |len: usize, scale: f32| match whole {
        true => random.whole(len),
        false => random.values(len).iter().map(|v| v * scale).collect(),
    };
    let kept = |values: Vec<f32>| if kind.step { values } else { harness.stored(values) };
    let x = match whole && kind.step {
        // More bits than a bf16 has.
        true => values(rows * depth, 1.0).iter().zip(values(rows * depth, 1.0)).map(|(a, b)| 257.0 * a + b).collect(),
        false => kept(values(rows * depth, kind.scale)),
    };
    let weight = harness.stored(values(columns * depth, 1.0));
    let bias = values(columns, kind.scale);
    let residual = kind.residual.then(|| kept(values(rows * columns, kind.scale)));
    let matrix = || {
        let matrix = HostTensor::from_f32(&[columns, depth], weight.clone());
        matrix.ok_or_else(|| Error::shape("linear", format!("no weights of ({columns}, {depth})")))
    };
    let upload_cpu = |rows, columns, values: &[f32]| Cpu.upload([rows, columns], values);
    let reference = LinearWeights::<Cpu> { weight: Cpu.matrix(matrix()?)?, bias: upload_cpu(1, columns, &bias)? };
    let added = residual.as_ref().map(|r| upload_cpu(rows, columns, r)).transpose()?;
    let expected = Cpu.linear(&upload_cpu(rows, depth, &x)?, &reference, kind.activation, added.as_ref())?;
    let expected = Cpu.download(&expected)?;
    let cuda = harness.cuda;
    let upload =
        |shape, values: &[f32]| if kind.step { cuda.upload(shape, values) } else { cuda.sequence(shape, values) };
    Ok(Inputs {
        x: upload([rows, depth], &x)?,
        layer: LinearWeights { weight: cuda.matrix(matrix()?)?, bias: cuda.upload([1, columns], &bias)? },
        residual: residual.map(|r| upload([rows, columns], &r)).transpose()?,
        // Sums of whole numbers are exact, and rounded once when they are stored.
        expected: if whole { kept(expected) } else { expected },
    })
}

/// A case of these inputs.
fn case(name: String, shape: Shape, kind: Kind, harness: &Harness<'_>, expected: &[f32]) -> Case {
    let Shape { rows, depth, columns, size } = shape;
    let (m, n, k) = (rows as f64, columns as f64, depth as f64);
    let width = harness.cuda.dtype().size() as f64;
    let activations = if kind.step { 4.0 } else { width };
    let residual = f64::from(u8::from(kind.residual));
    Case {
        name: format!("{rows}x{depth}x{columns} {name} {:?}{}", kind.activation, if kind.residual { " +" } else { "" }),
        size,
        // With bf16 weights a step multiplies the 16 leading bits of its rows, which errs like a sum of 64 values.
        length: if kind.step && harness.is_bf16() { depth.max(64) } else { depth },
        expected: expected.to_vec(),
        rounded: Vec::new(),
        exact: kind.scale == 0.0,
        cost: Cost {
            flops: 2.0 * m * n * k,
            bytes: width * n * k + activations * (m * k + m * n * (1.0 + residual)) + 4.0 * n,
        },
    }
}

/// Whole sequences against the CPU form: every tile shape with every epilogue, and what the launcher chooses.
pub(in crate::conformance) fn check_sequences(harness: &mut Harness<'_>) -> Result<()> {
    let mut random = Random::new(41);
    let (cuda, max) = (harness.cuda, harness.max);
    for tile in &TILES {
        for (index, &shape) in TILED.iter().filter(|shape| shape.size <= max).enumerate() {
            if !tile.takes(cuda.dtype(), shape.depth) {
                continue;
            }
            let (activation, residual) = EPILOGUES[index % EPILOGUES.len()];
            let kinds = [(Activation::None, index % 2 == 0, 0.0), (activation, residual, 1.0)];
            for (activation, residual, scale) in kinds {
                let kind = Kind { step: false, activation, residual, scale };
                let Inputs { x, layer, residual, expected } = inputs(harness, &mut random, shape, kind)?;
                let case = case(tile.name.into(), shape, kind, harness, &expected);
                harness
                    .case(case, false, &|cuda| linear_tiled(cuda, &x, &layer, activation, residual.as_ref(), tile))?;
            }
        }
    }
    for &shape in CHOSEN.iter().filter(|shape| shape.size <= max) {
        // The large ones need not be computed six times over.
        let epilogues = if shape.size == Size::Real { &EPILOGUES[1..5] } else { &EPILOGUES };
        let scales = if shape.size == Size::Real { &[1.0][..] } else { &[1.0, 0.0, 1e4] };
        for (activation, residual, scale) in
            epilogues.iter().flat_map(|&(a, r)| scales.iter().map(move |&scale| (a, r, scale)))
        {
            // Activations are not exact; and of a few large values all may lie in a tail that is nearly 0, where the
            // tolerance, which is relative to the largest, has nothing to measure.
            let tail = scale > 1.0 && shape.rows * shape.columns < 64;
            if activation != Activation::None && (scale == 0.0 || tail) {
                continue;
            }
            let kind = Kind { step: false, activation, residual, scale };
            let Inputs { x, layer, residual, expected } = inputs(harness, &mut random, shape, kind)?;
            let case = case(format!("of {scale:e}"), shape, kind, harness, &expected);
            harness.case(case, false, &|cuda| cuda.linear(&x, &layer, activation, residual.as_ref()))?;
        }
    }
    independence(harness, &mut random)
}

/// Decode steps against the CPU form: every number of rows, every epilogue; and every row alone against the same row among
/// others.
pub(in crate::conformance) fn check_steps(harness: &mut Harness<'_>) -> Result<()> {
    let mut random = Random::new(42);
    let max = harness.max;
    let mut epilogues = EPILOGUES.into_iter().cycle();
    for &(depth, columns, size) in STEPS.iter().filter(|shape| shape.2 <= max) {
        for rows in STEP_ROWS.into_iter().filter(|&rows| size != Size::Small || rows < 4) {
            let shape = Shape { rows, depth, columns, size };
            let tail = rows * columns < 64;
            let scaled = if tail { (Activation::None, true) } else { epilogues.next().unwrap_or(EPILOGUES[0]) };
            let (activation, residual) = epilogues.next().unwrap_or(EPILOGUES[0]);
            let kinds =
                [(Activation::None, rows % 2 == 0, 0.0), (activation, residual, 1.0), (scaled.0, scaled.1, 1e4)];
            for (activation, residual, scale) in kinds {
                let kind = Kind { step: true, activation, residual, scale };
                let Inputs { x, layer, residual, expected } = inputs(harness, &mut random, shape, kind)?;
                let case = case(format!("of {scale:e}"), shape, kind, harness, &expected);
                harness.case(case, true, &|cuda| cuda.linear_decode(&x, &layer, activation, residual.as_ref()))?;
            }
        }
        if size >= Size::Ragged {
            step_independence(harness, &mut random, shape(65, depth, columns, size))?;
        }
    }
    Ok(())
}

/// The first rows of a step are the same to the last bit, however many follow.
fn step_independence(harness: &mut Harness<'_>, random: &mut Random, shape: Shape) -> Result<()> {
    let cuda = harness.cuda;
    let kind = Kind { step: true, activation: Activation::Gelu, residual: false, scale: 1.0 };
    let Inputs { x, layer, .. } = inputs(harness, random, shape, kind)?;
    let all = cuda.download(&cuda.linear_decode(&x, &layer, kind.activation, None)?)?;
    let values = cuda.download(&x)?;
    for rows in [1, 8, 9, 16, 17, 64] {
        let first = cuda.upload([rows, shape.depth], &values[..rows * shape.depth])?;
        let name = format!("as of {} rows", shape.rows);
        let exact = Kind { scale: 0.0, ..kind };
        let case = case(name, Shape { rows, ..shape }, exact, harness, &all[..rows * shape.columns]);
        harness.case(case, true, &|cuda| cuda.linear_decode(&first, &layer, kind.activation, None))?;
    }
    Ok(())
}

/// A row's result is the same to the last bit for every tile shape, alone and among others.
fn independence(harness: &mut Harness<'_>, random: &mut Random) -> Result<()> {
    let (cuda, shape) = (harness.cuda, shape(150, 328, 136, Size::Ragged));
    if shape.size > harness.max {
        return Ok(());
    }
    let kind = Kind { step: false, activation: Activation::Gelu, residual: false, scale: 1.0 };
    let Inputs { x, layer, .. } = inputs(harness, random, shape, kind)?;
    let all = cuda.download(&cuda.linear(&x, &layer, kind.activation, None)?)?;
    let exact = Kind { scale: 0.0, ..kind };
    for tile in TILES.iter().filter(|tile| tile.takes(cuda.dtype(), shape.depth)) {
        let case = case(format!("as chosen, {}", tile.name), shape, exact, harness, &all);
        harness.case(case, false, &|cuda| linear_tiled(cuda, &x, &layer, kind.activation, None, tile))?;
    }
    let rows = cuda.download(&x)?;
    for row in [0, 31, 64, 149] {
        let alone = cuda.sequence([1, shape.depth], &rows[row * shape.depth..][..shape.depth])?;
        let expected = &all[row * shape.columns..][..shape.columns];
        let case = case(format!("row {row} alone"), Shape { rows: 1, ..shape }, exact, harness, expected);
        harness.case(case, false, &|cuda| cuda.linear(&alone, &layer, kind.activation, None))?;
    }
    Ok(())
}
