//! Checkpoints of torch: zip containers of every kind, legacy streams, plain pickles.
#![no_main]

use std::path::Path;

use im2sp::tensor::Bytes;
use im2sp::weights::torch::Checkpoint;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = Checkpoint::from_bytes(Path::new("fuzz"), Bytes::new(bytes.to_vec()));
});
