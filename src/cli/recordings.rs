//! Recordings that a command takes: a file, or all of a folder and the folders inside it; and the speech model that they go to.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use im2sp::audio::{folder, read};
use im2sp::config::SPEECH_RATE;
use im2sp::tensor::{DType, HostTensor};
use im2sp::{Device, Error, FeatureExtractor, LoadOptions, Result, UnitExtractor};

use super::Precision;
use super::print::print_error;
use super::progress::Bar;

/// Options of features: a speech encoder or cepstra.
#[derive(Args)]
pub struct FeatureArgs {
    /// Directory of a speech encoder made by `im2sp convert`
    #[arg(long, value_name = "DIR", required_unless_present = "cepstra", help_heading = "Model")]
    weights: Option<PathBuf>,
    /// Cepstra instead, which need no model
    #[arg(long, conflicts_with_all = ["weights", "layer"], help_heading = "Model")]
    cepstra: bool,
    /// Layer of the encoder whose features are taken, from 1
    #[arg(long, default_value_t = 6, value_name = "N", help_heading = "Model")]
    layer: usize,
    #[command(flatten)]
    model: SpeechArgs,
}

impl FeatureArgs {
    /// The features.
    pub fn features(&self) -> Result<FeatureExtractor> {
        match &self.weights {
            Some(weights) => FeatureExtractor::load(weights, self.layer, self.model.options()),
            None => Ok(FeatureExtractor::cepstra()),
        }
    }

    /// Units by centres, with a price for every change of unit.
    pub fn units(&self, centres: HostTensor, price: f64) -> Result<UnitExtractor> {
        match &self.weights {
            Some(weights) if price == 0.0 => UnitExtractor::load(weights, self.layer, centres, self.model.options()),
            _ => UnitExtractor::steady(self.features()?, &centres, price),
        }
    }
}

/// How a speech model is loaded.
#[derive(Args)]
pub struct SpeechArgs {
    /// Where to run: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto", value_name = "DEVICE", help_heading = "Model")]
    device: Device,
    /// Type of the weights in memory; auto leaves them as they are stored
    #[arg(long, default_value = "auto", value_name = "TYPE", help_heading = "Model")]
    dtype: Precision,
    /// Read the weights into memory instead of mapping their files: for files that may be rewritten meanwhile
    #[arg(long, help_heading = "Model")]
    no_mmap: bool,
}

impl SpeechArgs {
    /// How the model is loaded.
    pub fn options(&self) -> LoadOptions {
        let dtype = match self.dtype {
            Precision::Auto => None,
            Precision::F32 => Some(DType::F32),
            Precision::Bf16 => Some(DType::BF16),
        };
        LoadOptions { device: self.device, dtype, no_mmap: self.no_mmap }
    }
}

/// One recording.
pub struct Recording {
    pub path: PathBuf,
    /// Its place below the folder that was named, or its name, without suffix; no two have the same.
    pub stem: PathBuf,
}

/// A recording's samples and how long it lasts.
pub struct Sound {
    pub samples: Vec<f32>,
    pub seconds: f64,
}

/// The recordings that `path` names: itself, or those of a folder.
pub fn of(path: &Path) -> Result<Vec<Recording>> {
    let paths = if path.is_dir() { folder::recordings(path)? } else { vec![path.to_owned()] };
    let below = |file: &Path| match file.strip_prefix(path) {
        Ok(inner) if !inner.as_os_str().is_empty() => inner.to_owned(),
        _ => PathBuf::from(file.file_name().unwrap_or_default()),
    };
    let mut seen: HashMap<PathBuf, usize> = HashMap::new();
    paths.iter().for_each(|file| *seen.entry(below(file).with_extension("")).or_default() += 1);
    let recording = |file: PathBuf| {
        let place = below(&file);
        let stem = place.with_extension("");
        // Of two that differ in their suffixes alone, both keep them.
        let stem = if seen.get(&stem).is_some_and(|&count| count > 1) { place } else { stem };
        Recording { path: file, stem }
    };
    Ok(paths.into_iter().map(recording).collect())
}

impl Recording {
    /// Its stem in `folder`, with a suffix.
    pub fn target(&self, folder: &Path, suffix: &str) -> PathBuf {
        let mut name = OsString::from(folder.join(&self.stem));
        name.push(suffix);
        PathBuf::from(name)
    }

    /// Reads it at the rate of speech models.
    pub fn read(&self) -> Result<Sound> {
        let samples = read::read(&self.path, SPEECH_RATE)?;
        Ok(Sound { seconds: samples.len() as f64 / f64::from(SPEECH_RATE), samples })
    }
}

/// Takes one recording after another; one that fails is reported and does not stop the others.
pub fn each(
    stage: &str,
    recordings: &[Recording],
    work: &mut dyn FnMut(&Recording, Sound) -> Result<()>,
) -> Result<ExitCode> {
    let mut status = ExitCode::SUCCESS;
    let mut bar = Bar::new();
    for (n, recording) in recordings.iter().enumerate() {
        bar.show(stage, n as u64, recordings.len() as u64);
        match recording.read().and_then(|sound| work(recording, sound)) {
            Ok(()) => {}
            // It is about the recording, which it does not name.
            Err(Error::Shape { op: "speech", problem }) => {
                print_error(Error::audio(&recording.path, problem));
                status = ExitCode::FAILURE;
            }
            // No other recording would do better.
            Err(error @ Error::Device { .. }) => return Err(error),
            Err(error) => {
                print_error(error);
                status = ExitCode::FAILURE;
            }
        }
    }
    Ok(status)
}
