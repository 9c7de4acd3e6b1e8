//! Floating-point operations of a training pass: those of its products, which are nearly all.

use super::model::Freeze;
use crate::backend::{AttentionShape, attention, linear};
use crate::config::ModelConfig;

/// A trained product is computed three times: its result, and the gradients of both factors.
const TRAINED: f64 = 3.0;

/// Operations of the forward and backward passes over `batch` images and their sequences of `units` inputs each. `features`:
/// whether the frozen part's output was given.
pub fn operations(config: &ModelConfig, freeze: Freeze, features: bool, batch: usize, units: usize) -> f64 {
    let (vision, decoder, tokens) = (&config.vision, &config.decoder, config.image_tokens());
    let product = |m: usize, n: usize, k: usize| linear::cost([m, n, k], 0, 0, 0).flops;
    let attended = |shape: AttentionShape, width: usize| attention::cost(shape, width / shape.heads.max(1), 0).flops;
    let layer = |rows: usize, kept: usize, width: usize, mlp: usize| {
        product(rows, 3 * width, width) + product(kept, width, width) + 2.0 * product(kept, mlp, width)
    };

    let rows = batch * tokens;
    let shape = AttentionShape { batch, tokens, heads: vision.heads, prefix: tokens };
    let encoder = match &vision.efficient_net {
        Some(net) => 2.0 * batch as f64 * net.products(config.image.size, vision.width)[0],
        None => {
            vision.layers as f64 * (layer(rows, rows, vision.width, vision.mlp) + attended(shape, vision.width))
                + product(rows, vision.width, config.vision_inputs() * vision.patch * vision.patch)
        }
    };
    let projection = product(rows, decoder.width, vision.width);

    // After the last attention only units go on.
    let shape = AttentionShape { batch, tokens: tokens + units, heads: decoder.heads, prefix: tokens };
    let (rows, kept) = (batch * (tokens + units), batch * units);
    let whole = decoder.layers.saturating_sub(1) as f64 * layer(rows, rows, decoder.width, decoder.mlp);
    let layers = whole
        + layer(rows, kept, decoder.width, decoder.mlp)
        + decoder.layers as f64 * attended(shape, decoder.width)
        + product(kept, decoder.vocabulary, decoder.width);

    let image = match (freeze, features) {
        (Freeze::None, _) => TRAINED * (encoder + projection),
        (Freeze::Encoder, true) => TRAINED * projection,
        (Freeze::Encoder, false) => encoder + TRAINED * projection,
        (Freeze::Vision, true) => 0.0,
        (Freeze::Vision, false) => encoder + projection,
    };
    image + TRAINED * layers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::random;

    /// Published size, 16 images with 151 inputs: 2.5 TFLOP of the encoder and 1.5 of the decoder's passes, by hand.
    #[test]
    fn operations_of_the_published_size() {
        let count = |freeze, features| operations(&random::published(), freeze, features, 16, 151) / 1e12;
        let (decoder, frozen, full) =
            (count(Freeze::Vision, true), count(Freeze::Vision, false), count(Freeze::None, false));
        assert!((1.3..1.8).contains(&decoder), "{decoder}");
        assert!((2.4..2.8).contains(&(frozen - decoder)), "{frozen}");
        assert!(((full - decoder) / (frozen - decoder) - 3.0).abs() < 1e-9, "{full}");
        assert!(count(Freeze::Encoder, true) > decoder && count(Freeze::Encoder, false) > frozen);
    }
}
