//! Runs the threads of blocks as coroutines and decides who goes on: barriers of a warp and of a block, threads that wait
//! for others in a loop, and what is wrong when nobody can go on.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_char, c_int};
use std::ptr;

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult, Yielder};

use super::Settings;
use crate::backend::cuda::driver::{KernelInfo, Launch};

/// Bytes of a thread's stack: kernels keep tiles of accumulators there.
const STACK: usize = 128 << 10;
const WARP: usize = 32;
/// Rounds in which threads only wait for each other in loops, after which they are taken to wait for ever.
const MOST_IDLE_ROUNDS: usize = 10_000;

/// Which of the threads that may go on does so first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// By rising index.
    #[default]
    Forward,
    /// By falling index.
    Backward,
    /// By a permutation drawn from this seed.
    Shuffled(u64),
}

impl Order {
    pub(super) fn of(self, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        match self {
            Order::Forward => {}
            Order::Backward => order.reverse(),
            Order::Shuffled(seed) => {
                let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
                for i in (1..count).rev() {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    order.swap(i, (state % (i as u64 + 1)) as usize);
                }
            }
        }
        order
    }
}

/// One launch.
#[derive(Clone, Copy)]
pub(super) struct Task<'a> {
    pub kernel: &'static KernelInfo,
    pub launch: Launch,
    pub params: &'a [u8],
    pub settings: Settings,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Index3 {
    x: u32,
    y: u32,
    z: u32,
}

/// What a thread knows of itself: EmulatorContext of emulator.h.
#[repr(C)]
struct Context {
    thread: Index3,
    block: Index3,
    block_size: Index3,
    grid_size: Index3,
    phase: u32,
    lane: u32,
    shared: *mut u8,
    warp: *mut u8,
    copies: *mut u8,
}

/// EmulatorWait of emulator.h, and what only the runtime sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    Warp,
    Block,
    Spin,
    /// It did what no kernel may; `Place::what` says what.
    Fault,
    Done,
}

/// Where a thread stopped.
#[derive(Clone, Copy)]
struct Place {
    what: *const c_char,
    file: *const c_char,
    line: c_int,
}

impl Place {
    const START: Place = Place { what: ptr::null(), file: ptr::null(), line: 0 };

    fn describe(self) -> String {
        if self.what.is_null() {
            return "its start".into();
        }
        // SAFETY: both are string literals of a kernel.
        let (what, file) = unsafe { (CStr::from_ptr(self.what), CStr::from_ptr(self.file)) };
        format!("{} at {}:{}", what.to_string_lossy(), file.to_string_lossy(), self.line)
    }
}

type Handle = Coroutine<(), (State, Place), (), DefaultStack>;

thread_local! {
    static YIELDER: Cell<*const Yielder<(), (State, Place)>> = const { Cell::new(ptr::null()) };
    /// Stacks of finished threads: making one is a system call.
    static STACKS: RefCell<Vec<DefaultStack>> = const { RefCell::new(Vec::new()) };
}

unsafe extern "C" {
    fn emulator_set_context(context: *mut Context);
    fn emulator_context_bytes() -> u32;
    fn emulator_warp_bytes() -> u32;
    fn emulator_copies_bytes() -> u32;
}

/// Called by kernels: stops the running thread.
#[unsafe(no_mangle)]
extern "C" fn emulator_wait(wait: c_int, what: *const c_char, file: *const c_char, line: c_int) {
    let state = match wait {
        0 => State::Warp,
        1 => State::Block,
        _ => State::Spin,
    };
    let yielder = YIELDER.get();
    // SAFETY: only coroutines call this, and `resume` has set their own yielder just before.
    unsafe { (*yielder).suspend((state, Place { what, file, line })) };
}

/// Called by kernels: stops the running thread for ever.
#[unsafe(no_mangle)]
extern "C" fn emulator_fault(what: *const c_char) {
    let yielder = YIELDER.get();
    loop {
        // SAFETY: as above.
        unsafe { (*yielder).suspend((State::Fault, Place { what, file: c"".as_ptr(), line: 0 })) };
    }
}

/// A thread of a block.
struct Thread {
    coroutine: Option<Handle>,
    yielder: Box<Cell<*const Yielder<(), (State, Place)>>>,
    context: Box<Context>,
    state: State,
    place: Place,
}

/// A block that is under way.
struct Block {
    index: Index3,
    threads: Vec<Thread>,
    // What the contexts point into.
    _shared: Vec<u128>,
    _warps: Vec<Vec<u64>>,
    _copies: Vec<u64>,
}

impl Drop for Thread {
    fn drop(&mut self) {
        if let Some(mut coroutine) = self.coroutine.take() {
            if !coroutine.done() {
                // SAFETY: a kernel's frames own nothing that has to be dropped.
                unsafe { coroutine.force_reset() };
            }
            STACKS.with_borrow_mut(|stacks| stacks.push(coroutine.into_stack()));
        }
    }
}

