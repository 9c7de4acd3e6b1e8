//! Launches kernels/cache.cu: keys and values of a decoder, and attention of one query per row over them.

use super::driver::{DevicePtr, Launch};
use super::kernels::{self, CachedAttentionParams};
use super::linear::{self, Split};
use super::{CacheRow, CacheShape, Cuda, Layout, Linear, Tensor, ensure, int};
use crate::tensor::DType;
use crate::{Error, Result};

/// Tokens of a split.
const SPLIT: usize = 64;
/// Largest head size of the kernels.
const MOST_SIZE: usize = 256;
/// Floats of shared memory beside keys, values and query: weights, and what warps tell each other.
const TOLD: usize = SPLIT + 4;

/// Keys and values of a decoder on the device. The layout is described at the head of kernels/cache.cu.
pub struct Cache {
    shape: CacheShape,
    /// Keys and values of each layer, (images, H, prefix, D).
    prefixes: Vec<[Tensor; 2]>,
    /// Keys and values of each layer, (positions, slots, H, D); none before there are rows.
    texts: Vec<[Tensor; 2]>,
    slots: usize,
    rows: Vec<Row>,
    /// Where each row's newest token stands.
    positions: Vec<u32>,
    live: Option<Live>,
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

/// The live rows on the device.
struct Live {
    /// (rows): sorted by picture, and (images + 1): where each picture's begin.
    order: Tensor,
    first: Tensor,
    /// (rows, known): the slot of every position that the longest ancestry knows.
    ancestors: Tensor,
    known: usize,
    /// (rows): each row's own slot.
    own: Tensor,
    /// (rows): where each row's newest token stands; `None` before the first.
    positions: Option<Tensor>,
}

impl Cache {
    pub(super) fn new(cuda: &Cuda, shape: CacheShape) -> Result<Cache> {
        let CacheShape { layers, heads, head_size, images, prefix, .. } = shape;
        ensure(heads > 0 && (1..=MOST_SIZE).contains(&head_size), "cache", || format!("{shape:?}"))?;
        let store = || cuda.empty([images * heads * prefix, head_size], cuda.dtype, Layout::Rows);
        let prefixes = (0..layers).map(|_| Ok([store()?, store()?])).collect::<Result<_>>()?;
        Ok(Cache { shape, prefixes, texts: Vec::new(), slots: 0, rows: Vec::new(), positions: Vec::new(), live: None })
    }

    /// Its sizes.
    pub(super) fn shape(&self) -> CacheShape {
        self.shape
    }

