use im2sp::backend::cpu::{Block, Cpu, Matrix};
use im2sp::backend::prelude::*;
use im2sp::backend::{AdamWStep, BlockPart, Parameter};

use crate::{matrix, random, values};

const STEP: AdamWStep =
    AdamWStep { rate: 0.5, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, step: 1, gradient_scale: 1.0 };

/// A matrix as operations read it: its rows, with zeros added.
fn read(weight: &Matrix) -> Vec<f32> {
    let [rows, columns] = Cpu.matrix_shape(weight);
    let ids: Vec<u32> = (0..rows as u32).collect();
    let zeros = matrix(1, columns, &vec![0.0; columns]);
    values(&Cpu.embed(weight, &zeros, &ids, &vec![0; rows]).unwrap())
}

fn read_values(block: &Block) -> Vec<f32> {
    Cpu.read_block(block, BlockPart::Values).unwrap()
}

#[test]
fn views_are_of_their_places() {
    let ([first, second], len) = crate::parameters([[3, 5], [2, 7]]);
    let master = random(45).values(len);
    let block = Cpu.parameter_block(&master).unwrap();
    for parameter in [first, second, Parameter { start: 128, rows: 7, columns: 2 }] {
        let view = Cpu.parameter_matrix(&block, parameter).unwrap();
        assert_eq!(Cpu.matrix_shape(&view), [parameter.rows, parameter.columns]);
        assert_eq!(read(&view), master[parameter.range()]);
        let tensor = Cpu.parameter_tensor(&block, parameter).unwrap();
        assert_eq!(Cpu.shape(&tensor), [parameter.rows, parameter.columns]);
        assert_eq!(values(&tensor), master[parameter.range()]);
    }
    assert_eq!(read_values(&block), master);
    let empty = Parameter { start: len, rows: 0, columns: 7 };
    assert_eq!(Cpu.matrix_shape(&Cpu.parameter_matrix(&block, empty).unwrap()), [0, 7]);
}

/// A view made after an update has the new values; one made before keeps those it was made of.
#[test]
fn updates_are_seen_by_later_views() {
    let ([at], len) = crate::parameters([[4, 6]]);
    let master = random(46).values(len);
    let mut block = Cpu.parameter_block(&master).unwrap();
    let (before, tensor) = (Cpu.parameter_matrix(&block, at).unwrap(), Cpu.parameter_tensor(&block, at).unwrap());
    Cpu.adamw(&mut block, &vec![1.0; len], STEP).unwrap();
    let updated = read_values(&block);
    assert!(updated.iter().zip(&master).all(|(new, old)| (new - (old - 0.5)).abs() < 1e-6));
    let after = Cpu.parameter_matrix(&block, at).unwrap();
    assert_eq!(read(&after), updated[at.range()]);
    assert_eq!(read(&before), master[at.range()]);
    assert_eq!(values(&tensor), master[at.range()]);

    Cpu.write_block(&mut block, BlockPart::Values, &vec![7.0; len]).unwrap();
    assert_eq!(read(&Cpu.parameter_matrix(&block, at).unwrap()), [7.0; 24]);
    assert_eq!(read(&after), updated[at.range()]);
    assert_eq!(read(&before), master[at.range()]);
    for part in [BlockPart::FirstMoments, BlockPart::SecondMoments] {
        assert_ne!(Cpu.read_block(&block, part).unwrap(), vec![0.0; len], "values alone were overwritten");
        Cpu.write_block(&mut block, part, &master).unwrap();
        assert_eq!(Cpu.read_block(&block, part).unwrap(), master);
    }
    assert_eq!(read_values(&block), vec![7.0; len]);
}

#[test]
fn gradients_are_set_and_read() {
    let mut gradients = Cpu.gradients(3).unwrap();
    assert_eq!(Cpu.read_gradients(&gradients).unwrap(), [0.0; 3]);
    Cpu.write_gradients(&mut gradients, &[1.0, f32::INFINITY, -2.0]).unwrap();
    assert_eq!(Cpu.read_gradients(&gradients).unwrap(), [1.0, f32::INFINITY, -2.0]);
    Cpu.zero_gradients(&mut gradients).unwrap();
    assert_eq!(Cpu.read_gradients(&gradients).unwrap(), [0.0; 3]);
}

#[test]
fn wrong_places_are_errors() {
    let mut block = Cpu.parameter_block(&[0.0; 200]).unwrap();
    for (start, rows, columns) in
        [(128, 8, 10), (1, 1, 1), (64, 1, 1), (256, 0, 1), (256, 1, 1), (0, usize::MAX, 2), (128, usize::MAX, 1)]
    {
        let parameter = Parameter { start, rows, columns };
        let problem = Cpu.parameter_matrix(&block, parameter).err().expect("no such place").to_string();
        assert!(problem.starts_with("parameter: "), "{problem}");
        assert!(Cpu.parameter_tensor(&block, parameter).is_err(), "{parameter:?}");
    }
    for part in [BlockPart::Values, BlockPart::FirstMoments, BlockPart::SecondMoments] {
        assert!(Cpu.write_block(&mut block, part, &[1.0; 199]).is_err());
        assert_eq!(Cpu.read_block(&block, part).unwrap(), [0.0; 200]);
    }
    let mut gradients = Cpu.gradients(2).unwrap();
    assert!(Cpu.write_gradients(&mut gradients, &[1.0; 3]).is_err());
    assert_eq!(Cpu.read_gradients(&gradients).unwrap(), [0.0; 2]);
}
