//! The driver of real GPUs, over NVIDIA's driver library, which is looked for when the program runs: one binary starts on
//! machines with and without a GPU. It holds one context, and every kernel of this program, loaded when the device is
//! opened, so that what does not fit is said then and not in the middle of a caption; both are shared by all streams, each of
//! which has a stream, memory and staging memory of its own.

mod context;
pub mod fatbins;
mod library;
mod nccl;
mod staging;

use std::collections::HashSet;
use std::ffi::c_void;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::{self, CUfunction, CUfunction_attribute, CUmodule, CUresult, CUstreamCaptureMode};

use super::{
    BoxedMatrix, DevicePtr, Driver, Event, Graph, KernelInfo, Launch, MappedHostBuffer, Properties, Stream, Sums,
    TensorMap,
};
use crate::Result;
use crate::backend::Peers;
use crate::backend::cuda::kernels;
use context::{Context, GraphExec, Pinned, RawStream, StreamEvent, StreamPool};
use staging::{Download, Upload};

pub use library::probe;

/// Columns of a box of bf16: 128 bytes, which chunk16s are exchanged in.
const BOX_COLUMNS: u32 = 64;

/// A GPU.
#[derive(Clone)]
pub struct GpuDriver {
    properties: Properties,
    modules: Arc<Modules>,
    context: Arc<Context>,
}

/// A stream of work on it.
pub struct GpuStream {
    device: GpuDriver,
    capturing: AtomicBool,
    allocations: Mutex<HashSet<DevicePtr>>,
    /// Memory given back while a graph was captured: the graph is not to give it back each time.
    freed: Mutex<Vec<DevicePtr>>,
    upload: Mutex<Upload>,
    download: Mutex<Download>,
    reserve: StreamPool,
    stream: Arc<RawStream>,
}

/// Opens the GPU of this index.
///
/// # Errors
/// If there is no driver library or it is too old, no such device, or no kernels for it, with what to do about it.
pub fn open(index: usize) -> Result<Arc<dyn Driver>> {
    let (device, properties) = library::device(index)?;
    let context = Context::open(device, format!("cuda:{index}"))?;
    let modules = Arc::new(Modules::load(&context, &properties)?);
    Ok(Arc::new(GpuDriver { properties, modules, context }))
}

/// Every kernel, on the device.
struct Modules {
    context: Arc<Context>,
    modules: Vec<CUmodule>,
    /// By index of the kernel.
    functions: Vec<CUfunction>,
}

// SAFETY: handles, which are only passed to the driver; its functions may be called from every thread.
unsafe impl Send for Modules {}
// SAFETY: as above.
unsafe impl Sync for Modules {}

impl Modules {
    fn load(context: &Arc<Context>, properties: &Properties) -> Result<Modules> {
        context.bind()?;
        let mut modules = Modules { context: context.clone(), modules: Vec::new(), functions: Vec::new() };
        for image in &fatbins::ALL {
            let mut module = null_mut();
            // SAFETY: a whole image that nvcc made, aligned and constant.
            let result = unsafe { sys::cuModuleLoadData(&mut module, image.fatbin.as_ptr().cast()) };
            modules.loaded(image.file, result, properties)?;
            modules.modules.push(module);
        }
        for kernel in kernels::ALL {
            let function = modules.function(kernel, properties)?;
            modules.functions.push(function);
        }
        Ok(modules)
    }

    /// Looks the kernel up, and lets it have all the shared memory that a block can have.
    fn function(&self, kernel: &KernelInfo, properties: &Properties) -> Result<CUfunction> {
        use CUfunction_attribute::{
            CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES,
        };
        let what = kernel.name;
        let image = fatbins::ALL.iter().position(|image| image.file == kernel.file);
        let module = image.and_then(|image| self.modules.get(image));
        let module = *module.ok_or_else(|| self.context.error(format!("the kernel {what} has no image")))?;
        let name: Vec<u8> = kernel.name.bytes().chain([0]).collect();
        let (mut function, mut fixed) = (null_mut(), 0);
        // SAFETY: writes one handle; the module is loaded and the name ends in 0.
        let result = unsafe { sys::cuModuleGetFunction(&mut function, module, name.as_ptr().cast()) };
        self.loaded(what, result, properties)?;
        // SAFETY: writes one number.
        let result = unsafe { sys::cuFuncGetAttribute(&mut fixed, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, function) };
        self.loaded(what, result, properties)?;
        let max = i32::try_from(properties.shared_per_block).unwrap_or(i32::MAX) - fixed;
        // SAFETY: the function was just looked up.
        let result = unsafe { sys::cuFuncSetAttribute(function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, max) };
        self.loaded(what, result, properties)?;
        Ok(function)
    }

