//! Speech models on a device, for recordings: units by a speech encoder and centres, text by a recogniser. A long recording is
//! taken in chunks, each by itself: for units as fairseq cuts it, for text where it is quiet.

mod batches;

use std::ops::Range;
use std::path::Path;

use self::batches::{Cut, Model, Run, TOGETHER};
pub use self::batches::{OnRecordings, Recorded};
use super::LoadOptions;
use super::load::{OnBackend, with_backend};
use crate::audio::cepstra::{self, Cepstra};
use crate::backend::{Backend, Sequences};
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

/// Features of recordings: of a speech encoder up to one layer, on a device, or cepstra.
pub struct FeatureExtractor {
    width: usize,
    model: Model<Vec<f32>>,
}

/// The same with the centres that features become units by.
pub struct UnitExtractor {
    model: Model<Vec<u32>>,
}

/// A recogniser on a device.
pub struct Recognizer {
    model: Model<String>,
}

impl FeatureExtractor {
    /// Loads the speech encoder in `dir` up to `layer`, from 1.
    ///
    /// # Errors
    /// If it cannot be read, is none, or has fewer layers.
    pub fn load(dir: &Path, layer: usize, options: LoadOptions) -> Result<FeatureExtractor> {
        let (files, config) = open_encoder(dir, layer, options)?;
        let (width, (together, run)) = (config.width, with_backend(options, Features { files, layer })?);
        Ok(FeatureExtractor {
            width,
            model: Model { together, cut: chunks(config), run, join: |parts| parts.concat() },
        })
    }

    /// Cepstra, which need no model.
    pub fn cepstra(kind: Cepstra) -> FeatureExtractor {
        let run: Run<Vec<f32>> = Box::new(move |recordings| {
            let features = |samples: &&[f32]| {
                check_length(samples.len(), cepstra::HOP, samples.len() / cepstra::HOP)?;
                Ok(cepstra::cepstra(kind, samples))
            };
            recordings.iter().map(features).collect()
        });
        FeatureExtractor {
            width: kind.width(),
            model: Model { together: 0, cut: whole(), run, join: |parts| parts.concat() },
        }
    }

    /// Channels of the features.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Features (T, C) of a recording of 16,000 samples a second.
    pub fn features(&self, samples: &[f32]) -> Result<Vec<f32>> {
        self.model.of(samples)
    }

    /// The features of the recordings in files, on a GPU several at a time; the next are read meanwhile. The features of each are
    /// those that it has alone. A recording that cannot be used costs no other.
    ///
    /// # Errors
    /// If the device fails: that ends all.
    pub fn features_of_many(&self, paths: &[&Path], on_features: OnRecordings<'_, Vec<f32>>) -> Result<()> {
        self.model.of_files(paths, on_features)
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
        let (together, run) = with_backend(options, Units { features: Features { files, layer }, centres })?;
        Ok(UnitExtractor { model: Model { together, cut: chunks(config), run, join: |parts| parts.concat() } })
    }

    /// Units of `features` by `centres` (K, C), with a price for every change of unit: see [`steady`].
    ///
    /// # Errors
    /// If the centres are as wide as others.
    pub fn steady(features: FeatureExtractor, centres: &HostTensor, price: f64) -> Result<UnitExtractor> {
        check_width(centres, features.width)?;
        let (centres, width) = (centres.to_f32().into_owned(), features.width);
        let units = move |samples: &&[f32]| Ok(steady(&features.features(samples)?, &centres, width, price));
        let run: Run<Vec<u32>> = Box::new(move |recordings| recordings.iter().map(&units).collect());
        Ok(UnitExtractor { model: Model { together: 0, cut: whole(), run, join: |parts| parts.concat() } })
    }

    /// Units of a recording of 16,000 samples a second, one for each frame of 20 ms.
    pub fn units(&self, samples: &[f32]) -> Result<Vec<u32>> {
        self.model.of(samples)
    }

    /// The units of the recordings in files; as [`FeatureExtractor::features_of_many`].
    ///
    /// # Errors
    /// If the device fails: that ends all.
    pub fn units_of_many(&self, paths: &[&Path], on_units: OnRecordings<'_, Vec<u32>>) -> Result<()> {
        self.model.of_files(paths, on_units)
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
        let (together, run) = with_backend(options, Texts { files })?;
        let cut: Cut = Box::new(move |samples| {
            check_length(samples.len(), config.window(), config.frames(samples.len()))?;
            Ok(quiet_parts(samples))
        });
        let join = |texts: Vec<String>| texts.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join(" ");
        Ok(Recognizer { model: Model { together, cut, run, join } })
    }

    /// Text of a recording of 16,000 samples a second, its parts joined by spaces.
    pub fn text(&self, samples: &[f32]) -> Result<String> {
        self.model.of(samples)
    }

