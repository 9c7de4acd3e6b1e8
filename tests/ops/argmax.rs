use im2sp::backend::cpu::Cpu;
use im2sp::backend::prelude::*;

use crate::tensor;

fn argmax(x: &<Cpu as Device>::Tensor) -> im2sp::Result<Vec<u32>> {
    // What was there before is no part of the result.
    let mut columns = vec![7; 9];
    Cpu.argmax(x, &mut columns).map(|()| columns)
}

#[test]
fn takes_the_lowest_of_the_largest() {
    let x = tensor(3, 4, &[0.0, 2.0, 2.0, 1.0, -3.0, -2.0, -5.0, -2.0, f32::NEG_INFINITY, 0.0, f32::INFINITY, 1.0]);
    assert_eq!(argmax(&x).unwrap(), [1, 1, 2]);
    assert_eq!(argmax(&tensor(0, 4, &[])).unwrap(), [] as [u32; 0]);
}

#[test]
fn refuses_nan_anywhere() {
    for at in 0..3 {
        let mut row = [1.0, 2.0, 3.0];
        row[at] = f32::NAN;
        assert!(argmax(&tensor(1, 3, &row)).unwrap_err().to_string().contains("NaN"));
    }
    assert!(argmax(&tensor(2, 0, &[])).is_err());
}
