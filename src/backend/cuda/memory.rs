//! Device memory that is used again. All work of a backend is in one stream, so memory that a tensor gave back may be handed
//! to the next without waiting: its writer runs after the last reader.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::driver::{DevicePtr, Stream};
use crate::Result;

/// Buffers are this many bytes or a power of two times 1, 1.25, 1.5 or 1.75.
const SMALLEST: usize = 512;

/// Free buffers of a device, by size.
pub(super) struct DevicePool {
    stream: Arc<dyn Stream>,
    state: Mutex<State>,
    poison: AtomicBool,
}

#[derive(Default)]
struct State {
    free: BTreeMap<usize, Vec<DevicePtr>>,
    allocations: u64,
    in_use: usize,
    peak: usize,
}

/// Device memory that goes back to its pool.
pub(super) struct Buffer {
    pool: Arc<DevicePool>,
    pointer: DevicePtr,
    bytes: usize,
}

impl Buffer {
    pub(super) fn pointer(&self) -> DevicePtr {
        self.pointer
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut state = self.pool.state();
        state.in_use -= self.bytes;
        state.free.entry(self.bytes).or_default().push(self.pointer);
    }
}

impl DevicePool {
    pub(super) fn new(stream: Arc<dyn Stream>) -> DevicePool {
        DevicePool { stream, state: Mutex::default(), poison: AtomicBool::new(false) }
    }

    /// A buffer of at least `bytes`.
    pub(super) fn take(self: &Arc<DevicePool>, bytes: usize) -> Result<Buffer> {
        // Under test, a buffer ends where its tensor does: beyond, there is nobody's memory.
        let poison = self.poisons();
        let bytes = if poison { bytes.max(1) } else { size_class(bytes) };
        let mut state = self.state();
        let pointer = match state.free.get_mut(&bytes).and_then(Vec::pop) {
            Some(pointer) => pointer,
            None => {
                state.allocations += 1;
                match self.stream.allocate(bytes) {
                    Ok(pointer) => pointer,
                    // Memory may be lying idle in other sizes.
                    Err(_) => {
                        self.release(&mut state);
                        self.stream.allocate(bytes)?
                    }
                }
            }
        };
        if poison {
            // SAFETY: the buffer has as many bytes and belongs to nobody yet.
            unsafe { self.stream.poison(pointer, bytes)? };
        }
        state.in_use += bytes;
        state.peak = state.peak.max(state.in_use);
        Ok(Buffer { pool: self.clone(), pointer, bytes })
    }

    pub(super) fn poison(&self, on: bool) {
        self.poison.store(on, Ordering::Relaxed);
    }

    pub(super) fn poisons(&self) -> bool {
        self.poison.load(Ordering::Relaxed)
    }

    /// Allocations made so far, and the high-water mark in bytes.
    pub(super) fn statistics(&self) -> (u64, usize) {
        let state = self.state();
        (state.allocations, state.peak)
    }

    fn release(&self, state: &mut State) {
        for pointer in std::mem::take(&mut state.free).into_values().flatten() {
            // SAFETY: free buffers are used by nobody.
            unsafe { self.stream.free(pointer) };
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for DevicePool {
    fn drop(&mut self) {
        let mut state = std::mem::take(&mut *self.state());
        self.release(&mut state);
    }
}

/// The smallest size of the pool that holds `bytes`.
fn size_class(bytes: usize) -> usize {
    let bytes = bytes.max(SMALLEST);
    let step = (bytes.next_power_of_two() / 8).max(SMALLEST / 4);
    bytes.next_multiple_of(step)
}
