//! Component rows to RGB, in libjpeg's 16-bit fixed point and, for CMYK, by Pillow's rule.

use rayon::prelude::*;

use super::markers::{ColourSpace, Frame};
use super::upsample::Plane;

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

/// Pixels that are converted together, as vectors.
const LANES: usize = 64;

/// YCbCr to RGB.
fn ycc_row(y: &[u8], cb: &[u8], cr: &[u8], out: &mut [[u8; 3]]) {
    for (((out, y), cb), cr) in out.chunks_mut(LANES).zip(y.chunks(LANES)).zip(cb.chunks(LANES)).zip(cr.chunks(LANES)) {
        let pixels = match (y.try_into(), cb.try_into(), cr.try_into()) {
            (Ok(y), Ok(cb), Ok(cr)) => ycc_pixels(y, cb, cr),
            _ => {
                let mut whole = [[0; LANES]; 3];
                for (whole, part) in whole.iter_mut().zip([y, cb, cr]) {
                    whole[..part.len()].copy_from_slice(part);
                }
                ycc_pixels(&whole[0], &whole[1], &whole[2])
            }
        };
        let (fours, rest) = out.as_chunks_mut::<4>();
        for (out, &[a, b, c, d]) in fours.iter_mut().zip(pixels.as_chunks::<4>().0) {
            let words = [a | b << 24, b >> 8 | c << 16, c >> 16 | d << 8].map(u32::to_le_bytes);
            out.as_flattened_mut().copy_from_slice(words.as_flattened());
        }
        let done = fours.len() * 4;
        for (out, pixel) in rest.iter_mut().zip(&pixels[done..]) {
            out.copy_from_slice(&pixel.to_le_bytes()[..3]);
        }
    }
}

/// Pixels R | G << 8 | B << 16. The factors above one have their whole part taken out, so that 16 bits suffice; the
/// result is the same as of 32.
fn ycc_pixels(y: &[u8; LANES], cb: &[u8; LANES], cr: &[u8; LANES]) -> [u32; LANES] {
    let [mut red, mut green, mut blue] = [[0; LANES]; 3];
    let scaled = |value: i16, factor: i32| ((((i32::from(2 * value) * factor) >> 16) as i16) + 1) >> 1;
    for i in 0..LANES {
        let (y, cb, cr) = (i16::from(y[i]), i16::from(cb[i]) - 128, i16::from(cr[i]) - 128);
        red[i] = (y + cr + scaled(cr, 26_345)).clamp(0, 255) as u8; // 1.402
        blue[i] = (y + 2 * cb + scaled(cb, -14_942)).clamp(0, 255) as u8; // 1.772
        let less = (i32::from(cb) * -22_554 + i32::from(cr) * 18_734 + 32_768) >> 16; // -0.34414, 1 - 0.71414
        green[i] = (y - cr + less as i16).clamp(0, 255) as u8;
    }
    std::array::from_fn(|i| u32::from(red[i]) | u32::from(green[i]) << 8 | u32::from(blue[i]) << 16)
}

/// Light that `ink` leaves on top of black. Files hold inks inverted, as Adobe's do: `black` is the light it leaves.
fn over_black(ink: u8, black: u8) -> u8 {
    let product = u32::from(ink) * u32::from(black) + 128;
    black.saturating_sub((((product >> 8) + product) >> 8) as u8)
}
