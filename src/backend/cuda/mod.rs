//! The backend on NVIDIA GPUs: hand-written kernels (kernels/*.cu), started by the launchers in this folder through a
//! [`driver::Driver`]. One file per operation, with the names of the kernel files.
//!
//! Types: with bf16 weights, whole sequences (vision, prefill, vocoder) are stored in bf16 and added up in f32, while
//! decode steps stay in f32, because they are bound by the bytes of the weights and a rounded logit changes a caption. In
//! f32 everything is f32. Sequences of channels (C, S) lie in device memory as S rows of C values, so that a convolution
//! is a matrix product over shifted rows, and `transpose` costs nothing.

mod argmax;
mod attention;
mod beam_candidates;
mod cache;
mod cast;
mod conv1d;
mod conv_transpose1d;
mod decode;
pub mod driver;
mod embed;
mod graph;
mod layer_norm;
pub(crate) mod linear;
mod memory;
mod patch_embed;
mod peak;
mod top_k;
mod transpose;

use std::ops::{ControlFlow, Range};
use std::sync::{Arc, Mutex};

use self::driver::{DevicePtr, Driver, Kernel, Launch};
use super::{
    Activation, AttentionShape, Backend, BeamCandidate, CacheRow, CacheShape, ConvEpilogue, DecoderWeights, GraphBody,
    GraphId, LayerNormWeights, Linear, SmBudget, StepBody, TopValue,
};
use crate::tensor::{DType, HostTensor};
use crate::{Error, Result, trace};
pub use cache::KvCache;
pub use conv1d::ConvWeights;
use memory::{Buffer, DevicePool};

/// The typed table of all kernels.
pub mod kernels {
    #[cfg(feature = "emulator")]
    use super::driver::EmulatedKernel;
    use super::driver::{DevicePtr, Kernel, KernelInfo};

    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}

/// A CUDA device, or the emulator.
#[derive(Clone)]
pub struct Cuda {
    driver: Arc<dyn Driver>,
    pool: Arc<DevicePool>,
    graphs: Arc<Mutex<graph::SequenceGraphs>>,
    /// Host memory of the last greedy loop.
    mapped: Arc<Mutex<Option<driver::MappedHostBuffer>>>,
    kv_pool: Arc<cache::KvPool>,
    /// Zeros, which kernels that count their blocks leave as zeros.
    counters: Tensor,
    /// Type of sequences and of weight matrices: f32 or bf16.
    dtype: DType,
}

/// How a tensor's elements follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// Row after row.
    Rows,
    /// Column after column: the rows of the transposed tensor.
    Columns,
}

/// A matrix in device memory. Copies share the memory.
#[derive(Clone)]
pub struct Tensor {
    buffer: Arc<Buffer>,
    rows: usize,
    columns: usize,
    dtype: DType,
    layout: Layout,
}

/// Constant weights (N, K), row-major, in the type of the backend.
pub struct Matrix {
    tensor: Tensor,
    eight_bit: Option<EightBit>,
}

/// The same weights as e4m3 codes (N, K) and scales (N), for the decoder's loop.
struct EightBit {
    codes: Tensor,
    scales: Tensor,
}

impl Tensor {
    fn pointer(&self) -> DevicePtr {
        self.buffer.pointer()
    }

    fn len(&self) -> usize {
        self.rows * self.columns
    }
}

/// Blocks that may be counted at once by one launch.
const COUNTERS: usize = 4096;

/// The tensor's address, or none.
fn pointer_of(x: Option<&Tensor>) -> DevicePtr {
    x.map_or(DevicePtr::NULL, Tensor::pointer)
}

/// A count as kernels take it.
fn int(op: &'static str, n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| Error::shape(op, format!("{n} is more than a kernel can count")))
}

/// An error unless `ok`; the message is only built when it is needed.
fn ensure(ok: bool, op: &'static str, problem: impl FnOnce() -> String) -> Result<()> {
    if ok { Ok(()) } else { Err(Error::shape(op, problem())) }
}

