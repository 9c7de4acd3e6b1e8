//! Eight-bit integers for weights: codes from -127 to 127 with one scale for each row. Scales are powers of two, which makes
//! every weight exact in bf16: a device that widens computes with the same numbers as one that multiplies codes.
//! Math: w = code * scale, code = round(w / scale), ties to even.

use crate::fp8::{exponent, power_of_two};
use crate::tensor::{Bytes, DType, HostTensor, Quantized};

/// The largest code.
pub const MOST: f32 = 127.0;

/// The nearest code; values beyond the largest become the largest, and NaN becomes 0.
pub fn encode(v: f32) -> i8 {
    v.round_ties_even().clamp(-MOST, MOST) as i8
}

/// A matrix (N, K) as codes (N, K) and scales (N). `None` for other shapes.
pub fn quantize(matrix: &HostTensor) -> Option<(HostTensor, HostTensor)> {
    let &[rows, columns] = matrix.shape() else { return None };
    let values = matrix.to_f32();
    let (mut codes, mut scales) = (Vec::with_capacity(values.len()), Vec::with_capacity(rows));
    for row in 0..rows {
        let values = &values[row * columns..][..columns];
        let scale = scale_of(values.iter().fold(0.0, |most, v| most.max(v.abs())));
        codes.extend(values.iter().map(|v| encode(v / scale) as u8));
        scales.push(scale);
    }
    Some((HostTensor::new(&[rows, columns], DType::I8, Bytes::new(codes))?, HostTensor::from_f32(&[rows], scales)?))
}

/// Whether `codes` are those of a matrix (N, K) and `scales` one power of two for each row.
pub fn fits(Quantized { codes, scales }: &Quantized) -> bool {
    let &[rows, _] = codes.shape() else { return false };
    codes.dtype() == DType::I8 && scales.shape() == [rows] && scales.to_f32().iter().all(|&scale| is_scale(scale))
}

/// Whether a scale is a power of two whose products with codes are exact in bf16.
pub fn is_scale(scale: f32) -> bool {
    scale.is_normal() && scale == power_of_two(exponent(scale)) && (scale * MOST).is_finite()
}

/// The smallest power of two that brings `most` into range, or the largest there is; 1 for a row of zeros.
fn scale_of(most: f32) -> f32 {
    if most == 0.0 {
        return 1.0;
    }
    let scale = power_of_two(exponent(most) - 6);
    if most <= MOST * scale { scale } else { (2.0 * scale).min(power_of_two(121)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quantized(matrix: &HostTensor) -> HostTensor {
        let (codes, scales) = quantize(matrix).expect("a matrix");
        HostTensor::from_quantized(Quantized { codes, scales }).expect("codes with scales")
    }

    #[test]
    fn codes_are_the_nearest() {
        let values: Vec<f32> =
            (0..60).map(|i| ((i * 37 % 61) as f32 - 30.0) * 0.013 * if i < 20 { 1e-3 } else { 9.0 }).collect();
        let matrix = HostTensor::from_f32(&[3, 20], values).expect("60 values");
        let (codes, scales) = quantize(&matrix).expect("a matrix");
        for (row, (values, codes)) in matrix.to_f32().chunks(20).zip(codes.bytes().chunks(20)).enumerate() {
            let scale = scales.to_f32()[row];
            assert!(is_scale(scale));
            let largest = codes.iter().map(|&code| (code as i8).unsigned_abs()).max();
            assert!((64..=127).contains(&largest.expect("20 codes")), "a row uses its range: {largest:?}");
            for (value, &code) in values.iter().zip(codes) {
                assert!((value - f32::from(code as i8) * scale).abs() <= scale / 2.0, "{value} became {}", code as i8);
            }
        }
    }

    #[test]
    fn a_matrix_is_exact_in_bf16_and_comes_back() {
        let values = crate::check::Random::new(3).values(7 * 33).into_iter().map(|v| v * v * v).collect();
        let narrow = quantized(&HostTensor::from_f32(&[7, 33], values).expect("231 values"));
        assert_eq!(narrow.to_dtype(DType::BF16).to_f32(), narrow.to_f32());
        assert_eq!(quantized(&narrow.to_dtype(DType::F32)).to_f32(), narrow.to_f32());
        let edges = HostTensor::from_f32(&[4, 2], vec![0.0, -0.0, f32::MAX, 1.0, 1e-38, -1e-38, 1e-45, 0.0]);
        let edges = quantized(&edges.expect("8 values"));
        assert!(edges.to_f32().iter().all(|v| v.is_finite()));
    }
}