    /// Keys and values of the prefixes in one layer, (images, H, prefix, D).
    pub(super) fn prefix(&self, layer: usize) -> (DevicePtr, DevicePtr) {
        let [keys, values] = &self.prefixes[layer];
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
        qkv: &Linear<Cuda>,
    ) -> Result<Tensor> {
        let CacheShape { layers, heads, head_size, images, prefix, .. } = self.shape;
        let weight = &qkv.weight.tensor;
        let fits = pictures.iter().all(|&picture| picture < images)
            && x.rows == pictures.len() * prefix
            && layer < layers
            && (weight.rows, weight.dtype) == (3 * heads * head_size, cuda.dtype);
        ensure(fits, "cache_prefix", || {
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
            ensure(fits, "cache_rows", || format!("{row:?} of {before} rows, {:?}", self.shape))?;
        }
        let continued: Vec<Row> = rows.iter().map(|row| self.continued(row.parent)).collect();
        let next = with_slots(continued);
        self.reserve(cuda, next.iter().map(|row| row.own as usize + 1).max().unwrap_or(0))?;
        self.live = Some(self.place(cuda, rows, &next)?);
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

    /// The tables of the live rows.
    fn place(&self, cuda: &Cuda, rows: &[CacheRow], next: &[Row]) -> Result<Live> {
        let mut order: Vec<u32> = (0..rows.len() as u32).collect();
        order.sort_by_key(|&row| rows[row as usize].image);
        let first: Vec<u32> =
            (0..=self.shape.images).map(|image| rows.iter().filter(|row| row.image < image).count() as u32).collect();
        let known = next.iter().map(|row| row.ancestors.len()).max().unwrap_or(0);
        let slot = |row: &Row, position: usize| row.ancestors.get(position).copied().unwrap_or(row.own);
        let ancestors: Vec<u32> =
            next.iter().flat_map(|row| (0..known).map(move |position| slot(row, position))).collect();
        let own: Vec<u32> = next.iter().map(|row| row.own).collect();
        Ok(Live {
            order: cuda.put_ids(&order)?,
            first: cuda.put_ids(&first)?,
            ancestors: cuda.put_ids(&ancestors)?,
            known,
            own: cuda.put_ids(&own)?,
            positions: None,
        })
    }

    /// Room for this many slots in every layer; what texts hold already moves along.
    fn reserve(&mut self, cuda: &Cuda, slots: usize) -> Result<()> {
        if slots <= self.slots {
            return Ok(());
        }
        let CacheShape { layers, heads, head_size, max_text, .. } = self.shape;
        let store = || cuda.empty([max_text * slots * heads, head_size], cuda.dtype, Layout::Rows);
        let texts: Vec<[Tensor; 2]> = (0..layers).map(|_| Ok([store()?, store()?])).collect::<Result<_>>()?;
        let bytes = heads * head_size * cuda.dtype.size();
        let written = self.rows.iter().map(|row| row.tokens).max().unwrap_or(0);
        for (old, new) in self.texts.iter().flatten().zip(texts.iter().flatten()) {
            for position in 0..written {
                let (to, from) = (position * slots * bytes, position * self.slots * bytes);
                // SAFETY: position is below max_text in both, and the new slots are more than the old.
                unsafe { cuda.driver.copy(new.pointer().offset(to), old.pointer().offset(from), self.slots * bytes)? };
            }
        }
        (self.texts, self.slots) = (texts, slots);
        Ok(())
    }

    pub(super) fn grow(&mut self, cuda: &Cuda) -> Result<&[u32]> {
        let most = self.shape.max_text;
        for row in &self.rows {
            ensure(row.tokens < most, "cache_grow", || format!("position {} of at most {most}", row.tokens))?;
        }
        self.positions.clear();
        self.positions.extend(self.rows.iter().map(|row| row.tokens as u32));
        if let Some(live) = &mut self.live {
            live.positions = Some(cuda.put_ids(&self.positions)?);
        }
        self.rows.iter_mut().for_each(|row| row.tokens += 1);
        Ok(&self.positions)
    }

    pub(super) fn attention(&mut self, cuda: &Cuda, qkv: &Tensor, layer: usize) -> Result<Tensor> {
        const OP: &str = "attention_cached";
        let CacheShape { heads, head_size, images, prefix, .. } = self.shape;
        let rows = self.rows.len();
        self.check(OP, qkv, rows, layer)?;
        let longest = self.rows.iter().map(|row| row.tokens).max().unwrap_or(0);
        let y = cuda.empty([rows, heads * head_size], DType::F32, Layout::Rows)?;
        let (Some(live), Some([text_keys, text_values])) = (&self.live, self.texts.get(layer)) else { return Ok(y) };
        let missing = || Error::shape(OP, "a text without tokens: cache_grow comes first");
        let positions = live.positions.as_ref().ok_or_else(missing)?;
        let qkv = cuda.rows_of(qkv, DType::F32)?;
        let (prefix_splits, text_splits) = (prefix.div_ceil(SPLIT), longest.div_ceil(SPLIT));
        let splits = prefix_splits + text_splits;
        let partials = cuda.empty([rows * heads * splits, head_size + 2], DType::F32, Layout::Rows)?;
        let (prefix_keys, prefix_values) = self.prefix(layer);
        let params = CachedAttentionParams {
            qkv: qkv.pointer(),
            prefix_keys,
            prefix_values,
            text_keys: text_keys.pointer(),
            text_values: text_values.pointer(),
            order: live.order.pointer(),
            first: live.first.pointer(),
            ancestors: live.ancestors.pointer(),
            own: live.own.pointer(),
            positions: positions.pointer(),
            partials: partials.pointer(),
            y: y.pointer(),
            rows: int(OP, rows)?,
            images: int(OP, images)?,
            heads: int(OP, heads)?,
            head_size: int(OP, head_size)?,
            prefix: int(OP, prefix)?,
            known: int(OP, live.known)?,
            slots: int(OP, self.slots)?,
            prefix_splits: int(OP, prefix_splits)?,
            splits: int(OP, splits)?,
            scale: std::f32::consts::LOG2_E / (head_size as f32).sqrt(),
        };
        let kernel = match cuda.dtype {
            DType::BF16 => &kernels::ATTENTION_CACHED_FORWARD_BF16,
            _ => &kernels::ATTENTION_CACHED_FORWARD_F32,
        };
        let units = if rows == 0 { 0 } else { images * prefix_splits + rows * text_splits };
        let shared = (2 * SPLIT * (head_size + 1) + head_size + TOLD) * size_of::<f32>();
        // SAFETY: rows, pictures and slots come from `set_rows`, which checked them; positions are below max_text; every
        // split of every row's text and prefix has its partial result before the second kernel adds them.
        unsafe {
            cuda.launch(kernel, Launch::grid([units, heads, 1]).shared(shared), params)?;
            cuda.launch(&kernels::ATTENTION_CACHED_FORWARD_COMBINE, Launch::grid([rows, heads, 1]), params)?;
        }
        Ok(y)
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
