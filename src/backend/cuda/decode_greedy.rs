//! Launches kernels/decode_greedy/forward.cu: the whole greedy loop in one cooperative launch, its tokens read as they are chosen.

use std::ops::ControlFlow;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::driver::{DevicePtr, Launch, MappedHostBuffer, Properties, Stream};
use super::kernels::{self, DecodeGreedyLayerParams, DecodeGreedyParams};
use super::tiles::Tile;
use super::{Cuda, KvCache, Layout, LinearWeights, Matrix, Tensor, int};
use crate::backend::{CacheShape, DecoderWeights, SmBudget};
use crate::tensor::DType;
use crate::{Error, Result};

const OP: &str = "decode_greedy";
/// Head size of the kernel.
const HEAD_SIZE: usize = 64;
/// Tokens of a split of the attention.
const SPLIT: usize = 64;
/// Floats of a split's result: output, sum, maximum.
const PARTIAL: usize = HEAD_SIZE + 2;
/// Most and fewest buffers of weights in shared memory.
const SLOTS: std::ops::RangeInclusive<usize> = 2..=4;
/// Bytes at multiples of which slots of weights begin.
const SLOT_ALIGNMENT: usize = 128;
/// Words of `control`.
const CONTROL: usize = 96;
/// Words of the host's memory before the tokens.
const HOST_TOKENS: usize = 32;
const HOST_CANCEL: usize = 0;
const HOST_STATUS: usize = 1;
const HOST_LENGTHS: usize = 16;
/// Multiprocessors for each one that is left to other work, where the device is shared. A block of the loop leaves no
/// room for another's on its multiprocessor; and the loop streams weights, so it waits for memory and barriers more than for
/// multiprocessors. Not yet measured.
const RESERVED_SM_SHARE: usize = 8;
/// Seconds at one barrier after which the kernel gives up.
const BARRIER_TIMEOUT_S: i32 = 5;

/// The sizes of a loop.
#[derive(Clone, Copy)]
struct Sizes {
    rows: usize,
    channels: usize,
    hidden: usize,
    heads: usize,
    vocabulary: usize,
    prefix: usize,
    limit: usize,
}

/// A loop that the device can run.
pub(super) struct GreedyLaunch<'a> {
    cuda: &'a Cuda,
    decoder: &'a DecoderWeights<'a, Cuda>,
    sizes: Sizes,
    eight_bit: bool,
    plan: Plan,
}

/// The kernel of a loop, its blocks and their shared memory.
struct Plan {
    tile: &'static Tile<DecodeGreedyParams>,
    grid: usize,
    /// Buffers of weights of `slot_bytes` each.
    slots: usize,
    slot_bytes: usize,
    shared_bytes: usize,
}

impl Plan {
    /// The smallest batch that takes all rows, on as many blocks as the budget allows or, where their shares of the weights
    /// do not fit, on all. `None` where the device has too little shared memory for either: with 8 rows in f32, git-large
    /// takes 275 KB of the 227 KB that a block of an H200 can have.
    fn new(sizes: &Sizes, [layers, output]: [DType; 2], budget: SmBudget, device: &Properties) -> Option<Plan> {
        let tiles = kernels::DECODE_GREEDY_FORWARD_TILES.iter();
        let usable = tiles.filter(|tile| tile.dtype == layers && tile.rows >= sizes.rows);
        let tile = usable.min_by_key(|tile| tile.rows)?;
        // The second plane holds the result of attention, then the feed-forward part's hidden channels.
        let planes = sizes.channels + sizes.hidden.max(sizes.channels);
        let state = tile.shared_bytes.next_multiple_of(SLOT_ALIGNMENT);
        let fixed = state + tile.rows * planes * size_of::<f32>();
        // The fewer blocks, the larger their shares.
        let grids = [blocks(budget, device.multiprocessors), device.multiprocessors];
        grids.into_iter().find_map(|grid| {
            let slot_bytes = sizes.slot_bytes(grid, layers.size(), output.size());
            let shared_bytes = |slots: usize| fixed + slots * slot_bytes;
            let slots = SLOTS.rev().find(|&slots| shared_bytes(slots) <= device.shared_per_block)?;
            Some(Plan { tile, grid, slots, slot_bytes, shared_bytes: shared_bytes(slots) })
        })
    }
}

/// A loop that has been started. It ends before the lock of its device is released, by an error or a panic too.
struct Running<'a> {
    stream: &'a dyn Stream,
    host: &'a MappedHostBuffer,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.host.words()[HOST_CANCEL].store(1, Ordering::Relaxed);
        // An error was reported by the call that led here.
        let _ = self.stream.synchronize();
    }
}

