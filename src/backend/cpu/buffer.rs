//! Memory of activations. A buffer that is dropped waits to be used again, because fresh pages of a large allocation cost
//! more than what is computed into them: a vocoder makes a hundred tensors of the same few sizes.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

/// Buffers that wait. Small ones are the allocator's business.
static WAITING: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());
/// Most buffers that wait, and the elements of the smallest (256 KiB) and of all of them (256 MiB).
const MOST: usize = 16;
const SMALLEST: usize = 1 << 16;
const MOST_ELEMENTS: usize = 1 << 26;

/// A vector whose memory is kept for the next one.
#[derive(Debug)]
pub(super) struct Buffer(Vec<f32>);

impl Buffer {
    /// `len` elements of any value: for results that are written whole.
    pub fn any(len: usize) -> Buffer {
        if len >= SMALLEST {
            let mut waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner);
            // The tightest fit, and never one more than twice as large as needed.
            let fits = |buffer: &Vec<f32>| (len..=2 * len).contains(&buffer.len());
            let best = (0..waiting.len()).filter(|&i| fits(&waiting[i])).min_by_key(|&i| waiting[i].len());
            if let Some(index) = best {
                let mut values = waiting.swap_remove(index);
                values.truncate(len);
                return Buffer(values);
            }
        }
        Buffer(vec![0.0; len])
    }
}

impl From<Vec<f32>> for Buffer {
    fn from(values: Vec<f32>) -> Buffer {
        Buffer(values)
    }
}

impl Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.0
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.0.len() < SMALLEST {
            return;
        }
        let mut waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner);
        let held: usize = waiting.iter().map(Vec::len).sum();
        if waiting.len() < MOST && held + self.0.len() <= MOST_ELEMENTS {
            waiting.push(std::mem::take(&mut self.0));
        }
    }
}
