use im2sp::backend::cpu::Cpu;
use im2sp::backend::prelude::*;

use crate::common::assert_close;
use crate::{cases, host, ops, random, tensor, values};

#[test]
fn equals_golden() {
    let golden = ops();
    let index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(crate::common::golden("ops.json")).unwrap()).unwrap();
    for case in cases(&golden, "conv_transpose1d", "x") {
        let get = |name: &str| golden.get(&format!("{case}.{name}"));
        let ((x_shape, x), (w_shape, w), (_, bias)) = (get("x"), get("weight"), get("bias"));
        let stride = index[&case]["parameters"]["stride"].as_u64().unwrap() as usize;
        let kernel = Cpu.conv_transpose_weights(&host(&w_shape, &w), &host(&w_shape[1..2], &bias), stride).unwrap();
        let x = tensor(x_shape[0], x_shape[1], &x);
        for (name, slope) in [("y", 1.0), ("leaky", 0.1)] {
            let y = Cpu.conv_transpose1d(&x, &kernel, slope).unwrap();
            assert_eq!(Cpu.shape(&y), [w_shape[1], x_shape[1] * stride]);
            assert_close(&format!("{case} {name}"), &values(&y), &get(name).1, w_shape[0] * w_shape[2]);
        }
    }
}

#[test]
fn equals_the_definition() {
    let mut random = random(7);
    for (inputs, outputs, taps, stride, frames) in
        [(1, 1, 1, 1, 1), (3, 5, 7, 3, 100), (4, 2, 11, 5, 211), (2, 9, 4, 2, 400)]
    {
        let (x, w) = (random.values(inputs * frames), random.values(inputs * outputs * taps));
        let bias = random.values(outputs);
        let padding = (taps - stride) / 2;
        let mut expected = vec![0.0f64; outputs * frames * stride];
        for (o, i) in (0..outputs).flat_map(|o| (0..inputs).map(move |i| (o, i))) {
            for (frame, tap) in (0..frames).flat_map(|f| (0..taps).map(move |t| (f, t))) {
                if let Some(at) = (frame * stride + tap).checked_sub(padding).filter(|&at| at < frames * stride) {
                    let product = f64::from(x[i * frames + frame]) * f64::from(w[(i * outputs + o) * taps + tap]);
                    expected[o * frames * stride + at] += product;
                }
            }
        }
        let expected: Vec<f32> =
            expected.iter().enumerate().map(|(n, y)| (y + f64::from(bias[n / (frames * stride)])) as f32).collect();
        let kernel =
            Cpu.conv_transpose_weights(&host(&[inputs, outputs, taps], &w), &host(&[outputs], &bias), stride).unwrap();
        let y = Cpu.conv_transpose1d(&tensor(inputs, frames, &x), &kernel, 1.0).unwrap();
        assert_close(&format!("{inputs} {outputs} {taps} {stride} {frames}"), &values(&y), &expected, inputs * taps);
    }
}

#[test]
fn edges_and_misfits() {
    let kernel = Cpu.conv_transpose_weights(&host(&[3, 2, 4], &[1.0; 24]), &host(&[2], &[0.0; 2]), 2).unwrap();
    assert_eq!(Cpu.shape(&Cpu.conv_transpose1d(&tensor(3, 0, &[]), &kernel, 0.1).unwrap()), [2, 0]);
    assert!(Cpu.conv_transpose1d(&tensor(2, 1, &[0.0; 2]), &kernel, 0.1).is_err(), "other channels");
    for stride in [0, 3, 5] {
        assert!(Cpu.conv_transpose_weights(&host(&[3, 2, 4], &[1.0; 24]), &host(&[2], &[0.0; 2]), stride).is_err());
    }
}
