//! Configurations of a model directory.
#![no_main]

use std::path::Path;

use im2sp::weights::directory::parse_config;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(config) = parse_config(Path::new("fuzz"), text)
    {
        assert!(config.image_tokens() > 1);
    }
});
