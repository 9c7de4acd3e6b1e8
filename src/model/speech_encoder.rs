//! HuBERT and wav2vec 2.0: strided convolutions make a frame of 20 ms of samples, a grouped convolution tells positions, and a
//! transformer makes features. Sources: fairseq's HubertModel and Wav2Vec2Model, and those of transformers; checkpoint names in
//! `weights::convert`.

use std::ops::Range;

use super::loader::Loader;
use super::transformer::{Division, Encoder, EncoderShape};
use crate::Result;
use crate::backend::{Activation, Backend, FrameConvShape, LayerNormWeights, LinearWeights, Sequences};
use crate::config::{ConvolutionNorm, SpeechConfig, SpeechConvolution};

/// Epsilon of the norms between convolutions.
const CONVOLUTION_EPS: f32 = 1e-5;

/// Weights of an encoder; C channels of the transformer, F of the convolutions.
pub struct SpeechEncoder<B: Backend> {
    convolutions: Vec<Convolution<B>>,
    feature_norm: LayerNormWeights<B>, // (F)
    projection: LinearWeights<B>,      // (C, F)
    positions: LinearWeights<B>,       // (C, taps*C/groups)
    position_shape: FrameConvShape,
    /// Before the first layer, or after the last one where norms stand before.
    norm: LayerNormWeights<B>, // (C)
    encoder: Encoder<B>,
    pre_norm: bool,
    normalize_eps: Option<f32>,
}

/// A strided convolution, its norm and GELU.
struct Convolution<B: Backend> {
    weights: LinearWeights<B>, // (F, taps*F before)
    shape: FrameConvShape,
    norm: Option<LayerNormWeights<B>>, // (F)
    over_time: bool,
}

impl<B: Backend> SpeechEncoder<B> {
    /// Takes the tensors of the encoder with its first `layers` transformer layers.
    pub fn load(loader: &mut Loader<'_, B>, config: &SpeechConfig, layers: usize) -> Result<SpeechEncoder<B>> {
        let SpeechConfig { width, heads, mlp, eps, position_taps, position_groups, .. } = *config;
        let mut convolutions = Vec::with_capacity(config.convolutions.len());
        let mut channels = 1;
        for (n, convolution) in config.convolutions.iter().enumerate() {
            convolutions.push(Convolution::load(loader, config, n, channels)?);
            channels = convolution.channels;
        }
        let activation = Activation::Gelu;
        let shape = EncoderShape { layers, width, heads, inner: width, mlp, activation, eps };
        let (before, even) = (position_taps / 2, position_taps % 2 == 0);
        Ok(SpeechEncoder {
            convolutions,
            feature_norm: loader.norm("feature_norm", channels, eps)?,
            projection: loader.linear("projection", width, channels)?,
            positions: loader.linear("positions", width, position_taps * (width / position_groups))?,
            position_shape: FrameConvShape {
                taps: position_taps,
                stride: 1,
                // An even number of taps would give a frame too many, of which the last is dropped.
                padding: [before, before - usize::from(even)],
                groups: position_groups,
            },
            norm: loader.norm("encoder.norm", width, eps)?,
            encoder: Encoder::load(loader, "encoder.layers", &shape)?,
            pre_norm: config.pre_norm,
            normalize_eps: config.normalize_eps,
        })
    }

    /// Samples of one recording, 16,000 a second, to the result of the last layer (T, C); (0, C) of less than a window.
    pub fn features(&self, backend: &B, samples: &[f32]) -> Result<B::Tensor> {
        Ok(self.features_of_many(backend, &[samples])?.0)
    }

    /// As [`SpeechEncoder::features`] of several recordings together, and the rows of each in the result. The features of each are
    /// those it has alone, bit for bit.
    pub fn features_of_many(&self, backend: &B, recordings: &[&[f32]]) -> Result<(B::Tensor, Sequences)> {
        let (samples, mut sequences) = self.arrange(recordings)?;
        let mut x = backend.upload([samples.len(), 1], &samples)?;
        for convolution in &self.convolutions {
            sequences = convolution.windows(&sequences, backend.shape(&x)[0])?;
            x = convolution.forward(backend, &x, &sequences)?;
        }
        let x = backend.layer_norm(&x, &self.feature_norm)?;
        let x = backend.linear(&x, &self.projection, Activation::None, None)?;
        let (positions, shape) = (&self.positions, self.position_shape);
        let x = backend.frame_conv(&x, positions, shape, Activation::Gelu, Some(&x), Some(&sequences))?;
        let division = Division::Ragged(&sequences);
        let x = match self.pre_norm {
            true => self.encoder.forward(backend, x, division)?,
            false => self.encoder.forward_post_norm(backend, backend.layer_norm(&x, &self.norm)?, division)?,
        };
        Ok((x, sequences))
    }