impl Task<'_> {
    /// The order in which `count` things are visited.
    pub(super) fn order(&self, count: usize) -> Vec<usize> {
        self.settings.order.of(count)
    }

    fn blocks(&self) -> usize {
        self.launch.grid.iter().map(|&n| n as usize).product()
    }

    /// Runs one block from its start to its end.
    ///
    /// # Safety
    /// The kernel may run with these params.
    pub(super) unsafe fn run_block(&self, block: usize) -> Result<(), String> {
        // SAFETY: the caller's promise.
        let mut block = unsafe { self.start(block)? };
        let mut idle = 0;
        while !block.finished() {
            idle = if self.round(&mut block)? { 0 } else { idle + 1 };
            if idle > MOST_IDLE_ROUNDS {
                return Err(block.stuck());
            }
        }
        Ok(())
    }

    /// Runs all blocks at once, on this host thread.
    ///
    /// # Safety
    /// The kernel may run with these params.
    pub(super) unsafe fn run_together(&self) -> Result<(), String> {
        if !self.launch.cooperative {
            // SAFETY: the caller's promise.
            return self.order(self.blocks()).into_iter().try_for_each(|block| unsafe { self.run_block(block) });
        }
        let order = self.order(self.blocks());
        // SAFETY: the caller's promise.
        let mut blocks: Vec<Block> =
            order.into_iter().map(|block| unsafe { self.start(block) }).collect::<Result<_, _>>()?;
        let mut idle = 0;
        while !blocks.is_empty() {
            let mut progress = false;
            for block in &mut blocks {
                progress |= self.round(block)?;
            }
            blocks.retain(|block| !block.finished());
            idle = if progress { 0 } else { idle + 1 };
            if idle > MOST_IDLE_ROUNDS {
                return Err(blocks.first().map(Block::stuck).unwrap_or_default());
            }
        }
        Ok(())
    }

    /// # Safety
    /// The kernel may run with these params.
    unsafe fn start(&self, block: usize) -> Result<Block, String> {
        // SAFETY: both only return a constant.
        let (context_bytes, warp_bytes, copies_bytes) =
            unsafe { (emulator_context_bytes(), emulator_warp_bytes(), emulator_copies_bytes() as usize) };
        assert_eq!(context_bytes as usize, size_of::<Context>(), "the layout of emulator.h");
        let [x, y, z] = self.launch.grid.map(|n| n as usize);
        let index = Index3 { x: (block % x) as u32, y: (block / x % y) as u32, z: (block / x / y) as u32 };
        let count = self.kernel.threads as usize;
        // Never-written shared memory is NaN.
        let mut shared = vec![u128::MAX; (self.launch.shared as usize).div_ceil(16) + 8];
        let start = shared.as_mut_ptr().cast::<u8>();
        // SAFETY: 128 spare bytes were added for the alignment.
        let start = unsafe { start.add(start.align_offset(128)) };
        let mut warps = vec![vec![0u64; warp_bytes as usize / 8]; count.div_ceil(WARP)];
        let mut copies = vec![0u64; copies_bytes.div_ceil(8) * count];
        let emulated = self.kernel.emulated;
        let (entry, params) =
            (if self.settings.checked { emulated.checked } else { emulated.plain }, self.params.as_ptr() as usize);
        let threads = (0..count)
            .map(|thread| {
                let context = Box::new(Context {
                    thread: Index3 { x: thread as u32, ..Default::default() },
                    block: index,
                    block_size: Index3 { x: count as u32, y: 1, z: 1 },
                    grid_size: Index3 { x: x as u32, y: y as u32, z: z as u32 },
                    phase: 0,
                    lane: (thread % WARP) as u32,
                    shared: start,
                    warp: warps[thread / WARP].as_mut_ptr().cast(),
                    copies: copies[thread * copies_bytes.div_ceil(8)..].as_mut_ptr().cast(),
                });
                let yielder = Box::new(Cell::new(ptr::null()));
                let own = &raw const *yielder as usize;
                let stack = STACKS.with_borrow_mut(Vec::pop).map_or_else(|| DefaultStack::new(STACK), Ok);
                let stack = stack.map_err(|error| format!("no memory for a thread's stack: {error}"))?;
                let coroutine = Coroutine::with_stack(stack, move |y, ()| {
                    // SAFETY: the cell is boxed and lives as long as the thread.
                    unsafe { (*(own as *const Cell<*const Yielder<(), (State, Place)>>)).set(y) };
                    YIELDER.set(y);
                    // SAFETY: the caller's promise; the params outlive the launch.
                    unsafe { entry(params as *const u8) };
                });
                Ok(Thread { coroutine: Some(coroutine), yielder, context, state: State::Ready, place: Place::START })
            })
            .collect::<Result<Vec<_>, String>>()?;
        Ok(Block { index, threads, _shared: shared, _warps: warps, _copies: copies })
    }

    /// Lets every thread go on as far as it can, then opens the block's barrier if all wait there. False if threads did
    /// nothing but wait in a loop.
    fn round(&self, block: &mut Block) -> Result<bool, String> {
        let warps = block.threads.len().div_ceil(WARP);
        let mut progress = false;
        for warp in self.order(warps) {
            let first = warp * WARP;
            let lanes = self.order(WARP.min(block.threads.len() - first));
            progress |= block.run_warp(first, &lanes)?;
        }
        let waiting = block.threads.iter().filter(|thread| thread.state == State::Block).count();
        if waiting == block.threads.len() {
            block.threads.iter_mut().for_each(|thread| thread.state = State::Ready);
            return Ok(true);
        }
        let done = block.threads.iter().filter(|thread| thread.state == State::Done).count();
        if waiting > 0 && done > 0 && waiting + done == block.threads.len() {
            return Err(block.divergent("block", State::Block));
        }
        Ok(progress)
    }
}

