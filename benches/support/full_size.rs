//! The published size with random weights in memory, so that benches need no file.

use im2sp::backend::cpu::{Cpu, KvCache, Tensor};
use im2sp::config::ModelConfig;
use im2sp::model::captioner::Captioner;
use im2sp::model::loader::Loader;
use im2sp::model::vocoder::Vocoder;
use im2sp::tensor::DType;
use im2sp::weights::random;

/// All models on the CPU.
pub struct Models {
    pub config: ModelConfig,
    pub captioner: Captioner<Cpu>,
    pub vocoder: Vocoder<Cpu>,
}

impl Models {
    /// Matrices of type `dtype`; the decoder never ends a caption by itself.
    pub fn random(dtype: DType) -> Models {
        let mut files = random::files(random::published(), dtype).expect("it fits in memory");
        let mut loader = Loader { backend: &Cpu, store: &mut files.captioner, dtype: None };
        let captioner = Captioner::load(&mut loader, &files.config).expect("the captioner's weights");
        let config = files.config.vocoder.as_ref().expect("a vocoder");
        let store = files.vocoder.as_mut().expect("its weights");
        let mut loader = Loader { backend: &Cpu, store, dtype: None };
        let vocoder = Vocoder::load(&mut loader, config).expect("the vocoder weights");
        let config = files.config;
        Models { config, captioner, vocoder }
    }

    pub fn image_tokens(&self, pixels: &[f32]) -> Tensor {
        self.captioner.encode(&Cpu, pixels, 1).expect("tokens")
    }

    pub fn prefill(&self, tokens: &Tensor) -> KvCache {
        self.captioner.prefill(&Cpu, tokens, 1, 512).expect("a cache")
    }
}
