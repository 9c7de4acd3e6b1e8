//! The kind of a file, by its first bytes: a format that can be decoded, or the name of something else.

use ::image::ImageFormat;

use crate::files::Placeholder;

/// Bytes of the beginning that texts are looked for in.
const TEXT_BYTES: usize = 1024;

/// The format of an image file; or, to be put after the file's name, what it is instead and what to do.
pub fn sniff(bytes: &[u8]) -> Result<ImageFormat, String> {
    use ImageFormat::{Bmp, Gif, Jpeg, Png, WebP};
    const GIVE: &str = "give a JPEG, PNG, WebP, BMP or GIF file";
    if bytes.is_empty() {
        return Err(format!("is empty: {GIVE}"));
    }
    let format = ::image::guess_format(bytes);
    if let Ok(format @ (Jpeg | Png | WebP | Bmp | Gif)) = format {
        return Ok(format);
    }
    if let Some(problem) = in_place_of_image(bytes) {
        return Err(problem);
    }
    let what = match format {
        Ok(ImageFormat::Avif) => "an AVIF file".into(),
        Ok(other) => with_article(&format!("{} file", name_of(other))),
        Err(_) => other(bytes).into(),
    };
    Err(format!("is {what}: {GIVE}"))
}

/// A format's name for people.
pub fn name_of(format: ImageFormat) -> String {
    format!("{format:?}").to_uppercase()
}

fn with_article(name: &str) -> String {
    let article = if name.starts_with(['A', 'E', 'I', 'O']) { "an" } else { "a" };
    format!("{article} {name}")
}

/// The problem with a file that came in the place of an image: a pointer, a page, a server's message.
fn in_place_of_image(bytes: &[u8]) -> Option<String> {
    if bytes.starts_with(b"\x00\x05\x16\x07") {
        let what = "holds what macOS knows about another file, not an image";
        return Some(format!("{what}: give the file of the same name without \"._\""));
    }
    let placeholder = Placeholder::of(bytes);
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(TEXT_BYTES)]).to_ascii_lowercase();
    let text = text.trim_start_matches(|c: char| c == '\u{FEFF}' || c.is_whitespace());
    if text.starts_with('{') {
        return Some("is a JSON text, perhaps a server's error message, not the file: download it again".into());
    }
    if text.starts_with('<') && text.contains("<svg") && placeholder != Some(Placeholder::WebPage) {
        return Some("is an SVG drawing: save it as PNG".into());
    }
    placeholder.map(|placeholder| placeholder.problem().into())
}

/// The name of a file that is in no format of the library's.
fn other(bytes: &[u8]) -> &'static str {
    let begins = |magic: &[&[u8]]| magic.iter().any(|magic| bytes.starts_with(magic));
    if bytes.get(4..8) == Some(b"ftyp") {
        "a HEIC, AVIF or video file"
    } else if begins(&[b"%PDF"]) {
        "a PDF file"
    } else if begins(&[b"\0\0\0\x0CjP  \r\n\x87\n", b"\xFF\x4F\xFF\x51"]) {
        "a JPEG 2000 file"
    } else if begins(&[b"\0\0\0\x0CJXL \r\n\x87\n", b"\xFF\x0A"]) {
        "a JPEG XL file"
    } else if begins(&[b"PK\x03\x04", b"\x1F\x8B", b"7z\xBC\xAF", b"Rar!"]) {
        "an archive"
    } else {
        "no image this program knows"
    }
}