impl<'a> GreedyLaunch<'a> {
    /// `None` where the kernel does not fit the model, the batch or the device.
    pub(super) fn new(
        cuda: &'a Cuda,
        decoder: &'a DecoderWeights<'a, Cuda>,
        shape: CacheShape,
        limit: usize,
        budget: SmBudget,
    ) -> Option<GreedyLaunch<'a>> {
        let first = decoder.layers.first()?;
        let sizes = Sizes {
            rows: shape.images,
            channels: decoder.output.weight.tensor.columns,
            hidden: first.fc1.weight.tensor.rows,
            heads: shape.heads,
            vocabulary: decoder.output.weight.tensor.rows,
            prefix: shape.prefix,
            limit,
        };
        let device = cuda.stream.properties();
        let eps = decoder.embedding_norm.eps;
        let alike = decoder.layers.iter().all(|l| l.attention_norm.eps == eps && l.mlp_norm.eps == eps);
        let fits = device.cooperative
            && alike
            && sizes.rows > 0
            && shape.head_size == HEAD_SIZE
            && sizes.channels == sizes.heads * HEAD_SIZE
            && sizes.hidden.is_multiple_of(16)
            && limit <= decoder.position.tensor.rows
            && decoder.layers.len() == shape.layers;
        if !fits {
            return None;
        }
        let matrices = decoder.layers.iter().flat_map(|l| [&l.qkv, &l.attention_out, &l.fc1, &l.fc2]);
        let eight_bit = matrices.into_iter().all(|linear| linear.weight.eight_bit.is_some());
        let dtype = if eight_bit { DType::F8E4M3 } else { cuda.dtype };
        let plan = Plan::new(&sizes, [dtype, cuda.dtype], budget, device)?;
        Some(GreedyLaunch { cuda, decoder, sizes, eight_bit, plan })
    }

    /// Runs the loop over a cache of the shape given to `new`. Tokens of each row, BOS first.
    pub(super) fn run(
        &self,
        cache: &KvCache,
        on_token: &mut dyn FnMut(usize, &[u32]) -> ControlFlow<()>,
    ) -> Result<Vec<Vec<u32>>> {
        let Sizes { rows, limit, .. } = self.sizes;
        if limit < 2 {
            return Ok(vec![vec![self.decoder.bos]; rows]);
        }
        let host = self.mapped_host(HOST_TOKENS + rows * limit)?;
        // Blocks of two cooperative kernels could wait for each other's multiprocessors.
        let driver = self.cuda.stream.driver();
        let alone = driver.lock_cooperative();
        // Held until the kernel has ended.
        let _memory = self.start(&host, cache)?;
        let running = Running { stream: &*self.cuda.stream, host: &host };
        let mut tokens = vec![vec![self.decoder.bos]; rows];
        let mut waiting = true;
        while waiting {
            // Asked before looking: what was written before the end is seen after it.
            waiting = !self.cuda.stream.is_idle()?;
            if self.drain(&host, &mut tokens, on_token).is_break() {
                host.words()[HOST_CANCEL].store(1, Ordering::Relaxed);
            }
            if waiting {
                std::thread::sleep(Duration::from_micros(20));
            }
        }
        self.cuda.stream.synchronize()?;
        drop(running);
        drop(alone);
        let status = host.words()[HOST_STATUS].load(Ordering::Acquire);
        *self.cuda.mapped.lock().unwrap_or_else(PoisonError::into_inner) = Some(host);
        match status {
            1 | 2 => Ok(tokens),
            4 => Err(Error::NotANumber { stage: "decoder" }),
            _ => Err(Error::Device {
                device: self.cuda.stream.properties().name.clone(),
                problem: format!(
                    "decoder grid barrier timed out after {BARRIER_TIMEOUT_S} s: is another process using the GPU?"
                ),
            }),
        }
    }

    /// At least `words` words that the device sees, those of the last loop if there are enough: pinning memory takes longer
    /// than a token. The control words are zeros.
    fn mapped_host(&self, words: usize) -> Result<MappedHostBuffer> {
        let kept = self.cuda.mapped.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(kept) = kept.filter(|kept| kept.words().len() >= words) else {
            return self.cuda.stream.mapped_host(words.next_power_of_two());
        };
        kept.words()[..HOST_TOKENS].iter().for_each(|word| word.store(0, Ordering::Relaxed));
        Ok(kept)
    }

    /// Takes over the tokens that have been written since.
    fn drain(
        &self,
        host: &MappedHostBuffer,
        tokens: &mut [Vec<u32>],
        on_token: &mut dyn FnMut(usize, &[u32]) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let words = host.words();
        for (row, tokens) in tokens.iter_mut().enumerate() {
            let length = (words[HOST_LENGTHS + row].load(Ordering::Acquire) as usize).min(self.sizes.limit);
            let written = &words[HOST_TOKENS + row * self.sizes.limit..][..self.sizes.limit];
            let before = tokens.len();
            tokens.extend(written.iter().take(length).skip(before).map(|word| word.load(Ordering::Relaxed)));
            if tokens.len() > before {
                on_token(row, tokens)?;
            }
        }
        ControlFlow::Continue(())
    }

    /// Starts the kernel; the tensors returned are what it works in.
    fn start(&self, host: &MappedHostBuffer, cache: &KvCache) -> Result<Vec<Tensor>> {
        let (cuda, s) = (self.cuda, self.sizes);
        let most_splits = s.prefix.div_ceil(SPLIT) + (s.limit - 1) / SPLIT + 1;
        let width = 3 * s.channels + 2 * s.channels + s.hidden + s.vocabulary + s.heads * most_splits * PARTIAL;
        let scratch = cuda.empty([s.rows, width], DType::F32, Layout::Rows)?;
        let sequence = || cuda.empty([s.rows * s.heads * s.limit, HEAD_SIZE], cuda.dtype, Layout::Rows);
        let generated = (0..2 * self.decoder.layers.len()).map(|_| sequence()).collect::<Result<Vec<_>>>()?;
        let layers: Vec<DecodeGreedyLayerParams> = (0..self.decoder.layers.len())
            .map(|n| self.layer(n, cache.prefix(n), &generated[2 * n], &generated[2 * n + 1]))
            .collect::<Result<_>>()?;
        let words = layers.len() * size_of::<DecodeGreedyLayerParams>() / size_of::<u32>();
        let layers = cuda.put([1, words], DType::F32, &layers)?;
        let control = cuda.put_ids(&[0; CONTROL])?;
        let images = cuda.put_ids(&(0..s.rows as u32).collect::<Vec<_>>())?;
        let (decoder, eps) = (self.decoder, self.decoder.embedding_norm.eps);
        let params = DecodeGreedyParams {
            layers: layers.pointer(),
            word: decoder.output.weight.tensor.pointer(),
            position: decoder.position.tensor.pointer(),
            embedding_norm_weight: decoder.embedding_norm.weight.pointer(),
            embedding_norm_bias: decoder.embedding_norm.bias.pointer(),
            output_bias: decoder.output.bias.pointer(),
            images: images.pointer(),
            scratch: scratch.pointer(),
            control: control.pointer(),
            host: host.device,
            layer_count: int(OP, decoder.layers.len())?,
            rows: int(OP, s.rows)?,
            channels: int(OP, s.channels)?,
            hidden: int(OP, s.hidden)?,
            heads: int(OP, s.heads)?,
            vocabulary: int(OP, s.vocabulary)?,
            prefix: int(OP, s.prefix)?,
            limit: int(OP, s.limit)?,
            chunk: int(OP, chunk(s.prefix))?,
            slots: int(OP, self.plan.slots)?,
            slot_bytes: int(OP, self.plan.slot_bytes)?,
            bos: decoder.bos as i32,
            eos: decoder.eos as i32,
            eps,
            scale: std::f32::consts::LOG2_E / (HEAD_SIZE as f32).sqrt(),
            seconds: BARRIER_TIMEOUT_S,
        };
        let launch =
            Launch { cooperative: true, ..Launch::blocks(self.plan.grid).shared_bytes(self.plan.shared_bytes) };
        // SAFETY: `new` checked that the sizes are those of the weights and of the cache; every block takes the rows that
        // `share` gives it, at most `slot_bytes` of them; positions stay below `limit`, ids below the vocabulary.
        unsafe { cuda.launch(self.plan.tile.kernel, launch, params)? };
        Ok([vec![scratch, layers, control, images], generated].concat())
    }

    /// A matrix and the scales of its rows, in the type that the kernel reads.
    fn weights(&self, matrix: &Matrix) -> (DevicePtr, DevicePtr) {
        match &matrix.eight_bit {
            Some(eight) if self.eight_bit => (eight.codes.pointer(), eight.scales.pointer()),
            _ => (matrix.tensor.pointer(), DevicePtr::NULL),
        }
    }

    fn layer(
        &self,
        n: usize,
        (prefix_keys, prefix_values): (DevicePtr, DevicePtr),
        keys: &Tensor,
        values: &Tensor,
    ) -> Result<DecodeGreedyLayerParams> {
        let layer = &self.decoder.layers[n];
        let (c, f) = (self.sizes.channels, self.sizes.hidden);
        let shapes = [(&layer.qkv, 3 * c, c), (&layer.attention_out, c, c), (&layer.fc1, f, c), (&layer.fc2, c, f)];
        for (linear, rows, columns) in shapes {
            check(linear, rows, columns)?;
        }
        let (qkv, qkv_scale) = self.weights(&layer.qkv.weight);
        let (attention_out, attention_out_scale) = self.weights(&layer.attention_out.weight);
        let (fc1, fc1_scale) = self.weights(&layer.fc1.weight);
        let (fc2, fc2_scale) = self.weights(&layer.fc2.weight);
        Ok(DecodeGreedyLayerParams {
            qkv,
            attention_out,
            fc1,
            fc2,
            qkv_scale,
            attention_out_scale,
            fc1_scale,
            fc2_scale,
            qkv_bias: layer.qkv.bias.pointer(),
            attention_out_bias: layer.attention_out.bias.pointer(),
            fc1_bias: layer.fc1.bias.pointer(),
            fc2_bias: layer.fc2.bias.pointer(),
            attention_norm_weight: layer.attention_norm.weight.pointer(),
            attention_norm_bias: layer.attention_norm.bias.pointer(),
            mlp_norm_weight: layer.mlp_norm.weight.pointer(),
            mlp_norm_bias: layer.mlp_norm.bias.pointer(),
            prefix_keys,
            prefix_values,
            generated_keys: keys.pointer(),
            generated_values: values.pointer(),
        })
    }
}

