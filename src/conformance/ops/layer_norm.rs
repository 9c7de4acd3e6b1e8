//! Cases of layer_norm.

use crate::Result;
use crate::backend::LayerNormWeights;
use crate::backend::cpu::Cpu;
use crate::backend::prelude::*;
use crate::conformance::{Case, Harness, Size};
use crate::cost::Cost;
use crate::random::Random;

/// Rows, channels, and how large the values are.
const SHAPES: &[(usize, usize, f32, Size)] = &[
    (1, 1, 1.0, Size::Small),
    (3, 8, 1.0, Size::Small),
    (5, 13, 1.0, Size::Small),
    (4, 256, 1e4, Size::Small),
    (7, 192, 1.0, Size::Ragged),
    (2, 1016, 1.0, Size::Ragged),
    (3, 1030, 1e4, Size::Ragged),
    (257, 1024, 1.0, Size::Real),
    (197, 768, 1.0, Size::Real),
    (64 * 257, 1024, 1.0, Size::Real),
];

/// Against the CPU form.
pub(in crate::conformance) fn check(harness: &mut Harness<'_>) -> Result<()> {
    let mut random = Random::new(31);
    let max = harness.max;
    for &(rows, channels, scale, size) in SHAPES.iter().filter(|shape| shape.3 <= max) {
        let x = harness.stored(random.values(rows * channels).iter().map(|v| v * scale + 0.5).collect());
        let (weight, bias) = (random.values(channels), random.values(channels));
        let eps = 1e-5;
        let reference = LayerNormWeights::<Cpu> {
            weight: Cpu.upload([1, channels], &weight)?,
            bias: Cpu.upload([1, channels], &bias)?,
            eps,
        };
        let expected = Cpu.download(&Cpu.layer_norm(&Cpu.upload([rows, channels], &x)?, &reference)?)?;
        let cuda = harness.cuda;
        let norm = LayerNormWeights {
            weight: cuda.upload([1, channels], &weight)?,
            bias: cuda.upload([1, channels], &bias)?,
            eps,
        };
        let x = cuda.sequence([rows, channels], &x)?;
        let elements = (rows * channels) as f64;
        let case = Case {
            name: format!("{rows}x{channels} of {scale:e}"),
            size,
            length: channels,
            expected,
            rounded: Vec::new(),
            exact: false,
            cost: Cost { flops: 8.0 * elements, bytes: 2.0 * elements * cuda.dtype().size() as f64 },
        };
        harness.case(case, false, &|cuda| cuda.layer_norm(&x, &norm))?;
    }
    Ok(())
}
