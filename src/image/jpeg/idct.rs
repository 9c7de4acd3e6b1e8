//! The inverse DCT: libjpeg's "islow" (Loeffler, Ligtenberg and Moschytz, 1989) in 13-bit fixed point, with the sums and
//! saturations of libjpeg-turbo's vector form, so that damaged files overflow alike.

use super::Block;
use crate::image::avx2;

/// Rows of 8 values.
type Rows = [[i16; 8]; 8];

pub const CONST_BITS: u32 = 13;
/// Extra precision of what passes from the first pass to the second.
pub const PASS1_BITS: u32 = 2;

pub const FIX_0_298: i32 = 2446;
pub const FIX_0_390: i32 = 3196;
pub const FIX_0_541: i32 = 4433;
pub const FIX_0_765: i32 = 6270;
pub const FIX_0_899: i32 = 7373;
pub const FIX_1_175: i32 = 9633;
pub const FIX_1_501: i32 = 12299;
pub const FIX_1_847: i32 = 15137;
pub const FIX_1_961: i32 = 16069;
pub const FIX_2_053: i32 = 16819;
pub const FIX_2_562: i32 = 20995;
pub const FIX_3_072: i32 = 25172;

/// Writes the samples of a block whose coefficients are all zero but the first.
pub fn flat(first: i16, quantisation: &[u16; 64], out: &mut [u8], stride: usize) {
    let dc = first.wrapping_mul(quantisation[0] as i16) << PASS1_BITS;
    let value = to_sample((i32::from(dc) + (1 << (PASS1_BITS + 2))) >> (PASS1_BITS + 3));
    write([[value; 8]; 8], out, stride);
}

/// The 8x8 samples of two blocks.
#[inline(always)]
pub fn samples(blocks: [&Block; 2], quantisation: [&[u16; 64]; 2]) -> [[[u8; 8]; 8]; 2] {
    avx2::idct(blocks, quantisation).unwrap_or_else(|| [0, 1].map(|n| plain(blocks[n], quantisation[n])))
}

/// Writes samples to `out`, rows of `stride`.
#[inline(always)]
pub fn write(samples: [[u8; 8]; 8], out: &mut [u8], stride: usize) {
    let Some(out) = out.get_mut(..7 * stride + 8) else { return };
    for (row, samples) in out.chunks_mut(stride).zip(samples) {
        row[..8].copy_from_slice(&samples);
    }
}

/// The 8x8 samples of `block`.
fn plain(block: &Block, quantisation: &[u16; 64]) -> [[u8; 8]; 8] {
    let (mut from, mut to) = ([[0; 8]; 8], [[0; 8]; 8]);
    for (value, (&level, &step)) in from.as_flattened_mut().iter_mut().zip(block.iter().zip(quantisation)) {
        *value = level.wrapping_mul(step as i16);
    }
    if is_zero(&block[8..]) {
        to = from[0].map(|value| [value << PASS1_BITS; 8]);
    } else {
        columns::<{ CONST_BITS - PASS1_BITS }>(&from, &mut to);
        transpose(&to, &mut from);
        to = from;
    }
    columns::<{ CONST_BITS + PASS1_BITS + 3 }>(&to, &mut from);
    let mut columns = [[0; 8]; 8];
    for (sample, &value) in columns.as_flattened_mut().iter_mut().zip(from.as_flattened()) {
        *sample = to_sample(value.into());
    }
    transpose_samples(&columns)
}

fn is_zero(values: &[i16]) -> bool {
    values.iter().fold(0, |any, &value| any | value) == 0
}

/// A level around zero as a sample.
fn to_sample(value: i32) -> u8 {
    (value.clamp(-128, 127) + 128) as u8
}

/// Exchanges the upper part of `words[a]` with the lower part of `words[b]`, in units that `mask` shows.
#[inline(always)]
fn exchange<const SHIFT: u32>(words: &mut [u64], a: usize, b: usize, mask: u64) {
    let change = ((words[a] >> SHIFT) ^ words[b]) & mask;
    words[b] ^= change;
    words[a] ^= change << SHIFT;
}

/// Transposes 8x8 values: the four quarters change places, and within each, words of 4 values exchange theirs.
#[inline(never)]
fn transpose(rows: &Rows, out: &mut Rows) {
    let quarters = rows.as_flattened().as_chunks::<4>().0;
    let turned = out.as_flattened_mut().as_chunks_mut::<4>().0;
    for quarter in 0..4 {
        let (top, left) = (quarter / 2, quarter % 2);
        let mut words: [u64; 4] = std::array::from_fn(|i| to_word(quarters[8 * top + 2 * i + left]));
        exchange::<32>(&mut words, 0, 2, 0xFFFF_FFFF);
        exchange::<32>(&mut words, 1, 3, 0xFFFF_FFFF);
        exchange::<16>(&mut words, 0, 1, 0xFFFF_0000_FFFF);
        exchange::<16>(&mut words, 2, 3, 0xFFFF_0000_FFFF);
        for i in 0..4 {
            turned[8 * left + 2 * i + top] = from_word(words[i]);
        }
    }
}

