use im2sp::backend::cpu::{Cpu, Tensor};
use im2sp::backend::prelude::*;
use im2sp::backend::{Activation, LinearWeights};
use im2sp::tensor::DType;

use crate::common::{assert_close, tolerance};
use crate::{cases, coded, matrix, narrow_matrix, ops, random, row, tensor, values, whole_matrix};

fn layer(weight: im2sp::backend::cpu::Matrix, bias: &[f32]) -> LinearWeights<Cpu> {
    LinearWeights { weight, bias: row(bias) }
}

/// The form for sequences and the form for decode steps.
fn both(x: &Tensor, layer: &LinearWeights<Cpu>, activation: Activation, residual: Option<&Tensor>) -> [Tensor; 2] {
    [Cpu.linear(x, layer, activation, residual).unwrap(), Cpu.linear_decode(x, layer, activation, residual).unwrap()]
}

#[test]
fn equals_golden() {
    let golden = ops();
    for case in cases(&golden, "linear", "x") {
        let get = |name: &str| golden.get(&format!("{case}.{name}"));
        let ((x_shape, x), (w_shape, w)) = (get("x"), get("weight"));
        let (m, k, n) = (x_shape[0], x_shape[1], w_shape[0]);
        let x = tensor(m, k, &x);
        let layer = layer(matrix(n, k, &w), &get("bias").1);
        for (name, activation) in
            [("none", Activation::None), ("gelu", Activation::Gelu), ("quick_gelu", Activation::QuickGelu)]
        {
            if golden.has(&format!("{case}.{name}")) {
                for y in both(&x, &layer, activation, None) {
                    assert_close(&format!("{case} {name}"), &values(&y), &get(name).1, k);
                }
            }
        }
        if golden.has(&format!("{case}.with_residual")) {
            let residual = tensor(m, n, &get("residual").1);
            for y in both(&x, &layer, Activation::None, Some(&residual)) {
                assert_close(&format!("{case} residual"), &values(&y), &get("with_residual").1, k);
            }
        }
    }
}

/// Whole numbers are added without rounding, so every form has to be exact: few rows, many rows, f32, bf16 and int8 weights.
#[test]
fn is_exact_on_whole_numbers() {
    let mut random = random(1);
    for (m, n, k) in [
        (1, 1, 1),
        (1, 5, 31),
        (2, 9, 33),
        (3, 4, 64),
        (8, 300, 70),
        (9, 17, 100),
        (40, 600, 129),
        (530, 33, 48),
        (23, 49, 2100),
    ] {
        let mut whole = |len: usize| (0..len).map(|_| random.below(17) as f32 - 8.0).collect::<Vec<_>>();
        let (x, w, bias) = (whole(m * k), whole(n * k), whole(n));
        let expected: Vec<f32> = (0..m * n)
            .map(|i| {
                let (x, w) = (&x[i / n * k..][..k], &w[i % n * k..][..k]);
                x.iter().zip(w).map(|(x, w)| x * w).sum::<f32>() + bias[i % n]
            })
            .collect();
        for weight in [matrix(n, k, &w), narrow_matrix(n, k, &w), whole_matrix(n, k, &w)] {
            let (x, layer) = (tensor(m, k, &x), layer(weight, &bias));
            for y in both(&x, &layer, Activation::None, None) {
                assert_eq!(values(&y), expected, "{m}x{n}x{k}");
            }
        }
    }
}

/// A row's result does not depend on its neighbours, nor on how panels and rows are shared.
#[test]
fn rows_do_not_depend_on_their_neighbours() {
    let mut random = random(2);
    for (m, n, k) in [(19, 50, 1100), (211, 24, 33), (150, 16, 20), (49, 40, 64)] {
        let (x, w, bias) = (random.values(m * k), random.values(n * k), random.values(n));
        for weight in [matrix(n, k, &w), narrow_matrix(n, k, &w), Cpu.matrix(coded(n, k, &w)).unwrap()] {
            let layer = layer(weight, &bias);
            let all = both(&tensor(m, k, &x), &layer, Activation::Gelu, None);
            for row_index in 0..m {
                let one = both(&row(&x[row_index * k..][..k]), &layer, Activation::Gelu, None);
                for (one, all) in one.iter().zip(&all) {
                    assert_eq!(values(one), values(all)[row_index * n..][..n]);
                }
            }
        }
    }
}

