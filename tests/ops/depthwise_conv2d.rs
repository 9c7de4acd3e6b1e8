use im2sp::backend::cpu::{Cpu, Tensor};
use im2sp::backend::prelude::*;
use im2sp::backend::{Activation, Conv2dShape, Conv2dWeights};

use crate::common::assert_close;
use crate::conv2d::{shape, weights};
use crate::{cases, ops, random, row, tensor, values};

#[test]
fn equals_golden() {
    let golden = ops();
    for case in cases(&golden, "depthwise_conv2d", "x") {
        let get = |name: &str| golden.get(&format!("{case}.{name}"));
        let ((x_shape, x), (w_shape, w), (_, y)) = (get("x"), get("weight"), get("y"));
        let (shape, weights) = (shape(&case), weights(w_shape[0], &w, &get("bias").1));
        let x = tensor(x_shape[..3].iter().product(), x_shape[3], &x);
        let plain = Cpu.depthwise_conv2d(&x, &weights, shape, Activation::None).unwrap();
        assert_close(&case, &values(&plain), &y, shape.window());
        let bounded = Cpu.depthwise_conv2d(&x, &weights, shape, Activation::Relu6).unwrap();
        assert_close(&format!("{case} relu6"), &values(&bounded), &get("relu6").1, shape.window());
    }
}

/// Whole numbers, whose sums are exact, with channels around registers and rows around runs of windows.
#[test]
fn equals_the_definition() {
    let mut random = random(24);
    for (batch, channels, side, taps, stride, padding) in [
        (1, 1, 1, 1, 1, [0, 0]),
        (2, 16, 9, 3, 2, [0, 1]),
        (1, 17, 8, 4, 3, [2, 0]),
        (2, 5, 2, 3, 1, [4, 5]),
        (3, 33, 12, 5, 1, [2, 2]),
        (1, 40, 7, 3, 1, [1, 1]),
        (1, 8, 14, 5, 2, [1, 2]),
    ] {
        let shape = Conv2dShape { side, taps, stride, padding };
        let grid = shape.grid().unwrap();
        let (x, w) = (random.whole(batch * side * side * channels), random.whole(channels * taps * taps));
        let bias = random.whole(channels);
        let value = |at: usize| {
            let (row, channel) = (at / channels, at % channels);
            let (map, top, left) = (row / grid / grid, row / grid % grid * stride, row % grid * stride);
            let mut sum = bias[channel];
            for (u, v) in (0..taps * taps).map(|k| (k / taps, k % taps)) {
                let inside = |at: usize| at.checked_sub(padding[0]).filter(|&at| at < side);
                if let (Some(y), Some(x_at)) = (inside(top + u), inside(left + v)) {
                    let pixel = (map * side + y) * side + x_at;
                    sum += x[pixel * channels + channel] * w[channel * taps * taps + u * taps + v];
                }
            }
            sum
        };
        let expected: Vec<f32> = (0..batch * grid * grid * channels).map(value).collect();
        let maps = tensor(batch * side * side, channels, &x);
        let y = Cpu.depthwise_conv2d(&maps, &weights(channels, &w, &bias), shape, Activation::None).unwrap();
        assert_eq!(values(&y), expected, "{shape:?} {channels}");
    }
}

#[test]
fn edges_and_misfits() {
    let shape = Conv2dShape::same(2, 3, 1);
    let plain = || weights(2, &[1.0; 18], &[-5.0, 1.0]);
    let conv = |x: &Tensor, weights: &Conv2dWeights<Cpu>, shape| {
        Cpu.depthwise_conv2d(x, weights, shape, Activation::Relu6).map(|y| (Cpu.shape(&y), values(&y)))
    };
    assert_eq!(conv(&tensor(0, 2, &[]), &plain(), shape).unwrap(), ([0, 2], vec![]));
    let x = tensor(4, 2, &[2.0; 8]);
    assert_eq!(conv(&x, &plain(), shape).unwrap(), ([4, 2], [3.0, 6.0].repeat(4)));
    assert!(
        values(&Cpu.depthwise_conv2d(&tensor(4, 2, &[f32::NAN; 8]), &plain(), shape, Activation::Relu6).unwrap())
            .iter()
            .all(|value| value.is_nan())
    );
    assert!(conv(&tensor(3, 2, &[1.0; 6]), &plain(), shape).is_err());
    assert!(conv(&tensor(4, 1, &[1.0; 4]), &plain(), shape).is_err());
    assert!(conv(&x, &plain(), Conv2dShape { stride: 0, ..shape }).is_err());
    assert!(conv(&x, &plain(), Conv2dShape { taps: 2, ..shape }).is_err());
    let short = Conv2dWeights { bias: row(&[0.0]), ..plain() };
    assert!(conv(&x, &short, shape).is_err());
}
