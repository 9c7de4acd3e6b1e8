//! Image units as the input of a captioner: from a grid of units to the code vectors of its centre, which the vision transformer
//! of [`super::vision`] takes like pixels of many channels. A tokenizer makes units of pixels, where there is one.

use super::loader::Loader;
use super::vqgan::Tokenizer;
use crate::backend::Backend;
use crate::config::{UnitInput, VisionConfig};
use crate::units::UnitGrid;
use crate::weights::convert::fingerprint;
use crate::{Error, Result};

/// Code vectors, and how many of them are seen.
#[derive(Clone, Debug)]
pub struct CodeVectors {
    input: UnitInput,
    vectors: Vec<f32>, // (K, W)
}

impl CodeVectors {
    /// Wraps the vectors (K, W) of a codebook.
    pub fn new(input: UnitInput, vectors: Vec<f32>) -> CodeVectors {
        CodeVectors { input, vectors }
    }

    /// Dimensions.
    pub fn input(&self) -> &UnitInput {
        &self.input
    }

    /// The vectors (K, W).
    pub fn vectors(&self) -> &[f32] {
        &self.vectors
    }

    /// Dimensions of the units of an image, as a file of units has them.
    pub fn grid(&self) -> UnitGrid {
        let UnitInput { grid, codes, .. } = self.input;
        UnitGrid { rows: grid, columns: grid, codes, codebook: fingerprint(&self.vectors) }
    }

    /// Appends the vectors (W, side, side) of the centre of a grid of units, with a margin of zeros, to `planes`.
    pub fn planes(&self, units: &[u16], planes: &mut Vec<f32>) -> Result<()> {
        self.planes_at(units, [(self.input.grid - self.input.crop) / 2; 2], planes)
    }

    /// As [`CodeVectors::planes`], of the square whose first unit is in row `top` and column `left`.
    pub fn planes_at(&self, units: &[u16], [top, left]: [usize; 2], planes: &mut Vec<f32>) -> Result<()> {
        let UnitInput { grid, crop, padding, code_width, .. } = self.input;
        self.input.check_units(units)?;
        if top.max(left) + crop > grid {
            return Err(Error::shape("image units", format!("{crop} rows from {top}, columns from {left} of {grid}")));
        }
        let (start, side) = (planes.len(), self.input.side());
        planes.resize(start + code_width * side * side, 0.0);
        let planes = &mut planes[start..];
        for (y, x) in (0..crop * crop).map(|at| (at / crop, at % crop)) {
            let unit = usize::from(units[(top + y) * grid + left + x]);
            let to = (padding + y) * side + padding + x;
            for (channel, &value) in self.vectors[unit * code_width..][..code_width].iter().enumerate() {
                planes[channel * side * side + to] = value;
            }
        }
        Ok(())
    }
}

/// Code vectors, and the tokenizer.
pub struct UnitVision<B: Backend> {
    codes: CodeVectors,
    /// With the backend that it is on, which may compute in another type than the captioner's.
    tokenizer: Option<(B, Tokenizer<B>)>,
}

impl<B: Backend> UnitVision<B> {
    /// Takes `vision.codebook` (K, W) for a model that sees image units; `None` for one that sees pixels.
    pub fn load(loader: &mut Loader<'_, B>, config: &VisionConfig) -> Result<Option<UnitVision<B>>> {
        let Some(input) = &config.units else { return Ok(None) };
        let codes = loader.store.take("vision.codebook", &[input.codes, input.code_width])?;
        let codes = CodeVectors::new(input.clone(), codes.to_f32().into_owned());
        Ok(Some(UnitVision { codes, tokenizer: None }))
    }

    /// Puts a tokenizer, which is on `backend`, before the units.
    ///
    /// # Errors
    /// If its units are not those that the model sees.
    pub fn set_tokenizer(&mut self, backend: B, tokenizer: Tokenizer<B>) -> Result<()> {
        let (config, input) = (tokenizer.config(), &self.codes.input);
        let made = (config.grid(), config.codes, config.code_width);
        if made != (input.grid, input.codes, input.code_width) {
            let problem = format!(
                "the tokenizer makes a grid, codes and values a code of {made:?}, the captioner takes {input:?}"
            );
            return Err(Error::shape("image units", problem));
        }
        self.tokenizer = Some((backend, tokenizer));
        Ok(())
    }

    /// The code vectors.
    pub fn codes(&self) -> &CodeVectors {
        &self.codes
    }

    /// Whether there is a tokenizer.
    pub fn has_tokenizer(&self) -> bool {
        self.tokenizer.is_some()
    }

    /// Pixels (B, 3, side, side) to the units of each image.
    pub fn units_of(&self, pixels: &[f32], batch: usize) -> Result<Vec<Vec<u16>>> {
        let (backend, tokenizer) = self.tokenizer.as_ref().ok_or_else(no_tokenizer)?;
        tokenizer.units(backend, pixels, batch)
    }
}

/// An error of a model that sees image units and gets an image.
pub fn no_tokenizer() -> Error {
    let problem = "this model sees image units and has no tokenizer: give it units (--units), or convert it again with \
                   --tokenizer";
    Error::Units { problem: problem.into() }
}
