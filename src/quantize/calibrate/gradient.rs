//! The decoder backwards, over whole sequences on the CPU: what every layer's outputs do to the choice of tokens. Only
//! these gradients are wanted, once per image, so this is plain code and no operation of a backend.
//! Math: y = LN(x): dx = rstd (w dy - mean(w dy) - x^ mean(w dy x^)); softmax: ds = p (dp - sum p dp).

use rayon::prelude::*;

use super::product::{Weights, dot, times};
use crate::Result;
use crate::backend::TransformerLayer;
use crate::backend::cpu::{Cpu, Tensor};
use crate::backend::prelude::*;
use crate::backend::{Activation, AttentionShape, LayerNormWeights};

/// Values of a layer's forward pass that its backward pass needs; M tokens, C channels, F hidden ones.
struct Pass {
    qkv: Tensor,             // (M, 3C)
    after_attention: Tensor, // (M, C), before its norm
    before_gelu: Tensor,     // (M, F)
    after_mlp: Tensor,       // (M, C), before its norm
    result: Tensor,          // (M, C)
}

/// A layer over whole sequences.
fn forward(layer: &TransformerLayer<Cpu>, shape: AttentionShape, x: &Tensor) -> Result<Pass> {
    let qkv = Cpu.linear(x, &layer.qkv, Activation::None, None)?;
    let attended = Cpu.attention(&qkv, shape)?;
    let after_attention = Cpu.linear(&attended, &layer.attention_out, Activation::None, Some(x))?;
    let x = Cpu.layer_norm(&after_attention, &layer.attention_norm)?;
    let before_gelu = Cpu.linear(&x, &layer.fc1, Activation::None, None)?;
    let hidden = Cpu.linear(&x, &layer.fc1, Activation::Gelu, None)?;
    let after_mlp = Cpu.linear(&hidden, &layer.fc2, Activation::None, Some(&x))?;
    let result = Cpu.layer_norm(&after_mlp, &layer.mlp_norm)?;
    Ok(Pass { qkv, after_attention, before_gelu, after_mlp, result })
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
        let after_mlp = norm_backward(&layer.mlp_norm, &pass.after_mlp, &dx)?;
        record(n, "fc2", &after_mlp)?;
        let mut before_gelu = times(&after_mlp, weights.get(n, "fc2")?)?;
        gelu_backward(&Cpu.download(&pass.before_gelu)?, &mut before_gelu);
        record(n, "fc1", &before_gelu)?;
        let after_norm = sum(times(&before_gelu, weights.get(n, "fc1")?)?, &after_mlp);
        let after_attention = norm_backward(&layer.attention_norm, &pass.after_attention, &after_norm)?;
        record(n, "attention_out", &after_attention)?;
        let attended = times(&after_attention, weights.get(n, "attention_out")?)?;
        let qkv = attention_backward(&Cpu.download(&pass.qkv)?, &attended, shape);
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

/// The gradient at x (M, C) of a norm.
fn norm_backward(norm: &LayerNormWeights<Cpu>, x: &Tensor, dy: &[f32]) -> Result<Vec<f32>> {
    let columns = Cpu.shape(x)[1];
    let (x, weight) = (Cpu.download(x)?, Cpu.download(&norm.weight)?);
    let mut dx = vec![0.0; x.len()];
    dx.par_chunks_mut(columns).zip(x.par_chunks(columns)).zip(dy.par_chunks(columns)).for_each(|((dx, x), dy)| {
        let count = columns as f32;
        let mean = x.iter().sum::<f32>() / count;
        let rstd = 1.0 / (x.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / count + norm.eps).sqrt();
        let scaled = || dy.iter().zip(&weight).map(|(d, w)| d * w);
        let level = scaled().sum::<f32>() / count;
        let along = scaled().zip(x).map(|(d, v)| d * (v - mean) * rstd).sum::<f32>() / count;
        for ((dx, d), v) in dx.iter_mut().zip(scaled()).zip(x) {
            *dx = rstd * (d - level - (v - mean) * rstd * along);
        }
    });
    Ok(dx)
}

/// The gradient at packed query, key and value (B*T, 3*H*D) of attention, from that at its result (B*T, H*D).
fn attention_backward(qkv: &[f32], dout: &[f32], shape: AttentionShape) -> Vec<f32> {
    let AttentionShape { batch, tokens, heads, .. } = shape;
    let width = dout.len() / (batch * tokens).max(1);
    let size = width / heads;
    let gather = |values: &[f32], stride: usize, sequence: usize, at: usize| -> Vec<f32> {
        let rows = values[sequence * tokens * stride..][..tokens * stride].chunks_exact(stride);
        rows.flat_map(|row| &row[at..at + size]).copied().collect()
    };
    let of_head = |task: usize| {
        let (sequence, head) = (task / heads, task % heads);
        let parts = [0, 1, 2].map(|part| gather(qkv, 3 * width, sequence, part * width + head * size));
        head_backward(&parts, &gather(dout, width, sequence, head * size), shape)
    };
    let all: Vec<[Vec<f32>; 3]> = (0..batch * heads).into_par_iter().map(of_head).collect();
    let mut dqkv = vec![0.0; 3 * dout.len()];
    for (task, parts) in all.iter().enumerate() {
        let (sequence, head) = (task / heads, task % heads);
        for (part, values) in parts.iter().enumerate() {
            for (t, values) in values.chunks_exact(size).enumerate() {
                let at = (sequence * tokens + t) * 3 * width + part * width + head * size;
                dqkv[at..at + size].copy_from_slice(values);
            }
        }
    }
    dqkv
}

/// Gradients at query, key and value of one head of one sequence, from them and the gradient at the result, all (T, D).
fn head_backward([query, key, value]: &[Vec<f32>; 3], dout: &[f32], shape: AttentionShape) -> [Vec<f32>; 3] {
    let AttentionShape { tokens, prefix, .. } = shape;
    let size = dout.len() / tokens.max(1);
    let scale = 1.0 / (size as f32).sqrt();
    let row = |t: usize| t * size..(t + 1) * size;
    let [mut dquery, mut dkey, mut dvalue] = [(); 3].map(|()| vec![0.0; dout.len()]);
    for t in 0..tokens {
        // Image tokens see each other, units see them and the units up to themselves.
        let seen = if t < prefix { prefix } else { t + 1 };
        let (q, dy) = (&query[row(t)], &dout[row(t)]);
        let scores: Vec<f32> = (0..seen).map(|s| scale * dot(q, &key[row(s)])).collect();
        let max = scores.iter().fold(f32::NEG_INFINITY, |max, &v| max.max(v));
        let mut p: Vec<f32> = scores.iter().map(|v| (v - max).exp()).collect();
        let total: f32 = p.iter().sum();
        p.iter_mut().for_each(|p| *p /= total);
        let dp: Vec<f32> = (0..seen).map(|s| dot(dy, &value[row(s)])).collect();
        let along = dot(&p, &dp);
        for s in 0..seen {
            let dscore = scale * p[s] * (dp[s] - along);
            add(&mut dquery[row(t)], dscore, &key[row(s)]);
            add(&mut dkey[row(s)], dscore, q);
            add(&mut dvalue[row(s)], p[s], dy);
        }
    }
    [dquery, dkey, dvalue]
}

/// `sum += scale * values`.
fn add(sum: &mut [f32], scale: f32, values: &[f32]) {
    sum.iter_mut().zip(values).for_each(|(sum, v)| *sum += scale * v);
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
    fn attention_goes_back() {
        let shape = AttentionShape { batch: 2, tokens: 5, heads: 2, prefix: 3 };
        let mut random = Random::new(1);
        let (qkv, dout) = (random.values(2 * 5 * 3 * 8), random.values(2 * 5 * 8));
        let forward = |qkv: &[f32]| {
            let out = Cpu.attention(&Cpu.upload([10, 24], qkv)?, shape)?;
            Ok::<f32, crate::Error>(dot(&Cpu.download(&out)?, &dout))
        };
        close(&attention_backward(&qkv, &dout, shape), &slopes(&qkv, |qkv| forward(qkv).expect("it fits")));
    }

    #[test]
    fn norm_and_gelu_go_back() -> Result<()> {
        let mut random = Random::new(2);
        let (x, dy) = (random.values(3 * 7), random.values(3 * 7));
        let vector = |values: Vec<f32>| Cpu.upload([1, 7], &values);
        let norm = LayerNormWeights { weight: vector(random.values(7))?, bias: vector(random.values(7))?, eps: 1e-5 };
        let forward = |x: &[f32]| {
            let y = Cpu.layer_norm(&Cpu.upload([3, 7], x)?, &norm)?;
            Ok::<f32, crate::Error>(dot(&Cpu.download(&y)?, &dy))
        };
        let gradient = norm_backward(&norm, &Cpu.upload([3, 7], &x)?, &dy)?;
        close(&gradient, &slopes(&x, |x| forward(x).expect("it fits")));
        let gelu =
            |x: &[f32]| x.iter().map(|v| 0.5 * v * (1.0 + erf(v * std::f32::consts::FRAC_1_SQRT_2))).sum::<f32>();
        let mut gradient = vec![1.0; x.len()];
        gelu_backward(&x, &mut gradient);
        close(&gradient, &slopes(&x, gelu));
        Ok(())
    }
}