    /// An error unless the driver could load `what`; it may find out as late as for a kernel that it has no code for this
    /// device.
    fn loaded(&self, what: &str, result: CUresult, properties: &Properties) -> Result<()> {
        if !matches!(result, CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU | CUresult::CUDA_ERROR_INVALID_PTX) {
            return self.context.check(&format!("loading kernels ({what})"), result);
        }
        let ((major, minor), name) = (properties.capability, &properties.name);
        Err(self.context.error(format!(
            "the kernels ({what}) were not compiled for {name} (compute capability {major}.{minor}), and its driver does \
             not compile them ({}): build im2sp again with the nvcc of a later CUDA, or use --device cpu",
            library::words(result)
        )))
    }
}

impl Drop for Modules {
    fn drop(&mut self) {
        self.context.bind_to_drop();
        for &module in &self.modules {
            // SAFETY: loaded by `load`; the owner has waited for all kernels.
            let _ = unsafe { sys::cuModuleUnload(module) };
        }
    }
}

impl GpuStream {
    fn new(device: GpuDriver) -> Result<GpuStream> {
        let context = &device.context;
        Ok(GpuStream {
            capturing: AtomicBool::new(false),
            allocations: Mutex::default(),
            freed: Mutex::default(),
            upload: Mutex::new(Upload::new(context)?),
            download: Mutex::new(Download::new(context)?),
            reserve: StreamPool::new(context)?,
            stream: Arc::new(RawStream::new(context.clone())?),
            device,
        })
    }

    /// Ready for a call, and not in the middle of a capture.
    fn bind(&self, what: &str) -> Result<()> {
        self.device.context.bind()?;
        if self.capturing.load(Ordering::Relaxed) {
            return Err(self.device.context.error(format!("{what} while a graph is captured")));
        }
        Ok(())
    }

    /// An event of this device.
    fn raw_event(&self, event: &Event) -> Result<sys::CUevent> {
        let context = &self.device.context;
        let event = event.0.downcast_ref::<StreamEvent>().filter(|event| Arc::ptr_eq(&event.context, context));
        event.map(|event| event.raw).ok_or_else(|| context.error("not my event"))
    }

    fn out_of_memory(&self, bytes: usize) -> crate::Error {
        let room = match self.device.context.memory() {
            Ok((free, total)) => format!("{} free of {}", mebibytes(free), mebibytes(total)),
            Err(_) => format!("{} on the device in all", mebibytes(self.device.properties.memory)),
        };
        self.device.context.error(format!(
            "out of memory: {} wanted, {room}: stop what else uses the GPU (`nvidia-smi` lists it), take fewer images at \
             once or fewer beams, or use --dtype bf16 or --device cpu",
            mebibytes(bytes)
        ))
    }
}

impl Driver for GpuDriver {
    fn lock_cooperative(&self) -> MutexGuard<'_, ()> {
        self.context.lock_cooperative()
    }

    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn memory(&self) -> Result<(usize, usize)> {
        self.context.memory()
    }

    fn new_stream(&self) -> Result<Arc<dyn Stream>> {
        Ok(Arc::new(GpuStream::new(self.clone())?))
    }
}

impl Stream for GpuStream {
    fn driver(&self) -> Arc<dyn Driver> {
        Arc::new(self.device.clone())
    }

    fn properties(&self) -> &Properties {
        &self.device.properties
    }

    fn allocate(&self, bytes: usize) -> Result<DevicePtr> {
        self.bind("an allocation")?;
        if bytes == 0 {
            return Ok(DevicePtr::NULL);
        }
        let pointer = match self.reserve.take(bytes, &self.stream)? {
            Some(pointer) => pointer,
            None => {
                // What was given back in pieces may do as a whole.
                self.stream.wait()?;
                self.reserve.trim()?;
                self.reserve.take(bytes, &self.stream)?.ok_or_else(|| self.out_of_memory(bytes))?
            }
        };
        lock(&self.allocations).insert(pointer);
        Ok(pointer)
    }

    unsafe fn free(&self, pointer: DevicePtr) {
        if !lock(&self.allocations).remove(&pointer) {
            return;
        }
        if self.capturing.load(Ordering::Relaxed) {
            lock(&self.freed).push(pointer);
            return;
        }
        // SAFETY: it was allocated here, and the caller does not use it again.
        unsafe { self.stream.free_async(pointer) }
    }

