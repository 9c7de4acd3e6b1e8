use im2sp::backend::cpu::{Block, Cpu};
use im2sp::backend::prelude::*;
use im2sp::backend::{AdamWStep, BlockPart};

use crate::common::{Golden, assert_close};
use crate::random;

const PARTS: [BlockPart; 3] = [BlockPart::Values, BlockPart::FirstMoments, BlockPart::SecondMoments];

fn arrays(block: &Block) -> [Vec<f32>; 3] {
    PARTS.map(|part| Cpu.read_block(block, part).unwrap())
}

fn step(step: u64) -> AdamWStep {
    let (rate, beta1, beta2, eps) = (0.01, 0.9, 0.98, 1e-8);
    AdamWStep { rate, beta1, beta2, eps, weight_decay: 0.1, step, gradient_scale: 1.0 }
}

/// Runs of torch.optim.AdamW.
#[test]
fn equals_pytorch() {
    let golden = Golden::open("adamw.safetensors");
    for case in crate::cases(&golden, "adamw", "numbers") {
        let get = |name: &str| golden.f32(&format!("{case}.{name}"));
        let [beta1, beta2, eps, weight_decay] = get("numbers").try_into().unwrap();
        let (values, rates, gradients) = (get("values"), get("rates"), get("gradients"));
        let mut block = Cpu.parameter_block(&values).unwrap();
        for (n, (&rate, gradients)) in rates.iter().zip(gradients.chunks_exact(values.len())).enumerate() {
            let step = n as u64 + 1;
            let step = AdamWStep { rate, beta1, beta2, eps, weight_decay, step, gradient_scale: 1.0 };
            Cpu.adamw(&mut block, &gradients.to_vec(), step).unwrap();
            if n == 0 {
                assert_close(&format!("{case}, one step"), &arrays(&block)[0], &get("after_one"), 1);
            }
        }
        assert_eq!(rates.len(), 20);
        let [values, first, second] = arrays(&block);
        assert_close(&case, &values, &get("after"), rates.len());
        // Moments of gradients of one size with each other: the smallest are not hidden by the largest.
        for (name, actual) in [("first", first), ("second", second)] {
            let expected = get(name);
            for kind in 0..5 {
                let of_kind = |values: &[f32]| values.iter().skip(kind).step_by(5).copied().collect::<Vec<f32>>();
                let what = format!("{case}, {name}, kind {kind}");
                assert_close(&what, &of_kind(&actual), &of_kind(&expected), rates.len());
            }
        }
    }
}

/// Value by value in f64, at lengths around a vector and a task.
#[test]
fn equals_the_definition() {
    let mut random = random(41);
    for len in [1, 2, 15, 17, 203, 32_767, 32_768, 70_001] {
        let values = random.values(len);
        let gradients: Vec<Vec<f32>> = (0..3).map(|_| random.values(len)).collect();
        let mut block = Cpu.parameter_block(&values).unwrap();
        let mut p: Vec<f64> = values.iter().map(|&v| f64::from(v)).collect();
        let (mut m, mut v) = (vec![0.0f64; len], vec![0.0f64; len]);
        for (n, gradients) in gradients.iter().enumerate() {
            let step = AdamWStep { gradient_scale: 0.37, ..step(n as u64 + 1) };
            Cpu.adamw(&mut block, gradients, step).unwrap();
            let [rate, beta1, beta2, eps, decay, scale] =
                [step.rate, step.beta1, step.beta2, step.eps, step.weight_decay, step.gradient_scale].map(f64::from);
            let rest = |beta: f64| 1.0 - beta.powi(n as i32 + 1);
            for i in 0..len {
                let g = f64::from(gradients[i]) * scale;
                p[i] -= rate * decay * p[i];
                m[i] += (1.0 - beta1) * (g - m[i]);
                v[i] = beta2 * v[i] + (1.0 - beta2) * g * g;
                p[i] -= rate / rest(beta1) * m[i] / (v[i].sqrt() / rest(beta2).sqrt() + eps);
            }
        }
        for (actual, expected) in arrays(&block).iter().zip([p, m, v]) {
            let expected: Vec<f32> = expected.into_iter().map(|v| v as f32).collect();
            assert_close(&format!("{len} values"), actual, &expected, 3);
        }
    }
}

/// A first step moves by the rate, against the sign of the gradient and whatever its size; without a gradient, only decay moves.
#[test]
fn first_step_and_decay() {
    let mut block = Cpu.parameter_block(&[1.0, 1.0, 1.0, 0.0]).unwrap();
    Cpu.adamw(&mut block, &vec![3.0, -1e-3, 0.0, 0.0], AdamWStep { weight_decay: 0.0, ..step(1) }).unwrap();
    assert_close("the first step", &arrays(&block)[0], &[0.99, 1.01, 1.0, 0.0], 1);
    let mut block = Cpu.parameter_block(&[2.0, 0.0]).unwrap();
    Cpu.adamw(&mut block, &vec![0.0; 2], step(1)).unwrap();
    let [values, first, second] = arrays(&block);
    assert_close("decay", &values, &[2.0 * (1.0 - 0.001), 0.0], 1);
    assert_eq!((values[1], first, second), (0.0, vec![0.0; 2], vec![0.0; 2]), "padding stays zero");
}

/// A run that is stopped and continued from its arrays is the same, bit for bit, with any number of threads.
#[test]
fn continues_where_it_was_left() {
    let mut random = random(42);
    let values = random.values(100_003);
    let gradients: Vec<Vec<f32>> = (0..4).map(|_| random.values(values.len())).collect();
    let mut whole = Cpu.parameter_block(&values).unwrap();
    for (n, gradients) in gradients.iter().enumerate() {
        Cpu.adamw(&mut whole, gradients, step(n as u64 + 1)).unwrap();
    }
    let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let mut block = Cpu.parameter_block(&values).unwrap();
    for (n, gradients) in gradients.iter().enumerate() {
        let saved = arrays(&block);
        block = Cpu.parameter_block(&vec![0.0; values.len()]).unwrap();
        for (part, values) in PARTS.into_iter().zip(&saved) {
            Cpu.write_block(&mut block, part, values).unwrap();
        }
        alone.install(|| Cpu.adamw(&mut block, gradients, step(n as u64 + 1))).unwrap();
    }
    assert_eq!(arrays(&whole), arrays(&block));
}

#[test]
fn edges_and_misfits() {
    let mut empty = Cpu.parameter_block(&[]).unwrap();
    Cpu.adamw(&mut empty, &Vec::new(), step(1)).unwrap();
    let mut block = Cpu.parameter_block(&[1.0, 2.0]).unwrap();
    let problem = Cpu.adamw(&mut block, &vec![0.0; 3], step(1)).unwrap_err().to_string();
    assert_eq!(problem, "adamw: 3 gradients for 2 values, step 1");
    assert!(Cpu.adamw(&mut block, &vec![0.0; 2], step(0)).is_err(), "steps are counted from 1");
    assert_eq!(arrays(&block), [vec![1.0, 2.0], vec![0.0; 2], vec![0.0; 2]], "what is refused changes nothing");
    Cpu.adamw(&mut block, &vec![f32::NAN, 1.0], step(1)).unwrap();
    let [values, ..] = arrays(&block);
    assert!(values[0].is_nan() && values[1] < 2.0, "{values:?}");
    // So late that no correction is left.
    Cpu.adamw(&mut block, &vec![1.0; 2], step(u64::MAX)).unwrap();
    assert!(arrays(&block)[0][1].is_finite());
}
