//! Order of memory accesses: by barriers of a warp, a block or a cluster, and between any threads by what one released
//! and another acquired. Two accesses to a byte that are not ordered, of which one writes and not both are atomic, race.
//!
//! Every block has a time that moves on at each of its barriers and releases. An access is known by its thread and the
//! time it was made at; what a thread has seen is known by such times, per block, per warp and per thread.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::fiber::{Place, WARP};

/// Threads of a block, at most.
const MAX_THREADS: u32 = 1024;
/// Blocks of a launch, at most.
pub(super) const MAX_BLOCKS: usize = 1 << 21;
/// Bytes of memory whose histories lie together.
const PAGE: u64 = 64;
/// Bytes that share one history until something touches less of them.
const COARSEST: u64 = 4;

/// A thread of the grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Who {
    pub block: u32,
    pub thread: u32,
}

impl Who {
    fn warp(self) -> u32 {
        self.thread / WARP as u32
    }

    /// Never 0, which stands for nobody.
    fn pack(self) -> u32 {
        self.block * MAX_THREADS + self.thread + 1
    }

    fn unpack(packed: u32) -> Who {
        Who { block: (packed - 1) / MAX_THREADS, thread: (packed - 1) % MAX_THREADS }
    }
}

/// An access to a byte: thread, time, and place in the host's code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Access {
    who: u32,
    time: u32,
    place: u32,
}

/// The accesses of one kind since the last write that are needed to know whether any of all is not ordered before a later
/// one: the last; the last by another thread than that; by another warp; by another block.
#[derive(Clone, Copy, Default)]
struct Recent([Access; 4]);

impl Recent {
    fn add(&mut self, access: Access) {
        let last = self.0[0];
        self.0[0] = access;
        if last.who == access.who || last.who == 0 {
            return;
        }
        let (before, now) = (Who::unpack(last.who), Who::unpack(access.who));
        self.0[1] = last;
        if before.block != now.block || before.warp() != now.warp() {
            self.0[2] = last;
        }
        if before.block != now.block {
            self.0[3] = last;
        }
    }
}

/// Access history of a few bytes that are always accessed together.
#[derive(Clone, Copy, Default)]
struct History {
    write: Access,
    reads: Recent,
}

/// The histories of `PAGE` bytes, each of as many bytes as `grain` says.
struct Page {
    grain: u64,
    histories: Box<[History]>,
}

impl Default for Page {
    fn default() -> Page {
        Page { grain: COARSEST, histories: vec![History::default(); (PAGE / COARSEST) as usize].into() }
    }
}

impl Page {
    /// The histories of these bytes of the page, alone.
    fn of(&mut self, from: u64, until: u64) -> &mut [History] {
        // The lowest bit that is set in either.
        let grain = 1 << (from | until | PAGE).trailing_zeros();
        if grain < self.grain {
            let copies = (self.grain / grain) as usize;
            self.histories = self.histories.iter().flat_map(|&history| std::iter::repeat_n(history, copies)).collect();
            self.grain = grain;
        }
        &mut self.histories[(from / self.grain) as usize..(until / self.grain) as usize]
    }
}

/// Access history of a word used by atomic operations.
#[derive(Default)]
struct Word {
    loads: Recent,
    stores: Recent,
    released: Clock,
}

/// How an access touches memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    /// A load, a store, or both in one operation.
    Atomic {
        loads: bool,
        stores: bool,
        order: Order,
    },
}

/// Memory order of an atomic operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Order {
    pub acquire: bool,
    pub release: bool,
}

impl Kind {
    pub(super) fn reads(self) -> bool {
        matches!(self, Kind::Read | Kind::Atomic { loads: true, .. })
    }

    pub(super) fn writes(self) -> bool {
        matches!(self, Kind::Write | Kind::Atomic { stores: true, .. })
    }

    /// For messages.
    pub(super) fn verb(self) -> &'static str {
        match self {
            Kind::Read => "reads",
            Kind::Write => "writes",
            Kind::Atomic { .. } => "atomically accesses",
        }
    }
}

/// An earlier access that races with a later one.
pub(super) struct Race {
    pub at: u64,
    pub who: Who,
    pub place: u32,
    /// The access as a verb.
    pub verb: &'static str,
}

/// Addresses differ in their low bits; that is all the tables need.
#[derive(Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(u64::from(byte)));
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

type Table<V> = HashMap<u64, V, BuildHasherDefault<Spread>>;

/// Times up to which accesses are seen.
#[derive(Clone, Default)]
pub(super) struct Clock {
    /// Clocks of all threads of a block, by block.
    blocks: Vec<u32>,
    /// Clocks of a warp or a thread, where they are ahead of their block's.
    parts: Table<u32>,
}

