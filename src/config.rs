//! The dimensions of every model, as they stand in a model directory's `config.json`. Everything else in the crate is
//! generic over them. Deserialisation refuses unknown fields; [`ModelConfig::check`] refuses values that cannot be.

mod efficient_net;
mod speech;
mod tokenizer;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};
pub use efficient_net::{EfficientNetConfig, InvertedResidual, STEM_STRIDE, STEM_TAPS, Stage};
pub use speech::{ConvolutionNorm, SPEECH_RATE, SpeechConfig, SpeechConvolution, SpeechKind, Vocabulary};
pub use tokenizer::TokenizerConfig;

/// The value of `format` this version reads and writes.
pub const FORMAT: &str = "im2sp-1";

/// Largest side of a resized image, in pixels.
const MAX_RESIZE: usize = 4096;
/// Most rows of a grid of image units.
const MAX_GRID: usize = 256;
/// Most codes of a codebook.
const MAX_CODES: usize = 1 << 16;

/// A whole model: what `config.json` holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Always [`FORMAT`].
    pub format: String,
    /// One line for people: where the weights come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Set when the model knows only some kind of images: what they are ("drawn scenes of coloured shapes").
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Image to pixels.
    pub image: ImageConfig,
    /// Pixels to image tokens.
    pub vision: VisionConfig,
    /// Image tokens to speech units.
    pub decoder: DecoderConfig,
    /// Speech units to samples; absent in a directory that was converted without a vocoder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vocoder: Option<VocoderConfig>,
}

/// Image preprocessing: resize, centre crop, scale and normalise to pixels (B, 3, size, size). Fields that a plain CLIP
/// processor does not need have its values when absent and are not written then.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageConfig {
    /// Side of the square that the vision model takes, in pixels: the centre of the resized image.
    pub size: usize,
    /// Geometry of the resize.
    #[serde(default, skip_serializing_if = "is_default")]
    pub resize: Resize,
    /// Side that the resize gives, at least `size`; absent, it is `size`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resize_to: Option<usize>,
    /// Filter of the resize.
    #[serde(default, skip_serializing_if = "is_default")]
    pub filter: Filter,
    /// Factor of every byte before `mean` and `std`.
    #[serde(default = "bytes_to_unit", skip_serializing_if = "is_bytes_to_unit")]
    pub scale: f64,
    /// Subtracted from scaled values, per channel R, G, B.
    pub mean: [f32; 3],
    /// Divisor of the difference, per channel.
    pub std: [f32; 3],
}

/// Geometry of a resize.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resize {
    /// The short side gets the size; the aspect ratio stays (CLIP).
    #[default]
    ShortSide,
    /// Both sides get the size, whatever the aspect ratio was (ViT, BLIP).
    Square,
}

/// Filter of a resize; antialiased as Pillow's, but for `Nearest`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Filter {
    /// The source pixel at each output's centre.
    Nearest,
    /// Mean over the source area.
    Box,
    /// Linear interpolation.
    Bilinear,
    /// Hamming window, between bilinear and bicubic in sharpness.
    Hamming,
    /// Cubic convolution with a = -0.5.
    #[default]
    Bicubic,
    /// Sinc windowed to three lobes.
    Lanczos,
}

impl ImageConfig {
    /// The CLIP processor for squares of `size` pixels, with the statistics of CLIP's training images.
    pub fn clip(size: usize) -> ImageConfig {
        ImageConfig {
            size,
            resize: Resize::ShortSide,
            resize_to: None,
            filter: Filter::Bicubic,
            scale: bytes_to_unit(),
            mean: [0.48145466, 0.4578275, 0.40821073],
            std: [0.26862954, 0.2613026, 0.2757771],
        }
    }

    /// Squares of `size` pixels whatever the aspect ratio was, with the statistics of EfficientNet-lite: (byte - 127) / 128.
    pub fn efficient_net(size: usize) -> ImageConfig {
        ImageConfig { mean: [127.0 / 255.0; 3], std: [128.0 / 255.0; 3], ..ImageConfig::plain_square(size) }
    }

    /// Squares of `size` pixels whatever the aspect ratio was, as values in 0..1.
    pub fn plain_square(size: usize) -> ImageConfig {
        ImageConfig { resize: Resize::Square, mean: [0.0; 3], std: [1.0; 3], ..ImageConfig::clip(size) }
    }

    /// Side that the resize gives, in pixels.
    pub fn resized(&self) -> usize {
        self.resize_to.unwrap_or(self.size)
    }

