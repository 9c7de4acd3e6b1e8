//! Speech models on a device, for recordings: units by a speech encoder and centres, text by a recogniser. A long recording is
//! taken in chunks, each by itself: for units as fairseq cuts it, for text where it is quiet.

use std::path::Path;

use super::LoadOptions;
use super::load::{OnBackend, with_backend};
use crate::audio::cepstra::{self, Cepstra};
use crate::backend::Backend;
use crate::config::{SpeechConfig, SpeechKind};
use crate::model::codebook::{Codebook, Metric};
use crate::model::ctc::Ctc;
use crate::model::loader::Loader;
use crate::model::speech_encoder::SpeechEncoder;
use crate::tensor::{DType, HostTensor};
use crate::units::steady;
use crate::weights::speech::SpeechFiles;
use crate::{Error, Result};

/// Samples of a chunk: 100 seconds.
pub const CHUNK: usize = 1_600_000;

/// A loaded model by its one function.
type Function<T> = Box<dyn Fn(&[f32]) -> Result<T> + Send + Sync>;

/// Features of recordings: of a speech encoder up to one layer, on a device, or cepstra.
pub struct FeatureExtractor {
    width: usize,
    features: Function<Vec<f32>>,
}

/// The same with the centres that features become units by.
pub struct UnitExtractor {
    units: Function<Vec<u32>>,
}

/// A recogniser on a device.
pub struct Recognizer {
    config: SpeechConfig,
    text: Function<String>,
}

impl FeatureExtractor {
    /// Loads the speech encoder in `dir` up to `layer`, from 1.
    ///
    /// # Errors
    /// If it cannot be read, is none, or has fewer layers.
    pub fn load(dir: &Path, layer: usize, options: LoadOptions) -> Result<FeatureExtractor> {
        let (files, config) = open_encoder(dir, layer, options)?;
        let (width, model) = (config.width, with_backend(options, Features { files, layer })?);
        Ok(FeatureExtractor { width, features: Box::new(move |samples| by_chunks(&config, samples, &model)) })
    }

    /// Cepstra, which need no model.
    pub fn cepstra(kind: Cepstra) -> FeatureExtractor {
        let features = move |samples: &[f32]| {
            check_length(samples, cepstra::HOP, samples.len() / cepstra::HOP)?;
            Ok(cepstra::cepstra(kind, samples))
        };
        FeatureExtractor { width: kind.width(), features: Box::new(features) }
    }

    /// Channels of the features.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Features (T, C) of a recording of 16,000 samples a second.
    pub fn features(&self, samples: &[f32]) -> Result<Vec<f32>> {
        (self.features)(samples)
    }
}

impl UnitExtractor {
    /// Loads the speech encoder in `dir` up to `layer`, from 1; features become the number of the nearest of `centres` (K, C).
    ///
    /// # Errors
    /// If it cannot be read, is none, has fewer layers, or the centres are as wide as others.
    pub fn load(dir: &Path, layer: usize, centres: HostTensor, options: LoadOptions) -> Result<UnitExtractor> {
        let (files, config) = open_encoder(dir, layer, options)?;
        check_width(&centres, config.width)?;
        let model = with_backend(options, Units { features: Features { files, layer }, centres })?;
        Ok(UnitExtractor { units: Box::new(move |samples| by_chunks(&config, samples, &model)) })
    }

    /// Units of `features` by `centres` (K, C), with a price for every change of unit: see [`steady`].
    ///
    /// # Errors
    /// If the centres are as wide as others.
    pub fn steady(features: FeatureExtractor, centres: &HostTensor, price: f64) -> Result<UnitExtractor> {
        check_width(centres, features.width)?;
        let (centres, width) = (centres.to_f32().into_owned(), features.width);
        let units = move |samples: &[f32]| Ok(steady(&features.features(samples)?, &centres, width, price));
        Ok(UnitExtractor { units: Box::new(units) })
    }

    /// Units of a recording of 16,000 samples a second, one for each frame of 20 ms.
    pub fn units(&self, samples: &[f32]) -> Result<Vec<u32>> {
        (self.units)(samples)
    }
}

impl Recognizer {
    /// Loads the recogniser in `dir`.
    ///
    /// # Errors
    /// If it cannot be read, or is none.
    pub fn load(dir: &Path, options: LoadOptions) -> Result<Recognizer> {
        let files = SpeechFiles::open(dir, !options.no_mmap)?;
        let config = files.config.clone();
        if config.kind != SpeechKind::Ctc {
            let problem = "is a speech encoder, which makes no text: give a recogniser (CTC)";
            return Err(Error::weights(dir, "kind", problem));
        }
        Ok(Recognizer { config, text: with_backend(options, Texts { files })? })
    }

    /// Text of a recording of 16,000 samples a second, its parts joined by spaces.
    pub fn text(&self, samples: &[f32]) -> Result<String> {
        check_length(samples, self.config.window(), self.config.frames(samples.len()))?;
        let texts = quiet_parts(samples).into_iter().map(&self.text).collect::<Result<Vec<_>>>()?;
        Ok(texts.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join(" "))
    }
}

