//! Component rows to RGB, in libjpeg's 16-bit fixed point and, for CMYK, by Pillow's rule.

use rayon::prelude::*;

use super::markers::{ColourSpace, Frame};
use super::upsample::Plane;
use crate::image::avx2;

/// Pixels that are worth a task of their own.
const PIXELS_PER_TASK: usize = 1 << 16;

/// Pixels (height, width, 3) of the components' `planes`.
pub fn to_rgb(frame: &Frame, planes: &[Plane], space: ColourSpace) -> Vec<u8> {
    let mut rgb = vec![0; frame.width * frame.height * 3];
    let rows = rgb.par_chunks_mut(frame.width * 3).enumerate().with_min_len(PIXELS_PER_TASK.div_ceil(frame.width));
    let space_for_rows = || (vec![Vec::new(); planes.len()], Vec::new());
    rows.for_each_init(space_for_rows, |(rows, sums): &mut (Vec<Vec<u8>>, Vec<u16>), (y, out)| {
        let made = planes.iter().zip(rows).map(|(plane, row)| {
            row.resize(plane.row_len(), 0);
            sums.resize(sums.len().max(plane.sums_len()), 0);
            &plane.row(y, row, sums)[..frame.width]
        });
        let made: Vec<&[u8]> = made.collect();
        let out = out.as_chunks_mut::<3>().0;
        match (space, made.as_slice()) {
            (ColourSpace::Rgb, [r, g, b]) => {
                for (out, ((&r, &g), &b)) in out.iter_mut().zip(r.iter().zip(*g).zip(*b)) {
                    *out = [r, g, b];
                }
            }
            (ColourSpace::YCbCr, [y, cb, cr]) => ycc_row(y, cb, cr, out),
            (ColourSpace::Cmyk, [c, m, y, k]) => {
                for (out, (((&c, &m), &y), &k)) in out.iter_mut().zip(c.iter().zip(*m).zip(*y).zip(*k)) {
                    *out = [c, m, y].map(|ink| over_black(255 - ink, k));
                }
            }
            (ColourSpace::Ycck, [y, cb, cr, k]) => {
                ycc_row(y, cb, cr, out);
                for (out, &k) in out.iter_mut().zip(*k) {
                    *out = out.map(|ink| over_black(ink, k));
                }
            }
            (_, [grey, ..]) => {
                for (out, &grey) in out.iter_mut().zip(*grey) {
                    *out = [grey; 3];
                }
            }
            (_, []) => {}
        }
    });
    rgb
}

/// YCbCr to RGB.
fn ycc_row(y: &[u8], cb: &[u8], cr: &[u8], out: &mut [[u8; 3]]) {
    if !avx2::ycc(y, cb, cr, out) {
        ycc_plain(y, cb, cr, out);
    }
}

/// The factors above one have their whole part taken out, so that 16 bits suffice; the result is the same as of 32.
fn ycc_plain(y: &[u8], cb: &[u8], cr: &[u8], out: &mut [[u8; 3]]) {
    let scaled = |value: i16, factor: i32| ((((i32::from(2 * value) * factor) >> 16) as i16) + 1) >> 1;
    for (pixel, ((&y, &cb), &cr)) in out.iter_mut().zip(y.iter().zip(cb).zip(cr)) {
        let (y, cb, cr) = (i16::from(y), i16::from(cb) - 128, i16::from(cr) - 128);
        let less = (i32::from(cb) * -22_554 + i32::from(cr) * 18_734 + 32_768) >> 16; // -0.34414, 1 - 0.71414
        let red = y + cr + scaled(cr, 26_345); // 1.402
        let blue = y + 2 * cb + scaled(cb, -14_942); // 1.772
        *pixel = [red, y - cr + less as i16, blue].map(|value| value.clamp(0, 255) as u8);
    }
}

/// Light that `ink` leaves on top of black. Files hold inks inverted, as Adobe's do: `black` is the light it leaves.
fn over_black(ink: u8, black: u8) -> u8 {
    let product = u32::from(ink) * u32::from(black) + 128;
    black.saturating_sub((((product >> 8) + product) >> 8) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_the_conversion_gives_the_same_pixels() {
        // All chroma, each with a few of luma.
        let chroma: Vec<[u8; 2]> = (0..=u16::MAX).map(u16::to_le_bytes).collect();
        let (cb, cr): (Vec<u8>, Vec<u8>) = chroma.iter().map(|&[cb, cr]| (cb, cr)).unzip();
        for shift in [0, 85, 170, 255] {
            let y: Vec<u8> = (0..chroma.len()).map(|i| (i * 7 / 16 + shift) as u8).collect();
            for len in [1, 15, 16, 17, 100, chroma.len()] {
                let (mut fast, mut plain) = (vec![[0; 3]; len], vec![[0; 3]; len]);
                ycc_row(&y, &cb, &cr, &mut fast);
                ycc_plain(&y, &cb, &cr, &mut plain);
                assert!(fast == plain, "{len} pixels, luma from {shift}");
            }
        }
    }
}
