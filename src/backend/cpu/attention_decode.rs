//! attention_decode: one query per live row over the keys and values of its image and of its sequence so
//! far.
//!
//! Image tokens never see units, so their keys and values are stored once per image and shared by all of its rows; a
//! row owns its sequence alone. Keys lie in tiles of 16 tokens, (tile, D, 16), so that scores are computed 16 at a time
//! without a horizontal sum; values lie as (T, D). Bytes per step and layer: 8 * H * D per visible token.

use rayon::prelude::*;

use super::attention::softmax;
use super::buffer::Buffer;
use super::simd::{Simd, dispatch, prefetch_ahead};
use super::{Activation, Cpu, Tensor};
use crate::backend::decode::check_appended;
use crate::backend::{CacheRow, CacheShape, Decode, Device as _, GraphId, Linear, LinearWeights, StepBody};
use crate::{Result, trace};

/// Tokens of a key tile.
const TILE: usize = 16;

/// Keys and values of `blocks` (layer, owner, head) triples, each with room for `capacity` tokens.
#[derive(Clone)]
struct KvStorage {
    size: usize,
    capacity: usize,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl KvStorage {
    fn new(blocks: usize, capacity: usize, size: usize) -> KvStorage {
        let capacity = capacity.next_multiple_of(TILE);
        // Zeroed memory is not touched until it is used.
        KvStorage {
            size,
            capacity,
            keys: vec![0.0; blocks * capacity * size],
            values: vec![0.0; blocks * capacity * size],
        }
    }

    fn block(&self, block: usize) -> (&[f32], &[f32]) {
        let range = block * self.capacity * self.size..(block + 1) * self.capacity * self.size;
        (&self.keys[range.clone()], &self.values[range])
    }

    fn put(&mut self, block: usize, token: usize, key: &[f32], value: &[f32]) {
        let base = block * self.capacity * self.size;
        let tile = base + token / TILE * TILE * self.size + token % TILE;
        for (d, &k) in key.iter().enumerate() {
            self.keys[tile + d * TILE] = k;
        }
        self.values[base + token * self.size..][..self.size].copy_from_slice(value);
    }

    /// A copy of the first `tokens` tokens of every block.
    fn fork(&self, tokens: usize) -> KvStorage {
        let stride = self.capacity * self.size;
        let blocks = self.keys.len().checked_div(stride).unwrap_or(0);
        let mut copy = KvStorage::new(blocks, self.capacity, self.size);
        let used = tokens.next_multiple_of(TILE) * self.size;
        for start in (0..self.keys.len()).step_by(stride.max(1)) {
            copy.keys[start..start + used].copy_from_slice(&self.keys[start..start + used]);
            copy.values[start..start + used].copy_from_slice(&self.values[start..start + used]);
        }
        copy
    }
}

impl Decode for Cpu {
    type KvCache = KvCache;

    fn kv_cache(&self, shape: CacheShape) -> Result<KvCache> {
        KvCache::new(shape)
    }

    fn prefill_qkv(
        &self,
        cache: &mut KvCache,
        images: &[usize],
        layer: usize,
        x: &Tensor,
        qkv: &LinearWeights<Cpu>,
    ) -> Result<Tensor> {
        cache.shape.check_prefill(self, images, layer, x, qkv)?;
        let qkv = self.linear(x, qkv, Activation::None, None)?;
        let _span = trace::span("prefill_qkv");
        cache.set_prefix(images, layer, &qkv);
        Ok(qkv)
    }

    fn kv_reorder(&self, cache: &mut KvCache, rows: &[CacheRow]) -> Result<()> {
        let _span = trace::span("kv_reorder");
        cache.set_rows(rows)
    }

    fn kv_append<'c>(&self, cache: &'c mut KvCache) -> Result<&'c [u32]> {
        cache.grow()
    }

    fn attention_decode(&self, qkv: &Tensor, cache: &mut KvCache, layer: usize) -> Result<Tensor> {
        let _span = trace::span("attention_decode");
        cache.attention(qkv, layer)
    }

    fn captured_step(&self, _: &GraphId, cache: &mut KvCache, x: &Tensor, body: StepBody<'_, Cpu>) -> Result<Tensor> {
        self.run(|| body(self, cache, x))
    }
}

