//! The passes of the resize. Sums of 32 bits are put together of products of 16: see [`GroupWeights`].

use std::arch::x86_64::*;

use super::{Affine, GROUP, GROUP_BYTES, GroupWeights, LOW_BITS, PIXELS, Windows, halves};
use crate::image::resize;

/// Bytes of a row that one step of [`vertical`] makes.
pub const COLUMNS: usize = 32;
/// Bytes from one group of a window to the next.
const STEP: usize = 3 * GROUP;
/// Fraction bits of a weight.
const PRECISION: i32 = resize::PRECISION as i32;

#[target_feature(enable = "avx2")]
pub fn horizontal(row: &[u8], windows: &Windows, half: i32, out: &mut [[u8; 3]]) {
    // Unrolled for the shrinking by up to 4 that most images undergo.
    match windows.groups {
        1 => horizontal_of::<1>(row, windows, half, out),
        2 => horizontal_of::<2>(row, windows, half, out),
        3 => horizontal_of::<3>(row, windows, half, out),
        4 => horizontal_of::<4>(row, windows, half, out),
        _ => horizontal_of::<0>(row, windows, half, out),
    }
}

/// As [`horizontal`], for windows of `GROUPS` groups; of any number of them if that is 0.
#[target_feature(enable = "avx2")]
fn horizontal_of<const GROUPS: usize>(row: &[u8], windows: &Windows, half: i32, out: &mut [[u8; 3]]) {
    // Reds and greens of four pixels, then as many blues.
    let by_pixel = _mm_setr_epi8(0, 1, 8, 2, 3, 10, 4, 5, 12, 6, 7, 14, -1, -1, -1, -1);
    let half = _mm256_set1_epi32(half);
    let groups = if GROUPS == 0 { windows.groups } else { GROUPS };
    let weights = windows.weights.chunks_exact(PIXELS * groups);
    for ((out, starts), weights) in out.chunks_mut(PIXELS).zip(windows.starts.as_chunks::<PIXELS>().0).zip(weights) {
        let sums = |n: usize| {
            window(&row[starts[n]..][..groups * STEP + GROUP_BYTES - STEP], &weights[n * groups..][..groups])
        };
        let two =
            |a: __m256i, b: __m256i| _mm256_srai_epi32::<PRECISION>(_mm256_add_epi32(_mm256_hadd_epi32(a, b), half));
        let words = _mm256_packs_epi32(two(sums(0), sums(1)), two(sums(2), sums(3)));
        let bytes = _mm256_packus_epi16(words, words);
        let (red_green, blue) = (_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes));
        let pixels = _mm_shuffle_epi8(_mm_unpacklo_epi64(red_green, blue), by_pixel);
        let pixels: [u8; 16] = bytemuck::cast(pixels);
        match (out.as_flattened_mut(), pixels.first_chunk::<{ 3 * PIXELS }>()) {
            (out, Some(pixels)) if out.len() == pixels.len() => out.copy_from_slice(pixels),
            (out, _) => out.iter_mut().zip(pixels).for_each(|(out, byte)| *out = byte),
        }
    }
}

/// Sums of a window: two each of reds and greens, then of blues.
#[inline]
#[target_feature(enable = "avx2")]
fn window(bytes: &[u8], weights: &[GroupWeights]) -> __m256i {
    // Four pixels as four reds and four greens, then four blues, of 16 bits each.
    let by_channel = _mm256_setr_epi8(
        0, -1, 3, -1, 6, -1, 9, -1, 1, -1, 4, -1, 7, -1, 10, -1, //
        2, -1, 5, -1, 8, -1, 11, -1, -1, -1, -1, -1, -1, -1, -1, -1,
    );
    let (mut high, mut low) = (_mm256_setzero_si256(), _mm256_setzero_si256());
    for (group, weights) in weights.iter().enumerate() {
        let Some(pixels) = bytes[group * STEP..].first_chunk::<GROUP_BYTES>() else { break };
        let pixels = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(bytemuck::cast(*pixels)), by_channel);
        let [above, below]: [i64; 2] = bytemuck::cast(*weights);
        high = _mm256_add_epi32(high, _mm256_madd_epi16(pixels, _mm256_set1_epi64x(above)));
        low = _mm256_add_epi32(low, _mm256_madd_epi16(pixels, _mm256_set1_epi64x(below)));
    }
    _mm256_add_epi32(_mm256_slli_epi32::<{ LOW_BITS as i32 }>(high), low)
}

