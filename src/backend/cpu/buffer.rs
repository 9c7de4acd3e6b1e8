//! Memory of activations, and scratch that lies on cache lines. A buffer that nobody holds any more waits to be used again:
//! fresh pages of a large allocation cost more than what is computed into them, and a decode step makes a hundred small
//! tensors of the same few sizes.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

/// Buffers that wait: at most `max`, of `elements` together.
struct BufferPool {
    waiting: Mutex<Vec<Arc<Vec<f32>>>>,
    max: usize,
    elements: usize,
}

/// Elements from which a buffer is large.
const LARGE_FROM: usize = 1 << 16;
/// 256 MiB of large ones, 4 MiB of others.
static LARGE: BufferPool = BufferPool { waiting: Mutex::new(Vec::new()), max: 16, elements: 1 << 26 };
static SMALL: BufferPool = BufferPool { waiting: Mutex::new(Vec::new()), max: 48, elements: 1 << 20 };

impl BufferPool {
    fn of(len: usize) -> &'static BufferPool {
        if len < LARGE_FROM { &SMALL } else { &LARGE }
    }

    /// The tightest fit, and never one more than twice as large as needed.
    fn take(&self, len: usize) -> Option<Arc<Vec<f32>>> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = (0..waiting.len()).filter(|&i| (len..=2 * len).contains(&waiting[i].capacity()));
        fits.min_by_key(|&i| waiting[i].capacity()).map(|index| waiting.remove(index))
    }

    /// Keeps a buffer; those that have waited longest make room.
    fn keep(&self, buffer: Arc<Vec<f32>>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.capacity() == 0 {
            waiting.reserve_exact(self.max);
        }
        waiting.push(buffer);
        let held = |waiting: &Vec<Arc<Vec<f32>>>| waiting.iter().map(|values| values.capacity()).sum::<usize>();
        while waiting.len() >= self.max || held(&waiting) > self.elements {
            waiting.remove(0);
        }
    }
}

/// A vector whose memory is kept for the next one. Clones share it; who writes to a shared one gets a copy.
#[derive(Clone, Debug)]
pub(super) struct Buffer(Option<Arc<Vec<f32>>>);

impl Buffer {
    /// `len` elements of any value: for results that are written whole.
    pub fn any(len: usize) -> Buffer {
        let Some(mut waited) = BufferPool::of(len).take(len) else { return vec![0.0; len].into() };
        Arc::make_mut(&mut waited).resize(len, 0.0);
        Buffer(Some(waited))
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
        Buffer(Some(Arc::new(values)))
    }
}

impl Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        self.0.as_deref().map_or(&[], Vec::as_slice)
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        self.0.as_mut().map_or(&mut [], |values| Arc::make_mut(values).as_mut_slice())
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(mut values) = self.0.take() else { return };
        if Arc::get_mut(&mut values).is_some() {
            BufferPool::of(values.capacity()).keep(values);
        }
    }
}

/// Bytes of a cache line.
pub(super) const LINE: usize = 64;

/// Elements of a cache line.
const SPARE: usize = LINE / size_of::<f32>();

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