impl Clock {
    fn is_empty(&self) -> bool {
        self.blocks.is_empty() && self.parts.is_empty()
    }

    fn part(who: Who, whole_warp: bool) -> u64 {
        let thread = if whole_warp { MAX_THREADS + who.warp() } else { who.thread };
        u64::from(who.block) << 32 | u64::from(thread)
    }

    fn covers(&self, who: Who, time: u32) -> bool {
        let part = |whole_warp| self.parts.get(&Clock::part(who, whole_warp)).is_some_and(|&until| time < until);
        self.blocks.get(who.block as usize).is_some_and(|&until| time < until)
            || (!self.parts.is_empty() && (part(true) || part(false)))
    }

    fn raise_block(&mut self, block: u32, until: u32) {
        let block = block as usize;
        if self.blocks.len() <= block {
            self.blocks.resize(block + 1, 0);
        }
        self.blocks[block] = self.blocks[block].max(until);
    }

    fn raise(&mut self, part: u64, until: u32) {
        // What the whole block has done says more.
        if self.blocks.get((part >> 32) as usize).is_none_or(|&known| known < until) {
            let known = self.parts.entry(part).or_default();
            *known = until.max(*known);
        }
    }

    pub(super) fn join(&mut self, other: &Clock) {
        for (block, &until) in other.blocks.iter().enumerate().filter(|(_, until)| **until > 0) {
            self.raise_block(block as u32, until);
        }
        other.parts.iter().for_each(|(&part, &until)| self.raise(part, until));
        let blocks = &self.blocks;
        self.parts.retain(|part, until| blocks.get((*part >> 32) as usize).is_none_or(|known| known < until));
    }
}

/// Clocks that a thread has seen beyond its warp.
#[derive(Default)]
struct ThreadSync {
    acquired: Clock,
    /// Read from flags without acquiring; a fence does that later.
    loosely: Clock,
    /// Its clock at its last fence: released by later stores.
    fenced: Option<Clock>,
}

struct WarpSync {
    /// Time of its last barrier.
    barrier: u32,
    seen: Clock,
}

/// The order of the accesses of a block.
pub(super) struct BlockSync {
    block: u32,
    time: u32,
    /// Time of its last barrier.
    barrier: u32,
    pub last_barrier: Option<Place>,
    seen: Clock,
    warps: Vec<WarpSync>,
    threads: Vec<ThreadSync>,
}

impl BlockSync {
    pub(super) fn new(block: u32, threads: usize) -> BlockSync {
        BlockSync {
            block,
            time: 0,
            barrier: 0,
            last_barrier: None,
            seen: Clock::default(),
            warps: (0..threads.div_ceil(WARP)).map(|_| WarpSync { barrier: 0, seen: Clock::default() }).collect(),
            threads: (0..threads).map(|_| ThreadSync::default()).collect(),
        }
    }

    /// Its block's place in the grid.
    pub(super) fn block(&self) -> u32 {
        self.block
    }

    /// All threads of the block met.
    pub(super) fn block_barrier(&mut self, place: Place) {
        self.time += 1;
        self.barrier = self.time;
        self.last_barrier = Some(place);
        for thread in self.threads.iter_mut().filter(|thread| !thread.acquired.is_empty()) {
            self.seen.join(&std::mem::take(&mut thread.acquired));
        }
        for warp in self.warps.iter_mut().filter(|warp| !warp.seen.is_empty()) {
            self.seen.join(&std::mem::take(&mut warp.seen));
        }
    }

    /// All that its threads did and saw until their last barrier.
    pub(super) fn since_start(&self) -> Clock {
        let mut clock = self.seen.clone();
        clock.raise_block(self.block, self.barrier);
        clock
    }

    /// Other blocks of its cluster met it at its last barrier, after all of this.
    pub(super) fn meets(&mut self, others: &Clock) {
        self.seen.join(others);
    }

    /// All lanes of a warp met.
    pub(super) fn warp_barrier(&mut self, warp: u32) {
        self.time += 1;
        let warp_sync = &mut self.warps[warp as usize];
        warp_sync.barrier = self.time;
        for thread in self.threads.iter_mut().skip(warp as usize * WARP).take(WARP) {
            if !thread.acquired.is_empty() {
                warp_sync.seen.join(&std::mem::take(&mut thread.acquired));
            }
        }
    }

    fn ordered(&self, now: Who, earlier: Access) -> bool {
        let (who, time) = (Who::unpack(earlier.who), earlier.time);
        let warp = &self.warps[now.warp() as usize];
        if who.block == self.block
            && (who.thread == now.thread || time < self.barrier || (who.warp() == now.warp() && time < warp.barrier))
        {
            return true;
        }
        let thread = &self.threads[now.thread as usize];
        self.seen.covers(who, time) || warp.seen.covers(who, time) || thread.acquired.covers(who, time)
    }

