//! GIF files, by the library `gif`: the first frame on its screen, as Pillow shows it.

use std::borrow::Cow;
use std::io::Cursor;

use ::gif::{ColorOutput, DecodeOptions, MemoryLimit};

use super::Image;
use super::decode::{File, MAX_DECODER_BYTES};
use crate::Result;

/// Where the logical screen's flags stand, and the length of its descriptor with the file's signature.
const FLAGS: usize = 10;
const SCREEN: usize = 13;
/// Flags: a palette of 256 colours follows.
const PALETTE: u8 = 0x80;
const COLOURS_256: u8 = 0x07;

/// Decodes the first frame. A screen smaller than the frame grows; what the frame leaves uncovered has the transparent
/// colour, or else the first one; a colour beyond the palette is black.
pub fn decode(file: &File) -> Result<Image> {
    let failed = |error: ::gif::DecodingError| file.damaged(error);
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    options.allow_unknown_blocks(true);
    options.set_memory_limit(MemoryLimit::Unlimited); // the size is checked here
    let mut decoder = options.read_info(Cursor::new(with_palette(file.bytes))).map_err(failed)?;
    let screen = (usize::from(decoder.width()), usize::from(decoder.height()));
    let frame = decoder.next_frame_info().map_err(failed)?.ok_or_else(|| file.damaged("it holds no image"))?;
    let (left, top) = (usize::from(frame.left), usize::from(frame.top));
    let (wide, high) = (usize::from(frame.width), usize::from(frame.height));
    let background = frame.transparent.unwrap_or(0);
    let (width, height) = (screen.0.max(left + wide), screen.1.max(top + high));
    file.check_size(width as u64, height as u64)?;
    if wide == 0 || high == 0 {
        return Err(file.damaged("its first frame is empty"));
    }
    debug_assert!((width * height) as u64 <= MAX_DECODER_BYTES);
    let own = frame.palette.clone();
    let mut indices = vec![0; wide * high];
    decoder.read_into_buffer(&mut indices).map_err(failed)?;
    let palette = own.as_deref().or(decoder.global_palette()).unwrap_or(&[]);
    let colours: [[u8; 3]; 256] =
        std::array::from_fn(|index| palette.as_chunks::<3>().0.get(index).copied().unwrap_or_default());
    let mut rgb = colours[usize::from(background)].repeat(width * height);
    for (out, row) in rgb.chunks_exact_mut(width * 3).skip(top).zip(indices.chunks_exact(wide)) {
        for (pixel, &index) in out[left * 3..].as_chunks_mut::<3>().0.iter_mut().zip(row) {
            *pixel = colours[usize::from(index)];
        }
    }
    Ok(Image { width, height, rgb })
}

/// The file with a palette for all frames, levels of grey, where it has none.
fn with_palette(bytes: &[u8]) -> Cow<'_, [u8]> {
    match bytes.split_at_checked(SCREEN) {
        Some((screen, rest)) if screen[FLAGS] & PALETTE == 0 => {
            let mut whole = screen.to_vec();
            whole[FLAGS] |= PALETTE | COLOURS_256;
            whole.extend((0..=255).flat_map(|level| [level; 3]));
            whole.extend_from_slice(rest);
            Cow::Owned(whole)
        }
        _ => Cow::Borrowed(bytes),
    }
}
