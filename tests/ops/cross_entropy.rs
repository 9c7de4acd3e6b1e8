use im2sp::backend::cpu::{Cpu, Tensor};
use im2sp::backend::prelude::*;

use crate::common::tolerance;
use crate::{random, tensor, values};

/// No target is ignored.
const NONE: u32 = u32::MAX;

/// Rows (M, 2) and the gradient (M, V).
fn run(logits: &Tensor, targets: &[u32], ignored: u32, scale: f32) -> (Vec<f32>, Vec<f32>) {
    let result = Cpu.cross_entropy(logits, targets, ignored, scale).unwrap();
    let rows = Cpu.shape(logits)[0];
    assert_eq!(Cpu.shape(&result.rows), [rows, 2]);
    assert_eq!(Cpu.shape(&result.dlogits), Cpu.shape(logits));
    (values(&result.rows), values(&result.dlogits))
}

/// The logarithm of the sum of the exponentials of a row.
fn log_sum(logits: &[f64]) -> f64 {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    largest + logits.iter().map(|v| (v - largest).exp()).sum::<f64>().ln()
}

#[track_caller]
fn close(actual: &[f32], expected: &[f32], allowed: f32) {
    assert_eq!(actual.len(), expected.len());
    for (index, (a, e)) in actual.iter().zip(expected).enumerate() {
        assert!((a - e).abs() <= allowed, "value {index} is {a}, expected {e}, allowed {allowed:e}");
    }
}

#[test]
fn equals_the_definition() {
    let mut random = random(21);
    let ignored = 0;
    for (rows, columns) in [(1, 1), (3, 2), (5, 17), (64, 203), (9, 256), (4, 1000), (2, 30_522)] {
        let logits: Vec<f32> = random.values(rows * columns).iter().map(|v| 10.0 * v).collect();
        let targets: Vec<u32> = (0..rows).map(|_| random.below(columns) as u32).collect();
        let valid = targets.iter().filter(|&&target| target != ignored).count();
        let scale = 1.0 / valid.max(1) as f32;
        let (actual_rows, actual) = run(&tensor(rows, columns, &logits), &targets, ignored, scale);
        let (mut losses, mut hits, mut gradient) = (Vec::new(), Vec::new(), Vec::new());
        for (x, &target) in logits.chunks_exact(columns).zip(&targets) {
            let x: Vec<f64> = x.iter().map(|&v| f64::from(v)).collect();
            let best = (0..columns).fold(0, |best, c| if x[c] > x[best] { c } else { best });
            let counts = if target == ignored { 0.0 } else { 1.0 };
            let log_sum = log_sum(&x);
            losses.push((counts * (log_sum - x[target as usize])) as f32);
            hits.push(if best == target as usize { counts as f32 } else { 0.0 });
            gradient.extend((0..columns).map(|c| {
                let hit = if c == target as usize { 1.0 } else { 0.0 };
                (counts * f64::from(scale) * ((x[c] - log_sum).exp() - hit)) as f32
            }));
        }
        let column = |n: usize| actual_rows.iter().skip(n).step_by(2).copied().collect::<Vec<f32>>();
        // A loss is a difference of logits, a gradient one of shares of `scale`.
        close(&column(0), &losses, tolerance(columns, 10.0));
        assert_eq!(column(1), hits, "{rows}x{columns}");
        close(&actual, &gradient, tolerance(columns, scale));
    }
}

#[test]
fn gradient_is_the_slope_of_the_loss() {
    let (columns, step, scale) = (5, 1e-5, 0.25);
    let logits = random(22).values(2 * columns);
    let targets = [3, 1];
    let (_, gradient) = run(&tensor(2, columns, &logits), &targets, NONE, scale);
    for (index, &actual) in gradient.iter().enumerate() {
        let (row, column) = (index / columns, index % columns);
        let moved = |by: f64| {
            let mut x: Vec<f64> = logits[row * columns..][..columns].iter().map(|&v| f64::from(v)).collect();
            x[column] += by;
            log_sum(&x) - x[targets[row] as usize]
        };
        let slope = f64::from(scale) * (moved(step) - moved(-step)) / (2.0 * step);
        assert!((f64::from(actual) - slope).abs() < 1e-7, "{index}: {actual}, slope {slope}");
    }
}

