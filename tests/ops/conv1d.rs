use std::ops::Range;

use im2sp::backend::cpu::Cpu;
use im2sp::backend::prelude::*;
use im2sp::backend::{ConvActivation, ConvEpilogue};
use im2sp::tensor::DType;

use crate::common::{Random, assert_close};
use crate::{cases, host, ops, random, tensor, values};

#[test]
fn equals_golden() {
    let golden = ops();
    let index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(crate::common::golden("ops.json")).unwrap()).unwrap();
    for case in cases(&golden, "conv1d", "x") {
        let get = |name: &str| golden.get(&format!("{case}.{name}"));
        let ((x_shape, x), (w_shape, w), (_, bias)) = (get("x"), get("weight"), get("bias"));
        let dilation = index[&case]["parameters"]["dilation"].as_u64().unwrap() as usize;
        let kernel = Cpu.conv_weights(&host(&w_shape, &w), &host(&w_shape[..1], &bias)).unwrap();
        let x = tensor(x_shape[0], x_shape[1], &x);
        let residual = tensor(w_shape[0], x_shape[1], &get("residual").1);
        let plain = ConvEpilogue::default;
        for (name, epilogue) in [
            ("y", plain()),
            ("leaky", ConvEpilogue { slope: 0.1, ..plain() }),
            ("leaky_residual", ConvEpilogue { slope: 0.1, residual: Some((&residual, 0)), ..plain() }),
            ("leaky_001_tanh", ConvEpilogue { slope: 0.01, activation: ConvActivation::Tanh, ..plain() }),
        ] {
            let y = Cpu.conv1d(&x, &kernel, dilation, 0..x_shape[1], epilogue).unwrap();
            assert_close(&format!("{case} {name}"), &values(&y), &get(name).1, w_shape[1] * w_shape[2]);
        }
    }
}

/// Lengths around the tile and block sizes, more output channels than a group, and the running sum.
#[test]
fn equals_the_definition() {
    let mut random = random(5);
    let shapes = [
        (1, 1, 1, 1, 1),
        (2, 9, 3, 4, 2),
        (17, 8, 11, 48, 5),
        (3, 16, 7, 193, 3),
        (5, 3, 5, 1000, 1),
        (1, 1, 3, 2000, 255),
        // Winograd's form: more inputs than are gathered at once, edges of every kind, a dilation without a form of its
        // own.
        (32, 32, 3, 1, 1),
        (33, 40, 3, 97, 1),
        (70, 35, 7, 193, 3),
        (130, 32, 11, 1000, 5),
        (32, 33, 11, 777, 2),
        (32, 32, 15, 3001, 97),
    ];
    for (inputs, outputs, taps, frames, dilation) in shapes {
        let x = random.values(inputs * frames);
        let w = random.values(outputs * inputs * taps);
        let bias = random.values(outputs);
        let sum = random.values(outputs * frames);
        let kernel = Cpu.conv_weights(&host(&[outputs, inputs, taps], &w), &host(&[outputs], &bias)).unwrap();
        let expected = definition(&x, &w, &bias, [inputs, outputs, taps, frames, dilation]);
        let expected: Vec<f32> =
            expected.iter().zip(&sum).map(|(y, s)| ((y.max(0.0) + f64::from(*s)) * 0.5) as f32).collect();
        let epilogue = ConvEpilogue {
            activation: ConvActivation::Relu,
            sum: Some(&tensor(outputs, frames, &sum)),
            scale: 0.5,
            ..Default::default()
        };
        let y = Cpu.conv1d(&tensor(inputs, frames, &x), &kernel, dilation, 0..frames, epilogue).unwrap();
        assert_close(&format!("{inputs} {outputs} {taps} {frames} {dilation}"), &values(&y), &expected, inputs * taps);
    }
}

