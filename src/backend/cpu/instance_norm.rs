//! instance_norm: normalise each channel of x (T, C) over time, then scale, shift and activate.
//! Numerics: each share of frames has its own mean and squares around it (two passes over frames that stay in the L2); shares
//! are combined in order in f64. Bytes: 12 per element.

use rayon::prelude::*;

use super::buffer::Buffer;
use super::linear::finish;
use super::simd::{Simd, dispatch};
use super::{Activation, Cpu, Tensor};
use crate::backend::{InstanceNorm, LayerNormWeights, Sequences, instance_norm};
use crate::{Result, trace};

impl InstanceNorm for Cpu {
    fn instance_norm(
        &self,
        x: &Tensor,
        norm: &LayerNormWeights<Cpu>,
        sequences: &Sequences,
        activation: Activation,
    ) -> Result<Tensor> {
        let _span = trace::span("instance_norm");
        instance_norm::check(self, x, norm, sequences)?;
        let len = x.data.len();
        let mut y = if sequences.cover_all() { Buffer::any(len) } else { Buffer::zeros(len) };
        for rows in sequences.parts().iter().filter(|rows| !rows.is_empty() && x.columns > 0) {
            let part = rows.start * x.columns..rows.end * x.columns;
            let (x, chunk) = (&x.data[part.clone()], instance_norm::share(rows.len()) * x.columns);
            let [mean, scale] = statistics(x, chunk, norm);
            let shares = y[part].par_chunks_mut(chunk).zip(x.par_chunks(chunk));
            shares.for_each(|(y, x)| apply(x, [&mean, &scale, &norm.bias.data], activation, y));
        }
        Ok(Tensor::new(x.rows, x.columns, y))
    }
}

/// Mean, and weight times rstd, of each channel.
fn statistics(x: &[f32], chunk: usize, norm: &LayerNormWeights<Cpu>) -> [Vec<f32>; 2] {
    let channels = norm.bias.data.len();
    let shares: Vec<Vec<f32>> = x.par_chunks(chunk).map(|x| moments(x, channels)).collect();
    let (mut count, mut mean, mut squares) = (0.0f64, vec![0.0f64; channels], vec![0.0f64; channels]);
    for (share, x) in shares.iter().zip(x.chunks(chunk)) {
        let added = (x.len() / channels) as f64;
        let total = count + added;
        for (c, (mean, squares)) in mean.iter_mut().zip(&mut squares).enumerate() {
            let difference = f64::from(share[c]) - *mean;
            *mean += difference * (added / total);
            *squares += f64::from(share[channels + c]) + difference * difference * (count * added / total);
        }
        count = total;
    }
    let scale = |(squares, weight): (&f64, &f32)| f64::from(*weight) / (squares / count + f64::from(norm.eps)).sqrt();
    let scale = squares.iter().zip(norm.weight.data.iter()).map(scale).map(|scale| scale as f32).collect();
    [mean.into_iter().map(|mean| mean as f32).collect(), scale]
}

/// Means of a share's channels, then the sums of their squared differences from these.
fn moments(x: &[f32], channels: usize) -> Vec<f32> {
    let mut sums = vec![0.0; 2 * channels];
    moments_into(x, &mut sums);
    sums
}

dispatch! {
    fn moments_into(x: &[f32], sums: &mut [f32]) = moments_body;
}

#[inline(always)]
fn moments_body<S: Simd>(x: &[f32], sums: &mut [f32]) {
    let channels = sums.len() / 2;
    let (mean, squares) = sums.split_at_mut(channels);
    for frame in x.chunks_exact(channels) {
        mean.iter_mut().zip(frame).for_each(|(sum, v)| *sum += v);
    }
    let count = (x.len() / channels) as f32;
    mean.iter_mut().for_each(|sum| *sum /= count);
    for frame in x.chunks_exact(channels) {
        for ((square, v), mean) in squares.iter_mut().zip(frame).zip(&*mean) {
            *square = S::mul_add1(v - mean, v - mean, *square);
        }
    }
}

dispatch! {
    fn apply(x: &[f32], sides: [&[f32]; 3], activation: Activation, y: &mut [f32]) = apply_body;
}

#[inline(always)]
fn apply_body<S: Simd>(x: &[f32], [mean, scale, bias]: [&[f32]; 3], activation: Activation, y: &mut [f32]) {
    for (x, y) in x.chunks_exact(mean.len()).zip(y.chunks_exact_mut(mean.len())) {
        for ((((y, x), mean), scale), bias) in y.iter_mut().zip(x).zip(mean).zip(scale).zip(bias) {
            *y = S::mul_add1(x - mean, *scale, *bias);
        }
        finish::<S>(y, &mut [], [&[]; 4], activation);
    }
}
