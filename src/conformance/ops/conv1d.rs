//! Cases of conv1d.

use std::ops::Range;

use crate::Result;
use crate::backend::cpu::Cpu;
use crate::backend::cuda::Cuda;
use crate::backend::prelude::*;
use crate::backend::{ConvActivation, ConvEpilogue};
use crate::conformance::{Case, Harness, Size};
use crate::cost::Cost;
use crate::random::Random;
use crate::tensor::HostTensor;

/// C in, C out, taps, S, dilation.
const SHAPES: &[([usize; 5], Size)] = &[
    ([1, 1, 1, 1, 1], Size::Small),
    ([8, 16, 3, 5, 1], Size::Small),
    ([16, 1, 7, 20, 1], Size::Small),
    ([5, 3, 5, 9, 2], Size::Small),
    ([16, 16, 11, 140, 5], Size::Ragged),
    ([24, 33, 7, 65, 3], Size::Ragged),
    ([64, 64, 3, 130, 5], Size::Ragged),
    ([7, 40, 3, 2, 3], Size::Ragged),
    ([128, 192, 7, 30, 1], Size::Ragged),
    ([32, 32, 7, 300, 3], Size::Ragged),
    ([128, 512, 7, 200, 1], Size::Real),
    ([256, 256, 11, 1000, 5], Size::Real),
    ([128, 128, 7, 4000, 3], Size::Real),
    ([64, 64, 11, 16_000, 5], Size::Real),
    ([32, 32, 11, 32_000, 5], Size::Real),
    ([16, 16, 11, 64_000, 5], Size::Real),
    ([16, 1, 7, 64_000, 1], Size::Real),
];

/// What is done around the sum.
#[derive(Clone, Copy)]
struct Around {
    slope: f32,
    residual: bool,
    activation: ConvActivation,
    sum: bool,
    scale: f32,
}

const PLAIN: Around = Around { slope: 1.0, residual: false, activation: ConvActivation::None, sum: false, scale: 1.0 };

fn epilogue<'a, B: Backend>(
    around: Around,
    residual: (&'a B::Tensor, usize),
    sum: &'a B::Tensor,
) -> ConvEpilogue<'a, B> {
    let Around { slope, activation, scale, .. } = around;
    ConvEpilogue {
        slope,
        residual: around.residual.then_some(residual),
        activation,
        sum: around.sum.then_some(sum),
        scale,
    }
}

/// Against the CPU form; a cut of a sequence, and some columns of a result, against the whole.
pub(in crate::conformance) fn check(harness: &mut Harness<'_>) -> Result<()> {
    let max = harness.max;
    for &(shape, size) in SHAPES.iter().filter(|shape| shape.1 <= max) {
        let arounds = [
            PLAIN,
            Around { slope: 0.1, residual: true, sum: true, scale: 0.5, ..PLAIN },
            Around { slope: 0.01, activation: ConvActivation::Tanh, ..PLAIN },
            Around { activation: ConvActivation::Relu, ..PLAIN },
        ];
        let count = if size == Size::Real { 2 } else { arounds.len() };
        for around in arounds.into_iter().take(count) {
            one(harness, shape, size, around)?;
        }
        if size < Size::Real {
            cut(harness, shape, size)?;
            columns(harness, shape, size)?;
        }
    }
    Ok(())
}

fn one(
    harness: &mut Harness<'_>,
    [inputs, outputs, taps, frames, dilation]: [usize; 5],
    size: Size,
    around: Around,
) -> Result<()> {
    let mut random = Random::new((inputs * 31 + frames) as u64);
    let x = harness.stored(random.values(inputs * frames));
    let weight = harness.stored(random.values(outputs * inputs * taps));
    let bias = random.values(outputs);
    let (residual, sum) =
        (harness.stored(random.values(outputs * frames)), harness.stored(random.values(outputs * frames)));
    let (weight, bias) = (host(&[outputs, inputs, taps], weight)?, host(&[outputs], bias)?);
    let put = |values: &[f32]| Cpu.upload([outputs, frames], values);
    // The device rounds what the leaky ReLU gives.
    let leaky: Vec<f32> = harness.stored(x.iter().map(|&v| v.max(v * around.slope)).collect());
    let expected = Cpu.conv1d(
        &Cpu.upload([inputs, frames], &leaky)?,
        &Cpu.conv_weights(&weight, &bias)?,
        dilation,
        0..frames,
        epilogue::<Cpu>(Around { slope: 1.0, ..around }, (&put(&residual)?, 0), &put(&sum)?),
    )?;
    let element = harness.cuda.dtype().size() as f64;
    let case = Case {
        name: format!(
            "{inputs}x{outputs}x{taps} over {frames}, dilation {dilation}, slope {} {:?}",
            around.slope, around.activation
        ),
        size,
        length: inputs * taps,
        expected: Cpu.download(&expected)?,
        rounded: Vec::new(),
        exact: false,
        cost: Cost {
            flops: 2.0 * (inputs * outputs * taps * frames) as f64,
            bytes: ((inputs + outputs) * frames) as f64 * element,
        },
    };
    let cuda = harness.cuda;
    let kernel = cuda.conv_weights(&weight, &bias)?;
    let x = cuda.sequence([inputs, frames], &x)?;
    let (residual, sum) = (cuda.sequence([outputs, frames], &residual)?, cuda.sequence([outputs, frames], &sum)?);
    harness.case(case, outputs == 1, &|cuda| {
        cuda.conv1d(&x, &kernel, dilation, 0..frames, epilogue::<Cuda>(around, (&residual, 0), &sum))
    })
}

