//! The backend on NVIDIA GPUs: hand-written kernels (kernels/*.cu), started by the launchers in this folder through a
//! [`driver::Driver`]. One file per operation, with the names of the kernel files.
//!
//! Types: with bf16 weights, whole sequences (vision, prefill, vocoder) are stored in bf16 and added up in f32, while
//! decode steps stay in f32, because they are bound by the bytes of the weights and a rounded logit changes a caption. In
//! f32 everything is f32. Sequences of channels (C, S) lie in device memory as S rows of C values, so that a convolution
//! is a matrix product over shifted rows, and `transpose` costs nothing.

mod adamw;
mod argmax;
mod attention;
mod attention_decode;
mod beam_candidates;
mod cast;
mod concat;
mod conv1d;
mod conv2d;
mod conv_transpose1d;
mod cross_entropy;
mod decode_greedy;
mod depthwise_conv2d;
pub mod driver;
mod dropout;
mod embed;
mod frame_conv;
mod gelu;
mod gradient_norm;
mod graph;
mod instance_norm;
mod kv_cache;
mod layer_norm;
pub(crate) mod linear;
mod memory;
mod parameters;
mod patch_embed;
mod peak;
pub mod tiles;
mod top_k;
mod transpose;

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use self::driver::{DevicePtr, Driver, Kernel, Launch, Stream};
use super::device::check_matrix;
use super::{
    CacheRow, CacheShape, ConvShape, Decode, DecoderWeights, Device, GraphBody, GraphId, LinearWeights, Sequences,
    SmBudget, StepBody, ensure,
};
use crate::tensor::{DType, HostTensor};
use crate::{Error, Result, trace};
pub use conv1d::ConvWeights;
pub use kv_cache::KvCache;
use memory::{Buffer, DevicePool};
pub use parameters::Block;

/// The typed table of all kernels.
pub mod kernels {
    #[cfg(feature = "emulator")]
    use super::driver::EmulatedKernel;
    use super::driver::{DevicePtr, Kernel, KernelInfo, TensorMap};
    use super::tiles::Tile;
    use crate::tensor::DType;

    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}

/// A CUDA device, or the emulator.
#[derive(Clone)]
pub struct Cuda {
    stream: Arc<dyn Stream>,
    pool: Arc<DevicePool>,
    graphs: Arc<Mutex<graph::SequenceGraphs>>,
    /// Host memory of the last greedy loop.
    mapped: Arc<Mutex<Option<driver::MappedHostBuffer>>>,
    kv_pool: Arc<kv_cache::KvPool>,
    /// Arrival counters: zero before and after every launch.
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
    /// Bytes of the buffer before its first element; a multiple of 256.
    offset: usize,
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
        self.buffer.pointer().offset(self.offset)
    }

    /// `rows * columns` elements of a row-major tensor from element `start` on, which begins at a multiple of 256 bytes.
    fn part(&self, start: usize, [rows, columns]: [usize; 2]) -> Tensor {
        Tensor { offset: self.offset + start * self.dtype.size(), rows, columns, ..self.clone() }
    }

    fn len(&self) -> usize {
        self.rows * self.columns
    }
}

/// Arrival counters available to one launch.
const COUNTERS: usize = 4096;

/// The tensor's address, or none.
fn pointer_of(x: Option<&Tensor>) -> DevicePtr {
    x.map_or(DevicePtr::NULL, Tensor::pointer)
}

/// A count as kernels take it.
fn int(op: &'static str, n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| Error::shape(op, format!("{n} is more than a kernel can count")))
}

impl Cuda {
    /// A backend that computes in `dtype` (f32 or bf16) on a new stream of this device.
    pub fn new(driver: Arc<dyn Driver>, dtype: DType) -> Result<Cuda> {
        ensure(matches!(dtype, DType::F32 | DType::BF16), "cuda", || format!("{dtype:?} is not computed in"))?;
        let stream = driver.new_stream()?;
        let pool = Arc::new(DevicePool::new(stream.clone()));
        let zeros = [0u32; COUNTERS];
        let buffer = Arc::new(pool.take(size_of_val(&zeros))?);
        // SAFETY: the buffer was taken with as many bytes.
        unsafe { stream.copy_to_device(buffer.pointer(), bytemuck::cast_slice(&zeros))? };
        let counters =
            Tensor { buffer, offset: 0, rows: 1, columns: COUNTERS, dtype: DType::F32, layout: Layout::Rows };
        Ok(Cuda {
            stream,
            pool,
            graphs: Arc::default(),
            mapped: Arc::default(),
            kv_pool: Arc::default(),
            counters,
            dtype,
        })
    }

    /// The stream under it.
    pub fn stream(&self) -> &Arc<dyn Stream> {
        &self.stream
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
        unsafe { self.stream.memset(x.pointer(), 0, x.len() * x.dtype.size()) }
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
        Ok(Tensor { buffer: Arc::new(buffer?), offset: 0, rows, columns, dtype, layout })
    }

    /// A tensor whose rows a kernel is about to fill as far as they belong to sequences; the others are zeros.
    fn empty_for(&self, sequences: &Sequences, shape: [usize; 2], dtype: DType) -> Result<Tensor> {
        let tensor = self.empty(shape, dtype, Layout::Rows)?;
        if !sequences.cover_all() {
            self.flush_l2(&tensor)?;
        }
        Ok(tensor)
    }

