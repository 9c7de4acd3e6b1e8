//! A CUDA device made of the host: every thread of a kernel is a coroutine that stops where the hardware would let it
//! wait. It runs the kernels that a GPU runs, compiled by the C++ compiler, and exists for tests: it favours being right
//! over being quick.
//!
//! A plain launch runs at full speed: memory that was never written is NaN, memory next to an allocation or a block's
//! shared memory must not change, and each order of the threads has to give the same bits. A checked launch sees every
//! access before it happens (`memcheck.rs`) and ends at the first that is out of bounds, misaligned, of something never
//! written, or not ordered after an earlier one (`racecheck.rs`).

mod block;
pub mod faulty;
mod fiber;
mod memcheck;
mod memory;
mod racecheck;
mod report;
mod trap;

use std::cell::RefCell;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use rayon::prelude::*;

use super::{
    BoxedMatrix, DevicePtr, Driver, Event, Graph, KernelInfo, Launch, MappedHostBuffer, Properties, Stream, TensorMap,
};
use crate::{Error, Result};
use memcheck::Watch;
use memory::Memory;

pub use block::Order;

/// Alignment of a kernel's params: that of a `TensorMap`.
const PARAMS_ALIGNMENT: usize = align_of::<TensorMap>();
/// The last word of a map, as kernels/emulator/cluster.cpp expects it.
const BOXES_OF_BF16: u64 = 0x626f_7865_7331_3662;

/// The host as a CUDA device.
#[derive(Clone)]
pub struct EmulatedDriver {
    machine: Arc<Machine>,
}

/// A stream of work on it.
struct EmulatedStream {
    machine: Arc<Machine>,
    capture: Mutex<Option<Vec<Recorded>>>,
    /// Fault of a launch, reported by the next call that waits, as on a GPU.
    failure: Mutex<Option<String>>,
}

/// The device that all streams share.
struct Machine {
    properties: Properties,
    memory: Arc<Mutex<Memory>>,
    settings: Mutex<Settings>,
    launches: AtomicU64,
    /// Graphs recorded, and replayed.
    graphs: [AtomicU64; 2],
    refuses_captures: AtomicBool,
    /// Bytes copied from the host, and to it.
    crossed: [AtomicU64; 2],
    cooperative: Mutex<()>,
    /// Held by the launch that runs: what it did to memory is looked for when it ends, and must not be another's doing.
    running: Mutex<()>,
}

/// How kernels are run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Order in which runnable threads are scheduled.
    pub order: Order,
    /// Check every access to memory. Slow: all on one thread of the host, and each access takes some 100 ns.
    pub checked: bool,
}

/// The words of a [`MappedHostBuffer`], on their way back to the allocator.
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
    Poison { to: DevicePtr, bytes: usize },
}

impl EmulatedDriver {
    /// A device with `memory` bytes and four multiprocessors.
    pub fn new(memory: usize) -> EmulatedDriver {
        EmulatedDriver::with_multiprocessors(memory, 4)
    }

    /// A device with `memory` bytes and so many multiprocessors, on which no result depends.
    pub fn with_multiprocessors(memory: usize, multiprocessors: usize) -> EmulatedDriver {
        EmulatedDriver::with_properties(memory, |properties| properties.multiprocessors = multiprocessors)
    }

    /// A device with `memory` bytes and other properties than usual: fewer multiprocessors, less shared memory.
    pub fn with_properties(memory: usize, change: impl FnOnce(&mut Properties)) -> EmulatedDriver {
        trap::catch();
        let mut properties = Properties {
            name: "emulator".into(),
            multiprocessors: 4,
            capability: (9, 0),
            memory,
            cooperative: true,
            l2: 1 << 20,
            shared_per_block: 227 << 10,
            pairs: false,
        };
        change(&mut properties);
        EmulatedDriver {
            machine: Arc::new(Machine {
                properties,
                memory: Arc::new(Mutex::new(Memory::new(memory))),
                settings: Mutex::default(),
                launches: AtomicU64::new(0),
                graphs: Default::default(),
                refuses_captures: AtomicBool::new(false),
                crossed: Default::default(),
                cooperative: Mutex::default(),
                running: Mutex::default(),
            }),
        }
    }