impl Block {
    fn finished(&self) -> bool {
        self.threads.iter().all(|thread| thread.state == State::Done)
    }

    /// Runs a warp until all of its threads wait for more than the warp. False if none did anything but spin.
    fn run_warp(&mut self, first: usize, lanes: &[usize]) -> Result<bool, String> {
        let mut progress = false;
        for thread in &mut self.threads[first..first + lanes.len()] {
            if thread.state == State::Spin {
                thread.state = State::Ready;
            }
        }
        loop {
            let mut ran = false;
            for &lane in lanes {
                let thread = &mut self.threads[first + lane];
                if thread.state == State::Ready {
                    thread.resume();
                    if thread.state == State::Fault {
                        return Err(self.fault(first + lane));
                    }
                    progress |= thread.state != State::Spin;
                    ran = true;
                }
            }
            let warp = &mut self.threads[first..first + lanes.len()];
            let waiting = warp.iter().filter(|thread| thread.state == State::Warp).count();
            if waiting == lanes.len() {
                let Place { what, line, .. } = warp[0].place;
                if warp.iter().any(|thread| (thread.place.what, thread.place.line) != (what, line)) {
                    return Err(self.divergent("warp", State::Warp));
                }
                warp.iter_mut().for_each(|thread| thread.state = State::Ready);
            } else if !ran {
                let held = warp.iter().any(|thread| matches!(thread.state, State::Block | State::Done));
                if waiting > 0 && held {
                    return Err(self.divergent("warp", State::Warp));
                }
                return Ok(progress);
            }
        }
    }

    /// A barrier that some threads reached and others never will.
    fn divergent(&self, scope: &str, barrier: State) -> String {
        let at = |thread: &Thread| match thread.state {
            State::Done => "has ended".to_string(),
            _ => format!("waits in {}", thread.place.describe()),
        };
        let Some(one) = self.threads.iter().find(|thread| thread.state == barrier) else { return String::new() };
        let place = one.place.describe();
        let other = self.threads.iter().find(|thread| thread.state != barrier || thread.place.describe() != place);
        let other = other.map(|other| format!(", thread {} {}", other.context.thread.x, at(other)));
        format!(
            "divergent barrier of a {scope} in block {}: thread {} {}{}",
            self.name(),
            one.context.thread.x,
            at(one),
            other.unwrap_or_default()
        )
    }

    /// A thread did what no kernel may.
    fn fault(&self, thread: usize) -> String {
        let what = self.threads[thread].place.what;
        // SAFETY: a string of the kernel.
        let what = unsafe { CStr::from_ptr(what) }.to_string_lossy();
        format!("{what}, in block {}, thread {thread}", self.name())
    }

    /// Nobody can go on.
    fn stuck(&self) -> String {
        let mut places: Vec<String> = Vec::new();
        for thread in self.threads.iter().filter(|thread| thread.state != State::Done) {
            let place = format!("thread {} in {}", thread.context.thread.x, thread.place.describe());
            if places.len() < 4 {
                places.push(place);
            }
        }
        format!("deadlock in block {}: {}", self.name(), places.join(", "))
    }

    fn name(&self) -> String {
        let Index3 { x, y, z } = self.index;
        format!("({x}, {y}, {z})")
    }
}

impl Thread {
    fn resume(&mut self) {
        let Some(coroutine) = &mut self.coroutine else { return };
        YIELDER.set(self.yielder.get());
        // SAFETY: the context lives as long as the thread.
        unsafe { emulator_set_context(&raw mut *self.context) };
        match coroutine.resume(()) {
            CoroutineResult::Yield((state, place)) => (self.state, self.place) = (state, place),
            CoroutineResult::Return(()) => self.state = State::Done,
        }
    }
}