impl Cuda {
    /// A backend that computes in `dtype` (f32 or bf16) on this device.
    pub fn new(driver: Arc<dyn Driver>, dtype: DType) -> Result<Cuda> {
        ensure(matches!(dtype, DType::F32 | DType::BF16), "cuda", || format!("{dtype:?} is not computed in"))?;
        let pool = Arc::new(DevicePool::new(driver.clone()));
        let zeros = [0u32; COUNTERS];
        let buffer = Arc::new(pool.take(size_of_val(&zeros))?);
        // SAFETY: the buffer was taken with as many bytes.
        unsafe { driver.copy_to_device(buffer.pointer(), bytemuck::cast_slice(&zeros))? };
        let counters = Tensor { buffer, rows: 1, columns: COUNTERS, dtype: DType::F32, layout: Layout::Rows };
        Ok(Cuda {
            driver,
            pool,
            graphs: Arc::default(),
            mapped: Arc::default(),
            kv_pool: Arc::default(),
            counters,
            dtype,
        })
    }

    /// The device under it.
    pub fn driver(&self) -> &Arc<dyn Driver> {
        &self.driver
    }

    /// Type of sequences and of weight matrices.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Copies `values` to the device as the sequences of the models are held there: in the type of the backend.
    pub fn sequence(&self, shape: [usize; 2], values: &[f32]) -> Result<Tensor> {
        cast::cast(self, &self.upload(shape, values)?, self.dtype)
    }

    /// `x` in its type with its rows one after the other in memory: itself, unless it was transposed.
    pub fn row_major(&self, x: &Tensor) -> Result<Tensor> {
        self.rows_of(x, x.dtype)
    }

    /// Overwrites `x` with zeros, and so the device's caches with `x`.
    pub fn flush_l2(&self, x: &Tensor) -> Result<()> {
        // SAFETY: the tensor holds as many bytes.
        unsafe { self.driver.memset(x.pointer(), 0, x.len() * x.dtype.size()) }
    }

    /// From now on every new tensor begins as NaN, in memory of just its size: for tests.
    pub fn poison(&self, on: bool) {
        self.pool.poison(on);
    }

    /// A tensor that a kernel is about to fill.
    fn empty(&self, [rows, columns]: [usize; 2], dtype: DType, layout: Layout) -> Result<Tensor> {
        let bytes = rows.checked_mul(columns).and_then(|n| n.checked_mul(dtype.size()));
        let bytes = bytes.ok_or_else(|| Error::shape("allocation", format!("({rows}, {columns}) is too large")))?;
        let buffer = match self.pool.take(bytes) {
            // What waits for the next cache may be in the way.
            Err(_) if self.kv_pool.clear() => self.pool.take(bytes),
            taken => taken,
        };
        Ok(Tensor { buffer: Arc::new(buffer?), rows, columns, dtype, layout })
    }

    /// A row-major tensor of `T`s from the host.
    fn put<T: bytemuck::NoUninit>(&self, shape: [usize; 2], dtype: DType, values: &[T]) -> Result<Tensor> {
        let tensor = self.empty(shape, dtype, Layout::Rows)?;
        ensure(size_of_val(values) == tensor.len() * dtype.size(), "upload", || {
            format!("{} values for a shape of {shape:?}", values.len())
        })?;
        // SAFETY: the tensor was just allocated with as many bytes.
        unsafe { self.driver.copy_to_device(tensor.pointer(), bytemuck::cast_slice(values))? };
        Ok(tensor)
    }

    /// A buffer of whole numbers: ids, positions.
    fn put_ids(&self, ids: &[u32]) -> Result<Tensor> {
        self.put([1, ids.len()], DType::F32, ids)
    }

    /// The first `len` words of a tensor.
    fn get_words(&self, x: &Tensor, len: usize) -> Result<Vec<u32>> {
        let mut words = vec![0; len.min(x.len())];
        // SAFETY: the tensor holds as many words.
        unsafe { self.driver.copy_to_host(x.pointer(), bytemuck::cast_slice_mut(&mut words))? };
        Ok(words)
    }

