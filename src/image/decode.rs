//! From the bytes of a picture file to upright 8-bit RGB. The format is found in the content; the dimensions are checked
//! before a pixel is decoded; a file that ends early is an error, not a half-grey picture.
//!
//! What differs from Pillow's `convert("RGB")`, on purpose: 16-bit grey keeps its high byte, as 16-bit colour does in
//! both (Pillow clips grey at 255, which turns almost every such picture white); an EXIF orientation is applied; the
//! part of a GIF's screen that its first frame leaves uncovered is black.

use std::io::Cursor;
use std::path::Path;

use ::image::error::ImageError;
use ::image::metadata::Orientation;
use ::image::{ColorType, ImageDecoder, ImageFormat, ImageReader, Limits};
use rayon::prelude::*;

use super::{Image, MAX_PIXELS, check_size};
use crate::{Error, Result};

/// What the decoders may allocate: a picture of [`MAX_PIXELS`] in 16-bit RGBA, and a quarter more to work in.
const MAX_DECODER_BYTES: u64 = 10 * MAX_PIXELS;

/// A picture is turned in squares of this side, so that the cache lines of the source are used while they are near.
const TILE: usize = 32;

/// As [`Image::decode`].
pub(super) fn decode(bytes: &[u8], name: &Path) -> Result<Image> {
    let format = sniff(bytes).map_err(|problem| Error::image(name, problem))?;
    let failed = |error| Error::image(name, explain(error, format));
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_DECODER_BYTES);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(failed)?;
    let (width, height) = decoder.dimensions();
    check_size(width.into(), height.into(), name)?;
    if format == ImageFormat::Jpeg && !jpeg_is_complete(bytes) {
        return Err(Error::image(name, damaged(format, "it ends before the picture does")));
    }
    // A broken orientation is no reason to refuse the picture.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let color = decoder.color_type();
    let mut pixels = vec![0; width as usize * height as usize * usize::from(color.bytes_per_pixel())];
    decoder.read_image(&mut pixels).map_err(failed)?;
    let rgb = to_rgb(pixels, color)
        .ok_or_else(|| Error::image(name, format!("has the colour type {color:?}: save it as 8-bit RGB")))?;
    let (width, height, rgb) = upright(width as usize, height as usize, rgb, orientation);
    Ok(Image { width, height, rgb })
}

/// The format, from the first bytes; or what they are instead.
fn sniff(bytes: &[u8]) -> std::result::Result<ImageFormat, String> {
    use ImageFormat::{Bmp, Gif, Jpeg, Png, WebP};
    if bytes.is_empty() {
        return Err("is empty: give a JPEG, PNG, WebP, BMP or GIF file".into());
    }
    let what = match ::image::guess_format(bytes) {
        Ok(format @ (Jpeg | Png | WebP | Bmp | Gif)) => return Ok(format),
        Ok(other) => format!("a {} file", name_of(other)),
        Err(_) if bytes.get(4..8) == Some(b"ftyp") => "a HEIC, AVIF or video file".into(),
        Err(_) if bytes.starts_with(b"%PDF") => "a PDF file".into(),
        Err(_) => "no picture this program knows".into(),
    };
    Err(format!("is {what}: give a JPEG, PNG, WebP, BMP or GIF file"))
}

/// What a decoder's complaint means for the person who has the file.
fn explain(error: ImageError, format: ImageFormat) -> String {
    match error {
        ImageError::Limits(_) => {
            format!("needs more than {} MB to decode: scale it down first", MAX_DECODER_BYTES >> 20)
        }
        ImageError::Unsupported(reason) => {
            format!("is a kind of {} that cannot be read ({}): save it as PNG", name_of(format), one_line(&reason))
        }
        other => damaged(format, &one_line(&other)),
    }
}

fn damaged(format: ImageFormat, reason: &str) -> String {
    format!("is a {} file that is cut off or damaged ({reason}): copy or download it again", name_of(format))
}

fn name_of(format: ImageFormat) -> String {
    format!("{format:?}").to_uppercase()
}

