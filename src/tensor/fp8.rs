//! Eight-bit floats for weights: e4m3 (sign, 4 exponent bits of bias 7, 3 mantissa bits, no infinities) with one scale for
//! each row. Scales are powers of two, which costs no precision and makes every weight exact in bf16: a device that
//! multiplies fp8 and one that does not compute with the same numbers.
//! Source: Micikevicius et al., "FP8 Formats for Deep Learning" (2022), table 1.

use half::bf16;

use crate::tensor::{Bytes, DType, HostTensor};

/// The largest value.
pub const MAX: f32 = 448.0;
/// Smallest normal exponent, and the bits of a mantissa.
const MIN_EXPONENT: i32 = -6;
const MANTISSA: i32 = 3;
/// The code of NaN, with either sign.
const NAN: u8 = 0x7f;

/// The nearest code, ties to even; values beyond the largest become the largest.
pub fn encode(v: f32) -> u8 {
    let sign = if v.is_sign_negative() { 0x80 } else { 0 };
    let magnitude = v.abs();
    if magnitude.is_nan() {
        return sign | NAN;
    }
    // Units of the last place at this magnitude; below the normal range they stay as they are there.
    let exponent = if magnitude == 0.0 { MIN_EXPONENT } else { exponent(magnitude).max(MIN_EXPONENT) };
    let units = (magnitude.min(MAX) * power_of_two(MANTISSA - exponent)).round_ties_even() as i32;
    // 16 units are the next exponent's 8; a code is the exponent field and the mantissa, one after the other.
    let code = ((exponent - MIN_EXPONENT) << MANTISSA) + units;
    sign | code.min(i32::from(NAN) - 1) as u8
}

/// The value of a code.
pub fn decode(code: u8) -> f32 {
    let sign = if code & 0x80 == 0 { 1.0 } else { -1.0 };
    let (field, mantissa) = (i32::from(code >> MANTISSA & 0xf), f32::from(code & 7));
    match field {
        _ if code & 0x7f == NAN => f32::NAN,
        0 => sign * mantissa * power_of_two(MIN_EXPONENT - MANTISSA),
        _ => sign * (8.0 + mantissa) * power_of_two(field - 1 + MIN_EXPONENT - MANTISSA),
    }
}

/// A matrix (N, K) as codes (N, K) and scales (N). `None` for other shapes.
pub fn quantize(matrix: &HostTensor) -> Option<(HostTensor, HostTensor)> {
    let &[rows, columns] = matrix.shape() else { return None };
    let values = matrix.to_f32();
    let (mut codes, mut scales) = (Vec::with_capacity(values.len()), Vec::with_capacity(rows));
    for row in 0..rows {
        let values = &values[row * columns..][..columns];
        let scale = scale_of(values.iter().fold(0.0, |max, v| max.max(v.abs())));
        codes.extend(values.iter().map(|v| encode(v / scale)));
        scales.push(scale);
    }
    Some((HostTensor::new(&[rows, columns], DType::F8E4M3, Bytes::new(codes))?, HostTensor::from_f32(&[rows], scales)?))
}

/// Codes (N, K) and scales (N) as bf16 (N, K), exactly where the scales are powers of two. `None` for other shapes.
pub fn dequantize(codes: &HostTensor, scales: &HostTensor) -> Option<HostTensor> {
    let &[rows, columns] = codes.shape() else { return None };
    if codes.dtype() != DType::F8E4M3 || scales.shape() != [rows] {
        return None;
    }
    let table: Vec<f32> = (0..=u8::MAX).map(decode).collect();
    let scales = scales.to_f32();
    let mut values = Vec::with_capacity(rows * columns);
    for (row, scale) in scales.iter().enumerate() {
        let codes = &codes.bytes()[row * columns..][..columns];
        values.extend(codes.iter().map(|&code| bf16::from_f32(table[usize::from(code)] * scale)));
    }
    HostTensor::from_bf16(&[rows, columns], values)
}

/// The smallest power of two that brings `most` into range; 1 for a row of zeros.
pub(crate) fn scale_of(max: f32) -> f32 {
    if max == 0.0 {
        return 1.0;
    }
    let scale = power_of_two(exponent(max) - 8);
    if max <= MAX * scale { scale } else { 2.0 * scale }
}

/// e with 2^e <= v < 2^(e + 1), for positive normal v; less for subnormal ones.
fn exponent(v: f32) -> i32 {
    (v.to_bits() >> 23 & 0xff) as i32 - 127
}

fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent.clamp(-126, 127) + 127) as u32) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_comes_back() {
        for code in 0..=u8::MAX {
            let value = decode(code);
            assert!(value.is_nan() || encode(value) == code, "{code:#x} is {value}, which is {:#x}", encode(value));
        }
        assert_eq!((decode(0x7e), decode(0x01), decode(0x08)), (448.0, 0.001953125, 0.015625));
        assert_eq!((encode(1e9), encode(-1e9), encode(0.0), encode(-0.0)), (0x7e, 0xfe, 0, 0x80));
    }

    #[test]
    fn codes_are_the_nearest() {
        let values: Vec<f32> = (0..0x7f).map(decode).collect();
        for step in 0..200_000 {
            let v = 0.0001 * 1.00008f32.powi(step);
            let nearest = values.iter().map(|known| (known - v).abs()).fold(f32::INFINITY, f32::min);
            assert_eq!((decode(encode(v)) - v).abs(), nearest, "{v}");
        }
    }

    #[test]
    fn a_matrix_is_exact_in_bf16() {
        let values: Vec<f32> =
            (0..60).map(|i| ((i * 37 % 61) as f32 - 30.0) * 0.013 * if i < 20 { 1e-3 } else { 9.0 }).collect();
        let matrix = HostTensor::from_f32(&[3, 20], values).expect("60 values");
        let (codes, scales) = quantize(&matrix).expect("a matrix");
        let back = dequantize(&codes, &scales).expect("a matrix");
        for ((row, value), narrow) in (0..60).map(|i| i / 20).zip(matrix.to_f32().iter()).zip(back.to_f32().iter()) {
            let scale = scales.to_f32()[row];
            assert_eq!(scale.to_bits() & 0x7f_ffff, 0, "a power of two");
            assert!((value - narrow).abs() <= value.abs() / 16.0 + scale * 0.002, "{value} became {narrow}");
        }
        let again = quantize(&back).expect("a matrix");
        let again = dequantize(&again.0, &again.1).expect("a matrix");
        assert_eq!(again.to_f32(), back.to_f32(), "eight bits are enough for what they gave");
    }
}