    /// As [`ModelConfig::check`].
    fn check(&self) -> std::result::Result<(), (String, String)> {
        let wrong = |field: &str, problem: String| Err((format!("image.{field}"), problem));
        if self.resized() < self.size || self.resized() > MAX_RESIZE {
            let problem = format!("is {}, expected {} to {MAX_RESIZE}", self.resized(), self.size);
            return wrong("resize_to", problem);
        }
        if !self.scale.is_finite() || self.scale <= 0.0 {
            return wrong("scale", format!("is {}, expected a positive number", self.scale));
        }
        if !self.std.iter().all(|s| s.is_finite() && *s > 0.0) || !self.mean.iter().all(|m| m.is_finite()) {
            return wrong("std", "mean and std must be finite and std positive".into());
        }
        Ok(())
    }
}

/// Factor that takes bytes to 0..1.
fn bytes_to_unit() -> f64 {
    1.0 / 255.0
}

fn is_bytes_to_unit(scale: &f64) -> bool {
    *scale == bytes_to_unit()
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A pre-LN vision transformer with a class token: CLIP's, with quick GELU and norms before the first and after the last layer,
/// or, over image units, timm's, with GELU and without those norms. Or an EfficientNet-lite, which has a width and none of a
/// transformer's other dimensions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VisionConfig {
    /// Side of a square patch in pixels.
    #[serde(default, skip_serializing_if = "is_default")]
    pub patch: usize,
    /// Channels C of a token.
    pub width: usize,
    /// Transformer layers.
    #[serde(default, skip_serializing_if = "is_default")]
    pub layers: usize,
    /// Attention heads H; the head size is width / heads.
    #[serde(default, skip_serializing_if = "is_default")]
    pub heads: usize,
    /// Hidden channels of the feed-forward part.
    #[serde(default, skip_serializing_if = "is_default")]
    pub mlp: usize,
    /// Epsilon of its layer norms, and of the projection's where it sees pixels.
    pub eps: f32,
    /// Set when it sees image units instead of pixels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub units: Option<UnitInput>,
    /// Set when it is an EfficientNet-lite instead of a transformer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub efficient_net: Option<EfficientNetConfig>,
}

impl VisionConfig {
    /// Tokens of an image of `size` pixels, or of its units: the patches and the class token, or the pixels of the last map.
    pub fn image_tokens(&self, size: usize) -> usize {
        if let Some(net) = &self.efficient_net {
            return net.grid(size) * net.grid(size);
        }
        let side = match &self.units {
            Some(units) => (units.side() - self.patch) / units.stride + 1,
            None => size / self.patch,
        };
        side * side + 1
    }

    /// As [`ModelConfig::check`], for images of `size` pixels.
    fn check(&self, size: usize) -> std::result::Result<(), (String, String)> {
        let wrong = |field: &str, problem: String| Err((format!("vision.{field}"), problem));
        let transformer = [
            ("patch", self.patch, 1024),
            ("layers", self.layers, 512),
            ("heads", self.heads, 256),
            ("mlp", self.mlp, 1 << 16),
        ];
        if let Some(net) = &self.efficient_net {
            if let Some((field, _, _)) = transformer.into_iter().find(|(_, value, _)| *value != 0) {
                return wrong(field, "belongs to a transformer, and this model has an efficient_net".into());
            }
            if self.units.is_some() {
                return wrong("units", "are for a transformer, and this model has an efficient_net".into());
            }
            return net.check().map_err(|(field, problem)| (format!("vision.efficient_net.{field}"), problem));
        }
        for (field, value, max) in transformer {
            if value == 0 || value > max {
                return wrong(field, format!("is {value}, expected 1 to {max}"));
            }
        }
        if !self.width.is_multiple_of(self.heads) {
            return wrong("heads", format!("{} does not divide the width {}", self.heads, self.width));
        }
        match &self.units {
            Some(units) => units.check(self.patch),
            None if !size.is_multiple_of(self.patch) => {
                Err(("image.size".into(), format!("{size} is no multiple of the patch")))
            }
            None => Ok(()),
        }
    }
}

/// Image units as a vision transformer sees them: the code vectors of the centre of a grid, in windows that overlap.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnitInput {
    /// Side of the grid of units of an image.
    pub grid: usize,
    /// Side of the square in its centre that is seen.
    pub crop: usize,
    /// Codes K of the codebook.
    pub codes: usize,
    /// Values of a code.
    pub code_width: usize,
    /// Distance of the windows, whose side is the patch.
    pub stride: usize,
    /// Zeros around the square.
    pub padding: usize,
    /// Epsilon of the projection's layer norm.
    pub projection_eps: f32,
    /// Side of the square of units that the tokenizer makes of one token.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub token_units: usize,
}

fn one() -> usize {
    1
}

fn is_one(number: &usize) -> bool {
    *number == 1
}

