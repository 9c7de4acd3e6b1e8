//! The checks of a checked launch: what every access to memory means. The kernels of the checked build call in here before
//! each access and each atomic operation (kernels/emulator/checked.cpp).

use std::cell::RefCell;
use std::ffi::{c_int, c_uint, c_void};
use std::ops::Range;

use super::fiber::{self, Place};
use super::memory::{Found, Memory};
use super::racecheck::{BlockSync, Clock, Kind, Order, Race, Shadow, Who};
use super::report::Finding;
use crate::backend::cuda::driver::{KernelInfo, Launch};

/// Bytes of a line of a box.
const BOX_LINE: u64 = 128;
const NOT_WAITED_FOR: &str = "access to what an asynchronous copy has not been waited for";

/// State of a byte of shared memory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Byte {
    Fresh,
    Written,
    /// An asynchronous copy to it is under way.
    Arriving,
}

/// A block that is under way.
struct BlockWatch {
    sync: BlockSync,
    shared: u64,
    bytes: Vec<Byte>,
    shadow: Shadow,
    /// Exchange memory of its lanes.
    warps: Range<u64>,
}

/// A launch, and the memory it works in.
pub(super) struct Watch<'m> {
    memory: &'m mut Memory,
    kernel: &'static KernelInfo,
    grid: [u32; 3],
    params: &'m [u128],
    /// By their place in the grid, while they are under way.
    blocks: Vec<Option<Box<BlockWatch>>>,
    shadow: Shadow,
    /// A read of a byte that nobody had written: reported when nothing explains it better, such as a write that comes too late.
    held: Option<(Finding, Range<u64>)>,
}

/// Where an access goes.
#[derive(Clone, Copy)]
enum Target {
    /// The shared memory of this block.
    Shared(u32),
    Device(Found),
    /// Memory that needs no further check.
    Free,
}

unsafe extern "C" {
    fn emulator_binary_start() -> *const c_void;
    fn emulator_binary_end() -> *const c_void;
}

