//! Image files of every kind, orientation included: an image or an error, never a panic.
#![no_main]

use std::path::Path;

use im2sp::Image;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(image) = Image::decode(bytes, Path::new("fuzz")) {
        assert_eq!(image.rgb().len(), image.width() * image.height() * 3);
    }
});
