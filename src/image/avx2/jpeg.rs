//! The inverse DCT and the colour conversion of JPEG, in the arithmetic that [`crate::image::jpeg`] describes.

use std::arch::x86_64::*;

use crate::image::jpeg::Block;
use crate::image::jpeg::idct::*;

/// Pixels that one step of [`ycc`] makes.
pub const PIXELS: usize = 16;

#[target_feature(enable = "avx2")]
pub fn ycc(y: &[u8], cb: &[u8], cr: &[u8], out: &mut [[u8; 3]]) {
    let (last, mut at) = (out.len() - PIXELS, 0);
    loop {
        if let (Some(y), Some(cb), Some(cr)) = (y[at..].first_chunk(), cb[at..].first_chunk(), cr[at..].first_chunk()) {
            out[at..at + PIXELS].copy_from_slice(&pixels(y, cb, cr));
        }
        if at == last {
            return;
        }
        // The last step makes some pixels again.
        at = (at + PIXELS).min(last);
    }
}

#[target_feature(enable = "avx2")]
fn pixels(y: &[u8; PIXELS], cb: &[u8; PIXELS], cr: &[u8; PIXELS]) -> [[u8; 3]; PIXELS] {
    let wide = |bytes: &[u8; PIXELS]| _mm256_cvtepu8_epi16(bytemuck::cast(*bytes));
    let around_zero = |bytes| _mm256_sub_epi16(wide(bytes), _mm256_set1_epi16(128));
    let (y, cb, cr) = (wide(y), around_zero(cb), around_zero(cr));
    let scaled = |twice: __m256i, factor: i16| {
        let product = _mm256_mulhi_epi16(twice, _mm256_set1_epi16(factor));
        _mm256_srai_epi16::<1>(_mm256_add_epi16(product, _mm256_set1_epi16(1)))
    };
    let (cb_twice, cr_twice) = (_mm256_add_epi16(cb, cb), _mm256_add_epi16(cr, cr));
    let red = _mm256_add_epi16(_mm256_add_epi16(y, cr), scaled(cr_twice, 26_345));
    let blue = _mm256_add_epi16(_mm256_add_epi16(y, cb_twice), scaled(cb_twice, -14_942));
    let less = |pairs: __m256i| {
        let sum = _mm256_madd_epi16(pairs, _mm256_set1_epi32(bytemuck::cast([-22_554i16, 18_734])));
        _mm256_srai_epi32::<16>(_mm256_add_epi32(sum, _mm256_set1_epi32(1 << 15)))
    };
    let less = _mm256_packs_epi32(less(_mm256_unpacklo_epi16(cb, cr)), less(_mm256_unpackhi_epi16(cb, cr)));
    let green = _mm256_add_epi16(_mm256_sub_epi16(y, cr), less);
    // Of each half: eight reds and eight greens, and eight blues twice.
    let (red_green, blue) = (_mm256_packus_epi16(red, green), _mm256_packus_epi16(blue, blue));
    let joined = |red_green_from: [i8; 16], blue_from: [i8; 16]| -> [[u8; 16]; 2] {
        let both = |from: [i8; 16]| _mm256_broadcastsi128_si256(bytemuck::cast(from));
        let red_green = _mm256_shuffle_epi8(red_green, both(red_green_from));
        bytemuck::cast(_mm256_or_si256(red_green, _mm256_shuffle_epi8(blue, both(blue_from))))
    };
    let starts = joined(
        [0, 8, -1, 1, 9, -1, 2, 10, -1, 3, 11, -1, 4, 12, -1, 5],
        [-1, -1, 0, -1, -1, 1, -1, -1, 2, -1, -1, 3, -1, -1, 4, -1],
    );
    let ends = joined(
        [13, -1, 6, 14, -1, 7, 15, -1, -1, -1, -1, -1, -1, -1, -1, -1],
        [-1, 5, -1, -1, 6, -1, -1, 7, -1, -1, -1, -1, -1, -1, -1, -1],
    );
    let mut pixels = [0; 3 * PIXELS];
    for (pixels, (start, end)) in pixels.as_chunks_mut::<24>().0.iter_mut().zip(starts.iter().zip(&ends)) {
        pixels[..16].copy_from_slice(start);
        pixels[16..].copy_from_slice(&end[..8]);
    }
    bytemuck::cast(pixels)
}

