use im2sp::backend::cpu::Cpu;
use im2sp::backend::prelude::*;
use im2sp::backend::{Activation, Conv2dShape, Conv2dWeights};

use crate::common::assert_close;
use crate::{cases, ops, random, row, tensor, values};

/// Weights (outputs, depth) as they are stored, turned to (depth, outputs).
pub(crate) fn weights(outputs: usize, weight: &[f32], bias: &[f32]) -> Conv2dWeights<Cpu> {
    let depth = weight.len() / outputs.max(1);
    let turned: Vec<f32> = (0..weight.len()).map(|at| weight[at % outputs * depth + at / outputs]).collect();
    Conv2dWeights { weight: tensor(depth, outputs, &turned), bias: row(bias) }
}

/// The geometry of a golden case.
pub(crate) fn shape(case: &str) -> Conv2dShape {
    let index = std::fs::read(crate::common::golden("ops.json")).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    let number = |name: &str| index[case]["parameters"][name].as_u64().unwrap() as usize;
    Conv2dShape::same(number("side"), number("taps"), number("stride"))
}

#[test]
fn equals_golden() {
    let golden = ops();
    for case in cases(&golden, "conv2d", "images") {
        let get = |name: &str| golden.get(&format!("{case}.{name}"));
        let ((images_shape, images), (w_shape, w), (y_shape, y)) = (get("images"), get("weight"), get("y"));
        let (shape, weights) = (shape(&case), weights(w_shape[0], &w, &get("bias").1));
        let images = tensor(images_shape[0], images.len() / images_shape[0], &images);
        let depth = w_shape[1..].iter().product();
        let plain = Cpu.conv2d(&images, &weights, shape, Activation::None).unwrap();
        assert_eq!(Cpu.shape(&plain), [y_shape[..3].iter().product(), y_shape[3]], "{case}");
        assert_close(&case, &values(&plain), &y, depth);
        let bounded = Cpu.conv2d(&images, &weights, shape, Activation::Relu6).unwrap();
        assert_close(&format!("{case} relu6"), &values(&bounded), &get("relu6").1, depth);
    }
}

/// Whole numbers, whose sums are exact, at odd sizes and paddings.
#[test]
fn equals_the_definition() {
    let mut random = random(23);
    for (batch, inputs, outputs, side, taps, stride, padding) in [
        (1, 1, 1, 1, 1, 1, [0, 0]),
        (2, 3, 40, 9, 3, 2, [0, 1]),
        (1, 3, 17, 8, 4, 3, [2, 0]),
        (2, 2, 5, 2, 3, 1, [4, 5]),
        (3, 1, 8, 5, 5, 5, [0, 0]),
    ] {
        let shape = Conv2dShape { side, taps, stride, padding };
        let grid = shape.grid().unwrap();
        let depth = inputs * taps * taps;
        let (x, w) = (random.whole(batch * inputs * side * side), random.whole(outputs * depth));
        let bias = random.whole(outputs);
        let value = |at: usize| {
            let (row, output) = (at / outputs, at % outputs);
            let (image, top, left) = (row / grid / grid, row / grid % grid * stride, row % grid * stride);
            let mut sum = bias[output];
            for k in 0..depth {
                let (input, u, v) = (k / taps / taps, k / taps % taps, k % taps);
                let inside = |at: usize| at.checked_sub(padding[0]).filter(|&at| at < side);
                if let (Some(y), Some(x_at)) = (inside(top + u), inside(left + v)) {
                    sum += x[((image * inputs + input) * side + y) * side + x_at] * w[output * depth + k];
                }
            }
            sum
        };
        let expected: Vec<f32> = (0..batch * grid * grid * outputs).map(value).collect();
        let images = tensor(batch, inputs * side * side, &x);
        let y = Cpu.conv2d(&images, &weights(outputs, &w, &bias), shape, Activation::None).unwrap();
        assert_eq!(values(&y), expected, "{shape:?}");
    }
}

#[test]
fn edges_and_misfits() {
    let shape = Conv2dShape::same(3, 3, 1);
    let plain = || weights(2, &[1.0; 18], &[0.0; 2]);
    let conv = |x: &im2sp::backend::cpu::Tensor, weights: &Conv2dWeights<Cpu>, shape| {
        Cpu.conv2d(x, weights, shape, Activation::None).map(|y| (Cpu.shape(&y), values(&y)))
    };
    assert_eq!(conv(&tensor(0, 9, &[]), &plain(), shape).unwrap(), ([0, 2], vec![]));
    let image = tensor(1, 9, &[1.0; 9]);
    let (size, sums) = conv(&image, &plain(), shape).unwrap();
    assert_eq!((size, &sums[..4], sums[8]), ([9, 2], &[4.0, 4.0, 6.0, 6.0][..], 9.0));
    assert!(conv(&tensor(1, 8, &[1.0; 8]), &plain(), shape).is_err());
    assert!(conv(&image, &plain(), Conv2dShape { stride: 0, ..shape }).is_err());
    assert!(conv(&image, &plain(), Conv2dShape { taps: 0, ..shape }).is_err());
    assert!(conv(&image, &plain(), Conv2dShape { taps: 2, ..shape }).is_err());
    assert!(conv(&image, &plain(), Conv2dShape { side: 1, padding: [0, 0], ..shape }).is_err(), "no window");
    let short = Conv2dWeights { bias: row(&[0.0]), ..plain() };
    assert!(conv(&image, &short, shape).is_err());
}