/// Opens the encoder in `dir`, which has to have the layer.
fn open_encoder(dir: &Path, layer: usize, options: LoadOptions) -> Result<(SpeechFiles, SpeechConfig)> {
    let files = SpeechFiles::open(dir, !options.no_mmap)?;
    let config = files.config.clone();
    if layer == 0 || layer > config.layers {
        let problem = format!("is {layer}, but the model has layers 1 to {}", config.layers);
        return Err(Error::Option { option: "layer", problem });
    }
    Ok((files, config))
}

/// An error for centres of features of another width.
fn check_width(centres: &HostTensor, width: usize) -> Result<()> {
    if centres.shape().get(1) == Some(&width) {
        return Ok(());
    }
    let problem = format!("has centres {:?}, but features have {width} values", centres.shape());
    Err(Error::Option { option: "kmeans", problem })
}

/// An error for a recording that is shorter than a window and so has no frame.
fn check_length(samples: &[f32], window: usize, frames: usize) -> Result<()> {
    if frames > 0 {
        return Ok(());
    }
    let problem = format!("{} samples are too few: a window has {window}", samples.len());
    Err(Error::Shape { op: "speech", problem })
}

/// The results of all chunks. A last one that is shorter than a window has none.
fn by_chunks<T>(config: &SpeechConfig, samples: &[f32], model: &Function<Vec<T>>) -> Result<Vec<T>> {
    check_length(samples, config.window(), config.frames(samples.len()))?;
    let mut all = Vec::new();
    for chunk in samples.chunks(CHUNK).filter(|chunk| config.frames(chunk.len()) > 0) {
        all.extend(model(chunk)?);
    }
    Ok(all)
}

/// A recording in parts of at most a chunk, cut in the quietest moment of the last tenth of each.
fn quiet_parts(samples: &[f32]) -> Vec<&[f32]> {
    /// Samples of a moment.
    const MOMENT: usize = 400;
    let (mut parts, mut rest) = (Vec::new(), samples);
    while rest.len() > CHUNK {
        let from = CHUNK - CHUNK / 10;
        let energy = |moment: &[f32]| moment.iter().map(|v| v * v).sum::<f32>();
        let moments = rest[from..CHUNK].chunks_exact(MOMENT).map(energy).enumerate();
        let quietest = moments.min_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |(n, _)| n);
        let (part, later) = rest.split_at(from + quietest * MOMENT + MOMENT / 2);
        parts.push(part);
        rest = later;
    }
    parts.push(rest);
    parts
}

/// Loads an encoder for its features.
struct Features {
    files: SpeechFiles,
    layer: usize,
}

impl Features {
    fn encoder<B: Backend>(&mut self, backend: &B, dtype: Option<DType>) -> Result<SpeechEncoder<B>> {
        let SpeechFiles { config, tensors } = &mut self.files;
        SpeechEncoder::load(&mut Loader { backend, store: tensors, dtype }, config, self.layer)
    }
}

impl OnBackend for Features {
    type Made = Function<Vec<f32>>;

    fn make<B: Backend>(mut self, backend: B, dtype: Option<DType>) -> Result<Function<Vec<f32>>> {
        let encoder = self.encoder(&backend, dtype)?;
        Ok(Box::new(move |samples| backend.download(&encoder.features(&backend, samples)?)))
    }
}

/// Loads an encoder with its centres.
struct Units {
    features: Features,
    centres: HostTensor,
}

impl OnBackend for Units {
    type Made = Function<Vec<u32>>;

    fn make<B: Backend>(mut self, backend: B, dtype: Option<DType>) -> Result<Function<Vec<u32>>> {
        let encoder = self.features.encoder(&backend, dtype)?;
        let codebook = Codebook::new(&backend, &self.centres, Metric::Euclidean)?;
        Ok(Box::new(move |samples| {
            let mut units = Vec::new();
            codebook.nearest(&backend, &encoder.features(&backend, samples)?, &mut units)?;
            Ok(units)
        }))
    }
}

/// Loads a recogniser.
struct Texts {
    files: SpeechFiles,
}

impl OnBackend for Texts {
    type Made = Function<String>;

    fn make<B: Backend>(self, backend: B, dtype: Option<DType>) -> Result<Function<String>> {
        let SpeechFiles { config, mut tensors } = self.files;
        let ctc = Ctc::load(&mut Loader { backend: &backend, store: &mut tensors, dtype }, &config)?;
        tensors.finish()?;
        Ok(Box::new(move |samples| ctc.text(&backend, samples)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recordings_for_text_are_cut_where_it_is_quiet() {
        let mut samples = vec![0.5; 2 * CHUNK + 1000];
        let quiet = [CHUNK - 10_000, 2 * CHUNK - 50_000];
        quiet.iter().for_each(|&at| samples[at..at + 800].fill(0.0));
        let lengths: Vec<usize> = quiet_parts(&samples).iter().map(|part| part.len()).collect();
        assert_eq!(lengths.iter().sum::<usize>(), samples.len());
        assert!(lengths.iter().all(|&length| length <= CHUNK), "{lengths:?}");
        assert!((quiet[0]..quiet[0] + 800).contains(&lengths[0]), "{lengths:?}");
        assert!((quiet[1]..quiet[1] + 800).contains(&(lengths[0] + lengths[1])), "{lengths:?}");
        assert_eq!(quiet_parts(&samples[..CHUNK]).len(), 1);
        assert_eq!(quiet_parts(&[]), [&[] as &[f32]]);
    }
}
