//! Measured peak throughput of a device: bytes a second of a copy, and operations a second of the tensor cores through
//! mma.sync (kernels/peak.cu).

use super::driver::Launch;
use super::kernels::{self, PeakParams};
use super::{Cuda, Layout, int};
use crate::backend::Peaks;
use crate::tensor::DType;
use crate::{Error, Result};

/// Runs of which the fastest counts.
const RUNS: usize = 5;
/// Operations of one repetition of a thread's warp, for each warp: 16 products of 16 x 8 x 16.
const FLOPS: f64 = 16.0 * 2.0 * 16.0 * 8.0 * 16.0;
const THREADS: usize = 256;

impl Cuda {
    /// Measured peaks, with a copy of 1 GiB and some milliseconds of products. On the emulator, whose clock measures the host,
    /// with less.
    pub fn peaks(&self) -> Result<Peaks> {
        if self.is_emulated() { self.peaks_of(1 << 20, 4) } else { self.peaks_of(1 << 30, 4096) }
    }

    /// Measures with a copy of `bytes` and with `repeats` rounds of products in every warp.
    fn peaks_of(&self, bytes: usize, repeats: usize) -> Result<Peaks> {
        let words = bytes / size_of::<f32>();
        let from = self.empty([1, words], DType::F32, Layout::Rows)?;
        let to = self.empty([1, words], DType::F32, Layout::Rows)?;
        let copied = words * size_of::<f32>();
        // SAFETY: both tensors hold as many bytes.
        unsafe { self.stream.memset(from.pointer(), 0x3c, copied)? };
        // SAFETY: as above.
        let copy = self.fastest(&|| unsafe { self.stream.copy(to.pointer(), from.pointer(), copied) })?;
        Ok(Peaks { bytes: 2.0 * copied as f64 / copy, flops: self.operations(repeats)? })
    }

    /// Measured operations a second of the tensor cores, in bf16.
    pub fn peak_operations(&self) -> Result<f64> {
        self.operations(if self.is_emulated() { 4 } else { 4096 })
    }

    /// Measures with `repeats` rounds of products in every warp.
    fn operations(&self, repeats: usize) -> Result<f64> {
        let blocks = 2 * self.stream.properties().multiprocessors;
        let y = self.empty([blocks, THREADS], DType::F32, Layout::Rows)?;
        let params = PeakParams { y: y.pointer(), repeats: int("peak", repeats)?, unused: 0 };
        // SAFETY: y holds a value for each thread of each block.
        let product =
            self.fastest(&|| unsafe { self.launch(&kernels::PEAK_FORWARD_BF16, Launch::blocks(blocks), params) })?;
        let expected = (repeats as f64 * 16.0 * 4.0 * 16.0) as f32;
        let sums = self.get(&y)?;
        if sums.iter().any(|&sum| sum != expected) {
            return Err(Error::shape("peak", "the tensor cores added up wrongly"));
        }
        Ok(FLOPS * (repeats * blocks * THREADS / 32) as f64 / product)
    }

    /// True if the host runs the kernels.
    pub fn is_emulated(&self) -> bool {
        #[cfg(feature = "emulator")]
        return self.stream.driver().emulator().is_some();
        #[cfg(not(feature = "emulator"))]
        false
    }

    fn get(&self, x: &super::Tensor) -> Result<Vec<f32>> {
        crate::backend::Device::download(self, x)
    }

    /// Seconds of the fastest run.
    fn fastest(&self, run: &dyn Fn() -> Result<()>) -> Result<f64> {
        let mut min = f64::INFINITY;
        for _ in 0..RUNS {
            let start = self.stream.record_event()?;
            run()?;
            let end = self.stream.record_event()?;
            min = min.min(f64::from(self.stream.elapsed(&start, &end)?) * 1e-3);
        }
        Ok(min)
    }
}
