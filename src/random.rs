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

    /// The first `len` values of the standard normal distribution, one a word, within 6.4 of 0.
    pub fn normals(&self, len: usize) -> Vec<f32> {
        self.map(len, normal)
    }

    /// The first `len` whole numbers in 0..end.
    pub fn below(&self, len: usize, end: usize) -> Vec<usize> {
        self.map(len, |word| ((u64::from(word) * end as u64) >> 32) as usize)
    }
}

/// Quantile of the standard normal distribution at the middle of the word's part of 0..1 (Wichura, "Algorithm AS 241", 1988,
/// PPND7: right to 1e-7). Nothing but IEEE arithmetic, so the same on every machine.
fn normal(word: u32) -> f32 {
    let p = (f64::from(word) + 0.5) / 4_294_967_296.0;
    let q = p - 0.5;
    let polynomial = |x: f64, factors: [f64; 4]| factors.iter().rev().fold(0.0, |sum, factor| sum * x + factor);
    if q.abs() <= 0.425 {
        let r = 0.180625 - q * q;
        let above = [3.387_132_717_9, 50.434_271_938, 159.291_132_02, 59.109_374_720];
        let below = [1.0, 17.895_169_469, 78.757_757_664, 67.187_563_600];
        return (q * polynomial(r, above) / polynomial(r, below)) as f32;
    }
    let r = (-logarithm(p.min(1.0 - p))).sqrt() - 1.6;
    let above = [1.423_437_277_7, 2.756_815_390_0, 1.306_728_481_6, 0.170_238_211_03];
    let below = [1.0, 0.737_001_642_50, 0.120_211_329_75, 0.0];
    (polynomial(r, above) / polynomial(r, below)).copysign(q) as f32
}

/// Natural logarithm of a positive normal number, to 1e-14, in IEEE arithmetic.
fn logarithm(x: f64) -> f64 {
    let exponent = (x.to_bits() >> 52) as i32 - 1023;
    let mantissa = f64::from_bits(x.to_bits() & ((1 << 52) - 1) | 1023 << 52); // in 1..2
    // ln m = ln(4/3) + 2 artanh s with |s| <= 1/5.
    let s = (mantissa - 4.0 / 3.0) / (mantissa + 4.0 / 3.0);
    let series = (0..10).rev().fold(0.0, |sum, n| sum * s * s + 1.0 / f64::from(2 * n + 1));
    f64::from(exponent) * std::f64::consts::LN_2 + 0.287_682_072_451_780_9 + 2.0 * s * series
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

    /// Words and their quantiles by torch.special.ndtri.
    const NORMALS: [(u32, f64); 8] = [
        (0, -6.337_957_754_553_79),
        (1, -6.166_429_517_819_75),
        (1000, -5.039_851_125_968_712),
        (0x0100_0000, -2.660_067_458_579_972),
        (0x1333_3333, -1.439_531_470_445_015),
        (0x4000_0000, -0.674_489_749_829_738_4),
        (0x6000_0001, -0.318_639_363_043_356_4),
        (0x7fff_ffff, -2.918_099_372_916_623e-10),
    ];

    #[test]
    fn normals_are_quantiles() {
        for (word, quantile) in NORMALS {
            let found = f64::from(normal(word));
            assert!((found - quantile).abs() <= 2e-7 * quantile.abs(), "{word}: {found} {quantile}");
            assert_eq!(f64::from(normal(!word)), -found);
        }
        for x in [1.2e-10f64, 0.01, 0.0749, 0.5, 0.999, 1.0, 3.7] {
            assert!((logarithm(x) - x.ln()).abs() <= 1e-14 * x.ln().abs().max(1.0), "{x}");
        }
    }

    #[test]
    fn values_fill_their_range() {
        let values = Philox::new(1, 0).values(1 << 16);
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        let square = values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32;
        // Five standard deviations: of a mean of 65,536 values of variance 1/3, and of their squares, 4/45.
        assert!(mean.abs() < 0.0113 && (square - 1.0 / 3.0).abs() < 0.0059, "{mean} {square}");
        assert!(values.iter().all(|v| (-1.0..1.0).contains(v)));
        let normals = Philox::new(1, 2).normals(1 << 16);
        let moment = |power| normals.iter().map(|&v| f64::from(v).powi(power)).sum::<f64>() / f64::from(1 << 16);
        // Five standard deviations again: variances 1, 2 and 96.
        assert!(moment(1).abs() < 0.0196 && (moment(2) - 1.0).abs() < 0.0277 && (moment(4) - 3.0).abs() < 0.192);
        let below = Philox::new(1, 1).below(1 << 16, 17);
        let counts = below.iter().fold([0; 17], |mut counts, &n| {
            counts[n] += 1;
            counts
        });
        assert!(counts.iter().all(|&count: &i32| (count - 3855).abs() < 302), "{counts:?}");
    }
}
