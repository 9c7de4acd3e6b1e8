//! The promise: every common image file becomes the pixels the reference pipeline makes of it, and every other file
//! becomes one clear error. Golden data comes from `recipes/golden/images.py`.

use std::path::{Path, PathBuf};

use im2sp::config::ImageConfig;
use im2sp::image::{Image, MAX_PIXELS};
use proptest::prelude::*;

/// Files of decode/.
const DECODE: [&str; 38] = [
    "rgb.png",
    "rgba.png",
    "grey.png",
    "grey_alpha.png",
    "bit.png",
    "palette.png",
    "palette_transparent.png",
    "animated.png",
    "rgb16.png",
    "rgba16.png",
    "grey16.png",
    "grey_alpha16.png",
    "rgb.jpg",
    "rgb_444_progressive.jpg",
    "grey.jpg",
    "cmyk.jpg",
    "ycck.jpg",
    "keep_rgb.jpg",
    "trailer.jpg",
    "rgb.bmp",
    "palette.bmp",
    "lossless.webp",
    "lossless_alpha.webp",
    "lossy.webp",
    "animated.webp",
    "still.gif",
    "transparent.gif",
    "animated.gif",
    "exif_1.jpg",
    "exif_2.jpg",
    "exif_3.jpg",
    "exif_4.jpg",
    "exif_5.jpg",
    "exif_6.jpg",
    "exif_7.jpg",
    "exif_8.jpg",
    "exif_6.png",
    "exif_5.webp",
];

const MEAN: [f32; 3] = [0.48145466, 0.4578275, 0.40821073];
const STD: [f32; 3] = [0.26862954, 0.2613026, 0.2757771];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/images").join(name)
}

fn open(name: &str) -> Image {
    Image::open(golden(name)).unwrap()
}

fn clip(size: usize) -> ImageConfig {
    ImageConfig { mean: MEAN, std: STD, ..ImageConfig::clip(size) }
}

/// A configuration under which pixels come back as the bytes they were.
fn as_bytes(image: &Image, size: usize) -> Vec<u8> {
    let planes = image.preprocess(&ImageConfig { mean: [0.0; 3], std: [1.0; 3], ..ImageConfig::clip(size) });
    (0..size * size * 3).map(|i| (planes[i % 3 * size * size + i / 3] * 255.0).round() as u8).collect()
}

/// The files of resize/ or clip/ that end in `.in.png`, with the rest of their name and the short side.
fn resize_cases(folder: &str) -> Vec<(String, usize)> {
    let names = std::fs::read_dir(golden(folder)).unwrap().map(|entry| entry.unwrap().file_name());
    let cases: Vec<_> = names
        .filter_map(|name| {
            let stem = name.to_str()?.strip_suffix(".in.png")?.to_owned();
            let size = stem.rsplit('_').next()?.parse().ok()?;
            Some((format!("{folder}/{stem}"), size))
        })
        .collect();
    assert!(cases.len() >= 3, "{folder} is incomplete");
    cases
}

/// Error of a refused image, in one line.
fn refusal(bytes: &[u8]) -> String {
    let message = Image::decode(bytes, Path::new("cat.jpg")).unwrap_err().to_string();
    assert!(message.starts_with("cat.jpg: "), "{message}");
    assert!(!message.contains('\n'), "{message}");
    message
}

#[test]
fn every_kind_of_file_decodes_as_in_pillow() {
    for name in DECODE {
        assert_same(name, &open(&format!("decode/{name}")), &open(&format!("decode/{name}.png")));
    }
}

/// A file of a pack, and what Pillow makes of it: nothing, where it refuses it.
struct Kind {
    name: String,
    file: Vec<u8>,
    pixels: Option<Image>,
}

/// The files of kinds/`pack`.pack.
fn kinds(pack: &str) -> Vec<Kind> {
    let bytes = std::fs::read(golden(&format!("kinds/{pack}.pack"))).unwrap();
    let mut rest = bytes.as_slice();
    let mut kinds = Vec::new();
    while !rest.is_empty() {
        let length = number(&mut rest, 2);
        let name = String::from_utf8(rest.split_off(..length).unwrap().to_vec()).unwrap();
        let length = number(&mut rest, 4);
        let file = rest.split_off(..length).unwrap().to_vec();
        let (width, height) = (number(&mut rest, 2), number(&mut rest, 2));
        let rgb = rest.split_off(..width * height * 3).unwrap().to_vec();
        let pixels = (width > 0).then(|| Image::from_rgb(width, height, rgb).unwrap());
        kinds.push(Kind { name, file, pixels });
    }
    assert!(kinds.len() >= 10, "{pack} is incomplete");
    kinds
}

