use im2sp::backend::DropoutMask;
use im2sp::backend::cpu::Cpu;
use im2sp::backend::prelude::*;

use crate::{random, tensor, values};

fn mask(probability: f32) -> DropoutMask {
    DropoutMask { probability, seed: 0x0123_4567_89ab_cdef, stream: 7 }
}

/// Word by word, at lengths around every run of the vector form.
#[test]
fn equals_the_definition() {
    let mut random = random(31);
    for (rows, columns, probability) in
        [(1, 1, 0.5), (1, 3, 0.5), (3, 21, 0.1), (1, 64, 0.9), (7, 37, 0.3), (1, 16_384, 0.1), (3, 11_003, 0.25)]
    {
        let mask = mask(probability);
        let (x, residual) = (random.values(rows * columns), random.values(rows * columns));
        let kept = |i: usize| mask.words().word(i as u64) >= (f64::from(probability) * 2f64.powi(32)) as u32;
        let scaled = |i: usize| if kept(i) { x[i] / (1.0 - probability) } else { 0.0 };
        let [y, sum] = [None, Some(tensor(rows, columns, &residual))]
            .map(|residual| values(&Cpu.dropout(&tensor(rows, columns, &x), mask, residual.as_ref()).unwrap()));
        for i in 0..rows * columns {
            assert!((y[i] - scaled(i)).abs() <= 1e-6 * scaled(i).abs(), "{rows}x{columns}, value {i}: {}", y[i]);
            assert!((sum[i] - (scaled(i) + residual[i])).abs() <= 2e-6, "{rows}x{columns}, value {i}: {}", sum[i]);
        }
    }
}

/// The gradient at x is the operation on the gradient at y: y is linear in x, with the same mask.
#[test]
fn the_mask_depends_on_seed_stream_and_place_alone() {
    let zeros = |mask: DropoutMask, rows, columns| -> Vec<bool> {
        let y = Cpu.dropout(&tensor(rows, columns, &vec![1.0; rows * columns]), mask, None).unwrap();
        values(&y).into_iter().map(|v| v == 0.0).collect()
    };
    let of = mask(0.25);
    let first = zeros(of, 100, 500);
    assert_eq!(first, zeros(of, 500, 100));
    assert_eq!(first[..999], zeros(of, 27, 37));
    assert_ne!(first, zeros(DropoutMask { seed: 1, ..of }, 100, 500));
    assert_ne!(first, zeros(DropoutMask { stream: 8, ..of }, 100, 500));
    // Five standard deviations of 50,000 tries.
    let share = first.iter().filter(|&&zero| zero).count() as f64 / first.len() as f64;
    assert!((share - 0.25).abs() < 0.0097, "{share}");
}

#[test]
fn edges_and_misfits() {
    let x = tensor(2, 3, &[1.0, -2.0, 3.0, f32::NAN, f32::INFINITY, 0.0]);
    let y = values(&Cpu.dropout(&x, mask(0.0), None).unwrap());
    assert!(y[3].is_nan() && y[..3] == [1.0, -2.0, 3.0] && y[4..] == [f32::INFINITY, 0.0], "{y:?}");
    let residual = tensor(2, 3, &[1.0; 6]);
    assert_eq!(values(&Cpu.dropout(&x, mask(0.0), Some(&residual)).unwrap())[..3], [2.0, -1.0, 4.0]);
    assert_eq!(Cpu.shape(&Cpu.dropout(&tensor(0, 4, &[]), mask(0.5), None).unwrap()), [0, 4]);
    for probability in [-0.1, 1.0, f32::NAN] {
        let problem = Cpu.dropout(&x, mask(probability), None).unwrap_err().to_string();
        assert!(problem.starts_with("dropout: a probability of"), "{problem}");
    }
    assert!(Cpu.dropout(&x, mask(0.5), Some(&tensor(3, 2, &[0.0; 6]))).is_err());
}