    /// Starts a kernel; a grid without blocks is nothing to do.
    ///
    /// # Safety
    /// The kernel stays inside of live memory with these params.
    unsafe fn launch<P: bytemuck::NoUninit>(
        &self,
        kernel: &'static Kernel<P>,
        launch: Launch,
        params: P,
    ) -> Result<()> {
        if launch.grid.contains(&0) {
            return Ok(());
        }
        let _span = trace::span(kernel.info.name);
        // SAFETY: the caller's promise.
        unsafe { self.driver.launch(&kernel.info, launch, bytemuck::bytes_of(&params))? };
        // A span is to last as long as its kernel.
        if trace::on() { self.driver.synchronize() } else { Ok(()) }
    }

    /// `x` row after row, in `dtype`.
    fn rows_of(&self, x: &Tensor, dtype: DType) -> Result<Tensor> {
        let x = if x.layout == Layout::Rows { x.clone() } else { transpose::physical(self, x)? };
        cast::cast(self, &x, dtype)
    }

    /// `x` column after column, in `dtype`.
    fn columns_of(&self, x: &Tensor, dtype: DType) -> Result<Tensor> {
        let x = if x.layout == Layout::Columns { x.clone() } else { transpose::physical(self, x)? };
        cast::cast(self, &x, dtype)
    }
}

impl Backend for Cuda {
    type Tensor = Tensor;
    type Matrix = Matrix;
    type ConvWeights = ConvWeights;
    type KvCache = KvCache;
    type Event = driver::Event;

    fn new_stream(&self) -> Result<Cuda> {
        Cuda::new(self.driver.new_stream()?, self.dtype)
    }

    fn name(&self) -> String {
        self.driver.properties().name.clone()
    }

    fn memory_stats(&self) -> Option<(u64, usize)> {
        Some(self.pool.statistics())
    }

    fn record_event(&self) -> Result<driver::Event> {
        self.driver.record_event()
    }

    fn elapsed(&self, from: &driver::Event, to: &driver::Event) -> Result<f64> {
        self.driver.elapsed(from, to).map(f64::from)
    }

    fn upload(&self, shape: [usize; 2], values: &[f32]) -> Result<Tensor> {
        self.put(shape, DType::F32, values)
    }

    fn download(&self, x: &Tensor) -> Result<Vec<f32>> {
        let x = self.rows_of(x, DType::F32)?;
        let mut values = vec![0.0; x.len()];
        // SAFETY: the tensor holds as many values.
        unsafe { self.driver.copy_to_host(x.pointer(), bytemuck::cast_slice_mut(&mut values))? };
        Ok(values)
    }

    fn shape(&self, x: &Tensor) -> [usize; 2] {
        [x.rows, x.columns]
    }

    fn matrix(&self, weight: HostTensor) -> Result<Matrix> {
        let &[rows, columns] = weight.shape() else {
            return Err(Error::shape("matrix", format!("weights of shape {:?}, expected (N, K)", weight.shape())));
        };
        let weight = weight.to_dtype(self.dtype);
        let eight_bit = weight.quantized().map(|eight| {
            let codes = self.put([rows, columns], DType::F8E4M3, eight.codes.bytes())?;
            Ok::<_, Error>(EightBit { codes, scales: self.put([1, rows], DType::F32, &eight.scales.to_f32())? })
        });
        Ok(Matrix { tensor: self.put([rows, columns], self.dtype, weight.bytes())?, eight_bit: eight_bit.transpose()? })
    }

    fn conv_weights(&self, weight: &HostTensor, bias: &HostTensor) -> Result<ConvWeights> {
        conv1d::pack(self, weight, bias)
    }

    fn conv_transpose_weights(&self, weight: &HostTensor, bias: &HostTensor, stride: usize) -> Result<ConvWeights> {
        conv_transpose1d::pack(self, weight, bias, stride)
    }

    fn captured(&self, graph: &GraphId, input: &Tensor, body: GraphBody<'_, Cuda>) -> Result<Tensor> {
        // In a recorded graph kernels have no times of their own.
        if trace::on() { body(self, input) } else { graph::run(self, graph, input, body) }
    }

    fn captured_step(
        &self,
        graph: &GraphId,
        cache: &mut KvCache,
        x: &Tensor,
        body: StepBody<'_, Cuda>,
    ) -> Result<Tensor> {
        if trace::on() { body(self, cache, x) } else { cache.step(self, graph, x, body) }
    }

    fn linear(
        &self,
        x: &Tensor,
        layer: &Linear<Cuda>,
        activation: Activation,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        linear::linear(self, x, layer, activation, residual)
    }