    fn mapped_host(&self, words: usize) -> Result<MappedHostBuffer> {
        self.bind("an allocation")?;
        let memory = Pinned::new(&self.device.context, words.max(1) * size_of::<u32>())?;
        let device = memory.on_device()?;
        let start =
            NonNull::new(memory.address(0).cast()).ok_or_else(|| self.device.context.error("no host memory"))?;
        let stream = self.stream.clone();
        let release = Box::new(move || {
            // A kernel may still be looking at it.
            let _ = stream.wait();
            drop(memory);
        });
        // SAFETY: the memory holds as many words, zeroed, until it is dropped.
        Ok(unsafe { MappedHostBuffer::new(device, start, words, release) })
    }

    fn is_idle(&self) -> Result<bool> {
        self.bind("a question")?;
        self.stream.is_idle()
    }

    unsafe fn copy_to_device(&self, to: DevicePtr, from: &[u8]) -> Result<()> {
        self.bind("a copy from the host")?;
        // SAFETY: the caller's promise.
        unsafe { lock(&self.upload).write(&self.stream, to, from) }
    }

    unsafe fn copy_to_host(&self, from: DevicePtr, to: &mut [u8]) -> Result<()> {
        self.bind("a copy to the host")?;
        // SAFETY: the caller's promise.
        unsafe { lock(&self.download).read(&self.stream, from, to) }
    }

    unsafe fn copy(&self, to: DevicePtr, from: DevicePtr, bytes: usize) -> Result<()> {
        self.device.context.bind()?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        let result = unsafe { sys::cuMemcpyDtoDAsync_v2(to.0, from.0, bytes, self.stream.raw) };
        self.device.context.check("copying on the device", result)
    }

    unsafe fn memset(&self, to: DevicePtr, byte: u8, bytes: usize) -> Result<()> {
        self.device.context.bind()?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        let result = unsafe { sys::cuMemsetD8Async(to.0, byte, bytes, self.stream.raw) };
        self.device.context.check("filling memory", result)
    }

    fn tensor_map(&self, matrix: BoxedMatrix) -> Result<TensorMap> {
        let BoxedMatrix { pointer, rows, columns, box_rows } = matrix;
        if rows == 0 || columns == 0 {
            return Ok(TensorMap::default());
        }
        self.device.context.bind()?;
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        let (sizes, row_bytes) = ([columns as u64, rows as u64], columns as u64 * size_of::<u16>() as u64);
        let (shape, steps) = ([BOX_COLUMNS, box_rows as u32], [1; 2]);
        // SAFETY: reads two sizes, one distance, two sizes of a box and two steps; writes one map, and touches no memory of
        // the device.
        let result = unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                sizes.len() as u32,
                pointer.0 as *mut c_void,
                sizes.as_ptr(),
                &row_bytes,
                shape.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        self.device.context.check(&format!("a map of {matrix:?}"), result)?;
        Ok(TensorMap(map.opaque))
    }

    unsafe fn launch(&self, kernel: &'static KernelInfo, launch: Launch, params: &[u8]) -> Result<()> {
        self.device.context.bind()?;
        let Launch { grid: [x, y, z], shared_bytes, cooperative } = launch;
        let function = self.device.modules.functions.get(kernel.index).copied();
        let function = function.ok_or_else(|| self.device.context.error(format!("no kernel {}", kernel.name)))?;
        self.device.context.note_launch(kernel);
        let mut argument = [params.as_ptr().cast::<c_void>().cast_mut()];
        let (argument, stream, threads) = (argument.as_mut_ptr(), self.stream.raw, kernel.threads);
        // SAFETY: the caller's promise; the kernel takes one argument of as many bytes, which are copied before this
        // returns.
        let result = unsafe {
            if cooperative {
                sys::cuLaunchCooperativeKernel(function, x, y, z, threads, 1, 1, shared_bytes, stream, argument)
            } else {
                sys::cuLaunchKernel(function, x, y, z, threads, 1, 1, shared_bytes, stream, argument, null_mut())
            }
        };
        if result == CUresult::CUDA_SUCCESS {
            return Ok(());
        }
        let together = if cooperative { ", all at once" } else { "" };
        let what = format!(
            "launching {}: {x} x {y} x {z} blocks of {threads} threads{together}, {shared_bytes} bytes of shared memory of at most {}",
            kernel.name, self.device.properties.shared_per_block
        );
        self.device.context.check(&what, result)
    }