/// Some of the decoders end their messages with a line break.
fn one_line(message: &impl std::fmt::Display) -> String {
    message.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether the end-of-image marker follows the scans of a JPEG. The decoder itself fills what is missing with grey.
fn jpeg_is_complete(bytes: &[u8]) -> bool {
    const END: [u8; 2] = [0xFF, 0xD9];
    if bytes.ends_with(&END) {
        return true;
    }
    // Something follows the picture, or nothing ends it: walk over the segments, whose content may hold any byte.
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|&byte| byte == 0xFF) {
        rest = &rest[at..];
        match rest.get(1) {
            Some(0xD9) => return true,
            // Stuffing and restarts inside a scan, and markers that stand alone.
            Some(0x00 | 0x01 | 0xD0..=0xD8) => rest = &rest[2..],
            Some(0xFF) => rest = &rest[1..],
            _ => match rest.get(2..4) {
                Some(length) => {
                    let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
                    rest = rest.get(2 + length..).unwrap_or(&[]);
                }
                None => return false,
            },
        }
    }
    false
}

/// Pixels of any decoder as RGB; `None` for a colour type that none of them gives.
fn to_rgb(mut pixels: Vec<u8>, color: ColorType) -> Option<Vec<u8>> {
    /// High byte of a native-endian 16-bit sample.
    const HIGH: usize = if cfg!(target_endian = "little") { 1 } else { 0 };
    let grey = |pixels: &[u8], step: usize, at: usize| pixels.chunks_exact(step).flat_map(|p| [p[at]; 3]).collect();
    Some(match color {
        ColorType::Rgb8 => pixels,
        ColorType::L8 => grey(&pixels, 1, 0),
        ColorType::La8 => grey(&pixels, 2, 0),
        ColorType::L16 => grey(&pixels, 2, HIGH),
        ColorType::La16 => grey(&pixels, 4, HIGH),
        ColorType::Rgba8 => {
            keep(&mut pixels, 4, [0, 1, 2]);
            pixels
        }
        ColorType::Rgb16 => {
            keep(&mut pixels, 6, [HIGH, HIGH + 2, HIGH + 4]);
            pixels
        }
        ColorType::Rgba16 => {
            keep(&mut pixels, 8, [HIGH, HIGH + 2, HIGH + 4]);
            pixels
        }
        _ => return None,
    })
}

/// Keeps three bytes of every `step`, in place.
fn keep(pixels: &mut Vec<u8>, step: usize, at: [usize; 3]) {
    let count = pixels.len() / step;
    for pixel in 0..count {
        let [r, g, b] = at.map(|at| pixels[pixel * step + at]);
        pixels[pixel * 3..pixel * 3 + 3].copy_from_slice(&[r, g, b]);
    }
    pixels.truncate(count * 3);
    pixels.shrink_to_fit();
}

/// Turns and mirrors a stored picture into the one to look at: its width, its height, its pixels.
fn upright(width: usize, height: usize, rgb: Vec<u8>, orientation: Orientation) -> (usize, usize, Vec<u8>) {
    let (row, last) = (width as isize, (width * height) as isize - 1);
    let (right, bottom) = (row - 1, last - (row - 1));
    // The stored pixel of the corner at the top left, then the way to the next one in a row, and to the next row.
    let (corner, along, down) = match orientation {
        Orientation::NoTransforms => return (width, height, rgb),
        Orientation::FlipHorizontal => (right, -1, row),
        Orientation::Rotate180 => (last, -1, -row),
        Orientation::FlipVertical => (bottom, 1, -row),
        Orientation::Rotate90FlipH => (0, row, 1),
        Orientation::Rotate90 => (bottom, -row, 1),
        Orientation::Rotate270FlipH => (last, -row, -1),
        Orientation::Rotate270 => (right, row, -1),
    };
    let (width, height) = if along.abs() == 1 && down.abs() == row { (width, height) } else { (height, width) };
    let (stored, _) = rgb.as_chunks::<3>();
    let mut turned = vec![0; rgb.len()];
    turned.par_chunks_mut(width * 3 * TILE).enumerate().for_each(|(task, rows)| {
        for left in (0..width).step_by(TILE) {
            let right = width.min(left + TILE);
            for (y, out) in rows.chunks_exact_mut(width * 3).enumerate() {
                let start = corner + (task * TILE + y) as isize * down;
                for (x, pixel) in (left..right).zip(out[left * 3..right * 3].as_chunks_mut::<3>().0) {
                    *pixel = stored[(start + x as isize * along) as usize];
                }
            }
        }
    });
    (width, height, turned)
}
