//! Safetensors files: tensors that can be loaded, or an error; as a checkpoint to convert and as a model's weights.
#![no_main]

use std::path::Path;

use im2sp::tensor::Bytes;
use im2sp::weights::{TensorStore, safetensors};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let (path, shared) = (Path::new("fuzz"), Bytes::new(bytes.to_vec()));
    for (_, tensor) in safetensors::from_bytes(path, shared.clone()).unwrap_or_default() {
        if let Ok(loaded) = tensor.load() {
            assert_eq!(loaded.len(), tensor.shape().iter().product::<usize>());
        }
    }
    let Ok(mut store) = TensorStore::from_bytes(path, shared) else { return };
    let tensors: Vec<(String, Vec<usize>)> =
        store.iter().map(|(name, tensor)| (name.to_string(), tensor.shape().to_vec())).collect();
    for (_, tensor) in store.iter() {
        assert!(tensor.bytes().len() <= bytes.len());
    }
    for (name, shape) in tensors {
        // Fails where the scales of an eight-bit matrix are wrong or taken already.
        if let Ok(tensor) = store.take(&name, &shape) {
            assert_eq!(tensor.to_f32().len(), shape.iter().product::<usize>());
        }
    }
    assert!(store.finish().is_ok());
});