fn host(shape: &[usize], values: Vec<f32>) -> Result<HostTensor> {
    HostTensor::from_f32(shape, values).ok_or_else(|| crate::Error::shape("check", "weights"))
}

fn random_kernel(cuda: &Cuda, random: &mut Random, shape: [usize; 3]) -> Result<<Cuda as Device>::ConvWeights> {
    let weight = host(&shape, random.values(shape.iter().product()))?;
    cuda.conv_weights(&weight, &host(&shape[..1], random.values(shape[0]))?)
}

/// The first half alone gives the bits that it gives within the whole, as far as the margin allows.
fn cut(harness: &mut Harness<'_>, [inputs, outputs, taps, frames, dilation]: [usize; 5], size: Size) -> Result<()> {
    let mut random = Random::new(99);
    let cuda = harness.cuda;
    let kernel = random_kernel(cuda, &mut random, [outputs, inputs, taps])?;
    let x = random.values(inputs * frames);
    let half = frames.div_ceil(2);
    let known = half.saturating_sub((taps - 1) * dilation);
    if known == 0 {
        return Ok(());
    }
    let first = |rows: usize, columns: usize, values: &[f32], count: usize| -> Vec<f32> {
        (0..rows).flat_map(|row| values[row * columns..][..count].to_vec()).collect()
    };
    let plain = ConvEpilogue::default;
    let whole = cuda.conv1d(&cuda.sequence([inputs, frames], &x)?, &kernel, dilation, 0..frames, plain())?;
    let case = Case {
        name: format!("{inputs}x{outputs}x{taps} over {frames}, cut at {half}"),
        size,
        length: 1,
        expected: first(outputs, frames, &cuda.download(&whole)?, known),
        rounded: Vec::new(),
        exact: true,
        cost: Cost::default(),
    };
    let part = cuda.sequence([inputs, half], &first(inputs, frames, &x, half))?;
    harness.case(case, true, &|cuda| {
        let y = cuda.download(&cuda.conv1d(&part, &kernel, dilation, 0..half, plain())?)?;
        cuda.upload([outputs, known], &first(outputs, half, &y, known))
    })
}

/// Columns from the middle have the bits that they have in the whole, with a residual that is as long as the whole.
fn columns(harness: &mut Harness<'_>, [inputs, outputs, taps, frames, dilation]: [usize; 5], size: Size) -> Result<()> {
    let mut random = Random::new(98);
    let cuda = harness.cuda;
    let kernel = random_kernel(cuda, &mut random, [outputs, inputs, taps])?;
    let x = cuda.sequence([inputs, frames], &random.values(inputs * frames))?;
    let residual = cuda.sequence([outputs, frames], &random.values(outputs * frames))?;
    let some = |columns: Range<usize>| {
        let residual = Some((&residual, columns.start));
        cuda.conv1d(&x, &kernel, dilation, columns, ConvEpilogue { slope: 0.1, residual, ..Default::default() })
    };
    let whole = cuda.download(&some(0..frames)?)?;
    let middle = frames / 3..frames - frames / 4;
    let case = Case {
        name: format!("{inputs}x{outputs}x{taps} over {frames}, columns {middle:?}"),
        size,
        length: 1,
        expected: whole.chunks_exact(frames).flat_map(|row| row[middle.clone()].to_vec()).collect(),
        rounded: Vec::new(),
        exact: true,
        cost: Cost::default(),
    };
    harness.case(case, outputs == 1, &|_| some(middle.clone()))
}