    fn linear_decode(
        &self,
        x: &Tensor,
        layer: &Linear<Cuda>,
        activation: Activation,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        linear::linear_decode(self, x, layer, activation, residual)
    }

    fn layer_norm(&self, x: &Tensor, norm: &LayerNormWeights<Cuda>) -> Result<Tensor> {
        layer_norm::layer_norm(self, x, norm)
    }

    fn attention(&self, qkv: &Tensor, shape: AttentionShape) -> Result<Tensor> {
        attention::attention(self, qkv, shape)
    }

    fn kv_cache(&self, shape: CacheShape) -> Result<KvCache> {
        KvCache::new(self, shape)
    }

    fn prefill_qkv(
        &self,
        cache: &mut KvCache,
        pictures: &[usize],
        layer: usize,
        x: &Tensor,
        qkv: &Linear<Cuda>,
    ) -> Result<Tensor> {
        cache.set_prefix(self, pictures, layer, x, qkv)
    }

    fn kv_reorder(&self, cache: &mut KvCache, rows: &[CacheRow]) -> Result<()> {
        cache.set_rows(self, rows)
    }

    fn kv_append<'c>(&self, cache: &'c mut KvCache) -> Result<&'c [u32]> {
        cache.grow(self)
    }

    fn attention_decode(&self, qkv: &Tensor, cache: &mut KvCache, layer: usize) -> Result<Tensor> {
        cache.attention(self, qkv, layer)
    }

    fn can_decode_greedy(&self, decoder: &DecoderWeights<'_, Cuda>, shape: CacheShape, limit: usize) -> bool {
        decode::GreedyLaunch::new(self, decoder, shape, limit, SmBudget::All).is_some()
    }

    fn decode_greedy(
        &self,
        decoder: &DecoderWeights<'_, Cuda>,
        cache: &KvCache,
        limit: usize,
        budget: SmBudget,
        on_token: &mut dyn FnMut(usize, &[u32]) -> ControlFlow<()>,
    ) -> Option<Result<Vec<Vec<u32>>>> {
        decode::GreedyLaunch::new(self, decoder, cache.shape(), limit, budget).map(|launch| launch.run(cache, on_token))
    }

    fn embed(&self, table: &Matrix, position: &Matrix, ids: &[u32], positions: &[u32]) -> Result<Tensor> {
        embed::embed(self, table, position, ids, positions)
    }

    fn patch_embed(
        &self,
        pixels: &Tensor,
        weight: &Matrix,
        class: &Tensor,
        position: &Matrix,
        patch: usize,
    ) -> Result<Tensor> {
        patch_embed::patch_embed(self, pixels, weight, class, position, patch)
    }

    fn embed_frames(&self, tables: &[(&Matrix, &[u32])]) -> Result<Tensor> {
        embed::embed_frames(self, tables)
    }

    fn conv1d(
        &self,
        x: &Tensor,
        kernel: &ConvWeights,
        dilation: usize,
        columns: Range<usize>,
        epilogue: ConvEpilogue<'_, Cuda>,
    ) -> Result<Tensor> {
        conv1d::conv1d(self, x, kernel, dilation, columns, epilogue)
    }

    fn conv_transpose1d(&self, x: &Tensor, kernel: &ConvWeights, slope: f32) -> Result<Tensor> {
        conv_transpose1d::conv_transpose1d(self, x, kernel, slope)
    }

    fn transpose(&self, x: &Tensor) -> Result<Tensor> {
        Ok(transpose::transpose(x))
    }

    fn argmax(&self, x: &Tensor, columns: &mut Vec<u32>) -> Result<()> {
        *columns = argmax::argmax(self, x)?;
        Ok(())
    }

    fn top_k(&self, x: &Tensor, count: usize) -> Result<Vec<Vec<TopValue>>> {
        top_k::top_k(self, x, count)
    }

    fn beam_candidates(
        &self,
        logits: &Tensor,
        scores: &[f32],
        pictures: &[usize],
        count: usize,
    ) -> Result<Vec<Vec<BeamCandidate>>> {
        beam_candidates::beam_candidates(self, logits, scores, pictures, count)
    }
}
