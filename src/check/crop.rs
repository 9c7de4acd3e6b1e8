//! Cases of crop.

use super::{Case, Checker, Random, Size, Work};
use crate::Result;
use crate::backend::Backend;
use crate::backend::cpu::Cpu;

/// Rows, columns, and the range of columns that stays.
const SHAPES: &[([usize; 4], Size)] = &[
    ([1, 1, 0, 1], Size::Small),
    ([3, 7, 2, 2], Size::Small),
    ([2, 6, 1, 4], Size::Small),
    ([33, 95, 7, 94], Size::Ragged),
    ([64, 130, 60, 130], Size::Ragged),
    ([256, 1000, 60, 900], Size::Real),
];

/// Against the CPU form, of a sequence that lies column after column and of one that does not.
pub(super) fn check(checker: &mut Checker<'_>) -> Result<()> {
    let mut random = Random::new(33);
    let most = checker.most;
    for &([rows, columns, start, end], size) in SHAPES.iter().filter(|shape| shape.1 <= most) {
        for turned in [false, true] {
            let x = checker.stored(random.values(rows * columns));
            let host = Cpu.upload([rows, columns], &x)?;
            let expected = Cpu.download(&Cpu.crop(&host, start..end)?)?;
            let cuda = checker.cuda;
            let x = match turned {
                true => cuda.transpose(&cuda.sequence([columns, rows], &Cpu.download(&Cpu.transpose(&host)?)?)?)?,
                false => cuda.sequence([rows, columns], &x)?,
            };
            let elements = (rows * (end - start)) as f64;
            let case = Case {
                name: format!("{start}..{end} of {rows}x{columns}{}", if turned { ", by columns" } else { "" }),
                size,
                length: 1,
                expected,
                rounded: Vec::new(),
                exact: true,
                work: Work { flops: 0.0, bytes: 2.0 * elements * cuda.dtype().size() as f64 },
            };
            checker.case(case, false, &|cuda| cuda.row_major(&cuda.crop(&x, start..end)?))?;
        }
    }
    Ok(())
}