impl<'m> Watch<'m> {
    pub(super) fn new(
        kernel: &'static KernelInfo,
        launch: Launch,
        params: &'m [u128],
        memory: &'m mut Memory,
    ) -> Watch<'m> {
        let grid = launch.grid;
        let blocks = (0..grid.iter().product()).map(|_| None).collect();
        Watch { memory, kernel, grid, params, blocks, shadow: Shadow::default(), held: None }
    }

    pub(super) fn start_block(&mut self, block: u32, threads: usize, shared: u64, bytes: usize, warps: Range<u64>) {
        let watch = BlockWatch {
            sync: BlockSync::new(block, threads),
            shared,
            bytes: vec![Byte::Fresh; bytes],
            shadow: Shadow::default(),
            warps,
        };
        self.blocks[block as usize] = Some(Box::new(watch));
    }

    pub(super) fn end_block(&mut self, block: u32) {
        self.blocks[block as usize] = None;
    }

    pub(super) fn block_barrier(&mut self, block: u32, place: Place) {
        if let Some(block) = &mut self.blocks[block as usize] {
            block.sync.block_barrier(place);
        }
    }

    /// All blocks of a cluster met, each where it is said.
    pub(super) fn cluster_barrier(&mut self, places: &[(u32, Place)]) {
        let mut all = Clock::default();
        for &(block, place) in places {
            self.block_barrier(block, place);
            if let Some(block) = &self.blocks[block as usize] {
                all.join(&block.sync.since_start());
            }
        }
        for &(block, _) in places {
            if let Some(block) = &mut self.blocks[block as usize] {
                block.sync.meets(&all);
            }
        }
    }

    pub(super) fn warp_barrier(&mut self, block: u32, warp: u32) {
        if let Some(block) = &mut self.blocks[block as usize] {
            block.sync.warp_barrier(warp);
        }
    }

    /// The remaining finding once the launch has ended.
    pub(super) fn finish(self) -> Option<String> {
        self.held.map(|(finding, _)| finding.describe("a thread"))
    }

    /// An access of a thread is about to happen.
    fn access(&mut self, who: Who, at: u64, bytes: u64, kind: Kind, place: usize) -> Result<(), Finding> {
        let target = self.locate(who, at, bytes, kind)?;
        if let Target::Free = target {
            return Ok(());
        }
        if kind.reads() {
            self.initialised(who, target, at, bytes, kind)?;
        }
        // The memory may be another block's than the thread.
        let owner = if let Target::Shared(owner) = target { self.blocks[owner as usize].take() } else { None };
        let raced = self.order(who, owner, (at, bytes), kind, place)?;
        raced.map_err(|race| self.race(who, target, (at, bytes), kind, race))?;
        if kind.writes() {
            self.written(who, target, at, bytes, kind)?;
        }
        Ok(())
    }

    /// Takes note of an access to the memory of `owner`, which gets back to its place, or of the device.
    fn order(
        &mut self,
        who: Who,
        owner: Option<Box<BlockWatch>>,
        bytes: (u64, u64),
        kind: Kind,
        place: usize,
    ) -> Result<Result<(), Race>, Finding> {
        let place = compress(place);
        let Some(mut owner) = owner else {
            let block = self.blocks[who.block as usize].as_mut().ok_or_else(|| gone(who))?;
            return Ok(self.shadow.access(&mut block.sync, who, bytes, kind, place));
        };
        let number = owner.sync.block() as usize;
        let raced = if number == who.block as usize {
            owner.shadow.access(&mut owner.sync, who, bytes, kind, place)
        } else {
            let block = self.blocks[who.block as usize].as_mut().ok_or_else(|| gone(who))?;
            owner.shadow.access(&mut block.sync, who, bytes, kind, place)
        };
        self.blocks[number] = Some(owner);
        Ok(raced)
    }

    /// The block of this cluster in whose shared memory an access lies.
    fn owner(&self, who: Who, inside: impl Fn(u64, u64) -> bool) -> Option<u32> {
        let cluster = self.kernel.cluster;
        let first = who.block / cluster * cluster;
        let holds = |&block: &u32| {
            let block = self.blocks.get(block as usize).and_then(Option::as_ref);
            block.is_some_and(|block| inside(block.shared, block.bytes.len() as u64))
        };
        (first..first + cluster).find(holds)
    }

    /// The bytes of shared memory of an access that lies in that of `owner`.
    fn shared_bytes(&mut self, owner: u32, at: u64, bytes: u64) -> Option<&mut [Byte]> {
        let block = self.blocks[owner as usize].as_mut()?;
        let start = (at - block.shared) as usize;
        block.bytes.get_mut(start..start + bytes as usize)
    }

    fn block(&self, who: Who) -> Result<&BlockWatch, Finding> {
        self.blocks[who.block as usize].as_deref().ok_or_else(|| gone(who))
    }

    /// Where an access goes, if it may go there.
    fn locate(&self, who: Who, at: u64, bytes: u64, kind: Kind) -> Result<Target, Finding> {
        let block = self.block(who)?;
        let inside = |start: u64, length: u64| at >= start && at - start <= length && bytes <= length - (at - start);
        if let Some(owner) = self.owner(who, inside) {
            return Ok(Target::Shared(owner));
        }
        if let Some(found) = self.memory.find(at).filter(|found| inside(found.start, found.bytes as u64)) {
            return Ok(Target::Device(found));
        }
        if inside(block.warps.start, block.warps.end - block.warps.start) {
            return Ok(Target::Free);
        }
        let read_only = inside(self.params.as_ptr() as u64, size_of_val(self.params) as u64) || {
            // SAFETY: both only return a constant.
            let (start, end) = unsafe { (emulator_binary_start() as u64, emulator_binary_end() as u64) };
            start != 0 && inside(start, end.saturating_sub(start))
        };
        match (read_only, kind) {
            (true, Kind::Read) => Ok(Target::Free),
            (true, _) => Err(self.finding(who, "write to constant memory", at, bytes, kind)),
            (false, _) => Err(self.finding(who, "out of bounds", at, bytes, kind)),
        }
    }

    /// Reads only what was written.
    fn initialised(&mut self, who: Who, target: Target, at: u64, bytes: u64, kind: Kind) -> Result<(), Finding> {
        let first = match target {
            Target::Free => None,
            Target::Device(found) => self.memory.first_unwritten(found, at, bytes),
            Target::Shared(owner) => {
                let states = self.shared_bytes(owner, at, bytes).unwrap_or_default();
                if states.contains(&Byte::Arriving) {
                    return Err(self.finding(who, NOT_WAITED_FOR, at, bytes, kind));
                }
                states.iter().position(|&byte| byte == Byte::Fresh).map(|n| at + n as u64)
            }
        };
        if let Some(first) = first.filter(|_| self.held.is_none()) {
            let finding = self.finding(who, "uninitialised read", first, at + bytes - first, kind);
            self.held = Some((finding, at..at + bytes));
        }
        Ok(())
    }

    fn written(&mut self, who: Who, target: Target, at: u64, bytes: u64, kind: Kind) -> Result<(), Finding> {
        match target {
            Target::Free => {}
            Target::Device(found) => self.memory.mark_written(found, at, bytes),
            Target::Shared(owner) => {
                let states = self.shared_bytes(owner, at, bytes).unwrap_or_default();
                if states.contains(&Byte::Arriving) {
                    return Err(self.finding(who, NOT_WAITED_FOR, at, bytes, kind));
                }
                states.fill(Byte::Written);
            }
        }
        Ok(())
    }

    /// An asynchronous copy begins: from now until it is waited for, nobody may touch where it goes, or write
    /// where it comes from.
    fn copy_begins(&mut self, who: Who, to: u64, from: u64, bytes: u64, place: usize) -> Result<(), Finding> {
        if from != 0 {
            self.access(who, from, bytes, Kind::Read, place)?;
        }
        self.access(who, to, bytes, Kind::Write, place)?;
        self.mark_shared(who, to, bytes, Byte::Arriving);
        Ok(())
    }

    /// It was waited for.
    fn copy_arrives(&mut self, who: Who, to: u64, from: u64, bytes: u64, place: usize) -> Result<(), Finding> {
        self.mark_shared(who, to, bytes, Byte::Fresh);
        if from != 0 {
            self.access(who, from, bytes, Kind::Read, place)?;
        }
        self.access(who, to, bytes, Kind::Write, place)
    }

    fn mark_shared(&mut self, who: Who, at: u64, bytes: u64, mark: Byte) {
        let inside = |start: u64, length: u64| at >= start && at - start + bytes <= length;
        let owner = self.owner(who, inside);
        if let Some(states) = owner.and_then(|owner| self.shared_bytes(owner, at, bytes)) {
            states.fill(mark);
        }
    }

    /// Two accesses that nothing orders.
    fn race(&mut self, who: Who, target: Target, (at, bytes): (u64, u64), kind: Kind, race: Race) -> Finding {
        // The same mistake, seen from its other end.
        if self.held.as_ref().is_some_and(|(_, held)| held.contains(&race.at)) {
            self.held = None;
        }
        let last_barrier = self.block(who).ok().and_then(|block| block.sync.last_barrier);
        let barrier = match (race.who.block == who.block, last_barrier) {
            (false, _) => "; no release and acquire lie between".into(),
            (true, None) => "; the block met at no barrier before".into(),
            (true, Some(place)) => format!("; the block last met in {}", place.describe()),
        };
        let scope = match target {
            Target::Shared(_) => "shared",
            _ => "device",
        };
        let what = format!(
            "data race in {scope} memory: thread {} of block {} {} {bytes} bytes of {}{{here}}; thread {} of block {} {} there{{there}}{barrier}",
            who.thread,
            self.block_name(who.block),
            kind.verb(),
            self.name(who, at),
            race.who.thread,
            self.block_name(race.who.block),
            race.verb,
        );
        Finding::with(what, Some(expand(race.place)))
    }

    /// `problem`, and which access it is of.
    fn finding(&self, who: Who, problem: &str, at: u64, bytes: u64, kind: Kind) -> Finding {
        let barrier = self.block(who).ok().and_then(|block| block.sync.last_barrier);
        let barrier = barrier.map(|place| format!("; the block last met in {}", place.describe())).unwrap_or_default();
        let what = format!(
            "{problem}: thread {} of block {} {} {bytes} bytes of {}{{here}}{barrier}",
            who.thread,
            self.block_name(who.block),
            kind.verb(),
            self.name(who, at),
        );
        Finding::with(what, None)
    }

    fn block_name(&self, block: u32) -> String {
        let [x, y, _] = self.grid;
        format!("({}, {}, {})", block % x, block / x % y, block / x / y)
    }

    /// Where an address lies, in words.
    fn name(&self, who: Who, at: u64) -> String {
        let inside = |start: u64, length: u64| at >= start && at - start < length;
        if let Some(peer) = self.owner(who, inside).filter(|&owner| owner != who.block)
            && let Ok(block) = self.block(Who { block: peer, ..who })
        {
            return format!("shared memory + {} of block {}", at - block.shared, self.block_name(peer));
        }
        let below = self.memory.find(at);
        let beyond = |start: u64, bytes: u64| start.saturating_sub(at).max(at.saturating_sub(start + bytes.max(1) - 1));
        let known = below.into_iter().chain(self.memory.find_behind(at));
        let nearest = known.map(|found| beyond(found.start, found.bytes as u64)).min().unwrap_or(u64::MAX);
        if let Ok(block) = self.block(who)
            && beyond(block.shared, block.bytes.len() as u64) < nearest
        {
            let length = block.bytes.len() as u64;
            // Misses land nearby, and nothing else of a kernel's does.
            if at.wrapping_sub(block.shared).wrapping_add(1 << 12) < length + (2 << 12) {
                return format!("shared memory + {} (of {length} bytes)", at.wrapping_sub(block.shared) as i64);
            }
        }
        if let Some(found) = below.filter(|found| at - found.start <= found.bytes as u64 + (1 << 20)) {
            let behind = self.memory.find_behind(at).filter(|next| {
                next.start - at < (at - found.start).saturating_sub(found.bytes as u64) && next.start - at < 256
            });
            let found = behind.unwrap_or(found);
            let offset = at.wrapping_sub(found.start) as i64;
            return format!("{} + {offset} (of {} bytes)", self.allocation_name(found), found.bytes);
        }
        if let Some(next) = self.memory.find_behind(at).filter(|next| next.start - at < 1 << 12) {
            return format!("{} - {} (of {} bytes)", self.allocation_name(next), next.start - at, next.bytes);
        }
        format!("{at:#x}, which is no memory of the device")
    }

    /// The field of the params that points there.
    fn allocation_name(&self, found: Found) -> String {
        let params: &[u8] = bytemuck::cast_slice(self.params);
        let points = |&&(_, offset): &&(&str, usize)| {
            let pointer =
                params.get(offset..offset + 8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_ne_bytes);
            pointer.is_some_and(|at| at >= found.start && at - found.start < found.bytes.max(1) as u64)
        };
        match self.kernel.emulated.pointers.iter().find(points) {
            Some((field, _)) => format!("the memory of `{field}`"),
            None if found.host => "the host's words".into(),
            None => format!("the allocation at {:#x}", found.start),
        }
    }
}

