//! Cepstra and units of them, against those of recipes/demo.

use std::path::Path;

use im2sp::audio::cepstra::{Cepstra, HOP, cepstra};
use im2sp::conformance::{difference, largest, tolerance};
use im2sp::units::steady;
use im2sp::weights::centres;
use im2sp::weights::store::TensorStore;

/// Terms of the longest sum: a transform of 1024 samples.
const TERMS: usize = 1024;

fn golden(name: &str) -> Vec<f32> {
    let store = TensorStore::open(Path::new("tests/golden/cepstra.safetensors")).unwrap();
    let (_, tensor) = store.iter().find(|(found, _)| *found == name).unwrap();
    tensor.to_f32().into_owned()
}

#[test]
fn features_and_units_are_those_of_the_recipe() {
    let (samples, expected) = (golden("samples"), golden("features"));
    let found = cepstra(Cepstra::Context, &samples);
    let width = Cepstra::Context.width();
    assert_eq!(found.len(), samples.len() / HOP * width);
    let (error, allowed) = (difference(&found, &expected), tolerance(TERMS, largest(&expected)));
    assert!(error <= allowed, "{error:e} of {allowed:e}");
    let centres = centres::read(Path::new("tests/scenes/cepstra.npy")).unwrap();
    assert_eq!(centres.shape(), [200, width]);
    for price in [0, 50, 434] {
        let units = steady(&found, &centres.to_f32(), width, f64::from(price));
        let expected: Vec<u32> = golden(&format!("units_{price}")).iter().map(|&unit| unit as u32).collect();
        assert_eq!(units, expected, "at a price of {price}");
    }
}

#[test]
fn features_of_one_frame_are_the_middle_of_five_in_like_sizes() {
    let (samples, all) = (golden("samples"), golden("features"));
    let (five, one) = (Cepstra::Context.width(), Cepstra::Frame.width());
    let middle = all.chunks_exact(five).flat_map(|frame| &frame[2 * one..3 * one]).zip((1..=one).cycle());
    let expected: Vec<f32> = middle.map(|(value, k)| value * (k as f32).sqrt()).collect();
    let found = cepstra(Cepstra::Frame, &samples);
    let (error, allowed) = (difference(&found, &expected), tolerance(TERMS, largest(&expected)));
    assert!(error <= allowed, "{error:e} of {allowed:e}");
}

#[test]
fn few_samples_have_few_frames() {
    for (samples, frames) in [(0, 0), (HOP - 1, 0), (HOP, 1), (2 * HOP, 2), (5 * HOP + 7, 5)] {
        for kind in [Cepstra::Context, Cepstra::Frame] {
            let found = cepstra(kind, &vec![0.25; samples]);
            assert_eq!(found.len(), frames * kind.width(), "{samples} samples");
            assert!(found.iter().all(|value| value.is_finite()));
        }
    }
}
