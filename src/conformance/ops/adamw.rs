//! Cases of adamw: each array of a block after a few steps, its working copy, and the time of one step.

use std::cell::RefCell;
use std::rc::Rc;

use super::{gradients, host};
use crate::Result;
use crate::backend::cpu::Cpu;
use crate::backend::prelude::*;
use crate::backend::{AdamWStep, BlockPart, Parameter, adamw};
use crate::conformance::{Case, Deviation, Expected, Harness, Inputs, Output, Prepared, Size, TestBackend};
use crate::conformance::{difference, stored};
use crate::cost::Cost;
use crate::tensor::DType;

/// Values of a block.
const LENGTHS: &[(usize, Size)] = &[
    (0, Size::Small),
    (1, Size::Small),
    (4, Size::Small),
    (131, Size::Small),
    (1024, Size::Ragged),
    (5123, Size::Ragged),
    ((1 << 20) + 3, Size::Real),
];
/// Values of the block whose step is timed: more than any cache holds.
const TIMED: usize = 1 << 25;

/// Steps of a case.
const STEPS: usize = 3;
/// Roundings that add up in a value.
const ROUNDINGS: usize = 8 * STEPS;

const PARTS: [(&str, BlockPart); 3] = [
    ("values", BlockPart::Values),
    ("first moments", BlockPart::FirstMoments),
    ("second moments", BlockPart::SecondMoments),
];

/// Step `step`, from 1; all arrays stay about as large as 1.
fn numbers(step: usize) -> AdamWStep {
    AdamWStep {
        rate: 0.1,
        beta1: 0.9,
        beta2: 0.75,
        eps: 1e-8,
        weight_decay: 0.2,
        step: step as u64,
        gradient_scale: 1.0 / step as f32,
    }
}

/// Values of one case.
struct Values {
    values: Vec<f32>,
    gradients: Vec<Vec<f32>>,
}

impl Values {
    /// A third of the gradients are zeros, and another is tiny.
    fn new(inputs: &Inputs, len: usize) -> Values {
        let gradients = (0..STEPS).map(|_| {
            let mut gradients = inputs.values(len);
            gradients.iter_mut().enumerate().for_each(|(i, g)| *g *= [1.0, 0.0, 1e-9][i % 3]);
            gradients
        });
        Values { gradients: gradients.collect(), values: inputs.values(len) }
    }

    /// The block after all steps.
    fn run<B: TestBackend>(&self, backend: &B) -> Result<B::Block> {
        let mut block = backend.parameter_block(&self.values)?;
        for (step, values) in self.gradients.iter().enumerate() {
            backend.adamw(&mut block, &gradients(backend, values.len(), values)?, numbers(step + 1))?;
        }
        Ok(block)
    }
}

/// Against the CPU form.
pub(super) fn check<B: TestBackend>(harness: &mut Harness<'_, B>) -> Result<()> {
    let (backend, dtype) = (harness.backend, harness.backend.dtype());
    for &(len, size) in LENGTHS {
        for (name, part) in PARTS {
            let case = Case { name: format!("{len}, {name}"), dtype, size, cost: Cost::default() };
            harness.case(case, |inputs| {
                let values = Rc::new(Values::new(inputs, len));
                let same = values.clone();
                let run = move || Ok(Output::Values(backend.read_block(&values.run(backend)?, part)?));
                Prepared::new(run, move || {
                    Ok(Expected::close(Cpu.read_block(&same.run(&Cpu)?, part)?, ROUNDINGS, DType::F32))
                })
            })?;
        }
        if len > 0 {
            working_copy(harness, len, size)?;
        }
    }
    time(harness)
}

/// The matrix of products holds the values after the update, rounded to the type of the backend.
fn working_copy<B: TestBackend>(harness: &mut Harness<'_, B>, len: usize, size: Size) -> Result<()> {
    let (backend, dtype) = (harness.backend, harness.backend.dtype());
    let case = Case { name: format!("{len}, working copy"), dtype, size, cost: Cost::default() };
    harness.case(case, |inputs| {
        let values = Values::new(inputs, len);
        let zeros = backend.matrix(host(&[1, len], vec![0.0; len])?)?;
        let run = move || {
            let block = values.run(backend)?;
            let matrix = backend.parameter_matrix(&block, Parameter { start: 0, rows: 1, columns: len })?;
            let mut both = backend.read_block(&block, BlockPart::Values)?;
            // A row of the matrix with zeros added: the matrix as operations read it.
            both.extend(backend.download(&backend.embed(&matrix, &zeros, &[0], &[0])?)?);
            Ok(Output::Values(both))
        };
        Prepared::new(run, move || {
            Ok(Expected::judged(move |both| {
                let (values, copy) = both.split_at(len);
                Ok(Deviation { error: difference(copy, &stored(dtype, values.to_vec())), allowed: 0.0 })
            }))
        })
    })
}

/// One step in place, timed; nothing is compared.
fn time<B: TestBackend>(harness: &mut Harness<'_, B>) -> Result<()> {
    let (backend, dtype) = (harness.backend, harness.backend.dtype());
    let cost = adamw::cost(TIMED, if dtype == DType::F32 { 0 } else { dtype.size() });
    let case = Case { name: format!("{TIMED}, in place"), dtype, size: Size::Real, cost };
    harness.case(case, |inputs| {
        let block = RefCell::new(backend.parameter_block(&inputs.values(TIMED))?);
        let gradients = gradients(backend, TIMED, &inputs.values(TIMED))?;
        let run = move || {
            backend.adamw(&mut block.borrow_mut(), &gradients, numbers(1))?;
            Ok(Output::Values(Vec::new()))
        };
        Prepared::new(run, || Ok(Expected::Exact(Vec::new())))
    })
}