    /// Changes how later launches run, on all streams.
    pub fn set(&self, settings: Settings) {
        *lock(&self.machine.settings) = settings;
    }

    /// The results of `run` under each of three orders of threads, and if `checked`, once more with every access checked.
    pub fn run_all_schedules(&self, checked: bool, run: &dyn Fn() -> Result<Vec<f32>>) -> Result<Vec<Vec<f32>>> {
        let before = *lock(&self.machine.settings);
        let plain = |order| Settings { order, checked: false };
        let mut ways = vec![plain(Order::Forward), plain(Order::Backward), plain(Order::Shuffled(1))];
        // First: it names what the others only show by different results.
        ways.splice(0..0, checked.then_some(Settings { order: Order::Forward, checked }));
        let results = ways
            .into_iter()
            .map(|way| {
                self.set(way);
                run()
            })
            .collect();
        self.set(before);
        results
    }

    /// Kernels launched so far, on all streams.
    pub fn launches(&self) -> u64 {
        self.machine.launches.load(Ordering::Relaxed)
    }

    /// Graphs recorded so far, and how often one was replayed, on all streams.
    pub fn graphs(&self) -> [u64; 2] {
        self.machine.graphs.each_ref().map(|count| count.load(Ordering::Relaxed))
    }

    /// From now on nothing can be recorded, or again everything.
    pub fn refuse_captures(&self, on: bool) {
        self.machine.refuses_captures.store(on, Ordering::Relaxed);
    }

    /// Bytes copied from the host and to it so far, on all streams.
    pub fn crossed(&self) -> [u64; 2] {
        self.machine.crossed.each_ref().map(|bytes| bytes.load(Ordering::Relaxed))
    }

    /// Bytes allocated at present, by all streams.
    pub fn in_use(&self) -> usize {
        lock(&self.machine.memory).in_use()
    }
}

impl EmulatedStream {
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
    /// As [`Stream::launch`].
    unsafe fn run(&self, kernel: &'static KernelInfo, launch: Launch, params: &[u8]) -> Result<()> {
        self.machine.launches.fetch_add(1, Ordering::Relaxed);
        let [x, y, z] = launch.grid.map(u64::from);
        let problem = |problem: String| Err(device_error(format!("launch of {}: {problem}", kernel.name)));
        if x == 0 || y == 0 || z == 0 || x > i32::MAX as u64 || y > 65_535 || z > 65_535 {
            return problem(format!("a grid of {:?} blocks", launch.grid));
        }
        if launch.shared_bytes as usize > self.machine.properties.shared_per_block {
            return problem(format!("{} bytes of shared memory", launch.shared_bytes));
        }
        if lock(&self.failure).is_some() {
            return Ok(());
        }
        let _running = lock(&self.machine.running);
        let settings = *lock(&self.machine.settings);
        if launch.cooperative && kernel.cluster > 1 {
            return problem("clusters of a cooperative launch".into());
        }
        if x % u64::from(kernel.cluster) != 0 {
            return problem(format!("{x} blocks, which is no multiple of a cluster's {}", kernel.cluster));
        }
        let mut memory = vec![0u128; (params.len() + PARAMS_ALIGNMENT).div_ceil(16)];
        let start = memory.as_ptr().align_offset(PARAMS_ALIGNMENT);
        let aligned = &mut memory[start..][..params.len().div_ceil(16)];
        bytemuck::cast_slice_mut(aligned)[..params.len()].copy_from_slice(params);
        let aligned = &*aligned;
        let task = block::Task::new(kernel, launch, aligned, settings);
        let done = if settings.checked {
            if x * y * z > racecheck::MAX_BLOCKS as u64 {
                return problem(format!("{:?} blocks are too many to check", launch.grid));
            }
            let mut memory = lock(&self.machine.memory);
            let watch = RefCell::new(Watch::new(kernel, launch, aligned, &mut memory));
            // SAFETY: the caller's promise.
            let mut run = |group: &Vec<usize>| unsafe { task.run_group(group, Some(&watch)) };
            let done = task.groups().iter().try_for_each(&mut run);
            let earlier = watch.into_inner().finish();
            match (earlier, done) {
                (Some(earlier), Err(fault)) => Err(format!("{earlier}; after that: {fault}")),
                (Some(earlier), Ok(())) => Err(earlier),
                (None, done) => done,
            }
        } else {
            lock(&self.machine.memory).assume_written();
            // SAFETY: the caller's promise; groups of one launch do not wait for each other.
            task.groups().par_iter().try_for_each(|group| unsafe { task.run_group(group, None) })
        };
        let guards = lock(&self.machine.memory).check_guards();
        if let Err(fault) = done.and(guards) {
            *lock(&self.failure) = Some(format!("kernel {}: {fault}", kernel.name));
        }
        Ok(())
    }
}

