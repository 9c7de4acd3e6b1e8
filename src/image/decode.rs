//! From the bytes of an image file to upright 8-bit RGB. The format is found in the content; the dimensions are checked
//! before a pixel is decoded; a file that ends early is an error, not a half-grey image.
//!
//! Pixels equal Pillow's `ImageOps.exif_transpose(image).convert("RGB")`, but for one difference on purpose: 16-bit grey
//! keeps its high byte, as 16-bit colour does in both (Pillow clips grey at 255, which turns almost every such image
//! white). Beyond Pillow, files are read whose pixels are all there though something around them is wrong.

use std::cell::Cell;
use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Once;

use ::image::error::ImageError;
use ::image::metadata::Orientation;
use ::image::{ColorType, ImageDecoder, ImageFormat, ImageReader, Limits};
use rayon::prelude::*;

use super::sniff::{name_of, sniff};
use super::{Image, MAX_PIXELS, bmp, check_size, gif, jpeg, orientation, png, webp};
use crate::{Error, Result};

/// Most bytes that the decoders may allocate: an image of [`MAX_PIXELS`] in 16-bit RGBA, and a quarter more to work in.
pub const MAX_DECODER_BYTES: u64 = 10 * MAX_PIXELS;

/// An image is turned in squares of this side, so that the cache lines of the source are used while they are near.
const TILE: usize = 32;

/// As [`Image::decode`].
pub(super) fn decode(bytes: &[u8], name: &Path) -> Result<Image> {
    let format = sniff(bytes).map_err(|problem| Error::image(name, problem))?;
    let file = File { bytes, name, format };
    contained(|| match format {
        ImageFormat::Jpeg => decode_jpeg(&file),
        ImageFormat::Png => png::decode(&file),
        ImageFormat::WebP => webp::decode(&file),
        ImageFormat::Gif => gif::decode(&file),
        _ => bmp::decode(&file),
    })
    .unwrap_or_else(|| Err(file.damaged("the decoder failed on it")))
}

/// Runs `decode`. A panic in it, as decoders of damaged files have had, is `None`; nothing is printed.
fn contained<T>(decode: impl FnOnce() -> T) -> Option<T> {
    thread_local!(static CONTAINED: Cell<bool> = const { Cell::new(false) });
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !CONTAINED.try_with(Cell::get).unwrap_or(false) {
                others(info);
            }
        }));
    });
    let before = CONTAINED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(decode));
    CONTAINED.set(before);
    result.ok()
}

/// A file to decode.
pub struct File<'a> {
    pub bytes: &'a [u8],
    name: &'a Path,
    format: ImageFormat,
}

impl File<'_> {
    /// The error for a file that breaks its format.
    pub fn damaged(&self, reason: impl std::fmt::Display) -> Error {
        let (format, reason) = (name_of(self.format), one_line(&reason));
        let problem = format!("is a {format} file that is cut off or damaged ({reason}): copy or download it again");
        Error::image(self.name, problem)
    }

    /// The error for a file that uses a part of its format that is not supported.
    pub fn unsupported(&self, part: impl std::fmt::Display) -> Error {
        let (format, part) = (name_of(self.format), one_line(&part));
        Error::image(self.name, format!("is a kind of {format} that cannot be read ({part}): save it as PNG"))
    }

    /// The error for a file that needs more than [`MAX_DECODER_BYTES`].
    pub fn too_large(&self) -> Error {
        let megabytes = MAX_DECODER_BYTES >> 20;
        Error::image(self.name, format!("needs more than {megabytes} MB to decode: scale it down first"))
    }

    /// The error for a file that would keep a processor busy for minutes.
    fn too_many_scans(&self) -> Error {
        let problem = "has more scans, for its size, than any program writes, and would take minutes to decode";
        Error::image(self.name, format!("{problem}: save it as PNG"))
    }

    /// The meaning of a library's complaint for the person who has the file.
    fn failed(&self, error: ImageError) -> Error {
        match error {
            ImageError::Limits(_) => self.too_large(),
            ImageError::Unsupported(reason) => self.unsupported(reason),
            other => self.damaged(other),
        }
    }

    /// Refuses dimensions beyond what an image may have.
    pub fn check_size(&self, width: u64, height: u64) -> Result<()> {
        check_size(width, height, self.name)
    }

    /// Decodes `bytes`, the file or what was made of it, by the library `image`: width, height and RGB.
    pub fn by_library(&self, bytes: &[u8]) -> Result<(usize, usize, Vec<u8>)> {
        let mut reader = ImageReader::with_format(Cursor::new(bytes), self.format);
        let mut limits = Limits::default();
        limits.max_alloc = Some(MAX_DECODER_BYTES);
        reader.limits(limits);
        let decoder = reader.into_decoder().map_err(|error| self.failed(error))?;
        let (width, height) = decoder.dimensions();
        self.check_size(width.into(), height.into())?;
        let color = decoder.color_type();
        let mut pixels = vec![0; width as usize * height as usize * usize::from(color.bytes_per_pixel())];
        decoder.read_image(&mut pixels).map_err(|error| self.failed(error))?;
        let rgb = to_rgb(pixels, color).ok_or_else(|| self.unsupported(format!("colour type {color:?}")))?;
        Ok((width as usize, height as usize, rgb))
    }
}