/// Keys and values of a decoder in host memory.
pub struct KvCache {
    shape: CacheShape,
    /// Keys and values of each slot's image, once there are some: most captions use few slots.
    prefixes: Vec<Option<KvStorage>>,
    rows: Vec<Row>,
    /// Where each row's newest token stands.
    positions: Vec<u32>,
    /// The scores of one query for every thread.
    scores: Vec<f32>,
}

struct Row {
    image: usize,
    /// Tokens of the sequence.
    tokens: usize,
    units: KvStorage,
}

impl KvCache {
    pub(super) fn new(shape: CacheShape) -> Result<KvCache> {
        shape.check(usize::MAX)?;
        let prefixes = (0..shape.images).map(|_| None).collect();
        let scores = vec![0.0; rayon::current_num_threads() * scores_room(shape)];
        Ok(KvCache { shape, prefixes, rows: Vec::new(), positions: Vec::new(), scores })
    }

    /// Stores the keys and values of the prefixes of the slots `slots`.
    fn set_prefix(&mut self, slots: &[usize], layer: usize, qkv: &Tensor) {
        let CacheShape { layers, heads, head_size: size, prefix, .. } = self.shape;
        let width = heads * size;
        for (index, row) in qkv.data.chunks_exact(3 * width).enumerate() {
            let (image, token) = (slots[index / prefix], index % prefix);
            let storage = self.prefixes[image].get_or_insert_with(|| KvStorage::new(layers * heads, prefix, size));
            for head in 0..heads {
                let key = &row[width + head * size..][..size];
                let value = &row[2 * width + head * size..][..size];
                storage.put(layer * heads + head, token, key, value);
            }
        }
    }

    pub(super) fn set_rows(&mut self, rows: &[CacheRow]) -> Result<()> {
        self.shape.check_rows(rows, self.rows.len())?;
        let mut uses = vec![0usize; self.rows.len()];
        for row in rows {
            if let Some(parent) = row.parent {
                uses[parent] += 1;
            }
        }
        let mut parents: Vec<Option<Row>> = std::mem::take(&mut self.rows).into_iter().map(Some).collect();
        let CacheShape { layers, heads, max_new_tokens, head_size, .. } = self.shape;
        for &CacheRow { image, parent } in rows {
            let continued = parent.and_then(|parent| {
                uses[parent] -= 1;
                // The last child takes the parent's memory, earlier ones copy it.
                if uses[parent] == 0 {
                    parents[parent].take()
                } else {
                    parents[parent].as_ref().map(|row| Row { units: row.units.fork(row.tokens), ..*row })
                }
            });
            let fresh = || Row { image, tokens: 0, units: KvStorage::new(layers * heads, max_new_tokens, head_size) };
            self.rows.push(Row { image, ..continued.unwrap_or_else(fresh) });
        }
        Ok(())
    }

    pub(super) fn grow(&mut self) -> Result<&[u32]> {
        self.rows.iter().try_for_each(|row| self.shape.check_append(row.tokens))?;
        self.positions.clear();
        self.positions.extend(self.rows.iter().map(|row| row.tokens as u32));
        self.rows.iter_mut().for_each(|row| row.tokens += 1);
        Ok(&self.positions)
    }

    pub(super) fn attention(&mut self, qkv: &Tensor, layer: usize) -> Result<Tensor> {
        let CacheShape { heads, head_size: size, prefix, .. } = self.shape;
        self.shape.check_qkv("attention_decode", [qkv.rows, qkv.columns], self.rows.len(), layer)?;
        check_appended(self.rows.iter().all(|row| row.tokens > 0))?;
        let width = heads * size;
        for (row, qkv) in self.rows.iter_mut().zip(qkv.data.chunks_exact(3 * width)) {
            for head in 0..heads {
                let key = &qkv[width + head * size..][..size];
                row.units.put(layer * heads + head, row.tokens - 1, key, &qkv[2 * width + head * size..][..size]);
            }
        }
        let mut out = Buffer::zeros(self.rows.len() * width);
        let room = scores_room(self.shape);
        let share = (self.rows.len() * heads).div_ceil(self.scores.len() / room).max(1);
        let (rows, prefixes) = (&self.rows, &self.prefixes);
        let scores = self.scores.par_chunks_exact_mut(room);
        out.par_chunks_mut(share * size).zip(scores).enumerate().for_each(|(part, (out, scores))| {
            for (task, out) in (part * share..).zip(out.chunks_exact_mut(size)) {
                let (row, head) = (task / heads, task % heads);
                let query = &qkv.data[row * 3 * width + head * size..][..size];
                let block = layer * heads + head;
                let image = prefixes[rows[row].image].as_ref();
                let image = image.map_or((Default::default(), 0), |storage| (storage.block(block), prefix));
                one_query(query, [image, (rows[row].units.block(block), rows[row].tokens)], scores, out);
            }
        });
        Ok(Tensor::new(self.rows.len(), width, out))
    }
}

