//! Random weights of the published dimensions, so that speed can be measured without any file. Such a model's captions
//! mean nothing, and it never ends one by itself.

use std::collections::BTreeMap;
use std::path::Path;

use super::TensorStore;
use super::directory::ModelFiles;
use crate::config::{DecoderConfig, DurationConfig, FORMAT, ImageConfig, ModelConfig, VisionConfig, VocoderConfig};
use crate::tensor::{DType, HostTensor};
use crate::units::EOS;
use crate::{Error, Result};

/// The dimensions of the published models: a 24 x 1024 encoder at 224 pixels, a 6 x 768 decoder over 203 tokens, a
/// vocoder of 512 channels.
pub fn published() -> ModelConfig {
    ModelConfig {
        format: FORMAT.into(),
        description: Some("random weights of the published dimensions".into()),
        domain: None,
        image: ImageConfig { mean: [0.5; 3], std: [0.25; 3], ..ImageConfig::clip(224) },
        vision: VisionConfig {
            patch: 14,
            width: 1024,
            layers: 24,
            heads: 16,
            mlp: 4096,
            eps: 1e-5,
            units: None,
            efficient_net: None,
        },
        decoder: DecoderConfig {
            width: 768,
            layers: 6,
            heads: 12,
            mlp: 3072,
            vocabulary: 203,
            max_positions: 1024,
            eps: 1e-12,
        },
        vocoder: Some(VocoderConfig {
            sampling_rate: 16_000,
            upsample_rates: vec![5, 4, 4, 2, 2],
            upsample_kernel_sizes: vec![11, 8, 8, 4, 4],
            upsample_initial_channel: 512,
            resblock_kernel_sizes: vec![3, 7, 11],
            resblock_dilation_sizes: vec![vec![1, 3, 5]; 3],
            num_embeddings: 200,
            embedding_dim: 128,
            model_in_dim: 128,
            duration: Some(DurationConfig { hidden: 128, kernel: 3 }),
            num_speakers: None,
            f0_bins: None,
        }),
    }
}

/// A model of these dimensions, its captioner's matrices in `dtype`, its vocoder in f32.
pub fn files(config: ModelConfig, dtype: DType) -> Result<ModelFiles> {
    let captioner = captioner(&config, dtype)?;
    let vocoder = config.vocoder.as_ref().map(vocoder).transpose()?;
    Ok(ModelFiles { config, captioner, vocoder, tokenizer: None })
}

/// Reproducible values in -1..1.
pub fn values(len: usize) -> Vec<f32> {
    crate::random::Random::new(1).values(len)
}

/// Tensors by name, filled so that activations stay of the order of one.
struct Filler {
    tensors: BTreeMap<String, HostTensor>,
    dtype: DType,
}

impl Filler {
    fn add(&mut self, name: &str, shape: &[usize], values: Vec<f32>) -> Result<()> {
        let tensor = HostTensor::from_f32(shape, values)
            .ok_or_else(|| Error::shape("random weights", format!("{name}: {shape:?} is too large")))?;
        self.tensors.insert(name.into(), tensor);
        Ok(())
    }

    fn put(&mut self, name: &str, shape: &[usize]) -> Result<()> {
        let fan_in: usize = shape[1..].iter().product();
        let scale = (3.0 / fan_in as f32).sqrt();
        let values = values(shape.iter().product()).into_iter().map(|v| v * scale).collect();
        self.add(name, shape, values)?;
        if let Some(tensor) = self.tensors.get_mut(name) {
            *tensor = tensor.to_dtype(self.dtype);
        }
        Ok(())
    }

    fn vector(&mut self, name: &str, len: usize, value: f32) -> Result<()> {
        self.add(name, &[len], vec![value; len])
    }

    fn linear(&mut self, name: &str, n: usize, k: usize) -> Result<()> {
        self.put(&format!("{name}.weight"), &[n, k])?;
        self.vector(&format!("{name}.bias"), n, 0.0)
    }

    fn norm(&mut self, name: &str, channels: usize) -> Result<()> {
        self.vector(&format!("{name}.weight"), channels, 1.0)?;
        self.vector(&format!("{name}.bias"), channels, 0.0)
    }

    fn layer(&mut self, name: &str, width: usize, mlp: usize) -> Result<()> {
        self.linear(&format!("{name}.qkv"), 3 * width, width)?;
        self.linear(&format!("{name}.attention_out"), width, width)?;
        self.norm(&format!("{name}.attention_norm"), width)?;
        self.linear(&format!("{name}.fc1"), mlp, width)?;
        self.linear(&format!("{name}.fc2"), width, mlp)?;
        self.norm(&format!("{name}.mlp_norm"), width)
    }

