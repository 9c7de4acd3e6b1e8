//! Configurations: of a model directory, of an image processor and of a published vocoder.
#![no_main]

use std::path::Path;

use im2sp::weights::convert::{image_config, vocoder_config};
use im2sp::weights::directory::parse_config;
use im2sp::weights::json::Json;
use libfuzzer_sys::fuzz_target;

/// Side of the images of the model whose processor is read, in pixels.
const SIZE: usize = 224;

fuzz_target!(|bytes: &[u8]| {
    let (Ok(text), path) = (std::str::from_utf8(bytes), Path::new("fuzz")) else { return };
    if let Ok(config) = parse_config(path, text) {
        assert!(config.image_tokens() > 0);
        assert!(config.vocoder.is_none_or(|vocoder| vocoder.hop() > 0));
    }
    let Ok(json) = Json::parse(path, text) else { return };
    if let Ok(config) = image_config(&json, SIZE) {
        assert!(config.size == SIZE && config.resized() >= SIZE);
    }
    if let Ok(config) = vocoder_config(&json) {
        assert!(config.check().is_ok() && config.hop() > 0);
    }
});
