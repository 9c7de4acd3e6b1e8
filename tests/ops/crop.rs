use im2sp::backend::Backend;
use im2sp::backend::cpu::Cpu;

use crate::{tensor, values};

#[test]
fn columns_of_every_row() {
    let x = tensor(2, 4, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
    let crop = |columns| Cpu.crop(&x, columns).unwrap();
    assert_eq!((Cpu.shape(&crop(1..3)), values(&crop(1..3))), ([2, 2], vec![2.0, 3.0, 6.0, 7.0]));
    assert_eq!(values(&crop(0..4)), values(&x));
    assert_eq!(Cpu.shape(&crop(4..4)), [2, 0]);
    assert_eq!(Cpu.shape(&Cpu.crop(&tensor(0, 3, &[]), 1..2).unwrap()), [0, 1]);
}

#[test]
fn misfits_are_refused() {
    let x = tensor(1, 2, &[1.0, 2.0]);
    assert!(Cpu.crop(&x, 1..3).unwrap_err().to_string().contains("crop"));
    #[allow(clippy::reversed_empty_ranges, reason = "that is what is refused")]
    let reversed = 2..1;
    assert!(Cpu.crop(&x, reversed).is_err());
}
