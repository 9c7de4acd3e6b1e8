//! Runs the threads of blocks and decides which continues: barriers of a warp, a block and a cluster, threads that wait for others
//! in a loop, and the diagnosis when none can continue.

use std::cell::RefCell;
use std::ptr;

use super::Settings;
use super::fiber::{self, Entry, Fiber, Index3, State, WARP};
use super::memcheck::Watch;
use crate::backend::cuda::driver::{KernelInfo, Launch};

/// Rounds in which threads only wait for each other in loops, after which they are taken to wait for ever.
const MAX_IDLE_ROUNDS: usize = 10_000;
/// Alignment of a block's shared memory.
const ALIGNMENT: usize = 1024;
/// Bytes behind a block's shared memory that it must not touch.
const GUARD: usize = 256;
const GUARD_BYTE: u8 = 0xa5;

/// Order in which runnable threads are scheduled.
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
    fn of(self, count: usize) -> Vec<usize> {
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
pub(super) struct Task<'a> {
    entry: Entry,
    threads: usize,
    cluster: usize,
    launch: Launch,
    params: &'a [u128],
    checked: bool,
    /// Copies of boxes arrive when they are begun.
    eager: bool,
    /// Blocks that run together.
    groups: Vec<Vec<usize>>,
    warps: Vec<usize>,
    lanes: Vec<usize>,
}

/// The checks of a launch, where it is checked.
pub(super) type Checks<'a, 'm> = Option<&'a RefCell<Watch<'m>>>;

/// Working memory of a block, reused by later blocks.
#[derive(Default)]
struct Scratch {
    fibers: Vec<Fiber>,
    warps: Vec<u128>,
    shared: Vec<u128>,
}

thread_local! {
    static SCRATCH: RefCell<Vec<Scratch>> = const { RefCell::new(Vec::new()) };
}

/// A block that is under way.
struct Block<'a> {
    task: &'a Task<'a>,
    number: u32,
    index: Index3,
    states: Vec<State>,
    /// Threads of each warp that wait for the block or its cluster, or have ended.
    held: Vec<usize>,
    shared: *mut u8,
    /// The place in which its cluster finds the address of its shared memory.
    peer: *mut *mut u8,
    scratch: Scratch,
}

