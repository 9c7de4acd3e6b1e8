use im2sp::backend::cpu::{Cpu, Matrix, Tensor};
use im2sp::backend::prelude::*;
use im2sp::backend::{Activation, FrameConvShape, LayerNormWeights, LinearWeights, Sequences};

use crate::common::assert_close;
use crate::{cases, coded, matrix, narrow_matrix, ops, random, row, tensor, values};

fn layer(weight: Matrix, bias: &[f32]) -> LinearWeights<Cpu> {
    LinearWeights { weight, bias: row(bias) }
}

#[test]
fn equals_golden() {
    let golden = ops();
    let index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(crate::common::golden("ops.json")).unwrap()).unwrap();
    for case in cases(&golden, "frame_conv", "x") {
        let get = |name: &str| golden.get(&format!("{case}.{name}"));
        let parameters = &index[&case]["parameters"];
        let number = |value: &serde_json::Value| value.as_u64().unwrap() as usize;
        let shape = FrameConvShape {
            taps: number(&parameters["taps"]),
            stride: number(&parameters["stride"]),
            padding: [number(&parameters["padding"][0]), number(&parameters["padding"][1])],
            groups: number(&parameters["groups"]),
        };
        let ((x_shape, x), (w_shape, w), (y_shape, y)) = (get("x"), get("weight"), get("y"));
        let depth = w_shape[1] * w_shape[2];
        let layer = layer(matrix(w_shape[0], depth, &w), &get("bias").1);
        let x = tensor(x_shape[0], x_shape[1], &x);
        let plain = Cpu.frame_conv(&x, &layer, shape, Activation::None, None, None).unwrap();
        assert_eq!(Cpu.shape(&plain), [y_shape[0], y_shape[1]], "{case}");
        assert_close(&case, &values(&plain), &y, depth);
        let residual = tensor(y_shape[0], y_shape[1], &get("residual").1);
        let y = Cpu.frame_conv(&x, &layer, shape, Activation::Gelu, Some(&residual), None).unwrap();
        assert_close(&format!("{case} gelu"), &values(&y), &get("gelu").1, depth);
    }
}

/// Whole numbers, whose sums are exact, with weights of both types, at sizes around tiles and panels.
#[test]
fn equals_the_definition() {
    let mut random = random(21);
    for (frames, inputs, outputs, taps, stride, padding, groups) in [
        (1, 1, 1, 1, 1, [0, 0], 1),
        (400, 1, 49, 10, 5, [0, 0], 1),
        (33, 17, 100, 3, 2, [0, 0], 1),
        (3, 512, 512, 3, 2, [0, 0], 1),
        (6, 520, 513, 3, 2, [0, 0], 1),
        (11, 512, 550, 3, 2, [0, 0], 1),
        (70, 64, 48, 2, 2, [0, 0], 1),
        (50, 48, 96, 128, 1, [64, 63], 16),
        (9, 12, 6, 5, 4, [3, 1], 3),
        (2, 2, 2, 5, 1, [0, 4], 2),
    ] {
        let shape = FrameConvShape { taps, stride, padding, groups };
        let (part, columns) = (inputs / groups, outputs / groups);
        let (x, w) = (random.whole(frames * inputs), random.whole(outputs * taps * part));
        let bias = random.whole(outputs);
        let rows = shape.windows(frames);
        let value = |m: usize, n: usize| {
            let mut y = bias[n];
            for (tap, c) in (0..taps).flat_map(|tap| (0..part).map(move |c| (tap, c))) {
                if let Some(frame) = (m * stride + tap).checked_sub(padding[0]).filter(|&frame| frame < frames) {
                    y += x[frame * inputs + n / columns * part + c] * w[(n * taps + tap) * part + c];
                }
            }
            y
        };
        let expected: Vec<f32> = (0..rows * outputs).map(|i| value(i / outputs, i % outputs)).collect();
        for weight in [matrix(outputs, taps * part, &w), narrow_matrix(outputs, taps * part, &w)] {
            let x = tensor(frames, inputs, &x);
            let y = Cpu.frame_conv(&x, &layer(weight, &bias), shape, Activation::None, None, None).unwrap();
            assert_eq!(values(&y), expected, "{frames} {inputs} {outputs} {shape:?}");
        }
    }
}

