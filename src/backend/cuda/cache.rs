//! Launches kernels/cache.cu: keys and values of a decoder, and attention of one query per row over them.

use super::driver::{DevicePtr, Launch};
use super::kernels::{self, CachePrefixParams, CachedAttentionParams};
use super::{CacheRow, CacheShape, Cuda, Layout, Tensor, ensure, int};
use crate::Result;
use crate::tensor::DType;

/// Tokens of a split.
const SPLIT: usize = 64;
/// Largest head size of the kernels.
const MOST_SIZE: usize = 256;
/// Floats of shared memory beside keys, values and query: weights, and what warps tell each other.
const TOLD: usize = SPLIT + 4;
/// Most blocks of the copy of a prefix.
const COPY_BLOCKS: usize = 1024;

/// Keys and values of a decoder on the device. The layout is described at the head of kernels/cache.cu.
pub struct Cache {
    shape: CacheShape,
    /// Keys and values of each layer, (images, H, prefix, D).
    prefixes: Vec<[Tensor; 2]>,
    /// Keys and values of each layer, (positions, slots, H, D); none before there are rows.
    texts: Vec<[Tensor; 2]>,
    slots: usize,
    /// Slot of every position of each row's text, up to `known`; after that a row is in its own slot.
    ancestors: Vec<Vec<u32>>,
    known: usize,
    /// Text tokens that every live row holds.
    tokens: usize,
    live: Option<Live>,
}

/// The live rows on the device.
struct Live {
    rows: usize,
    /// (rows): sorted by picture, and (images + 1): where each picture's begin.
    order: Tensor,
    first: Tensor,
    /// (rows, known).
    ancestors: Tensor,
}

