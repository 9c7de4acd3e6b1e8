//! A device held open by this process, and what it hands out: streams, memory, events, graphs, pinned memory. Each gives
//! itself back when it is dropped and keeps the device open until then, so the order in which they go does not matter. A
//! device that failed for good answers every later call with what happened first.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use cudarc::driver::sys::{
    self, CUcontext, CUdevice, CUevent, CUevent_flags, CUgraphExec, CUmemAllocationHandleType, CUmemAllocationType,
    CUmemLocation, CUmemLocationType, CUmemPool_attribute, CUmemPoolProps, CUmemoryPool, CUresult, CUstream,
    CUstream_flags,
};

use super::library::{device_error, is_lasting, succeed, words};
use crate::Result;
use crate::backend::cuda::driver::{DevicePtr, KernelInfo};

/// The primary context of a device, which all of this process share.
pub(super) struct Context {
    device: CUdevice,
    /// As the user names it: "cuda:0".
    name: String,
    raw: CUcontext,
    /// The error that ended it.
    lost: OnceLock<String>,
    /// The kernel that was started last: the driver tells of a failure, not of who failed.
    last: AtomicPtr<KernelInfo>,
    /// Held while a cooperative kernel runs, by whichever context of this device.
    cooperative: Arc<Mutex<()>>,
}

/// The lock of a device's cooperative kernels.
fn cooperative_lock(device: CUdevice) -> Arc<Mutex<()>> {
    static LOCKS: Mutex<BTreeMap<CUdevice, Arc<Mutex<()>>>> = Mutex::new(BTreeMap::new());
    LOCKS.lock().unwrap_or_else(PoisonError::into_inner).entry(device).or_default().clone()
}

// SAFETY: the driver's functions may be called from every thread; the handle is only passed to them.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    pub(super) fn open(device: CUdevice, name: String) -> Result<Arc<Context>> {
        let mut raw = null_mut();
        // SAFETY: writes one handle.
        succeed(&name, "opening the device", unsafe { sys::cuDevicePrimaryCtxRetain(&mut raw, device) })?;
        let last = AtomicPtr::new(null_mut());
        let cooperative = cooperative_lock(device);
        Ok(Arc::new(Context { device, name, raw, lost: OnceLock::new(), last, cooperative }))
    }

    /// Makes this the device of the calling thread; an error if it is lost.
    pub(super) fn bind(&self) -> Result<()> {
        match self.lost.get() {
            Some(problem) => Err(self.error(problem.as_str())),
            // SAFETY: the context is retained until `self` is dropped.
            None => self.check("using the device", unsafe { sys::cuCtxSetCurrent(self.raw) }),
        }
    }

    /// The same for giving things back, which a lost device has to allow.
    pub(super) fn bind_to_drop(&self) {
        // SAFETY: the context is retained until `self` is dropped.
        let _ = unsafe { sys::cuCtxSetCurrent(self.raw) };
    }

    pub(super) fn error(&self, problem: impl Into<String>) -> crate::Error {
        device_error(&self.name, problem)
    }

    /// An error that says what was being done, unless the driver agreed.
    pub(super) fn check(&self, what: &str, result: CUresult) -> Result<()> {
        if !is_lasting(result) {
            return succeed(&self.name, what, result);
        }
        // SAFETY: null, or the address of a static.
        let last = unsafe { self.last.load(Ordering::Relaxed).as_ref() };
        let last = last.map_or(String::new(), |kernel| format!("; the kernel started last was {}", kernel.name));
        let problem = self.lost.get_or_init(|| {
            format!(
                "the GPU failed while {what}: {}{last}. Nothing on it can be used any more: start im2sp again, and if it \
                 fails again, run `im2sp doctor` and look for Xid errors of the driver in `dmesg`",
                words(result)
            )
        });
        Err(self.error(problem.as_str()))
    }

    pub(super) fn lock_cooperative(&self) -> MutexGuard<'_, ()> {
        self.cooperative.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn note_launch(&self, kernel: &'static KernelInfo) {
        self.last.store((&raw const *kernel).cast_mut(), Ordering::Relaxed);
    }

    /// Free and total bytes of the device.
    pub(super) fn memory(&self) -> Result<(usize, usize)> {
        self.bind()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two numbers.
        self.check("asking for free memory", unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) })?;
        Ok((free, total))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once by `open`; everything made in it holds it, and is gone.
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

