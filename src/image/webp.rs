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
    let all: Vec<Chunk> = Chunks(file.bytes.get(HEADER..).unwrap_or(&[])).collect();
    let find = |kind: &[u8; 4]| all.iter().find(|chunk| chunk.kind == *kind).map(|chunk| chunk.content);
    let extended = find(b"VP8X").filter(|header| header.len() >= 10);
    let flags = extended.map_or(0, |header| header[0]);
    let orientation =
        orientation::of(find(b"EXIF").filter(|_| flags & EXIF != 0), find(b"XMP ").filter(|_| flags & XMP != 0));
    if let Some(bitstream) = bitstream(&all) {
        let (width, height, rgb) = file.by_library(&bitstream.file())?;
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
    let chunks: Vec<Chunk> = Chunks(&frame[FRAME_HEADER..]).collect();
    let bitstream = bitstream(&chunks).ok_or_else(|| file.damaged("its first frame holds no image"))?;
    let (width, height, rgb) = file.by_library(&bitstream.file())?;
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
fn bitstream<'a, 'b>(chunks: &'b [Chunk<'a>]) -> Option<&'b Chunk<'a>> {
    chunks.iter().find(|chunk| matches!(&chunk.kind, b"VP8 " | b"VP8L"))
}

/// A chunk of a container.
struct Chunk<'a> {
    kind: [u8; 4],
    content: &'a [u8],
    /// Length of the content; more than there is, where the file ends within it.
    length: u32,
}

impl Chunk<'_> {
    /// A file of this chunk alone.
    fn file(&self) -> Vec<u8> {
        let padding = self.content.len() % 2;
        let whole = self.length.saturating_add((4 + 8 + padding) as u32).to_le_bytes();
        [b"RIFF", &whole, b"WEBP", &self.kind, &self.length.to_le_bytes(), self.content, &[0][..padding]].concat()
    }
}

/// The chunks of a container.
struct Chunks<'a>(&'a [u8]);

impl<'a> Iterator for Chunks<'a> {
    type Item = Chunk<'a>;

    fn next(&mut self) -> Option<Chunk<'a>> {
        let (kind, rest) = self.0.split_first_chunk::<4>()?;
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let length = u32::from_le_bytes(*length);
        let (content, rest) = rest.split_at((length as usize).min(rest.len()));
        // Content of odd length has a zero after it, which some writers leave out.
        let padding = usize::from(content.len() % 2 == 1 && rest.first() == Some(&0));
        self.0 = &rest[padding..];
        Some(Chunk { kind: *kind, content, length })
    }
}

/// A little-endian number.
fn number(bytes: &[u8]) -> usize {
    bytes.iter().rev().fold(0, |number, &byte| number << 8 | usize::from(byte))
}