/// Takes a little-endian number of `size` bytes.
fn number(rest: &mut &[u8], size: usize) -> usize {
    rest.split_off(..size).unwrap().iter().rev().fold(0, |number, &byte| number << 8 | usize::from(byte))
}

/// Decodes a pack: every file gives Pillow's pixels, or is refused where Pillow refuses it.
fn decodes_as_in_pillow(pack: &str) {
    for Kind { name, file, pixels } in kinds(pack) {
        match (Image::decode(&file, Path::new(&name)), pixels) {
            (Ok(ours), Some(theirs)) => assert_same(&name, &ours, &theirs),
            (Err(error), None) => assert!(error.to_string().starts_with(&format!("{name}: is a ")), "{error}"),
            (ours, theirs) => panic!("{pack}/{name}: {ours:?}, but in Pillow {theirs:?}"),
        }
    }
}

#[track_caller]
fn assert_same(name: &str, ours: &Image, theirs: &Image) {
    assert_eq!((ours.width(), ours.height()), (theirs.width(), theirs.height()), "{name}");
    let worst = ours.rgb().iter().zip(theirs.rgb()).map(|(a, b)| a.abs_diff(*b)).max();
    assert_eq!(worst, Some(0), "{name}: levels that it differs by");
}

#[test]
fn jpegs_of_any_sampling_and_division_into_scans_decode_as_in_pillow() {
    decodes_as_in_pillow("sampling");
}

#[test]
fn jpegs_of_any_colour_space_and_markers_decode_as_in_pillow() {
    decodes_as_in_pillow("colour");
}

#[test]
fn jpegs_of_any_process_and_progress_decode_as_in_pillow() {
    decodes_as_in_pillow("process");
}

#[test]
fn jpegs_of_a_few_pixels_decode_as_in_pillow() {
    decodes_as_in_pillow("sizes");
}

#[test]
fn jpegs_end_where_they_do_in_pillow() {
    decodes_as_in_pillow("ends");
}

#[test]
fn damaged_jpegs_decode_as_in_pillow() {
    decodes_as_in_pillow("damaged");
}

#[test]
fn odd_containers_decode_as_in_pillow() {
    decodes_as_in_pillow("containers");
}

#[test]
fn orientation_is_found_wherever_pillow_finds_it() {
    decodes_as_in_pillow("orientation");
}

#[test]
fn resize_is_exactly_pillows() {
    for (stem, size) in resize_cases("resize") {
        let ours = as_bytes(&open(&format!("{stem}.in.png")), size);
        assert!(ours == open(&format!("{stem}.png")).rgb(), "{stem}");
    }
}

#[test]
fn preprocess_is_exactly_the_clip_processors() {
    for (stem, size) in resize_cases("clip") {
        let ours = open(&format!("{stem}.in.png")).preprocess(&clip(size));
        let bytes = std::fs::read(golden(&format!("{stem}.f32"))).unwrap();
        let theirs: Vec<f32> = bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        assert_eq!(ours.len(), theirs.len(), "{stem}");
        let worst = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert_eq!(worst, 0.0, "{stem}");
    }
}

#[test]
fn thin_and_tiny_images_cost_no_memory() {
    for (width, height) in [(1, 1), (1, 30_000), (30_000, 1), (10_000, 3), (1, MAX_PIXELS as usize / 4)] {
        let rgb = (0..width * height * 3).map(|i| (i % 251) as u8).collect();
        let pixels = Image::from_rgb(width, height, rgb).unwrap().preprocess(&clip(224));
        assert_eq!(pixels.len(), 3 * 224 * 224);
        assert!(pixels.iter().all(|value| value.abs() < 3.0));
    }
}

#[test]
fn the_name_does_not_say_what_a_file_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("really a webp.jpg");
    std::fs::copy(golden("decode/lossless.webp"), &path).unwrap();
    assert_eq!(Image::open(&path).unwrap(), open("decode/lossless.webp.png"));
}

