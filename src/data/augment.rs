//! Random changes of training images, by counter-based random numbers: the same for a seed, an epoch and a sample.

use rayon::prelude::*;
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

/// Codes that a code may be replaced by.
const NEIGHBOURS: usize = 5;
/// First word of a sample's stream that decides about its units, and first that is noise on its code vectors.
const UNIT_WORDS: u64 = 16;
const NOISE_WORDS: u64 = 1 << 20;

/// Extent of the changes of stored image units; all zero: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UnitAugment {
    /// Mirror the grid of every other image. The units of a mirrored image are others, so this is an approximation.
    pub flip: bool,
    /// See another part of the grid than its centre.
    pub shift: bool,
    /// Share of the units that are replaced by one of the nearest codes.
    pub synonyms: f32,
    /// Standard deviation of normal noise on the values of code vectors.
    pub noise: f32,
}

/// Changed units of an image.
pub struct ChangedUnits {
    /// All of the grid.
    pub units: Vec<u16>,
    /// First row and column that are seen.
    pub place: [usize; 2],
    words: Philox,
}

impl UnitAugment {
    /// The nearest other codes of each, nearest first, of codes (K, `width`); none where no code is replaced.
    pub fn neighbours(&self, codes: &[f32], width: usize) -> Vec<Vec<u16>> {
        let codes: Vec<&[f32]> = codes.chunks_exact(width.max(1)).filter(|_| self.synonyms > 0.0).collect();
        let distance = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f32>();
        let near = |(own, code): (usize, &&[f32])| {
            let mut nearest: Vec<(f32, u16)> = Vec::with_capacity(NEIGHBOURS + 1);
            for (other, values) in codes.iter().enumerate().filter(|&(other, _)| other != own) {
                let new = distance(code, values);
                // Of equally near ones the first stays before.
                let place = nearest.partition_point(|(old, _)| old.total_cmp(&new).is_le());
                if place < NEIGHBOURS {
                    nearest.insert(place, (new, other as u16));
                    nearest.truncate(NEIGHBOURS);
                }
            }
            nearest.into_iter().map(|(_, other)| other).collect()
        };
        codes.par_iter().enumerate().map(near).collect()
    }

    /// The units of a grid, of which a square of `crop` is seen, as sample `sample` of epoch `epoch` shows them.
    pub fn apply(
        &self,
        mut units: Vec<u16>,
        [grid, crop]: [usize; 2],
        near: &[Vec<u16>],
        seed: u64,
        epoch: u64,
        sample: usize,
    ) -> ChangedUnits {
        let words = Philox::new(seed, STREAM + epoch * EPOCH + sample as u64);
        let draw = |index: u64| f64::from(words.word(index)) / 4_294_967_296.0;
        let room = grid.saturating_sub(crop);
        let place = |index| if self.shift { (draw(index) * (room + 1) as f64) as usize } else { room / 2 };
        let place = [place(0), place(1)];
        if self.flip && draw(2) < 0.5 {
            units.chunks_exact_mut(grid.max(1)).for_each(<[u16]>::reverse);
        }
        for (at, unit) in (UNIT_WORDS..).step_by(2).zip(&mut units) {
            let others = near.get(usize::from(*unit)).filter(|others| !others.is_empty());
            if let Some(others) = others.filter(|_| draw(at) < f64::from(self.synonyms)) {
                *unit = others[(draw(at + 1) * others.len() as f64) as usize];
            }
        }
        ChangedUnits { units, place, words }
    }

    /// Adds noise to the values of code vectors; zeros, the margin around them, stay.
    pub fn add_noise(&self, values: &mut [f32], changed: &ChangedUnits) {
        if self.noise <= 0.0 {
            return;
        }
        let draw = |index: u64| (f64::from(changed.words.word(index)) + 0.5) / 4_294_967_296.0;
        for (at, value) in (NOISE_WORDS..).step_by(2).zip(values).filter(|(_, value)| **value != 0.0) {
            let normal = (-2.0 * draw(at).ln()).sqrt() * (std::f64::consts::TAU * draw(at + 1)).cos();
            *value += self.noise * normal as f32;
        }
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

    /// Those that a sort by distance begins with; of equally near codes the first.
    #[test]
    fn neighbours_are_the_nearest_codes() {
        let augment = UnitAugment { synonyms: 0.5, ..UnitAugment::default() };
        let codes: Vec<f32> = (0..40).map(|n| (n * 17 % 11) as f32).collect();
        let near = augment.neighbours(&codes, 2);
        for (own, near) in near.iter().enumerate() {
            let distance = |at: u16| -> f32 {
                let code = |at: usize| &codes[2 * at..2 * at + 2];
                code(own).iter().zip(code(usize::from(at))).map(|(a, b)| (a - b) * (a - b)).sum()
            };
            let mut sorted: Vec<u16> = (0..20).filter(|&at| usize::from(at) != own).collect();
            sorted.sort_by(|&a, &b| distance(a).total_cmp(&distance(b)));
            assert_eq!(near[..], sorted[..NEIGHBOURS]);
        }
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

    #[test]
    fn changes_of_units_depend_on_seed_epoch_and_sample_alone() {
        let codes: Vec<f32> = (0..20).map(|code| (code * code) as f32).collect();
        let units: Vec<u16> = (0..64).map(|at| at % 20).collect();
        let all = UnitAugment { flip: true, shift: true, synonyms: 0.5, noise: 0.1 };
        let near = all.neighbours(&codes, 1);
        assert_eq!(near[0][..2], [1, 2]);
        assert_eq!(near[19][..2], [18, 17]);
        let of = |augment: UnitAugment, seed, epoch, sample| {
            let changed = augment.apply(units.clone(), [8, 6], &near, seed, epoch, sample);
            let mut values = vec![1.0, 0.0, 2.0];
            augment.add_noise(&mut values, &changed);
            (changed.units, changed.place, values)
        };
        let first = of(all, 1, 2, 3);
        assert_eq!(first, of(all, 1, 2, 3));
        assert!([of(all, 2, 2, 3), of(all, 1, 3, 3), of(all, 1, 2, 4)].iter().all(|other| *other != first));
        assert!(first.2[0] != 1.0 && first.2[1] == 0.0);
        assert_eq!(of(UnitAugment::default(), 1, 2, 3), (units.clone(), [1, 1], vec![1.0, 0.0, 2.0]));
        // Each change alone, over many samples.
        let (mut places, mut flipped, mut replaced) = (std::collections::BTreeSet::new(), 0, 0);
        for sample in 0..200 {
            let (own, place, _) = of(UnitAugment { shift: true, ..Default::default() }, 1, 0, sample);
            assert_eq!(own, units);
            places.insert(place);
            let (own, ..) = of(UnitAugment { flip: true, ..Default::default() }, 1, 0, sample);
            let mirrored = own.chunks(8).zip(units.chunks(8)).all(|(own, row)| own.iter().eq(row.iter().rev()));
            assert!(mirrored || own == units);
            flipped += usize::from(mirrored);
            let (own, ..) = of(UnitAugment { synonyms: 0.25, ..Default::default() }, 1, 0, sample);
            for (own, unit) in own.iter().zip(&units).filter(|(own, unit)| own != unit) {
                assert!(near[usize::from(*unit)].contains(own));
                replaced += 1;
            }
        }
        assert_eq!(places.len(), 9);
        assert!((70..130).contains(&flipped), "{flipped} of 200");
        assert!((2900..3500).contains(&replaced), "{replaced} of 12800");
    }
}
