//! The dimensions of models that take speech in: HuBERT and wav2vec 2.0, with or without the output layer of a recogniser.

use serde::{Deserialize, Serialize};

use super::FORMAT;

/// Samples per second of all speech that such models take.
pub const SPEECH_RATE: u32 = 16_000;

/// A speech encoder or recogniser: what `config.json` of its directory holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpeechConfig {
    /// Always [`FORMAT`].
    pub format: String,
    /// Purpose of the model.
    pub kind: SpeechKind,
    /// One line for people: where the weights come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Recordings are brought to zero mean and unit variance first, with this added to the variance; absent, samples are taken
    /// as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub normalize_eps: Option<f32>,
    /// The convolutions that make frames of samples, in their order.
    pub convolutions: Vec<SpeechConvolution>,
    /// Norms of the convolutions.
    pub convolution_norm: ConvolutionNorm,
    /// Whether the convolutions have biases.
    pub convolution_bias: bool,
    /// Channels C of the transformer.
    pub width: usize,
    /// Transformer layers.
    pub layers: usize,
    /// Attention heads H; the head size is width / heads.
    pub heads: usize,
    /// Hidden channels of the feed-forward part.
    pub mlp: usize,
    /// Epsilon of the transformer's layer norms and of that before its projection.
    pub eps: f32,
    /// Taps of the convolution that tells positions.
    pub position_taps: usize,
    /// Its groups of channels.
    pub position_groups: usize,
    /// Whether the transformer's norms stand before attention and feed-forward part (wav2vec 2.0 large), and once more after the
    /// last layer; otherwise they follow the residuals (HuBERT Base).
    pub pre_norm: bool,
    /// Symbols of the output layer of a recogniser.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vocabulary: Option<Vocabulary>,
}

/// Purpose of a model that takes speech in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SpeechKind {
    /// Features of speech, for units.
    SpeechEncoder,
    /// Text of speech, by connectionist temporal classification.
    Ctc,
}

/// A convolution over time without padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpeechConvolution {
    /// Channels out.
    pub channels: usize,
    /// Taps.
    pub taps: usize,
    /// Stride.
    pub stride: usize,
}

/// Norms between the convolutions and their activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConvolutionNorm {
    /// Each channel over time, after the first convolution only.
    Group,
    /// The channels of each frame, after every convolution.
    Layer,
}

/// Symbols of a recogniser.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vocabulary {
    /// The symbol of each id.
    pub symbols: Vec<String>,
    /// Id that stands for no symbol.
    pub blank: usize,
    /// Symbol between words.
    pub delimiter: String,
}

impl Vocabulary {
    /// Text of the best id of each frame: runs of one id count once, blanks not at all.
    pub fn text(&self, ids: &[u32]) -> String {
        let mut text = String::new();
        for run in ids.chunk_by(|a, b| a == b) {
            let id = run[0] as usize;
            if id == self.blank {
                continue;
            }
            match self.symbols.get(id) {
                Some(symbol) if *symbol == self.delimiter => text.push(' '),
                Some(symbol) => text.push_str(symbol),
                None => {}
            }
        }
        text.trim().to_string()
    }
}

impl SpeechConfig {
    /// Samples between the starts of two frames.
    pub fn hop(&self) -> usize {
        self.convolutions.iter().map(|convolution| convolution.stride).product()
    }

    /// Samples that one frame sees.
    pub fn window(&self) -> usize {
        self.convolutions
            .iter()
            .rev()
            .fold(1, |window, convolution| (window - 1) * convolution.stride + convolution.taps)
    }

    /// Frames of so many samples.
    pub fn frames(&self, samples: usize) -> usize {
        samples.checked_sub(self.window()).map_or(0, |rest| rest / self.hop() + 1)
    }

    /// Refuses values that no model of this family has. Returns the field and what is wrong with it.
    pub fn check(&self) -> Result<(), (String, String)> {
        let wrong = |field: &str, problem: String| Err((field.to_string(), problem));
        if self.format != FORMAT {
            return wrong("format", format!("is {:?}, this version reads {FORMAT:?}: convert again", self.format));
        }
        let sizes = [
            ("width", self.width, 1 << 14),
            ("layers", self.layers, 512),
            ("heads", self.heads, 256),
            ("mlp", self.mlp, 1 << 16),
            ("position_taps", self.position_taps, 1024),
            ("position_groups", self.position_groups, 1 << 14),
            ("convolutions", self.convolutions.len(), 32),
        ];
        for (field, value, max) in sizes {
            if value == 0 || value > max {
                return wrong(field, format!("is {value}, expected 1 to {max}"));
            }
        }
        for convolution in &self.convolutions {
            let SpeechConvolution { channels, taps, stride } = *convolution;
            if [channels, taps, stride].contains(&0) || channels > 1 << 14 || taps > 1024 || stride > 64 {
                return wrong("convolutions", format!("one has {channels} channels, {taps} taps and stride {stride}"));
            }
        }
        let strides = self.convolutions.iter().try_fold(1usize, |product, c| product.checked_mul(c.stride));
        if strides.is_none_or(|hop| hop > 1 << 20) {
            return wrong("convolutions", "their strides make more than 2^20 samples a frame".into());
        }
        if !self.width.is_multiple_of(self.heads) {
            return wrong("heads", format!("{} does not divide the width {}", self.heads, self.width));
        }
        if !self.width.is_multiple_of(self.position_groups) {
            return wrong("position_groups", format!("{} does not divide the width", self.position_groups));
        }
        match (self.kind, &self.vocabulary) {
            (SpeechKind::Ctc, None) => wrong("vocabulary", "is missing: a recogniser has one".into()),
            (SpeechKind::SpeechEncoder, Some(_)) => {
                wrong("vocabulary", "is there, but only recognisers have one".into())
            }
            (SpeechKind::Ctc, Some(words)) if words.blank >= words.symbols.len() => {
                wrong("vocabulary.blank", format!("is {}, but there are {} symbols", words.blank, words.symbols.len()))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_ids_become_text() {
        let symbols = ["<pad>", "<s>", "|", "A", "B"].map(String::from).to_vec();
        let vocabulary = Vocabulary { symbols, blank: 0, delimiter: "|".into() };
        assert_eq!(vocabulary.text(&[]), "");
        assert_eq!(vocabulary.text(&[0, 0]), "");
        assert_eq!(vocabulary.text(&[2, 3, 3, 0, 3, 2, 2, 4, 1, 0, 2]), "AA B<s>");
        assert_eq!(vocabulary.text(&[3, 9, 4]), "AB");
    }
}
