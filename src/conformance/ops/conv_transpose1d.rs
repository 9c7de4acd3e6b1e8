//! Cases of conv_transpose1d.

use crate::backend::cpu::Cpu;
use crate::backend::prelude::*;
use crate::conformance::{Case, Harness, Size};
use crate::cost::Cost;
use crate::random::Random;
use crate::tensor::HostTensor;
use crate::{Error, Result};

/// C in, C out, taps, stride, S.
const SHAPES: &[([usize; 5], Size)] = &[
    ([1, 1, 1, 1, 1], Size::Small),
    ([8, 4, 4, 2, 3], Size::Small),
    ([3, 5, 11, 5, 4], Size::Small),
    ([16, 16, 8, 4, 40], Size::Ragged),
    ([40, 7, 11, 5, 33], Size::Ragged),
    ([192, 96, 11, 5, 20], Size::Ragged),
    ([12, 6, 3, 1, 70], Size::Ragged),
    ([512, 256, 11, 5, 200], Size::Real),
    ([256, 128, 8, 4, 1000], Size::Real),
    ([128, 64, 8, 4, 4000], Size::Real),
    ([64, 32, 4, 2, 16_000], Size::Real),
    ([32, 16, 4, 2, 32_000], Size::Real),
];

/// Against the CPU form.
pub(in crate::conformance) fn check(harness: &mut Harness<'_>) -> Result<()> {
    let max = harness.max;
    for &([inputs, outputs, taps, stride, frames], size) in SHAPES.iter().filter(|shape| shape.1 <= max) {
        for slope in [1.0, 0.1] {
            let mut random = Random::new((inputs * 31 + frames) as u64);
            let x = harness.stored(random.values(inputs * frames));
            let weight = harness.stored(random.values(inputs * outputs * taps));
            let host = |shape: &[usize], values: Vec<f32>| {
                HostTensor::from_f32(shape, values).ok_or_else(|| Error::shape("check", "weights"))
            };
            let weight = host(&[inputs, outputs, taps], weight)?;
            let bias = host(&[outputs], random.values(outputs))?;
            let leaky: Vec<f32> = harness.stored(x.iter().map(|&v| v.max(v * slope)).collect());
            let kernel = Cpu.conv_transpose_weights(&weight, &bias, stride)?;
            let expected = Cpu.conv_transpose1d(&Cpu.upload([inputs, frames], &leaky)?, &kernel, 1.0)?;
            let element = harness.cuda.dtype().size() as f64;
            let case = Case {
                name: format!("{inputs}x{outputs}x{taps} stride {stride} over {frames}, slope {slope}"),
                size,
                length: inputs * taps.div_ceil(stride),
                expected: Cpu.download(&expected)?,
                rounded: Vec::new(),
                exact: false,
                cost: Cost {
                    flops: 2.0 * (inputs * outputs * taps * frames) as f64,
                    bytes: ((inputs + outputs * stride) * frames) as f64 * element,
                },
            };
            let cuda = harness.cuda;
            let kernel = cuda.conv_transpose_weights(&weight, &bias, stride)?;
            let x = cuda.sequence([inputs, frames], &x)?;
            harness.case(case, false, &|cuda| cuda.conv_transpose1d(&x, &kernel, slope))?;
        }
    }
    Ok(())
}