impl UnitInput {
    /// Side of the square with its margin.
    pub fn side(&self) -> usize {
        self.crop + 2 * self.padding
    }

    /// An error unless these are the units of an image.
    pub fn check_units(&self, units: &[u16]) -> Result<()> {
        let expected = self.grid * self.grid;
        let problem = match units.iter().find(|&&unit| usize::from(unit) >= self.codes) {
            _ if units.len() != expected => {
                format!("{} image units, expected {expected}, {} rows of as many", units.len(), self.grid)
            }
            Some(unit) => format!("image unit {unit} of a codebook of {}", self.codes),
            None => return Ok(()),
        };
        Err(Error::Units { problem: format!("{problem}: use the tokenizer that the model was trained with") })
    }

    fn check(&self, patch: usize) -> std::result::Result<(), (String, String)> {
        let wrong = |field: &str, problem: String| Err((format!("vision.units.{field}"), problem));
        for (field, value, max) in [
            ("grid", self.grid, MAX_GRID),
            ("crop", self.crop, self.grid),
            ("codes", self.codes, MAX_CODES),
            ("code_width", self.code_width, 1 << 12),
            ("stride", self.stride, patch),
            ("token_units", self.token_units, self.grid),
        ] {
            if value == 0 || value > max {
                return wrong(field, format!("is {value}, expected 1 to {max}"));
            }
        }
        if self.padding >= patch || self.side() < patch || !(self.side() - patch).is_multiple_of(self.stride) {
            let problem = format!("{} does not fit windows of {patch}, {} apart", self.padding, self.stride);
            return wrong("padding", problem);
        }
        Ok(())
    }
}

/// A BERT-style post-LN decoder over image tokens and speech-unit tokens, output tied to the word embedding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecoderConfig {
    /// Channels C.
    pub width: usize,
    /// Transformer layers.
    pub layers: usize,
    /// Attention heads H; the head size is width / heads.
    pub heads: usize,
    /// Hidden channels of the feed-forward part.
    pub mlp: usize,
    /// Rows of the word embedding: units + 3.
    pub vocabulary: usize,
    /// Rows of the position embedding; unit positions only.
    pub max_positions: usize,
    /// Epsilon of its layer norms.
    pub eps: f32,
}

/// The unit HiFi-GAN. Field names follow the published `config.json` where they mean the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VocoderConfig {
    /// Samples per second of the result.
    pub sampling_rate: u32,
    /// Stride of each transposed convolution; their product is the samples of one code frame.
    pub upsample_rates: Vec<usize>,
    /// Kernel of each transposed convolution.
    pub upsample_kernel_sizes: Vec<usize>,
    /// Channels before the first of them; halved by each.
    pub upsample_initial_channel: usize,
    /// Kernel of each residual block of a stage.
    pub resblock_kernel_sizes: Vec<usize>,
    /// Dilations inside each residual block.
    pub resblock_dilation_sizes: Vec<Vec<usize>>,
    /// Speech units K.
    pub num_embeddings: usize,
    /// Channels of a unit's embedding.
    pub embedding_dim: usize,
    /// Channels that enter the generator: unit, f0 and speaker together.
    pub model_in_dim: usize,
    /// The duration predictor; without one every unit lasts one frame.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<DurationConfig>,
    /// Rows of the speaker table of a multi-speaker model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_speakers: Option<usize>,
    /// Bins of the quantised f0 embedding, of a model that takes f0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub f0_bins: Option<usize>,
}

/// Dimensions of the vocoder's duration predictor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DurationConfig {
    /// Hidden channels.
    pub hidden: usize,
    /// Taps of both convolutions.
    pub kernel: usize,
}

impl ModelConfig {
    /// Image tokens per image.
    pub fn image_tokens(&self) -> usize {
        self.vision.image_tokens(self.image.size)
    }

    /// Channels of what the patches are cut from: colours, or the values of a code.
    pub fn vision_inputs(&self) -> usize {
        self.vision.units.as_ref().map_or(3, |units| units.code_width)
    }

    /// Values of an image as the vision transformer takes it: pixels, or code vectors with their margin.
    pub fn vision_values(&self) -> usize {
        let side = self.vision.units.as_ref().map_or(self.image.size, UnitInput::side);
        self.vision_inputs() * side * side
    }

    /// Epsilon of the projection's layer norm.
    pub fn projection_eps(&self) -> f32 {
        self.vision.units.as_ref().map_or(self.vision.eps, |units| units.projection_eps)
    }

