//! Recordings, on to samples at the rate of speech models: as many as last as long, all of them finite, or an error.
#![no_main]

use im2sp::audio::read::read;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let path = std::env::temp_dir().join(format!("im2sp-fuzz-{}.wav", std::process::id()));
    std::fs::write(&path, bytes).expect("a written file");
    if let Ok(samples) = read(&path, 16_000) {
        assert!(!samples.is_empty() && samples.iter().all(|sample| sample.is_finite()));
    }
});
