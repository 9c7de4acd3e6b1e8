//! Unit lists in every layout that `im2sp speak` reads, from a file and from the command line.
#![no_main]

use std::path::Path;

use im2sp::units::{decode_lists, parse};
use libfuzzer_sys::fuzz_target;

const UNITS: usize = 200;

fuzz_target!(|bytes: &[u8]| {
    for list in decode_lists(bytes, Path::new("fuzz"), UNITS).unwrap_or_default() {
        assert!(list.units.iter().all(|&unit| (unit as usize) < UNITS));
        assert!(list.line > 0);
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        assert!(parse(text, UNITS).unwrap_or_default().iter().all(|&unit| (unit as usize) < UNITS));
    }
});
