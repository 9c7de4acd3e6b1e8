//! Cases of conv2d.

use crate::Result;
use crate::backend::cpu::Cpu;
use crate::backend::prelude::*;
use crate::backend::{Activation, Conv2dShape, Conv2dWeights, conv2d};
use crate::conformance::{Case, Expected, Harness, Inputs, Output, Prepared, Size, TestBackend, stored};
use crate::tensor::DType;

/// Images, channels in, channels out.
type Sizes = [usize; 3];

/// A window of 4, a stride of 3, and padding on one side.
const ODD: Conv2dShape = Conv2dShape { side: 10, taps: 4, stride: 3, padding: [0, 3] };
/// Padding in which whole windows lie.
const WIDE: Conv2dShape = Conv2dShape { side: 2, taps: 3, stride: 1, padding: [4, 5] };

/// Side, taps and stride of convolutions with padding "SAME".
const SAME: &[(Sizes, [usize; 3], Size)] = &[
    ([1, 1, 1], [1, 1, 1], Size::Small),
    ([1, 3, 8], [5, 3, 2], Size::Small),
    ([2, 2, 5], [4, 3, 1], Size::Small),
    ([0, 3, 8], [4, 3, 2], Size::Small),
    ([3, 3, 32], [30, 3, 2], Size::Ragged),
    ([2, 5, 33], [17, 5, 2], Size::Ragged),
    ([1, 4, 72], [23, 3, 1], Size::Ragged),
    ([1, 3, 32], [224, 3, 2], Size::Real),
    ([16, 3, 32], [224, 3, 2], Size::Real),
];

/// Other ones.
const OTHERS: &[(Sizes, Conv2dShape, Size)] = &[([2, 3, 7], ODD, Size::Small), ([2, 2, 16], WIDE, Size::Small)];

/// Values of one case, on the host.
struct Values {
    images: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
}

/// The same on a backend.
fn load<B: Backend>(
    backend: &B,
    [batch, inputs, outputs]: Sizes,
    shape: Conv2dShape,
    values: &Values,
) -> Result<(B::Tensor, Conv2dWeights<B>)> {
    let images = backend.upload([batch, inputs * shape.pixels()], &values.images)?;
    let weight = backend.upload([inputs * shape.window(), outputs], &values.weight)?;
    Ok((images, Conv2dWeights { weight, bias: backend.upload([1, outputs], &values.bias)? }))
}

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

fn compare<B: TestBackend>(
    harness: &mut Harness<'_, B>,
    sizes: Sizes,
    shape: Conv2dShape,
    size: Size,
    (activation, whole): (Activation, bool),
) -> Result<()> {
    let (backend, dtype) = (harness.backend, harness.backend.dtype());
    let [batch, inputs, outputs] = sizes;
    let Conv2dShape { side, taps, stride, padding } = shape;
    let kind = if whole { ", whole numbers" } else { "" };
    let name = format!(
        "{batch} of {inputs}x{side}x{side} to {outputs}, {taps}x{taps} every {stride}, padding {padding:?} \
         {activation:?}{kind}"
    );
    let depth = inputs * shape.window();
    let cost = conv2d::cost(sizes, shape, dtype.size());
    harness.case(Case { name, dtype, size, cost }, |drawn: &Inputs| {
        let draw = |len: usize| if whole { drawn.whole(len) } else { drawn.values(len) };
        let values = Values {
            images: draw(batch * inputs * shape.pixels()),
            weight: draw(depth * outputs),
            bias: draw(outputs),
        };
        let (images, weights) = load(backend, sizes, shape, &values)?;
        let again = move || Ok(Output::Tensor(backend.conv2d(&images, &weights, shape, activation)?));
        Prepared::new(again, move || {
            let (images, weights) = load(&Cpu, sizes, shape, &values)?;
            let y = Cpu.download(&Cpu.conv2d(&images, &weights, shape, activation)?)?;
            Ok(expected(y, whole, depth, dtype))
        })
    })
}

/// The results as the device stores them where they are exact, or close ones.
pub(super) fn expected<'c>(y: Vec<f32>, whole: bool, terms: usize, dtype: DType) -> Expected<'c> {
    // The bias is a term too.
    if whole { Expected::Exact(stored(dtype, y)) } else { Expected::close(y, terms + 1, dtype) }
}
