//! Recordings that a command takes: a file, or all of a folder and the folders inside it; and the speech model that they go to.

use std::collections::HashMap;
use std::ffi::OsString;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use im2sp::audio::cepstra::Cepstra;
use im2sp::audio::folder;
use im2sp::config::SPEECH_RATE;
use im2sp::tensor::{DType, HostTensor};
use im2sp::{Device, Error, FeatureExtractor, LoadOptions, OnRecordings, Recorded, Result, UnitExtractor};
use rayon::prelude::*;

use super::Precision;
use super::output;
use super::print::print_error;
use super::progress::Bar;

/// Options of features: a speech encoder or cepstra.
#[derive(Args)]
pub struct FeatureArgs {
    /// Directory of a speech encoder made by `im2sp convert`
    #[arg(long, value_name = "DIR", required_unless_present = "cepstra", help_heading = "Model")]
    weights: Option<PathBuf>,
    /// Cepstra instead, which need no model
    #[arg(long, value_name = "KIND", num_args = 0..=1, require_equals = true, default_missing_value = "context",
        conflicts_with_all = ["weights", "layer"], help_heading = "Model")]
    cepstra: Option<CepstraArg>,
    /// Layer of the encoder whose features are taken, from 1
    #[arg(long, default_value_t = 6, value_name = "N", help_heading = "Model")]
    layer: usize,
    #[command(flatten)]
    model: SpeechArgs,
}

/// How features are made of cepstra, on the command line.
#[derive(Clone, Copy, ValueEnum)]
enum CepstraArg {
    /// Five frames each, weighted
    Context,
    /// One frame each, in like sizes
    Frame,
}

impl FeatureArgs {
    /// The features.
    pub fn features(&self) -> Result<FeatureExtractor> {
        match (&self.weights, self.cepstra) {
            (Some(weights), _) => FeatureExtractor::load(weights, self.layer, self.model.options()),
            (None, Some(CepstraArg::Frame)) => Ok(FeatureExtractor::cepstra(Cepstra::Frame)),
            (None, _) => Ok(FeatureExtractor::cepstra(Cepstra::Context)),
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

/// The recordings that `path` names: itself, or those of a folder.
pub fn of(path: &Path) -> Result<Vec<Recording>> {
    let paths = if path.is_dir() { folder::recordings(path)? } else { vec![path.to_owned()] };
    let below = |file: &Path| match file.strip_prefix(path) {
        Ok(inner) if !inner.as_os_str().is_empty() => inner.to_owned(),
        _ => PathBuf::from(file.file_name().unwrap_or_default()),
    };
    let places: Vec<PathBuf> = paths.iter().map(|file| below(file)).collect();
    let stems = distinct(&places);
    Ok(paths.into_iter().zip(stems).map(|(path, stem)| Recording { path, stem }).collect())
}

/// The places without suffix; those that would be the same keep theirs.
fn distinct(places: &[PathBuf]) -> Vec<PathBuf> {
    let mut stems: Vec<PathBuf> = places.iter().map(|place| place.with_extension("")).collect();
    loop {
        let mut counts: HashMap<&Path, usize> = HashMap::new();
        stems.iter().for_each(|stem| *counts.entry(stem).or_default() += 1);
        let is_taken = |&n: &usize| counts[stems[n].as_path()] > 1 && stems[n] != places[n];
        let taken: Vec<usize> = (0..stems.len()).filter(is_taken).collect();
        if taken.is_empty() {
            return stems;
        }
        // A name that is kept whole may be the stem of another: x.wav, of x.flac and x.wav.wav.
        taken.into_iter().for_each(|n| stems[n].clone_from(&places[n]));
    }
}

impl Recording {
    /// Its stem in `folder`, with a suffix.
    pub fn target(&self, folder: &Path, suffix: &str) -> PathBuf {
        let mut name = OsString::from(folder.join(&self.stem));
        name.push(suffix);
        PathBuf::from(name)
    }
}

/// Seconds of so many samples.
pub fn seconds(samples: usize) -> f64 {
    samples as f64 / f64::from(SPEECH_RATE)
}

/// Callback for every result, in the order of the recordings; `Break` ends the whole.
pub type Finish<'a, T> = &'a mut dyn FnMut(&Recording, Recorded<T>) -> Result<ControlFlow<()>>;

/// Takes all recordings through `many` of a model's. Files are written by `write`, several at a time; then each result comes to
/// `finish`. A recording that fails is reported and does not stop the others, unless there is no room for theirs.
pub fn each<T: Send + Sync>(
    stage: &str,
    recordings: &[Recording],
    many: impl FnOnce(&[&Path], OnRecordings<'_, T>) -> Result<()>,
    write: &(dyn Fn(&Recording, &Recorded<T>) -> Result<()> + Sync),
    finish: Finish<'_, T>,
) -> Result<ExitCode> {
    let mut status = ExitCode::SUCCESS;
    let mut bar = Bar::new();
    bar.show(stage, 0, recordings.len() as u64);
    let paths: Vec<&Path> = recordings.iter().map(|recording| recording.path.as_path()).collect();
    many(&paths, &mut |results| {
        let written = results
            .into_par_iter()
            .map(|(n, result)| (n, result.and_then(|result| write(&recordings[n], &result).map(|()| result))));
        let written: Vec<_> = written.collect();
        let mut flow = ControlFlow::Continue(());
        for (n, result) in written {
            let recording = &recordings[n];
            match result.and_then(|result| finish(recording, result)) {
                Ok(ControlFlow::Continue(())) => {}
                Ok(end) => flow = end,
                Err(error) => {
                    if output::is_full(&error) {
                        flow = ControlFlow::Break(());
                    }
                    print_error(match error {
                        // It is about the recording, which it does not name.
                        Error::Shape { op: "speech", problem } => Error::audio(&recording.path, problem),
                        error => error,
                    });
                    status = ExitCode::FAILURE;
                }
            }
            bar.show(stage, n as u64 + 1, recordings.len() as u64);
        }
        flow
    })?;
    Ok(status)
}
