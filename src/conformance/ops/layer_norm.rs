//! Cases of layer_norm and of its backward pass.

use std::cell::RefCell;

use crate::Result;
use crate::backend::cpu::Cpu;
use crate::backend::layer_norm::{self, LayerNormWeights};
use crate::backend::parameters::ALIGNMENT;
use crate::backend::prelude::*;
use crate::backend::{Parameter, WeightAndBias};
use crate::conformance::{Case, Expected, Harness, Inputs, Output, Prepared, Size, TestBackend, stored};
use crate::tensor::DType;

/// Rows, channels, and how large the values are.
const SHAPES: &[(usize, usize, f32, Size)] = &[
    (1, 1, 1.0, Size::Small),
    (3, 8, 1.0, Size::Small),
    (5, 13, 1.0, Size::Small),
    (4, 256, 1e4, Size::Small),
    (7, 192, 1.0, Size::Ragged),
    (2, 1016, 1.0, Size::Ragged),
    (3, 1030, 1e4, Size::Ragged),
    (1, 768, 1.0, Size::Real),
    (257, 1024, 1.0, Size::Real),
    (197, 768, 1.0, Size::Real),
    (64 * 257, 1024, 1.0, Size::Real),
];
/// The same of backward passes: rows around the shares that are added up by themselves.
const BACKWARD_SHAPES: &[(usize, usize, f32, Size)] = &[
    (1, 1, 1.0, Size::Small),
    (3, 8, 1.0, Size::Small),
    (6, 13, 1.0, Size::Small),
    (0, 8, 1.0, Size::Small),
    (4, 256, 1e4, Size::Small),
    (37, 192, 1.0, Size::Ragged),
    (5, 1016, 1.0, Size::Ragged),
    (9, 1030, 1e4, Size::Ragged),
    (1045, 16, 1.0, Size::Ragged),
    (1030, 5, 1.0, Size::Ragged),
    (8 * 200, 192, 1.0, Size::Real),
    (16 * 407, 768, 1.0, Size::Real),
];
const EPS: f32 = 1e-5;

fn norm<B: Backend>(backend: &B, weight: &[f32], bias: &[f32]) -> Result<LayerNormWeights<B>> {
    let vector = |values: &[f32]| backend.upload([1, values.len()], values);
    Ok(LayerNormWeights { weight: vector(weight)?, bias: vector(bias)?, eps: EPS })
}

/// Rows around a half as the backend holds them.
fn rows(inputs: &Inputs, count: usize, scale: f32, dtype: DType) -> Vec<f32> {
    let mut x = inputs.scaled(count, scale);
    x.iter_mut().for_each(|v| *v += 0.5);
    stored(dtype, x)
}

/// Against the CPU form.
pub(super) fn check<B: TestBackend>(harness: &mut Harness<'_, B>) -> Result<()> {
    let (backend, dtype) = (harness.backend, harness.backend.dtype());
    for &(count, channels, scale, size) in SHAPES {
        let shape = [count, channels];
        for saving in [false, true] {
            let name = format!("{count}x{channels} of {scale:e}{}", if saving { ", saved" } else { "" });
            let mut case = Case { name, dtype, size, cost: layer_norm::cost(count, channels, dtype.size()) };
            if saving {
                (case.dtype, case.cost) = (DType::F32, Default::default());
            }
            harness.case(case, |inputs| {
                let x = rows(inputs, count * channels, scale, dtype);
                let (weight, bias) = (inputs.values(channels), inputs.values(channels));
                let on_device = (backend.sequence(shape, &x)?, norm(backend, &weight, &bias)?);
                let run = move || {
                    let (x, norm) = &on_device;
                    if !saving {
                        return Ok(Output::Tensor(backend.layer_norm(x, norm)?));
                    }
                    Ok(Output::Values(of_one_size(&backend.download(&backend.layer_norm_saving(x, norm)?.1)?, scale)))
                };
                Prepared::new(run, move || {
                    let (y, saved) = Cpu.layer_norm_saving(&Cpu.upload(shape, &x)?, &norm(&Cpu, &weight, &bias)?)?;
                    Ok(match saving {
                        true => Expected::close(of_one_size(&Cpu.download(&saved)?, scale), channels, DType::F32),
                        false => Expected::close(Cpu.download(&y)?, channels, dtype),
                    })
                })
            })?;
        }
    }
    for &shape in BACKWARD_SHAPES {
        // The gradient at a single channel is nothing but what rounding leaves.
        if shape.1 > 1 {
            check_backward(harness, shape, Wanted::Dx { residual: false })?;
        }
        check_backward(harness, shape, Wanted::Dx { residual: true })?;
        check_backward(harness, shape, Wanted::Gradients)?;
    }
    Ok(())
}

