//! Cost of an operation or a stage, counted from its dimensions: the floating-point operations and the bytes that any
//! implementation performs and moves at least once, a convolution being multiplied directly (Winograd's form, which the
//! CPU uses, needs fewer operations). Benches report shares of the hardware's peaks by it.

use crate::config::{ModelConfig, VocoderConfig};

/// Operations and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Floating-point operations; a fused multiply-add counts as two.
    pub flops: f64,
    /// Bytes read and written once.
    pub bytes: f64,
}

/// Matrix products and attention of `layers` transformer layers over `tokens`.
fn transformer(layers: usize, width: usize, mlp: usize, tokens: usize, element: usize) -> Cost {
    let weights = (layers * width * (4 * width + 2 * mlp)) as f64;
    let attention = (layers * 4 * tokens * tokens * width) as f64;
    Cost { flops: 2.0 * tokens as f64 * weights + attention, bytes: weights * element as f64 }
}

/// Pixels of one image to image tokens, with weights of `element` bytes.
pub fn vision(config: &ModelConfig, element: usize) -> Cost {
    let (vision, tokens) = (&config.vision, config.image_tokens());
    if let Some(net) = &vision.efficient_net {
        let [products, weights] = net.products(config.image.size, vision.width);
        let projection = (vision.width * config.decoder.width) as f64;
        let flops = 2.0 * (products + tokens as f64 * projection);
        return Cost { flops, bytes: (weights + projection) * element as f64 };
    }
    let patches = (vision.width * config.vision_inputs() * vision.patch * vision.patch) as f64;
    let projection = (vision.width * config.decoder.width) as f64;
    let layers = transformer(vision.layers, vision.width, vision.mlp, tokens, element);
    Cost {
        flops: layers.flops + 2.0 * (tokens - 1) as f64 * patches + 2.0 * tokens as f64 * projection,
        bytes: layers.bytes + (patches + projection) * element as f64,
    }
}

/// Image tokens of one image to keys and values. The last layer stops after them.
pub fn prefill(config: &ModelConfig, element: usize) -> Cost {
    let (decoder, tokens) = (&config.decoder, config.image_tokens());
    let layers = transformer(decoder.layers - 1, decoder.width, decoder.mlp, tokens, element);
    let last = (3 * decoder.width * decoder.width) as f64;
    Cost { flops: layers.flops + 2.0 * tokens as f64 * last, bytes: layers.bytes + last * element as f64 }
}

/// One token of one sequence, with bytes of an element of the layers' matrices, of the output's, and of the image's keys and
/// values.
pub fn step(config: &ModelConfig, elements: [usize; 3]) -> Cost {
    let decoder = &config.decoder;
    let counts = [
        decoder.layers * decoder.width * (4 * decoder.width + 2 * decoder.mlp),
        decoder.vocabulary * decoder.width,
        decoder.layers * 2 * config.image_tokens() * decoder.width,
    ];
    let bytes: usize = counts.iter().zip(elements).map(|(count, element)| count * element).sum();
    Cost { flops: 2.0 * counts.iter().sum::<usize>() as f64, bytes: bytes as f64 }
}

/// Embedded frames to samples, for `frames` frames.
pub fn vocoder(config: &VocoderConfig, frames: usize, element: usize) -> Cost {
    let first = config.upsample_initial_channel;
    let (mut macs, mut weights, mut samples) = (0.0, 0.0, frames);
    let mut add = |shape: usize, samples: usize| {
        weights += shape as f64;
        macs += shape as f64 * samples as f64;
    };
    add(first * config.model_in_dim * 7, frames);
    for (stage, (&rate, &taps)) in config.upsample_rates.iter().zip(&config.upsample_kernel_sizes).enumerate() {
        let channels = config.stage_channels(stage);
        // Every input sample meets every tap.
        add(2 * channels * channels * taps, samples);
        samples *= rate;
        for (&taps, dilations) in config.resblock_kernel_sizes.iter().zip(&config.resblock_dilation_sizes) {
            add(2 * dilations.len() * channels * channels * taps, samples);
        }
    }
    add(config.stage_channels(config.upsample_rates.len() - 1) * 7, samples);
    Cost { flops: 2.0 * macs, bytes: weights * element as f64 }
}
