//! Checkpoints of torch: zip containers of every kind, legacy streams, plain pickles, whole modules. Every tensor of every dict is
//! loaded, as `im2sp convert` does.
#![no_main]

use std::path::Path;

use im2sp::tensor::Bytes;
use im2sp::weights::torch::Checkpoint;
use libfuzzer_sys::fuzz_target;

/// Most dicts whose tensors are read.
const MAX_DICTS: usize = 16;

fuzz_target!(|bytes: &[u8]| {
    let Ok(checkpoint) = Checkpoint::from_bytes(Path::new("fuzz"), Bytes::new(bytes.to_vec())) else { return };
    let _ = checkpoint.module();
    for dict in checkpoint.dicts().unwrap_or_default().iter().take(MAX_DICTS) {
        let (names, modules) = (dict.names(), dict.modules());
        assert!(modules.len() <= names.len());
        // All of them, which one wrong value refuses; then each by itself.
        let _ = dict.tensors(|_| true);
        for name in names.iter().take(MAX_DICTS) {
            for (_, tensor) in dict.tensors(|other| other == *name).unwrap_or_default() {
                if let Ok(loaded) = tensor.load() {
                    assert_eq!(loaded.len(), tensor.shape().iter().product::<usize>());
                    assert_eq!(loaded.to_f32().len(), loaded.len());
                }
            }
        }
    }
});
