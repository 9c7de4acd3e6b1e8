//! Reproducible random numbers, the same on every machine: [`Philox`], each number of which is computed from its place alone,
//! so that threads and devices make the same ones in any order, and [`Random`], a sequential generator for tests.

use rayon::prelude::*;

/// Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011): four 32-bit words from a
/// key, the seed, and a 128-bit counter, the stream above the index of the block. PyTorch's and cuRAND's layout of the counter.
#[derive(Clone, Copy, Debug)]
pub struct Philox {
    seed: u64,
    stream: u64,
}

/// Words of a block.
const BLOCK: usize = 4;
/// Words that one task makes.
const TASK: usize = 1 << 14;

impl Philox {
    /// Stream `stream` of a seed.
    pub fn new(seed: u64, stream: u64) -> Philox {
        Philox { seed, stream }
    }

    /// Words `4 * index..4 * index + 4` of the stream.
    pub fn block(&self, index: u64) -> [u32; BLOCK] {
        self.blocks::<1>(index).map(|[word]| word)
    }

    /// N blocks in a row: their first words, their second words, and so on. A caller that is compiled for vectors makes them
    /// side by side.
    #[inline(always)]
    pub fn blocks<const N: usize>(&self, first: u64) -> [[u32; N]; BLOCK] {
        // Loops, because a closure of `from_fn` or `map` is compiled without the features of its caller.
        let (mut a, mut b) = ([0; N], [0; N]);
        for n in 0..N {
            [a[n], b[n]] = halves(first.wrapping_add(n as u64));
        }
        let [stream, upper_stream] = halves(self.stream);
        let (mut c, mut d) = ([stream; N], [upper_stream; N]);
        let [mut key, mut other] = halves(self.seed);
        for _ in 0..10 {
            for n in 0..N {
                let [low, high] = halves(0xd251_1f53 * u64::from(a[n]));
                let [lower, upper] = halves(0xcd9e_8d57 * u64::from(c[n]));
                [a[n], b[n], c[n], d[n]] = [upper ^ b[n] ^ key, lower, high ^ d[n] ^ other, low];
            }
            key = key.wrapping_add(0x9e37_79b9);
            other = other.wrapping_add(0xbb67_ae85);
        }
        [a, b, c, d]
    }

    /// Word `index` of the stream.
    pub fn word(&self, index: u64) -> u32 {
        self.block(index / BLOCK as u64)[index as usize % BLOCK]
    }

    /// `of` each of the first `len` words, computed by all threads.
    pub fn map<T: Copy + Default + Send>(&self, len: usize, of: impl Fn(u32) -> T + Sync) -> Vec<T> {
        let mut values = vec![T::default(); len];
        values.par_chunks_mut(TASK).enumerate().for_each(|(task, values)| {
            for (n, values) in values.chunks_mut(BLOCK).enumerate() {
                let words = self.block((task * TASK / BLOCK + n) as u64);
                values.iter_mut().zip(words).for_each(|(value, word)| *value = of(word));
            }
        });
        values
    }

    /// The first `len` values in -1..1, of 24 bits each.
    pub fn values(&self, len: usize) -> Vec<f32> {
        self.map(len, |word| (word >> 8) as f32 / (1 << 23) as f32 - 1.0)
    }

    /// The first `len` whole numbers in 0..end.
    pub fn below(&self, len: usize, end: usize) -> Vec<usize> {
        self.map(len, |word| ((u64::from(word) * end as u64) >> 32) as usize)
    }
}

/// Low and high word.
#[inline(always)]
fn halves(v: u64) -> [u32; 2] {
    [v as u32, (v >> 32) as u32]
}

/// Xorshift random numbers, one after the other.
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// In -1..1.
    pub fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// `len` values in -1..1.
    pub fn values(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.unit()).collect()
    }

    /// `len` whole numbers from -8 to 8, whose sums and products are exact.
    pub fn whole(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.below(17) as f32 - 8.0).collect()
    }

    /// In 0..end.
    pub fn below(&mut self, end: usize) -> usize {
        (self.bits() % end as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Vectors of Random123 (kat_vectors, philox4x32 10).
    #[test]
    fn philox_gives_the_published_words() {
        let counter = |low: u64, high: u64, key: u64| Philox::new(key, high).block(low);
        assert_eq!(counter(0, 0, 0), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        let ones = u64::MAX;
        assert_eq!(counter(ones, ones, ones), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            counter(0x85a3_08d3_243f_6a88, 0x0370_7344_1319_8a2e, 0x299f_31d0_a409_3822),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn a_number_depends_on_its_place_alone() {
        let philox = Philox::new(7, 3);
        let len = 3 * TASK + 5;
        let words = philox.map(len, |word| word);
        for place in [0, 1, 3, 4, TASK - 1, TASK, len - 1] {
            assert_eq!(words[place], philox.word(place as u64), "{place}");
        }
        assert_eq!(philox.map(9, |word| word), words[..9]);
        assert_ne!(Philox::new(7, 4).map(9, |word| word), words[..9]);
    }

    #[test]
    fn values_fill_their_range() {
        let values = Philox::new(1, 0).values(1 << 16);
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        let square = values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32;
        // Five standard deviations: of a mean of 65,536 values of variance 1/3, and of their squares, 4/45.
        assert!(mean.abs() < 0.0113 && (square - 1.0 / 3.0).abs() < 0.0059, "{mean} {square}");
        assert!(values.iter().all(|v| (-1.0..1.0).contains(v)));
        let below = Philox::new(1, 1).below(1 << 16, 17);
        let counts = below.iter().fold([0; 17], |mut counts, &n| {
            counts[n] += 1;
            counts
        });
        assert!(counts.iter().all(|&count: &i32| (count - 3855).abs() < 302), "{counts:?}");
    }
}
