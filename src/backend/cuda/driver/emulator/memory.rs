//! Device memory of the emulator: allocations that begin as NaN, stand between guard words, and know which of their bytes
//! were ever written.

use std::collections::BTreeMap;
use std::ops::Range;

use super::device_error;
use crate::Result;
use crate::backend::cuda::driver::DevicePtr;

/// Bytes before and after every allocation that no kernel may touch.
const GUARD: usize = 256;
/// Value of their bytes.
const GUARD_BYTE: u8 = 0xa5;
/// Value of fresh memory: NaN in every float type.
const FRESH_BYTE: u8 = 0xff;

/// All allocations, by address.
pub(super) struct Memory {
    limit: usize,
    in_use: usize,
    allocations: BTreeMap<u64, Allocation>,
    /// Memory of the host that kernels see: its bytes.
    host: BTreeMap<u64, usize>,
}

/// Guard, content, guard; in words so that addresses are aligned.
struct Allocation {
    words: Box<[Aligned]>,
    bytes: usize,
    written: Written,
}

#[repr(C, align(256))]
#[derive(Clone, Copy)]
struct Aligned([u8; 256]);

/// Bytes of an allocation that were written.
enum Written {
    Nothing,
    Everything,
    Some(Box<[bool]>),
}

/// Memory that a kernel may touch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub start: u64,
    pub bytes: usize,
    /// The host's memory, always written.
    pub host: bool,
}

impl Written {
    fn set(&mut self, range: Range<usize>, bytes: usize, written: bool) {
        if range.len() == bytes {
            *self = if written { Written::Everything } else { Written::Nothing };
            return;
        }
        match (&mut *self, written) {
            (Written::Everything, true) | (Written::Nothing, false) => {}
            (Written::Some(known), _) => known[range].fill(written),
            _ => {
                let mut known = vec![!written; bytes].into_boxed_slice();
                known[range].fill(written);
                *self = Written::Some(known);
            }
        }
    }

    fn first_unwritten(&self, range: Range<usize>) -> Option<usize> {
        match self {
            Written::Everything => None,
            Written::Nothing => Some(range.start).filter(|_| !range.is_empty()),
            Written::Some(known) => known[range.clone()].iter().position(|written| !written).map(|at| range.start + at),
        }
    }
}

impl Allocation {
    fn bytes_mut(&mut self) -> &mut [u8] {
        let bytes = self.words.len() * 256;
        // SAFETY: plain bytes, all initialised, exclusively borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.words.as_mut_ptr().cast(), bytes) }
    }

    fn guards_hold(&self) -> bool {
        let start = self.words.as_ptr().cast::<u8>();
        let total = self.words.len() * 256;
        let intact = |range: Range<usize>| {
            // SAFETY: inside of the allocation; kernels that write here are over.
            range.into_iter().all(|at| unsafe { start.add(at).read() } == GUARD_BYTE)
        };
        intact(0..GUARD) && intact(GUARD + self.bytes..total)
    }

    fn mend_guards(&mut self) {
        let end = GUARD + self.bytes;
        let bytes = self.bytes_mut();
        bytes[..GUARD].fill(GUARD_BYTE);
        bytes[end..].fill(GUARD_BYTE);
    }
}

