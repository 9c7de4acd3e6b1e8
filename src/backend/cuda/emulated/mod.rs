//! A CUDA device made of the host: every thread of a kernel is a coroutine that stops where the hardware would let it
//! wait. It runs the kernels that a GPU runs, compiled by the C++ compiler, and exists for tests: it favours being right
//! over being quick.

mod block;
mod memory;

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use rayon::prelude::*;

use super::driver::{DevicePtr, Driver, Event, Graph, KernelInfo, Launch, Properties, SharedWords};
use crate::{Error, Result};
use memory::Memory;

pub use block::Order;

/// The host as a CUDA device.
pub struct EmulatedDriver {
    properties: Properties,
    memory: Mutex<Memory>,
    settings: Mutex<Settings>,
    capture: Mutex<Option<Vec<Recorded>>>,
    /// What went wrong in a launch, reported by the next call that waits, as a GPU does.
    failure: Mutex<Option<String>>,
    launches: AtomicU64,
}

/// How kernels are run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Which of the threads that may go on does so first.
    pub order: Order,
    /// Check every access to memory, one block after the other. Slow.
    pub checked: bool,
}

/// The words of a [`SharedWords`], on their way back to the allocator.
struct Address(NonNull<[u32]>);

// SAFETY: an owned box.
unsafe impl Send for Address {}
// SAFETY: as above.
unsafe impl Sync for Address {}

/// Work of a captured graph.
enum Recorded {
    Launch { kernel: &'static KernelInfo, launch: Launch, params: Vec<u8> },
    Copy { to: DevicePtr, from: DevicePtr, bytes: usize },
    Fill { to: DevicePtr, byte: u8, bytes: usize },
}

impl EmulatedDriver {
    /// A device with `memory` bytes.
    pub fn new(memory: usize) -> EmulatedDriver {
        EmulatedDriver {
            properties: Properties {
                name: "emulator".into(),
                multiprocessors: 4,
                capability: (8, 0),
                memory,
                cooperative: true,
                l2: 1 << 20,
                shared_per_block: 163 << 10,
            },
            memory: Mutex::new(Memory::new(memory)),
            settings: Mutex::default(),
            capture: Mutex::default(),
            failure: Mutex::default(),
            launches: AtomicU64::new(0),
        }
    }

    /// Changes how later launches run.
    pub fn set(&self, settings: Settings) {
        *lock(&self.settings) = settings;
    }

    /// The results of `run` under each of three orders of threads.
    pub fn every_way(&self, run: &dyn Fn() -> Result<Vec<f32>>) -> Result<Vec<Vec<f32>>> {
        let before = *lock(&self.settings);
        let orders = [Order::Forward, Order::Backward, Order::Shuffled(1)];
        let results = orders
            .into_iter()
            .map(|order| {
                self.set(Settings { order, ..before });
                run()
            })
            .collect();
        self.set(before);
        results
    }

    /// Kernels launched so far.
    pub fn launches(&self) -> u64 {
        self.launches.load(Ordering::Relaxed)
    }

    /// Bytes allocated at present.
    pub fn in_use(&self) -> usize {
        lock(&self.memory).in_use()
    }

    /// Records `work` if a graph is being captured.
    fn recorded(&self, work: impl FnOnce() -> Recorded) -> bool {
        match &mut *lock(&self.capture) {
            Some(graph) => {
                graph.push(work());
                true
            }
            None => false,
        }
    }

    fn not_capturing(&self, what: &str) -> Result<()> {
        match &*lock(&self.capture) {
            Some(_) => Err(device_error(format!("{what} while a graph is captured"))),
            None => Ok(()),
        }
    }

    /// # Safety
    /// As [`Driver::launch`].
    unsafe fn run(&self, kernel: &'static KernelInfo, launch: Launch, params: &[u8]) -> Result<()> {
        self.launches.fetch_add(1, Ordering::Relaxed);
        let [x, y, z] = launch.grid.map(u64::from);
        let problem = |problem: String| Err(device_error(format!("launch of {}: {problem}", kernel.name)));
        if x == 0 || y == 0 || z == 0 || x > i32::MAX as u64 || y > 65_535 || z > 65_535 {
            return problem(format!("a grid of {:?} blocks", launch.grid));
        }
        if launch.shared as usize > self.properties.shared_per_block {
            return problem(format!("{} bytes of shared memory", launch.shared));
        }
        if lock(&self.failure).is_some() {
            return Ok(());
        }
        let settings = *lock(&self.settings);
        let task = block::Task { kernel, launch, params, settings };
        let done = if launch.cooperative || settings.checked {
            // SAFETY: the caller's promise.
            unsafe { task.run_together() }
        } else {
            let blocks = task.order((x * y * z) as usize);
            // SAFETY: the caller's promise; blocks of one launch do not wait for each other.
            blocks.par_iter().try_for_each(|&block| unsafe { task.run_block(block) })
        };
        if let Err(fault) = done {
            *lock(&self.failure) = Some(format!("kernel {}: {fault}", kernel.name));
        }
        lock(&self.memory).check_guards().or_else(|fault| {
            lock(&self.failure).get_or_insert(format!("kernel {}: {fault}", kernel.name));
            Ok(())
        })
    }
}

impl Driver for EmulatedDriver {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn memory(&self) -> Result<(usize, usize)> {
        let total = self.properties.memory;
        Ok((total.saturating_sub(self.in_use()), total))
    }

