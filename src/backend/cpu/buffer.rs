//! Memory of activations, and scratch that lies on cache lines. A buffer that nobody holds any more waits to be used again:
//! fresh pages of a large allocation cost more than what is computed into them, and a decode step makes a hundred small
//! tensors of the same few sizes.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rayon::prelude::*;

/// Buffers of one class of sizes.
struct BufferPool {
    state: Mutex<PoolState>,
    /// Limits of the waiting buffers, their number and elements, where more than that was never in use at the same time.
    max: usize,
    elements: usize,
}

/// Elements of the buffers in use now and at most so far, and the buffers that wait, the oldest first, with their elements.
struct PoolState {
    used: usize,
    peak: usize,
    waiting: Vec<Arc<Vec<f32>>>,
    held: usize,
}

/// The maps of a convolutional tower shrink by a factor of up to 4 from one layer to the next.
const MAX_FIT: usize = 4;
/// Elements from which a buffer is large.
const LARGE_FROM: usize = 1 << 16;
/// 256 MiB of large ones, 4 MiB of others.
static LARGE: BufferPool = BufferPool::new(16, 1 << 26);
static SMALL: BufferPool = BufferPool::new(48, 1 << 20);

impl BufferPool {
    const fn new(max: usize, elements: usize) -> BufferPool {
        let state = PoolState { used: 0, peak: 0, waiting: Vec::new(), held: 0 };
        BufferPool { state: Mutex::new(state), max, elements }
    }

    fn of(len: usize) -> &'static BufferPool {
        if len < LARGE_FROM { &SMALL } else { &LARGE }
    }

    fn state(&self) -> MutexGuard<'_, PoolState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tightest fit, and never one more than [`MAX_FIT`] times as large as needed.
    fn take(&self, len: usize) -> Option<Arc<Vec<f32>>> {
        let mut state = self.state();
        let waiting = &mut state.waiting;
        let fits = (0..waiting.len()).filter(|&i| (len..=MAX_FIT * len).contains(&waiting[i].capacity()));
        let buffer = fits.min_by_key(|&i| waiting[i].capacity()).map(|index| waiting.remove(index))?;
        state.held -= buffer.capacity();
        state.used += buffer.capacity();
        state.peak = state.peak.max(state.used);
        Some(buffer)
    }

    /// Counts a new buffer, for which waiting ones may have to go.
    fn add(&self, capacity: usize) {
        let mut state = self.state();
        state.used += capacity;
        self.trim(&mut state);
        state.peak = state.peak.max(state.used);
    }

    /// Keeps a buffer that nobody holds any more.
    fn keep(&self, buffer: Arc<Vec<f32>>) {
        let mut state = self.state();
        if state.waiting.capacity() == 0 {
            state.waiting.reserve_exact(self.max);
        }
        state.used -= buffer.capacity();
        state.held += buffer.capacity();
        state.waiting.push(buffer);
        self.trim(&mut state);
    }

    /// Makes room: what waits never lets memory grow beyond what was in use, as a training step's activations are, unless it is
    /// little.
    fn trim(&self, state: &mut PoolState) {
        while state.used + state.held > state.peak && (state.waiting.len() >= self.max || state.held > self.elements) {
            state.held -= state.waiting.remove(0).capacity();
        }
    }
}

/// A vector whose memory is kept for the next one. Clones share it; who writes to a shared one gets a copy.
#[derive(Clone, Debug)]
pub(super) struct Buffer {
    /// At least `len` values.
    values: Option<Arc<Vec<f32>>>,
    len: usize,
}

impl Buffer {
    /// `len` elements of any value: for results that are written whole.
    pub fn any(len: usize) -> Buffer {
        let Some(mut waited) = BufferPool::of(len).take(len) else { return vec![0.0; len].into() };
        if waited.len() < len {
            Arc::make_mut(&mut waited).resize(len, 0.0);
        }
        Buffer { values: Some(waited), len }
    }

    /// `len` zeros.
    pub fn zeros(len: usize) -> Buffer {
        let mut buffer = Buffer::any(len);
        buffer.fill(0.0);
        buffer
    }
}

impl From<Vec<f32>> for Buffer {
    fn from(values: Vec<f32>) -> Buffer {
        BufferPool::of(values.capacity()).add(values.capacity());
        Buffer { len: values.len(), values: Some(Arc::new(values)) }
    }
}

impl Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        self.values.as_deref().map_or(&[], |values| &values[..self.len])
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        if self.values.as_mut().is_some_and(|values| Arc::get_mut(values).is_none()) {
            *self = self.to_vec().into();
        }
        self.values.as_mut().and_then(Arc::get_mut).map_or(&mut [], |values| &mut values[..self.len])
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(mut values) = self.values.take() else { return };
        if Arc::get_mut(&mut values).is_some() {
            BufferPool::of(values.capacity()).keep(values);
        }
    }
}

/// Bytes of a cache line.
pub(super) const LINE: usize = 64;

/// Elements of a cache line.
const SPARE: usize = LINE / size_of::<f32>();

/// Scratch of a task: the thread's own, kept from task to task, since fresh pages would cost more than what is written there.
pub(super) type TaskScratch = [Vec<f32>; 2];

thread_local! {
    static SCRATCH: RefCell<TaskScratch> = RefCell::default();
}

/// Calls `run` with every number below `tasks`, on all threads. `run` must not start parallel work: a task that this thread takes
/// up meanwhile would find the scratch borrowed.
pub(super) fn for_each_task(tasks: usize, run: impl Fn(usize, &mut TaskScratch) + Sync) {
    (0..tasks).into_par_iter().for_each(|task| SCRATCH.with_borrow_mut(|scratch| run(task, scratch)));
}

/// `len` elements of any value that start where a cache line does; the same ones until a longer run is requested.
pub(super) fn grown(values: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if values.len() < len + SPARE {
        values.resize(len + SPARE, 0.0);
    }
    from_line(values, len)
}

/// Scratch for [`from_line`] of at most `len` elements.
pub(super) fn scratch(len: usize) -> Buffer {
    Buffer::any(len + SPARE)
}

/// `len` elements that start where the first cache line does.
pub(super) fn from_line(values: &mut [f32], len: usize) -> &mut [f32] {
    let start = values.as_ptr().align_offset(LINE).min(SPARE);
    &mut values[start..start + len]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Elements in use, waiting, and in use at most.
    fn sizes(pool: &BufferPool) -> [usize; 3] {
        let state = pool.state();
        [state.used, state.held, state.peak]
    }

    /// Waiting buffers stay within what was in use at the same time, however many they are; beyond it the limits hold.
    #[test]
    fn waiting_buffers_stay_within_the_peak() {
        let pool = BufferPool::new(2, 100);
        let buffers: Vec<_> = (0..6).map(|_| Arc::new(Vec::with_capacity(50))).collect();
        buffers.iter().for_each(|buffer| pool.add(buffer.capacity()));
        buffers.into_iter().for_each(|buffer| pool.keep(buffer));
        assert_eq!(sizes(&pool), [0, 300, 300]);
        assert!(pool.take(12).is_none() && pool.take(51).is_none());
        pool.add(250);
        assert_eq!(sizes(&pool), [250, 50, 300]);
        assert!(pool.take(40).is_some());
        assert_eq!(sizes(&pool), [300, 0, 300]);
    }
}
