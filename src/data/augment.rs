//! Random changes of training images, by counter-based random numbers: the same for a seed, an epoch and a sample.

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::image::Image;
use crate::random::Philox;

/// Stream of the first epoch's first sample.
const STREAM: u64 = 3 << 61;
/// Streams of an epoch.
const EPOCH: u64 = 1 << 32;

/// Extent of the changes; all zero: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Augment {
    /// Mirror every other image.
    pub flip: bool,
    /// Largest change of brightness, contrast and saturation, as a share.
    pub colour_jitter: f32,
    /// Largest part of either side that is cut off, as a share, each side for itself: scale, aspect and place change.
    pub crop_jitter: f32,
}

impl Augment {
    /// Whether nothing is changed.
    pub fn is_none(&self) -> bool {
        *self == Augment::default()
    }

    /// The image as sample `sample` of epoch `epoch` shows it.
    ///
    /// # Errors
    /// If the result has no pixel, which a crop of less than all never leaves.
    pub fn apply(&self, image: Image, seed: u64, epoch: u64, sample: usize) -> Result<Image> {
        if self.is_none() {
            return Ok(image);
        }
        let words = Philox::new(seed, STREAM + epoch * EPOCH + sample as u64);
        let draw = |index: u64| f64::from(words.word(index)) / 4_294_967_296.0;
        let cut = |side: usize, share: f64, place: f64| {
            let kept = ((side as f64 * (1.0 - share * f64::from(self.crop_jitter))).round() as usize).clamp(1, side);
            (((side - kept) as f64 * place).round() as usize, kept)
        };
        let (left, width) = cut(image.width(), draw(0), draw(1));
        let (top, height) = cut(image.height(), draw(2), draw(3));
        let flips = self.flip && draw(4) < 0.5;
        let factor = |index: u64| 1.0 + f64::from(self.colour_jitter) * (2.0 * draw(index) - 1.0);
        let factors = [factor(5), factor(6), factor(7)].map(|factor| factor as f32);
        let mut rgb = Vec::with_capacity(3 * width * height);
        for row in image.rgb().chunks_exact(3 * image.width()).skip(top).take(height) {
            let pixels = row[3 * left..3 * (left + width)].as_chunks::<3>().0;
            if flips {
                rgb.extend(pixels.iter().rev().flatten());
            } else {
                rgb.extend(pixels.iter().flatten());
            }
        }
        if self.colour_jitter > 0.0 {
            recolour(&mut rgb, factors);
        }
        Image::from_rgb(width, height, rgb)
    }
}

/// Scales brightness, contrast about the mean, and saturation about each pixel's grey.
fn recolour(rgb: &mut [u8], [brightness, contrast, saturation]: [f32; 3]) {
    let grey = |pixel: [f32; 3]| 0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2];
    let pixels = rgb.as_chunks_mut::<3>().0;
    let sum: f64 = pixels.iter().map(|pixel| f64::from(grey(pixel.map(f32::from)))).sum();
    let mean = brightness * (sum / pixels.len().max(1) as f64) as f32;
    for pixel in pixels {
        let changed = pixel.map(|value| mean + contrast * (brightness * f32::from(value) - mean));
        let own = grey(changed);
        *pixel = changed.map(|value| (own + saturation * (value - own)).round().clamp(0.0, 255.0) as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Image {
        let rgb = (0..12 * 8 * 3).map(|v| (v * 37 % 251) as u8).collect();
        Image::from_rgb(12, 8, rgb).expect("as many bytes")
    }

    #[test]
    fn changes_depend_on_seed_epoch_and_sample_alone() -> Result<()> {
        let augment = Augment { flip: true, colour_jitter: 0.4, crop_jitter: 0.3 };
        let of = |seed, epoch, sample| augment.apply(image(), seed, epoch, sample);
        let first = of(1, 2, 3)?;
        assert_eq!(first.rgb(), of(1, 2, 3)?.rgb());
        for other in [of(2, 2, 3)?, of(1, 3, 3)?, of(1, 2, 4)?] {
            assert_ne!(first.rgb(), other.rgb());
        }
        assert!((9..=12).contains(&first.width()) && (5..=8).contains(&first.height()));
        assert_eq!(Augment::default().apply(image(), 1, 2, 3)?.rgb(), image().rgb());
        Ok(())
    }

    #[test]
    fn a_flip_mirrors_rows() -> Result<()> {
        let augment = Augment { flip: true, ..Augment::default() };
        let (own, mut flipped) = (image(), 0);
        for sample in 0..40 {
            let other = augment.apply(image(), 1, 0, sample)?;
            let mirrored = own.rgb().chunks_exact(36).flat_map(|row| row.as_chunks::<3>().0.iter().rev().flatten());
            flipped += usize::from(mirrored.eq(other.rgb()));
            assert!(other.rgb() == own.rgb() || other.rgb() != own.rgb() && flipped > 0);
        }
        assert!((8..=32).contains(&flipped), "{flipped} of 40");
        Ok(())
    }
}