    fn convolution(&mut self, name: &str, shape: [usize; 3], outputs: usize) -> Result<()> {
        self.put(&format!("{name}.weight"), &shape)?;
        self.vector(&format!("{name}.bias"), outputs, 0.0)
    }

    fn store(self) -> TensorStore {
        TensorStore::new(Path::new("<random>"), self.tensors)
    }
}

fn captioner(config: &ModelConfig, dtype: DType) -> Result<TensorStore> {
    let mut filler = Filler { tensors: BTreeMap::new(), dtype };
    let (vision, decoder) = (&config.vision, &config.decoder);
    filler.vector("vision.class_embedding", vision.width, 0.1)?;
    filler.put("vision.patch_embedding.weight", &[vision.width, 3 * vision.patch * vision.patch])?;
    filler.put("vision.position_embedding", &[config.image_tokens(), vision.width])?;
    filler.norm("vision.pre_norm", vision.width)?;
    for n in 0..vision.layers {
        filler.layer(&format!("vision.layers.{n}"), vision.width, vision.mlp)?;
    }
    filler.norm("vision.post_norm", vision.width)?;
    filler.linear("projection.linear", decoder.width, vision.width)?;
    filler.norm("projection.norm", decoder.width)?;
    filler.put("decoder.word_embedding", &[decoder.vocabulary, decoder.width])?;
    filler.put("decoder.position_embedding", &[decoder.max_positions, decoder.width])?;
    filler.norm("decoder.embedding_norm", decoder.width)?;
    for n in 0..decoder.layers {
        filler.layer(&format!("decoder.layers.{n}"), decoder.width, decoder.mlp)?;
    }
    let mut bias = vec![0.0; decoder.vocabulary];
    bias[EOS as usize] = -1e4;
    filler.add("decoder.output_bias", &[decoder.vocabulary], bias)?;
    Ok(filler.store())
}

fn vocoder(config: &VocoderConfig) -> Result<TensorStore> {
    let mut filler = Filler { tensors: BTreeMap::new(), dtype: DType::F32 };
    let width = config.embedding_dim;
    filler.put("dict.weight", &[config.num_embeddings, width])?;
    if let Some(duration) = &config.duration {
        for (n, inputs) in [(1, width), (2, duration.hidden)] {
            let shape = [duration.hidden, inputs, duration.kernel];
            filler.convolution(&format!("dur_predictor.conv{n}.0"), shape, duration.hidden)?;
            filler.norm(&format!("dur_predictor.ln{n}"), duration.hidden)?;
        }
        filler.linear("dur_predictor.proj", 1, duration.hidden)?;
    }
    let first = config.upsample_initial_channel;
    filler.convolution("conv_pre", [first, config.model_in_dim, 7], first)?;
    let blocks = config.resblock_kernel_sizes.len();
    for stage in 0..config.upsample_rates.len() {
        let channels = config.stage_channels(stage);
        let shape = [2 * channels, channels, config.upsample_kernel_sizes[stage]];
        filler.convolution(&format!("ups.{stage}"), shape, channels)?;
        for (j, &taps) in config.resblock_kernel_sizes.iter().enumerate() {
            let name = format!("resblocks.{}", stage * blocks + j);
            for n in 0..config.resblock_dilation_sizes[j].len() {
                filler.convolution(&format!("{name}.convs1.{n}"), [channels, channels, taps], channels)?;
                filler.convolution(&format!("{name}.convs2.{n}"), [channels, channels, taps], channels)?;
            }
        }
    }
    filler.convolution("conv_post", [1, config.stage_channels(config.upsample_rates.len() - 1), 7], 1)?;
    Ok(filler.store())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost;

    /// Known figures of the published models.
    #[test]
    fn costs_of_the_published_dimensions() {
        let config = published();
        let near = |value: f64, known: f64| (value / known - 1.0).abs() < 0.01;
        let bytes = |elements| cost::step(&config, elements).bytes;
        assert!(near(bytes([2; 3]), 86e6 + 4.8e6 - 1.1e6), "{:?}", cost::step(&config, [2; 3]));
        assert_eq!(bytes([1, 2, 4]), bytes([1, 0, 0]) + bytes([0, 2, 0]) + bytes([0, 0, 4]));
        let vocoder = cost::vocoder(config.vocoder.as_ref().expect("a vocoder"), 50, 4);
        assert!(near(vocoder.flops, 16.04e9), "a second of speech: {vocoder:?}");
        assert!(near(cost::vision(&config, 4).flops, 162e9), "{:?}", cost::vision(&config, 4));
    }
}
