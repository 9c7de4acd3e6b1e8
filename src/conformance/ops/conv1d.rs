//! Cases of conv1d.

use std::ops::Range;

use super::host;
use crate::Result;
use crate::backend::conv1d::{self, ConvActivation, ConvEpilogue};
use crate::backend::cpu::Cpu;
use crate::backend::prelude::*;
use crate::conformance::{Case, Expected, Harness, Inputs, Output, Prepared, Size, TestBackend, stored};
use crate::cost::Cost;
use crate::tensor::DType;

/// C in, C out, taps, S, dilation.
type Shape = [usize; 5];

const SHAPES: &[(Shape, Size)] = &[
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

/// Operations around the sum.
#[derive(Clone, Copy)]
struct Around {
    slope: f32,
    residual: bool,
    activation: ConvActivation,
    sum: bool,
    scale: f32,
}

const PLAIN: Around = Around { slope: 1.0, residual: false, activation: ConvActivation::None, sum: false, scale: 1.0 };
const AROUND: [Around; 4] = [
    PLAIN,
    Around { slope: 0.1, residual: true, sum: true, scale: 0.5, ..PLAIN },
    Around { slope: 0.01, activation: ConvActivation::Tanh, ..PLAIN },
    Around { activation: ConvActivation::Relu, ..PLAIN },
];

fn epilogue<'a, B: Backend>(around: Around, residual: &'a B::Tensor, sum: &'a B::Tensor) -> ConvEpilogue<'a, B> {
    let Around { slope, activation, scale, .. } = around;
    ConvEpilogue {
        slope,
        residual: around.residual.then_some((residual, 0)),
        activation,
        sum: around.sum.then_some(sum),
        scale,
    }
}

/// Against the CPU form; a cut of a sequence, and some columns of a result, against the whole.
pub(super) fn check<B: TestBackend>(harness: &mut Harness<'_, B>) -> Result<()> {
    for &(shape, size) in SHAPES {
        // Larger ones need not be computed four times over.
        let count = if size == Size::Real { 2 } else { AROUND.len() };
        for around in AROUND.into_iter().take(count) {
            whole(harness, shape, size, around)?;
        }
        if size < Size::Real {
            cut(harness, shape, size)?;
            columns(harness, shape, size)?;
        }
    }
    Ok(())
}

fn whole<B: TestBackend>(harness: &mut Harness<'_, B>, shape: Shape, size: Size, around: Around) -> Result<()> {
    let (backend, dtype) = (harness.backend, harness.backend.dtype());
    let [inputs, outputs, taps, frames, dilation] = shape;
    let Around { slope, activation, .. } = around;
    let operands = usize::from(around.residual) + usize::from(around.sum);
    let cost = conv1d::cost([inputs, outputs, taps], frames, operands, dtype.size());
    let name = format!("{inputs}x{outputs}x{taps} over {frames}, dilation {dilation}, slope {slope} {activation:?}");
    harness.case(Case { name, dtype, size, cost }, |drawn| {
        let sequence = |channels: usize| stored(dtype, drawn.values(channels * frames));
        let (x, residual, sum) = (sequence(inputs), sequence(outputs), sequence(outputs));
        let weight = host(&[outputs, inputs, taps], stored(dtype, drawn.values(outputs * inputs * taps)))?;
        let bias = host(&[outputs], drawn.values(outputs))?;
        let on_device = backend.conv_weights(&weight, &bias)?;
        let put = |channels: usize, values: &[f32]| backend.sequence([channels, frames], values);
        let tensors = [put(inputs, &x)?, put(outputs, &residual)?, put(outputs, &sum)?];
        let run = move || {
            let [x, residual, sum] = &tensors;
            let epilogue = epilogue(around, residual, sum);
            Ok(Output::Tensor(backend.conv1d(x, &on_device, dilation, 0..frames, epilogue)?))
        };
        Prepared::new(run, move || {
            // The device rounds what the leaky ReLU gives.
            let leaky = stored(dtype, x.into_iter().map(|v| v.max(v * slope)).collect());
            let put = |values: &[f32]| Cpu.upload([outputs, frames], values);
            let (residual, sum) = (put(&residual)?, put(&sum)?);
            let epilogue = epilogue::<Cpu>(Around { slope: 1.0, ..around }, &residual, &sum);
            let weights = Cpu.conv_weights(&weight, &bias)?;
            let y = Cpu.conv1d(&Cpu.upload([inputs, frames], &leaky)?, &weights, dilation, 0..frames, epilogue)?;
            // Samples of sound, of one channel, stay f32.
            let stored = if outputs == 1 { DType::F32 } else { dtype };
            Ok(Expected::close(Cpu.download(&y)?, inputs * taps, stored))
        })
    })
}

fn random_weights<B: Backend>(backend: &B, drawn: &Inputs, shape: [usize; 3]) -> Result<B::ConvWeights> {
    let weight = host(&shape, drawn.values(shape.iter().product()))?;
    backend.conv_weights(&weight, &host(&shape[..1], drawn.values(shape[0]))?)
}

/// The first `count` columns.
fn first(values: &[f32], columns: usize, count: usize) -> Vec<f32> {
    values.chunks_exact(columns).flat_map(|row| row[..count].to_vec()).collect()
}

/// The first half alone gives the bits that it gives within the whole, as far as the margin allows.
fn cut<B: TestBackend>(harness: &mut Harness<'_, B>, shape: Shape, size: Size) -> Result<()> {
    let (backend, dtype) = (harness.backend, harness.backend.dtype());
    let [inputs, outputs, taps, frames, dilation] = shape;
    let half = frames.div_ceil(2);
    let known = half.saturating_sub((taps - 1) * dilation);
    if known == 0 {
        return Ok(());
    }
    let name = format!("{inputs}x{outputs}x{taps} over {frames}, cut at {half}");
    harness.case(Case { name, dtype, size, cost: Cost::default() }, |drawn| {
        let weights = random_weights(backend, drawn, [outputs, inputs, taps])?;
        let x = drawn.values(inputs * frames);
        let part = backend.sequence([inputs, half], &first(&x, frames, half))?;
        let of = move |x: &B::Tensor, frames: usize| {
            let y = backend.conv1d(x, &weights, dilation, 0..frames, ConvEpilogue::default())?;
            Ok::<_, crate::Error>(first(&backend.download(&y)?, frames, known))
        };
        let whole = of(&backend.sequence([inputs, frames], &x)?, frames)?;
        Prepared::new(move || Ok(Output::Values(of(&part, half)?)), move || Ok(Expected::Exact(whole)))
    })
}

/// Columns from the middle have the bits that they have in the whole, with a residual that is as long as the whole.
fn columns<B: TestBackend>(harness: &mut Harness<'_, B>, shape: Shape, size: Size) -> Result<()> {
    let (backend, dtype) = (harness.backend, harness.backend.dtype());
    let [inputs, outputs, taps, frames, dilation] = shape;
    let middle = frames / 3..frames - frames / 4;
    let name = format!("{inputs}x{outputs}x{taps} over {frames}, columns {middle:?}");
    harness.case(Case { name, dtype, size, cost: Cost::default() }, |drawn| {
        let weights = random_weights(backend, drawn, [outputs, inputs, taps])?;
        let x = backend.sequence([inputs, frames], &drawn.values(inputs * frames))?;
        let residual = backend.sequence([outputs, frames], &drawn.values(outputs * frames))?;
        let some = move |columns: Range<usize>| {
            let residual = Some((&residual, columns.start));
            let epilogue = ConvEpilogue { slope: 0.1, residual, ..Default::default() };
            backend.conv1d(&x, &weights, dilation, columns, epilogue)
        };
        let whole = backend.download(&some(0..frames)?)?;
        let part = whole.chunks_exact(frames).flat_map(|row| row[middle.clone()].to_vec()).collect();
        Prepared::new(move || Ok(Output::Tensor(some(middle.clone())?)), move || Ok(Expected::Exact(part)))
    })
}
