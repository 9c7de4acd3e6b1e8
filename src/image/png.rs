//! PNG files, by the library `png`, from a container put in order: the chunks that matter, with the header in front and
//! an end. So pixels that are all there are decoded though a chunk stands before the header, the end is missing or a
//! checksum is wrong.

use std::io::Cursor;

use ::image::ColorType;
use ::image::metadata::Orientation;
use ::png::{BitDepth, ColorType as PngColor, DecodeOptions, Decoder, DecodingError, Info, Limits, Transformations};

use super::decode::{File, MAX_DECODER_BYTES, to_rgb, upright};
use super::{Image, orientation};
use crate::Result;

const SIGNATURE: usize = 8;
const END: &[u8; 12] = b"\0\0\0\0IEND\xAE\x42\x60\x82";
/// Texts that may hold an orientation, and the most bytes that one may have.
const EXIF_TEXT: &str = "Raw profile type exif";
const XMP_TEXT: &str = "XML:com.adobe.xmp";
const MAX_TEXT_BYTES: usize = 1 << 22;

/// Decodes a PNG file.
pub fn decode(file: &File) -> Result<Image> {
    let chunks = chunks(file.bytes);
    let first = attempt(file, &in_order(file.bytes, &chunks, true), DecodeOptions::default());
    first.or_else(|error| {
        // Once more without what need not be right: texts, and checksums of chunks if that of the pixels is right.
        let mut options = DecodeOptions::default();
        options.set_ignore_crc(true);
        options.set_ignore_adler32(false);
        attempt(file, &in_order(file.bytes, &chunks, false), options).map_err(|_| error)
    })
}

/// A chunk: its kind, and where it lies with length and checksum.
struct Chunk<'a> {
    kind: [u8; 4],
    content: &'a [u8],
    /// Checksum; zeros where the file ends before it.
    checksum: [u8; 4],
}

/// The chunks up to the end, wherever the file ends.
fn chunks(bytes: &[u8]) -> Vec<Chunk<'_>> {
    let mut chunks = Vec::new();
    let mut rest = &bytes[SIGNATURE..];
    while let Some((length, after)) = rest.split_first_chunk::<4>()
        && let Some((kind, after)) = after.split_first_chunk::<4>()
    {
        let (content, after) = after.split_at((u32::from_be_bytes(*length) as usize).min(after.len()));
        let checksum = after.first_chunk::<4>();
        chunks.push(Chunk { kind: *kind, content, checksum: checksum.copied().unwrap_or_default() });
        rest = after.get(4..).unwrap_or(&[]);
        if kind == b"IEND" {
            break;
        }
    }
    chunks
}

/// The chunks that matter: header, palette, what may hold an orientation (where `texts`), pixels.
fn in_order(bytes: &[u8], chunks: &[Chunk], texts: bool) -> Vec<u8> {
    let mut out = bytes[..SIGNATURE].to_vec();
    let mut put = |wanted: &dyn Fn(&Chunk) -> bool, first: bool| {
        for chunk in chunks.iter().filter(|chunk| wanted(chunk)).take(if first { 1 } else { usize::MAX }) {
            out.extend_from_slice(&(chunk.content.len() as u32).to_be_bytes());
            out.extend_from_slice(&chunk.kind);
            out.extend_from_slice(chunk.content);
            out.extend_from_slice(&chunk.checksum);
        }
    };
    put(&|chunk| chunk.kind == *b"IHDR", true);
    put(&|chunk| chunk.kind == *b"PLTE", true);
    if texts {
        let last_exif = chunks.iter().rfind(|chunk| chunk.kind == *b"eXIf").map(|chunk| chunk.content.as_ptr());
        put(&|chunk| chunk.kind == *b"eXIf" && Some(chunk.content.as_ptr()) == last_exif, true);
        let named = |chunk: &Chunk| [EXIF_TEXT, XMP_TEXT].iter().any(|name| chunk.content.starts_with(name.as_bytes()));
        put(&|chunk| matches!(&chunk.kind, b"tEXt" | b"zTXt" | b"iTXt") && named(chunk), false);
    }
    put(&|chunk| chunk.kind == *b"IDAT", false);
    out.extend_from_slice(END);
    out
}