#[test]
fn edges_and_misfits() {
    let weights = |n: usize, k: usize| layer(matrix(n, k, &vec![1.0; n * k]), &vec![1.0; n]);
    let conv = |x: &Tensor, layer: &LinearWeights<Cpu>, shape, residual: Option<&Tensor>| {
        Cpu.frame_conv(x, layer, shape, Activation::None, residual, None).map(|y| (Cpu.shape(&y), values(&y)))
    };
    let strided = FrameConvShape::strided(3, 2);
    let x = tensor(5, 2, &[1.0; 10]);
    assert_eq!(conv(&x, &weights(1, 6), strided, None).unwrap(), ([2, 1], vec![7.0; 2]));
    // Fewer frames than a window has are no window.
    for frames in [0, 1, 2] {
        let x = tensor(frames, 2, &vec![1.0; 2 * frames]);
        assert_eq!(conv(&x, &weights(4, 6), strided, None).unwrap(), ([0, 4], vec![]));
    }
    for frames in [0, 1, 2] {
        let (x, bias) = (tensor(frames, 512, &vec![1.0; 512 * frames]), vec![1.0; 512]);
        let layer = layer(matrix(512, 1536, &vec![1.0; 512 * 1536]), &bias);
        assert_eq!(conv(&x, &layer, strided, None).unwrap(), ([0, 512], vec![]));
    }
    let same = FrameConvShape { taps: 4, stride: 1, padding: [2, 1], groups: 2 };
    assert_eq!(conv(&tensor(1, 2, &[3.0, 5.0]), &weights(2, 4), same, None).unwrap(), ([1, 2], vec![4.0, 6.0]));
    assert!(conv(&x, &weights(1, 5), strided, None).is_err());
    assert!(conv(&x, &weights(1, 6), FrameConvShape { stride: 0, ..strided }, None).is_err());
    assert!(conv(&x, &weights(1, 6), FrameConvShape { groups: 0, ..strided }, None).is_err());
    assert!(conv(&x, &weights(1, 0), FrameConvShape { taps: 0, ..strided }, None).is_err());
    assert!(conv(&x, &weights(1, 3), FrameConvShape { groups: 2, ..strided }, None).is_err(), "one output, two groups");
    assert!(conv(&x, &weights(1, 6), strided, Some(&tensor(1, 1, &[0.0]))).is_err());
    let short = LinearWeights { bias: row(&[0.0; 2]), ..weights(1, 6) };
    assert!(conv(&x, &short, strided, None).is_err());
    let eight = layer(Cpu.matrix(coded(1, 6, &[1.0; 6])).unwrap(), &[0.0]);
    assert!(conv(&x, &eight, strided, None).is_err(), "eight bits");
}

/// The windows of each sequence are those that it has alone, bit for bit; rows of none are zeros.
#[test]
fn sequences_are_convolved_by_themselves() {
    let (parts, channels) = (vec![0..7, 7..8, 9..9, 12..50], 6);
    let shape = FrameConvShape { taps: 8, stride: 1, padding: [4, 3], groups: 3 };
    let mut random = random(24);
    let (x, added) = (random.values(52 * channels), random.values(52 * channels));
    let layer = layer(matrix(channels, 16, &random.values(channels * 16)), &random.values(channels));
    let convolve = |at: std::ops::Range<usize>, sequences: Option<&Sequences>| {
        let rows = at.len();
        let part = |values: &[f32]| tensor(rows, channels, &values[at.start * channels..at.end * channels]);
        let (x, added) = (part(&x), part(&added));
        Cpu.frame_conv(&x, &layer, shape, Activation::Gelu, Some(&added), sequences).map(|y| values(&y))
    };
    let y = convolve(0..52, Some(&Sequences::new(52, parts.clone()).unwrap())).unwrap();
    let mut expected = vec![0.0; y.len()];
    for part in parts {
        expected[part.start * channels..part.end * channels].copy_from_slice(&convolve(part, None).unwrap());
    }
    assert_eq!(y, expected);
    assert!(convolve(0..52, Some(&Sequences::one(51))).is_err());
    // Only where there is a window for each frame.
    let strided = FrameConvShape { stride: 2, ..shape };
    let whole = Sequences::one(52);
    let x = tensor(52, channels, &x);
    assert!(Cpu.frame_conv(&x, &layer, strided, Activation::Gelu, None, Some(&whole)).is_err());
}

