//! A driver in front of another that counts what is asked of it, and panics at a launch of the test's choice.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, MutexGuard};

use im2sp::Result;
use im2sp::backend::cuda::driver::{
    BoxedMatrix, DevicePtr, Driver, Event, Graph, KernelInfo, Launch, MappedHostBuffer, Properties, Stream, TensorMap,
};

/// The driver, and what it counts on all of its streams.
#[derive(Clone)]
pub struct Spy {
    driver: Arc<dyn Driver>,
    /// Launches until the panic.
    pub fuse: Arc<AtomicI64>,
    /// Launches in captures until another.
    pub capture_fuse: Arc<AtomicI64>,
    /// Pieces of mapped host memory so far.
    pub mapped: Arc<AtomicI64>,
    /// Maps for copies of boxes so far.
    pub tensor_maps: Arc<AtomicI64>,
}

struct SpiedStream {
    stream: Arc<dyn Stream>,
    spy: Spy,
    capturing: AtomicBool,
}

impl Spy {
    /// Without a panic.
    pub fn new(driver: Arc<dyn Driver>) -> Arc<Spy> {
        let [fuse, capture_fuse] = [(); 2].map(|()| Arc::new(AtomicI64::new(i64::MAX)));
        Arc::new(Spy { driver, fuse, capture_fuse, mapped: Arc::default(), tensor_maps: Arc::default() })
    }
}

impl Driver for Spy {
    fn properties(&self) -> &Properties {
        self.driver.properties()
    }
    fn memory(&self) -> Result<(usize, usize)> {
        self.driver.memory()
    }
    fn new_stream(&self) -> Result<Arc<dyn Stream>> {
        let (stream, capturing) = (self.driver.new_stream()?, AtomicBool::new(false));
        Ok(Arc::new(SpiedStream { stream, spy: self.clone(), capturing }))
    }
    fn lock_cooperative(&self) -> MutexGuard<'_, ()> {
        self.driver.lock_cooperative()
    }
}

// SAFETY of every method: the caller's promise is handed on.
impl Stream for SpiedStream {
    fn driver(&self) -> Arc<dyn Driver> {
        Arc::new(self.spy.clone())
    }
    fn properties(&self) -> &Properties {
        self.stream.properties()
    }
    fn allocate(&self, bytes: usize) -> Result<DevicePtr> {
        self.stream.allocate(bytes)
    }
    unsafe fn free(&self, pointer: DevicePtr) {
        // SAFETY: see above, here and below.
        unsafe { self.stream.free(pointer) }
    }
    fn mapped_host(&self, words: usize) -> Result<MappedHostBuffer> {
        self.spy.mapped.fetch_add(1, Ordering::Relaxed);
        self.stream.mapped_host(words)
    }
    fn is_idle(&self) -> Result<bool> {
        self.stream.is_idle()
    }
    unsafe fn copy_to_device(&self, to: DevicePtr, from: &[u8]) -> Result<()> {
        // SAFETY: see above.
        unsafe { self.stream.copy_to_device(to, from) }
    }
    unsafe fn copy_to_host(&self, from: DevicePtr, to: &mut [u8]) -> Result<()> {
        // SAFETY: see above.
        unsafe { self.stream.copy_to_host(from, to) }
    }
    unsafe fn copy(&self, to: DevicePtr, from: DevicePtr, bytes: usize) -> Result<()> {
        // SAFETY: see above.
        unsafe { self.stream.copy(to, from, bytes) }
    }
    unsafe fn memset(&self, to: DevicePtr, byte: u8, bytes: usize) -> Result<()> {
        // SAFETY: see above.
        unsafe { self.stream.memset(to, byte, bytes) }
    }
    unsafe fn launch(&self, kernel: &'static KernelInfo, launch: Launch, params: &[u8]) -> Result<()> {
        if self.capturing.load(Ordering::Relaxed) {
            assert_ne!(self.spy.capture_fuse.fetch_sub(1, Ordering::Relaxed), 0, "a planted panic");
        }
        assert_ne!(self.spy.fuse.fetch_sub(1, Ordering::Relaxed), 0, "a planted panic");
        // SAFETY: see above.
        unsafe { self.stream.launch(kernel, launch, params) }
    }
    fn synchronize(&self) -> Result<()> {
        self.stream.synchronize()
    }
    fn begin_capture(&self) -> Result<()> {
        self.capturing.store(true, Ordering::Relaxed);
        self.stream.begin_capture()
    }
    fn end_capture(&self) -> Result<Graph> {
        self.capturing.store(false, Ordering::Relaxed);
        self.stream.end_capture()
    }
    unsafe fn replay(&self, graph: &Graph) -> Result<()> {
        assert_ne!(self.spy.fuse.fetch_sub(1, Ordering::Relaxed), 0, "a planted panic");
        // SAFETY: see above.
        unsafe { self.stream.replay(graph) }
    }
    fn tensor_map(&self, matrix: BoxedMatrix) -> Result<TensorMap> {
        self.spy.tensor_maps.fetch_add(1, Ordering::Relaxed);
        self.stream.tensor_map(matrix)
    }
    fn record_event(&self) -> Result<Event> {
        self.stream.record_event()
    }
    fn elapsed(&self, from: &Event, to: &Event) -> Result<f32> {
        self.stream.elapsed(from, to)
    }
    fn wait_event(&self, event: &Event) -> Result<()> {
        self.stream.wait_event(event)
    }
}