    fn synchronize(&self) -> Result<()> {
        self.bind("waiting")?;
        self.stream.wait()
    }

    fn begin_capture(&self) -> Result<()> {
        self.bind("a second capture")?;
        // Relaxed: the capture may end on another thread than it began on, and other threads may allocate for their streams
        // meanwhile, which a capture in global mode would forbid them. What this one may not do, `bind` refuses.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: a live stream.
        let result = unsafe { sys::cuStreamBeginCapture_v2(self.stream.raw, mode) };
        self.device.context.check("beginning a graph", result)?;
        self.capturing.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn end_capture(&self) -> Result<Graph> {
        if !self.capturing.swap(false, Ordering::Relaxed) {
            return Err(self.device.context.error("no graph is being captured"));
        }
        let (mut graph, mut raw) = (null_mut(), null_mut());
        let entered = self.device.context.bind();
        // SAFETY: a live stream; writes one handle, or null.
        let ended = unsafe { sys::cuStreamEndCapture(self.stream.raw, &mut graph) };
        for pointer in std::mem::take(&mut *lock(&self.freed)) {
            // SAFETY: `free` was promised that nobody uses it.
            unsafe { self.stream.free_async(pointer) };
        }
        entered?;
        self.device.context.check("ending a graph", ended)?;
        // SAFETY: the graph was just made; writes one handle.
        let made = unsafe { sys::cuGraphInstantiateWithFlags(&mut raw, graph, 0) };
        // SAFETY: nobody else has the graph, and what was instantiated is a copy.
        let _ = unsafe { sys::cuGraphDestroy(graph) };
        self.device.context.check("preparing a graph", made)?;
        let recording = GraphExec { context: self.device.context.clone(), raw };
        // SAFETY: both are alive.
        let uploaded = unsafe { sys::cuGraphUpload(recording.raw, self.stream.raw) };
        self.device.context.check("preparing a graph", uploaded)?;
        Ok(Graph(Box::new(recording)))
    }

    unsafe fn replay(&self, graph: &Graph) -> Result<()> {
        self.bind("a graph")?;
        let recording = graph.0.downcast_ref::<GraphExec>().filter(|r| Arc::ptr_eq(&r.context, &self.device.context));
        let recording = recording.ok_or_else(|| self.device.context.error("not my graph"))?;
        // SAFETY: both are alive; the caller's promise for the memory.
        let result = unsafe { sys::cuGraphLaunch(recording.raw, self.stream.raw) };
        self.device.context.check("starting a graph", result)
    }

    fn record_event(&self) -> Result<Event> {
        self.bind("an event")?;
        let mark = StreamEvent::new(&self.device.context, true)?;
        mark.record(&self.stream)?;
        Ok(Event(Box::new(mark)))
    }

    fn wait_event(&self, event: &Event) -> Result<()> {
        self.bind("an event")?;
        let event = self.raw_event(event)?;
        // SAFETY: both are alive.
        let result = unsafe { sys::cuStreamWaitEvent(self.stream.raw, event, 0) };
        self.device.context.check("waiting for an event", result)
    }

    fn elapsed(&self, from: &Event, to: &Event) -> Result<f32> {
        self.bind("waiting")?;
        let (from, to, mut milliseconds) = (self.raw_event(from)?, self.raw_event(to)?, 0.0);
        // SAFETY: both are alive and recorded; writes one number.
        let result = unsafe {
            match sys::cuEventSynchronize(to) {
                CUresult::CUDA_SUCCESS => sys::cuEventElapsedTime_v2(&mut milliseconds, from, to),
                failed => failed,
            }
        };
        self.device.context.check("waiting for the device", result)?;
        Ok(milliseconds)
    }

    fn communicates(&self) -> bool {
        true
    }

    fn sums(&self, peers: &mut dyn Peers) -> Result<Box<dyn Sums>> {
        Ok(Box::new(nccl::Nccl::join(&self.stream, peers)?))
    }
}

impl Drop for GpuStream {
    /// Everything below goes by itself, once no work is under way.
    fn drop(&mut self) {
        if self.capturing.load(Ordering::Relaxed) {
            let _ = self.end_capture();
        }
        for pointer in lock(&self.allocations).drain().chain(lock(&self.freed).drain(..)) {
            // SAFETY: nobody has the driver any more, so nobody may use its memory.
            unsafe { self.stream.free_async(pointer) };
        }
        let _ = self.stream.wait();
    }
}

fn mebibytes(bytes: usize) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while the lock was held is reported by itself; what it guards stays usable.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