fn definition(x: &[f32], w: &[f32], bias: &[f32], [inputs, outputs, taps, frames, dilation]: [usize; 5]) -> Vec<f64> {
    let reach = (taps - 1) * dilation / 2;
    (0..outputs * frames)
        .map(|i| {
            let (output, frame) = (i / frames, i % frames);
            let mut y = f64::from(bias[output]);
            for (input, tap) in (0..inputs).flat_map(|input| (0..taps).map(move |tap| (input, tap))) {
                let at = (frame + tap * dilation).checked_sub(reach).filter(|&at| at < frames);
                y += at.map_or(0.0, |at| {
                    f64::from(x[input * frames + at]) * f64::from(w[(output * inputs + input) * taps + tap])
                });
            }
            y
        })
        .collect()
}

/// A sample does not depend on how long the sequence is, except where the margin reaches.
#[test]
fn results_do_not_depend_on_the_cut() {
    let mut random: Random = random(6);
    let (channels, taps, long) = (8, 7, 700);
    let kernel =
        Cpu.conv_weights(&host(&[channels, channels, taps], &random.values(448)), &host(&[8], &[0.1; 8])).unwrap();
    let x = random.values(channels * long);
    let whole = values(&Cpu.conv1d(&tensor(channels, long, &x), &kernel, 3, 0..long, ConvEpilogue::default()).unwrap());
    for short in [100, 333, 517] {
        let part: Vec<f32> = x.chunks_exact(long).flat_map(|row| row[..short].to_vec()).collect();
        let part = tensor(channels, short, &part);
        let y = values(&Cpu.conv1d(&part, &kernel, 3, 0..short, ConvEpilogue::default()).unwrap());
        for (y, whole) in y.chunks_exact(short).zip(whole.chunks_exact(long)) {
            assert_eq!(y[..short - 9], whole[..short - 9]);
        }
    }
}

/// Some columns of a result, computed from no more than the inputs that [`Conv1d::conv1d_support`] names, have the bits that
/// they have in the whole, in both forms: with residuals that reach further than they do, at both ends, and none at all.
#[test]
fn columns_are_those_of_the_whole() {
    let mut random: Random = random(7);
    for (channels, taps, frames, dilation) in [(5, 7, 90, 3), (32, 11, 700, 5), (40, 3, 61, 1), (32, 7, 300, 4)] {
        let weight = host(&[channels, channels, taps], &random.values(channels * channels * taps));
        let kernel = Cpu.conv_weights(&weight, &host(&[channels], &random.values(channels))).unwrap();
        let mut sequence = || tensor(channels, frames, &random.values(channels * frames));
        let (x, residual, sum) = (sequence(), sequence(), sequence());
        let epilogue =
            ConvEpilogue { slope: 0.1, residual: Some((&residual, 0)), sum: Some(&sum), ..Default::default() };
        let whole = values(&Cpu.conv1d(&x, &kernel, dilation, 0..frames, epilogue).unwrap());
        for wanted in [0..frames, 0..1, 20..frames, 20..23, 47..frames - 1, 31..31] {
            let cut = |values: &[f32], range: &Range<usize>| -> Vec<f32> {
                values.chunks_exact(frames).flat_map(|row| row[range.clone()].to_vec()).collect()
            };
            let support = Cpu::conv1d_support(wanted.clone(), taps, dilation);
            let inputs = support.start..support.end.min(frames);
            let range = Cpu::conv1d_support(wanted.clone(), 1, dilation).start..wanted.end;
            assert!(range.start <= wanted.start, "{range:?} for {wanted:?}");
            let x = tensor(channels, inputs.len(), &cut(&values(&x), &inputs));
            let sum = tensor(channels, range.len(), &cut(&values(&sum), &range));
            let epilogue = ConvEpilogue {
                slope: 0.1,
                residual: Some((&residual, range.start)),
                sum: Some(&sum),
                ..Default::default()
            };
            let columns = range.start - inputs.start..range.end - inputs.start;
            let y = Cpu.conv1d(&x, &kernel, dilation, columns, epilogue).unwrap();
            assert_eq!(Cpu.shape(&y), [channels, range.len()]);
            assert_eq!(
                values(&y),
                cut(&whole, &range),
                "{range:?} of {channels} x {frames}, {taps} taps, dilation {dilation}"
            );
        }
    }
}

