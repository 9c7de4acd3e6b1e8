//! Safetensors files: tensors that can be loaded, or an error.
#![no_main]

use std::path::Path;

use im2sp::tensor::Bytes;
use im2sp::weights::TensorStore;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(store) = TensorStore::from_bytes(Path::new("fuzz"), Bytes::new(bytes.to_vec())) {
        for (_, tensor) in store.iter() {
            assert!(tensor.bytes().len() <= bytes.len());
        }
    }
});
