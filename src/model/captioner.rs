//! The captioner: vision encoder and unit decoder over the same weights file, from pixels to image tokens and to a KV cache
//! that holds their prefix. [`crate::generate`] takes it from there.

use std::borrow::Cow;

use super::decoder::Decoder;
use super::loader::Loader;
use super::unit_vision::{UnitVision, no_tokenizer};
use super::vision::Vision;
use super::vqgan::Tokenizer;
use crate::backend::{Backend, CacheShape};
use crate::config::ModelConfig;
use crate::units::UnitGrid;
use crate::{Error, Result};

/// Weights of both models, on one backend.
pub struct Captioner<B: Backend> {
    /// Pixels to image tokens.
    pub vision: Vision<B>,
    /// Image tokens and unit tokens to logits.
    pub decoder: Decoder<B>,
    image_tokens: usize,
    units: Option<UnitVision<B>>,
}

/// The image of one caption, as far as a captioner takes it.
#[derive(Clone, Debug, PartialEq)]
pub enum VisionInput {
    /// (3, side, side): normalised for the vision transformer, or in 0..1 for the tokenizer before it.
    Pixels(Vec<f32>),
    /// Image units, row by row.
    Units(Vec<u16>),
}

impl Default for VisionInput {
    fn default() -> VisionInput {
        VisionInput::Units(Vec::new())
    }
}

impl<B: Backend> Captioner<B> {
    /// Takes every tensor of `captioner.safetensors`.
    ///
    /// # Errors
    /// If one is missing or of another shape than `config` says, or the device has no room for it.
    pub fn load(loader: &mut Loader<'_, B>, config: &ModelConfig) -> Result<Captioner<B>> {
        Ok(Captioner {
            vision: Vision::load(loader, config)?,
            decoder: Decoder::load(loader, &config.decoder)?,
            image_tokens: config.image_tokens(),
            units: UnitVision::load(loader, &config.vision)?,
        })
    }

    /// Puts a tokenizer, which is on `backend`, before a captioner that sees image units.
    ///
    /// # Errors
    /// If it sees pixels, or other units.
    pub fn set_tokenizer(&mut self, backend: B, tokenizer: Tokenizer<B>) -> Result<()> {
        let units =
            self.units.as_mut().ok_or_else(|| Error::shape("captioner", "sees pixels and takes no tokenizer"))?;
        units.set_tokenizer(backend, tokenizer)
    }

    /// Dimensions of the image units of an image, for a captioner that sees them.
    pub fn unit_grid(&self) -> Option<UnitGrid> {
        self.units.as_ref().map(|units| units.codes().grid())
    }

    /// Whether images become image units here.
    pub fn has_tokenizer(&self) -> bool {
        self.units.as_ref().is_some_and(UnitVision::has_tokenizer)
    }

    /// The images of several captions to image tokens (B*T, W). Those of a captioner that sees image units go through its
    /// tokenizer first, unless they are units already.
    ///
    /// # Errors
    /// If an image is none that this captioner takes.
    pub fn encode_inputs(&self, backend: &B, inputs: &[&VisionInput]) -> Result<B::Tensor> {
        let pixels: Vec<&[f32]> = inputs.iter().filter_map(|input| input.pixels()).collect();
        let pixels = match pixels[..] {
            [pixels] => Cow::Borrowed(pixels),
            _ => Cow::Owned(pixels.concat()),
        };
        let Some(vision) = &self.units else {
            if inputs.iter().any(|input| input.pixels().is_none()) {
                return Err(sees_pixels());
            }
            return self.encode(backend, &pixels, inputs.len());
        };
        let images = inputs.iter().filter(|input| input.pixels().is_some()).count();
        let made = if images > 0 { vision.units_of(&pixels, images)? } else { Vec::new() };
        let (mut made, mut planes) = (made.iter(), Vec::new());
        for input in inputs {
            let units = match input {
                VisionInput::Units(units) => units,
                VisionInput::Pixels(_) => made.next().ok_or_else(no_tokenizer)?,
            };
            vision.codes().planes(units, &mut planes)?;
        }
        self.encode(backend, &planes, inputs.len())
    }

    /// Normalised pixels, or code vectors, (B, I, side, side) to image tokens (B*T, W).
    pub fn encode(&self, backend: &B, pixels: &[f32], batch: usize) -> Result<B::Tensor> {
        self.vision.tokens(backend, pixels, batch)
    }

    /// Image tokens (B*T, W) to a cache that holds their keys and values, with room for `max_new_tokens` a row.
    pub fn prefill(&self, backend: &B, tokens: &B::Tensor, batch: usize, max_new_tokens: usize) -> Result<B::KvCache> {
        self.decoder.prefill(backend, tokens, batch, max_new_tokens)
    }

    /// The shape of a cache for `images` images, with room for `max_new_tokens` a row.
    pub fn cache_shape(&self, images: usize, max_new_tokens: usize) -> CacheShape {
        self.decoder.cache_shape(images, self.image_tokens, max_new_tokens)
    }
}

impl VisionInput {
    /// The pixels, if it has some.
    fn pixels(&self) -> Option<&[f32]> {
        if let VisionInput::Pixels(pixels) = self { Some(pixels) } else { None }
    }
}

/// An error of a model that sees pixels and gets image units.
pub fn sees_pixels() -> Error {
    let problem = "this model sees pixels, not image units: give it images, or use a model converted from an image-unit \
                   captioner";
    Error::Units { problem: problem.into() }
}