/// bf16 weights are kept as they are, and give what the same values give in f32: in both forms, and transposed.
#[test]
fn narrow_weights_give_the_same_bits() {
    let mut random = random(8);
    for [outputs, inputs, taps] in [[9, 5, 5], [33, 70, 7], [32, 32, 3], [1, 40, 7]] {
        let narrow = host(&[outputs, inputs, taps], &random.values(outputs * inputs * taps)).to_dtype(DType::BF16);
        let (wide, bias) = (narrow.to_dtype(DType::F32), host(&[outputs], &random.values(outputs)));
        let x = tensor(inputs, 50, &random.values(inputs * 50));
        let [a, b] = [narrow, wide].map(|weight| {
            let kernel = Cpu.conv_weights(&weight, &bias).unwrap();
            values(&Cpu.conv1d(&x, &kernel, 1, 0..50, ConvEpilogue::default()).unwrap())
        });
        assert_eq!(a, b, "{outputs}x{inputs}x{taps}");
    }
    let narrow = host(&[20, 11, 8], &random.values(20 * 11 * 8)).to_dtype(DType::BF16);
    let (wide, bias) = (narrow.to_dtype(DType::F32), host(&[11], &random.values(11)));
    let x = tensor(20, 33, &random.values(20 * 33));
    let [a, b] = [narrow, wide].map(|weight| {
        let kernel = Cpu.conv_transpose_weights(&weight, &bias, 4).unwrap();
        values(&Cpu.conv_transpose1d(&x, &kernel, 0.1).unwrap())
    });
    assert_eq!(a, b);
}

#[test]
fn edges_and_misfits() {
    let kernel = Cpu.conv_weights(&host(&[2, 3, 3], &[1.0; 18]), &host(&[2], &[0.0; 2])).unwrap();
    let zeros = |rows: usize, columns: usize| tensor(rows, columns, &vec![0.0; rows * columns]);
    let run = |rows, columns| Cpu.conv1d(&zeros(rows, columns), &kernel, 1, 0..columns, ConvEpilogue::default());
    assert_eq!(Cpu.shape(&run(3, 0).unwrap()), [2, 0]);
    assert!(run(2, 4).is_err(), "other channels");
    let part = |columns, residual, sum| {
        let epilogue = ConvEpilogue { residual, sum, ..Default::default() };
        Cpu.conv1d(&zeros(3, 4), &kernel, 1, columns, epilogue).map(|y| Cpu.shape(&y))
    };
    let (two, four, other) = (zeros(2, 2), zeros(2, 4), zeros(3, 4));
    assert_eq!(part(1..3, Some((&four, 2)), Some(&two)).unwrap(), [2, 2]);
    assert_eq!(part(4..4, None, None).unwrap(), [2, 0]);
    assert!(part(1..5, None, None).is_err(), "beyond the sequence");
    #[allow(clippy::reversed_empty_ranges, reason = "that is what is refused")]
    let reversed = 2..1;
    assert!(part(reversed, None, None).is_err(), "backwards");
    assert!(part(1..3, Some((&four, 3)), None).is_err(), "a residual that is too short");
    assert!(part(1..3, Some((&four, 5)), None).is_err(), "a residual that ends before");
    assert!(part(1..3, Some((&other, 0)), None).is_err(), "a residual of other channels");
    assert!(part(1..3, None, Some(&four)).is_err(), "a sum of the whole");
    assert!(Cpu.conv_weights(&host(&[2, 3, 2], &[1.0; 12]), &host(&[2], &[0.0; 2])).is_err(), "even taps");
    assert!(Cpu.conv_weights(&host(&[2, 3, 3], &[1.0; 18]), &host(&[3], &[0.0; 3])).is_err(), "another bias");
    assert!(Cpu.conv_transpose1d(&tensor(3, 4, &[0.0; 12]), &kernel, 1.0).is_err(), "not a transposed kernel");
}
