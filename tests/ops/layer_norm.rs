use im2sp::backend::LayerNormWeights;
use im2sp::backend::cpu::Cpu;
use im2sp::backend::prelude::*;

use crate::common::assert_close;
use crate::{cases, ops, row, tensor, values};

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

#[test]
fn edges_and_misfits() {
    let norm = |c| LayerNormWeights::<Cpu> { weight: row(&vec![2.0; c]), bias: row(&vec![1.0; c]), eps: 1e-5 };
    assert_eq!(Cpu.shape(&Cpu.layer_norm(&tensor(0, 4, &[]), &norm(4)).unwrap()), [0, 4]);
    // A single column is its own mean.
    assert_eq!(values(&Cpu.layer_norm(&tensor(2, 1, &[3.0, -7.0]), &norm(1)).unwrap()), [1.0, 1.0]);
    assert!(Cpu.layer_norm(&tensor(1, 3, &[0.0; 3]), &norm(4)).is_err());
    let y = values(&Cpu.layer_norm(&tensor(1, 4, &[0.0, f32::NAN, 0.0, 1.0]), &norm(4)).unwrap());
    assert!(y.iter().all(|v| v.is_nan()), "NaN is not hidden");
}
