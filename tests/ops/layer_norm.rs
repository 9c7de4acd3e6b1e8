use im2sp::backend::cpu::{Cpu, Tensor};
use im2sp::backend::prelude::*;
use im2sp::backend::{LayerNormWeights, Parameter, WeightAndBias};

use crate::common::assert_close;
use crate::{cases, ops, random, row, slopes, tensor, values};

const EPS: f32 = 1e-5;

#[test]
fn equals_golden() {
    let golden = ops();
    for case in cases(&golden, "layer_norm", "x") {
        let get = |name: &str| golden.get(&format!("{case}.{name}"));
        let (shape, x) = get("x");
        for (name, eps) in [("eps_1e-5", 1e-5), ("eps_1e-12", 1e-12)] {
            if golden.has(&format!("{case}.{name}")) {
                let norm = LayerNormWeights::<Cpu> { weight: row(&get("weight").1), bias: row(&get("bias").1), eps };
                let y = Cpu.layer_norm(&tensor(shape[0], shape[1], &x), &norm).unwrap();
                // Large magnitudes lose what the mean takes away, relative to the spread of the row.
                let magnitude = x.iter().fold(1.0f32, |max, v| max.max(v.abs()));
                let length = shape[1] * magnitude.log2().max(1.0) as usize;
                assert_close(&format!("{case} {name}"), &values(&y), &get(name).1, length);
            }
        }
    }
}

/// Places of weight and bias among [`GRADIENTS`] gradients of norms of at most 400 channels.
fn places(channels: usize) -> WeightAndBias {
    let place = |start| Parameter { start, rows: 1, columns: channels };
    WeightAndBias { weight: place(512), bias: place(0) }
}
const GRADIENTS: usize = 1024;

/// Gradients at x, weight and bias, which were zero before.
fn backward(
    [rows, channels]: [usize; 2],
    dy: &[f32],
    x: &[f32],
    weight: &[f32],
    residual: Option<&Tensor>,
) -> [Vec<f32>; 3] {
    let x = tensor(rows, channels, x);
    let norm = LayerNormWeights::<Cpu> { weight: row(weight), bias: row(&vec![0.3; channels]), eps: EPS };
    let (y, saved) = Cpu.layer_norm_saving(&x, &norm).unwrap();
    assert_eq!(values(&y), values(&Cpu.layer_norm(&x, &norm).unwrap()));
    let (mut gradients, at) = (vec![0.0; GRADIENTS], places(channels));
    let dy = tensor(rows, channels, dy);
    let dx = Cpu.layer_norm_backward(&dy, &x, &norm, &saved, residual, Some((&mut gradients, at))).unwrap();
    let frozen = Cpu.layer_norm_backward(&dy, &x, &norm, &saved, residual, None).unwrap();
    assert_eq!(values(&dx), values(&frozen));
    let [dweight, dbias] = [at.weight, at.bias].map(|at| gradients[at.range()].to_vec());
    gradients[at.weight.range()].fill(0.0);
    gradients[at.bias.range()].fill(0.0);
    assert_eq!(gradients, vec![0.0; GRADIENTS], "gradients of others");
    [values(&dx), dweight, dbias]
}

/// Normalised rows, and each row's rstd, in f64.
fn normal(channels: usize, x: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let (mut normal, mut rstds) = (Vec::new(), Vec::new());
    for x in x.chunks_exact(channels) {
        let mean = x.iter().sum::<f64>() / channels as f64;
        let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / channels as f64;
        rstds.push(1.0 / (variance + f64::from(EPS)).sqrt());
        normal.extend(x.iter().map(|v| (v - mean) * rstds[rstds.len() - 1]));
    }
    (normal, rstds)
}

/// The formula in f64, at numbers of rows around the shares that are added up by themselves.
#[test]
fn backward_equals_the_formula() {
    let mut random = random(5);
    for (rows, channels) in [(1, 3), (5, 16), (3, 17), (63, 31), (64, 33), (129, 5), (200, 192), (7, 400)] {
        let [dy, x, residual] = [(); 3].map(|()| random.values(rows * channels));
        let weight = random.values(channels);
        let wide = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>();
        let (normal, rstds) = normal(channels, &wide(&x));
        let mut expected = [vec![0.0; x.len()], vec![0.0; channels], vec![0.0; channels]];
        for (r, rstd) in rstds.iter().enumerate() {
            let at = r * channels..(r + 1) * channels;
            let (dy, normal) = (&wide(&dy[at.clone()]), &normal[at.clone()]);
            let scaled: Vec<f64> = dy.iter().zip(&weight).map(|(d, &w)| d * f64::from(w)).collect();
            let level = scaled.iter().sum::<f64>() / channels as f64;
            let slope = scaled.iter().zip(normal).map(|(d, n)| d * n).sum::<f64>() / channels as f64;
            for (c, at) in at.enumerate() {
                expected[0][at] = rstd * (scaled[c] - level - normal[c] * slope) + f64::from(residual[at]);
                expected[1][c] += dy[c] * normal[c];
                expected[2][c] += dy[c];
            }
        }
        let gradients = backward([rows, channels], &dy, &x, &weight, Some(&tensor(rows, channels, &residual)));
        for (n, (gradient, expected)) in gradients.iter().zip(&expected).enumerate() {
            let expected: Vec<f32> = expected.iter().map(|&v| v as f32).collect();
            assert_close(&format!("{rows}x{channels}, output {n}"), gradient, &expected, rows + channels);
        }
    }
}

