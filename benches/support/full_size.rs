//! The published size with random weights in memory, so that benches need no file.

use std::collections::BTreeMap;
use std::path::Path;

use half::bf16;
use im2sp::backend::cpu::{Cache, Cpu, Tensor};
use im2sp::model::config::{
    DecoderConfig, DurationConfig, FORMAT, ImageConfig, ModelConfig, VisionConfig, VocoderConfig,
};
use im2sp::model::decoder::Decoder;
use im2sp::model::layer::Loader;
use im2sp::model::vision::Vision;
use im2sp::model::vocoder::Vocoder;
use im2sp::tensor::{DType, HostTensor};
use im2sp::units::EOS;
use im2sp::weights::TensorStore;

/// All models on the CPU.
pub struct Models {
    pub config: ModelConfig,
    vision: Vision<Cpu>,
    pub decoder: Decoder<Cpu>,
    pub vocoder: Vocoder<Cpu>,
}

impl Models {
    /// Matrices of type `dtype`; the decoder never ends a caption by itself.
    pub fn random(dtype: DType) -> Models {
        let config = config();
        let mut captioner = captioner(&config, dtype);
        let mut loader = Loader { backend: &Cpu, store: &mut captioner, dtype: None };
        let vision = Vision::load(&mut loader, &config).expect("the vision weights");
        let decoder = Decoder::load(&mut loader, &config.decoder).expect("the decoder weights");
        captioner.finish().expect("no other weights");
        let vocoder_config = config.vocoder.as_ref().expect("a vocoder");
        let mut store = vocoder(vocoder_config);
        let mut loader = Loader { backend: &Cpu, store: &mut store, dtype: None };
        let vocoder = Vocoder::load(&mut loader, vocoder_config).expect("the vocoder weights");
        Models { config, vision, decoder, vocoder }
    }

    pub fn image_tokens(&self, pixels: &[f32]) -> Tensor {
        self.vision.tokens(&Cpu, pixels, 1).expect("tokens")
    }

    pub fn prefill(&self, tokens: &Tensor) -> Cache {
        self.decoder.prefill(&Cpu, tokens, 1, 512).expect("a cache")
    }
}

