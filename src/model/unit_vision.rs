//! Image units as the input of a captioner: from a grid of units to the code vectors of its centre, which the vision transformer
//! of [`super::vision`] takes like pixels of many channels. A tokenizer makes units of pixels, where there is one.

use super::loader::Loader;
use super::vqgan::Tokenizer;
use crate::backend::Backend;
use crate::config::{UnitInput, VisionConfig};
use crate::units::UnitGrid;
use crate::weights::convert::fingerprint;
use crate::{Error, Result};

/// Code vectors, and the tokenizer.
pub struct UnitVision<B: Backend> {
    input: UnitInput,
    codes: Vec<f32>, // (K, W)
    tokenizer: Option<Tokenizer<B>>,
}

impl<B: Backend> UnitVision<B> {
    /// Takes `vision.codebook` (K, W) for a model that sees image units; `None` for one that sees pixels.
    pub fn load(loader: &mut Loader<'_, B>, config: &VisionConfig) -> Result<Option<UnitVision<B>>> {
        let Some(input) = &config.units else { return Ok(None) };
        let codes = loader.store.take("vision.codebook", &[input.codes, input.code_width])?;
        Ok(Some(UnitVision { input: input.clone(), codes: codes.to_f32().into_owned(), tokenizer: None }))
    }

    /// Puts a tokenizer before the units.
    ///
    /// # Errors
    /// If its units are not those that the model sees.
    pub fn set_tokenizer(&mut self, tokenizer: Tokenizer<B>) -> Result<()> {
        let (config, input) = (tokenizer.config(), &self.input);
        let made = (config.grid(), config.codes, config.code_width);
        if made != (input.grid, input.codes, input.code_width) {
            let problem = format!(
                "the tokenizer makes a grid, codes and values a code of {made:?}, the captioner takes {input:?}"
            );
            return Err(Error::shape("image units", problem));
        }
        self.tokenizer = Some(tokenizer);
        Ok(())
    }

    /// Dimensions of the units of an image, as a file of units has them.
    pub fn grid(&self) -> UnitGrid {
        let UnitInput { grid, codes, .. } = self.input;
        UnitGrid { rows: grid, columns: grid, codes, codebook: fingerprint(&self.codes) }
    }

    /// Whether there is a tokenizer.
    pub fn has_tokenizer(&self) -> bool {
        self.tokenizer.is_some()
    }

    /// Pixels (B, 3, side, side) in 0..1 to the units of each image.
    pub fn units_of(&self, backend: &B, pixels: &[f32], batch: usize) -> Result<Vec<Vec<u16>>> {
        let tokenizer = self.tokenizer.as_ref().ok_or_else(no_tokenizer)?;
        tokenizer.units(backend, pixels, batch)
    }

    /// Appends the code vectors (W, side, side) of the centre of a grid of units, with a margin of zeros, to `planes`.
    pub fn planes(&self, units: &[u16], planes: &mut Vec<f32>) -> Result<()> {
        let UnitInput { grid, crop, padding, code_width, .. } = self.input;
        self.input.check_units(units)?;
        let (first, side) = ((grid - crop) / 2, self.input.side());
        let start = planes.len();
        planes.resize(start + code_width * side * side, 0.0);
        let planes = &mut planes[start..];
        for (y, x) in (0..crop * crop).map(|at| (at / crop, at % crop)) {
            let unit = usize::from(units[(first + y) * grid + first + x]);
            let to = (padding + y) * side + padding + x;
            for (channel, &value) in self.codes[unit * code_width..][..code_width].iter().enumerate() {
                planes[channel * side * side + to] = value;
            }
        }
        Ok(())
    }
}

/// An error of a model that sees image units and gets an image.
pub fn no_tokenizer() -> Error {
    let problem = "this model sees image units and has no tokenizer: give it units (--units), or convert it again with \
                   --tokenizer";
    Error::Units { problem: problem.into() }
}
