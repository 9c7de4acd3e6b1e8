//! Images: from the bytes of a JPEG, PNG, WebP, BMP or GIF file to 8-bit RGB, and from there to the normalised pixels
//! a vision transformer takes. Colour profiles are ignored and an alpha channel is dropped, as in the reference
//! pipeline; of an animation the first frame counts.

mod avx2;
mod bmp;
mod decode;
pub mod folder;
mod gif;
mod jpeg;
mod orientation;
mod png;
mod resize;
mod sniff;
mod webp;

use std::path::Path;

use crate::{Error, Result, files};

/// Most pixels of an image, width times height. The fuzz targets (`fuzz/`) are compiled with fewer, so that none of
/// their executions is long.
pub const MAX_PIXELS: u64 = if cfg!(fuzzing) { 1 << 14 } else { 1 << 27 };

/// Most bytes of an image file.
pub const MAX_FILE_BYTES: u64 = 1 << 29;

/// An upright image of at least one pixel: rows from the top, three bytes R, G, B per pixel.
#[derive(Clone, PartialEq, Eq)]
pub struct Image {
    width: usize,
    height: usize,
    rgb: Vec<u8>, // (height, width, 3)
}

impl Image {
    /// Reads and decodes the image file at `path`. Its format is that of its content, whatever its name.
    pub fn open(path: impl AsRef<Path>) -> Result<Image> {
        let path = path.as_ref();
        Image::decode(&files::read_at_most(path, MAX_FILE_BYTES)?, path)
    }

    /// Decodes the content of an image file; `name` is what errors call it.
    pub fn decode(bytes: &[u8], name: &Path) -> Result<Image> {
        decode::decode(bytes, name)
    }

    /// Wraps decoded pixels: rows from the top, three bytes per pixel.
    pub fn from_rgb(width: usize, height: usize, rgb: Vec<u8>) -> Result<Image> {
        let name = Path::new("<memory>");
        check_size(width as u64, height as u64, name)?;
        if rgb.len() != width * height * 3 {
            let problem = format!("{} bytes are no {width}x{height} RGB image: it has {width}*{height}*3", rgb.len());
            return Err(Error::image(name, problem));
        }
        Ok(Image { width, height, rgb })
    }

    /// Pixels per row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The pixels: rows from the top, three bytes R, G, B each.
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Image({}x{})", self.width, self.height)
    }
}

/// Refuses an image without pixels and one with more than [`MAX_PIXELS`].
fn check_size(width: u64, height: u64, name: &Path) -> Result<()> {
    if width == 0 || height == 0 {
        return Err(Error::image(name, format!("is {width}x{height}: an image needs at least one pixel")));
    }
    if width.checked_mul(height).is_none_or(|pixels| pixels > MAX_PIXELS) {
        let problem = format!(
            "is {width}x{height}; images of up to {} million pixels are accepted: scale it down first",
            MAX_PIXELS / 1_000_000
        );
        return Err(Error::image(name, problem));
    }
    Ok(())
}
