//! The KV cache of a decoder: keys and values of images and of the units generated so far.
//!
//! Whole decode steps are captured as graphs ([`KvCache::step`]). So a step's launches have the same params as long as the
//! number of rows, the splits of their sequences and the slots stay; everything else about the rows is in tables, which the
//! host writes before each step.

mod storage;

use std::sync::Arc;

use super::driver::DevicePtr;
use super::graph::Key;
use super::linear::{self, Split};
use super::{CacheRow, CacheShape, Cuda, LinearWeights, Tensor, ensure};
use crate::Result;
use crate::backend::decode::check_appended;
use crate::backend::{GraphId, StepBody};
pub(super) use storage::KvPool;
use storage::{Generated, KvStorage, Tables};

/// Tokens of a split of the attention.
pub(super) const SPLIT: usize = 64;
/// Largest head size of the kernels.
const MAX_SIZE: usize = 256;
/// A step is captured when so many in a row before it were of its kind: one that will not come again is not worth it.
const STEADY: usize = 2;

/// Keys and values of a decoder on the device. The layout is described at the head of kernels/attention_decode.cu.
pub struct KvCache {
    shape: CacheShape,
    store: KvStorage,
    rows: Vec<Row>,
    /// The tables of the live rows, in the order of [`Tables`]; all but their positions are on the device if `written`.
    tables: Vec<u32>,
    written: bool,
    /// Rows, splits of their sequences and slots in the newest step, and how many steps before it were alike.
    kind: [usize; 3],
    steady: usize,
    kv_pool: Arc<KvPool>,
}

/// One live row.
struct Row {
    /// Slots of the first positions of its sequence.
    ancestors: Vec<u32>,
    /// Slot of the positions after them.
    slot: u32,
    /// Tokens of the sequence.
    tokens: usize,
}

/// One layer of the cache, as the kernels take it.
pub(super) struct Layer {
    /// Keys and values of the prefixes.
    pub prefix: (DevicePtr, DevicePtr),
    /// Keys and values of generated units.
    pub generated: (DevicePtr, DevicePtr),
    pub tables: Tables,
    pub slots: usize,
    /// Splits of generated units that there are blocks for.
    pub splits: usize,
}

impl KvCache {
    pub(super) fn new(cuda: &Cuda, shape: CacheShape) -> Result<KvCache> {
        shape.check(MAX_SIZE)?;
        let used = if cuda.pool.poisons() { None } else { cuda.kv_pool.take(shape) };
        let store = used.map_or_else(|| KvStorage::new(cuda, shape), Ok)?;
        let (rows, tables, kv_pool) = (Vec::new(), Vec::new(), cuda.kv_pool.clone());
        Ok(KvCache { shape, store, rows, tables, written: true, kind: [0; 3], steady: 0, kv_pool })
    }

    /// Its sizes.
    pub(super) fn shape(&self) -> CacheShape {
        self.shape
    }

    /// Keys and values of the prefixes in one layer, (images, H, prefix, D).
    pub(super) fn prefix(&self, layer: usize) -> (DevicePtr, DevicePtr) {
        let [keys, values] = &self.store.prefixes[layer];
        (keys.pointer(), values.pointer())
    }

    /// The memory and tables that attention of a decode step reads in one layer; `None` before there are rows.
    pub(super) fn layer(&self, qkv: &Tensor, layer: usize) -> Result<Option<Layer>> {
        const OP: &str = "attention_decode";
        let rows = self.rows.len();
        self.shape.check_qkv(OP, [qkv.rows, qkv.columns], rows, layer)?;
        let Some(generated) = &self.store.generated else { return Ok(None) };
        check_appended(self.written)?;
        let ([keys, values], prefix) = (&generated.layers[layer], self.prefix(layer));
        Ok(Some(Layer {
            prefix,
            generated: (keys.pointer(), values.pointer()),
            tables: generated.tables(rows, self.shape.images),
            slots: generated.slots,
            splits: self.generated_splits(),
        }))
    }

