//! Cases of linear in training: the forward pass that saves, and both backward passes.

use super::super::{gradients, parameters};
use super::{Kind, Layer, Shape, shape};
use crate::Result;
use crate::backend::WeightAndBias;
use crate::backend::cpu::Cpu;
use crate::backend::linear::{self, Activation, LinearWeights};
use crate::backend::parameters::ALIGNMENT;
use crate::backend::prelude::*;
use crate::conformance::{Case, Expected, Harness, Inputs, Output, Prepared, Size, TestBackend};
use crate::cost::Cost;
use crate::tensor::DType;

/// Nothing at all, rows that no vector begins, edges of tiles, rows added up in several parts, and the layers of the models: of
/// images at a batch of 8, of the decoder, and of its vocabulary.
const SHAPES: &[Shape] = &[
    shape(1, 1, 1, Size::Small),
    shape(2, 3, 5, Size::Small),
    shape(0, 8, 16, Size::Small),
    shape(2, 8, 0, Size::Small),
    shape(2, 0, 8, Size::Small),
    shape(9, 24, 40, Size::Small),
    shape(17, 72, 72, Size::Ragged),
    shape(65, 99, 67, Size::Ragged),
    shape(40, 96, 203, Size::Ragged),
    shape(33, 99, 136, Size::Ragged),
    shape(129, 328, 136, Size::Ragged),
    shape(130, 64, 264, Size::Ragged),
    shape(1100, 24, 40, Size::Ragged),
    shape(1025, 5, 3, Size::Ragged),
    shape(8 * 257, 1024, 4096, Size::Real),
    shape(8 * 407, 768, 2304, Size::Real),
    shape(8 * 407, 768, 768, Size::Real),
    shape(8 * 407, 768, 3072, Size::Real),
    shape(8 * 407, 3072, 768, Size::Real),
    shape(8 * 150, 768, 203, Size::Real),
];
/// Activations before the layer, and residuals.
const INPUTS: [(Option<Activation>, bool); 6] = [
    (None, false),
    (None, true),
    (Some(Activation::Gelu), true),
    (Some(Activation::QuickGelu), false),
    (Some(Activation::Tanh), true),
    (Some(Activation::Relu6), false),
];

/// The compared result.
#[derive(Clone, Copy, PartialEq)]
enum Wanted {
    /// The result of the forward pass, and what it saves.
    Saving(Activation),
    /// The gradient at x: an activation before the layer, a residual.
    Input(Option<Activation>, bool),
    /// Those of weight and bias, and what they were added to.
    Gradients,
}

impl Wanted {
    fn has_activation(self) -> bool {
        match self {
            Wanted::Saving(activation) => activation != Activation::None,
            Wanted::Input(activation, _) => activation.is_some(),
            Wanted::Gradients => false,
        }
    }

    /// Whether it is made of x, dy, an activation's input and a residual.
    fn operands(self) -> [bool; 4] {
        match self {
            Wanted::Saving(_) => [true, false, false, false],
            Wanted::Input(activation, residual) => [false, true, activation.is_some(), residual],
            Wanted::Gradients => [true, true, false, false],
        }
    }

    fn name(self) -> String {
        match self {
            Wanted::Saving(activation) => format!("saving {activation:?}"),
            Wanted::Input(activation, residual) => {
                let activation = activation.map_or(String::new(), |activation| format!(" {activation:?}"));
                format!("backward{activation}{}", if residual { " +" } else { "" })
            }
            Wanted::Gradients => "gradients".into(),
        }
    }

    fn cost(self, Shape { rows, depth, columns, .. }: Shape, dtype: DType) -> Cost {
        let size = dtype.size();
        match self {
            // Both results are downloaded.
            Wanted::Saving(_) => Cost::default(),
            Wanted::Input(activation, residual) => {
                let operands = usize::from(activation.is_some()) + usize::from(residual);
                linear::cost([rows, depth, columns], operands, size, size)
            }
            // Gradients are read and written.
            Wanted::Gradients => Cost {
                flops: 2.0 * rows as f64 * columns as f64 * depth as f64,
                bytes: (rows * (columns + depth) * size + 2 * columns * (depth + 1) * size_of::<f32>()) as f64,
            },
        }
    }
}

/// Against the CPU form.
pub(super) fn check<B: TestBackend>(harness: &mut Harness<'_, B>) -> Result<()> {
    let activations = [Activation::None, Activation::Gelu, Activation::QuickGelu, Activation::Tanh, Activation::Relu6];
    let savings = activations.map(Wanted::Saving);
    let inputs = INPUTS.map(|(activation, residual)| Wanted::Input(activation, residual));
    for (index, &shape) in SHAPES.iter().enumerate() {
        // At the shapes of models a result takes the CPU long: activations and residuals take turns there.
        let turn = |(n, _): &(usize, Wanted), every| shape.size != Size::Real || (n + index).is_multiple_of(every);
        let savings = savings.into_iter().enumerate().filter(|saving| turn(saving, 3));
        let inputs = inputs.into_iter().enumerate().filter(|input| turn(input, 2));
        for wanted in savings.chain(inputs).map(|(_, wanted)| wanted).chain([Wanted::Gradients]) {
            // Of a few values all may lie where an activation is flat, and the tolerance has nothing to measure.
            let few = shape.rows * shape.depth.min(shape.columns) < 64;
            if !(wanted.has_activation() && few) {
                check_one(harness, shape, wanted, 1.0)?;
            }
            if !wanted.has_activation() && shape.size != Size::Real {
                check_one(harness, shape, wanted, 0.0)?;
            }
        }
    }
    Ok(())
}

