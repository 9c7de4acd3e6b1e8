//! The device memory of a cache, and the decode steps that were captured over it. Captured steps hold addresses, so both
//! wait together for the next cache of the same shape: a caption like the one before it allocates and captures nothing.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::Result;
use crate::backend::CacheShape;
use crate::backend::cuda::driver::DevicePtr;
use crate::backend::cuda::graph::Graphs;
use crate::backend::cuda::{Cuda, Layout, Tensor};
use crate::tensor::DType;

/// Largest number of stores kept for the next cache.
const MAX_WAITING: usize = 4;

/// Memory of a cache.
#[derive(Default)]
pub(super) struct KvStorage {
    /// Keys and values of each layer, (images, H, prefix, D).
    pub prefixes: Vec<[Tensor; 2]>,
    /// None before there are rows.
    pub generated: Option<Generated>,
}

/// Keys, values and tables of generated units, with room for so many slots.
pub(super) struct Generated {
    /// Steps over this very memory.
    pub steps: Graphs,
    /// Keys and values of each layer, (positions, slots, H, D).
    pub layers: Vec<[Tensor; 2]>,
    pub slots: usize,
    tables: Tensor,
}

/// Where the tables of the live rows lie, one after the other; see kernels/attention_decode.cu.
pub(in crate::backend::cuda) struct Tables {
    pub positions: DevicePtr,
    pub slot: DevicePtr,
    pub ancestor_len: DevicePtr,
    pub order: DevicePtr,
    pub row_begin: DevicePtr,
    pub ancestors: DevicePtr,
}

impl KvStorage {
    pub fn new(cuda: &Cuda, shape: CacheShape) -> Result<KvStorage> {
        let prefixes = matrices(cuda, shape, shape.images * shape.heads * shape.prefix)?;
        Ok(KvStorage { prefixes, generated: None })
    }
}

impl Generated {
    pub fn new(cuda: &Cuda, shape: CacheShape, slots: usize) -> Result<Generated> {
        let CacheShape { heads, images, max_new_tokens, .. } = shape;
        // Live rows have a slot each.
        let words = slots * (Tables::OF_ROW + max_new_tokens) + images + 1;
        Ok(Generated {
            steps: Graphs::default(),
            layers: matrices(cuda, shape, max_new_tokens * slots * heads)?,
            slots,
            tables: cuda.empty([1, words], DType::F32, Layout::Rows)?,
        })
    }

    /// The tables for so many rows, at most as many as there are slots.
    pub fn tables(&self, rows: usize, images: usize) -> Tables {
        let at = |words: usize| self.tables.pointer().offset(words * size_of::<u32>());
        Tables {
            positions: at(0),
            slot: at(rows),
            ancestor_len: at(2 * rows),
            order: at(3 * rows),
            row_begin: at(Tables::OF_ROW * rows),
            ancestors: at(Tables::OF_ROW * rows + images + 1),
        }
    }
}

impl Tables {
    /// Words of a row, but for its ancestors.
    const OF_ROW: usize = 4;
}

/// Keys and values of every layer, (rows, D).
fn matrices(cuda: &Cuda, shape: CacheShape, rows: usize) -> Result<Vec<[Tensor; 2]>> {
    let matrix = || cuda.empty([rows, shape.head_size], cuda.dtype, Layout::Rows);
    (0..shape.layers).map(|_| Ok([matrix()?, matrix()?])).collect()
}

/// Stores that no cache uses, the last to come last.
#[derive(Default)]
pub(in crate::backend::cuda) struct KvPool(Mutex<Vec<(CacheShape, KvStorage)>>);

impl KvPool {
    /// One of this shape.
    pub(super) fn take(&self, shape: CacheShape) -> Option<KvStorage> {
        let mut waiting = self.waiting();
        let at = waiting.iter().rposition(|(known, _)| *known == shape)?;
        Some(waiting.remove(at).1)
    }

    pub(super) fn put(&self, shape: CacheShape, store: KvStorage) {
        let mut waiting = self.waiting();
        waiting.push((shape, store));
        if waiting.len() > MAX_WAITING {
            waiting.remove(0);
        }
    }

    /// Gives all memory back to the pool; whether there was any.
    pub(in crate::backend::cuda) fn clear(&self) -> bool {
        !std::mem::take(&mut *self.waiting()).is_empty()
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<(CacheShape, KvStorage)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
