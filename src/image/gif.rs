//! GIF files, by the library `gif`: the first frame on its screen, as Pillow shows it.

use std::io::Cursor;

use ::gif::{ColorOutput, DecodeOptions, MemoryLimit};

use super::Image;
use super::decode::{File, MAX_DECODER_BYTES};
use crate::Result;

/// Decodes the first frame. A screen smaller than the frame grows; what the frame leaves uncovered has the transparent
/// colour, or else the first one; a colour that no palette has is a grey of its number.
pub fn decode(file: &File) -> Result<Image> {
    let failed = |error: ::gif::DecodingError| file.damaged(error);
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    options.set_memory_limit(MemoryLimit::Unlimited); // the size is checked here
    let mut decoder = options.read_info(Cursor::new(file.bytes)).map_err(failed)?;
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
        std::array::from_fn(|index| palette.as_chunks::<3>().0.get(index).copied().unwrap_or([index as u8; 3]));
    let mut rgb = colours[usize::from(background)].repeat(width * height);
    for (out, row) in rgb.chunks_exact_mut(width * 3).skip(top).zip(indices.chunks_exact(wide)) {
        for (pixel, &index) in out[left * 3..].as_chunks_mut::<3>().0.iter_mut().zip(row) {
            *pixel = colours[usize::from(index)];
        }
    }
    Ok(Image { width, height, rgb })
}