/// See [`super::widen`].
#[target_feature(enable = "avx2")]
pub fn widen<const SHIFT: i32>(sums: &[u16], left: i16, right: i16, out: &mut [[u8; 2]]) {
    let (last, mut at) = (out.len() - PIXELS, 0);
    let (left, right) = (_mm256_set1_epi16(left), _mm256_set1_epi16(right));
    loop {
        let load = |at: usize| sums[at..].first_chunk().map_or(left, |sums: &[u16; PIXELS]| bytemuck::cast(*sums));
        let (before, sum, after) = (load(at), load(at + 1), load(at + 2));
        let three = _mm256_add_epi16(sum, _mm256_add_epi16(sum, sum));
        let part = |other, half| _mm256_srli_epi16::<SHIFT>(_mm256_add_epi16(three, _mm256_add_epi16(other, half)));
        let pairs = _mm256_or_si256(part(before, left), _mm256_slli_epi16::<8>(part(after, right)));
        out[at..at + PIXELS].copy_from_slice(&bytemuck::cast::<_, [[u8; 2]; PIXELS]>(pairs));
        if at == last {
            return;
        }
        // The last step makes some samples again.
        at = (at + PIXELS).min(last);
    }
}

/// Rows of two blocks, one in each half.
type Rows = [__m256i; 8];

/// The 8x8 samples of two blocks.
#[target_feature(enable = "avx2")]
pub fn idct([one, other]: [&Block; 2], [its_steps, others]: [&[u16; 64]; 2]) -> [[[u8; 8]; 8]; 2] {
    let level = |k: usize| -> __m256i { bytemuck::cast([one.as_chunks::<8>().0[k], other.as_chunks::<8>().0[k]]) };
    let steps =
        |k: usize| -> __m256i { bytemuck::cast([its_steps.as_chunks::<8>().0[k], others.as_chunks::<8>().0[k]]) };
    let rows: Rows = std::array::from_fn(|k| _mm256_mullo_epi16(level(k), steps(k)));
    // A block of one row is not saturated after the first pass.
    let any = (2..8).fold(level(1), |any, k| _mm256_or_si256(any, level(k)));
    let zeros = _mm256_movemask_epi8(_mm256_cmpeq_epi8(any, _mm256_setzero_si256())) as u32;
    let is_row = [zeros & 0xFFFF == 0xFFFF, zeros >> 16 == 0xFFFF];
    let rows = match is_row {
        [false, false] => transpose(&columns::<{ (CONST_BITS - PASS1_BITS) as i32 }>(&rows)),
        [true, true] => spread(_mm256_slli_epi16::<{ PASS1_BITS as i32 }>(rows[0])),
        [first, _] => {
            let all = transpose(&columns::<{ (CONST_BITS - PASS1_BITS) as i32 }>(&rows));
            let row = spread(_mm256_slli_epi16::<{ PASS1_BITS as i32 }>(rows[0]));
            let (low, high) = if first { (row, all) } else { (all, row) };
            std::array::from_fn(|k| _mm256_blend_epi32::<0xF0>(low[k], high[k]))
        }
    };
    let columns = columns::<{ (CONST_BITS + PASS1_BITS + 3) as i32 }>(&rows);
    // Bytes in fours: columns 0 and 4, 1 and 5, 2 and 6, 3 and 7.
    let bytes: [__m256i; 4] = std::array::from_fn(|k| _mm256_packs_epi16(columns[k], columns[k + 4]));
    let (a, b) = (_mm256_unpacklo_epi8(bytes[0], bytes[1]), _mm256_unpackhi_epi8(bytes[0], bytes[1]));
    let (c, d) = (_mm256_unpacklo_epi8(bytes[2], bytes[3]), _mm256_unpackhi_epi8(bytes[2], bytes[3]));
    let (left, right) = (_mm256_unpacklo_epi16(a, c), _mm256_unpacklo_epi16(b, d));
    let (low_left, low_right) = (_mm256_unpackhi_epi16(a, c), _mm256_unpackhi_epi16(b, d));
    let rows = [
        _mm256_unpacklo_epi32(left, right),
        _mm256_unpackhi_epi32(left, right),
        _mm256_unpacklo_epi32(low_left, low_right),
        _mm256_unpackhi_epi32(low_left, low_right),
    ];
    let rows = rows.map(|row| bytemuck::cast::<_, [[[u8; 8]; 2]; 2]>(_mm256_xor_si256(row, _mm256_set1_epi8(-128))));
    std::array::from_fn(|block| std::array::from_fn(|row| rows[row / 2][block][row % 2]))
}

