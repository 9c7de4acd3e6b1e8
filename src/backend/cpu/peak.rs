//! Measured peak throughput of this processor: multiply-adds that never leave the registers, and a read of more than the
//! caches hold. No product or stage can be faster, other than by needing fewer operations or by being in a cache.

use std::time::Instant;

use rayon::prelude::*;

use super::Cpu;
use super::simd::{Simd, dispatch, prefetch_ahead};
use crate::backend::Peaks;

/// Runs of which the fastest counts.
const RUNS: usize = 5;
/// Multiply-adds of 12 registers in each thread: some ten milliseconds.
const ROUNDS: usize = 1 << 22;
/// Values that are read: 512 MB, more than the last cache of most processors.
const ELEMENTS: usize = 1 << 27;
/// Sums at a time: more than the latency of a multiply-add can hide, fewer than 16 registers.
const CHAINS: usize = 12;

impl Cpu {
    /// Measured peaks of all threads together.
    pub fn peaks(&self) -> Peaks {
        self.peaks_of(ROUNDS, ELEMENTS)
    }

    /// Measures with `rounds` multiply-adds of 12 registers and a read of `elements` f32, shared by all threads.
    fn peaks_of(&self, rounds: usize, elements: usize) -> Peaks {
        let values = vec![1.0; elements];
        let threads = rayon::current_num_threads();
        let share = elements.div_ceil(threads).max(1);
        let mut sums = vec![0.0; threads];
        let read = fastest(|| {
            values.par_chunks(share).zip(&mut sums).for_each(|(values, sum)| read(values, sum));
        });
        Peaks { bytes: (elements * size_of::<f32>()) as f64 / read, flops: operations(rounds) }
    }

    /// Measured floating-point operations a second of all threads together.
    pub fn peak_operations(&self) -> f64 {
        operations(ROUNDS)
    }
}

/// Operations a second of `rounds` multiply-adds of 12 registers in every thread.
fn operations(rounds: usize) -> f64 {
    let mut done = vec![0; rayon::current_num_threads()];
    let multiplied = fastest(|| {
        done.par_iter_mut().with_max_len(1).for_each(|done| multiply(rounds, done));
    });
    2.0 * done.iter().sum::<usize>() as f64 / multiplied
}

/// Seconds of the fastest run.
fn fastest(mut run: impl FnMut()) -> f64 {
    let seconds = (0..RUNS).map(|_| {
        let clock = Instant::now();
        run();
        clock.elapsed().as_secs_f64()
    });
    seconds.fold(f64::INFINITY, f64::min)
}

dispatch! {
    /// `done` becomes the number of multiply-adds.
    fn multiply(rounds: usize, done: &mut usize) = multiply_body;
}

#[inline(always)]
fn multiply_body<S: Simd>(rounds: usize, done: &mut usize) {
    let mut acc = [S::splat(1.0); CHAINS];
    let (shrink, grow) = (S::splat(std::hint::black_box(0.5)), S::splat(std::hint::black_box(0.5)));
    for _ in 0..rounds {
        for acc in &mut acc {
            *acc = S::mul_add(*acc, shrink, grow);
        }
    }
    // Every lane is still 1.
    let lanes: f32 = acc.into_iter().map(|acc| S::sum(acc)).sum();
    *done = rounds * lanes as usize;
}

dispatch! {
    /// `sum` becomes the sum of all values.
    fn read(values: &[f32], sum: &mut f32) = read_body;
}

#[inline(always)]
fn read_body<S: Simd>(values: &[f32], sum: &mut f32) {
    let mut acc = [S::splat(0.0); 4];
    let blocks = values.chunks_exact(4 * S::N);
    *sum = blocks.remainder().iter().sum();
    for block in blocks {
        for (lanes, acc) in block.chunks_exact(S::N).zip(&mut acc) {
            prefetch_ahead(lanes);
            *acc = S::add(S::load(lanes), *acc);
        }
    }
    for acc in acc {
        *sum += S::sum(acc);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counted work was really done: a peak of work that the compiler left out would be no peak.
    #[test]
    fn counts_what_it_does() {
        let mut done = 0;
        multiply(1000, &mut done);
        assert_eq!(done % (1000 * CHAINS), 0);
        assert!((8..=16).contains(&(done / 1000 / CHAINS)));
        for len in [0, 1, 63, 64, 1000] {
            let mut sum = f32::NAN;
            read(&vec![1.0; len], &mut sum);
            assert_eq!(sum, len as f32);
        }
        for (rounds, elements) in [(100, 1), (10_000, 100_003)] {
            let Peaks { flops, bytes } = Cpu.peaks_of(rounds, elements);
            assert!(flops.is_finite() && flops > 0.0 && bytes.is_finite() && bytes > 0.0);
        }
    }
}