/// A queue of work.
pub(super) struct RawStream {
    pub(super) context: Arc<Context>,
    pub(super) raw: CUstream,
}

// SAFETY: see `Context`.
unsafe impl Send for RawStream {}
// SAFETY: see `Context`.
unsafe impl Sync for RawStream {}

impl RawStream {
    pub(super) fn new(context: Arc<Context>) -> Result<RawStream> {
        context.bind()?;
        let mut raw = null_mut();
        let flags = CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: writes one handle.
        context.check("making a stream", unsafe { sys::cuStreamCreate(&mut raw, flags) })?;
        Ok(RawStream { context, raw })
    }

    /// Whether all work so far has ended.
    pub(super) fn is_idle(&self) -> Result<bool> {
        // SAFETY: a live stream.
        match unsafe { sys::cuStreamQuery(self.raw) } {
            CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            result => self.context.check("working", result).map(|()| true),
        }
    }

    /// Gives memory back once all work so far has ended. A lost device has none, and its errors are known.
    ///
    /// # Safety
    /// It was taken from a [`StreamPool`] in this stream, and is not used again.
    pub(super) unsafe fn free_async(&self, pointer: DevicePtr) {
        self.context.bind_to_drop();
        // SAFETY: the caller's promise.
        let _ = unsafe { sys::cuMemFreeAsync(pointer.0, self.raw) };
    }

    /// Waits for all work so far.
    pub(super) fn wait(&self) -> Result<()> {
        self.context.bind()?;
        // SAFETY: a live stream.
        self.context.check("waiting for the device", unsafe { sys::cuStreamSynchronize(self.raw) })
    }
}

impl Drop for RawStream {
    fn drop(&mut self) {
        self.context.bind_to_drop();
        // SAFETY: made by `new`; work under way goes on, and whoever owns what it uses has waited for it.
        let _ = unsafe { sys::cuStreamDestroy_v2(self.raw) };
    }
}

/// Device memory that is taken and given back in the order of a stream's work. `cuMemFree` would wait for everything on the
/// device, and so for a decoder on another stream.
pub(super) struct StreamPool {
    context: Arc<Context>,
    raw: CUmemoryPool,
}

// SAFETY: see `Context`.
unsafe impl Send for StreamPool {}
// SAFETY: see `Context`.
unsafe impl Sync for StreamPool {}

impl StreamPool {
    pub(super) fn new(context: &Arc<Context>) -> Result<StreamPool> {
        context.bind()?;
        let props = CUmemPoolProps {
            allocType: CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED,
            handleTypes: CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_NONE,
            location: CUmemLocation { type_: CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, id: context.device },
            win32SecurityAttributes: null_mut(),
            maxSize: 0,
            usage: 0,
            reserved: [0; 54],
        };
        let mut raw = null_mut();
        // SAFETY: reads the properties, writes one handle.
        context.check("making a reserve of memory", unsafe { sys::cuMemPoolCreate(&mut raw, &props) })?;
        let pool = StreamPool { context: context.clone(), raw };
        // By default all memory that was given back is unmapped whenever somebody waits for the stream.
        let attribute = CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        let mut threshold = u64::MAX;
        // SAFETY: a live pool; reads one number of 64 bits.
        let kept = unsafe { sys::cuMemPoolSetAttribute(pool.raw, attribute, (&raw mut threshold).cast()) };
        context.check("making a reserve of memory", kept)?;
        Ok(pool)
    }

    /// Memory for work that comes after this in `stream`; `None` if there is not as much.
    pub(super) fn take(&self, bytes: usize, stream: &RawStream) -> Result<Option<DevicePtr>> {
        let mut pointer = DevicePtr::NULL;
        // SAFETY: writes one address; both are alive.
        match unsafe { sys::cuMemAllocFromPoolAsync(&mut pointer.0, bytes, self.raw, stream.raw) } {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => Ok(None),
            result => self.context.check(&format!("allocating {bytes} bytes"), result).map(|()| Some(pointer)),
        }
    }

    /// Leaves what was given back, and is not used by work any more, to all programs.
    pub(super) fn trim(&self) -> Result<()> {
        // SAFETY: a live pool.
        self.context.check("giving memory back", unsafe { sys::cuMemPoolTrimTo(self.raw, 0) })
    }
}

