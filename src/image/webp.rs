//! WebP files, by the library `image`, from a container put in order: the bitstream of the (first) image alone. So flags
//! that announce chunks which are not there, chunks of unknown kinds and wrong sizes in the header do no harm.

use ::image::metadata::Orientation;

use super::decode::{File, upright};
use super::{Image, orientation};
use crate::Result;

/// Bytes before the first chunk: "RIFF", a size, "WEBP".
const HEADER: usize = 12;
/// Bytes of an animation frame before its chunks.
const FRAME_HEADER: usize = 16;
/// Flags of the extended header.
const EXIF: u8 = 0x08;
const XMP: u8 = 0x04;

/// Decodes a WebP file; of an animation, its first frame on a black canvas.
pub fn decode(file: &File) -> Result<Image> {
    let mut chunks = Chunks(file.bytes.get(HEADER..).unwrap_or(&[]));
    let all: Vec<(&[u8], &[u8])> = chunks.by_ref().collect();
    let find = |kind: &[u8; 4]| all.iter().find(|(other, _)| other == kind).map(|&(_, content)| content);
    let extended = find(b"VP8X").filter(|header| header.len() >= 10);
    let flags = extended.map_or(0, |header| header[0]);
    let orientation =
        orientation::of(find(b"EXIF").filter(|_| flags & EXIF != 0), find(b"XMP ").filter(|_| flags & XMP != 0));
    if let Some(bitstream) = bitstream(&all) {
        let (width, height, rgb) = file.by_library(&simple(bitstream))?;
        return Ok(upright(width, height, rgb, orientation));
    }
    match (extended, find(b"ANMF").filter(|frame| frame.len() >= FRAME_HEADER)) {
        (Some(header), Some(frame)) => first_frame(file, header, frame, orientation),
        _ => Err(file.damaged("it holds no image")),
    }
}

/// The first frame of an animation where the canvas has it; black around it.
fn first_frame(file: &File, header: &[u8], frame: &[u8], orientation: Orientation) -> Result<Image> {
    let (left, top) = (2 * number(&frame[..3]), 2 * number(&frame[3..6]));
    let canvas = (number(&header[4..7]) + 1, number(&header[7..10]) + 1);
    file.check_size(canvas.0 as u64, canvas.1 as u64)?;
    let chunks: Vec<(&[u8], &[u8])> = Chunks(&frame[FRAME_HEADER..]).collect();
    let bitstream = bitstream(&chunks).ok_or_else(|| file.damaged("its first frame holds no image"))?;
    let (width, height, rgb) = file.by_library(&simple(bitstream))?;
    if left + width > canvas.0 || top + height > canvas.1 {
        return Err(file.damaged("its first frame is larger than the canvas"));
    }
    let mut all = vec![0; canvas.0 * canvas.1 * 3];
    for (out, row) in all.chunks_exact_mut(canvas.0 * 3).skip(top).zip(rgb.chunks_exact(width * 3)) {
        out[left * 3..(left + width) * 3].copy_from_slice(row);
    }
    Ok(upright(canvas.0, canvas.1, all, orientation))
}

/// The chunk of the pixels' colours, lossy or lossless.
fn bitstream<'a>(chunks: &[(&'a [u8], &'a [u8])]) -> Option<(&'a [u8], &'a [u8])> {
    chunks.iter().find(|(kind, _)| matches!(*kind, b"VP8 " | b"VP8L")).copied()
}

/// A file of one chunk.
fn simple((kind, content): (&[u8], &[u8])) -> Vec<u8> {
    let length = (content.len() as u32).to_le_bytes();
    let padding = content.len() % 2;
    let whole = ((4 + 8 + content.len() + padding) as u32).to_le_bytes();
    [b"RIFF", &whole, b"WEBP", kind, &length, content, &[0][..padding]].concat()
}

/// The chunks of a container: kind and content. The last one may be cut off.
struct Chunks<'a>(&'a [u8]);

impl<'a> Iterator for Chunks<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (header, rest) = self.0.split_at_checked(8)?;
        let (kind, length) = header.split_at(4);
        let (content, rest) = rest.split_at((number(length)).min(rest.len()));
        // Content of odd length has a zero after it, which some writers leave out.
        let padding = usize::from(content.len() % 2 == 1 && rest.first() == Some(&0));
        self.0 = &rest[padding..];
        Some((kind, content))
    }
}

/// A little-endian number.
fn number(bytes: &[u8]) -> usize {
    bytes.iter().rev().fold(0, |number, &byte| number << 8 | usize::from(byte))
}