impl Memory {
    pub(super) fn new(limit: usize) -> Memory {
        Memory { limit, in_use: 0, allocations: BTreeMap::new(), host: BTreeMap::new() }
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
        let words = vec![Aligned([GUARD_BYTE; 256]); words].into();
        let mut allocation = Allocation { words, bytes, written: Written::Nothing };
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

    /// Lets kernels see memory of the host, until it is hidden again.
    pub(super) fn show_host(&mut self, start: u64, bytes: usize) {
        self.host.insert(start, bytes);
    }

    pub(super) fn hide_host(&mut self, start: u64) {
        self.host.remove(&start);
    }

    /// The allocation, and where in it `pointer` points.
    fn locate(&mut self, pointer: DevicePtr, bytes: usize) -> Result<(&mut Allocation, usize)> {
        let outside = || device_error(format!("{bytes} bytes at {:#x} are not allocated", pointer.0));
        let (&start, allocation) = self.allocations.range_mut(..=pointer.0).next_back().ok_or_else(outside)?;
        let at = (pointer.0 - start) as usize;
        if at.checked_add(bytes).is_none_or(|end| end > allocation.bytes) {
            return Err(outside());
        }
        Ok((allocation, at))
    }

    pub(super) fn write(&mut self, to: DevicePtr, from: &[u8]) -> Result<()> {
        if from.is_empty() {
            return Ok(());
        }
        let (allocation, at) = self.locate(to, from.len())?;
        allocation.bytes_mut()[GUARD + at..][..from.len()].copy_from_slice(from);
        allocation.written.set(at..at + from.len(), allocation.bytes, true);
        Ok(())
    }

    pub(super) fn fill(&mut self, to: DevicePtr, byte: u8, bytes: usize) -> Result<()> {
        self.write(to, &vec![byte; bytes])
    }

    /// Makes bytes what they were when they were allocated.
    pub(super) fn poison(&mut self, to: DevicePtr, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let (allocation, at) = self.locate(to, bytes)?;
        allocation.bytes_mut()[GUARD + at..][..bytes].fill(FRESH_BYTE);
        allocation.written.set(at..at + bytes, allocation.bytes, false);
        Ok(())
    }

    pub(super) fn read(&mut self, from: DevicePtr, to: &mut [u8]) -> Result<()> {
        if to.is_empty() {
            return Ok(());
        }
        let (allocation, at) = self.locate(from, to.len())?;
        to.copy_from_slice(&allocation.bytes_mut()[GUARD + at..][..to.len()]);
        Ok(())
    }

    /// Copies bytes together with whether they were ever written.
    pub(super) fn copy(&mut self, to: DevicePtr, from: DevicePtr, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let (source, at) = self.locate(from, bytes)?;
        let copied = source.bytes_mut()[GUARD + at..][..bytes].to_vec();
        let holes: Vec<usize> = match source.written.first_unwritten(at..at + bytes) {
            None => Vec::new(),
            Some(first) => {
                (first..at + bytes).filter(|&byte| source.written.first_unwritten(byte..byte + 1).is_some()).collect()
            }
        };
        self.write(to, &copied)?;
        let (target, to) = self.locate(to, bytes)?;
        holes.into_iter().for_each(|hole| target.written.set(to + hole - at..to + hole - at + 1, target.bytes, false));
        Ok(())
    }

    /// The allocation that holds `at`, or ends or begins next to it; none if there is none below.
    pub(super) fn find(&self, at: u64) -> Option<Found> {
        let device =
            self.allocations.range(..=at).next_back().map(|(&start, a)| Found { start, bytes: a.bytes, host: false });
        let host = self.host.range(..=at).next_back().map(|(&start, &bytes)| Found { start, bytes, host: true });
        match (device, host) {
            (Some(device), Some(host)) => Some(if device.start > host.start { device } else { host }),
            (device, host) => device.or(host),
        }
    }

    /// The next allocation behind `at`.
    pub(super) fn find_behind(&self, at: u64) -> Option<Found> {
        self.allocations.range(at..).next().map(|(&start, a)| Found { start, bytes: a.bytes, host: false })
    }

    /// The first byte of a range inside of `found` that was never written.
    pub(super) fn first_unwritten(&self, found: Found, at: u64, bytes: u64) -> Option<u64> {
        let offset = (at - found.start) as usize;
        let allocation = self.allocations.get(&found.start)?;
        let first = allocation.written.first_unwritten(offset..offset + bytes as usize)?;
        Some(found.start + first as u64)
    }

    pub(super) fn mark_written(&mut self, found: Found, at: u64, bytes: u64) {
        let offset = (at - found.start) as usize;
        if let Some(allocation) = self.allocations.get_mut(&found.start) {
            allocation.written.set(offset..offset + bytes as usize, allocation.bytes, true);
        }
    }

    /// A kernel ran whose accesses nobody saw.
    pub(super) fn assume_written(&mut self) {
        self.allocations.values_mut().for_each(|allocation| allocation.written = Written::Everything);
    }

    /// Fails if a guard next to an allocation was overwritten; restores the guards.
    pub(super) fn check_guards(&mut self) -> std::result::Result<(), String> {
        let mut problem = Ok(());
        for (address, allocation) in &mut self.allocations {
            if !allocation.guards_hold() {
                allocation.mend_guards();
                problem = problem.and(Err(format!("wrote beside the {} bytes at {address:#x}", allocation.bytes)));
            }
        }
        problem
    }
}
