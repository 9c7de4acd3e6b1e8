//! Common parts of the test programs: golden tensors, reproducible random values and the one tolerance policy.
#![allow(dead_code)]

pub mod scenes;

use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};

/// A file under tests/golden.
pub fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path)
}

/// Threads of this process with a name; 0 where /proc is not. One that has been joined stays listed for a moment while the
/// kernel clears it away, and is not counted: its flag for that (PF_EXITING) is set before the thread that joins it continues.
pub fn running_threads(name: &str) -> usize {
    const EXITING: u64 = 4;
    let runs = |stat: &str| -> Option<bool> {
        // "id (name) state parent group session terminal foreground flags ..."
        let (before, after) = stat.rsplit_once(')')?;
        let flags: u64 = after.split_ascii_whitespace().nth(6)?.parse().ok()?;
        Some(before.split_once('(')?.1 == name && flags & EXITING == 0)
    };
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return 0 };
    // What is gone before its turn does not run.
    let stats = threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("stat")).ok());
    stats.filter(|stat| runs(stat).unwrap_or_else(|| panic!("/proc/self/task: {stat}"))).count()
}

/// A safetensors file of golden data.
pub struct Golden {
    name: String,
    bytes: Vec<u8>,
}

impl Golden {
    pub fn open(path: &str) -> Golden {
        let file = golden(path);
        let bytes = std::fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        Golden { name: path.to_string(), bytes }
    }

    fn view(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    pub fn has(&self, name: &str) -> bool {
        self.view().tensor(name).is_ok()
    }

    /// Shape and values of a tensor; integers are widened exactly.
    pub fn get(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        let file = self.view();
        let tensor = file.tensor(name).unwrap_or_else(|error| panic!("{}: {name}: {error}", self.name));
        let values = match tensor.dtype() {
            Dtype::F32 => tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
            Dtype::I64 => {
                tensor.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f32).collect()
            }
            other => panic!("{}: {name} is {other:?}", self.name),
        };
        (tensor.shape().to_vec(), values)
    }

    pub fn f32(&self, name: &str) -> Vec<f32> {
        self.get(name).1
    }

    pub fn u32(&self, name: &str) -> Vec<u32> {
        self.f32(name).into_iter().map(|v| v as u32).collect()
    }
}

#[allow(unused_imports, reason = "not every program draws random values")]
pub use im2sp::{conformance::tolerance, random::Random};

/// Fails unless every value is within `tolerance(length, largest expected value)` of what is expected.
#[track_caller]
pub fn assert_close(what: &str, actual: &[f32], expected: &[f32], length: usize) {
    assert_eq!(actual.len(), expected.len(), "{what}: number of values");
    let size = expected.iter().fold(0.0f32, |max, v| max.max(v.abs()));
    let max = tolerance(length, size);
    for (index, (a, e)) in actual.iter().zip(expected).enumerate() {
        // Written so that NaN fails.
        assert!((a - e).abs() <= max, "{what}: value {index} is {a}, expected {e}, tolerance {max:e}");
    }
}
