//! Eight-bit integers for weights: codes from -127 to 127 with one f32 scale for each row. Powers of two would make
//! every weight exact in bf16, but keep fewer captions the same than scales that use all codes of every row.
//! Math: w = code * scale, scale = max |w| / 127, code = round(w / scale), ties to even.

use crate::tensor::{Bytes, DType, HostTensor, Quantized};

/// The largest code.
pub const MAX: f32 = 127.0;

/// The nearest code; values beyond the largest become the largest, and NaN becomes 0.
pub fn encode(v: f32) -> i8 {
    v.round_ties_even().clamp(-MAX, MAX) as i8
}

/// A matrix (N, K) as codes (N, K) and scales (N). `None` for other shapes.
pub fn quantize(matrix: &HostTensor) -> Option<(HostTensor, HostTensor)> {
    let &[rows, columns] = matrix.shape() else { return None };
    let values = matrix.to_f32();
    let scales: Vec<f32> = values.chunks(columns.max(1)).map(scale_of).collect();
    let rows_of = values.chunks(columns.max(1)).zip(&scales);
    let codes: Vec<u8> = rows_of.flat_map(|(row, scale)| row.iter().map(move |v| encode(v / scale) as u8)).collect();
    Some((HostTensor::new(&[rows, columns], DType::I8, Bytes::new(codes))?, HostTensor::from_f32(&[rows], scales)?))
}

/// Whether `codes` are those of a matrix (N, K) and `scales` one for each row.
pub fn fits(Quantized { codes, scales }: &Quantized) -> bool {
    let &[rows, _] = codes.shape() else { return false };
    codes.dtype() == DType::I8 && scales.shape() == [rows] && scales.to_f32().iter().all(|&scale| is_scale(scale))
}

/// Whether a scale is positive and its products with codes are finite.
pub fn is_scale(scale: f32) -> bool {
    scale.is_normal() && scale > 0.0 && (scale * MAX).is_finite()
}

/// The scale that makes the largest weight of a row the largest code; 1 for a row of zeros.
fn scale_of(row: &[f32]) -> f32 {
    let scale = row.iter().fold(0.0f32, |max, v| max.max(v.abs())) / MAX;
    if is_scale(scale) { scale } else { 1.0 }
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
        let narrow = quantized(&matrix);
        for (wide, narrow) in matrix.to_f32().chunks(20).zip(narrow.to_f32().chunks(20)) {
            let max = wide.iter().fold(0.0f32, |max, v| max.max(v.abs()));
            for (wide, narrow) in wide.iter().zip(narrow) {
                assert!((wide - narrow).abs() <= max / 253.9, "{wide} became {narrow}");
            }
        }
    }

    #[test]
    fn codes_are_exact_where_they_can_be_and_always_finite() {
        // A row of whole numbers up to 127 is its own codes.
        let whole: Vec<f32> = (0..128).map(|i| (127 - i) as f32 * 0.25).collect();
        let whole = HostTensor::from_f32(&[1, 128], whole).expect("128 values");
        assert_eq!(quantized(&whole).to_f32(), whole.to_f32());
        let edges = HostTensor::from_f32(&[4, 2], vec![0.0, -0.0, f32::MAX, 1.0, 1e-38, -1e-38, 1e-45, 0.0]);
        let edges = quantized(&edges.expect("8 values"));
        assert!(edges.to_f32().iter().all(|v| v.is_finite()));
        assert!(quantize(&HostTensor::from_f32(&[2, 2, 1], vec![0.0; 4]).expect("4 values")).is_none());
    }
}
