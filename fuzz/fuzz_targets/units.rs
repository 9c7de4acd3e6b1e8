//! Unit lists in every layout that `im2sp speak` reads.
#![no_main]

use std::path::Path;

use im2sp::units::decode_lists;
use libfuzzer_sys::fuzz_target;

const UNITS: usize = 200;

fuzz_target!(|bytes: &[u8]| {
    for list in decode_lists(bytes, Path::new("fuzz"), UNITS).unwrap_or_default() {
        assert!(list.units.iter().all(|&unit| (unit as usize) < UNITS));
    }
});
