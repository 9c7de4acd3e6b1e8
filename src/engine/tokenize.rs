//! Images to image units, many at a time: the tokenizer alone, without a captioner.

use std::ops::ControlFlow;
use std::path::Path;

use rayon::prelude::*;

use super::load::{self, Tokenize};
use super::{ImageSource, LoadOptions};
use crate::config::TokenizerConfig;
use crate::image::Image;
use crate::units::UnitGrid;
use crate::weights::convert::fingerprint;
use crate::weights::directory::TokenizerFiles;
use crate::{Error, Result};

/// Callback for every image, in their order, with its number and its units; `Break` ends the whole.
pub type OnUnits<'a> = &'a mut dyn FnMut(usize, Result<Vec<u16>>) -> ControlFlow<()>;

/// A loaded image tokenizer on a device.
pub struct ImageTokenizer {
    config: TokenizerConfig,
    grid: UnitGrid,
    device: String,
    tokenize: Tokenize,
}

impl ImageTokenizer {
    /// Loads the tokenizer of a directory made by `im2sp convert`: one of its own, or that of a captioner.
    ///
    /// # Errors
    /// If there is none, a file is malformed, or the device cannot be used.
    pub fn load(directory: impl AsRef<Path>, options: LoadOptions) -> Result<ImageTokenizer> {
        let files = TokenizerFiles::open_with(directory.as_ref(), !options.no_mmap)?;
        let config = files.config.clone();
        let codes = files.store.iter().find(|(name, _)| *name == "codebook");
        let codebook = codes.map_or([0; 16], |(_, codes)| fingerprint(&codes.to_f32()));
        let grid = UnitGrid { rows: config.grid(), columns: config.grid(), codes: config.codes, codebook };
        let (device, tokenize) = load::tokenizer(files, options)?;
        Ok(ImageTokenizer { config, grid, device, tokenize })
    }

    /// The dimensions.
    pub fn config(&self) -> &TokenizerConfig {
        &self.config
    }

    /// Dimensions of the units of an image, as a file of units has them.
    pub fn grid(&self) -> &UnitGrid {
        &self.grid
    }

    /// The device in use, in words.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// The units of an image, row by row.
    ///
    /// # Errors
    /// If the weights are damaged or the device fails.
    pub fn units(&self, image: &Image) -> Result<Vec<u16>> {
        let units = (self.tokenize)(&image.preprocess(&self.config.image), 1)?;
        units.into_iter().next().ok_or_else(|| Error::internal("an image without units"))
    }

    /// The units of any number of images, `together` of them at a time: the next are read meanwhile. An image that cannot be
    /// read costs no other.
    ///
    /// # Errors
    /// If the weights are damaged or the device fails: that ends all.
    pub fn units_of_many(&self, images: ImageSource<'_>, together: usize, on_units: OnUnits<'_>) -> Result<()> {
        let together = together.max(1);
        let len = 3 * self.config.image.size * self.config.image.size;
        let read = |first: usize| {
            let mut pixels = vec![0.0; together * len];
            let own = |(place, out): (usize, &mut [f32])| {
                images(first + place).map(|image| image.map(|image| image.preprocess_into(&self.config.image, out)))
            };
            // All of them, in their order: while some are read, others are found to be beyond the last.
            let all: Vec<_> = pixels.par_chunks_mut(len.max(1)).enumerate().map(own).collect();
            let read: Vec<Result<()>> = all.into_iter().map_while(|image| image).collect();
            // Those that were read move together.
            let mut count = 0;
            for place in (0..read.len()).filter(|&place| read[place].is_ok()) {
                if place > count {
                    pixels.copy_within(place * len..(place + 1) * len, count * len);
                }
                count += 1;
            }
            pixels.truncate(count * len);
            (read, count, pixels)
        };
        let (mut first, mut batch) = (0, read(0));
        while !batch.0.is_empty() {
            let (read_ones, count, pixels) = batch;
            let run = || if count > 0 { (self.tokenize)(&pixels, count) } else { Ok(Vec::new()) };
            let (units, next) = rayon::join(run, || read(first + together));
            let mut units = units?.into_iter();
            for (number, image) in (first..).zip(read_ones) {
                let result = image.and_then(|()| units.next().ok_or_else(|| Error::internal("an image without units")));
                if on_units(number, result).is_break() {
                    return Ok(());
                }
            }
            (first, batch) = (first + together, next);
        }
        Ok(())
    }
}
