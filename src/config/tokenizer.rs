//! Dimensions of an image tokenizer.

use serde::{Deserialize, Serialize};

use super::{EfficientNetConfig, FORMAT, ImageConfig, MAX_CODES, MAX_GRID, MAX_RESIZE, is_default};

/// The image tokenizer, as it stands in `tokenizer.json`: an encoder and its codebook. The encoder is that of a ViT-VQGAN, with
/// tanh and without a class token, or an EfficientNet-lite, which has a width and none of a transformer's other dimensions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerConfig {
    /// Always [`FORMAT`].
    pub format: String,
    /// Image to pixels.
    pub image: ImageConfig,
    /// Side of a square patch in pixels.
    #[serde(default, skip_serializing_if = "is_default")]
    pub patch: usize,
    /// Channels D of a token.
    pub width: usize,
    /// Transformer layers.
    #[serde(default, skip_serializing_if = "is_default")]
    pub layers: usize,
    /// Attention heads.
    #[serde(default, skip_serializing_if = "is_default")]
    pub heads: usize,
    /// Channels of all heads together.
    #[serde(default, skip_serializing_if = "is_default")]
    pub inner: usize,
    /// Hidden channels of the feed-forward part.
    #[serde(default, skip_serializing_if = "is_default")]
    pub mlp: usize,
    /// Epsilon of its layer norms.
    #[serde(default, skip_serializing_if = "is_default")]
    pub eps: f32,
    /// Set when the encoder is an EfficientNet-lite.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub efficient_net: Option<EfficientNetConfig>,
    /// Side of the square of units that a token becomes: it is cut into as many vectors, each of which has its code.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub token_units: usize,
    /// Codes K of the codebook.
    pub codes: usize,
    /// Values of a code.
    pub code_width: usize,
}

fn one() -> usize {
    1
}

fn is_one(value: &usize) -> bool {
    *value == 1
}

impl TokenizerConfig {
    /// Side of the grid of tokens of an image.
    pub fn tokens(&self) -> usize {
        match &self.efficient_net {
            Some(net) => net.grid(self.image.size),
            None => self.image.size / self.patch,
        }
    }

    /// Side of the grid of units of an image.
    pub fn grid(&self) -> usize {
        self.tokens() * self.token_units
    }

    /// Units of an image.
    pub fn units(&self) -> usize {
        self.grid() * self.grid()
    }

    /// As [`super::ModelConfig::check`].
    pub fn check(&self) -> std::result::Result<(), (String, String)> {
        let wrong = |field: &str, problem: String| Err((field.to_string(), problem));
        if self.format != FORMAT {
            return wrong("format", format!("is {:?}, this version reads {FORMAT:?}: convert again", self.format));
        }
        for (field, value, max) in [
            ("image.size", self.image.size, MAX_RESIZE),
            ("width", self.width, 1 << 14),
            ("codes", self.codes, MAX_CODES),
            ("code_width", self.code_width, 1 << 12),
            ("token_units", self.token_units, 64),
        ] {
            if value == 0 || value > max {
                return wrong(field, format!("is {value}, expected 1 to {max}"));
            }
        }
        self.check_encoder()?;
        if self.grid() > MAX_GRID {
            return wrong("token_units", format!("makes a grid of {0}x{0}, more than {MAX_GRID}", self.grid()));
        }
        self.image.check()
    }

    fn check_encoder(&self) -> std::result::Result<(), (String, String)> {
        let wrong = |field: &str, problem: String| Err((field.to_string(), problem));
        let transformer = [
            ("patch", self.patch, 1024),
            ("layers", self.layers, 512),
            ("heads", self.heads, 256),
            ("inner", self.inner, 1 << 14),
            ("mlp", self.mlp, 1 << 16),
        ];
        if let Some(net) = &self.efficient_net {
            return match transformer.into_iter().find(|(_, value, _)| *value != 0) {
                Some((field, ..)) => {
                    wrong(field, "belongs to a transformer, and this tokenizer has an efficient_net".into())
                }
                None => net.check().map_err(|(field, problem)| (format!("efficient_net.{field}"), problem)),
            };
        }
        for (field, value, max) in transformer {
            if value == 0 || value > max {
                return wrong(field, format!("is {value}, expected 1 to {max}"));
            }
        }
        if !self.image.size.is_multiple_of(self.patch) {
            return wrong("image.size", format!("{} is no multiple of the patch", self.image.size));
        }
        if !self.inner.is_multiple_of(self.heads) {
            return wrong("heads", format!("{} does not divide {}", self.heads, self.inner));
        }
        Ok(())
    }
}
