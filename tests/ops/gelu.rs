use im2sp::backend::cpu::Cpu;
use im2sp::backend::prelude::*;

use crate::common::assert_close;
use crate::{cases, ops, random, tensor, values};

#[test]
fn equals_golden() {
    let golden = ops();
    for case in cases(&golden, "gelu", "x") {
        let (shape, x) = golden.get(&format!("{case}.x"));
        let y = Cpu.gelu(&tensor(shape[0], shape[1], &x)).unwrap();
        assert_close(&case, &values(&y), &golden.get(&format!("{case}.y")).1, 1);
    }
}

/// An element's result depends on nothing but the element, wherever tasks and registers end.
#[test]
fn elements_are_alike() {
    let x = random(23).values(3 * 5003);
    let y = values(&Cpu.gelu(&tensor(3, 5003, &x)).unwrap());
    for i in [0, 1, 15, 4095, 4096, 5003, 15_008] {
        assert_eq!(values(&Cpu.gelu(&tensor(1, 1, &x[i..i + 1])).unwrap()), y[i..i + 1], "element {i}");
    }
}

#[test]
fn edges() {
    for (rows, columns) in [(0, 4), (3, 0)] {
        assert_eq!(Cpu.shape(&Cpu.gelu(&tensor(rows, columns, &[])).unwrap()), [rows, columns]);
    }
    let y = values(&Cpu.gelu(&tensor(1, 3, &[0.0, 1e30, f32::NAN])).unwrap());
    assert_eq!(y[..2], [0.0, 1e30]);
    assert!(y[2].is_nan());
}
