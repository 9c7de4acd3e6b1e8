//! BMP files, by the library `image`, with the headers of OS/2 2.x and the masks of Windows CE made into the usual form, and
//! 5- and 6-bit colours scaled as Pillow does.

use std::borrow::Cow;

use super::Image;
use super::decode::File;
use crate::Result;

/// Bytes before the bitmap's header, which begins with its length.
const FILE_HEADER: usize = 14;
/// Length of the Windows header that OS/2's is made into.
const WINDOWS_HEADER: usize = 40;

/// Decodes a BMP file.
pub fn decode(file: &File) -> Result<Image> {
    let bytes = windows_form(file.bytes);
    let (width, height, mut rgb) = file.by_library(&bytes)?;
    if let Some(largest) = levels(&bytes) {
        for pixel in rgb.as_chunks_mut::<3>().0 {
            for (level, largest) in pixel.iter_mut().zip(largest) {
                // The library rounds, Pillow cuts off.
                let bits = (u32::from(*level) * largest + 127) / 255;
                *level = (bits * 255 / largest) as u8;
            }
        }
    }
    Ok(Image { width, height, rgb })
}

/// Where the compression stands; masks of three colours, and of three and alpha.
const COMPRESSION: usize = 30;
const MASKS: usize = 3;
const ALPHA_MASKS: usize = 6;

/// The file with a Windows header where it has one of OS/2 2.x: 16 to 64 bytes, whose fields up to 40 mean the same.
fn windows_form(bytes: &[u8]) -> Cow<'_, [u8]> {
    let length = number(bytes, FILE_HEADER, 4).unwrap_or(0);
    let other = (16..=64).contains(&length) && !matches!(length, WINDOWS_HEADER | 52 | 56);
    let Some(header) = bytes.get(FILE_HEADER..FILE_HEADER + length).filter(|_| other) else {
        // Alpha is dropped: its mask lies before the pixels, which have an offset of their own.
        let with_alpha = length == WINDOWS_HEADER && number(bytes, COMPRESSION, 4) == Some(ALPHA_MASKS);
        return if with_alpha {
            Cow::Owned([&bytes[..COMPRESSION], &[MASKS as u8], &bytes[COMPRESSION + 1..]].concat())
        } else {
            Cow::Borrowed(bytes)
        };
    };
    let mut fields = [0; WINDOWS_HEADER];
    let known = length.min(WINDOWS_HEADER);
    fields[..known].copy_from_slice(&header[..known]);
    fields[..4].copy_from_slice(&(WINDOWS_HEADER as u32).to_le_bytes());
    let offset = number(bytes, 10, 4).unwrap_or(0) + WINDOWS_HEADER;
    let offset = (offset.saturating_sub(length) as u32).to_le_bytes();
    let rest = &bytes[FILE_HEADER + length..];
    Cow::Owned([&bytes[..10], &offset, &fields, rest].concat())
}

/// Largest values of red, green and blue where a pixel has 16 bits.
fn levels(bytes: &[u8]) -> Option<[u32; 3]> {
    if number(bytes, FILE_HEADER, 4)? < WINDOWS_HEADER || number(bytes, 28, 2)? != 16 {
        return None;
    }
    let mask = |at| number(bytes, at, 4);
    match (number(bytes, COMPRESSION, 4)?, mask(54), mask(58), mask(62)) {
        (0, ..) | (3, Some(0x7C00), Some(0x03E0), Some(0x1F)) => Some([31, 31, 31]),
        (3, Some(0xF800), Some(0x07E0), Some(0x1F)) => Some([31, 63, 31]),
        _ => None,
    }
}

/// A little-endian number of `size` bytes.
fn number(bytes: &[u8], at: usize, size: usize) -> Option<usize> {
    Some(bytes.get(at..at + size)?.iter().rev().fold(0, |number, &byte| number << 8 | usize::from(byte)))
}