/// Codes times scales are the product of the widened matrix, whose rounding is one more error for each product.
#[test]
fn codes_give_the_product_of_the_widened_matrix() {
    let mut random = random(4);
    for (m, n, k) in
        [(1, 1, 1), (1, 17, 3), (2, 15, 5), (3, 33, 31), (5, 203, 96), (8, 768, 768), (1, 768, 3072), (31, 47, 1030)]
    {
        // Rows of very different sizes.
        let w: Vec<f32> =
            random.values(n * k).iter().enumerate().map(|(i, v)| v * 10f32.powi((i / k % 9) as i32 - 4)).collect();
        let (x, bias, residual) = (random.values(m * k), random.values(n), random.values(m * n));
        let coded = coded(n, k, &w);
        let wide = Cpu.matrix(coded.to_dtype(DType::F32)).unwrap();
        let (x, residual) = (tensor(m, k, &x), tensor(m, n, &residual));
        let [sequence, step] = both(&x, &layer(Cpu.matrix(coded).unwrap(), &bias), Activation::Gelu, Some(&residual));
        let [expected, _] = both(&x, &layer(wide, &bias), Activation::Gelu, Some(&residual));
        for y in [sequence, step] {
            assert_close(&format!("{m}x{n}x{k}"), &values(&y), &values(&expected), k);
        }
    }
}

#[test]
fn gelu_is_accurate_everywhere() {
    let xs: Vec<f32> = (-12_000..=12_000).map(|i| i as f32 * 1e-3).collect();
    let layer = layer(matrix(1, 1, &[1.0]), &[0.0]);
    let y = values(&Cpu.linear(&tensor(xs.len(), 1, &xs), &layer, Activation::QuickGelu, None).unwrap());
    for (x, y) in xs.iter().zip(y) {
        let x = f64::from(*x);
        let expected = x / (1.0 + (-1.702 * x).exp());
        assert!((f64::from(y) - expected).abs() <= f64::from(tolerance(1, x.abs().max(1.0) as f32)), "{x}: {y}");
    }
}

#[test]
fn tanh_and_its_slope_are_accurate_everywhere() {
    let xs: Vec<f32> = (-12_000..=12_000).map(|i| i as f32 * 1e-3).chain([-1e30, 1e30]).collect();
    let (layer, x) = (layer(matrix(1, 1, &[1.0]), &[0.0]), tensor(xs.len(), 1, &xs));
    let y = values(&Cpu.linear(&x, &layer, Activation::Tanh, None).unwrap());
    let dy = tensor(xs.len(), 1, &vec![1.0; xs.len()]);
    let slope = values(&Cpu.linear_backward(&dy, &layer, Some((Activation::Tanh, &x)), None).unwrap());
    for (x, (y, slope)) in xs.iter().zip(y.iter().zip(&slope)) {
        let expected = f64::from(*x).tanh();
        assert!((f64::from(*y) - expected).abs() <= f64::from(tolerance(1, 1.0)), "{x}: {y}");
        assert!(
            (f64::from(*slope) - (1.0 - expected * expected)).abs() <= f64::from(tolerance(2, 1.0)),
            "{x}: {slope}"
        );
    }
}

#[test]
fn relu6_and_its_slope_are_exact() {
    let xs = [-1e30, -6.0, -1e-30, 0.0, 1e-30, 0.5, 5.999, 6.0, 6.001, 1e30];
    let (layer, x) = (layer(matrix(1, 1, &[1.0]), &[0.0]), tensor(xs.len(), 1, &xs));
    let y = values(&Cpu.linear(&x, &layer, Activation::Relu6, None).unwrap());
    assert_eq!(y, xs.map(|x: f32| x.clamp(0.0, 6.0)));
    let dy = tensor(xs.len(), 1, &[3.0; 10]);
    let slope = values(&Cpu.linear_backward(&dy, &layer, Some((Activation::Relu6, &x)), None).unwrap());
    assert_eq!(slope, xs.map(|x| if x > 0.0 && x < 6.0 { 3.0 } else { 0.0 }));
}

#[test]
fn edges_and_misfits() {
    let layer = layer(matrix(3, 2, &[1.0; 6]), &[0.5; 3]);
    let none = Cpu.linear(&tensor(0, 2, &[]), &layer, Activation::Gelu, None).unwrap();
    assert_eq!(Cpu.shape(&none), [0, 3]);
    let error = Cpu.linear(&tensor(2, 3, &[0.0; 6]), &layer, Activation::None, None).unwrap_err().to_string();
    assert!(error.contains("linear") && error.contains("(2, 3)") && error.contains("(3, 2)"), "{error}");
    let residual = tensor(1, 2, &[0.0; 2]);
    assert!(Cpu.linear(&tensor(1, 2, &[0.0; 2]), &layer, Activation::None, Some(&residual)).is_err());
}