fn attempt(file: &File, bytes: &[u8], options: DecodeOptions) -> Result<Image> {
    let failed = |error| match error {
        DecodingError::LimitsExceeded => file.too_large(),
        other => file.damaged(other),
    };
    let mut decoder = Decoder::new_with_options(Cursor::new(bytes), options);
    decoder.set_limits(Limits { bytes: MAX_DECODER_BYTES as usize });
    decoder.set_transformations(Transformations::EXPAND);
    let mut reader = decoder.read_info().map_err(failed)?;
    let (width, height) = (reader.info().width, reader.info().height);
    file.check_size(width.into(), height.into())?;
    let orientation = oriented(reader.info());
    let size = reader.output_buffer_size().filter(|&size| size as u64 <= MAX_DECODER_BYTES);
    let mut pixels = vec![0; size.ok_or_else(|| file.too_large())?];
    let info = reader.next_frame(&mut pixels).map_err(failed)?;
    let color = match (info.color_type, info.bit_depth) {
        (PngColor::Grayscale, BitDepth::Sixteen) => ColorType::L16,
        (PngColor::GrayscaleAlpha, BitDepth::Sixteen) => ColorType::La16,
        (PngColor::Rgb, BitDepth::Sixteen) => ColorType::Rgb16,
        (PngColor::Rgba, BitDepth::Sixteen) => ColorType::Rgba16,
        (PngColor::Grayscale, _) => ColorType::L8,
        (PngColor::GrayscaleAlpha, _) => ColorType::La8,
        (PngColor::Rgb, _) => ColorType::Rgb8,
        (PngColor::Rgba, _) => ColorType::Rgba8,
        (PngColor::Indexed, _) => return Err(file.damaged("its palette is missing")),
    };
    big_endian_to_native(&mut pixels, info.bit_depth);
    let rgb = to_rgb(pixels, color).ok_or_else(|| file.unsupported(format!("colour type {color:?}")))?;
    Ok(upright(width as usize, height as usize, rgb, orientation))
}

/// Samples of 16 bits stand with their high byte first.
fn big_endian_to_native(pixels: &mut [u8], depth: BitDepth) {
    if depth == BitDepth::Sixteen && cfg!(target_endian = "little") {
        pixels.as_chunks_mut::<2>().0.iter_mut().for_each(|sample| sample.reverse());
    }
}

/// The orientation: of the EXIF chunk, of one that ImageMagick wrote as a text, or of XMP.
fn oriented(info: &Info) -> Orientation {
    let text = |name: &str| {
        let plain = info.uncompressed_latin1_text.iter().find(|chunk| chunk.keyword == name);
        let compressed = || info.compressed_latin1_text.iter().find(|chunk| chunk.keyword == name);
        let international = || info.utf8_text.iter().find(|chunk| chunk.keyword == name);
        plain.map(|chunk| chunk.text.clone()).or_else(|| inflate(compressed()?)).or_else(|| unfold(international()?))
    };
    let exif = info.exif_metadata.as_ref().map(|exif| exif.to_vec());
    let exif = exif.or_else(|| from_hex(&text(EXIF_TEXT)?));
    orientation::of(exif.as_deref(), text(XMP_TEXT).as_deref().map(str::as_bytes))
}

fn inflate(chunk: &::png::text_metadata::ZTXtChunk) -> Option<String> {
    let mut chunk = chunk.clone();
    chunk.decompress_text_with_limit(MAX_TEXT_BYTES).ok()?;
    chunk.get_text().ok()
}

fn unfold(chunk: &::png::text_metadata::ITXtChunk) -> Option<String> {
    let mut chunk = chunk.clone();
    chunk.decompress_text_with_limit(MAX_TEXT_BYTES).ok()?;
    chunk.get_text().ok()
}

/// The bytes of a "raw profile": after an empty line, a name and a length, hexadecimal digits in lines.
fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u32> = text.lines().skip(3).flat_map(str::chars).filter_map(|c| c.to_digit(16)).collect();
    Some(digits.as_chunks::<2>().0.iter().map(|[high, low]| (high << 4 | low) as u8).collect())
}