/// Rows that hold one of the values of `row` each.
#[target_feature(enable = "avx2")]
fn spread(row: __m256i) -> Rows {
    let (a, b) = (_mm256_unpacklo_epi16(row, row), _mm256_unpackhi_epi16(row, row));
    [
        _mm256_shuffle_epi32::<0x00>(a),
        _mm256_shuffle_epi32::<0x55>(a),
        _mm256_shuffle_epi32::<0xAA>(a),
        _mm256_shuffle_epi32::<0xFF>(a),
        _mm256_shuffle_epi32::<0x00>(b),
        _mm256_shuffle_epi32::<0x55>(b),
        _mm256_shuffle_epi32::<0xAA>(b),
        _mm256_shuffle_epi32::<0xFF>(b),
    ]
}

#[target_feature(enable = "avx2")]
fn transpose(rows: &Rows) -> Rows {
    let pair = |a: usize, b: usize| (_mm256_unpacklo_epi16(rows[a], rows[b]), _mm256_unpackhi_epi16(rows[a], rows[b]));
    let four = |a: __m256i, b: __m256i| (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    let eight = |a: __m256i, b: __m256i| [_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b)];
    let (((a, b), (c, d)), ((e, f), (g, h))) = ((pair(0, 1), pair(2, 3)), (pair(4, 5), pair(6, 7)));
    let (top, bottom) = ([four(a, c), four(b, d)], [four(e, g), four(f, h)]);
    let [i0, i1] = eight(top[0].0, bottom[0].0);
    let [i2, i3] = eight(top[0].1, bottom[0].1);
    let [i4, i5] = eight(top[1].0, bottom[1].0);
    let [i6, i7] = eight(top[1].1, bottom[1].1);
    [i0, i1, i2, i3, i4, i5, i6, i7]
}

/// Sums of 32 bits for 8 columns, in two halves.
type Wide = [__m256i; 2];

/// As `idct::transform`, of every column.
#[target_feature(enable = "avx2")]
fn columns<const SHIFT: i32>(&[i0, i1, i2, i3, i4, i5, i6, i7]: &Rows) -> Rows {
    let add = |a: Wide, b: Wide| -> Wide { [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])] };
    let sub = |a: Wide, b: Wide| -> Wide { [_mm256_sub_epi32(a[0], b[0]), _mm256_sub_epi32(a[1], b[1])] };
    let dot = |a: __m256i, ca: i32, b: __m256i, cb: i32| -> Wide {
        let factors = _mm256_set1_epi32((ca & 0xFFFF) | cb << 16);
        [
            _mm256_madd_epi16(_mm256_unpacklo_epi16(a, b), factors),
            _mm256_madd_epi16(_mm256_unpackhi_epi16(a, b), factors),
        ]
    };
    let widened = |a: __m256i| -> Wide {
        const SHIFT: i32 = 16 - CONST_BITS as i32;
        let zero = _mm256_setzero_si256();
        [
            _mm256_srai_epi32::<SHIFT>(_mm256_unpacklo_epi16(zero, a)),
            _mm256_srai_epi32::<SHIFT>(_mm256_unpackhi_epi16(zero, a)),
        ]
    };
    // Even part.
    let t2 = dot(i2, FIX_0_541, i6, FIX_0_541 - FIX_1_847);
    let t3 = dot(i2, FIX_0_541 + FIX_0_765, i6, FIX_0_541);
    let (t0, t1) = (widened(_mm256_add_epi16(i0, i4)), widened(_mm256_sub_epi16(i0, i4)));
    let even = [add(t0, t3), add(t1, t2), sub(t1, t2), sub(t0, t3)];
    // Odd part.
    let (z3, z4) = (_mm256_add_epi16(i7, i3), _mm256_add_epi16(i5, i1));
    let w3 = dot(z3, FIX_1_175 - FIX_1_961, z4, FIX_1_175);
    let w4 = dot(z3, FIX_1_175, z4, FIX_1_175 - FIX_0_390);
    let odd = [
        add(dot(i1, FIX_1_501 - FIX_0_899, i7, -FIX_0_899), w4),
        add(dot(i3, FIX_3_072 - FIX_2_562, i5, -FIX_2_562), w3),
        add(dot(i5, FIX_2_053 - FIX_2_562, i3, -FIX_2_562), w4),
        add(dot(i7, FIX_0_298 - FIX_0_899, i1, -FIX_0_899), w3),
    ];
    std::array::from_fn(|k| {
        let [low, high] = if k < 4 { add(even[k], odd[k]) } else { sub(even[7 - k], odd[7 - k]) };
        let rounded = |sum| _mm256_srai_epi32::<SHIFT>(_mm256_add_epi32(sum, _mm256_set1_epi32(1 << (SHIFT - 1))));
        _mm256_packs_epi32(rounded(low), rounded(high))
    })
}