    fn allocate(&self, bytes: usize) -> Result<DevicePtr> {
        self.not_capturing("an allocation")?;
        lock(&self.memory).allocate(bytes)
    }

    unsafe fn free(&self, pointer: DevicePtr) {
        lock(&self.memory).free(pointer);
    }

    fn shared_words(&self, words: usize) -> Result<SharedWords> {
        let memory = vec![0u32; words.max(1)].into_boxed_slice();
        let address = NonNull::from(Box::leak(memory));
        let release = Box::new({
            let address = Address(address);
            move || {
                let address = address;
                // SAFETY: the box leaked above, taken back once.
                drop(unsafe { Box::from_raw(address.0.as_ptr()) });
            }
        });
        // SAFETY: the box lives until it is taken back.
        Ok(unsafe {
            SharedWords::new(DevicePtr(address.cast::<u32>().as_ptr() as u64), address.cast(), words, release)
        })
    }

    fn idle(&self) -> Result<bool> {
        // Launches end before they return.
        Ok(true)
    }

    unsafe fn write(&self, to: DevicePtr, from: &[u8]) -> Result<()> {
        self.not_capturing("a copy from the host")?;
        lock(&self.memory).write(to, from)
    }

    unsafe fn read(&self, from: DevicePtr, to: &mut [u8]) -> Result<()> {
        self.synchronize()?;
        lock(&self.memory).read(from, to)
    }

    unsafe fn copy(&self, to: DevicePtr, from: DevicePtr, bytes: usize) -> Result<()> {
        if self.recorded(|| Recorded::Copy { to, from, bytes }) {
            return Ok(());
        }
        lock(&self.memory).copy(to, from, bytes)
    }

    unsafe fn fill(&self, to: DevicePtr, byte: u8, bytes: usize) -> Result<()> {
        if self.recorded(|| Recorded::Fill { to, byte, bytes }) {
            return Ok(());
        }
        lock(&self.memory).write(to, &vec![byte; bytes])
    }

    unsafe fn launch(&self, kernel: &'static KernelInfo, launch: Launch, params: &[u8]) -> Result<()> {
        if self.recorded(|| Recorded::Launch { kernel, launch, params: params.to_vec() }) {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        unsafe { self.run(kernel, launch, params) }
    }

    fn synchronize(&self) -> Result<()> {
        self.not_capturing("waiting")?;
        match lock(&self.failure).take() {
            Some(fault) => Err(device_error(fault)),
            None => Ok(()),
        }
    }

    fn begin_capture(&self) -> Result<()> {
        self.not_capturing("a second capture")?;
        *lock(&self.capture) = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&self) -> Result<Graph> {
        let work = lock(&self.capture).take().ok_or_else(|| device_error("no graph is being captured".into()))?;
        Ok(Graph(Box::new(work)))
    }

    unsafe fn replay(&self, graph: &Graph) -> Result<()> {
        let work = graph.0.downcast_ref::<Vec<Recorded>>().ok_or_else(|| device_error("not my graph".into()))?;
        for work in work {
            // SAFETY: the caller's promise covers everything recorded.
            unsafe {
                match work {
                    Recorded::Launch { kernel, launch, params } => self.launch(kernel, *launch, params)?,
                    Recorded::Copy { to, from, bytes } => self.copy(*to, *from, *bytes)?,
                    Recorded::Fill { to, byte, bytes } => self.fill(*to, *byte, *bytes)?,
                }
            }
        }
        Ok(())
    }

    fn record(&self) -> Result<Event> {
        Ok(Event(Box::new(Instant::now())))
    }

    fn elapsed(&self, from: &Event, to: &Event) -> Result<f32> {
        let instant = |event: &Event| {
            event.0.downcast_ref::<Instant>().copied().ok_or_else(|| device_error("not my event".into()))
        };
        Ok(instant(to)?.duration_since(instant(from)?).as_secs_f32() * 1e3)
    }

    fn emulator(&self) -> Option<&EmulatedDriver> {
        Some(self)
    }
}

fn device_error(problem: String) -> Error {
    Error::Device { device: "emulator".into(), problem }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while the lock was held is reported by itself; what it guards stays usable.
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A driver that several backends may share.
pub fn driver() -> Arc<dyn Driver> {
    Arc::new(EmulatedDriver::new(8 << 30))
}