fn config() -> ModelConfig {
    ModelConfig {
        format: FORMAT.into(),
        description: None,
        domain: None,
        image: ImageConfig { size: 224, mean: [0.5; 3], std: [0.25; 3] },
        vision: VisionConfig { patch: 14, width: 1024, layers: 24, heads: 16, mlp: 4096, eps: 1e-5 },
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

/// Reproducible values in -1..1.
pub fn values(len: usize) -> Vec<f32> {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// Tensors by name, filled so that activations stay of the order of one.
struct Filler {
    tensors: BTreeMap<String, HostTensor>,
    dtype: DType,
}

impl Filler {
    fn put(&mut self, name: &str, shape: &[usize]) {
        let fan_in: usize = shape[1..].iter().product();
        let scale = (3.0 / fan_in as f32).sqrt();
        let values = values(shape.iter().product()).into_iter().map(|v| v * scale);
        let tensor = match self.dtype {
            DType::BF16 => HostTensor::from_bf16(shape, values.map(bf16::from_f32).collect()),
            _ => HostTensor::from_f32(shape, values.collect()),
        };
        self.tensors.insert(name.into(), tensor.expect("the shape fits"));
    }

    fn vector(&mut self, name: &str, len: usize, value: f32) {
        self.tensors.insert(name.into(), HostTensor::from_f32(&[len], vec![value; len]).expect("the shape fits"));
    }

    fn linear(&mut self, name: &str, n: usize, k: usize) {
        self.put(&format!("{name}.weight"), &[n, k]);
        self.vector(&format!("{name}.bias"), n, 0.0);
    }

    fn norm(&mut self, name: &str, channels: usize) {
        self.vector(&format!("{name}.weight"), channels, 1.0);
        self.vector(&format!("{name}.bias"), channels, 0.0);
    }

    fn layer(&mut self, name: &str, width: usize, mlp: usize) {
        self.linear(&format!("{name}.qkv"), 3 * width, width);
        self.linear(&format!("{name}.attention_out"), width, width);
        self.norm(&format!("{name}.attention_norm"), width);
        self.linear(&format!("{name}.fc1"), mlp, width);
        self.linear(&format!("{name}.fc2"), width, mlp);
        self.norm(&format!("{name}.mlp_norm"), width);
    }

    fn convolution(&mut self, name: &str, shape: [usize; 3], outputs: usize) {
        self.put(&format!("{name}.weight"), &shape);
        self.vector(&format!("{name}.bias"), outputs, 0.0);
    }

    fn store(self) -> TensorStore {
        TensorStore::new(Path::new("<random>"), self.tensors)
    }
}

fn captioner(config: &ModelConfig, dtype: DType) -> TensorStore {
    let mut filler = Filler { tensors: BTreeMap::new(), dtype };
    let (vision, decoder) = (&config.vision, &config.decoder);
    filler.vector("vision.class_embedding", vision.width, 0.1);
    filler.put("vision.patch_embedding.weight", &[vision.width, 3 * vision.patch * vision.patch]);
    filler.put("vision.position_embedding", &[config.image_tokens(), vision.width]);
    filler.norm("vision.pre_norm", vision.width);
    (0..vision.layers).for_each(|n| filler.layer(&format!("vision.layers.{n}"), vision.width, vision.mlp));
    filler.norm("vision.post_norm", vision.width);
    filler.linear("projection.linear", decoder.width, vision.width);
    filler.norm("projection.norm", decoder.width);
    filler.put("decoder.word_embedding", &[decoder.vocabulary, decoder.width]);
    filler.put("decoder.position_embedding", &[decoder.max_positions, decoder.width]);
    filler.norm("decoder.embedding_norm", decoder.width);
    (0..decoder.layers).for_each(|n| filler.layer(&format!("decoder.layers.{n}"), decoder.width, decoder.mlp));
    let mut bias = vec![0.0; decoder.vocabulary];
    bias[EOS as usize] = -1e4;
    let bias = HostTensor::from_f32(&[decoder.vocabulary], bias).expect("the shape fits");
    filler.tensors.insert("decoder.output_bias".into(), bias);
    filler.store()
}

fn vocoder(config: &VocoderConfig) -> TensorStore {
    let mut filler = Filler { tensors: BTreeMap::new(), dtype: DType::F32 };
    let width = config.embedding_dim;
    filler.put("dict.weight", &[config.num_embeddings, width]);
    if let Some(duration) = &config.duration {
        for (n, inputs) in [(1, width), (2, duration.hidden)] {
            let shape = [duration.hidden, inputs, duration.kernel];
            filler.convolution(&format!("dur_predictor.conv{n}.0"), shape, duration.hidden);
            filler.norm(&format!("dur_predictor.ln{n}"), duration.hidden);
        }
        filler.linear("dur_predictor.proj", 1, duration.hidden);
    }
    let first = config.upsample_initial_channel;
    filler.convolution("conv_pre", [first, config.model_in_dim, 7], first);
    let blocks = config.resblock_kernel_sizes.len();
    for stage in 0..config.upsample_rates.len() {
        let channels = config.stage_channels(stage);
        let shape = [2 * channels, channels, config.upsample_kernel_sizes[stage]];
        filler.convolution(&format!("ups.{stage}"), shape, channels);
        for (j, &taps) in config.resblock_kernel_sizes.iter().enumerate() {
            let name = format!("resblocks.{}", stage * blocks + j);
            for n in 0..config.resblock_dilation_sizes[j].len() {
                filler.convolution(&format!("{name}.convs1.{n}"), [channels, channels, taps], channels);
                filler.convolution(&format!("{name}.convs2.{n}"), [channels, channels, taps], channels);
            }
        }
    }
    filler.convolution("conv_post", [1, config.stage_channels(config.upsample_rates.len() - 1), 7], 1);
    filler.store()
}