/// Means and rstds of rows of values about `scale` large, each about one.
fn of_one_size(saved: &[f32], scale: f32) -> Vec<f32> {
    saved.chunks_exact(2).flat_map(|row| [row[0] / scale, row[1] * scale]).collect()
}

/// The compared result of a backward pass.
#[derive(Clone, Copy, PartialEq)]
enum Wanted {
    /// The gradient at x, made with those of the weights where there is a residual.
    Dx { residual: bool },
    /// Those of weight and bias, and what they were added to.
    Gradients,
}

/// A backward pass on any backend; gradients of weight and bias where there are some.
struct Backward<B: TestBackend> {
    tensors: [B::Tensor; 3],
    norm: LayerNormWeights<B>,
    residual: Option<B::Tensor>,
}

impl<B: TestBackend> Backward<B> {
    /// `saved` is f32, all else as the backend holds sequences.
    fn new(b: &B, [rows, channels]: [usize; 2], values: &Values) -> Result<Backward<B>> {
        let sequence = |values: &[f32]| b.sequence([rows, channels], values);
        Ok(Backward {
            tensors: [sequence(&values.dy)?, sequence(&values.x)?, b.upload([rows, 2], &values.saved)?],
            norm: norm(b, &values.weight, &values.weight)?,
            residual: values.residual.as_deref().map(sequence).transpose()?,
        })
    }

    fn run(&self, b: &B, into: Option<(&mut B::Gradients, WeightAndBias)>) -> Result<B::Tensor> {
        let [dy, x, saved] = &self.tensors;
        b.layer_norm_backward(dy, x, &self.norm, saved, self.residual.as_ref(), into)
    }
}

/// Inputs of a backward pass on the host.
struct Values {
    dy: Vec<f32>,
    x: Vec<f32>,
    saved: Vec<f32>,
    weight: Vec<f32>,
    residual: Option<Vec<f32>>,
    /// Gradients before.
    before: Vec<f32>,
}

fn check_backward<B: TestBackend>(
    harness: &mut Harness<'_, B>,
    (count, channels, scale, size): (usize, usize, f32, Size),
    wanted: Wanted,
) -> Result<()> {
    let (backend, dtype) = (harness.backend, harness.backend.dtype());
    let (shape, residual) = ([count, channels], wanted == Wanted::Dx { residual: true });
    let kind = match wanted {
        Wanted::Dx { residual: true } => "backward, residual",
        Wanted::Dx { residual: false } => "backward",
        Wanted::Gradients => "gradients",
    };
    let mut case =
        Case { name: format!("{kind} {count}x{channels} of {scale:e}"), dtype, size, cost: Default::default() };
    match wanted {
        Wanted::Gradients => case.dtype = DType::F32,
        _ => case.cost = layer_norm::backward_cost(count, channels, usize::from(residual), dtype.size()),
    }
    // Between the two parameters, and after the second, there are values that nobody may touch.
    let place = |start| Parameter { start, rows: 1, columns: channels };
    let next = channels.next_multiple_of(ALIGNMENT) + ALIGNMENT;
    let at = WeightAndBias { weight: place(next), bias: place(0) };
    let places = 2 * next + 3;
    harness.case(case, |inputs| {
        let x = rows(inputs, count * channels, scale, dtype);
        let weight = inputs.values(channels);
        let saved = Cpu.layer_norm_saving(&Cpu.upload(shape, &x)?, &norm(&Cpu, &weight, &weight)?)?.1;
        let values = Values {
            dy: stored(dtype, inputs.values(count * channels)),
            residual: residual.then(|| stored(dtype, inputs.values(count * channels))),
            saved: Cpu.download(&saved)?,
            before: inputs.values(places),
            x,
            weight,
        };
        let pass = Backward::new(backend, shape, &values)?;
        let gradients = RefCell::new(backend.gradients(places)?);
        let before = values.before.clone();
        let run = move || {
            let mut gradients = gradients.borrow_mut();
            let into = (wanted != Wanted::Dx { residual: false }).then_some(());
            if wanted == Wanted::Gradients {
                backend.write_gradients(&mut gradients, &before)?;
            }
            let dx = pass.run(backend, into.map(|()| (&mut *gradients, at)))?;
            Ok(match wanted {
                Wanted::Gradients => Output::Values(backend.read_gradients(&gradients)?),
                Wanted::Dx { .. } => Output::Tensor(dx),
            })
        };
        Prepared::new(run, move || {
            let mut gradients = values.before.clone();
            let dx = Backward::new(&Cpu, shape, &values)?.run(&Cpu, Some((&mut gradients, at)))?;
            // And that is divided by the root of eps.
            let terms = if channels == 1 { (1.0 / EPS) as usize } else { channels };
            Ok(match wanted {
                Wanted::Gradients => Expected::close(gradients, count.max(channels), DType::F32),
                Wanted::Dx { .. } => Expected::close(Cpu.download(&dx)?, terms, dtype),
            })
        })
    })
}