impl Driver for EmulatedDriver {
    fn new_stream(&self) -> Result<Arc<dyn Stream>> {
        let machine = self.machine.clone();
        Ok(Arc::new(EmulatedStream { machine, capture: Mutex::default(), failure: Mutex::default() }))
    }

    fn lock_cooperative(&self) -> MutexGuard<'_, ()> {
        lock(&self.machine.cooperative)
    }

    fn properties(&self) -> &Properties {
        &self.machine.properties
    }

    fn memory(&self) -> Result<(usize, usize)> {
        let total = self.machine.properties.memory;
        Ok((total.saturating_sub(self.in_use()), total))
    }

    fn emulator(&self) -> Option<&EmulatedDriver> {
        Some(self)
    }
}

impl Stream for EmulatedStream {
    fn driver(&self) -> Arc<dyn Driver> {
        Arc::new(EmulatedDriver { machine: self.machine.clone() })
    }

    fn properties(&self) -> &Properties {
        &self.machine.properties
    }

    fn allocate(&self, bytes: usize) -> Result<DevicePtr> {
        self.not_capturing("an allocation")?;
        lock(&self.machine.memory).allocate(bytes)
    }

    unsafe fn free(&self, pointer: DevicePtr) {
        lock(&self.machine.memory).free(pointer);
    }

    fn mapped_host(&self, words: usize) -> Result<MappedHostBuffer> {
        let address = NonNull::from(Box::leak(vec![0u32; words.max(1)].into_boxed_slice()));
        lock(&self.machine.memory).show_host(address.cast::<u32>().as_ptr() as u64, words * size_of::<u32>());
        let release = Box::new({
            let (address, memory) = (Address(address), self.machine.memory.clone());
            move || {
                let address = address;
                lock(&memory).hide_host(address.0.cast::<u32>().as_ptr() as u64);
                // SAFETY: the box leaked above, taken back once.
                drop(unsafe { Box::from_raw(address.0.as_ptr()) });
            }
        });
        // SAFETY: the box lives until it is taken back.
        Ok(unsafe {
            MappedHostBuffer::new(DevicePtr(address.cast::<u32>().as_ptr() as u64), address.cast(), words, release)
        })
    }

    fn is_idle(&self) -> Result<bool> {
        // Launches end before they return.
        Ok(true)
    }

    unsafe fn copy_to_device(&self, to: DevicePtr, from: &[u8]) -> Result<()> {
        self.not_capturing("a copy from the host")?;
        self.machine.crossed[0].fetch_add(from.len() as u64, Ordering::Relaxed);
        lock(&self.machine.memory).write(to, from)
    }