impl Drop for StreamPool {
    fn drop(&mut self) {
        self.context.bind_to_drop();
        // SAFETY: made by `new`; memory that work has yet to give back goes afterwards.
        let _ = unsafe { sys::cuMemPoolDestroy(self.raw) };
    }
}

/// A point in the work of a stream.
pub(super) struct StreamEvent {
    pub(super) context: Arc<Context>,
    pub(super) raw: CUevent,
}

// SAFETY: see `Context`.
unsafe impl Send for StreamEvent {}
// SAFETY: see `Context`.
unsafe impl Sync for StreamEvent {}

impl StreamEvent {
    /// One that `record` has yet to place.
    pub(super) fn new(context: &Arc<Context>, timed: bool) -> Result<StreamEvent> {
        context.bind()?;
        let flags = if timed { CUevent_flags::CU_EVENT_DEFAULT } else { CUevent_flags::CU_EVENT_DISABLE_TIMING };
        let mut raw = null_mut();
        // SAFETY: writes one handle.
        context.check("making an event", unsafe { sys::cuEventCreate(&mut raw, flags as u32) })?;
        Ok(StreamEvent { context: context.clone(), raw })
    }

    pub(super) fn record(&self, stream: &RawStream) -> Result<()> {
        // SAFETY: both are alive.
        self.context.check("recording an event", unsafe { sys::cuEventRecord(self.raw, stream.raw) })
    }

    pub(super) fn wait(&self) -> Result<()> {
        // SAFETY: a live event.
        self.context.check("waiting for the device", unsafe { sys::cuEventSynchronize(self.raw) })
    }
}

impl Drop for StreamEvent {
    fn drop(&mut self) {
        self.context.bind_to_drop();
        // SAFETY: made by `new`; one that work has yet to pass is destroyed afterwards.
        let _ = unsafe { sys::cuEventDestroy_v2(self.raw) };
    }
}

/// An instantiated graph.
pub(super) struct GraphExec {
    pub(super) context: Arc<Context>,
    pub(super) raw: CUgraphExec,
}

// SAFETY: see `Context`.
unsafe impl Send for GraphExec {}
// SAFETY: see `Context`.
unsafe impl Sync for GraphExec {}

impl Drop for GraphExec {
    fn drop(&mut self) {
        self.context.bind_to_drop();
        // SAFETY: made by `end_capture`; one that is running is destroyed afterwards.
        let _ = unsafe { sys::cuGraphExecDestroy(self.raw) };
    }
}

/// Host memory that the device reaches by itself.
pub(super) struct Pinned {
    context: Arc<Context>,
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: plain memory with one owner.
unsafe impl Send for Pinned {}
// SAFETY: nothing is written through a shared reference.
unsafe impl Sync for Pinned {}

impl Pinned {
    pub(super) fn new(context: &Arc<Context>, bytes: usize) -> Result<Pinned> {
        context.bind()?;
        let mut start: *mut c_void = null_mut();
        // SAFETY: writes one address.
        let result = unsafe { sys::cuMemHostAlloc(&mut start, bytes, sys::CU_MEMHOSTALLOC_DEVICEMAP) };
        context.check(&format!("allocating {bytes} bytes of pinned host memory"), result)?;
        let start = NonNull::new(start.cast()).ok_or_else(|| context.error("the driver gave no pinned memory"))?;
        // SAFETY: as many bytes, not yet seen by anyone.
        unsafe { start.write_bytes(0, bytes) };
        Ok(Pinned { context: context.clone(), start, bytes })
    }

    /// The bytes. The device must not be writing them.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: all initialised by `new`, borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }

    /// Where kernels find the memory.
    pub(super) fn on_device(&self) -> Result<DevicePtr> {
        let mut pointer = DevicePtr::NULL;
        // SAFETY: writes one address; the memory is alive.
        let result = unsafe { sys::cuMemHostGetDevicePointer_v2(&mut pointer.0, self.address(0), 0) };
        self.context.check("mapping host memory", result)?;
        Ok(pointer)
    }

    /// The address of a byte.
    pub(super) fn address(&self, at: usize) -> *mut c_void {
        self.start.as_ptr().wrapping_add(at).cast()
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.context.bind_to_drop();
        // SAFETY: made by `new`; its owner has waited for the work that uses it.
        let _ = unsafe { sys::cuMemFreeHost(self.start.as_ptr().cast()) };
    }
}
