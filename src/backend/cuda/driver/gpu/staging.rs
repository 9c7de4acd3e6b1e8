//! Copies between the host's ordinary memory and the device, by way of pinned memory, which the device reads and writes
//! by itself while the host continues.

use std::sync::{Arc, LazyLock};
use std::thread::available_parallelism;

use cudarc::driver::sys;
use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::context::{Context, Pinned, RawStream, StreamEvent};
use crate::Result;
use crate::backend::cuda::driver::DevicePtr;

/// Bytes of a slot: enough that a copy takes longer than starting it.
const SLOT: usize = 4 << 20;
/// One is filled while the others are on their way.
const SLOTS: usize = 3;
/// Bytes that one thread of the host copies. A single one took about 1.2 ms for the 9.6 MB of a batch's pixels, and the device
/// waited (H200, training step at 86aee10). This size, and the two below, are estimates: not yet measured.
const PIECE: usize = 256 << 10;
/// From this many bytes on, a copy is shared by threads.
const SHARED_FROM: usize = 1 << 20;
/// Most threads that copy.
const MAX_COPIERS: usize = 4;
/// Copies begin at multiples of this.
const ALIGNMENT: usize = 256;

/// Threads that do nothing but copy; none where the system gives none. Those of the pool may be in the middle of an image or a
/// recording, and the device would wait for them. A thread of the pool that copies takes up other work of the pool while it
/// waits, with the stream's staging memory locked: that work must not copy to the same stream.
static COPIERS: LazyLock<Option<ThreadPool>> = LazyLock::new(|| {
    let threads = available_parallelism().map_or(1, usize::from).min(MAX_COPIERS);
    let pool = ThreadPoolBuilder::new().num_threads(threads).thread_name(|_| "im2sp-copy".into());
    if threads > 1 { pool.build().ok() } else { None }
});

/// To the device: slots that are used in turn. Small copies share one.
pub(super) struct Upload {
    slots: Vec<Slot>,
    current: usize,
    used: usize,
}

struct Slot {
    memory: Pinned,
    /// Where the last copy out of this slot ends.
    done: StreamEvent,
}

impl Upload {
    pub(super) fn new(context: &Arc<Context>) -> Result<Upload> {
        let slot = || Ok(Slot { memory: Pinned::new(context, SLOT)?, done: StreamEvent::new(context, false)? });
        Ok(Upload { slots: (0..SLOTS).map(|_| slot()).collect::<Result<_>>()?, current: 0, used: 0 })
    }

    /// Starts the copies.
    ///
    /// # Safety
    /// The range is allocated.
    pub(super) unsafe fn write(&mut self, stream: &RawStream, to: DevicePtr, mut from: &[u8]) -> Result<()> {
        let mut to = to;
        while !from.is_empty() {
            if self.used == SLOT {
                self.turn(stream)?;
            }
            let (part, rest) = from.split_at(from.len().min(SLOT - self.used));
            let memory = &mut self.slots[self.current].memory;
            let slot = &mut memory.bytes()[self.used..][..part.len()];
            match COPIERS.as_ref().filter(|_| part.len() >= SHARED_FROM) {
                None => slot.copy_from_slice(part),
                Some(copiers) => copiers.install(|| {
                    let pieces = slot.par_chunks_mut(PIECE).zip(part.par_chunks(PIECE));
                    pieces.for_each(|(to, from)| to.copy_from_slice(from));
                }),
            }
            let source = memory.address(self.used);
            self.used = (self.used + part.len()).next_multiple_of(ALIGNMENT);
            // SAFETY: the caller's promise; these bytes of the slot are left alone until its mark is passed.
            let result = unsafe { sys::cuMemcpyHtoDAsync_v2(to.0, source, part.len(), stream.raw) };
            stream.context.check("copying to the device", result)?;
            to = to.offset(part.len());
            from = rest;
        }
        Ok(())
    }

    /// Goes on to the next slot, which is free once its copies are done.
    fn turn(&mut self, stream: &RawStream) -> Result<()> {
        self.slots[self.current].done.record(stream)?;
        let next = (self.current + 1) % SLOTS;
        self.slots[next].done.wait()?;
        (self.current, self.used) = (next, 0);
        Ok(())
    }
}

/// From the device.
pub(super) struct Download {
    memory: Pinned,
}

impl Download {
    pub(super) fn new(context: &Arc<Context>) -> Result<Download> {
        Ok(Download { memory: Pinned::new(context, SLOT)? })
    }

    /// Copies after all work before it.
    ///
    /// # Safety
    /// The range is allocated.
    pub(super) unsafe fn read(&mut self, stream: &RawStream, from: DevicePtr, to: &mut [u8]) -> Result<()> {
        for (index, part) in to.chunks_mut(SLOT).enumerate() {
            let (target, source) = (self.memory.address(0), from.offset(index * SLOT));
            // SAFETY: the caller's promise; `part` is no longer than the pinned memory.
            let result = unsafe { sys::cuMemcpyDtoHAsync_v2(target, source.0, part.len(), stream.raw) };
            stream.context.check("copying from the device", result)?;
            stream.wait()?;
            part.copy_from_slice(&self.memory.bytes()[..part.len()]);
        }
        Ok(())
    }
}