#[test]
fn paths_that_are_no_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let missing = Image::open(folder.path().join("none.png")).unwrap_err().to_string();
    assert!(missing.starts_with("cannot read ") && missing.contains("none.png"), "{missing}");
    let directory = Image::open(folder.path()).unwrap_err().to_string();
    assert!(directory.contains("it is a folder"), "{directory}");
    let empty = folder.path().join("empty.png");
    std::fs::write(&empty, b"").unwrap();
    let empty = Image::open(&empty).unwrap_err().to_string();
    assert!(empty.contains("empty.png: is empty"), "{empty}");
}

#[test]
#[cfg(unix)]
fn an_endless_file_is_refused() {
    // A file of a terabyte that occupies nothing, where the file system can have one.
    let file = tempfile::NamedTempFile::new().unwrap();
    if file.as_file().set_len(1 << 40).is_ok() {
        let message = Image::open(file.path()).unwrap_err().to_string();
        assert!(message.contains("give a smaller file"), "{message}");
    }
}

#[test]
fn other_files_are_refused_by_what_they_are() {
    for (bytes, expected) in [
        (&b""[..], "is empty"),
        (b"hello, I am a text", "no image this program knows"),
        (b"\x89PNG", "no image this program knows"),
        (b"II*\0\x08\0\0\0", "a TIFF file"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "a HEIC, AVIF or video file"),
        (b"\0\0\0\x18ftypavif\0\0\0\0", "AVIF"),
        (b"%PDF-1.7", "a PDF file"),
        (b"\0\0\0\x0CjP  \r\n\x87\n", "a JPEG 2000 file"),
        (b"\xFF\x0A\xFA\x7F", "a JPEG XL file"),
        (b"PK\x03\x04", "an archive"),
        (b"\0\0\x01\0\x01\0\x10\x10", "an ICO file"),
        (b"\x00\x05\x16\x07\0\x02\0\0", "give the file of the same name without \"._\""),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html><head>", "a web page, not the file"),
        (b"\xEF\xBB\xBF\n  <HTML lang=en>", "a web page, not the file"),
        (b"<?xml version=\"1.0\"?>\n<!DOCTYPE html PUBLIC \"-//W3C\">\n<html>", "a web page, not the file"),
        (b"<html><body><svg width=\"1\">", "a web page, not the file"),
        (
            b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>",
            "an XML text, perhaps a server's error message",
        ),
        (b"<Error><Code>AccessDenied</Code></Error>", "an XML text, perhaps a server's error message"),
        (b"<?xml version=\"1.0\"?>\n<!-- a -->\n<svg xmlns=\"\">", "an SVG drawing: save it as PNG"),
        (b"{\"error\": \"quota exceeded\"}", "a JSON text, perhaps a server's error message"),
        (b"<svg width=\"1\"></svg>", "an SVG drawing: save it as PNG"),
        (b"\xFF\xD8\xFF", "cut off or damaged"),
        (b"\x89PNG\r\n\x1a\n", "cut off or damaged"),
        (b"GIF89a", "cut off or damaged"),
        (b"BM", "cut off or damaged"),
        (b"RIFF\0\0\0\0WEBP", "cut off or damaged"),
    ] {
        let message = refusal(bytes);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn a_cut_off_file_is_refused() {
    for name in DECODE {
        let bytes = std::fs::read(golden(&format!("decode/{name}"))).unwrap();
        // An animation may end early after its first frame; "trailer" ends with something else anyway.
        if name.starts_with("animated") || name.starts_with("trailer") {
            continue;
        }
        for part in [bytes.len() / 3, bytes.len() / 2, bytes.len() * 4 / 5] {
            let message = refusal(&bytes[..part]);
            assert!(message.contains("cut off or damaged"), "{name} at {part}: {message}");
        }
    }
}

/// A PNG header that promises `width` x `height` pixels, and a BMP one.
fn promises(width: u32, height: u32) -> [Vec<u8>; 2] {
    let mut png = std::fs::read(golden("decode/rgb.png")).unwrap();
    png[16..20].copy_from_slice(&width.to_be_bytes());
    png[20..24].copy_from_slice(&height.to_be_bytes());
    let mut crc = !0u32;
    for byte in &png[12..29] {
        crc ^= u32::from(*byte);
        (0..8).for_each(|_| crc = (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg()));
    }
    png[29..33].copy_from_slice(&(!crc).to_be_bytes());
    let mut bmp = std::fs::read(golden("decode/rgb.bmp")).unwrap();
    bmp[18..22].copy_from_slice(&width.to_le_bytes());
    bmp[22..26].copy_from_slice(&height.to_le_bytes());
    [png, bmp]
}

/// Pixels have a checksum of their own. A header or palette with a wrong byte would give other pixels without a word.
#[test]
fn only_wrong_checksums_of_pixels_are_forgiven() {
    let file = std::fs::read(golden("decode/palette.png")).unwrap();
    let whole = Image::decode(&file, Path::new("cat.png")).unwrap();
    // Content and checksum of a chunk.
    let chunk = |kind: &[u8; 4]| {
        let at = file.windows(4).position(|window| window == kind).unwrap();
        let length = u32::from_be_bytes(file[at - 4..at].try_into().unwrap()) as usize;
        (at + 4, at + 4 + length)
    };
    let flipped = |at: usize| {
        let mut file = file.clone();
        file[at] ^= 1;
        Image::decode(&file, Path::new("cat.png")).map_err(|error| error.to_string())
    };
    for kind in [b"IHDR", b"PLTE"] {
        let (content, checksum) = chunk(kind);
        for at in [content + 3, checksum] {
            let problem = flipped(at).unwrap_err();
            assert!(problem.contains("damaged"), "{problem}");
        }
    }
    let (content, checksum) = chunk(b"IDAT");
    assert_eq!(flipped(checksum), Ok(whole));
    assert!(flipped((content + checksum) / 2).unwrap_err().contains("damaged"));
}

#[test]
fn dimensions_are_checked_before_decoding() {
    for bytes in promises(30_000, 30_000) {
        let message = refusal(&bytes);
        assert!(message.contains("is 30000x30000; images of up to 134 million pixels are accepted"), "{message}");
    }
    for bytes in promises(65_535, 65_535).into_iter().chain(promises(0, 7)).chain(promises(1 << 30, 1)) {
        refusal(&bytes);
    }
    let mut jpeg = std::fs::read(golden("decode/rgb.jpg")).unwrap();
    let frame = jpeg.windows(2).position(|two| two == [0xFF, 0xC0]).unwrap();
    jpeg[frame + 5..frame + 9].fill(0x75);
    assert!(refusal(&jpeg).contains("is 30069x30069"));
}

#[test]
fn pixels_in_memory_are_checked() {
    assert!(Image::from_rgb(2, 1, vec![0; 6]).is_ok());
    for (width, height, len) in [(2, 1, 5), (0, 1, 0), (1, 0, 0), (usize::MAX, usize::MAX, 3), (1 << 20, 1 << 20, 3)] {
        let message = Image::from_rgb(width, height, vec![0; len]).unwrap_err().to_string();
        assert!(message.starts_with("<memory>: "), "{message}");
    }
}

/// The resize as the formulas say it: whole passes, nothing skipped, widest integers, division for division.
fn slow_resize(rgb: &[u8], from: (usize, usize), to: (usize, usize)) -> Vec<u8> {
    // Pillow begins with the rows where their number falls by more than twice as much as that of the columns.
    let fewer = |from: usize, to: usize| from as i64 - to as i64;
    if fewer(from.1, to.1) > 2 * fewer(from.0, to.0).max(0) {
        let on_its_side = slow_passes(&transposed(rgb, from), (from.1, from.0), (to.1, to.0));
        return transposed(&on_its_side, (to.1, to.0));
    }
    slow_passes(rgb, from, to)
}

fn transposed(rgb: &[u8], (width, height): (usize, usize)) -> Vec<u8> {
    (0..width).flat_map(|x| (0..height).flat_map(move |y| rgb[(y * width + x) * 3..][..3].to_vec())).collect()
}

fn slow_passes(rgb: &[u8], from: (usize, usize), to: (usize, usize)) -> Vec<u8> {
    let horizontal: Vec<u8> =
        (0..from.1).flat_map(|y| slow_axis(|x, c| rgb[(y * from.0 + x) * 3 + c], from.0, to.0)).collect();
    let columns: Vec<Vec<u8>> =
        (0..to.0).map(|x| slow_axis(|y, c| horizontal[(y * to.0 + x) * 3 + c], from.1, to.1)).collect();
    (0..to.1).flat_map(|y| columns.iter().flat_map(move |column| column[y * 3..y * 3 + 3].to_vec())).collect()
}

fn slow_axis(at: impl Fn(usize, usize) -> u8, from: usize, to: usize) -> Vec<u8> {
    let cubic = |t: f64| match t.abs() {
        t if t < 1.0 => (1.5 * t - 2.5) * t * t + 1.0,
        t if t < 2.0 => (((t - 5.0) * t + 8.0) * t - 4.0) * -0.5,
        _ => 0.0,
    };
    let scale = from as f64 / to as f64;
    let wide = scale.max(1.0);
    let mut out = Vec::new();
    for i in 0..to {
        let centre = (i as f64 + 0.5) * scale;
        let first = ((centre - 2.0 * wide + 0.5).trunc() as i64).max(0) as usize;
        let end = ((centre + 2.0 * wide + 0.5).trunc() as i64).min(from as i64) as usize;
        let weights: Vec<f64> = (first..end).map(|x| cubic((x as f64 - centre + 0.5) * (1.0 / wide))).collect();
        let sum: f64 = weights.iter().sum();
        for c in 0..3 {
            let total: i64 = (first..end)
                .zip(&weights)
                .map(|(x, weight)| (weight / sum * f64::from(1 << 22)).round() as i64 * i64::from(at(x, c)))
                .sum();
            out.push(((total + (1 << 21)) >> 22).clamp(0, 255) as u8);
        }
    }
    out
}

/// A valid image file, for proptest to damage.
/// Packs of kinds/.
const PACKS: [&str; 8] = ["sampling", "colour", "process", "sizes", "ends", "damaged", "containers", "orientation"];

fn valid_file() -> impl Strategy<Value = Vec<u8>> {
    static FILES: std::sync::LazyLock<Vec<Vec<u8>>> = std::sync::LazyLock::new(|| {
        let plain = DECODE.iter().map(|name| std::fs::read(golden(&format!("decode/{name}"))).unwrap());
        plain.chain(PACKS.iter().flat_map(|pack| kinds(pack).into_iter().map(|kind| kind.file))).collect()
    });
    (0..FILES.len()).prop_map(|index| FILES[index].clone())
}

/// Decodes what may be damaged: an image of its size or an error, and no panic within, which would be one too.
fn is_robust(bytes: &[u8]) -> Result<(), TestCaseError> {
    match Image::decode(bytes, Path::new("damaged")) {
        Ok(image) => prop_assert_eq!(image.rgb().len(), image.width() * image.height() * 3),
        Err(error) => prop_assert!(!error.to_string().contains("the decoder failed"), "{}", error),
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn preprocess_equals_its_slow_twin(
        width in 1usize..120, height in 1usize..120, size in 1usize..40, seed in any::<u64>(), flat in any::<bool>(),
    ) {
        let mut state = seed;
        let rgb: Vec<u8> = (0..width * height * 3).map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // Extreme values reach the clamps; others the rounding.
            if flat { if state >> 63 == 0 { 0 } else { 255 } } else { (state >> 56) as u8 }
        }).collect();
        let short = width.min(height);
        let to = (size * width / short, size * height / short);
        let (left, top) = ((to.0 - size) / 2, (to.1 - size) / 2);
        let whole = slow_resize(&rgb, (width, height), to);
        let square: Vec<u8> = (0..size)
            .flat_map(|y| whole[((top + y) * to.0 + left) * 3..][..size * 3].to_vec())
            .collect();
        let image = Image::from_rgb(width, height, rgb).unwrap();
        prop_assert_eq!(as_bytes(&image, size), square);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn random_bytes_never_panic(start in 0usize..6, rest in prop::collection::vec(any::<u8>(), 0..400)) {
        let magic: [&[u8]; 6] =
            [b"", b"\xFF\xD8\xFF", b"\x89PNG\r\n\x1a\n\0\0\0\x0DIHDR", b"GIF89a", b"BM", b"RIFF\x20\0\0\0WEBPVP8"];
        is_robust(&[magic[start], &rest].concat())?;
    }

    #[test]
    fn damaged_files_never_panic(
        mut bytes in valid_file(), changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        keep in any::<prop::sample::Index>(), cut in any::<bool>(),
    ) {
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if cut {
            bytes.truncate(keep.index(bytes.len()));
        }
        is_robust(&bytes)?;
    }
}