    /// Live rows.
    pub(super) fn rows(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn set_prefix(
        &mut self,
        cuda: &Cuda,
        images: &[usize],
        layer: usize,
        x: &Tensor,
        qkv: &LinearWeights<Cuda>,
    ) -> Result<Tensor> {
        self.shape.check_prefill(cuda, images, layer, x, qkv)?;
        let dtype = qkv.weight.tensor.dtype;
        ensure(dtype == cuda.dtype, "prefill_qkv", || format!("weights in {dtype:?}, a cache in {:?}", cuda.dtype))?;
        let CacheShape { heads, prefix, .. } = self.shape;
        let (keys, values) = self.prefix(layer);
        let places = cuda.put_ids(&images.iter().map(|&image| image as u32).collect::<Vec<_>>())?;
        linear::linear_split(cuda, x, qkv, Split { keys, values, images: places.pointer(), prefix, heads })
    }

    pub(super) fn set_rows(&mut self, cuda: &Cuda, rows: &[CacheRow]) -> Result<()> {
        self.shape.check_rows(rows, self.rows.len())?;
        let continued: Vec<Row> = rows.iter().map(|row| self.continued(row.parent)).collect();
        let next = with_slots(continued);
        self.reserve(cuda, next.iter().map(|row| row.slot as usize + 1).max().unwrap_or(0))?;
        (self.tables, self.written) = (self.tables(rows, &next), false);
        self.rows = next;
        Ok(())
    }

    /// A row that continues `parent`, at first in its slot; an empty one without a parent.
    fn continued(&self, parent: Option<usize>) -> Row {
        let Some(parent) = parent.map(|parent| &self.rows[parent]) else {
            return Row { ancestors: Vec::new(), slot: 0, tokens: 0 };
        };
        let mut ancestors = parent.ancestors.clone();
        // Since the last change, every row has written to its own slot.
        ancestors.resize(parent.tokens, parent.slot);
        Row { ancestors, slot: parent.slot, tokens: parent.tokens }
    }

    fn tables(&self, rows: &[CacheRow], next: &[Row]) -> Vec<u32> {
        let positions = next.iter().map(|row| row.tokens as u32);
        let slot = next.iter().map(|row| row.slot);
        let ancestor_len = next.iter().map(|row| row.ancestors.len() as u32);
        let mut order: Vec<u32> = (0..rows.len() as u32).collect();
        order.sort_by_key(|&row| rows[row as usize].image);
        let row_begin = (0..=self.shape.images).map(|image| rows.iter().filter(|row| row.image < image).count() as u32);
        let longest = next.iter().map(|row| row.ancestors.len()).max().unwrap_or(0);
        let slot_of = |row: &Row, position: usize| row.ancestors.get(position).copied().unwrap_or(row.slot);
        let ancestors = (0..longest).flat_map(|position| next.iter().map(move |row| slot_of(row, position)));
        positions.chain(slot).chain(ancestor_len).chain(order).chain(row_begin).chain(ancestors).collect()
    }

    /// Room for this many slots in every layer; what sequences hold already moves along.
    fn reserve(&mut self, cuda: &Cuda, slots: usize) -> Result<()> {
        let before = self.store.generated.as_ref().map_or(0, |generated| generated.slots);
        if slots <= before {
            return Ok(());
        }
        let generated = Generated::new(cuda, self.shape, slots)?;
        let bytes = self.shape.heads * self.shape.head_size * cuda.dtype.size();
        let written = self.rows.iter().map(|row| row.tokens).max().unwrap_or(0);
        let old = self.store.generated.iter().flat_map(|generated| &generated.layers);
        for (old, new) in old.flatten().zip(generated.layers.iter().flatten()) {
            for position in 0..written {
                let (to, from) = (position * slots * bytes, position * before * bytes);
                // SAFETY: position is below max_new_tokens in both, and the new slots are more than the old.
                unsafe { cuda.stream.copy(new.pointer().offset(to), old.pointer().offset(from), before * bytes)? };
            }
        }
        self.store.generated = Some(generated);
        Ok(())
    }

    pub(super) fn grow(&mut self, cuda: &Cuda) -> Result<&[u32]> {
        self.rows.iter().try_for_each(|row| self.shape.check_append(row.tokens))?;
        let Some(generated) = &self.store.generated else { return Ok(&[]) };
        let rows = self.rows.len();
        for (position, row) in self.tables.iter_mut().zip(&self.rows) {
            *position = row.tokens as u32;
        }
        let changed = if self.written { &self.tables[..rows] } else { &self.tables };
        let tables = generated.tables(rows, self.shape.images);
        // SAFETY: there is room for the tables of as many rows as slots, and no two rows share a slot.
        unsafe { cuda.stream.copy_to_device(tables.positions, bytemuck::cast_slice(changed))? };
        let slots = generated.slots;
        self.written = true;
        self.rows.iter_mut().for_each(|row| row.tokens += 1);
        let kind = [rows, self.generated_splits(), slots];
        self.steady = if kind == self.kind { self.steady + 1 } else { 0 };
        self.kind = kind;
        Ok(&self.tables[..rows])
    }

    /// Splits that there are blocks for. Those that no sequence reaches cost little, and steps that differ less are captured
    /// less often.
    fn generated_splits(&self) -> usize {
        let longest = self.rows.iter().map(|row| row.tokens).max().unwrap_or(0);
        longest.div_ceil(SPLIT).next_power_of_two().min(self.shape.max_new_tokens.div_ceil(SPLIT))
    }

    /// `body(cuda, self, x)`, captured when such a step is likely to come again.
    pub(super) fn step(
        &mut self,
        cuda: &Cuda,
        graph: &GraphId,
        x: &Tensor,
        body: StepBody<'_, Cuda>,
    ) -> Result<Tensor> {
        let key = Key::new(graph, x, self.generated_splits());
        let fits = x.rows == self.rows.len() && self.written;
        let Some(generated) = self.store.generated.as_mut().filter(|_| fits) else { return body(cuda, self, x) };
        // The body has the cache while they are at work.
        let mut steps = std::mem::take(&mut generated.steps);
        let mut done = steps.replay(cuda, &key, x);
        if done.is_none() && self.steady >= STEADY {
            let recorded = steps.record(cuda, key, x, &mut |inside, fixed| body(inside, self, fixed));
            // A step that cannot be captured, for want of memory say, may still be done.
            self.steady = 0;
            done = recorded.ok().map(Ok);
        }
        if let Some(generated) = &mut self.store.generated {
            generated.steps = steps;
        }
        done.unwrap_or_else(|| body(cuda, self, x))
    }
}

impl Drop for KvCache {
    fn drop(&mut self) {
        self.kv_pool.put(self.shape, std::mem::take(&mut self.store));
    }
}

/// Gives every row a slot of its own in which no other row reads what this one will write. A row that continues another
/// stays in that one's slot if it can, so only one of several children moves.
fn with_slots(mut rows: Vec<Row>) -> Vec<Row> {
    let last = rows.iter().flat_map(|row| &row.ancestors).chain(rows.iter().map(|row| &row.slot)).max();
    let slots = last.map_or(0, |&last| last as usize + 1);
    // Positions from here on are read by nobody, for every slot.
    let mut read = vec![0; slots + rows.len()];
    for (position, &slot) in rows.iter().flat_map(|row| row.ancestors.iter().enumerate()) {
        read[slot as usize] = read[slot as usize].max(position + 1);
    }
    let mut taken = vec![false; read.len()];
    for row in &mut rows {
        let free = |slot: &usize| !taken[*slot] && read[*slot] <= row.tokens;
        // Slots that sequences lie in already come before unused ones, so that they stay few.
        let others = (0..read.len()).filter(|&slot| read[slot] > 0).chain(0..read.len());
        let slot = std::iter::once(row.slot as usize).chain(others).find(free);
        row.slot = slot.unwrap_or_default() as u32;
        taken[row.slot as usize] = true;
    }
    rows
}