/// Recordings one after another, each from a group of windows on, give the windows that each has alone, bit for bit.
#[test]
fn groups_of_windows_do_not_depend_on_others() {
    let mut random = random(25);
    for (channels, outputs, taps, stride) in
        [(80, 70, 3, 2), (512, 512, 3, 2), (6, 9, 3, 2), (66, 130, 2, 2), (1, 64, 10, 5)]
    {
        let shape = FrameConvShape::strided(taps, stride);
        let group = stride * Cpu::frame_conv_group(shape);
        let x = random.values(401 * channels);
        let layer =
            layer(matrix(outputs, taps * channels, &random.values(outputs * taps * channels)), &vec![0.5; outputs]);
        let convolve = |at: std::ops::Range<usize>| {
            let x = tensor(at.len(), channels, &x[at.start * channels..at.end * channels]);
            values(&Cpu.frame_conv(&x, &layer, shape, Activation::Gelu, None, None).unwrap())
        };
        let all = convolve(0..401);
        for (first, frames) in [(0, taps), (0, 399), (3 * group, taps + stride), (10 * group, 150), (20 * group, 151)] {
            let alone = convolve(first..first + frames);
            let at = first / stride * outputs;
            assert_eq!(alone, all[at..at + alone.len()], "{channels} {outputs} {shape:?} {first} {frames}");
        }
    }
}

/// The norm of windows gives the bits of the operations one after another.
#[test]
fn norms_of_windows_equal_those_afterwards() {
    let mut random = random(26);
    for (frames, channels, outputs, taps, stride) in [
        (9, 1, 12, 10, 5),
        (700, 1, 512, 10, 5),
        (900, 512, 512, 3, 2),
        (300, 128, 96, 2, 2),
        (3, 64, 64, 3, 2),
        (66, 7, 9, 3, 1),
    ] {
        let shape = FrameConvShape::strided(taps, stride);
        let x = tensor(frames, channels, &random.values(frames * channels));
        let weight = random.values(outputs * taps * channels);
        let [weights, bias] = [(); 2].map(|()| row(&random.values(outputs)));
        let norm = LayerNormWeights { weight: weights, bias, eps: 1e-5 };
        for weight in [matrix(outputs, taps * channels, &weight), narrow_matrix(outputs, taps * channels, &weight)] {
            let layer = layer(weight, &random.values(outputs));
            let y = Cpu.frame_conv_normed(&x, &layer, shape, &norm).unwrap();
            let sums = Cpu.frame_conv(&x, &layer, shape, Activation::None, None, None).unwrap();
            let expected = Cpu.gelu(&Cpu.layer_norm(&sums, &norm).unwrap()).unwrap();
            assert_eq!((Cpu.shape(&y), values(&y)), (Cpu.shape(&expected), values(&expected)), "{channels} {shape:?}");
            let short = LayerNormWeights { weight: row(&[1.0]), bias: row(&[1.0]), eps: 1e-5 };
            assert!(Cpu.frame_conv_normed(&x, &layer, shape, &short).is_err());
        }
        let eight =
            layer(Cpu.matrix(coded(outputs, taps * channels, &vec![1.0; weight.len()])).unwrap(), &vec![0.0; outputs]);
        assert!(frames < taps || Cpu.frame_conv_normed(&x, &eight, shape, &norm).is_err(), "eight bits");
    }
}
