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
mod idct;
mod markers;
mod progressive;
mod scan;
mod smooth;
mod upsample;

use markers::{Event, Headers, Scan};
use scan::{Coefficients, Samples};
use smooth::Accuracy;
use upsample::Plane;

/// Coefficients of 8x8 samples, not yet dequantised, in natural order: row by row, the lowest frequency first.
type Block = [i16; 64];

/// Scans of a file. Those of a real one number at most a few dozen; each costs a pass over the whole image.
const MAX_SCANS: usize = 512;

/// The reason where a file ends too early.
const CUT_OFF: &str = "it ends before the image does";

/// A file that cannot be decoded.
#[derive(Debug, PartialEq)]
pub(super) enum Failure {
    /// The file breaks the format, or ends early.
    Damaged(&'static str),
    /// The file uses a part of the format that is not supported.
    Unsupported(String),
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
        let mut coefficients = Coefficients::new(&headers.frame);
        let mut accuracy = Accuracy::new(&headers.frame);
        let mut scan = std::mem::take(first);
        for _ in 0..MAX_SCANS {
            headers.latch_quantisation(&scan)?;
            accuracy.start_scan(&scan);
            accuracy.last_good_row = scan::decode(headers, &scan, &mut coefficients)?;
            match headers.next_event()? {
                Event::End => return Ok(coefficients.into_planes(&headers.frame, &accuracy)),
                Event::Scan(next) => scan = next,
            }
        }
        Err(Failure::Unsupported(format!("more than {MAX_SCANS} scans")))
    }
}