    unsafe fn copy_to_host(&self, from: DevicePtr, to: &mut [u8]) -> Result<()> {
        self.synchronize()?;
        self.machine.crossed[1].fetch_add(to.len() as u64, Ordering::Relaxed);
        lock(&self.machine.memory).read(from, to)
    }

    unsafe fn copy(&self, to: DevicePtr, from: DevicePtr, bytes: usize) -> Result<()> {
        if self.recorded(|| Recorded::Copy { to, from, bytes }) {
            return Ok(());
        }
        lock(&self.machine.memory).copy(to, from, bytes)
    }

    unsafe fn memset(&self, to: DevicePtr, byte: u8, bytes: usize) -> Result<()> {
        if self.recorded(|| Recorded::Fill { to, byte, bytes }) {
            return Ok(());
        }
        lock(&self.machine.memory).fill(to, byte, bytes)
    }

    unsafe fn poison(&self, to: DevicePtr, bytes: usize) -> Result<()> {
        if self.recorded(|| Recorded::Poison { to, bytes }) {
            return Ok(());
        }
        lock(&self.machine.memory).poison(to, bytes)
    }

    fn tensor_map(&self, matrix: BoxedMatrix) -> Result<TensorMap> {
        let BoxedMatrix { pointer, rows, columns, box_rows } = matrix;
        if rows == 0 || columns == 0 {
            return Ok(TensorMap::default());
        }
        let row_bytes = columns * size_of::<u16>();
        if !pointer.0.is_multiple_of(16) || !row_bytes.is_multiple_of(16) || !(1..=256).contains(&box_rows) {
            return Err(device_error(format!("a map of {matrix:?}")));
        }
        let mut map = TensorMap::default();
        let words = [rows, columns, row_bytes, box_rows].map(|n| n as u64);
        map.0[0] = pointer.0;
        map.0[1..5].copy_from_slice(&words);
        map.0[5] = BOXES_OF_BF16;
        Ok(map)
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
        if self.machine.refuses_captures.load(Ordering::Relaxed) {
            return Err(device_error("no graph can be captured".into()));
        }
        *lock(&self.capture) = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&self) -> Result<Graph> {
        let work = lock(&self.capture).take().ok_or_else(|| device_error("no graph is being captured".into()))?;
        self.machine.graphs[0].fetch_add(1, Ordering::Relaxed);
        Ok(Graph(Box::new(work)))
    }

    unsafe fn replay(&self, graph: &Graph) -> Result<()> {
        let work = graph.0.downcast_ref::<Vec<Recorded>>().ok_or_else(|| device_error("not my graph".into()))?;
        self.machine.graphs[1].fetch_add(1, Ordering::Relaxed);
        for work in work {
            // SAFETY: the caller's promise covers everything recorded.
            unsafe {
                match work {
                    Recorded::Launch { kernel, launch, params } => self.launch(kernel, *launch, params)?,
                    Recorded::Copy { to, from, bytes } => self.copy(*to, *from, *bytes)?,
                    Recorded::Fill { to, byte, bytes } => self.memset(*to, *byte, *bytes)?,
                    Recorded::Poison { to, bytes } => self.poison(*to, *bytes)?,
                }
            }
        }
        Ok(())
    }

    fn record_event(&self) -> Result<Event> {
        Ok(Event(Box::new(Instant::now())))
    }

    fn wait_event(&self, event: &Event) -> Result<()> {
        // Work ends before the call that started it returns, so that of every recorded event has ended.
        instant(event).map(drop)
    }

    fn elapsed(&self, from: &Event, to: &Event) -> Result<f32> {
        Ok(instant(to)?.duration_since(instant(from)?).as_secs_f32() * 1e3)
    }
}

fn instant(event: &Event) -> Result<Instant> {
    event.0.downcast_ref::<Instant>().copied().ok_or_else(|| device_error("not my event".into()))
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