#[test]
fn of_equal_logits_the_first_is_the_largest() {
    let hits = |logits: &[f32], target| run(&tensor(1, logits.len(), logits), &[target], NONE, 1.0).0[1];
    let ties = [1.0, 7.0, -2.0, 7.0];
    assert_eq!([0, 1, 2, 3].map(|target| hits(&ties, target)), [0.0, 1.0, 0.0, 0.0]);
    assert_eq!(hits(&[-0.0, 0.0], 0), 1.0);
    assert_eq!(hits(&[0.0, -0.0], 1), 0.0, "0 and -0 are equal");
}

#[test]
fn rows_do_not_depend_on_their_neighbours() {
    let (rows, columns) = (300, 203);
    let logits = random(23).values(rows * columns);
    let targets: Vec<u32> = (0..rows as u32).map(|row| row % 203).collect();
    let (together, gradient) = run(&tensor(rows, columns, &logits), &targets, 0, 0.5);
    for row in [0, 7, 299] {
        let x = &logits[row * columns..][..columns];
        let (alone, alone_gradient) = run(&tensor(1, columns, x), &targets[row..][..1], 0, 0.5);
        assert_eq!(alone, together[2 * row..][..2]);
        assert_eq!(alone_gradient, gradient[row * columns..][..columns]);
    }
}

#[test]
fn what_is_no_number_is_not_hidden() {
    for bad in [f32::NAN, -f32::NAN, f32::INFINITY] {
        for at in 0..3 {
            let mut logits = [1.0, 5.0, 3.0, 1.0, 5.0, 3.0, 1.0, 5.0, 3.0];
            logits[at] = bad;
            logits[6 + at] = bad;
            let (rows, gradient) = run(&tensor(3, 3, &logits), &[1, 1, 2], 2, 1.0);
            assert!(rows[0].is_nan() && rows[1] == 0.0, "{bad} at {at}: {rows:?}");
            assert!(gradient[..3].iter().any(|v| v.is_nan()));
            assert!(rows[2].is_finite() && gradient[3..6].iter().all(|v| v.is_finite()), "only in its row");
            assert!(rows[4..] == [0.0; 2] && gradient[6..] == [0.0; 3], "an ignored row counts for nothing");
        }
    }
    let (rows, _) = run(&tensor(1, 2, &[f32::NEG_INFINITY; 2]), &[0], NONE, 1.0);
    assert!(rows[0].is_nan());
}

#[test]
fn edges_and_misfits() {
    assert!(run(&tensor(0, 4, &[]), &[], 0, 1.0).1.is_empty());
    assert!(run(&tensor(0, 0, &[]), &[], 0, 1.0).1.is_empty());
    assert_eq!(run(&tensor(2, 1, &[3.0, 4.0]), &[0, 0], NONE, 1.0), (vec![0.0, 1.0, 0.0, 1.0], vec![0.0, 0.0]));
    // Far apart: what is impossible has no share.
    let far = [1e30, -1e30, f32::NEG_INFINITY];
    assert_eq!(run(&tensor(1, 3, &far), &[0], NONE, 2.0), (vec![0.0, 1.0], vec![0.0; 3]));
    assert_eq!(run(&tensor(1, 3, &far), &[2], NONE, 2.0), (vec![f32::INFINITY, 0.0], vec![2.0, 0.0, -2.0]));
    let refused = |rows, columns, targets: &[u32]| {
        Cpu.cross_entropy(&tensor(rows, columns, &vec![0.0; rows * columns]), targets, 0, 1.0).is_err()
    };
    assert!(refused(2, 3, &[1]), "too few targets");
    assert!(refused(1, 3, &[3]), "no such column");
    assert!(refused(1, 0, &[0]), "no column at all");
}
