//! Dimensions of an EfficientNet-lite: a stem, inverted residuals in stages, and a last convolution of one tap, whose outputs are
//! the width of the vision configuration.

use serde::{Deserialize, Serialize};

/// Stride of the stem.
pub const STEM_STRIDE: usize = 2;
/// Taps along a side of the stem's windows.
pub const STEM_TAPS: usize = 3;

/// An EfficientNet-lite.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EfficientNetConfig {
    /// Channels of the stem, a convolution of 3x3 taps and stride 2.
    pub stem: usize,
    /// Stages of inverted residuals, first to last.
    pub stages: Vec<Stage>,
}

/// Inverted residuals of one kind, each an expanding convolution of one tap, a depthwise one, and a projecting one of one tap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Blocks. All but the first have stride 1 and add their input to their result.
    pub blocks: usize,
    /// Taps along a side of the depthwise windows.
    pub taps: usize,
    /// Stride of the first block.
    pub stride: usize,
    /// Hidden channels of a block for each of its inputs; 1 leaves the expanding convolution out.
    pub expansion: usize,
    /// Channels of its result.
    pub channels: usize,
}

/// One inverted residual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvertedResidual {
    /// Channels in.
    pub inputs: usize,
    /// Channels of the depthwise convolution.
    pub hidden: usize,
    /// Channels out.
    pub outputs: usize,
    /// Taps along a side of the depthwise windows.
    pub taps: usize,
    /// Stride of the depthwise convolution.
    pub stride: usize,
}

impl InvertedResidual {
    /// Whether an expanding convolution comes first.
    pub fn expands(&self) -> bool {
        self.hidden != self.inputs
    }

    /// Whether the input is added to the result.
    pub fn adds_input(&self) -> bool {
        self.stride == 1 && self.inputs == self.outputs
    }
}

impl EfficientNetConfig {
    /// All blocks, first to last.
    pub fn blocks(&self) -> impl Iterator<Item = InvertedResidual> {
        let mut inputs = self.stem;
        let stages = self.stages.iter().flat_map(|stage| (0..stage.blocks).map(move |number| (stage, number)));
        stages.map(move |(&Stage { taps, stride, expansion, channels, .. }, number)| {
            let stride = if number == 0 { stride } else { 1 };
            let block = InvertedResidual { inputs, hidden: inputs * expansion, outputs: channels, taps, stride };
            inputs = channels;
            block
        })
    }

    /// Channels of the last block.
    pub fn last(&self) -> usize {
        self.stages.last().map_or(self.stem, |stage| stage.channels)
    }

    /// Side of the last map of an image of `size` pixels.
    pub fn grid(&self, size: usize) -> usize {
        self.stages.iter().fold(size.div_ceil(STEM_STRIDE), |side, stage| side.div_ceil(stage.stride.max(1)))
    }

    /// Multiplications of an image of `size` pixels to `width` channels, and the weights that they read.
    pub fn products(&self, size: usize, width: usize) -> [f64; 2] {
        let mut side = size.div_ceil(STEM_STRIDE);
        let mut sums = [0.0; 2];
        let mut add = |side: usize, weights: usize| {
            sums[0] += (side * side) as f64 * weights as f64;
            sums[1] += weights as f64;
        };
        add(side, 3 * STEM_TAPS * STEM_TAPS * self.stem);
        for block in self.blocks() {
            if block.expands() {
                add(side, block.inputs * block.hidden);
            }
            side = side.div_ceil(block.stride.max(1));
            add(side, block.hidden * (block.taps * block.taps + block.outputs));
        }
        add(side, self.last() * width);
        sums
    }

    /// As [`super::ModelConfig::check`], with fields as they are named here.
    pub(super) fn check(&self) -> std::result::Result<(), (String, String)> {
        let wrong =
            |field: String, value: usize, expected: &str| Err((field, format!("is {value}, expected {expected}")));
        if self.stem == 0 || self.stem > 1 << 12 {
            return wrong("stem".into(), self.stem, "1 to 4096");
        }
        if self.stages.is_empty() || self.stages.len() > 64 {
            return wrong("stages".into(), self.stages.len(), "1 to 64 of them");
        }
        for (number, stage) in self.stages.iter().enumerate() {
            for (field, value, fits, expected) in [
                ("blocks", stage.blocks, (1..=64).contains(&stage.blocks), "1 to 64"),
                ("taps", stage.taps, [3, 5].contains(&stage.taps), "3 or 5"),
                ("stride", stage.stride, [1, 2].contains(&stage.stride), "1 or 2"),
                ("expansion", stage.expansion, (1..=16).contains(&stage.expansion), "1 to 16"),
                ("channels", stage.channels, (1..=1 << 12).contains(&stage.channels), "1 to 4096"),
            ] {
                if !fits {
                    return wrong(format!("stages[{number}].{field}"), value, expected);
                }
            }
        }
        Ok(())
    }
}
