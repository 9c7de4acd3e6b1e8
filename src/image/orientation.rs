//! The orientation of an image, from all the places where Pillow's `ImageOps.exif_transpose` finds one: the EXIF block
//! first, then XMP.

use ::image::metadata::Orientation;

/// Tag of the orientation in an EXIF block.
const ORIENTATION: u16 = 0x0112;

/// The orientation that `exif` or else `xmp` names.
pub fn of(exif: Option<&[u8]>, xmp: Option<&[u8]>) -> Orientation {
    let value = exif.and_then(in_exif).or_else(|| xmp.and_then(in_xmp));
    value.and_then(Orientation::from_exif).unwrap_or(Orientation::NoTransforms)
}

/// The orientation of a JPEG file. Its EXIF block is that of all EXIF segments put together, its XMP packet the last one.
pub fn of_jpeg(bytes: &[u8]) -> Orientation {
    let mut exif: Option<Vec<u8>> = None;
    let mut xmp = None;
    let mut rest = &bytes[2..];
    // The segments up to the first scan.
    while let Some(at) = rest.iter().position(|&byte| byte == 0xFF) {
        rest = &rest[at..];
        match *rest {
            [_, 0xFF, ..] => rest = &rest[1..],
            [_, 0x00 | 0x01 | 0xD0..=0xD8, ..] => rest = &rest[2..],
            [_, marker, high, low, ..] if marker != 0xDA => {
                let end = 2 + usize::from(u16::from_be_bytes([high, low])).max(2);
                let Some(content) = rest.get(4..end) else { break };
                if marker == 0xE1 && content.starts_with(b"Exif\0\0") {
                    exif.get_or_insert_default().extend_from_slice(&content[6..]);
                } else if marker == 0xE1 {
                    xmp = content.strip_prefix(b"http://ns.adobe.com/xap/1.0/\0").or(xmp);
                }
                rest = &rest[end..];
            }
            _ => break,
        }
    }
    of(exif.as_deref(), xmp)
}

/// The orientation in an EXIF block, a TIFF directory; `None` where it holds none.
fn in_exif(mut exif: &[u8]) -> Option<u8> {
    for _ in 0..2 {
        exif = exif.strip_prefix(b"Exif\0\0").unwrap_or(exif);
    }
    let little = match exif.get(..4)? {
        b"II*\0" | b"II\0*" => true,
        b"MM\0*" | b"MM*\0" => false,
        _ => return None,
    };
    let number = |at: usize, size: usize| -> Option<u64> {
        let bytes = exif.get(at..at.checked_add(size)?)?;
        let push = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
        Some(if little { bytes.iter().rev().fold(0, push) } else { bytes.iter().fold(0, push) })
    };
    let directory = number(4, 4)? as usize;
    for entry in 0..number(directory, 2)? as usize {
        let at = directory + 2 + 12 * entry;
        if number(at, 2)? != u64::from(ORIENTATION) {
            continue;
        }
        let (kind, count) = (number(at + 2, 2)?, number(at + 4, 4)?);
        let size: usize = match kind {
            6 => 1,
            3 | 8 => 2,
            4 | 9 | 11 | 13 => 4,
            5 | 10 | 12 | 16 => 8,
            _ => return Some(0),
        };
        if count == 0 {
            continue;
        }
        let inside = (count as usize).checked_mul(size)? <= 4;
        let place = if inside { at + 8 } else { number(at + 8, 4)? as usize };
        let value = match kind {
            5 | 10 => {
                let (top, bottom) = (number(place, 4)?, number(place + 4, 4)?);
                if bottom != 0 && top % bottom == 0 { top / bottom } else { 0 }
            }
            11 => f32::from_bits(number(place, 4)? as u32) as u64,
            12 => f64::from_bits(number(place, 8)?) as u64,
            _ => number(place, size)?,
        };
        // A value that means nothing is there all the same: XMP is not looked at.
        return Some(u8::try_from(value).unwrap_or(0));
    }
    None
}

/// The orientation in an XMP packet, as an attribute or as an element.
fn in_xmp(xmp: &[u8]) -> Option<u8> {
    const NAME: &[u8] = b"tiff:Orientation";
    xmp.windows(NAME.len()).enumerate().filter(|(_, window)| *window == NAME).find_map(|(at, _)| {
        let rest = &xmp[at + NAME.len()..];
        let value = rest.strip_prefix(b"=\"").or_else(|| rest.strip_prefix(b">"))?;
        value.first().filter(|digit| digit.is_ascii_digit()).map(|digit| digit - b'0')
    })
}
