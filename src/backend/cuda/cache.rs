//! Launches kernels/cache.cu: keys and values of a decoder, and attention of one query per row over them.
//!
//! Whole decode steps are recorded as graphs ([`KvCache::step`]). So a step's launches have the same params as long as the
//! number of rows, the splits of their texts and the slots stay; everything else about the rows is in tables, which the
//! host writes before each step.

mod store;

use std::sync::Arc;

use super::driver::{DevicePtr, Launch};
use super::graph::Key;
use super::kernels::{self, CachedAttentionParams};
use super::linear::{self, Split};
use super::{CacheRow, CacheShape, Cuda, Layout, LinearWeights, Tensor, ensure, int};
use crate::Result;
use crate::backend::{GraphId, StepBody};
use crate::tensor::DType;
pub(super) use store::KvPool;
use store::{KvStorage, Tables, Texts};

/// Tokens of a split.
const SPLIT: usize = 64;
/// Largest head size of the kernels.
const MAX_SIZE: usize = 256;
/// Floats of shared memory beside keys, values and query: weights, and what warps tell each other.
const WARP_SCRATCH: usize = SPLIT + 4;
/// A step is recorded when so many in a row before it were of its kind: one that will not come again is not worth it.
const STEADY: usize = 2;

/// Keys and values of a decoder on the device. The layout is described at the head of kernels/cache.cu.
pub struct KvCache {
    shape: CacheShape,
    store: KvStorage,
    rows: Vec<Row>,
    /// The tables of the live rows, in the order of [`Tables`]; all but their positions are on the device if `written`.
    tables: Vec<u32>,
    written: bool,
    /// Rows, splits of their texts and slots in the newest step, and how many steps before it were alike.
    kind: [usize; 3],
    steady: usize,
    kv_pool: Arc<KvPool>,
}

/// One live row.
struct Row {
    /// Slot of the first positions of its text.
    ancestors: Vec<u32>,
    /// Slot of the positions after them.
    own: u32,
    /// Tokens of the text.
    tokens: usize,
}