/// A thread that runs although its block does not: a mistake of the emulator.
fn gone(who: Who) -> Finding {
    Finding::here(format!("block {} is not under way", who.block))
}

/// Places in the host's code, as their distances from one of them.
fn compress(place: usize) -> u32 {
    place.wrapping_sub(emulator_access as *const () as usize) as u32
}

fn expand(place: u32) -> usize {
    (emulator_access as *const () as usize).wrapping_add(place as i32 as isize as usize)
}

/// Does something with the launch's watch on behalf of the running thread, which ends here if that fails.
fn with_watch(work: impl FnOnce(&mut Watch<'_>, Who) -> Result<(), Finding>) {
    let context = fiber::current();
    if context.is_null() {
        return;
    }
    // SAFETY: a thread runs, so its context lives.
    let who = unsafe { Who { block: (*context).number, thread: (*context).thread.x } };
    with_watch_as(who, work);
}

/// The same on behalf of another thread of the launch.
fn with_watch_as(who: Who, work: impl FnOnce(&mut Watch<'_>, Who) -> Result<(), Finding>) {
    // SAFETY: a thread runs, so its context lives; the watch of a checked launch outlives all of its threads.
    let watch =
        unsafe { fiber::current().as_ref().and_then(|context| context.watch.cast::<RefCell<Watch<'_>>>().as_ref()) };
    let Some(watch) = watch else { return };
    let result = work(&mut watch.borrow_mut(), who);
    if let Err(finding) = result {
        fiber::fault(finding);
    }
}

/// Called by checked kernels before an access.
#[unsafe(no_mangle)]
extern "C" fn emulator_access(at: *const c_void, bytes: u64, kind: c_int, place: *const c_void) {
    let kind = if kind == 0 { Kind::Read } else { Kind::Write };
    with_watch(|watch, who| {
        let inside = |start: u64, length: u64| at as u64 >= start && at as u64 - start < length;
        if watch.owner(who, inside).is_some_and(|owner| owner != who.block) {
            return Err(watch.finding(who, "access to another block's memory", at as u64, bytes, kind));
        }
        watch.access(who, at as u64, bytes, kind, place as usize)
    });
}

/// Called before an atomic operation: bits of `kind` are 1 for loads and 2 for stores, `order` is C++'s.
#[unsafe(no_mangle)]
extern "C" fn emulator_atomic(at: *const c_void, bytes: u64, kind: c_int, order: c_int, place: *const c_void) {
    let order = Order { acquire: matches!(order, 1 | 2 | 4 | 5), release: matches!(order, 3..=5) };
    let kind = Kind::Atomic { loads: kind & 1 != 0, stores: kind & 2 != 0, order };
    with_watch(|watch, who| watch.access(who, at as u64, bytes, kind, place as usize));
}

/// Called at a fence of the device's.
#[unsafe(no_mangle)]
extern "C" fn emulator_fence() {
    with_watch(|watch, who| {
        if let Some(block) = &mut watch.blocks[who.block as usize] {
            block.sync.fence(who);
        }
        Ok(())
    });
}

/// Called when an asynchronous copy is issued; zeros are copied where `from` is null.
#[unsafe(no_mangle)]
extern "C" fn emulator_copy_begins(to: *const c_void, from: *const c_void, bytes: u64, place: *const c_void) {
    with_watch(|watch, who| watch.copy_begins(who, to as u64, from as u64, bytes, place as usize));
}

/// Called when it is waited for.
#[unsafe(no_mangle)]
extern "C" fn emulator_copy_arrives(to: *const c_void, from: *const c_void, bytes: u64, place: *const c_void) {
    with_watch(|watch, who| watch.copy_arrives(who, to as u64, from as u64, bytes, place as usize));
}

/// Called when a line of a box arrives that this thread began to copy: `bytes` of it from the matrix, the rest zeros.
#[unsafe(no_mangle)]
extern "C" fn emulator_box_line_arrives(
    block: c_uint,
    thread: c_uint,
    to: *const c_void,
    from: *const c_void,
    bytes: u64,
    place: *const c_void,
) {
    let place = place as usize;
    with_watch_as(Who { block, thread }, |watch, who| {
        if bytes > 0 {
            watch.access(who, from as u64, bytes, Kind::Read, place)?;
        }
        watch.copy_arrives(who, to as u64, 0, BOX_LINE, place)
    });
}

/// Called when the whole box is there, which its barrier then says.
#[unsafe(no_mangle)]
extern "C" fn emulator_box_arrives(block: c_uint, thread: c_uint, barrier: *const c_void, place: *const c_void) {
    let order = Order { acquire: false, release: true };
    let kind = Kind::Atomic { loads: true, stores: true, order };
    with_watch_as(Who { block, thread }, |watch, who| watch.access(who, barrier as u64, 4, kind, place as usize));
}
