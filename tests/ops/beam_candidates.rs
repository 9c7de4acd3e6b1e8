use im2sp::backend::BeamCandidate;
use im2sp::backend::cpu::Cpu;
use im2sp::backend::prelude::*;

use crate::{random, tensor};

fn places(image: &[BeamCandidate]) -> Vec<(usize, u32)> {
    image.iter().map(|best| (best.row, best.token)).collect()
}

/// Golden beam searches test this inside the models; here, the definition in f64.
#[test]
fn equals_the_definition() {
    let mut random = random(11);
    let (images, vocabulary, count) = ([2, 1, 4], 30, 8);
    let rows = images.iter().sum();
    let (logits, so_far) = (random.values(rows * vocabulary), random.values(rows));
    let found = Cpu.beam_candidates(&tensor(rows, vocabulary, &logits), &so_far, &images, count).unwrap();
    let mut first = 0;
    for (beams, found) in images.into_iter().zip(found) {
        let mut all = Vec::new();
        for row in first..first + beams {
            let row_logits = &logits[row * vocabulary..][..vocabulary];
            let sum: f64 = row_logits.iter().map(|&v| f64::from(v).exp()).sum();
            for (token, &v) in row_logits.iter().enumerate() {
                all.push((f64::from(v) - sum.ln() + f64::from(so_far[row]), row - first, token as u32));
            }
        }
        all.sort_by(|a, b| b.0.total_cmp(&a.0));
        assert_eq!(found.len(), count);
        for (found, expected) in found.iter().zip(all) {
            assert_eq!((found.row, found.token), (expected.1, expected.2));
            assert!((f64::from(found.score) - expected.0).abs() < 1e-5);
        }
        first += beams;
    }
}

#[test]
fn ties_go_to_the_lower_row_and_then_the_lower_token() {
    let logits = tensor(2, 3, &[1.0, 0.0, 1.0, 1.0, 0.0, 1.0]);
    let found = Cpu.beam_candidates(&logits, &[-2.0, -2.0], &[2], 5).unwrap();
    assert_eq!(places(&found[0]), [(0, 0), (0, 2), (1, 0), (1, 2), (0, 1)]);
    let found = Cpu.beam_candidates(&logits, &[-2.5, -2.0], &[2], 3).unwrap();
    assert_eq!(places(&found[0]), [(1, 0), (1, 2), (0, 0)]);
}

#[test]
fn edges_and_misfits() {
    let x = tensor(2, 3, &[0.0; 6]);
    let all = Cpu.beam_candidates(&x, &[0.0, -1.0], &[1, 1], 9).unwrap();
    assert_eq!(all.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3], "no more than there are");
    assert_eq!(Cpu.beam_candidates(&x, &[0.0, 0.0], &[0, 2], 1).unwrap()[0], []);
    assert!(Cpu.beam_candidates(&tensor(0, 3, &[]), &[], &[], 1).unwrap().is_empty());
    assert!(Cpu.beam_candidates(&x, &[0.0], &[2], 1).is_err(), "a score is missing");
    assert!(Cpu.beam_candidates(&x, &[0.0, 0.0], &[1], 1).is_err(), "a row belongs to nobody");
    assert!(Cpu.beam_candidates(&tensor(1, 0, &[]), &[0.0], &[1], 1).is_err(), "no vocabulary");
    for bad in [f32::NAN, f32::INFINITY] {
        let broken = tensor(1, 2, &[0.0, bad]);
        assert!(Cpu.beam_candidates(&broken, &[0.0], &[1], 1).unwrap_err().to_string().contains("NaN"));
    }
}