impl KvCache {
    pub(super) fn new(cuda: &Cuda, shape: CacheShape) -> Result<KvCache> {
        let fits = shape.heads > 0 && (1..=MAX_SIZE).contains(&shape.head_size);
        ensure(fits, "cache", || format!("{shape:?}"))?;
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

    fn check(&self, op: &'static str, qkv: &Tensor, rows: usize, layer: usize) -> Result<()> {
        let width = self.shape.heads * self.shape.head_size;
        ensure((qkv.rows, qkv.columns) == (rows, 3 * width) && layer < self.shape.layers, op, || {
            format!("qkv ({}, {}) for {rows} rows, layer {layer} of {:?}", qkv.rows, qkv.columns, self.shape)
        })
    }

    pub(super) fn set_prefix(
        &mut self,
        cuda: &Cuda,
        pictures: &[usize],
        layer: usize,
        x: &Tensor,
        qkv: &LinearWeights<Cuda>,
    ) -> Result<Tensor> {
        let CacheShape { layers, heads, head_size, images, prefix, .. } = self.shape;
        let weight = &qkv.weight.tensor;
        let fits = pictures.iter().all(|&picture| picture < images)
            && x.rows == pictures.len() * prefix
            && layer < layers
            && (weight.rows, weight.dtype) == (3 * heads * head_size, cuda.dtype);
        ensure(fits, "prefill_qkv", || {
            let (rows, columns) = (x.rows, weight.rows);
            format!("qkv ({rows}, {columns}) of pictures {pictures:?} for layer {layer} of {:?}", self.shape)
        })?;
        let (keys, values) = self.prefix(layer);
        let places = cuda.put_ids(&pictures.iter().map(|&picture| picture as u32).collect::<Vec<_>>())?;
        linear::linear_split(cuda, x, qkv, Split { keys, values, pictures: places.pointer(), prefix, heads })
    }

    pub(super) fn set_rows(&mut self, cuda: &Cuda, rows: &[CacheRow]) -> Result<()> {
        let before = self.rows.len();
        for row in rows {
            let fits = row.image < self.shape.images && row.parent.is_none_or(|parent| parent < before);
            ensure(fits, "kv_reorder", || format!("{row:?} of {before} rows, {:?}", self.shape))?;
        }
        let continued: Vec<Row> = rows.iter().map(|row| self.continued(row.parent)).collect();
        let next = with_slots(continued);
        self.reserve(cuda, next.iter().map(|row| row.own as usize + 1).max().unwrap_or(0))?;
        (self.tables, self.written) = (self.tables(rows, &next), false);
        self.rows = next;
        Ok(())
    }

    /// What goes on from `parent`, at first in its slot; one without goes on from nothing.
    fn continued(&self, parent: Option<usize>) -> Row {
        let Some(parent) = parent.map(|parent| &self.rows[parent]) else {
            return Row { ancestors: Vec::new(), own: 0, tokens: 0 };
        };
        let mut ancestors = parent.ancestors.clone();
        // Since the last change, every row has written to its own slot.
        ancestors.resize(parent.tokens, parent.own);
        Row { ancestors, own: parent.own, tokens: parent.tokens }
    }

    fn tables(&self, rows: &[CacheRow], next: &[Row]) -> Vec<u32> {
        let positions = next.iter().map(|row| row.tokens as u32);
        let own = next.iter().map(|row| row.own);
        let known = next.iter().map(|row| row.ancestors.len() as u32);
        let mut order: Vec<u32> = (0..rows.len() as u32).collect();
        order.sort_by_key(|&row| rows[row as usize].image);
        let first = (0..=self.shape.images).map(|image| rows.iter().filter(|row| row.image < image).count() as u32);
        let longest = next.iter().map(|row| row.ancestors.len()).max().unwrap_or(0);
        let slot = |row: &Row, position: usize| row.ancestors.get(position).copied().unwrap_or(row.own);
        let ancestors = (0..longest).flat_map(|position| next.iter().map(move |row| slot(row, position)));
        positions.chain(own).chain(known).chain(order).chain(first).chain(ancestors).collect()
    }

    /// Room for this many slots in every layer; what texts hold already moves along.
    fn reserve(&mut self, cuda: &Cuda, slots: usize) -> Result<()> {
        let before = self.store.texts.as_ref().map_or(0, |texts| texts.slots);
        if slots <= before {
            return Ok(());
        }
        let texts = Texts::new(cuda, self.shape, slots)?;
        let bytes = self.shape.heads * self.shape.head_size * cuda.dtype.size();
        let written = self.rows.iter().map(|row| row.tokens).max().unwrap_or(0);
        let old = self.store.texts.iter().flat_map(|texts| &texts.layers);
        for (old, new) in old.flatten().zip(texts.layers.iter().flatten()) {
            for position in 0..written {
                let (to, from) = (position * slots * bytes, position * before * bytes);
                // SAFETY: position is below max_new_tokens in both, and the new slots are more than the old.
                unsafe { cuda.stream.copy(new.pointer().offset(to), old.pointer().offset(from), before * bytes)? };
            }
        }
        self.store.texts = Some(texts);
        Ok(())
    }

    pub(super) fn grow(&mut self, cuda: &Cuda) -> Result<&[u32]> {
        let most = self.shape.max_new_tokens;
        for row in &self.rows {
            ensure(row.tokens < most, "kv_append", || format!("position {} of at most {most}", row.tokens))?;
        }
        let Some(texts) = &self.store.texts else { return Ok(&[]) };
        let rows = self.rows.len();
        for (position, row) in self.tables.iter_mut().zip(&self.rows) {
            *position = row.tokens as u32;
        }
        let changed = if self.written { &self.tables[..rows] } else { &self.tables };
        let tables = texts.tables(rows, self.shape.images);
        // SAFETY: there is room for the tables of as many rows as slots, and no two rows share a slot.
        unsafe { cuda.stream.copy_to_device(tables.positions, bytemuck::cast_slice(changed))? };
        let slots = texts.slots;
        self.written = true;
        self.rows.iter_mut().for_each(|row| row.tokens += 1);
        let kind = [rows, self.text_splits(), slots];
        self.steady = if kind == self.kind { self.steady + 1 } else { 0 };
        self.kind = kind;
        Ok(&self.tables[..rows])
    }

    /// Splits that there are blocks for. Those that no text reaches cost little, and steps that differ less are recorded
    /// less often.
    fn text_splits(&self) -> usize {
        let longest = self.rows.iter().map(|row| row.tokens).max().unwrap_or(0);
        longest.div_ceil(SPLIT).next_power_of_two().min(self.shape.max_new_tokens.div_ceil(SPLIT))
    }

    /// `body(cuda, self, x)`, recorded when such a step is likely to come again.
    pub(super) fn step(
        &mut self,
        cuda: &Cuda,
        graph: &GraphId,
        x: &Tensor,
        body: StepBody<'_, Cuda>,
    ) -> Result<Tensor> {
        let key = Key::new(graph, x, self.text_splits());
        let fits = x.rows == self.rows.len() && self.written;
        let Some(texts) = self.store.texts.as_mut().filter(|_| fits) else { return body(cuda, self, x) };
        // The body has the cache while they are at work.
        let mut steps = std::mem::take(&mut texts.steps);
        let mut done = steps.replay(cuda, &key, x);
        if done.is_none() && self.steady >= STEADY {
            let recorded = steps.record(cuda, key, x, &mut |inside, fixed| body(inside, self, fixed));
            // A step that cannot be recorded, for want of memory say, may still be done.
            self.steady = 0;
            done = recorded.ok().map(Ok);
        }
        if let Some(texts) = &mut self.store.texts {
            texts.steps = steps;
        }
        done.unwrap_or_else(|| body(cuda, self, x))
    }

    pub(super) fn attention(&mut self, cuda: &Cuda, qkv: &Tensor, layer: usize) -> Result<Tensor> {
        const OP: &str = "attention_decode";
        let CacheShape { heads, head_size, images, prefix, .. } = self.shape;
        let rows = self.rows.len();
        self.check(OP, qkv, rows, layer)?;
        let y = cuda.empty([rows, heads * head_size], DType::F32, Layout::Rows)?;
        let Some(texts) = &self.store.texts else { return Ok(y) };
        ensure(self.written, OP, || "a text without tokens: kv_append comes first".into())?;
        let Tables { positions, own, known, order, first, ancestors } = texts.tables(rows, images);
        let [text_keys, text_values] = &texts.layers[layer];
        let qkv = cuda.rows_of(qkv, DType::F32)?;
        let (prefix_splits, text_splits) = (prefix.div_ceil(SPLIT), self.text_splits());
        let splits = prefix_splits + text_splits;
        let partials = cuda.empty([rows * heads * splits, head_size + 2], DType::F32, Layout::Rows)?;
        let (prefix_keys, prefix_values) = self.prefix(layer);
        let params = CachedAttentionParams {
            qkv: qkv.pointer(),
            prefix_keys,
            prefix_values,
            text_keys: text_keys.pointer(),
            text_values: text_values.pointer(),
            positions,
            own,
            known,
            order,
            first,
            ancestors,
            partials: partials.pointer(),
            y: y.pointer(),
            rows: int(OP, rows)?,
            images: int(OP, images)?,
            heads: int(OP, heads)?,
            head_size: int(OP, head_size)?,
            prefix: int(OP, prefix)?,
            slots: int(OP, texts.slots)?,
            prefix_splits: int(OP, prefix_splits)?,
            splits: int(OP, splits)?,
            scale: std::f32::consts::LOG2_E / (head_size as f32).sqrt(),
            unused: 0,
        };
        let kernel = match cuda.dtype {
            DType::BF16 => &kernels::ATTENTION_CACHED_FORWARD_BF16,
            _ => &kernels::ATTENTION_CACHED_FORWARD_F32,
        };
        let units = if rows == 0 { 0 } else { images * prefix_splits + rows * text_splits };
        let shared = (2 * SPLIT * (head_size + 1) + head_size + WARP_SCRATCH) * size_of::<f32>();
        // SAFETY: rows, pictures and slots come from `set_rows`, which checked them; positions are below max_new_tokens; every
        // split of every row's text and prefix has its partial result before the second kernel adds them.
        unsafe {
            cuda.launch(kernel, Launch::grid([units, heads, 1]).shared_bytes(shared), params)?;
            cuda.launch(&kernels::ATTENTION_CACHED_FORWARD_COMBINE, Launch::grid([rows, heads, 1]), params)?;
        }
        Ok(y)
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
    let most = rows.iter().flat_map(|row| &row.ancestors).chain(rows.iter().map(|row| &row.own)).max();
    let known = most.map_or(0, |&most| most as usize + 1);
    // Positions from here on are read by nobody, for every slot.
    let mut read = vec![0; known + rows.len()];
    for (position, &slot) in rows.iter().flat_map(|row| row.ancestors.iter().enumerate()) {
        read[slot as usize] = read[slot as usize].max(position + 1);
    }
    let mut taken = vec![false; read.len()];
    for row in &mut rows {
        let free = |slot: &usize| !taken[*slot] && read[*slot] <= row.tokens;
        // Slots that texts lie in already come before unused ones, so that they stay few.
        let others = (0..read.len()).filter(|&slot| read[slot] > 0).chain(0..read.len());
        let slot = std::iter::once(row.own as usize).chain(others).find(free);
        row.own = slot.unwrap_or_default() as u32;
        taken[row.own as usize] = true;
    }
    rows
}
