//! wav2vec 2.0 with an output layer: speech to text by connectionist temporal classification, decoded greedily. Source:
//! Wav2Vec2ForCTC of transformers, and fairseq's Wav2VecCtc.

use super::loader::Loader;
use super::speech_encoder::SpeechEncoder;
use crate::backend::{Activation, Backend, LinearWeights};
use crate::config::{SpeechConfig, Vocabulary};
use crate::{Error, Result};

/// Weights of a recogniser; C channels, V symbols.
pub struct Ctc<B: Backend> {
    encoder: SpeechEncoder<B>,
    output: LinearWeights<B>, // (V, C)
    vocabulary: Vocabulary,
}

impl<B: Backend> Ctc<B> {
    /// Takes every tensor of a recogniser.
    ///
    /// # Errors
    /// If one is missing or of another shape than `config` says, or that is the configuration of an encoder.
    pub fn load(loader: &mut Loader<'_, B>, config: &SpeechConfig) -> Result<Ctc<B>> {
        let vocabulary = config.vocabulary.clone().ok_or_else(|| {
            let problem = "is that of a speech encoder: a recogniser (CTC) has an output layer";
            Error::weights(loader.store.path(), "model", problem)
        })?;
        Ok(Ctc {
            encoder: SpeechEncoder::load(loader, config, config.layers)?,
            output: loader.linear("output", vocabulary.symbols.len(), config.width)?,
            vocabulary,
        })
    }

    /// The best id of each frame of each recording, 16,000 samples a second.
    pub fn ids(&self, backend: &B, recordings: &[&[f32]]) -> Result<Vec<Vec<u32>>> {
        let (x, sequences) = self.encoder.normalized_features(backend, recordings)?;
        // The form for decode steps keeps f32 on every device.
        let logits = backend.linear_decode(&x, &self.output, Activation::None, None)?;
        let mut ids = Vec::new();
        backend.argmax(&logits, &mut ids)?;
        Ok(sequences.parts().iter().map(|part| ids[part.clone()].to_vec()).collect())
    }

    /// The text of each recording, 16,000 samples a second.
    pub fn texts(&self, backend: &B, recordings: &[&[f32]]) -> Result<Vec<String>> {
        Ok(self.ids(backend, recordings)?.iter().map(|ids| self.vocabulary.text(ids)).collect())
    }
}