impl Cache {
    pub(super) fn new(cuda: &Cuda, shape: CacheShape) -> Result<Cache> {
        let CacheShape { layers, heads, head_size, images, prefix, .. } = shape;
        ensure(heads > 0 && (1..=MOST_SIZE).contains(&head_size), "cache", || format!("{shape:?}"))?;
        let store = || cuda.empty([images * heads * prefix, head_size], cuda.dtype, Layout::Rows);
        let prefixes = (0..layers).map(|_| Ok([store()?, store()?])).collect::<Result<_>>()?;
        let (texts, ancestors) = (Vec::new(), Vec::new());
        Ok(Cache { shape, prefixes, texts, slots: 0, ancestors, known: 0, tokens: 0, live: None })
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

    pub(super) fn set_prefix(&mut self, cuda: &Cuda, layer: usize, qkv: &Tensor) -> Result<()> {
        const OP: &str = "cache_prefix";
        let CacheShape { heads, head_size, images, prefix, .. } = self.shape;
        self.check(OP, qkv, images * prefix, layer)?;
        let qkv = cuda.rows_of(qkv, cuda.dtype)?;
        let (keys, values) = self.prefix(layer);
        let params = CachePrefixParams {
            qkv: qkv.pointer(),
            keys,
            values,
            images: int(OP, images)?,
            prefix: int(OP, prefix)?,
            heads: int(OP, heads)?,
            head_size: int(OP, head_size)?,
        };
        let kernel = match cuda.dtype {
            DType::BF16 => &kernels::CACHE_PREFIX_FORWARD_BF16,
            _ => &kernels::CACHE_PREFIX_FORWARD_F32,
        };
        let blocks = (images * prefix * heads * head_size).div_ceil(256).min(COPY_BLOCKS);
        // SAFETY: qkv holds images * prefix rows of 3 * H * D, keys and values as many of H * D.
        unsafe { cuda.launch(kernel, Launch::blocks(blocks), params) }
    }

    pub(super) fn set_rows(&mut self, cuda: &Cuda, rows: &[CacheRow]) -> Result<()> {
        let before = self.live.as_ref().map_or(0, |live| live.rows);
        for row in rows {
            let fits = row.image < self.shape.images && row.parent.is_none_or(|parent| parent < before);
            ensure(fits, "cache_rows", || format!("{row:?} of {before} rows, {:?}", self.shape))?;
        }
        if rows.iter().all(|row| row.parent.is_none()) {
            self.tokens = 0;
        }
        let (known, tokens) = (self.known, self.tokens);
        let line = |parent: usize| {
            let mut line = self.ancestors[parent][..known.min(tokens)].to_vec();
            // Since the last change, every row has written to its own slot.
            line.resize(tokens, parent as u32);
            line
        };
        let fresh = |row: usize| vec![row as u32; tokens];
        let ancestors: Vec<Vec<u32>> =
            rows.iter().enumerate().map(|(r, row)| row.parent.map_or_else(|| fresh(r), line)).collect();
        self.reserve(cuda, rows.len())?;
        self.live = Some(self.place(cuda, rows, &ancestors)?);
        (self.ancestors, self.known) = (ancestors, tokens);
        Ok(())
    }

    /// The tables of the live rows.
    fn place(&self, cuda: &Cuda, rows: &[CacheRow], ancestors: &[Vec<u32>]) -> Result<Live> {
        let mut order: Vec<u32> = (0..rows.len() as u32).collect();
        order.sort_by_key(|&row| rows[row as usize].image);
        let first: Vec<u32> =
            (0..=self.shape.images).map(|image| rows.iter().filter(|row| row.image < image).count() as u32).collect();
        Ok(Live {
            rows: rows.len(),
            order: cuda.put_ids(&order)?,
            first: cuda.put_ids(&first)?,
            ancestors: cuda.put_ids(&ancestors.concat())?,
        })
    }

    /// Room for this many rows in every layer; what texts hold already moves along.
    fn reserve(&mut self, cuda: &Cuda, slots: usize) -> Result<()> {
        if slots <= self.slots {
            return Ok(());
        }
        let CacheShape { layers, heads, head_size, max_text, .. } = self.shape;
        let store = || cuda.empty([max_text * slots * heads, head_size], cuda.dtype, Layout::Rows);
        let texts: Vec<[Tensor; 2]> = (0..layers).map(|_| Ok([store()?, store()?])).collect::<Result<_>>()?;
        let bytes = heads * head_size * cuda.dtype.size();
        for (old, new) in self.texts.iter().flatten().zip(texts.iter().flatten()) {
            for position in 0..self.tokens {
                let (to, from) = (position * slots * bytes, position * self.slots * bytes);
                // SAFETY: position is below max_text in both, and the new slots are more than the old.
                unsafe { cuda.driver.copy(new.pointer().offset(to), old.pointer().offset(from), self.slots * bytes)? };
            }
        }
        (self.texts, self.slots) = (texts, slots);
        Ok(())
    }

    pub(super) fn attention(&mut self, cuda: &Cuda, qkv: &Tensor, layer: usize, position: usize) -> Result<Tensor> {
        const OP: &str = "attention_cached";
        let CacheShape { heads, head_size, images, prefix, max_text, .. } = self.shape;
        let rows = self.live.as_ref().map_or(0, |live| live.rows);
        self.check(OP, qkv, rows, layer)?;
        ensure(position < max_text, OP, || format!("position {position} of at most {max_text}"))?;
        let y = cuda.empty([rows, heads * head_size], DType::F32, Layout::Rows)?;
        let (Some(live), Some([text_keys, text_values])) = (&self.live, self.texts.get(layer)) else { return Ok(y) };
        let qkv = cuda.rows_of(qkv, DType::F32)?;
        let (prefix_splits, text_splits) = (prefix.div_ceil(SPLIT), position / SPLIT + 1);
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
            partials: partials.pointer(),
            y: y.pointer(),
            rows: int(OP, rows)?,
            images: int(OP, images)?,
            heads: int(OP, heads)?,
            head_size: int(OP, head_size)?,
            prefix: int(OP, prefix)?,
            position: int(OP, position)?,
            known: int(OP, self.known.min(position))?,
            slots: int(OP, self.slots)?,
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
        let shared = (2 * SPLIT * (head_size + 1) + head_size + TOLD) * size_of::<f32>();
        // SAFETY: rows, pictures and slots come from `set_rows`, which checked them; the position is below max_text; every
        // split of every row has its partial result before the second kernel adds them.
        unsafe {
            cuda.launch(kernel, Launch::grid([units, heads, 1]).shared(shared), params)?;
            cuda.launch(&kernels::ATTENTION_CACHED_FORWARD_COMBINE, Launch::grid([rows, heads, 1]), params)?;
        }
        self.tokens = position + 1;
        Ok(y)
    }
}