/// Inputs on the host, empty where they are not wanted.
struct Values {
    x: Vec<f32>,
    dy: Vec<f32>,
    /// The activation's input, and the residual.
    input: Vec<f32>,
    residual: Vec<f32>,
    /// Gradients before; empty for zeros.
    before: Vec<f32>,
}

impl Values {
    fn new(inputs: &Inputs, shape: Shape, kind: Kind, wanted: Wanted, places: usize) -> Values {
        let Shape { rows, depth, columns, size } = shape;
        let [x, dy, input, residual] = wanted.operands();
        let len = |wanted: bool, columns: usize| if wanted { rows * columns } else { 0 };
        let draw = |len: usize| kind.held(kind.values(inputs, len));
        Values {
            x: draw(len(x, depth)),
            dy: draw(len(dy, columns)),
            input: kind.held(inputs.scaled(len(input, depth), 3.0)),
            residual: draw(len(residual, depth)),
            before: if size == Size::Real { Vec::new() } else { kind.values(inputs, places) },
        }
    }
}

/// The same on any backend.
struct Pass<B: TestBackend> {
    x: B::Tensor,
    dy: B::Tensor,
    input: B::Tensor,
    residual: B::Tensor,
}

impl<B: TestBackend> Pass<B> {
    fn new(b: &B, shape: Shape, wanted: Wanted, values: &Values) -> Result<Pass<B>> {
        let [x, dy, input, residual] = wanted.operands();
        let put = |wanted: bool, columns: usize, values: &[f32]| {
            b.sequence([if wanted { shape.rows } else { 0 }, columns], values)
        };
        Ok(Pass {
            x: put(x, shape.depth, &values.x)?,
            dy: put(dy, shape.columns, &values.dy)?,
            input: put(input, shape.depth, &values.input)?,
            residual: put(residual, shape.depth, &values.residual)?,
        })
    }

    /// All results; those of the forward pass one after the other.
    fn run(
        &self,
        b: &B,
        layer: &LinearWeights<B>,
        wanted: Wanted,
        (at, places): (WeightAndBias, usize),
        before: &[f32],
    ) -> Result<Output<B>> {
        match wanted {
            Wanted::Saving(activation) => {
                let (y, saved) = b.linear_saving(&self.x, layer, activation)?;
                Ok(Output::Values([b.download(&y)?, b.download(&saved)?].concat()))
            }
            Wanted::Input(activation, residual) => {
                let input = activation.map(|activation| (activation, &self.input));
                b.linear_backward(&self.dy, layer, input, residual.then_some(&self.residual)).map(Output::Tensor)
            }
            Wanted::Gradients => {
                let mut into = gradients(b, places, before)?;
                b.linear_weight_backward(&self.dy, &self.x, &mut into, at)?;
                b.gradients_tensor(into).map(Output::Tensor)
            }
        }
    }
}

/// Places of weight and bias, with values between and after them that nobody may touch, and the length of all.
fn places(columns: usize, depth: usize) -> (WeightAndBias, usize) {
    let ([_, bias, _, weight], len) = parameters([[1, 1], [1, columns], [1, 1], [columns, depth]]);
    (WeightAndBias { weight, bias }, len + ALIGNMENT)
}

fn check_one<B: TestBackend>(harness: &mut Harness<'_, B>, shape: Shape, wanted: Wanted, scale: f32) -> Result<()> {
    let (backend, dtype) = (harness.backend, harness.backend.dtype());
    let kind = Kind { decode: false, dtype, activation: Activation::None, residual: false, scale };
    let Shape { rows, depth, columns, size } = shape;
    let stored = if wanted == Wanted::Gradients { DType::F32 } else { dtype };
    let name = format!("{} {rows}x{depth}x{columns} of {scale:e}", wanted.name());
    let cost = wanted.cost(shape, dtype);
    let places = places(columns, depth);
    harness.case(Case { name, dtype: stored, size, cost }, |inputs| {
        let values = Values::new(inputs, shape, kind, wanted, places.1);
        let (pass, layer) = (Pass::new(backend, shape, wanted, &values)?, Layer::new(backend, shape, kind)?);
        let (before, on_cpu) = (values.before.clone(), layer.on_cpu()?);
        let run = move || pass.run(backend, layer.next(), wanted, places, &before);
        Prepared::new(run, move || {
            let pass = Pass::new(&Cpu, shape, wanted, &values)?;
            let expected = match pass.run(&Cpu, &on_cpu, wanted, places, &values.before)? {
                Output::Values(values) => values,
                Output::Tensor(tensor) => Cpu.download(&tensor)?,
            };
            let terms = match wanted {
                Wanted::Saving(_) => depth,
                Wanted::Input(..) => columns,
                Wanted::Gradients => rows,
            };
            Ok(match kind.is_whole() {
                true => Expected::Exact(crate::conformance::stored(stored, expected)),
                false => Expected::close(expected, terms, stored),
            })
        })
    })
}
