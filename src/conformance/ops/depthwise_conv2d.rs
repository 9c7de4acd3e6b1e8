//! Cases of depthwise_conv2d.

use super::conv2d::expected;
use crate::Result;
use crate::backend::cpu::Cpu;
use crate::backend::prelude::*;
use crate::backend::{Activation, Conv2dShape, Conv2dWeights, depthwise_conv2d};
use crate::conformance::{Case, Harness, Inputs, Output, Prepared, Size, TestBackend, stored};

/// Maps, channels.
type Sizes = [usize; 2];

/// A window of 4, a stride of 3, and padding on one side.
const ODD: Conv2dShape = Conv2dShape { side: 10, taps: 4, stride: 3, padding: [0, 3] };
/// Padding in which whole windows lie.
const WIDE: Conv2dShape = Conv2dShape { side: 2, taps: 3, stride: 1, padding: [4, 5] };

/// Side, taps and stride of convolutions with padding "SAME". The real ones are those of EfficientNet-lite2 at 224 pixels.
const SAME: &[(Sizes, [usize; 3], Size)] = &[
    ([1, 1], [1, 1, 1], Size::Small),
    ([1, 8], [5, 3, 2], Size::Small),
    ([2, 5], [4, 3, 1], Size::Small),
    ([2, 16], [3, 5, 1], Size::Small),
    ([0, 8], [4, 3, 2], Size::Small),
    ([3, 32], [30, 3, 2], Size::Ragged),
    ([2, 33], [17, 5, 2], Size::Ragged),
    ([1, 72], [23, 3, 1], Size::Ragged),
    ([2, 144], [14, 5, 1], Size::Ragged),
    ([1, 32], [112, 3, 1], Size::Real),
    ([1, 96], [112, 3, 2], Size::Real),
    ([1, 144], [56, 3, 1], Size::Real),
    ([1, 288], [28, 5, 1], Size::Real),
    ([1, 720], [14, 5, 2], Size::Real),
    ([1, 1248], [7, 5, 1], Size::Real),
    ([16, 144], [56, 3, 1], Size::Real),
    ([16, 1248], [7, 5, 1], Size::Real),
];

/// Other ones.
const OTHERS: &[(Sizes, Conv2dShape, Size)] = &[([2, 7], ODD, Size::Small), ([2, 16], WIDE, Size::Small)];

/// Against the CPU form; with whole numbers, to the last bit.
pub(super) fn check<B: TestBackend>(harness: &mut Harness<'_, B>) -> Result<()> {
    let same =
        SAME.iter().map(|&(sizes, [side, taps, stride], size)| (sizes, Conv2dShape::same(side, taps, stride), size));
    for (sizes, shape, size) in same.chain(OTHERS.iter().copied()) {
        compare(harness, sizes, shape, size, (Activation::Relu6, false))?;
        if size != Size::Real {
            compare(harness, sizes, shape, size, (Activation::Gelu, false))?;
            compare(harness, sizes, shape, size, (Activation::None, true))?;
            compare(harness, sizes, shape, size, (Activation::Relu6, true))?;
        }
    }
    Ok(())
}

fn weights<B: Backend>(backend: &B, shape: Conv2dShape, weight: &[f32], bias: &[f32]) -> Result<Conv2dWeights<B>> {
    Ok(Conv2dWeights {
        weight: backend.upload([shape.window(), bias.len()], weight)?,
        bias: backend.upload([1, bias.len()], bias)?,
    })
}

fn compare<B: TestBackend>(
    harness: &mut Harness<'_, B>,
    sizes: Sizes,
    shape: Conv2dShape,
    size: Size,
    (activation, whole): (Activation, bool),
) -> Result<()> {
    let (backend, dtype) = (harness.backend, harness.backend.dtype());
    let [batch, channels] = sizes;
    let Conv2dShape { side, taps, stride, padding } = shape;
    let kind = if whole { ", whole numbers" } else { "" };
    let name = format!(
        "{batch} of {side}x{side}x{channels}, {taps}x{taps} every {stride}, padding {padding:?} {activation:?}{kind}"
    );
    let cost = depthwise_conv2d::cost(sizes, shape, dtype.size());
    harness.case(Case { name, dtype, size, cost }, |drawn: &Inputs| {
        let draw = |len: usize| if whole { drawn.whole(len) } else { drawn.values(len) };
        let rows = batch * shape.pixels();
        let x = stored(dtype, draw(rows * channels));
        let (weight, bias) = (draw(shape.window() * channels), draw(channels));
        let on_device = (backend.sequence([rows, channels], &x)?, weights(backend, shape, &weight, &bias)?);
        let again =
            move || Ok(Output::Tensor(backend.depthwise_conv2d(&on_device.0, &on_device.1, shape, activation)?));
        Prepared::new(again, move || {
            let weights = weights(&Cpu, shape, &weight, &bias)?;
            let y = Cpu.depthwise_conv2d(&Cpu.upload([rows, channels], &x)?, &weights, shape, activation)?;
            Ok(expected(Cpu.download(&y)?, whole, shape.window(), dtype))
        })
    })
}
