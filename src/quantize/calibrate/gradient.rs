//! The decoder backwards, over whole sequences on the CPU: what every layer's outputs do to the choice of tokens. Gradients of
//! weights are not wanted.

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
    fn backward(&self, norm: &LayerNormWeights<Cpu>, dy: &Tensor) -> Result<Tensor> {
        Cpu.layer_norm_backward(dy, &self.x, norm, &self.saved, None, None)
    }
}

/// A layer over whole sequences.
fn forward(layer: &TransformerLayer<Cpu>, shape: AttentionShape, x: &Tensor) -> Result<Pass> {
    let qkv = Cpu.linear(x, &layer.qkv, Activation::None, None)?;
    let attended = Cpu.attention_saving(&qkv, shape, None)?;
    let after_attention = Cpu.linear(&attended.0, &layer.attention_out, Activation::None, Some(x))?;
    let (x, after_attention) = NormInput::normalised(&layer.attention_norm, after_attention)?;
    let (hidden, before_gelu) = Cpu.linear_saving(&x, &layer.fc1, Activation::Gelu)?;
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
    shape: AttentionShape,
    xs: &[Tensor],
    dresult: Tensor,
    record: Record<'_>,
) -> Result<()> {
    let mut dx = dresult;
    for (n, layer) in layers.iter().enumerate().rev() {
        let pass = forward(layer, shape, &xs[n])?;
        let mut record = |matrix, gradient: &Tensor| record(n, matrix, &Cpu.download(gradient)?);
        let after_mlp = pass.after_mlp.backward(&layer.mlp_norm, &dx)?;
        record("fc2", &after_mlp)?;
        let before_gelu =
            Cpu.linear_backward(&after_mlp, &layer.fc2, Some((Activation::Gelu, &pass.before_gelu)), None)?;
        record("fc1", &before_gelu)?;
        let after_norm = Cpu.linear_backward(&before_gelu, &layer.fc1, None, Some(&after_mlp))?;
        let after_attention = pass.after_attention.backward(&layer.attention_norm, &after_norm)?;
        record("attention_out", &after_attention)?;
        let (attended, log_sum_exp) = &pass.attended;
        let dattended = Cpu.linear_backward(&after_attention, &layer.attention_out, None, None)?;
        let dqkv = Cpu.attention_backward(&dattended, &pass.qkv, attended, log_sum_exp, shape, None)?;
        record("qkv", &dqkv)?;
        dx = Cpu.linear_backward(&dqkv, &layer.qkv, None, Some(&after_attention))?;
    }
    Ok(())
}
