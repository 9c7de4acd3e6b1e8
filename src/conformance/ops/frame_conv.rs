//! Cases of frame_conv.

use std::ops::Range;

use super::host;
use crate::Result;
use crate::backend::cpu::Cpu;
use crate::backend::frame_conv::{self, FrameConvShape};
use crate::backend::prelude::*;
use crate::backend::{Activation, LinearWeights, Sequences};
use crate::conformance::{Case, Expected, Harness, Output, Prepared, Size, TestBackend, stored};
use crate::tensor::HostTensor;

/// Frames, channels in, channels out.
type Sizes = [usize; 3];

const fn grouped(taps: usize, stride: usize, padding: [usize; 2], groups: usize) -> FrameConvShape {
    FrameConvShape { taps, stride, padding, groups }
}

const SHAPES: &[(Sizes, FrameConvShape, Size)] = &[
    ([1, 1, 1], grouped(1, 1, [0, 0], 1), Size::Small),
    ([3, 8, 8], grouped(4, 1, [0, 0], 1), Size::Small),
    ([12, 1, 8], grouped(10, 5, [0, 0], 1), Size::Small),
    ([9, 3, 5], grouped(3, 2, [0, 0], 1), Size::Small),
    ([6, 16, 16], grouped(4, 1, [2, 1], 2), Size::Small),
    ([5, 6, 9], grouped(8, 1, [4, 3], 3), Size::Small),
    ([700, 1, 64], grouped(10, 5, [0, 0], 1), Size::Ragged),
    ([131, 40, 72], grouped(3, 2, [0, 0], 1), Size::Ragged),
    ([12, 520, 513], grouped(3, 2, [0, 0], 1), Size::Ragged),
    ([66, 64, 136], grouped(2, 2, [0, 0], 1), Size::Ragged),
    ([77, 96, 96], grouped(16, 1, [8, 7], 4), Size::Ragged),
    ([65, 20, 33], grouped(5, 3, [1, 4], 1), Size::Ragged),
    ([160_000, 1, 512], grouped(10, 5, [0, 0], 1), Size::Real),
    ([31_999, 512, 512], grouped(3, 2, [0, 0], 1), Size::Real),
    ([1_999, 512, 512], grouped(2, 2, [0, 0], 1), Size::Real),
    ([499, 768, 768], grouped(128, 1, [64, 63], 16), Size::Real),
    ([499, 1024, 1024], grouped(128, 1, [64, 63], 16), Size::Real),
];

/// Frames in which there are sequences, these, channels, taps and groups; as many windows as frames.
type Ragged = (usize, &'static [Range<usize>], usize, usize, usize);

const RAGGED: &[(Ragged, Size)] = &[
    ((9, &[0..3, 4..8], 16, 4, 2), Size::Small),
    ((20, &[0..5, 5..5, 6..19], 6, 5, 3), Size::Small),
    ((300, &[0..130, 131..132, 140..299], 96, 16, 4), Size::Ragged),
    ((500, &[0..149, 151..350, 351..499], 768, 128, 16), Size::Real),
];

/// Activations and whether there is a residual.
const AROUND: [(Activation, bool); 4] =
    [(Activation::Gelu, true), (Activation::None, false), (Activation::Gelu, false), (Activation::None, true)];

fn layer<B: Backend>(backend: &B, weight: &HostTensor, bias: &[f32]) -> Result<LinearWeights<B>> {
    Ok(LinearWeights { weight: backend.matrix(weight.clone())?, bias: backend.upload([1, bias.len()], bias)? })
}

/// Against the CPU form.
pub(super) fn check<B: TestBackend>(harness: &mut Harness<'_, B>) -> Result<()> {
    for &(sizes, shape, size) in SHAPES {
        let count = if size == Size::Real { 1 } else { AROUND.len() };
        AROUND.into_iter().take(count).try_for_each(|around| compare(harness, sizes, (shape, None), size, around))?;
    }
    for &((frames, parts, channels, taps, groups), size) in RAGGED {
        let shape = grouped(taps, 1, [taps / 2, taps - 1 - taps / 2], groups);
        let sequences = Some(Sequences::new(frames, parts.to_vec())?);
        compare(harness, [frames, channels, channels], (shape, sequences), size, (Activation::Gelu, true))?;
    }
    Ok(())
}

fn compare<B: TestBackend>(
    harness: &mut Harness<'_, B>,
    [frames, inputs, outputs]: Sizes,
    (shape, sequences): (FrameConvShape, Option<Sequences>),
    size: Size,
    (activation, residual): (Activation, bool),
) -> Result<()> {
    let (backend, dtype) = (harness.backend, harness.backend.dtype());
    let FrameConvShape { taps, stride, padding, groups } = shape;
    let cost = frame_conv::cost(shape, [frames, inputs, outputs], usize::from(residual), [dtype.size(); 2]);
    let around = if residual { ", residual" } else { "" };
    let of = sequences.as_ref().map_or(String::new(), |all| format!(" of {} sequences", all.parts().len()));
    let name = format!(
        "{inputs}x{outputs}x{taps} over {frames}{of}, stride {stride}, padding {padding:?}, groups {groups} \
         {activation:?}{around}"
    );
    harness.case(Case { name, dtype, size, cost }, |drawn| {
        let (rows, depth) = (shape.windows(frames), taps * inputs / groups);
        let x = stored(dtype, drawn.values(frames * inputs));
        let added = stored(dtype, drawn.values(rows * outputs));
        let weight = host(&[outputs, depth], stored(dtype, drawn.values(outputs * depth)))?;
        let bias = drawn.values(outputs);
        let on_device = layer(backend, &weight, &bias)?;
        let tensors = [backend.sequence([frames, inputs], &x)?, backend.sequence([rows, outputs], &added)?];
        let of_device = sequences.clone();
        let run = move || {
            let ([x, added], sequences) = (&tensors, of_device.as_ref());
            let added = residual.then_some(added);
            Ok(Output::Tensor(backend.frame_conv(x, &on_device, shape, activation, added, sequences)?))
        };
        Prepared::new(run, move || {
            let added = Cpu.upload([rows, outputs], &added)?;
            let x = Cpu.upload([frames, inputs], &x)?;
            let (layer, added) = (layer(&Cpu, &weight, &bias)?, residual.then_some(&added));
            let y = Cpu.frame_conv(&x, &layer, shape, activation, added, sequences.as_ref())?;
            // Bias and residual are terms too.
            Ok(Expected::close(Cpu.download(&y)?, depth + 2, dtype))
        })
    })
}