    /// Refuses values that no model of this family has. Returns the field and what is wrong with it.
    pub fn check(&self) -> std::result::Result<(), (String, String)> {
        let wrong = |field: &str, problem: String| Err((field.to_string(), problem));
        if self.format != FORMAT {
            return wrong("format", format!("is {:?}, this version reads {FORMAT:?}: convert again", self.format));
        }
        let sizes = [
            ("image.size", self.image.size, MAX_RESIZE),
            ("vision.width", self.vision.width, 1 << 14),
            ("decoder.width", self.decoder.width, 1 << 14),
            ("decoder.layers", self.decoder.layers, 512),
            ("decoder.heads", self.decoder.heads, 256),
            ("decoder.mlp", self.decoder.mlp, 1 << 16),
            ("decoder.max_positions", self.decoder.max_positions, 1 << 16),
        ];
        for (field, value, max) in sizes {
            if value == 0 || value > max {
                return wrong(field, format!("is {value}, expected 1 to {max}"));
            }
        }
        if self.decoder.vocabulary < 104 || self.decoder.vocabulary > 1 << 16 {
            return wrong("decoder.vocabulary", format!("is {}, expected 104 to 65536", self.decoder.vocabulary));
        }
        self.vision.check(self.image.size)?;
        let (width, heads) = (self.decoder.width, self.decoder.heads);
        if !width.is_multiple_of(heads) {
            return wrong("decoder.heads", format!("{heads} does not divide the width {width}"));
        }
        self.image.check()?;
        self.vocoder.as_ref().map_or(Ok(()), VocoderConfig::check)
    }
}

impl VocoderConfig {
    /// Samples of one code frame.
    pub fn hop(&self) -> usize {
        self.upsample_rates.iter().product()
    }

    /// Channels after upsampling stage `stage`.
    pub fn stage_channels(&self, stage: usize) -> usize {
        self.upsample_initial_channel >> (stage + 1)
    }

    /// As [`ModelConfig::check`].
    pub fn check(&self) -> std::result::Result<(), (String, String)> {
        let wrong = |field: &str, problem: String| Err((format!("vocoder.{field}"), problem));
        let stages = self.upsample_rates.len();
        if stages == 0 || stages > 12 || self.upsample_kernel_sizes.len() != stages {
            return wrong("upsample_kernel_sizes", "needs one kernel for each of 1 to 12 upsample_rates".into());
        }
        for (&rate, &kernel) in self.upsample_rates.iter().zip(&self.upsample_kernel_sizes) {
            if rate == 0 || kernel < rate || kernel > 256 || !(kernel - rate).is_multiple_of(2) {
                return wrong("upsample_kernel_sizes", format!("kernel {kernel} does not fit rate {rate}"));
            }
        }
        let hop = self.upsample_rates.iter().try_fold(1usize, |product, &rate| product.checked_mul(rate));
        if hop.is_none_or(|hop| hop > 1 << 16) {
            return wrong("upsample_rates", "their product exceeds 65536".into());
        }
        if self.stage_channels(stages - 1) == 0 || self.upsample_initial_channel > 1 << 14 {
            return wrong("upsample_initial_channel", format!("{} does not fit", self.upsample_initial_channel));
        }
        if self.resblock_kernel_sizes.is_empty()
            || self.resblock_kernel_sizes.len() != self.resblock_dilation_sizes.len()
            || self.resblock_kernel_sizes.iter().any(|k| k % 2 == 0 || *k > 255)
            || self.resblock_dilation_sizes.iter().any(|d| d.is_empty() || d.iter().any(|&d| d == 0 || d > 255))
        {
            return wrong(
                "resblock_kernel_sizes",
                "needs odd kernels, each with a list of dilations of 1 to 255".into(),
            );
        }
        for (field, value) in [
            ("num_embeddings", self.num_embeddings),
            ("embedding_dim", self.embedding_dim),
            ("model_in_dim", self.model_in_dim),
            ("num_speakers", self.num_speakers.unwrap_or(1)),
            ("f0_bins", self.f0_bins.unwrap_or(1)),
        ] {
            if value == 0 || value > 1 << 16 {
                return wrong(field, format!("is {value}, expected 1 to 65536"));
            }
        }
        let inputs = 1 + usize::from(self.num_speakers.is_some()) + usize::from(self.f0_bins.is_some());
        if self.model_in_dim != self.embedding_dim * inputs {
            return wrong("model_in_dim", format!("is {}, but {inputs} x embedding_dim go in", self.model_in_dim));
        }
        if self.sampling_rate == 0 || self.sampling_rate > 384_000 {
            return wrong("sampling_rate", format!("is {}", self.sampling_rate));
        }
        match &self.duration {
            Some(d) if d.hidden == 0 || d.hidden > 1 << 14 || d.kernel % 2 == 0 || d.kernel > 255 => {
                wrong("duration", "needs hidden channels and an odd kernel".into())
            }
            _ => Ok(()),
        }
    }
}