/// Some of the decoders end their messages with a line break.
fn one_line(message: &impl std::fmt::Display) -> String {
    message.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn decode_jpeg(file: &File) -> Result<Image> {
    let failed = |failure| match failure {
        jpeg::Failure::Damaged(reason) => file.damaged(reason),
        jpeg::Failure::Unsupported(part) => file.unsupported(part),
        jpeg::Failure::TooLarge => file.too_large(),
        jpeg::Failure::TooManyScans => file.too_many_scans(),
    };
    let decoder = jpeg::Decoder::new(file.bytes).map_err(failed)?;
    let (width, height) = decoder.dimensions();
    file.check_size(width as u64, height as u64)?;
    let rgb = decoder.decode().map_err(failed)?;
    Ok(upright(width, height, rgb, orientation::of_jpeg(file.bytes)))
}

/// Pixels of any decoder as RGB; `None` for a colour type that none of them gives.
pub fn to_rgb(mut pixels: Vec<u8>, color: ColorType) -> Option<Vec<u8>> {
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

/// Turns and mirrors a stored image into the one to look at.
pub fn upright(width: usize, height: usize, rgb: Vec<u8>, orientation: Orientation) -> Image {
    let (row, last) = (width as isize, (width * height) as isize - 1);
    let (right, bottom) = (row - 1, last - (row - 1));
    // Whether width and height change places; the stored pixel of the corner at the top left, then the way to the next
    // one in a row, and to the next row.
    let (turns, corner, along, down) = match orientation {
        Orientation::NoTransforms => return Image { width, height, rgb },
        Orientation::FlipHorizontal => (false, right, -1, row),
        Orientation::Rotate180 => (false, last, -1, -row),
        Orientation::FlipVertical => (false, bottom, 1, -row),
        Orientation::Rotate90FlipH => (true, 0, row, 1),
        Orientation::Rotate90 => (true, bottom, -row, 1),
        Orientation::Rotate270FlipH => (true, last, -row, -1),
        Orientation::Rotate270 => (true, right, row, -1),
    };
    let (width, height) = if turns { (height, width) } else { (width, height) };
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
    Image { width, height, rgb: turned }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::contained;

    #[test]
    fn a_contained_panic_is_silent_and_others_are_not() {
        static SEEN: AtomicUsize = AtomicUsize::new(0);
        let ours = |info: &std::panic::PanicHookInfo| info.location().is_some_and(|at| at.file() == file!());
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if ours(info) {
                SEEN.fetch_add(1, Ordering::Relaxed);
            } else {
                others(info);
            }
        }));
        assert_eq!(contained(|| 1), Some(1));
        assert_eq!(contained(|| -> i32 { panic!("a decoder fails") }), None);
        assert_eq!(contained(|| contained(|| -> i32 { panic!("within another") })), Some(None));
        assert_eq!(SEEN.load(Ordering::Relaxed), 0);
        assert!(std::panic::catch_unwind(|| panic!("something else fails")).is_err());
        assert_eq!(SEEN.load(Ordering::Relaxed), 1);
    }
}
