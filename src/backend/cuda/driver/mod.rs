//! The seam under the launchers: a CUDA device ([`Driver`]) and its streams of work ([`Stream`]). [`gpu`] implements them
//! over the driver library, [`emulator`] on the host, with the same kernels.

#[cfg(feature = "emulator")]
pub mod emulator;
#[cfg(feature = "cuda")]
pub mod gpu;

use std::any::Any;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, MutexGuard};

use bytemuck::{NoUninit, Pod, Zeroable};

use crate::backend::Peers;
use crate::{Error, Result};

/// An address in device memory; 0 is none.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct DevicePtr(pub u64);

impl DevicePtr {
    /// Given for tensors that a kernel may do without.
    pub const NULL: DevicePtr = DevicePtr(0);

    /// The address `bytes` further.
    pub fn offset(self, bytes: usize) -> DevicePtr {
        DevicePtr(self.0 + bytes as u64)
    }
}

/// How the device's copies of boxes read a matrix, for the params of a kernel (kernels/cluster.cuh). None of a matrix without
/// values, which no kernel reads.
#[repr(C, align(128))]
#[derive(Clone, Copy, Debug, Default, NoUninit)]
pub struct TensorMap(pub(super) [u64; 16]);

/// A matrix of bf16 on a device, to be read in boxes of 64 columns.
#[derive(Clone, Copy, Debug)]
pub struct BoxedMatrix {
    /// Its first element, at a multiple of 16 bytes.
    pub pointer: DevicePtr,
    /// Rows.
    pub rows: usize,
    /// Columns: a multiple of 8.
    pub columns: usize,
    /// Rows of a box.
    pub box_rows: usize,
}

/// A kernel as the build found it.
#[derive(Debug)]
pub struct KernelInfo {
    /// Stem of its file under kernels/, which names its image.
    pub file: &'static str,
    /// Its name.
    pub name: &'static str,
    /// Threads of a block.
    pub threads: u32,
    /// Neighbouring blocks that run at the same time and share what they read: 1 or 2. Grids are a multiple of it wide.
    pub cluster: u32,
    /// Place in the kernel table.
    pub index: usize,
    /// The kernel built for the host: plain, and with every access to memory checked.
    #[cfg(feature = "emulator")]
    pub emulated: EmulatedKernel,
}

/// The two host builds of a kernel. Each takes the address of the params and runs as one thread of the grid.
#[cfg(feature = "emulator")]
#[derive(Clone, Copy, Debug)]
pub struct EmulatedKernel {
    /// Runs at full speed.
    pub plain: unsafe extern "C" fn(*const u8),
    /// Reports every access to memory before it happens.
    pub checked: unsafe extern "C" fn(*const u8),
    /// Fields of the params that hold addresses, and where: they name memory in reports.
    pub pointers: &'static [(&'static str, usize)],
}

/// A kernel with the type of its params.
pub struct Kernel<P> {
    /// Its name, file and place in the table.
    pub info: KernelInfo,
    params: PhantomData<fn(P)>,
}

impl<P: NoUninit> Kernel<P> {
    /// Only the generated table makes kernels.
    pub(super) const fn new(info: KernelInfo) -> Kernel<P> {
        Kernel { info, params: PhantomData }
    }
}

/// How many blocks run, and with how much shared memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Launch {
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Bytes of dynamic shared memory of a block.
    pub shared_bytes: u32,
    /// All blocks are co-resident, so that they may wait for each other.
    pub cooperative: bool,
}

impl Launch {
    /// A grid in one dimension without shared memory.
    pub fn blocks(blocks: usize) -> Launch {
        Launch::grid([blocks, 1, 1])
    }

    /// A grid in three dimensions without shared memory.
    pub fn grid(grid: [usize; 3]) -> Launch {
        // More than 2^32 blocks is refused by every driver.
        Launch { grid: grid.map(|n| u32::try_from(n).unwrap_or(u32::MAX)), ..Default::default() }
    }

