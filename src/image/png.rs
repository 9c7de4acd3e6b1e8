//! PNG files, by the library `png`, from a container put in order: the chunks that matter, with the header in front and
//! an end. So pixels that are all there are decoded though a chunk stands before the header, the end is missing or the
//! checksum of a chunk of pixels is wrong, which their own checksum makes up for. That of the header and of the palette
//! must be right.

use std::borrow::Cow;
use std::io::Cursor;

use ::image::ColorType;
use ::image::metadata::Orientation;
use ::png::{BitDepth, ColorType as PngColor, DecodeOptions, Decoder, DecodingError, Info, Limits, Transformations};
use flate2::Crc;

use super::decode::{File, MAX_DECODER_BYTES, to_rgb, upright};
use super::{Image, orientation};
use crate::Result;

const SIGNATURE: &[u8; 8] = b"\x89PNG\r\n\x1A\n";
const END: &[u8; 12] = b"\0\0\0\0IEND\xAE\x42\x60\x82";
/// Texts that may hold an orientation, and the most bytes that one may have.
const EXIF_TEXT: &str = "Raw profile type exif";
const XMP_TEXT: &str = "XML:com.adobe.xmp";
const MAX_TEXT_BYTES: usize = 1 << 22;

/// Decodes a PNG file.
pub fn decode(file: &File) -> Result<Image> {
    let chunks = chunks(file.bytes);
    let as_stored = if is_in_order(&chunks) { file.bytes.into() } else { Cow::from(in_order(&chunks, |_| false)) };
    let (width, height, rgb) = pixels(file, &as_stored, DecodeOptions::default()).or_else(|error| {
        // Once more without the checksums of the chunks of pixels, if that of all pixels is right.
        let mut options = DecodeOptions::default();
        options.set_ignore_adler32(false);
        let mut chunks = self::chunks(file.bytes);
        chunks.iter_mut().filter(|chunk| chunk.kind == *b"IDAT").for_each(Chunk::correct);
        pixels(file, &in_order(&chunks, |_| false), options).map_err(|_| error)
    })?;
    Ok(upright(width, height, rgb, oriented(&chunks)))
}

/// A chunk: its kind, and where it lies with length and checksum.
struct Chunk<'a> {
    kind: [u8; 4],
    content: &'a [u8],
    /// Checksum; zeros where the file ends before it.
    checksum: [u8; 4],
}

impl Chunk<'_> {
    /// Gives the chunk the checksum of its content.
    fn correct(&mut self) {
        let mut checksum = Crc::new();
        checksum.update(&self.kind);
        checksum.update(self.content);
        self.checksum = checksum.sum().to_be_bytes();
    }
}

/// The chunks up to the end, wherever the file ends.
fn chunks(bytes: &[u8]) -> Vec<Chunk<'_>> {
    let mut chunks = Vec::new();
    let mut rest = &bytes[SIGNATURE.len()..];
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

/// Whether a file of these chunks has nothing to put in order or to leave out, as most have.
fn is_in_order(chunks: &[Chunk]) -> bool {
    let place = |chunk: &Chunk| [*b"IHDR", *b"PLTE", *b"IDAT", *b"IEND"].iter().position(|kind| *kind == chunk.kind);
    let Some(places) = chunks.iter().map(place).collect::<Option<Vec<_>>>() else { return false };
    let count = |place| places.iter().filter(|&&other| other == place).count();
    places.is_sorted() && [count(0), count(3)] == [1, 1] && count(1) <= 1
}

/// A file of the chunks that matter: header, palette, those that are `wanted` too, pixels.
fn in_order(chunks: &[Chunk], wanted: impl Fn(&Chunk) -> bool) -> Vec<u8> {
    let of_kind = |kind: &'static [u8; 4]| chunks.iter().filter(move |chunk| chunk.kind == *kind);
    let all = of_kind(b"IHDR").take(1).chain(of_kind(b"PLTE").take(1));
    let all = all.chain(chunks.iter().filter(|chunk| wanted(chunk))).chain(of_kind(b"IDAT"));
    let bytes: usize = chunks.iter().map(|chunk| chunk.content.len() + 12).sum();
    let mut out = Vec::with_capacity(SIGNATURE.len() + bytes + END.len());
    out.extend_from_slice(SIGNATURE);
    for chunk in all {
        out.extend_from_slice(&(chunk.content.len() as u32).to_be_bytes());
        out.extend_from_slice(&chunk.kind);
        out.extend_from_slice(chunk.content);
        out.extend_from_slice(&chunk.checksum);
    }
    out.extend_from_slice(END);
    out
}

/// Width, height and RGB.
fn pixels(file: &File, bytes: &[u8], options: DecodeOptions) -> Result<(usize, usize, Vec<u8>)> {
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
    Ok((width as usize, height as usize, rgb))
}

/// Samples of 16 bits stand with their high byte first.
fn big_endian_to_native(pixels: &mut [u8], depth: BitDepth) {
    if depth == BitDepth::Sixteen && cfg!(target_endian = "little") {
        pixels.as_chunks_mut::<2>().0.iter_mut().for_each(|sample| sample.reverse());
    }
}

/// The orientation: of the last EXIF chunk, of one that ImageMagick wrote as a text, or of XMP; before or after the pixels.
fn oriented(chunks: &[Chunk]) -> Orientation {
    let exif = chunks.iter().rfind(|chunk| chunk.kind == *b"eXIf").map(|chunk| chunk.content);
    let is_text = |chunk: &Chunk| {
        let named = [EXIF_TEXT, XMP_TEXT].iter().any(|name| chunk.content.starts_with(name.as_bytes()));
        named && matches!(&chunk.kind, b"tEXt" | b"zTXt" | b"iTXt")
    };
    if !chunks.iter().any(is_text) {
        return orientation::of(exif, None);
    }
    let Ok(reader) = Decoder::new(Cursor::new(in_order(chunks, is_text))).read_info() else {
        return orientation::of(exif, None);
    };
    let profile = text(reader.info(), EXIF_TEXT).map(|profile| from_hex(&profile));
    let xmp = text(reader.info(), XMP_TEXT);
    orientation::of(exif.or(profile.as_deref()), xmp.as_deref().map(str::as_bytes))
}

/// The text of that name.
fn text(info: &Info, name: &str) -> Option<String> {
    let plain = info.uncompressed_latin1_text.iter().find(|chunk| chunk.keyword == name);
    let compressed = || info.compressed_latin1_text.iter().find(|chunk| chunk.keyword == name);
    let international = || info.utf8_text.iter().find(|chunk| chunk.keyword == name);
    plain.map(|chunk| chunk.text.clone()).or_else(|| inflate(compressed()?)).or_else(|| unfold(international()?))
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
fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.lines().skip(3).flat_map(str::chars).filter_map(|c| c.to_digit(16)).collect();
    digits.as_chunks::<2>().0.iter().map(|[high, low]| (high << 4 | low) as u8).collect()
}
