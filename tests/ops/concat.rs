use im2sp::backend::cpu::Cpu;
use im2sp::backend::prelude::*;

use crate::{random, tensor, values};

#[test]
fn joins_and_splits_each_sequence() {
    let mut random = random(24);
    for (batch, s, t, columns) in [(1, 1, 1, 1), (3, 2, 5, 4), (5, 17, 1, 7), (2, 0, 3, 8), (2, 3, 0, 8), (2, 1, 2, 0)]
    {
        let (a, b) = (random.values(batch * s * columns), random.values(batch * t * columns));
        let mut expected = Vec::new();
        for n in 0..batch {
            expected.extend_from_slice(&a[n * s * columns..(n + 1) * s * columns]);
            expected.extend_from_slice(&b[n * t * columns..(n + 1) * t * columns]);
        }
        let y = Cpu.concat(&tensor(batch * s, columns, &a), &tensor(batch * t, columns, &b), batch).unwrap();
        assert_eq!(Cpu.shape(&y), [batch * (s + t), columns]);
        assert_eq!(values(&y), expected);
        let (first, rest) = Cpu.split(&y, batch, s).unwrap();
        assert_eq!((Cpu.shape(&first), Cpu.shape(&rest)), ([batch * s, columns], [batch * t, columns]));
        assert_eq!((values(&first), values(&rest)), (a, b));
    }
}

#[test]
fn misfits() {
    let zeros = |rows: usize, columns: usize| tensor(rows, columns, &vec![0.0; rows * columns]);
    assert!(Cpu.concat(&zeros(4, 2), &zeros(6, 3), 2).is_err(), "other widths");
    assert!(Cpu.concat(&zeros(4, 2), &zeros(5, 2), 2).is_err(), "no whole sequences");
    assert!(Cpu.concat(&zeros(4, 2), &zeros(6, 2), 0).is_err(), "no sequences");
    assert!(Cpu.split(&zeros(6, 2), 2, 4).is_err(), "shorter than that");
    assert!(Cpu.split(&zeros(5, 2), 2, 1).is_err(), "no whole sequences");
    assert!(Cpu.split(&zeros(6, 2), 0, 1).is_err(), "no sequences");
}