    /// As [`SpeechEncoder::features_of_many`], with the norm that follows the last layer where norms stand before: the input of an
    /// output layer.
    pub fn normalized_features(&self, backend: &B, recordings: &[&[f32]]) -> Result<(B::Tensor, Sequences)> {
        let (x, sequences) = self.features_of_many(backend, recordings)?;
        let x = if self.pre_norm { backend.layer_norm(&x, &self.norm)? } else { x };
        Ok((x, sequences))
    }

    /// Recordings one after another, each from a multiple of the strides' product on, and where a group of windows begins: its
    /// windows in every convolution are those it has alone. Windows in which two recordings meet belong to neither.
    fn arrange(&self, recordings: &[&[f32]]) -> Result<(Vec<f32>, Sequences)> {
        let (_, hop) = self.convolutions.iter().fold((1, 1), |(stride, hop), Convolution { shape, .. }| {
            let stride = stride * shape.stride;
            (stride, least_common_multiple(hop, stride * B::frame_conv_group(*shape)))
        });
        let mut samples = Vec::with_capacity(recordings.iter().map(|recording| recording.len() + hop).sum());
        let mut parts = Vec::with_capacity(recordings.len());
        for recording in recordings {
            samples.resize(samples.len().next_multiple_of(hop), 0.0);
            let start = samples.len();
            match self.normalize_eps {
                Some(eps) => samples.extend(normalized(recording, eps)),
                None => samples.extend_from_slice(recording),
            }
            parts.push(start..samples.len());
        }
        let sequences = Sequences::new(samples.len(), parts)?;
        Ok((samples, sequences))
    }
}

impl<B: Backend> Convolution<B> {
    /// Takes convolution `n` of `inputs` channels.
    fn load(loader: &mut Loader<'_, B>, config: &SpeechConfig, n: usize, inputs: usize) -> Result<Convolution<B>> {
        let SpeechConvolution { channels, taps, stride } = config.convolutions[n];
        let weight = loader.matrix(&format!("convolutions.{n}.weight"), [channels, taps * inputs])?;
        let bias = match config.convolution_bias {
            true => loader.vector(&format!("convolutions.{n}.bias"), channels)?,
            false => loader.backend.upload([1, channels], &vec![0.0; channels])?,
        };
        let over_time = config.convolution_norm == ConvolutionNorm::Group;
        let norm = (n == 0 || !over_time)
            .then(|| loader.norm(&format!("convolutions.{n}.norm"), channels, CONVOLUTION_EPS))
            .transpose()?;
        let shape = FrameConvShape::strided(taps, stride);
        Ok(Convolution { weights: LinearWeights { weight, bias }, shape, norm, over_time })
    }

    /// The windows of each of `sequences`, which lie in so many rows.
    fn windows(&self, sequences: &Sequences, rows: usize) -> Result<Sequences> {
        let (shape, rows) = (self.shape, self.shape.windows(rows));
        let windows = |part: &Range<usize>| {
            // Of what is shorter than a window there may be no rows at the end.
            let start = (part.start / shape.stride).min(rows);
            start..start + shape.windows(part.len())
        };
        Sequences::new(rows, sequences.parts().iter().map(windows).collect())
    }

    /// x to the windows of all, of which those of `sequences` count.
    fn forward(&self, backend: &B, x: &B::Tensor, sequences: &Sequences) -> Result<B::Tensor> {
        let Some(norm) = &self.norm else {
            return backend.frame_conv(x, &self.weights, self.shape, Activation::Gelu, None, None);
        };
        if !self.over_time {
            return backend.frame_conv_normed(x, &self.weights, self.shape, norm);
        }
        let x = backend.frame_conv(x, &self.weights, self.shape, Activation::None, None, None)?;
        backend.instance_norm(&x, norm, sequences, Activation::Gelu)
    }
}

fn least_common_multiple(a: usize, b: usize) -> usize {
    let (mut divisor, mut rest) = (a, b);
    while rest > 0 {
        (divisor, rest) = (rest, divisor % rest);
    }
    a / divisor.max(1) * b
}

/// Samples with zero mean and unit variance.
fn normalized(samples: &[f32], eps: f32) -> Vec<f32> {
    let count = samples.len().max(1) as f64;
    let mean = samples.iter().map(|&v| f64::from(v)).sum::<f64>() / count;
    let variance = samples.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / count;
    let scale = 1.0 / (variance + f64::from(eps)).sqrt();
    samples.iter().map(|&v| ((f64::from(v) - mean) * scale) as f32).collect()
}
