use im2sp::backend::cpu::{Cpu, Tensor};
use im2sp::backend::prelude::*;
use im2sp::backend::{Activation, LayerNormWeights, Sequences};

use crate::common::assert_close;
use crate::{cases, ops, random, row, tensor, values};

const EPS: f32 = 1e-5;

/// All of x is one sequence.
fn normalized(x: &Tensor, norm: &LayerNormWeights<Cpu>, activation: Activation) -> im2sp::Result<Tensor> {
    Cpu.instance_norm(x, norm, &Sequences::one(Cpu.shape(x)[0]), activation)
}

#[test]
fn equals_golden() {
    let golden = ops();
    for case in cases(&golden, "instance_norm", "x") {
        let get = |name: &str| golden.get(&format!("{case}.{name}"));
        let (shape, x) = get("x");
        let norm = LayerNormWeights::<Cpu> { weight: row(&get("weight").1), bias: row(&get("bias").1), eps: EPS };
        let y = normalized(&tensor(shape[0], shape[1], &x), &norm, Activation::None).unwrap();
        assert_close(&case, &values(&y), &get("y").1, shape[0]);
        // Activated, it is what gelu makes of it.
        let active = normalized(&tensor(shape[0], shape[1], &x), &norm, Activation::Gelu).unwrap();
        assert_eq!(values(&active), values(&Cpu.gelu(&y).unwrap()), "{case}");
    }
}

/// The formula in f64, at numbers of frames around the shares that are combined, and far from zero.
#[test]
fn equals_the_formula() {
    let mut random = random(22);
    for (frames, channels, mean) in
        [(1, 1, 0.0), (63, 7, 1.0), (64, 1, 0.0), (65, 33, 5.0), (1025, 17, 0.0), (16_449, 3, 1.0)]
    {
        let x: Vec<f32> = random.values(frames * channels).iter().map(|v| v + mean).collect();
        let (weight, bias) = (random.values(channels), random.values(channels));
        let norm = LayerNormWeights::<Cpu> { weight: row(&weight), bias: row(&bias), eps: EPS };
        let mut expected = vec![0.0; x.len()];
        for c in 0..channels {
            let column = || x.iter().skip(c).step_by(channels).map(|&v| f64::from(v));
            let mean = column().sum::<f64>() / frames as f64;
            let variance = column().map(|v| (v - mean).powi(2)).sum::<f64>() / frames as f64;
            let rstd = 1.0 / (variance + f64::from(EPS)).sqrt();
            for (t, v) in column().enumerate() {
                expected[t * channels + c] = ((v - mean) * rstd * f64::from(weight[c]) + f64::from(bias[c])) as f32;
            }
        }
        let y = normalized(&tensor(frames, channels, &x), &norm, Activation::None).unwrap();
        // Values far from zero lose what the mean takes away.
        let length = frames * (1.0 + mean * mean) as usize;
        assert_close(&format!("{frames}x{channels}"), &values(&y), &expected, length);
    }
}

#[test]
fn edges_and_misfits() {
    let norm = |c| LayerNormWeights::<Cpu> { weight: row(&vec![2.0; c]), bias: row(&vec![1.0; c]), eps: EPS };
    for (frames, channels) in [(0, 4), (3, 0), (0, 0)] {
        let x = tensor(frames, channels, &vec![1.0; frames * channels]);
        assert_eq!(Cpu.shape(&normalized(&x, &norm(channels), Activation::None).unwrap()), [frames, channels]);
    }
    // A single frame is its own mean.
    assert_eq!(values(&normalized(&tensor(1, 2, &[3.0, -7.0]), &norm(2), Activation::None).unwrap()), [1.0, 1.0]);
    assert!(normalized(&tensor(1, 3, &[0.0; 3]), &norm(4), Activation::None).is_err());
    let y = values(&normalized(&tensor(2, 2, &[0.0, f32::NAN, 1.0, 1.0]), &norm(2), Activation::None).unwrap());
    assert_eq!(
        y.iter().map(|v| v.is_nan()).collect::<Vec<_>>(),
        [false, true, false, true],
        "NaN stays in its channel"
    );
}

/// Each sequence is normalised as it would be alone, bit for bit; rows of none are zeros.
#[test]
fn sequences_are_normalised_by_themselves() {
    let (parts, channels) = (vec![0..70, 70..71, 80..80, 90..350], 5);
    let x = random(23).values(360 * channels);
    let norm = LayerNormWeights::<Cpu> { weight: row(&[2.0; 5]), bias: row(&[1.0; 5]), eps: EPS };
    let sequences = Sequences::new(360, parts.clone()).unwrap();
    let y = values(&Cpu.instance_norm(&tensor(360, channels, &x), &norm, &sequences, Activation::Gelu).unwrap());
    let mut expected = vec![0.0; y.len()];
    for part in parts {
        let place = part.start * channels..part.end * channels;
        let alone = tensor(part.len(), channels, &x[place.clone()]);
        expected[place].copy_from_slice(&values(&normalized(&alone, &norm, Activation::Gelu).unwrap()));
    }
    assert_eq!(y, expected);
    let other = Sequences::one(359);
    assert!(Cpu.instance_norm(&tensor(360, channels, &x), &norm, &other, Activation::Gelu).is_err());
}
