//! Cases of linear and linear_step.

use super::{Case, Checker, Random, Size, Work};
use crate::Result;
use crate::backend::cpu::Cpu;
use crate::backend::{Activation, Backend, Linear};
use crate::tensor::HostTensor;

/// M, N, K.
type Shape = (usize, usize, usize);

const SEQUENCES: &[(Shape, Size)] = &[
    ((1, 1, 1), Size::Small),
    ((3, 5, 8), Size::Small),
    ((33, 66, 72), Size::Small),
    ((17, 70, 13), Size::Small),
    ((65, 192, 192), Size::Ragged),
    ((130, 67, 200), Size::Ragged),
    ((31, 257, 64), Size::Ragged),
    ((257, 1024, 1024), Size::Real),
    ((257, 3072, 1024), Size::Real),
    ((257, 4096, 1024), Size::Real),
    ((257, 1024, 4096), Size::Real),
    ((257, 768, 768), Size::Real),
    ((64 * 257, 1024, 1024), Size::Real),
    ((4096, 4096, 4096), Size::Real),
];

const STEPS: &[(Shape, Size)] = &[
    ((1, 1, 1), Size::Small),
    ((2, 17, 40), Size::Small),
    ((3, 5, 21), Size::Small),
    ((1, 203, 192), Size::Ragged),
    ((7, 192, 768), Size::Ragged),
    ((9, 33, 520), Size::Ragged),
    ((33, 40, 264), Size::Ragged),
    ((65, 48, 256), Size::Ragged),
    ((1, 2304, 768), Size::Real),
    ((1, 768, 3072), Size::Real),
    ((5, 3072, 768), Size::Real),
    ((64, 3072, 768), Size::Real),
    ((1, 4096, 4096), Size::Real),
];

const ACTIVATIONS: [Activation; 3] = [Activation::None, Activation::Gelu, Activation::QuickGelu];

/// One of the two operations.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    Sequence,
    Step,
}

impl Form {
    fn run<B: Backend>(
        self,
        backend: &B,
        x: &B::Tensor,
        layer: &Linear<B>,
        activation: Activation,
        residual: Option<&B::Tensor>,
    ) -> Result<B::Tensor> {
        match self {
            Form::Sequence => backend.linear(x, layer, activation, residual),
            Form::Step => backend.linear_step(x, layer, activation, residual),
        }
    }
}

/// `linear` against the CPU form.
pub(super) fn check_sequences(checker: &mut Checker<'_>) -> Result<()> {
    check(checker, Form::Sequence, SEQUENCES)
}

/// `linear_step` against the CPU form.
pub(super) fn check_steps(checker: &mut Checker<'_>) -> Result<()> {
    check(checker, Form::Step, STEPS)
}

fn check(checker: &mut Checker<'_>, form: Form, shapes: &[(Shape, Size)]) -> Result<()> {
    let most = checker.most;
    for (n, &(shape, size)) in shapes.iter().filter(|(_, size)| *size <= most).enumerate() {
        // Every activation somewhere, with and without a residual; a few of the shapes in whole numbers.
        let activation = ACTIVATIONS[n % 3];
        one(checker, form, shape, size, activation, n % 2 == 1, false)?;
        if size < Size::Real {
            one(checker, form, shape, size, Activation::None, n % 2 == 0, true)?;
            alone(checker, form, shape, size)?;
        }
    }
    Ok(())
}

fn layers(
    checker: &Checker<'_>,
    n: usize,
    k: usize,
    weight: &[f32],
    bias: &[f32],
) -> Result<(Linear<Cpu>, Linear<crate::backend::cuda::Cuda>)> {
    let host = || HostTensor::from_f32(&[n, k], weight.to_vec()).ok_or_else(|| crate::Error::shape("check", "weights"));
    let reference = Linear { weight: Cpu.matrix(host()?)?, bias: Cpu.upload([1, n], bias)? };
    let device = Linear { weight: checker.cuda.matrix(host()?)?, bias: checker.cuda.upload([1, n], bias)? };
    Ok((reference, device))
}

fn one(
    checker: &mut Checker<'_>,
    form: Form,
    (m, n, k): Shape,
    size: Size,
    activation: Activation,
    with_residual: bool,
    exact: bool,
) -> Result<()> {
    let mut random = Random::new((m * 31 + n * 7 + k) as u64);
    // Whole numbers so small that even a result in bf16 is exact.
    let small = |values: Vec<f32>| values.into_iter().map(|v| if v.abs() > 7.0 { v.signum() } else { 0.0 }).collect();
    let draw = |random: &mut Random, len: usize| -> Vec<f32> {
        if exact { small(random.whole(len)) } else { random.values(len) }
    };
    // Steps take x in f32, whatever the weights are.
    let x = draw(&mut random, m * k);
    let x = if form == Form::Step { x } else { checker.stored(x) };
    let weight = checker.stored(draw(&mut random, n * k));
    let bias = draw(&mut random, n);
    let residual = draw(&mut random, m * n);
    let residual = if form == Form::Step { residual } else { checker.stored(residual) };
    let (reference, device) = layers(checker, n, k, &weight, &bias)?;
    let cpu_residual = Cpu.upload([m, n], &residual)?;
    let expected =
        form.run(&Cpu, &Cpu.upload([m, k], &x)?, &reference, activation, with_residual.then_some(&cpu_residual))?;
    let element = checker.cuda.dtype().size() as f64;
    let (mf, nf, kf) = (m as f64, n as f64, k as f64);
    let rows = if form == Form::Step { 4.0 } else { element };
    let case = Case {
        name: format!(
            "{m}x{n}x{k} {activation:?}{}{}",
            if with_residual { " residual" } else { "" },
            if exact { " whole" } else { "" }
        ),
        size,
        length: k,
        expected: Cpu.download(&expected)?,
        rounded: Vec::new(),
        exact,
        work: Work { flops: 2.0 * mf * nf * kf, bytes: nf * kf * element + (mf * kf + mf * nf) * rows },
    };
    let cuda = checker.cuda;
    let (x, residual) = if form == Form::Step {
        (cuda.upload([m, k], &x)?, cuda.upload([m, n], &residual)?)
    } else {
        (cuda.sequence([m, k], &x)?, cuda.sequence([m, n], &residual)?)
    };
    checker.case(case, form == Form::Step, &|cuda| {
        form.run(cuda, &x, &device, activation, with_residual.then_some(&residual))
    })
}

/// The last row alone gives the bits that it gives among all others.
fn alone(checker: &mut Checker<'_>, form: Form, (m, n, k): Shape, size: Size) -> Result<()> {
    let mut random = Random::new(77);
    let (x, weight, bias) = (random.values(m * k), random.values(n * k), random.values(n));
    let (_, device) = layers(checker, n, k, &weight, &bias)?;
    let cuda = checker.cuda;
    let all = form.run(cuda, &cuda.upload([m, k], &x)?, &device, Activation::Gelu, None)?;
    let last = cuda.upload([1, k], &x[(m - 1) * k..])?;
    let case = Case {
        name: format!("{m}x{n}x{k} last row alone"),
        size,
        length: k,
        expected: cuda.download(&all)?[(m - 1) * n..].to_vec(),
        rounded: Vec::new(),
        exact: true,
        work: Work::default(),
    };
    checker.case(case, true, &|cuda| form.run(cuda, &last, &device, Activation::Gelu, None))
}
