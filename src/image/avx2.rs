//! The loops over images that take most of the time, for processors with AVX2. Each gives the bytes of the plain form that
//! stands where it is called; where there is no AVX2 it does nothing and says so.

#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code, unused_variables))]

#[cfg(target_arch = "x86_64")]
mod jpeg;
#[cfg(target_arch = "x86_64")]
mod resize;

use super::jpeg::Block;

/// Pixels of a window that [`horizontal`] takes together, and the bytes that it reads for them.
pub const GROUP: usize = 4;
const GROUP_BYTES: usize = 16;
/// Windows that [`horizontal`] takes together.
pub const PIXELS: usize = 4;

/// Weights of [`GROUP`] pixels: their bits from 12 on, signed, then the lower 12. Products of bytes and either half, and sums of
/// them, are exact where 16-bit multiplications are.
pub type GroupWeights = [[i16; GROUP]; 2];

/// Bits of the lower half of a weight.
const LOW_BITS: u32 = 12;

/// Splits weights for [`horizontal`]; missing ones are zero.
pub fn split(weights: &[i32]) -> GroupWeights {
    let weight = |at: usize| weights.get(at).copied().unwrap_or(0);
    [std::array::from_fn(|at| halves(weight(at))[0]), std::array::from_fn(|at| halves(weight(at))[1])]
}

fn halves(weight: i32) -> [i16; 2] {
    [(weight >> LOW_BITS) as i16, (weight & ((1 << LOW_BITS) - 1)) as i16]
}

/// Windows over a row of RGB: as many groups for each, and windows of no weight at the end that make their number one of
/// whole [`PIXELS`].
pub struct Windows {
    /// Groups of a window.
    pub groups: usize,
    /// For each window the byte where it begins.
    pub starts: Vec<usize>,
    /// (windows, groups).
    pub weights: Vec<GroupWeights>,
}

impl Windows {
    /// Bytes behind a row that are read, and have no weight.
    pub fn slack(&self) -> usize {
        (self.groups + 1) * GROUP_BYTES
    }
}

/// A byte times `scale`, minus `mean`, over `std`.
#[derive(Clone, Copy)]
pub struct Affine {
    pub scale: f64,
    pub mean: f32,
    pub std: f32,
}

/// RGB pixels that are weighted sums of a row's; the row has [`Windows::slack`] behind it.
pub fn horizontal(row: &[u8], windows: &Windows, half: i32, out: &mut [[u8; 3]]) -> bool {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has just been asked for AVX2, the only thing this function asks of its caller.
        unsafe { resize::horizontal(row, windows, half, out) };
        return true;
    }
    false
}

/// A row that is the weighted sum of rows which begin every `stride` bytes of `rows`.
pub fn vertical(rows: &[u8], stride: usize, weights: &[i32], half: i32, out: &mut [u8]) -> bool {
    #[cfg(target_arch = "x86_64")]
    if out.len() >= resize::COLUMNS && is_x86_feature_detected!("avx2") {
        // SAFETY: as in `horizontal`.
        unsafe { resize::vertical(rows, stride, weights, half, out) };
        return true;
    }
    false
}

/// Scalar work for [`compiled`]. Its `run`, and all that this calls, need `#[inline(always)]`, or else they are compiled for any
/// processor.
pub trait Work {
    type Output;

    fn run(self) -> Self::Output;
}

/// Runs `work`, compiled for AVX2 and the bit manipulations that come with it where the processor has them.
pub fn compiled<W: Work>(work: W) -> W::Output {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
        fn with<W: Work>(work: W) -> W::Output {
            work.run()
        }
        let has_bits = is_x86_feature_detected!("bmi1") && is_x86_feature_detected!("bmi2");
        if has_bits && is_x86_feature_detected!("lzcnt") && is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has just been asked for each of the features, the only thing this function asks of its caller.
            return unsafe { with(work) };
        }
    }
    work.run()
}

/// Normalised planes of a row of RGB: of each byte the value `maps` has for its channel. The caller compares values for all
/// bytes with those it wants: they are those of [`Affine`] but for rounding.
pub fn normalise(row: &[[u8; 3]], maps: &[Affine; 3], out: [&mut [f32]; 3]) -> bool {
    #[cfg(target_arch = "x86_64")]
    if row.len() >= resize::NORMALISED && is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: as in `horizontal`, with FMA.
        unsafe { resize::normalise(row, maps, out) };
        return true;
    }
    false
}

/// Pixels from rows of luma and chroma as long as `out`.
pub fn ycc(y: &[u8], cb: &[u8], cr: &[u8], out: &mut [[u8; 3]]) -> bool {
    #[cfg(target_arch = "x86_64")]
    if out.len() >= jpeg::PIXELS && is_x86_feature_detected!("avx2") {
        // SAFETY: as in `horizontal`.
        unsafe { jpeg::ycc(y, cb, cr, out) };
        return true;
    }
    false
}

/// Doubles a row of JPEG samples: three parts of each sum and one of its left or right neighbour, rounded with `left` or `right`
/// and shifted. `sums` has one more before the first and after the last.
pub fn widen<const SHIFT: i32>(sums: &[u16], left: u16, right: u16, out: &mut [[u8; 2]]) -> bool {
    #[cfg(target_arch = "x86_64")]
    if out.len() >= jpeg::PIXELS && is_x86_feature_detected!("avx2") {
        // SAFETY: as in `horizontal`.
        unsafe { jpeg::widen::<SHIFT>(sums, left as i16, right as i16, out) };
        return true;
    }
    false
}

/// The 8x8 samples of two JPEG blocks that are not yet dequantised.
#[inline(always)]
pub fn idct(blocks: [&Block; 2], quantisation: [&[u16; 64]; 2]) -> Option<[[[u8; 8]; 8]; 2]> {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: as in `horizontal`.
        return Some(unsafe { jpeg::idct(blocks, quantisation) });
    }
    None
}