/// Scores that one query can have, and those that its last tile computes beyond them.
fn scores_room(shape: CacheShape) -> usize {
    shape.prefix + shape.max_new_tokens + TILE
}

/// Keys in tiles and values of one head, and how many tokens of them count.
type Part<'a> = ((&'a [f32], &'a [f32]), usize);

dispatch! {
    /// Attention of one query (D) over two parts, into `out` (D). `scores` is scratch of [`scores_room`].
    fn one_query(query: &[f32], parts: [Part<'_>; 2], scores: &mut [f32], out: &mut [f32]) = one_query_body;
}

#[inline(always)]
fn one_query_body<S: Simd>(query: &[f32], parts: [Part<'_>; 2], scores: &mut [f32], out: &mut [f32]) {
    let size = query.len();
    let mut known = 0;
    for ((keys, _), tokens) in parts {
        let tiles = keys.chunks_exact(TILE * size).take(tokens.div_ceil(TILE));
        for (tile, sums) in tiles.zip(scores[known..].chunks_exact_mut(TILE)) {
            tile_scores::<S>(query, tile, sums);
        }
        known += tokens;
    }
    let scores = &mut scores[..known];
    softmax::<S>(scores, 1.0 / (size as f32).sqrt());
    let (image, units) = scores.split_at(parts[0].1);
    let whole = size / (4 * S::N) * 4 * S::N;
    // Four registers of sums at a time: in memory they would wait for themselves at every token.
    for first in (0..whole).step_by(4 * S::N) {
        let mut acc = [S::splat(0.0); 4];
        for (weights, ((_, values), _)) in [image, units].into_iter().zip(parts) {
            for (&weight, value) in weights.iter().zip(values.chunks_exact(size)) {
                for (i, acc) in acc.iter_mut().enumerate() {
                    prefetch_ahead(&value[first + i * S::N..]);
                    *acc = S::mul_add(S::splat(weight), S::load(&value[first + i * S::N..]), *acc);
                }
            }
        }
        for (i, acc) in acc.into_iter().enumerate() {
            S::store(&mut out[first + i * S::N..], acc);
        }
    }
    for (at, out) in out.iter_mut().enumerate().skip(whole) {
        for (weights, ((_, values), _)) in [image, units].into_iter().zip(parts) {
            for (&weight, value) in weights.iter().zip(values.chunks_exact(size)) {
                *out = S::mul_add1(weight, value[at], *out);
            }
        }
    }
}

/// Scores of one query against 16 keys (D, 16), in four independent sums over D.
#[inline(always)]
fn tile_scores<S: Simd>(query: &[f32], tile: &[f32], sums: &mut [f32]) {
    let (fours, rest) = query.as_chunks::<4>();
    for part in (0..TILE).step_by(S::N) {
        let mut acc = [S::splat(0.0); 4];
        for (n, four) in fours.iter().enumerate() {
            for d in 0..4 {
                let keys = &tile[(4 * n + d) * TILE + part..];
                prefetch_ahead(keys);
                acc[d] = S::mul_add(S::splat(four[d]), S::load(keys), acc[d]);
            }
        }
        for (d, &q) in rest.iter().enumerate() {
            acc[d] = S::mul_add(S::splat(q), S::load(&tile[(4 * fours.len() + d) * TILE + part..]), acc[d]);
        }
        S::store(&mut sums[part..], S::add(S::add(acc[0], acc[1]), S::add(acc[2], acc[3])));
    }
}
