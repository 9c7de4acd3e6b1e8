use im2sp::backend::cpu::Cpu;
use im2sp::backend::prelude::*;

use crate::random;

fn norm(values: &[f32]) -> f64 {
    let mut gradients = Cpu.gradients(values.len()).unwrap();
    Cpu.write_gradients(&mut gradients, values).unwrap();
    Cpu.gradient_norm(&gradients).unwrap()
}

/// At lengths around a vector and a task.
#[test]
fn equals_the_definition() {
    let mut random = random(43);
    for len in [1, 3, 16, 17, 1000, 65_535, 65_536, 65_537, 200_003] {
        let values = random.values(len);
        let expected = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        let actual = norm(&values);
        // The twin's own error, of one sum in order, grows with the root of the length.
        let allowed = 8.0 * f64::EPSILON * (len as f64).sqrt() * expected;
        assert!((actual - expected).abs() <= allowed, "{len}: {actual}, expected {expected}");
    }
}

#[test]
fn does_not_depend_on_the_number_of_threads() {
    let values = random(44).values(1_000_003);
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| norm(&values)).to_bits()
    };
    assert_eq!(with(1), with(2));
    assert_eq!(with(1), with(5));
}

#[test]
fn edges() {
    assert_eq!(norm(&[]), 0.0);
    assert_eq!(norm(&[0.0; 40]), 0.0);
    assert_eq!(norm(&[-3.0, 4.0]), 5.0);
    assert_eq!(norm(&[f32::MAX]), f64::from(f32::MAX), "a square beyond f32");
    assert_eq!(norm(&[f32::MIN_POSITIVE]), f64::from(f32::MIN_POSITIVE), "a square below f32");
    for bad in [f32::NAN, f32::NEG_INFINITY] {
        for at in [0, 17, 70_000] {
            let mut values = vec![1.0; 70_001];
            values[at] = bad;
            let norm = norm(&values);
            assert!(if bad.is_nan() { norm.is_nan() } else { norm == f64::INFINITY }, "{bad} at {at}: {norm}");
        }
    }
}
