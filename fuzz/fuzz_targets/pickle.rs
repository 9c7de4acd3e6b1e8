//! Pickles: a tree that can be walked in every way its readers walk it, or an error.
#![no_main]

use im2sp::tensor::Bytes;
use im2sp::weights::pickle::{Pickle, View};
use libfuzzer_sys::fuzz_target;

/// Most values that are looked at: a pickle may hold itself.
const MAX_VALUES: usize = 256;

/// Reads `value` as everything it could be. Returns the values in it.
fn read(value: View<'_>) -> Vec<View<'_>> {
    let _ = (value.describe(), value.is_none(), value.as_bool(), value.as_usize(), value.as_f64(), value.as_str());
    let _ = (value.as_long(), value.as_bytes(), value.class(), value.is_dict(), value.get("a").map(|v| v.id()));
    let mut inside = value.as_tuple().or_else(|| value.as_list()).or_else(|| value.as_set()).unwrap_or_default();
    inside.extend(value.as_dict().unwrap_or_default().into_iter().flat_map(|(key, value)| [key, value]));
    inside.extend(value.as_call().map(|(_, arguments)| arguments).unwrap_or_default());
    inside.extend(value.state());
    inside.extend(value.as_persistent());
    inside
}

fuzz_target!(|bytes: &[u8]| {
    let Ok((pickle, end)) = Pickle::parse(Bytes::new(bytes.to_vec())) else { return };
    assert!(end <= bytes.len());
    let mut values = vec![pickle.root()];
    values.extend(pickle.persistent_ids().take(MAX_VALUES / 2));
    let mut next = 0;
    while let Some(&value) = values.get(next).filter(|_| next < MAX_VALUES) {
        let inside = read(value);
        values.extend(inside.into_iter().take(MAX_VALUES));
        next += 1;
    }
});