#[test]
fn backward_is_the_slope() {
    let mut random = random(6);
    for (rows, channels) in [(1, 3), (3, 5)] {
        let [dy, x] = [(); 2].map(|()| random.values(rows * channels));
        let weight = random.values(channels);
        let loss = |all: &[f64]| {
            let (x, parameters) = all.split_at(rows * channels);
            let (weight, bias) = parameters.split_at(channels);
            let (normal, _) = normal(channels, x);
            let term = |(i, n): (usize, &f64)| f64::from(dy[i]) * (n * weight[i % channels] + bias[i % channels]);
            normal.iter().enumerate().map(term).sum()
        };
        let all = [&x[..], &weight, &vec![0.3; channels]].concat();
        let gradients = backward([rows, channels], &dy, &x, &weight, None).concat();
        assert_close(&format!("{rows}x{channels}"), &gradients, &slopes(&all, loss), 16 * channels);
    }
}

#[test]
fn gradients_are_added_to() {
    let at = places(4);
    let norm = LayerNormWeights::<Cpu> { weight: row(&[1.0; 4]), bias: row(&[0.0; 4]), eps: EPS };
    let (x, dy) = (tensor(2, 4, &[1.0, 2.0, 3.0, 4.0, 4.0, 3.0, 2.0, 1.0]), tensor(2, 4, &[1.0; 8]));
    let saved = Cpu.layer_norm_saving(&x, &norm).unwrap().1;
    let mut gradients = vec![10.0; GRADIENTS];
    for _ in 0..2 {
        Cpu.layer_norm_backward(&dy, &x, &norm, &saved, None, Some((&mut gradients, at))).unwrap();
    }
    assert_eq!(gradients[at.bias.range()], [14.0; 4]);
    assert_close("weight", &gradients[at.weight.range()], &[10.0; 4], 8);
}

#[test]
fn edges_and_misfits() {
    let norm = |c| LayerNormWeights::<Cpu> { weight: row(&vec![2.0; c]), bias: row(&vec![1.0; c]), eps: 1e-5 };
    assert_eq!(Cpu.shape(&Cpu.layer_norm(&tensor(0, 4, &[]), &norm(4)).unwrap()), [0, 4]);
    // A single column is its own mean.
    assert_eq!(values(&Cpu.layer_norm(&tensor(2, 1, &[3.0, -7.0]), &norm(1)).unwrap()), [1.0, 1.0]);
    assert!(Cpu.layer_norm(&tensor(1, 3, &[0.0; 3]), &norm(4)).is_err());
    let y = values(&Cpu.layer_norm(&tensor(1, 4, &[0.0, f32::NAN, 0.0, 1.0]), &norm(4)).unwrap());
    assert!(y.iter().all(|v| v.is_nan()), "NaN is not hidden");

    let (x, saved) = (tensor(2, 4, &[1.0; 8]), tensor(2, 2, &[0.0; 4]));
    let back = |dy: &Tensor, saved: &Tensor, residual: Option<&Tensor>, at: WeightAndBias, count: usize| {
        let mut gradients = vec![0.0; count];
        Cpu.layer_norm_backward(dy, &x, &norm(4), saved, residual, Some((&mut gradients, at))).map(drop)
    };
    assert!(back(&x, &saved, Some(&x), places(4), GRADIENTS).is_ok());
    assert!(back(&tensor(4, 2, &[0.0; 8]), &saved, None, places(4), GRADIENTS).is_err());
    assert!(back(&x, &tensor(4, 1, &[0.0; 4]), None, places(4), GRADIENTS).is_err());
    assert!(back(&x, &saved, Some(&saved), places(4), GRADIENTS).is_err());
    assert!(back(&x, &saved, None, places(3), GRADIENTS).is_err());
    assert!(back(&x, &saved, None, places(4), 515).is_err());
    for (rows, channels) in [(0, 4), (3, 0), (0, 0)] {
        let (x, norm) = (tensor(rows, channels, &vec![1.0; rows * channels]), norm(channels));
        let (y, saved) = Cpu.layer_norm_saving(&x, &norm).unwrap();
        assert_eq!((Cpu.shape(&y), Cpu.shape(&saved)), ([rows, channels], [rows, 2]));
        let dx = Cpu.layer_norm_backward(&x, &x, &norm, &saved, Some(&x), None).unwrap();
        assert_eq!(Cpu.shape(&dx), [rows, channels]);
    }
}
