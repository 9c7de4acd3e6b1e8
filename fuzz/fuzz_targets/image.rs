//! Image files of every kind, orientation included, on to the pixels of a vision transformer: an image or an error. A
//! decoder's panic is that file's error, as for users; a panic of this project's own code is a finding although users
//! would not see it.
#![no_main]

use std::collections::HashSet;
use std::panic::PanicHookInfo;
use std::path::Path;
use std::sync::{Mutex, Once};

use im2sp::Image;
use im2sp::config::{Filter, ImageConfig, Resize};
use libfuzzer_sys::fuzz_target;

/// Side of the preprocessed square, in pixels.
const SIZE: usize = 16;
const FILTERS: [Filter; 6] =
    [Filter::Nearest, Filter::Box, Filter::Bilinear, Filter::Hamming, Filter::Bicubic, Filter::Lanczos];

/// Makes the calling thread the only one that works: no execution waits for another thread.
fn one_thread() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread();
    pool.build_global().expect("the first pool of threads");
}

/// Looks at every panic before the decoder's own hook silences it.
fn watch_panics() {
    // The decoder sets its hook on its first file.
    let _ = Image::decode(b"GIF89a", Path::new("fuzz"));
    let silent = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        if place.contains("/registry/src/") || place.contains("/rustc/") {
            contained(&place, info);
            silent(info);
        } else {
            eprintln!("a panic of this project's code: {info}");
            std::process::abort();
        }
    }));
}

/// Prints a library's panic the first time.
fn contained(place: &str, info: &PanicHookInfo) {
    static PLACES: Mutex<Option<HashSet<String>>> = Mutex::new(None);
    let mut places = PLACES.lock().expect("no panic while it was held");
    if places.get_or_insert_default().insert(place.to_owned()) {
        eprintln!("contained: {info}");
    }
}

fuzz_target!(init: one_thread(), |bytes: &[u8]| {
    static WATCH: Once = Once::new();
    WATCH.call_once(watch_panics);
    if let Ok(image) = Image::decode(bytes, Path::new("fuzz")) {
        assert!(image.width() > 0 && image.height() > 0);
        assert_eq!(image.rgb().len(), image.width() * image.height() * 3);
        let config = ImageConfig {
            filter: FILTERS[bytes.len() % FILTERS.len()],
            resize: if bytes.len().is_multiple_of(2) { Resize::ShortSide } else { Resize::Square },
            ..ImageConfig::clip(SIZE)
        };
        assert_eq!(image.preprocess(&config).len(), 3 * SIZE * SIZE);
    }
});