    /// A row-major tensor of `T`s from the host.
    fn put<T: bytemuck::NoUninit>(&self, shape: [usize; 2], dtype: DType, values: &[T]) -> Result<Tensor> {
        let tensor = self.empty(shape, dtype, Layout::Rows)?;
        ensure(size_of_val(values) == tensor.len() * dtype.size(), "upload", || {
            format!("{} values for a shape of {shape:?}", values.len())
        })?;
        // SAFETY: the tensor was just allocated with as many bytes.
        unsafe { self.stream.copy_to_device(tensor.pointer(), bytemuck::cast_slice(values))? };
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
        unsafe { self.stream.copy_to_host(x.pointer(), bytemuck::cast_slice_mut(&mut words))? };
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
        unsafe { self.stream.launch(&kernel.info, launch, bytemuck::bytes_of(&params))? };
        // A span is to last as long as its kernel.
        if trace::on() { self.stream.synchronize() } else { Ok(()) }
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

impl Device for Cuda {
    type Tensor = Tensor;
    type Matrix = Matrix;
    type ConvWeights = ConvWeights;
    type Event = driver::Event;

    fn new_stream(&self) -> Result<Cuda> {
        Cuda::new(self.stream.driver(), self.dtype)
    }

    fn name(&self) -> String {
        self.stream.properties().name.clone()
    }

    fn memory_stats(&self) -> Option<(u64, usize)> {
        Some(self.pool.statistics())
    }

    fn record_event(&self) -> Result<driver::Event> {
        self.stream.record_event()
    }

    fn elapsed(&self, from: &driver::Event, to: &driver::Event) -> Result<f64> {
        self.stream.elapsed(from, to).map(f64::from)
    }

    fn wait(&self, event: &driver::Event) -> Result<()> {
        self.stream.wait_event(event)
    }

    fn upload(&self, shape: [usize; 2], values: &[f32]) -> Result<Tensor> {
        self.put(shape, DType::F32, values)
    }

    fn zeros(&self, shape: [usize; 2]) -> Result<Tensor> {
        let tensor = self.empty(shape, self.dtype, Layout::Rows)?;
        self.flush_l2(&tensor)?;
        Ok(tensor)
    }

    fn download(&self, x: &Tensor) -> Result<Vec<f32>> {
        let x = self.rows_of(x, DType::F32)?;
        let mut values = vec![0.0; x.len()];
        // SAFETY: the tensor holds as many values.
        unsafe { self.stream.copy_to_host(x.pointer(), bytemuck::cast_slice_mut(&mut values))? };
        Ok(values)
    }

    fn shape(&self, x: &Tensor) -> [usize; 2] {
        [x.rows, x.columns]
    }

    fn matrix(&self, weight: HostTensor) -> Result<Matrix> {
        let [rows, columns] = check_matrix(&weight)?;
        let weight = weight.to_dtype(self.dtype);
        let eight_bit = weight.quantized().map(|eight| {
            let codes = self.put([rows, columns], DType::F8E4M3, eight.codes.bytes())?;
            Ok::<_, Error>(EightBit { codes, scales: self.put([1, rows], DType::F32, &eight.scales.to_f32())? })
        });
        Ok(Matrix { tensor: self.put([rows, columns], self.dtype, weight.bytes())?, eight_bit: eight_bit.transpose()? })
    }

    fn matrix_shape(&self, matrix: &Matrix) -> [usize; 2] {
        [matrix.tensor.rows, matrix.tensor.columns]
    }

    fn conv_weights(&self, weight: &HostTensor, bias: &HostTensor) -> Result<ConvWeights> {
        conv1d::pack(self, weight, bias)
    }

    fn conv_transpose_weights(&self, weight: &HostTensor, bias: &HostTensor, stride: usize) -> Result<ConvWeights> {
        conv_transpose1d::pack(self, weight, bias, stride)
    }

    fn conv_shape(&self, weights: &ConvWeights) -> ConvShape {
        let stride = (weights.stride > 0).then_some(weights.stride);
        ConvShape { outputs: weights.outputs, inputs: weights.inputs, taps: weights.taps, stride }
    }

    fn captured(&self, graph: &GraphId, input: &Tensor, body: GraphBody<'_, Cuda>) -> Result<Tensor> {
        // In a recorded graph kernels have no times of their own.
        if trace::on() { body(self, input) } else { graph::run(self, graph, input, body) }
    }
}

impl Decode for Cuda {
    type KvCache = KvCache;

    fn kv_cache(&self, shape: CacheShape) -> Result<KvCache> {
        KvCache::new(self, shape)
    }

    fn prefill_qkv(
        &self,
        cache: &mut KvCache,
        images: &[usize],
        layer: usize,
        x: &Tensor,
        qkv: &LinearWeights<Cuda>,
    ) -> Result<Tensor> {
        cache.set_prefix(self, images, layer, x, qkv)
    }

    fn kv_reorder(&self, cache: &mut KvCache, rows: &[CacheRow]) -> Result<()> {
        cache.set_rows(self, rows)
    }

    fn kv_append<'c>(&self, cache: &'c mut KvCache) -> Result<&'c [u32]> {
        cache.grow(self)
    }

    fn attention_decode(&self, qkv: &Tensor, cache: &mut KvCache, layer: usize) -> Result<Tensor> {
        attention_decode::attention_decode(self, qkv, cache, layer)
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

    fn can_decode_greedy(&self, decoder: &DecoderWeights<'_, Cuda>, shape: CacheShape, limit: usize) -> bool {
        decode_greedy::GreedyLaunch::new(self, decoder, shape, limit, SmBudget::All).is_some()
    }

    fn decode_greedy(
        &self,
        decoder: &DecoderWeights<'_, Cuda>,
        cache: &KvCache,
        limit: usize,
        budget: SmBudget,
        on_token: &mut dyn FnMut(usize, &[u32]) -> ControlFlow<()>,
    ) -> Option<Result<Vec<Vec<u32>>>> {
        let launch = decode_greedy::GreedyLaunch::new(self, decoder, cache.shape(), limit, budget);
        launch.map(|launch| launch.run(cache, on_token))
    }
}