impl Sizes {
    /// Bytes of the largest share of a matrix that a block gets.
    fn slot_bytes(&self, grid: usize, layers: usize, output: usize) -> usize {
        let (c, f) = (self.channels, self.hidden);
        let shares = [(3 * c, c, layers), (c, c, layers), (f, c, layers), (c, f, layers), (self.vocabulary, c, output)];
        let bytes = shares.map(|(rows, columns, element)| rows.div_ceil(grid) * columns * element);
        bytes.into_iter().max().unwrap_or(0).next_multiple_of(SLOT_ALIGNMENT)
    }
}

/// Blocks of a loop, one on each multiprocessor that it takes. A device of two leaves none: one is half of it.
fn blocks(budget: SmBudget, multiprocessors: usize) -> usize {
    match budget {
        SmBudget::LeaveRoom if multiprocessors > 2 => multiprocessors - (multiprocessors / RESERVED_SM_SHARE).max(1),
        _ => multiprocessors,
    }
}

/// Image tokens of a split: as even as splits of at most `SPLIT` can be.
fn chunk(prefix: usize) -> usize {
    prefix.div_ceil(prefix.div_ceil(SPLIT).max(1)).max(1)
}

fn check(linear: &LinearWeights<Cuda>, rows: usize, columns: usize) -> Result<()> {
    let weight = &linear.weight.tensor;
    super::ensure((weight.rows, weight.columns, linear.bias.len()) == (rows, columns, rows), OP, || {
        format!(
            "weights ({}, {}) with {} biases, expected ({rows}, {columns})",
            weight.rows,
            weight.columns,
            linear.bias.len()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::tiles;
    use super::*;

    /// The plan for so many rows of git-large, with layers and output of these types.
    fn plan(rows: usize, types: [DType; 2], shared_per_block: usize) -> Option<Plan> {
        let sizes = Sizes { rows, channels: 768, hidden: 3072, heads: 12, vocabulary: 203, prefix: 257, limit: 101 };
        let device = tiles::device(132, shared_per_block, (9, 0));
        let plan = Plan::new(&sizes, types, SmBudget::All, &device)?;
        assert!(plan.shared_bytes <= shared_per_block && plan.tile.rows >= rows, "{rows} rows in {types:?}");
        assert!(plan.grid * plan.slot_bytes >= 3072 * 768 * types[0].size(), "{rows} rows in {types:?}");
        Some(plan)
    }

    /// Bytes of shared memory of a block of an H100 or H200, and of an A100.
    const HOPPER: usize = 227 << 10;
    const AMPERE: usize = 163 << 10;

    #[test]
    fn what_does_not_fit_the_shared_memory_has_no_plan() {
        let (f32s, bf16s, fp8s) = ([DType::F32; 2], [DType::BF16; 2], [DType::F8E4M3, DType::BF16]);
        for rows in 1..=8 {
            assert_eq!(plan(rows, f32s, HOPPER).is_some(), rows == 1, "{rows} rows in f32");
            for types in [bf16s, fp8s] {
                assert!(plan(rows, types, HOPPER).is_some(), "{rows} rows in {types:?}");
            }
            assert_eq!(plan(rows, bf16s, AMPERE).is_some(), rows <= 4, "{rows} rows in bf16");
        }
        assert!(plan(9, bf16s, HOPPER).is_none());
        assert!(plan(1, bf16s, 32 << 10).is_none());
    }
}