    /// The same with `bytes` of shared memory.
    pub fn shared_bytes(self, bytes: usize) -> Launch {
        Launch { shared_bytes: u32::try_from(bytes).unwrap_or(u32::MAX), ..self }
    }
}

/// Host memory that kernels see while they run. Words are read and written one at a time, on both sides.
pub struct MappedHostBuffer {
    /// Where the device finds it.
    pub device: DevicePtr,
    words: NonNull<AtomicU32>,
    len: usize,
    /// Gives the memory back.
    release: Option<Box<dyn FnOnce() + Send + Sync>>,
}

// SAFETY: the words are atomics, and the memory is owned.
unsafe impl Send for MappedHostBuffer {}
// SAFETY: as above.
unsafe impl Sync for MappedHostBuffer {}

impl MappedHostBuffer {
    /// # Safety
    /// `words` points to `len` words, zeroed or written, that live until `release` is called, and the device sees them at
    /// `device`.
    pub(super) unsafe fn new(
        device: DevicePtr,
        words: NonNull<u32>,
        len: usize,
        release: Box<dyn FnOnce() + Send + Sync>,
    ) -> MappedHostBuffer {
        MappedHostBuffer { device, words: words.cast(), len, release: Some(release) }
    }

    /// All words.
    pub fn words(&self) -> &[AtomicU32] {
        // SAFETY: the promise made to `new`.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr(), self.len) }
    }
}

impl Drop for MappedHostBuffer {
    fn drop(&mut self) {
        if let Some(release) = self.release.take() {
            release();
        }
    }
}

/// Properties of a device.
#[derive(Clone, Debug)]
pub struct Properties {
    /// Its name, as the maker gives it.
    pub name: String,
    /// Multiprocessors.
    pub multiprocessors: usize,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// Bytes of device memory.
    pub memory: usize,
    /// Whether blocks of a launch may wait for each other.
    pub cooperative: bool,
    /// Bytes of the L2 cache.
    pub l2: usize,
    /// Most bytes of shared memory a block may ask for.
    pub shared_per_block: usize,
    /// Whether pairs of blocks take large products, where the device has clusters and copies of boxes: by request.
    pub pairs: bool,
}

/// Captured launches that can be replayed.
pub struct Graph(pub(super) Box<dyn Any + Send + Sync>);

/// A point in the stream of work.
pub struct Event(pub(super) Box<dyn Any + Send + Sync>);

/// A device: its context, its memory and its loaded kernels, shared by all of its streams.
pub trait Driver: Send + Sync {
    /// The device.
    fn properties(&self) -> &Properties;
    /// Free and total bytes of device memory, other programs counted too.
    fn memory(&self) -> Result<(usize, usize)>;
    /// A new stream of work, with staging memory, captures and a memory pool of its own, which is independent of all others.
    ///
    /// # Errors
    /// If the device has no room for another stream and its staging memory.
    fn new_stream(&self) -> Result<Arc<dyn Stream>>;
    /// A lock of this process and device, to be held from the launch of a cooperative kernel to its end. Blocks of two such
    /// kernels, each of which wants all of its own resident, could wait for each other.
    fn lock_cooperative(&self) -> MutexGuard<'_, ()>;
    /// The switches of the emulator, where the device is one: for tests of the kernels.
    #[cfg(feature = "emulator")]
    fn emulator(&self) -> Option<&emulator::EmulatedDriver> {
        None
    }
}

