use im2sp::backend::cpu::Cpu;
use im2sp::backend::prelude::*;

use crate::{tensor, values};

#[test]
fn rows_become_columns() {
    let y = Cpu.transpose(&tensor(2, 3, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])).unwrap();
    assert_eq!((Cpu.shape(&y), values(&y)), ([3, 2], vec![1.0, 4.0, 2.0, 5.0, 3.0, 6.0]));
    assert_eq!(Cpu.shape(&Cpu.transpose(&tensor(0, 3, &[])).unwrap()), [3, 0]);
    assert_eq!(Cpu.shape(&Cpu.transpose(&tensor(3, 0, &[])).unwrap()), [0, 3]);
}