    /// The texts of the recordings in files; as [`FeatureExtractor::features_of_many`].
    ///
    /// # Errors
    /// If the device fails: that ends all.
    pub fn texts_of_many(&self, paths: &[&Path], on_texts: OnRecordings<'_, String>) -> Result<()> {
        self.model.of_files(paths, on_texts)
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
fn check_length(samples: usize, window: usize, frames: usize) -> Result<()> {
    if frames > 0 {
        return Ok(());
    }
    let problem = format!("{samples} samples are too few: a window has {window}");
    Err(Error::Shape { op: "speech", problem })
}

/// A recording as it is.
fn whole() -> Cut {
    Box::new(|samples| Ok(std::iter::once(0..samples.len()).collect()))
}

/// A recording in chunks. A last one that is shorter than a window has no frames.
fn chunks(config: SpeechConfig) -> Cut {
    Box::new(move |samples| {
        let len = samples.len();
        check_length(len, config.window(), config.frames(len))?;
        let chunks = (0..len).step_by(CHUNK).map(|start| start..len.min(start + CHUNK));
        Ok(chunks.filter(|chunk| config.frames(chunk.len()) > 0).collect())
    })
}

/// A recording in parts of at most a chunk, cut in the quietest moment of the last tenth of each.
fn quiet_parts(samples: &[f32]) -> Vec<Range<usize>> {
    /// Samples of a moment.
    const MOMENT: usize = 400;
    let (mut parts, mut start) = (Vec::new(), 0);
    while samples.len() - start > CHUNK {
        let from = CHUNK - CHUNK / 10;
        let energy = |moment: &[f32]| moment.iter().map(|v| v * v).sum::<f32>();
        let moments = samples[start + from..start + CHUNK].chunks_exact(MOMENT).map(energy).enumerate();
        let quietest = moments.min_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |(n, _)| n);
        let end = start + from + quietest * MOMENT + MOMENT / 2;
        parts.push(start..end);
        start = end;
    }
    parts.push(start..samples.len());
    parts
}

/// Samples that are best taken together on a device, and a model's function.
type Loaded<T> = (usize, Run<T>);

/// Samples that go through a model together: a CPU is busy with one recording.
fn together<B: Backend>(backend: &B) -> usize {
    // The host's memory has no statistics.
    if backend.memory_stats().is_some() { TOGETHER } else { 0 }
}

/// Values of each sequence, `width` of each row.
fn by_sequence<T: Copy>(values: &[T], width: usize, sequences: &Sequences) -> Vec<Vec<T>> {
    sequences.parts().iter().map(|part| values[part.start * width..part.end * width].to_vec()).collect()
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
    type Made = Loaded<Vec<f32>>;

    fn make<B: Backend>(mut self, backend: B, dtype: Option<DType>) -> Result<Loaded<Vec<f32>>> {
        let (encoder, width) = (self.encoder(&backend, dtype)?, self.files.config.width);
        let together = together(&backend);
        Ok((
            together,
            Box::new(move |recordings| {
                let (x, sequences) = encoder.features_of_many(&backend, recordings)?;
                Ok(by_sequence(&backend.download(&x)?, width, &sequences))
            }),
        ))
    }
}

/// Loads an encoder with its centres.
struct Units {
    features: Features,
    centres: HostTensor,
}

impl OnBackend for Units {
    type Made = Loaded<Vec<u32>>;

    fn make<B: Backend>(mut self, backend: B, dtype: Option<DType>) -> Result<Loaded<Vec<u32>>> {
        let encoder = self.features.encoder(&backend, dtype)?;
        let codebook = Codebook::new(&backend, &self.centres, Metric::Euclidean, dtype)?;
        let together = together(&backend);
        Ok((
            together,
            Box::new(move |recordings| {
                let (x, sequences) = encoder.features_of_many(&backend, recordings)?;
                let mut units = Vec::new();
                codebook.nearest(&backend, &x, &mut units)?;
                Ok(by_sequence(&units, 1, &sequences))
            }),
        ))
    }
}

/// Loads a recogniser.
struct Texts {
    files: SpeechFiles,
}

impl OnBackend for Texts {
    type Made = Loaded<String>;

    fn make<B: Backend>(self, backend: B, dtype: Option<DType>) -> Result<Loaded<String>> {
        let SpeechFiles { config, mut tensors } = self.files;
        let ctc = Ctc::load(&mut Loader { backend: &backend, store: &mut tensors, dtype }, &config)?;
        tensors.finish()?;
        let together = together(&backend);
        Ok((together, Box::new(move |recordings| ctc.texts(&backend, recordings))))
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
        let lengths: Vec<usize> = quiet_parts(&samples).iter().map(Range::len).collect();
        assert_eq!(lengths.iter().sum::<usize>(), samples.len());
        assert!(lengths.iter().all(|&length| length <= CHUNK), "{lengths:?}");
        assert!((quiet[0]..quiet[0] + 800).contains(&lengths[0]), "{lengths:?}");
        assert!((quiet[1]..quiet[1] + 800).contains(&(lengths[0] + lengths[1])), "{lengths:?}");
        assert_eq!(quiet_parts(&samples[..CHUNK]).len(), 1);
        let nothing = quiet_parts(&[]);
        assert!(nothing.len() == 1 && nothing[0] == (0..0), "{nothing:?}");
    }
}
