//! Cases of cross_entropy: the losses with their hits, and the gradient, each a case of its own.

use crate::Result;
use crate::backend::cpu::Cpu;
use crate::backend::cross_entropy;
use crate::backend::prelude::*;
use crate::conformance::{Case, Expected, Harness, Inputs, Output, Prepared, Size, TestBackend, stored};
use crate::cost::Cost;
use crate::tensor::DType;

/// Rows and columns.
const SHAPES: &[([usize; 2], Size)] = &[
    ([1, 1], Size::Small),
    ([3, 2], Size::Small),
    ([0, 5], Size::Small),
    ([6, 31], Size::Small),
    ([5, 203], Size::Small),
    ([4, 256], Size::Ragged),
    ([3, 257], Size::Ragged),
    ([67, 110], Size::Ragged),
    ([5, 1003], Size::Ragged),
    ([2, 4111], Size::Ragged),
    ([64 * 150, 203], Size::Real),
    ([64 * 150, 1003], Size::Real),
    ([8 * 50, 30_522], Size::Real),
];

/// Largest magnitude of the logits.
const LOGITS: f32 = 8.0;
/// The column that is no target.
const IGNORED: u32 = 0;

/// Values of one case.
#[derive(Clone)]
struct Values {
    logits: Vec<f32>,
    targets: Vec<u32>,
    scale: f32,
}

impl Values {
    /// Every other target is the first of the largest logits, and those between are the column after it: their gradients are
    /// as large as `scale`.
    fn new([rows, columns]: [usize; 2], logits: Vec<f32>) -> Values {
        let best = |x: &[f32]| (0..columns).fold(0, |best, c| if x[c] > x[best] { c } else { best });
        let target = |r: usize| (best(&logits[r * columns..][..columns]) + r % 2) % columns;
        let targets = (0..rows).map(|r| target(r) as u32).collect();
        Values { logits, targets, scale: 1.0 / rows.max(1) as f32 }
    }

    /// Losses and hits, or the gradient.
    fn run<B: TestBackend>(
        &self,
        backend: &B,
        logits: &B::Tensor,
        [_, columns]: [usize; 2],
        gradient: bool,
    ) -> Result<B::Tensor> {
        let ignored = if columns == 1 { u32::MAX } else { IGNORED };
        let result = backend.cross_entropy(logits, &self.targets, ignored, self.scale)?;
        Ok(if gradient { result.dlogits } else { result.rows })
    }
}

/// Against the CPU form: random logits; whole ones, many of them equal; and rows of what is no number.
pub(super) fn check<B: TestBackend>(harness: &mut Harness<'_, B>) -> Result<()> {
    let dtype = harness.backend.dtype();
    for &(shape, size) in SHAPES {
        let [rows, columns] = shape;
        let cost = cross_entropy::cost(rows, columns, dtype.size());
        close(harness, shape, size, cost, ", loss", false, |inputs, len| inputs.scaled(len, LOGITS))?;
        close(harness, shape, size, cost, ", gradient", true, |inputs, len| inputs.scaled(len, LOGITS))?;
        if size < Size::Real {
            close(harness, shape, size, Cost::default(), ", ties", false, Inputs::whole)?;
            not_a_number(harness, shape, size)?;
        }
    }
    Ok(())
}

fn close<B: TestBackend>(
    harness: &mut Harness<'_, B>,
    shape: [usize; 2],
    size: Size,
    cost: Cost,
    of: &str,
    gradient: bool,
    logits: fn(&Inputs, usize) -> Vec<f32>,
) -> Result<()> {
    let (backend, dtype) = (harness.backend, harness.backend.dtype());
    let [rows, columns] = shape;
    harness.case(Case { name: format!("{rows}x{columns}{of}"), dtype, size, cost }, |inputs| {
        let values = Values::new(shape, stored(dtype, logits(inputs, rows * columns)));
        let on_device = backend.sequence(shape, &values.logits)?;
        let same = values.clone();
        let run = move || Ok(Output::Tensor(values.run(backend, &on_device, shape, gradient)?));
        Prepared::new(run, move || {
            let expected = Cpu.download(&same.run(&Cpu, &Cpu.upload(shape, &same.logits)?, shape, gradient)?)?;
            Ok(Expected::close(expected, columns, if gradient { dtype } else { DType::F32 }))
        })
    })
}

/// Rows with NaN or infinity: a loss of NaN, and no hit.
fn not_a_number<B: TestBackend>(harness: &mut Harness<'_, B>, shape: [usize; 2], size: Size) -> Result<()> {
    /// Stands for NaN in the comparison.
    const NAN: f32 = -1.0;
    let (backend, dtype) = (harness.backend, harness.backend.dtype());
    let [rows, columns] = shape;
    let name = format!("{rows}x{columns}, not a number");
    harness.case(Case { name, dtype, size, cost: Cost::default() }, |inputs| {
        let mut logits = inputs.whole(rows * columns);
        for (x, at) in logits.chunks_exact_mut(columns).zip(inputs.below(rows, columns)) {
            x[at] = [f32::NAN, f32::INFINITY][at % 2];
        }
        let values = Values::new(shape, logits);
        let on_device = backend.sequence(shape, &values.logits)?;
        let expected = values.targets.iter().flat_map(|&target| match target {
            IGNORED if columns > 1 => [0.0, 0.0],
            _ => [NAN, 0.0],
        });
        let expected = expected.collect();
        let run = move || {
            let rows = backend.download(&values.run(backend, &on_device, shape, false)?)?;
            Ok(Output::Values(rows.into_iter().map(|v| if v.is_nan() { NAN } else { v }).collect()))
        };
        Prepared::new(run, move || Ok(Expected::Exact(expected)))
    })
}
