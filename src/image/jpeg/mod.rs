//! JPEG files to RGB, with the pixels of libjpeg-turbo (and so of Pillow) bit for bit: its integer inverse DCT, its
//! triangle-filter ("fancy") upsampling, its block smoothing and its fixed-point colour conversion. Baseline, extended and
//! progressive frames of 8 bits, Huffman and arithmetic coding, 1, 3 and 4 components with every sampling that libjpeg can
//! expand, interleaved or not.
//!
//! Damage is met as libjpeg meets it under Pillow: data that a marker cuts short leave the rest of their restart interval
//! grey; a file that ends before its end-of-image marker is refused. Left out: lossless, hierarchical and 12-bit frames.

mod arithmetic;
mod bits;
mod colour;
mod huffman;
pub(super) mod idct;
mod markers;
mod progressive;
mod scan;
mod smooth;
mod upsample;

use markers::{Event, Frame, Headers, Scan};
use scan::{Coefficients, Samples};
use smooth::Accuracy;
use upsample::Plane;

use super::decode::MAX_DECODER_BYTES;

/// Coefficients of 8x8 samples, not yet dequantised, in natural order: row by row, the lowest frequency first.
pub(super) type Block = [i16; 64];

/// Scans of a file. Those of a real one number at most a few dozen; each costs a pass over the whole image.
const MAX_SCANS: usize = 512;
/// Blocks that all scans of a file pass over. Encoders pass over every block at most ten times; that many of the largest image
/// with four components are 2^27 with half as many to spare.
const MAX_BLOCKS_PASSED: usize = 1 << 27;

/// The reason where a file ends too early.
const CUT_OFF: &str = "it ends before the image does";

/// A file that cannot be decoded.
#[derive(Debug, PartialEq)]
pub(super) enum Failure {
    /// The file breaks the format, or ends early.
    Damaged(&'static str),
    /// The file uses a part of the format that is not supported.
    Unsupported(String),
    /// The file needs more than [`MAX_DECODER_BYTES`].
    TooLarge,
    /// The file passes over its image more often than any encoder does.
    TooManyScans,
}

type Result<T> = std::result::Result<T, Failure>;

/// A file whose headers have been read, up to its first scan.
pub(super) struct Decoder<'a> {
    headers: Headers<'a>,
    first: Scan,
}

