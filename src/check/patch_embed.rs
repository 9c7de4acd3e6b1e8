//! Cases of patch_embed.

use super::{Case, Checker, Random, Size, Work};
use crate::backend::Backend;
use crate::backend::cpu::Cpu;
use crate::tensor::HostTensor;
use crate::{Error, Result};

/// Batch, side, patch, channels.
const SHAPES: &[([usize; 4], Size)] = &[
    ([1, 1, 1, 1], Size::Small),
    ([2, 6, 3, 5], Size::Small),
    ([1, 28, 14, 70], Size::Ragged),
    ([3, 40, 8, 33], Size::Ragged),
    ([1, 224, 14, 1024], Size::Real),
    ([1, 224, 16, 768], Size::Real),
    ([64, 224, 14, 1024], Size::Real),
];

/// Against the CPU form.
pub(super) fn check(checker: &mut Checker<'_>) -> Result<()> {
    let most = checker.most;
    for &([batch, side, patch, channels], size) in SHAPES.iter().filter(|shape| shape.1 <= most) {
        let mut random = Random::new((side * 31 + channels) as u64);
        let (depth, tokens) = (3 * patch * patch, (side / patch).pow(2) + 1);
        let pixels = random.values(batch * 3 * side * side);
        let class = random.values(channels);
        let mut matrix = |rows: usize, columns: usize| {
            HostTensor::from_f32(&[rows, columns], checker.stored(random.values(rows * columns)))
                .ok_or_else(|| Error::shape("check", "weights"))
        };
        let (weight, position) = (matrix(channels, depth)?, matrix(tokens, channels)?);
        let expected = Cpu.patch_embed(
            &Cpu.upload([batch, 3 * side * side], &pixels)?,
            &Cpu.matrix(weight.clone())?,
            &Cpu.upload([1, channels], &class)?,
            &Cpu.matrix(position.clone())?,
            patch,
        )?;
        let element = checker.cuda.dtype().size();
        let case = Case {
            name: format!("{batch} of {side}x{side} in {patch}x{patch}, {channels} channels"),
            size,
            length: depth,
            expected: Cpu.download(&expected)?,
            rounded: Vec::new(),
            exact: false,
            work: Work {
                flops: 2.0 * (batch * (tokens - 1) * channels * depth) as f64,
                bytes: (batch * 12 * side * side + element * channels * (depth + (batch + 1) * tokens)) as f64,
            },
        };
        let cuda = checker.cuda;
        let (weight, position) = (cuda.matrix(weight)?, cuda.matrix(position)?);
        let pixels = cuda.upload([batch, 3 * side * side], &pixels)?;
        let class = cuda.upload([1, channels], &class)?;
        checker.case(case, false, &|cuda| cuda.patch_embed(&pixels, &weight, &class, &position, patch))?;
    }
    Ok(())
}