impl<'a> Task<'a> {
    /// `params` are the bytes of the kernel's params, aligned.
    pub(super) fn new(kernel: &KernelInfo, launch: Launch, params: &'a [u128], settings: Settings) -> Task<'a> {
        let Settings { order, checked } = settings;
        let threads = kernel.threads as usize;
        let blocks: usize = launch.grid.iter().map(|&n| n as usize).product();
        let cluster = kernel.cluster as usize;
        let together = if launch.cooperative { blocks } else { cluster };
        let groups = order.of(blocks / together.max(1)).into_iter();
        let group = |group| order.of(together).into_iter().map(|block| group * together + block).collect();
        let emulated = kernel.emulated;
        Task {
            entry: if checked { emulated.checked } else { emulated.plain },
            threads,
            cluster,
            launch,
            params,
            checked,
            eager: order == Order::Backward,
            groups: groups.map(group).collect(),
            warps: order.of(threads.div_ceil(WARP)),
            lanes: order.of(WARP),
        }
    }

    /// Blocks that may wait for each other, a cluster or all of a cooperative launch, in the order in which they begin.
    pub(super) fn groups(&self) -> &[Vec<usize>] {
        &self.groups
    }

    /// Runs the blocks of a group from their start to their end, on this host thread.
    ///
    /// # Safety
    /// The kernel may run with these params.
    pub(super) unsafe fn run_group(&self, group: &[usize], checks: Checks<'_, '_>) -> Result<(), String> {
        fiber::reset_boxes();
        let mut memory = vec![ptr::null_mut(); self.cluster.max(1)];
        let peers = memory.as_mut_ptr();
        let start = |&block: &usize| {
            // SAFETY: the caller's promise; of a cluster each block has its place in `memory`, which outlives them.
            unsafe { self.start(block, peers, checks) }
        };
        let mut blocks: Vec<Block<'_>> = group.iter().map(start).collect::<Result<_, _>>()?;
        let mut idle = 0;
        while !blocks.is_empty() {
            let mut progress = false;
            for block in &mut blocks {
                progress |= block.round(checks)?;
                block.leave_if_finished();
            }
            progress |= self.open_clusters(&mut blocks, checks);
            for ended in blocks.extract_if(.., |block| block.finished()) {
                ended.end(checks)?;
            }
            idle = if progress { 0 } else { idle + 1 };
            if idle > MAX_IDLE_ROUNDS {
                let stuck: Vec<String> = blocks.iter().take(2).map(Block::stuck).collect();
                return Err(stuck.join("; "));
            }
        }
        match fiber::boxes_under_way() {
            0 => Ok(()),
            count => Err(format!("block {} ended before {count} copies of boxes arrived", group[0])),
        }
    }

    /// Lets the blocks go on that wait for their cluster, if all of them do.
    fn open_clusters(&self, blocks: &mut [Block<'_>], checks: Checks<'_, '_>) -> bool {
        if self.cluster == 1 || blocks.len() < self.cluster || !blocks.iter().all(Block::waits_for_cluster) {
            return false;
        }
        if let Some(checks) = checks {
            let places = blocks.iter().map(|block| (block.number, block.scratch.fibers[0].place()));
            checks.borrow_mut().cluster_barrier(&places.collect::<Vec<_>>());
        }
        for block in blocks {
            block.open();
        }
        true
    }

    /// # Safety
    /// The kernel may run with these params. `peers` holds an address for every block of the cluster, and outlives them.
    unsafe fn start(&self, number: usize, peers: *mut *mut u8, checks: Checks<'_, '_>) -> Result<Block<'_>, String> {
        let [x, y, z] = self.launch.grid.map(|n| n as usize);
        let index = Index3 { x: (number % x) as u32, y: (number / x % y) as u32, z: (number / x / y) as u32 };
        let mut scratch = SCRATCH.with_borrow_mut(Vec::pop).unwrap_or_default();
        let bytes = self.launch.shared_bytes as usize;
        let shared = prepare_shared(&mut scratch.shared, bytes);
        let rank = number % self.cluster;
        // SAFETY: the caller's promise.
        let peer = unsafe {
            peers.add(rank).write(shared);
            peers.add(rank)
        };
        let warp_bytes = fiber::warp_bytes();
        scratch.warps.resize(self.warps.len() * warp_bytes.div_ceil(16), 0);
        let warps = scratch.warps.as_mut_ptr().cast::<u8>();
        for warp in 0..self.warps.len() {
            // SAFETY: there is room for all warps.
            unsafe { fiber::reset_warp(warps.add(warp * warp_bytes)) };
        }
        while scratch.fibers.len() < self.threads {
            scratch.fibers.push(Fiber::new(scratch.fibers.len())?);
        }
        for (thread, fiber) in scratch.fibers[..self.threads].iter_mut().enumerate() {
            let context = fiber.context();
            context.thread = Index3 { x: thread as u32, ..Default::default() };
            context.block = index;
            context.block_size = Index3 { x: self.threads as u32, y: 1, z: 1 };
            context.grid_size = Index3 { x: x as u32, y: y as u32, z: z as u32 };
            context.lane = (thread % WARP) as u32;
            (context.shared, context.shared_bytes) = (shared, bytes as u64);
            // SAFETY: there is room for all warps.
            context.warp = unsafe { warps.add(thread / WARP * warp_bytes) };
            (context.entry, context.params) = (self.entry, self.params.as_ptr().cast());
            (context.number, context.checked) = (number as u32, u64::from(self.checked));
            (context.cluster, context.eager) = (peers, u64::from(self.eager));
            (context.rank, context.cluster_size) = (rank as u32, self.cluster as u32);
            context.watch = checks.map_or(ptr::null(), |checks| (&raw const *checks).cast());
            fiber.start();
        }
        if let Some(checks) = checks {
            let warps = warps as u64..warps as u64 + (self.warps.len() * warp_bytes) as u64;
            checks.borrow_mut().start_block(number as u32, self.threads, shared as u64, bytes, warps);
        }
        let states = vec![State::Ready; self.threads];
        let held = vec![0; self.warps.len()];
        Ok(Block { task: self, number: number as u32, index, states, held, shared, peer, scratch })
    }
}

/// Shared memory as a block finds it, with guard words behind: what was never written is NaN. Aligned as operands of wgmma have
/// to be.
fn prepare_shared(memory: &mut Vec<u128>, bytes: usize) -> *mut u8 {
    memory.resize(memory.len().max((bytes + GUARD + ALIGNMENT).div_ceil(16)), 0);
    let start = memory.as_mut_ptr().cast::<u8>();
    // SAFETY: so many bytes more than needed were asked for.
    unsafe {
        let start = start.add(start.align_offset(ALIGNMENT));
        start.write_bytes(0xff, bytes);
        start.add(bytes).write_bytes(GUARD_BYTE, GUARD);
        start
    }
}

impl Drop for Block<'_> {
    fn drop(&mut self) {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.fibers.iter_mut().for_each(Fiber::abandon);
        SCRATCH.with_borrow_mut(|free| free.push(scratch));
    }
}