    /// All that this thread did and saw until now; what it does from here on is later.
    fn release(&mut self, now: Who) -> Clock {
        let (warp, thread) = (&self.warps[now.warp() as usize], &self.threads[now.thread as usize]);
        let mut clock = self.seen.clone();
        clock.join(&warp.seen);
        clock.join(&thread.acquired);
        clock.raise_block(self.block, self.barrier);
        clock.raise(Clock::part(now, true), warp.barrier);
        clock.raise(Clock::part(now, false), self.time + 1);
        self.time += 1;
        clock
    }

    /// A fence of this thread: it acquires what it read loosely, and releases through later stores.
    pub(super) fn fence(&mut self, now: Who) {
        let thread = &mut self.threads[now.thread as usize];
        let loosely = std::mem::take(&mut thread.loosely);
        thread.acquired.join(&loosely);
        self.threads[now.thread as usize].fenced = Some(self.release(now));
    }

    /// Acquire and release effects of an atomic operation.
    fn atomic(&mut self, now: Who, word: &mut Word, loads: bool, stores: bool, order: Order) {
        if loads && !word.released.is_empty() {
            let thread = &mut self.threads[now.thread as usize];
            let to = if order.acquire { &mut thread.acquired } else { &mut thread.loosely };
            to.join(&word.released);
        }
        if stores {
            let published = match order.release {
                true => Some(self.release(now)),
                false => self.threads[now.thread as usize].fenced.clone(),
            };
            // An update hands on what was released before; a store does not.
            if !loads {
                word.released = Clock::default();
            }
            if let Some(published) = published {
                word.released.join(&published);
            }
        }
    }
}

/// The histories of a stretch of memory: the device's, or a block's.
#[derive(Default)]
pub(super) struct Shadow {
    pages: Table<Page>,
    words: Table<Word>,
}

impl Shadow {
    /// Takes note of an access, unless it races with an earlier one.
    pub(super) fn access(
        &mut self,
        sync: &mut BlockSync,
        now: Who,
        (at, bytes): (u64, u64),
        kind: Kind,
        place: u32,
    ) -> Result<(), Race> {
        let access = Access { who: now.pack(), time: sync.time, place };
        // Neighbouring bytes mostly have the same history.
        let mut known = Access::default();
        let mut check = |at: u64, earlier: Access, verb| {
            if earlier.who == 0 || earlier.who == access.who || earlier == known {
                return Ok(());
            }
            if !sync.ordered(now, earlier) {
                return Err(Race { at, who: Who::unpack(earlier.who), place: earlier.place, verb });
            }
            known = earlier;
            Ok(())
        };
        self.check_words(at, bytes, kind, &mut check)?;
        let (mut from, end) = (at, at + bytes);
        while from < end {
            let until = end.min((from / PAGE + 1) * PAGE);
            let page = self.pages.entry(from / PAGE).or_default();
            let start = from / PAGE * PAGE;
            let histories = page.of(from - start, until - start);
            let grain = (until - from) / histories.len() as u64;
            for (at, history) in (from..until).step_by(grain as usize).zip(histories) {
                check(at, history.write, "wrote")?;
                if kind.writes() {
                    history.reads.0.iter().try_for_each(|&read| check(at, read, "read"))?;
                }
                match kind {
                    Kind::Read => history.reads.add(access),
                    Kind::Write => *history = History { write: access, reads: Recent::default() },
                    Kind::Atomic { .. } => {}
                }
            }
            from = until;
        }
        if let Kind::Atomic { loads, stores, order } = kind {
            let word = self.words.entry(at / 4).or_default();
            if loads {
                word.loads.add(access);
            }
            if stores {
                word.stores.add(access);
            }
            sync.atomic(now, word, loads, stores, order);
        }
        Ok(())
    }

    /// Plain accesses against earlier atomic ones.
    fn check_words(
        &mut self,
        at: u64,
        bytes: u64,
        kind: Kind,
        check: &mut impl FnMut(u64, Access, &'static str) -> Result<(), Race>,
    ) -> Result<(), Race> {
        if self.words.is_empty() || matches!(kind, Kind::Atomic { .. }) {
            return Ok(());
        }
        for index in at / 4..(at + bytes).div_ceil(4) {
            let Some(word) = self.words.get_mut(&index) else { continue };
            word.stores.0.iter().try_for_each(|&store| check(at.max(index * 4), store, "atomically wrote"))?;
            if kind.writes() {
                word.loads.0.iter().try_for_each(|&load| check(at.max(index * 4), load, "atomically read"))?;
                (word.loads, word.stores) = Default::default();
            }
        }
        Ok(())
    }
}
