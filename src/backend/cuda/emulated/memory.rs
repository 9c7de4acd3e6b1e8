//! Device memory of the emulator: allocations that begin as NaN and stand between guard words.

use std::collections::BTreeMap;

use super::device_error;
use crate::Result;
use crate::backend::cuda::driver::DevicePtr;

/// Bytes before and after every allocation that no kernel may touch.
const GUARD: usize = 256;
/// What they hold.
const GUARD_BYTE: u8 = 0xa5;
/// What memory holds before it is written: NaN in every float type.
const FRESH_BYTE: u8 = 0xff;

/// All allocations, by address.
pub(super) struct Memory {
    limit: usize,
    in_use: usize,
    allocations: BTreeMap<u64, Allocation>,
}

/// Guard, content, guard; in words so that addresses are aligned.
struct Allocation {
    words: Box<[Aligned]>,
    bytes: usize,
}

#[repr(C, align(256))]
#[derive(Clone, Copy)]
struct Aligned([u8; 256]);

impl Allocation {
    fn bytes_mut(&mut self) -> &mut [u8] {
        let bytes = self.words.len() * 256;
        // SAFETY: plain bytes, all initialised, exclusively borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.words.as_mut_ptr().cast(), bytes) }
    }

    fn guards_hold(&self) -> bool {
        let start = self.words.as_ptr().cast::<u8>();
        let total = self.words.len() * 256;
        let intact = |range: std::ops::Range<usize>| {
            // SAFETY: inside of the allocation; kernels that write here are over.
            range.into_iter().all(|at| unsafe { start.add(at).read() } == GUARD_BYTE)
        };
        intact(0..GUARD) && intact(GUARD + self.bytes..total)
    }
}

impl Memory {
    pub(super) fn new(limit: usize) -> Memory {
        Memory { limit, in_use: 0, allocations: BTreeMap::new() }
    }

    pub(super) fn in_use(&self) -> usize {
        self.in_use
    }

    pub(super) fn allocate(&mut self, bytes: usize) -> Result<DevicePtr> {
        if bytes > self.limit.saturating_sub(self.in_use) {
            return Err(device_error(format!(
                "out of memory: {bytes} bytes wanted, {} of {} in use",
                self.in_use, self.limit
            )));
        }
        let words = (bytes + 2 * GUARD).div_ceil(256);
        let mut allocation = Allocation { words: vec![Aligned([GUARD_BYTE; 256]); words].into(), bytes };
        allocation.bytes_mut()[GUARD..GUARD + bytes].fill(FRESH_BYTE);
        let address = allocation.words.as_ptr() as u64 + GUARD as u64;
        self.in_use += bytes;
        self.allocations.insert(address, allocation);
        Ok(DevicePtr(address))
    }

    pub(super) fn free(&mut self, pointer: DevicePtr) {
        if let Some(allocation) = self.allocations.remove(&pointer.0) {
            self.in_use -= allocation.bytes;
        }
    }

    /// The bytes at `pointer`, which may point into an allocation.
    fn range(&mut self, pointer: DevicePtr, bytes: usize) -> Result<&mut [u8]> {
        let outside = || device_error(format!("{bytes} bytes at {:#x} are not allocated", pointer.0));
        let (&start, allocation) = self.allocations.range_mut(..=pointer.0).next_back().ok_or_else(outside)?;
        let at = (pointer.0 - start) as usize;
        if at.checked_add(bytes).is_none_or(|end| end > allocation.bytes) {
            return Err(outside());
        }
        Ok(&mut allocation.bytes_mut()[GUARD + at..][..bytes])
    }

    pub(super) fn write(&mut self, to: DevicePtr, from: &[u8]) -> Result<()> {
        if from.is_empty() {
            return Ok(());
        }
        self.range(to, from.len())?.copy_from_slice(from);
        Ok(())
    }

    pub(super) fn read(&mut self, from: DevicePtr, to: &mut [u8]) -> Result<()> {
        if to.is_empty() {
            return Ok(());
        }
        to.copy_from_slice(self.range(from, to.len())?);
        Ok(())
    }

    pub(super) fn copy(&mut self, to: DevicePtr, from: DevicePtr, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let copied = self.range(from, bytes)?.to_vec();
        self.write(to, &copied)
    }

    /// Fails if something was written beside an allocation.
    pub(super) fn check_guards(&self) -> std::result::Result<(), String> {
        match self.allocations.iter().find(|(_, allocation)| !allocation.guards_hold()) {
            None => Ok(()),
            Some((address, allocation)) => Err(format!("wrote beside the {} bytes at {address:#x}", allocation.bytes)),
        }
    }
}
