//! The decoder backwards, over whole sequences on the CPU: what every layer's outputs do to the choice of tokens. Gradients of
//! weights are not wanted.

use rayon::prelude::*;

use super::product::{Weights, times};
use crate::Result;
use crate::backend::TransformerLayer;
use crate::backend::cpu::{Cpu, Tensor};
use crate::backend::prelude::*;
use crate::backend::{Activation, AttentionShape, LayerNormWeights};

/// Values of a layer's forward pass that its backward pass needs; M tokens, C channels, F hidden ones.
struct Pass {
    qkv: Tensor,                // (M, 3C)
    attended: (Tensor, Tensor), // (M, C), and the log-sum-exp
    after_attention: NormInput,
    before_gelu: Tensor, // (M, F)
    after_mlp: NormInput,
    result: Tensor, // (M, C)
}

/// Input (M, C) of a norm, and mean and rstd of its rows.
struct NormInput {
    x: Tensor,
    saved: Tensor,
}

impl NormInput {
    /// The norm of `x`.
    fn normalised(norm: &LayerNormWeights<Cpu>, x: Tensor) -> Result<(Tensor, NormInput)> {
        let (y, saved) = Cpu.layer_norm_saving(&x, norm)?;
        Ok((y, NormInput { x, saved }))
    }

    /// The gradient at the input.
    fn backward(&self, norm: &LayerNormWeights<Cpu>, dy: Vec<f32>) -> Result<Vec<f32>> {
        let dy = Cpu.upload(Cpu.shape(&self.x), &dy)?;
        Cpu.download(&Cpu.layer_norm_backward(&dy, &self.x, norm, &self.saved, None, None)?)
    }
}

/// A layer over whole sequences.
fn forward(layer: &TransformerLayer<Cpu>, shape: AttentionShape, x: &Tensor) -> Result<Pass> {
    let qkv = Cpu.linear(x, &layer.qkv, Activation::None, None)?;
    let attended = Cpu.attention_saving(&qkv, shape, None)?;
    let after_attention = Cpu.linear(&attended.0, &layer.attention_out, Activation::None, Some(x))?;
    let (x, after_attention) = NormInput::normalised(&layer.attention_norm, after_attention)?;
    let before_gelu = Cpu.linear(&x, &layer.fc1, Activation::None, None)?;
    let hidden = Cpu.linear(&x, &layer.fc1, Activation::Gelu, None)?;
    let after_mlp = Cpu.linear(&hidden, &layer.fc2, Activation::None, Some(&x))?;
    let (result, after_mlp) = NormInput::normalised(&layer.mlp_norm, after_mlp)?;
    Ok(Pass { qkv, attended, after_attention, before_gelu, after_mlp, result })
}

/// The input of every layer (M, C) and, last, the result of all.
pub(super) fn inputs(layers: &[TransformerLayer<Cpu>], shape: AttentionShape, x: &Tensor) -> Result<Vec<Tensor>> {
    let mut xs = vec![x.clone()];
    for layer in layers {
        let result = forward(layer, shape, &xs[xs.len() - 1])?.result;
        xs.push(result);
    }
    Ok(xs)
}

/// Hears a layer, a matrix of it and the gradient at its output (M, N).
pub(super) type Record<'a> = &'a mut dyn FnMut(usize, &'static str, &[f32]) -> Result<()>;

/// From the gradient at the result of all layers (M, C) back to the first.
pub(super) fn backward(
    layers: &[TransformerLayer<Cpu>],
    weights: &Weights,
    shape: AttentionShape,
    xs: &[Tensor],
    dresult: Vec<f32>,
    record: Record<'_>,
) -> Result<()> {
    let mut dx = dresult;
    for (n, layer) in layers.iter().enumerate().rev() {
        let pass = forward(layer, shape, &xs[n])?;
        let after_mlp = pass.after_mlp.backward(&layer.mlp_norm, dx)?;
        record(n, "fc2", &after_mlp)?;
        let mut before_gelu = times(&after_mlp, weights.get(n, "fc2")?)?;
        gelu_backward(&Cpu.download(&pass.before_gelu)?, &mut before_gelu);
        record(n, "fc1", &before_gelu)?;
        let after_norm = sum(times(&before_gelu, weights.get(n, "fc1")?)?, &after_mlp);
        let after_attention = pass.after_attention.backward(&layer.attention_norm, after_norm)?;
        record(n, "attention_out", &after_attention)?;
        let (attended, log_sum_exp) = &pass.attended;
        let dy = Cpu.upload(Cpu.shape(attended), &times(&after_attention, weights.get(n, "attention_out")?)?)?;
        let qkv = Cpu.download(&Cpu.attention_backward(&dy, &pass.qkv, attended, log_sum_exp, shape, None)?)?;
        record(n, "qkv", &qkv)?;
        dx = sum(times(&qkv, weights.get(n, "qkv")?)?, &after_attention);
    }
    Ok(())
}

fn sum(mut a: Vec<f32>, b: &[f32]) -> Vec<f32> {
    a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
    a
}

/// Multiplies each gradient with the slope of x (1 + erf(x / sqrt 2)) / 2 at its x.
fn gelu_backward(x: &[f32], gradient: &mut [f32]) {
    gradient.par_iter_mut().zip(x).for_each(|(gradient, &x)| {
        let density = (-0.5 * x * x).exp() / std::f32::consts::TAU.sqrt();
        *gradient *= 0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)) + x * density;
    });
}

/// Source: Abramowitz and Stegun, 7.1.26; off by 1.5e-7 at most.
fn erf(x: f32) -> f32 {
    let t = 1.0 / (1.0 + 0.327_591_1 * x.abs());
    let series = ((((1.061_405_4 * t - 1.453_152) * t + 1.421_413_8) * t - 0.284_496_72) * t + 0.254_829_6) * t;
    (1.0 - series * (-x * x).exp()).copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    /// The slope of `f` along every element of `x`, from both sides.
    fn slopes(x: &[f32], f: impl Fn(&[f32]) -> f32) -> Vec<f32> {
        const STEP: f32 = 1e-2;
        let at = |place: usize, step: f32| {
            let mut x = x.to_vec();
            x[place] += step;
            f(&x)
        };
        (0..x.len()).map(|place| (at(place, STEP) - at(place, -STEP)) / (2.0 * STEP)).collect()
    }

    #[track_caller]
    fn close(gradient: &[f32], slopes: &[f32]) {
        let max = slopes.iter().fold(0.0f32, |max, v| max.max(v.abs()));
        for (place, (a, b)) in gradient.iter().zip(slopes).enumerate() {
            assert!((a - b).abs() < 0.01 * max, "{place}: {a}, expected {b}");
        }
        assert_eq!(gradient.len(), slopes.len());
    }

    #[test]
    fn gelu_goes_back() {
        let x = Random::new(2).values(3 * 7);
        let gelu =
            |x: &[f32]| x.iter().map(|v| 0.5 * v * (1.0 + erf(v * std::f32::consts::FRAC_1_SQRT_2))).sum::<f32>();
        let mut gradient = vec![1.0; x.len()];
        gelu_backward(&x, &mut gradient);
        close(&gradient, &slopes(&x, gelu));
    }
}