/// A stream of work on a device: everything below happens in the order of the calls. Memory, too, is taken and freed in
/// that order, so it belongs to a stream and not to the device.
///
/// The `unsafe` methods take addresses. Their callers promise that the ranges lie in live allocations of this stream, or of
/// another whose writes this one has waited for and which outlive its work, and that a launched kernel stays inside of them.
pub trait Stream: Send + Sync {
    /// The device.
    fn driver(&self) -> Arc<dyn Driver>;
    /// The device's properties.
    fn properties(&self) -> &Properties;
    /// New memory, aligned to 256 bytes, of unspecified content. 0 bytes give an address that must not be used.
    fn allocate(&self, bytes: usize) -> Result<DevicePtr>;
    /// Gives memory back. Work that uses it may still be under way.
    ///
    /// # Safety
    /// `pointer` comes from `allocate` and is not used again.
    unsafe fn free(&self, pointer: DevicePtr);
    /// Host memory of `words` zeros that kernels see while they run.
    fn mapped_host(&self, words: usize) -> Result<MappedHostBuffer>;
    /// Whether all work has ended, without waiting.
    fn is_idle(&self) -> Result<bool>;
    /// Copies from the host. `from` may be changed as soon as the call returns.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn copy_to_device(&self, to: DevicePtr, from: &[u8]) -> Result<()>;
    /// Copies to the host, after all work before it.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn copy_to_host(&self, from: DevicePtr, to: &mut [u8]) -> Result<()>;
    /// Copies on the device.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn copy(&self, to: DevicePtr, from: DevicePtr, bytes: usize) -> Result<()>;
    /// Sets every byte.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn memset(&self, to: DevicePtr, byte: u8, bytes: usize) -> Result<()>;
    /// Makes memory count as never written: NaN in every float type.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn poison(&self, to: DevicePtr, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.memset(to, 0xff, bytes) }
    }
    /// The map by which kernels copy boxes of a matrix, where the device has such copies.
    ///
    /// # Errors
    /// If the driver refuses the matrix, or has no such copies.
    fn tensor_map(&self, matrix: BoxedMatrix) -> Result<TensorMap>;
    /// Starts a kernel.
    ///
    /// # Safety
    /// See the trait; `params` are the bytes of the kernel's own params.
    unsafe fn launch(&self, kernel: &'static KernelInfo, launch: Launch, params: &[u8]) -> Result<()>;
    /// Waits for all work; reports what went wrong in it.
    fn synchronize(&self) -> Result<()>;
    /// From here to `end_capture`, `copy`, `memset` and `launch` are recorded instead of done; `copy_to_device`, `copy_to_host`,
    /// `allocate` and `synchronize` are errors.
    fn begin_capture(&self) -> Result<()>;
    /// Ends the capture; returns its graph.
    fn end_capture(&self) -> Result<Graph>;
    /// Does what was recorded.
    ///
    /// # Safety
    /// The memory that the recorded work uses is still allocated.
    unsafe fn replay(&self, graph: &Graph) -> Result<()>;
    /// Marks this point.
    fn record_event(&self) -> Result<Event>;
    /// Makes all later work of this stream start after `event`, which another stream of the same device may have recorded.
    /// Does not wait on the host.
    fn wait_event(&self, event: &Event) -> Result<()>;
    /// Milliseconds from one mark to a later one; waits for it.
    fn elapsed(&self, from: &Event, to: &Event) -> Result<f32>;
    /// Whether [`Stream::sums`] connects this device to others.
    fn communicates(&self) -> bool {
        false
    }
    /// Connects the devices of all ranks, each of which calls it, for sums of this stream's memory.
    ///
    /// # Errors
    /// If a library is missing, with the remedy; if a rank has ended; or if the device does not communicate.
    fn sums(&self, peers: &mut dyn Peers) -> Result<Box<dyn Sums>> {
        let _ = peers;
        Err(Error::internal("sums over devices that do not communicate"))
    }
}

/// Sums of device memory over the ranks of a run, on a stream of their own. Dropping it ends what is under way, without waiting for
/// another rank.
pub trait Sums: Send {
    /// Begins to sum `len` f32 values in place, after the work so far of the stream that this was made of.
    ///
    /// # Safety
    /// The values are allocated, and nobody else writes them, until `finish` has succeeded or this was dropped.
    unsafe fn start(&mut self, values: DevicePtr, len: usize, peers: &dyn Peers) -> Result<()>;
    /// Waits on the host for all sums that were begun.
    ///
    /// # Errors
    /// If a rank has ended, or the sums failed.
    fn finish(&mut self, peers: &dyn Peers) -> Result<()>;
}