fn to_word(values: [i16; 4]) -> u64 {
    let [a, b, c, d] = values.map(|value| u64::from(value as u16));
    a | b << 16 | c << 32 | d << 48
}

fn from_word(word: u64) -> [i16; 4] {
    [word as i16, (word >> 16) as i16, (word >> 32) as i16, (word >> 48) as i16]
}

/// Transposes 8x8 samples.
#[inline(never)]
fn transpose_samples(columns: &[[u8; 8]; 8]) -> [[u8; 8]; 8] {
    let mut words = columns.map(u64::from_le_bytes);
    for i in [0, 1, 2, 3] {
        exchange::<32>(&mut words, i, i + 4, 0xFFFF_FFFF);
    }
    for i in [0, 1, 4, 5] {
        exchange::<16>(&mut words, i, i + 2, 0xFFFF_0000_FFFF);
    }
    for i in [0, 2, 4, 6] {
        exchange::<8>(&mut words, i, i + 1, 0x00FF_00FF_00FF_00FF);
    }
    words.map(u64::to_le_bytes)
}

/// Transforms each column, from 8 frequencies to 8 values. Not inlined: as a loop over memory it becomes vector code.
#[inline(never)]
fn columns<const SHIFT: u32>(rows: &Rows, out: &mut Rows) {
    for i in 0..8 {
        let values = transform::<SHIFT>(std::array::from_fn(|k| rows[k][i]));
        for k in 0..8 {
            out[k][i] = values[k];
        }
    }
}

/// One dimension; the result is rounded to `SHIFT` bits less and saturated.
#[inline(always)]
fn transform<const SHIFT: u32>([i0, i1, i2, i3, i4, i5, i6, i7]: [i16; 8]) -> [i16; 8] {
    let dot = |a: i16, ca: i32, b: i16, cb: i32| i32::from(a) * ca + i32::from(b) * cb;
    // Even part.
    let t2 = dot(i2, FIX_0_541, i6, FIX_0_541 - FIX_1_847);
    let t3 = dot(i2, FIX_0_541 + FIX_0_765, i6, FIX_0_541);
    let t0 = i32::from(i0.wrapping_add(i4)) << CONST_BITS;
    let t1 = i32::from(i0.wrapping_sub(i4)) << CONST_BITS;
    let even = [t0.wrapping_add(t3), t1.wrapping_add(t2), t1.wrapping_sub(t2), t0.wrapping_sub(t3)];
    // Odd part.
    let (z3, z4) = (i7.wrapping_add(i3), i5.wrapping_add(i1));
    let w3 = dot(z3, FIX_1_175 - FIX_1_961, z4, FIX_1_175);
    let w4 = dot(z3, FIX_1_175, z4, FIX_1_175 - FIX_0_390);
    let odd = [
        dot(i1, FIX_1_501 - FIX_0_899, i7, -FIX_0_899).wrapping_add(w4),
        dot(i3, FIX_3_072 - FIX_2_562, i5, -FIX_2_562).wrapping_add(w3),
        dot(i5, FIX_2_053 - FIX_2_562, i3, -FIX_2_562).wrapping_add(w4),
        dot(i7, FIX_0_298 - FIX_0_899, i1, -FIX_0_899).wrapping_add(w3),
    ];
    std::array::from_fn(|k| {
        let value = if k < 4 { even[k].wrapping_add(odd[k]) } else { even[7 - k].wrapping_sub(odd[7 - k]) };
        let value = value.wrapping_add(1 << (SHIFT - 1)) >> SHIFT;
        value.clamp(i16::MIN.into(), i16::MAX.into()) as i16
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn every_form_gives_the_same_samples() {
        let mut random = Random::new(1);
        let mut before = ([0; 64], [1; 64]);
        for round in 0..4000 {
            // Levels and steps of real files, then of any.
            let (levels, steps) = if round % 2 == 0 { (64, 100) } else { (1 << 16, 1 << 16) };
            let (mut block, mut quantisation) = ([0; 64], [0; 64]);
            let known = [2, 9, 33, 64][round / 2 % 4];
            block[..known].fill_with(|| (random.below(levels) as i32 - levels as i32 / 2) as i16);
            quantisation.fill_with(|| random.below(steps) as u16);
            // The last round's, and this one's.
            let pair = ([&before.0, &block], [&before.1, &quantisation]);
            let expected = [plain(&before.0, &before.1), plain(&block, &quantisation)];
            assert_eq!(samples(pair.0, pair.1), expected, "{pair:?}");
            before = (block, quantisation);
        }
    }
}