impl Block<'_> {
    fn finished(&self) -> bool {
        self.held.iter().sum::<usize>() == self.states.len() && self.states.iter().all(|&state| state == State::Done)
    }

    /// Once its last thread has ended its memory is nobody's.
    fn leave_if_finished(&mut self) {
        if self.finished() {
            // SAFETY: the place outlives the block.
            unsafe { *self.peer = ptr::null_mut() };
        }
    }

    /// After its last thread.
    fn end(&self, checks: Checks<'_, '_>) -> Result<(), String> {
        if let Some(checks) = checks {
            checks.borrow_mut().end_block(self.number);
        }
        let bytes = self.task.launch.shared_bytes as usize;
        // SAFETY: `prepare_shared` made room for the guard; all threads have ended.
        let guard = unsafe { std::slice::from_raw_parts(self.shared.add(bytes), GUARD) };
        match guard.iter().all(|&byte| byte == GUARD_BYTE) {
            true => Ok(()),
            false => Err(format!("block {} wrote beside its {bytes} bytes of shared memory", self.name())),
        }
    }

    fn waits_for_cluster(&self) -> bool {
        self.states.iter().all(|&state| state == State::Cluster)
    }

    /// All threads go on behind a barrier.
    fn open(&mut self) {
        self.states.fill(State::Ready);
        self.held.fill(0);
    }

    /// Lets every thread go on as far as it can, then opens the block's barrier if all wait there. False if threads did
    /// nothing but wait in a loop.
    fn round(&mut self, checks: Checks<'_, '_>) -> Result<bool, String> {
        let task = self.task;
        let mut progress = false;
        for &warp in &task.warps {
            progress |= self.run_warp(warp, checks)?;
        }
        if self.held.iter().sum::<usize>() < self.states.len() {
            return Ok(progress);
        }
        let waiting = self.states.iter().filter(|&&state| state == State::Block).count();
        if self.waits_for_cluster() {
            return Ok(progress);
        }
        if self.states.contains(&State::Cluster) {
            return Err(self.divergent("cluster", &[State::Cluster]));
        }
        if waiting == self.states.len() {
            if let Some(checks) = checks {
                checks.borrow_mut().block_barrier(self.number, self.scratch.fibers[0].place());
            }
            self.open();
            return Ok(true);
        }
        if waiting > 0 {
            return Err(self.divergent("block", &[State::Block]));
        }
        Ok(progress)
    }

    /// Runs a warp until all of its threads wait for more than the warp. False if none did anything but spin.
    fn run_warp(&mut self, warp: usize, checks: Checks<'_, '_>) -> Result<bool, String> {
        let task = self.task;
        let first = warp * WARP;
        let count = WARP.min(self.states.len() - first);
        if self.held[warp] == count {
            return Ok(false);
        }
        let mut progress = false;
        for state in &mut self.states[first..first + count] {
            if *state == State::Spin {
                *state = State::Ready;
            }
        }
        loop {
            let mut meeting = 0;
            for &lane in task.lanes.iter().filter(|&&lane| lane < count) {
                let thread = first + lane;
                if self.states[thread] == State::Ready {
                    let state = self.scratch.fibers[thread].resume();
                    self.states[thread] = state;
                    match state {
                        State::Fault => return Err(self.fault(thread)),
                        State::Block | State::Cluster | State::Done => self.held[warp] += 1,
                        _ => {}
                    }
                    progress |= state != State::Spin;
                }
                meeting += usize::from(matches!(self.states[thread], State::Warp | State::WarpBarrier));
            }
            if meeting < count {
                if meeting > 0 && self.held[warp] > 0 {
                    return Err(self.divergent("warp", &[State::Warp, State::WarpBarrier]));
                }
                return Ok(progress);
            }
            let fibers = &self.scratch.fibers[first..first + count];
            let place = fibers[0].place();
            if !fibers.iter().all(|fiber| fiber.place().meets(place)) {
                return Err(self.divergent("warp", &[State::Warp, State::WarpBarrier]));
            }
            if let Some(checks) = checks.filter(|_| self.states[first] == State::WarpBarrier) {
                checks.borrow_mut().warp_barrier(self.number, warp as u32);
            }
            self.states[first..first + count].fill(State::Ready);
        }
    }

    /// A barrier that some threads reached and others never will.
    fn divergent(&self, scope: &str, barrier: &[State]) -> String {
        let at = |thread: usize| match self.states[thread] {
            State::Done => format!("thread {thread} has ended"),
            _ => format!("thread {thread} waits in {}", self.scratch.fibers[thread].place().describe()),
        };
        let mut threads = 0..self.states.len();
        let Some(one) = threads.clone().find(|&thread| barrier.contains(&self.states[thread])) else {
            return String::new();
        };
        // Of a warp's barrier, the others are in the warp.
        if scope == "warp" {
            threads = one / WARP * WARP..(one / WARP * WARP + WARP).min(self.states.len());
        }
        let place = self.scratch.fibers[one].place();
        let other = threads.into_iter().find(|&thread| {
            !barrier.contains(&self.states[thread]) || !self.scratch.fibers[thread].place().meets(place)
        });
        let other = other.map(|other| format!(", {}", at(other))).unwrap_or_default();
        format!("divergent barrier of a {scope} in block {}: {}{other}", self.name(), at(one))
    }

    /// A thread did what no kernel may.
    fn fault(&self, thread: usize) -> String {
        fiber::take_fault().describe(&format!("thread {thread} of block {}", self.name()))
    }

    /// Nobody can go on.
    fn stuck(&self) -> String {
        // Where threads wait: the first there, and how many.
        let mut places: Vec<(usize, usize)> = Vec::new();
        for thread in (0..self.states.len()).filter(|&thread| self.states[thread] != State::Done) {
            let place = self.scratch.fibers[thread].place();
            match places.iter_mut().find(|(first, _)| self.scratch.fibers[*first].place().meets(place)) {
                Some((_, count)) => *count += 1,
                None => places.push((thread, 1)),
            }
        }
        let words = places.into_iter().take(4).map(|(first, count)| {
            let place = self.scratch.fibers[first].place().describe();
            match count {
                1 => format!("thread {first} waits in {place}"),
                _ => format!("{count} threads from {first} on wait in {place}"),
            }
        });
        format!("deadlock in block {}: {}", self.name(), words.collect::<Vec<_>>().join(", "))
    }

    fn name(&self) -> String {
        let Index3 { x, y, z } = self.index;
        format!("({x}, {y}, {z})")
    }
}
