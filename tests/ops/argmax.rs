use im2sp::backend::Backend;
use im2sp::backend::cpu::Cpu;

use crate::tensor;

#[test]
fn takes_the_lowest_of_the_largest() {
    let x = tensor(3, 4, &[0.0, 2.0, 2.0, 1.0, -3.0, -2.0, -5.0, -2.0, f32::NEG_INFINITY, 0.0, f32::INFINITY, 1.0]);
    assert_eq!(Cpu.argmax(&x).unwrap(), [1, 1, 2]);
    assert_eq!(Cpu.argmax(&tensor(0, 4, &[])).unwrap(), [] as [u32; 0]);
}

#[test]
fn refuses_nan_anywhere() {
    for at in 0..3 {
        let mut row = [1.0, 2.0, 3.0];
        row[at] = f32::NAN;
        assert!(Cpu.argmax(&tensor(1, 3, &row)).unwrap_err().to_string().contains("NaN"));
    }
    assert!(Cpu.argmax(&tensor(2, 0, &[])).is_err());
}