#[target_feature(enable = "avx2")]
pub fn vertical(rows: &[u8], stride: usize, weights: &[i32], half: i32, out: &mut [u8]) {
    // Halves of the weights of two rows, next to each other.
    let pairs = weights.chunks(2).map(|weights| {
        let [one, other] = [weights[0], weights.get(1).copied().unwrap_or(0)].map(halves);
        [[one[0], other[0]], [one[1], other[1]]].map(bytemuck::cast)
    });
    let pairs: Vec<[i32; 2]> = pairs.collect();
    let (last, mut at) = (out.len() - COLUMNS, 0);
    loop {
        let bytes = columns(&rows[at..], stride, &pairs, half);
        out[at..at + COLUMNS].copy_from_slice(&bytes);
        if at == last {
            return;
        }
        // The last step makes some bytes again.
        at = (at + COLUMNS).min(last);
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn columns(rows: &[u8], stride: usize, pairs: &[[i32; 2]], half: i32) -> [u8; COLUMNS] {
    let zero = _mm256_setzero_si256();
    let (mut high, mut low) = ([zero; 4], [zero; 4]);
    let row = |y: usize| -> __m256i {
        let row = rows.get(y * stride..).and_then(|row| row.first_chunk());
        row.map_or(zero, |row: &[u8; COLUMNS]| bytemuck::cast(*row))
    };
    for (pair, &[above, below]) in pairs.iter().enumerate() {
        let (a, b) = (row(2 * pair), row(2 * pair + 1));
        let (left, right) = (_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b));
        let columns = [
            _mm256_unpacklo_epi8(left, zero),
            _mm256_unpackhi_epi8(left, zero),
            _mm256_unpacklo_epi8(right, zero),
            _mm256_unpackhi_epi8(right, zero),
        ];
        let (above, below) = (_mm256_set1_epi32(above), _mm256_set1_epi32(below));
        for (n, columns) in columns.into_iter().enumerate() {
            high[n] = _mm256_add_epi32(high[n], _mm256_madd_epi16(columns, above));
            low[n] = _mm256_add_epi32(low[n], _mm256_madd_epi16(columns, below));
        }
    }
    let sum = |n: usize| {
        let sum = _mm256_add_epi32(_mm256_slli_epi32::<{ LOW_BITS as i32 }>(high[n]), low[n]);
        _mm256_srai_epi32::<PRECISION>(_mm256_add_epi32(sum, _mm256_set1_epi32(half)))
    };
    let (left, right) = (_mm256_packs_epi32(sum(0), sum(1)), _mm256_packs_epi32(sum(2), sum(3)));
    bytemuck::cast(_mm256_packus_epi16(left, right))
}

/// Pixels that one step of [`normalise`] takes.
pub const NORMALISED: usize = 8;

/// Each quotient is a product with the reciprocal and a correction, which rounds as a division does.
#[target_feature(enable = "avx2,fma")]
pub fn normalise(row: &[[u8; 3]], maps: &[Affine; 3], mut out: [&mut [f32]; 3]) {
    // The first four pixels are in the first twelve of 16 bytes, the last four in the last twelve.
    let channel = |c: i8| {
        let four = |first: i8| -> [i8; 16] {
            std::array::from_fn(|at| if at % 4 == 0 { first + c + 3 * (at / 4) as i8 } else { -1 })
        };
        bytemuck::cast::<_, __m256i>([four(0), four(4)])
    };
    let channels = [channel(0), channel(1), channel(2)];
    let factors = maps.map(|map| {
        let scale = map.scale as f32;
        let rest = (map.scale - f64::from(scale)) as f32;
        [scale, rest, map.mean, map.std, 1.0 / map.std].map(|factor| _mm256_set1_ps(factor))
    });
    let (last, mut at) = (row.len() - NORMALISED, 0);
    loop {
        let bytes = row[at..at + NORMALISED].as_flattened();
        let (Some(start), Some(end)) = (bytes.first_chunk::<16>(), bytes.last_chunk::<16>()) else { return };
        let pixels: __m256i = bytemuck::cast([*start, *end]);
        for ((out, channel), [scale, rest, mean, std, reciprocal]) in out.iter_mut().zip(channels).zip(factors) {
            let byte = _mm256_cvtepi32_ps(_mm256_shuffle_epi8(pixels, channel));
            let difference = _mm256_sub_ps(_mm256_fmadd_ps(byte, scale, _mm256_mul_ps(byte, rest)), mean);
            let quotient = _mm256_mul_ps(difference, reciprocal);
            let error = _mm256_fnmadd_ps(quotient, std, difference);
            let quotient: [f32; NORMALISED] = bytemuck::cast(_mm256_fmadd_ps(error, reciprocal, quotient));
            out[at..at + NORMALISED].copy_from_slice(&quotient);
        }
        if at == last {
            return;
        }
        // The last step makes some values again.
        at = (at + NORMALISED).min(last);
    }
}
