//! Pickles: a tree that can be walked, or an error.
#![no_main]

use im2sp::tensor::Bytes;
use im2sp::weights::pickle::Pickle;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok((pickle, end)) = Pickle::parse(Bytes::new(bytes.to_vec())) {
        assert!(end <= bytes.len());
        let root = pickle.root();
        let _ = root.describe();
        for (key, value) in root.as_dict().unwrap_or_default() {
            let _ = (key.describe(), value.describe());
        }
        pickle.persistent_ids().for_each(|id| drop(id.describe()));
    }
});