impl<'a> Decoder<'a> {
    /// Reads the headers of the JPEG file `bytes`.
    pub fn new(bytes: &'a [u8]) -> Result<Decoder<'a>> {
        let mut headers = Headers::new(bytes);
        match headers.next_event()? {
            Event::Scan(first) => Ok(Decoder { headers, first }),
            Event::End => Err(Failure::Damaged("it holds no image")),
        }
    }

    /// Width and height in pixels.
    pub fn dimensions(&self) -> (usize, usize) {
        (self.headers.frame.width, self.headers.frame.height)
    }

    /// Decodes the pixels: (height, width, 3), RGB.
    pub fn decode(mut self) -> Result<Vec<u8>> {
        let frame = &self.headers.frame;
        let single = !frame.progressive && self.first.components.len() == frame.components.len();
        let planes = if single { self.decode_single_scan()? } else { self.decode_scans()? };
        Ok(colour::to_rgb(&self.headers.frame, &planes, self.headers.colour_space()))
    }

    /// Decodes a sequential file whose one scan holds all components: each block becomes samples as it comes.
    fn decode_single_scan(&mut self) -> Result<Vec<Plane>> {
        self.headers.latch_quantisation(&self.first)?;
        let mut samples = Samples::new(&self.headers.frame);
        scan::decode(&mut self.headers, &self.first, &mut samples)?;
        // The data are complete: what should follow them may be missing.
        match self.headers.next_event() {
            Ok(Event::End) | Err(Failure::Damaged(CUT_OFF)) => Ok(samples.into_planes()),
            Ok(Event::Scan(_)) => Err(Failure::Damaged("a second scan holds the same components again")),
            Err(failure) => Err(failure),
        }
    }

    /// Decodes a file of several scans: all coefficients first, then the samples.
    fn decode_scans(&mut self) -> Result<Vec<Plane>> {
        let Decoder { headers, first } = self;
        if bytes_of_scans(&headers.frame) > MAX_DECODER_BYTES {
            return Err(Failure::TooLarge);
        }
        let mut passed = 0;
        let mut coefficients = Coefficients::new(&headers.frame);
        let mut accuracy = Accuracy::new(&headers.frame);
        let mut scan = std::mem::take(first);
        for _ in 0..MAX_SCANS {
            passed += scan::blocks(&headers.frame, &scan);
            if passed > MAX_BLOCKS_PASSED {
                return Err(Failure::TooManyScans);
            }
            headers.latch_quantisation(&scan)?;
            accuracy.start_scan(&scan);
            accuracy.last_good_row = scan::decode(headers, &scan, &mut coefficients)?;
            match headers.next_event()? {
                Event::End => return Ok(coefficients.into_planes(&headers.frame, &accuracy)),
                Event::Scan(next) => scan = next,
            }
        }
        Err(Failure::TooManyScans)
    }
}

/// Most bytes that a file of several scans takes at a time: all coefficients and the samples of a component, or all samples
/// and RGB.
fn bytes_of_scans(frame: &Frame) -> u64 {
    let samples = |component: &markers::Component| component.padded_wide as u64 * component.padded_high as u64 * 64;
    let all: u64 = frame.components.iter().map(samples).sum();
    let largest = frame.components.iter().map(samples).max().unwrap_or(0);
    let coefficients = all * size_of::<i16>() as u64;
    (coefficients + largest).max(all + 3 * frame.width as u64 * frame.height as u64)
}

#[cfg(test)]
mod tests {
    use super::{Decoder, Failure};

    /// The headers of a progressive grey image, then `scans`, each with the data of a long run of blocks without a coefficient.
    fn progressive(side: u16, scans: usize) -> Vec<u8> {
        let [high, low] = side.to_be_bytes();
        let mut file = vec![0xFF, 0xD8, 0xFF, 0xDB, 0, 67, 0];
        file.extend([1; 64]);
        file.extend([0xFF, 0xC2, 0, 11, 8, high, low, high, low, 1, 1, 0x11, 0]);
        // Code 0: the last band of 2^14 blocks and as many more as 14 bits say.
        file.extend([0xFF, 0xC4, 0, 20, 0x10, 1]);
        file.extend([0; 15]);
        file.push(0xE0);
        for _ in 0..scans {
            file.extend([0xFF, 0xDA, 0, 8, 1, 1, 0, 1, 63, 0x01]);
            file.extend([0x7F, 0xFE].repeat(usize::from(side).div_ceil(8).pow(2) / 0x7FFF + 1));
        }
        file.extend([0xFF, 0xD9]);
        file
    }

    fn decode(file: &[u8]) -> Option<Failure> {
        Decoder::new(file).and_then(Decoder::decode).err()
    }

    #[test]
    fn more_coefficients_than_memory_are_refused_before_they_are_allocated() {
        let mut file = progressive(65_535, 1);
        assert_eq!(decode(&file), Some(Failure::TooLarge));
        let frame = file.windows(2).position(|marker| marker == [0xFF, 0xC2]).unwrap_or_default();
        file[frame + 5..frame + 9].copy_from_slice(&[0, 64, 0, 64]);
        assert_eq!(decode(&file), None);
    }

    #[test]
    fn scans_are_counted_with_their_blocks() {
        assert_eq!(decode(&progressive(64, 512)), None);
        assert_eq!(decode(&progressive(64, 513)), Some(Failure::TooManyScans));
        // A million blocks in a file of 45 KB.
        let (file, start) = (progressive(8192, 512), std::time::Instant::now());
        assert_eq!(decode(&file), Some(Failure::TooManyScans));
        assert!(file.len() < 50_000 && start.elapsed().as_secs() < 30, "{}, {:?}", file.len(), start.elapsed());
    }
}
