//! The configuration of a run: a TOML file, overridden by options of the command line. Defaults are the paper's. The resolved
//! configuration is saved with the run, and a run resumes under the one it began with.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::model::Freeze;
use super::schedule::Schedule;
use crate::data::augment::{Augment, UnitAugment};
use crate::weights::directory::read_small;
use crate::{Error, Result, files};

/// The resolved configuration in a run directory.
pub const CONFIG: &str = "config.toml";

/// Everything that decides about a run's results.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// The model to begin with: a model directory, a checkpoint, a Hugging Face directory; or the `config.json` of a model
    /// that begins with random weights.
    pub init: Option<PathBuf>,
    /// Begin with random weights in the decoder, whatever `init` has there.
    pub fresh_decoder: bool,
    /// A model directory with a vocoder, to speak samples with and to become part of the checkpoints.
    pub vocoder: Option<PathBuf>,
    /// The part of the captioner that is not trained.
    pub freeze: Freeze,
    /// Compute in f32 on a GPU too, instead of bf16 with f32 sums and master weights. A CPU always does.
    pub f32: bool,
    /// Images of a batch, on each process.
    pub batch: usize,
    /// Batches whose gradients make one update.
    pub accumulation: usize,
    /// Updates of the whole run.
    pub iterations: u64,
    /// Longest sequence, BOS and EOS included; samples that are longer are left out.
    pub max_length: usize,
    /// Seed of the order of samples, of dropout, and of fresh weights.
    pub seed: u64,
    /// Dropout of embeddings and of both halves of a decoder layer.
    pub dropout: f32,
    /// Dropout of attention's probabilities in the decoder.
    pub attention_dropout: f32,
    /// Share of the decoder's input units that are replaced by random ones, so that it learns to go on after a mistake.
    pub token_noise: f32,
    /// Largest norm of the gradients; they are scaled down to it. Absent, they are not clipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip: Option<f64>,
    /// AdamW's decay of weights, on every trained tensor.
    pub weight_decay: f32,
    /// AdamW's decay of both moments.
    pub betas: [f32; 2],
    /// AdamW's epsilon.
    pub eps: f32,
    /// Updates between validations.
    pub validate_every: u64,
    /// Images of a validation.
    pub validation_images: usize,
    /// Samples that are spoken to WAV files at each validation.
    pub spoken_samples: usize,
    /// Updates between checkpoints; there is one at each validation too.
    pub save_every: u64,
    /// Learning rates.
    pub schedule: Schedule,
    /// Samples.
    pub data: DataConfig,
}

/// Samples of a run: one of the kinds of data sets, or several.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataConfig {
    /// JSON lines with `image`, `units` and `split`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manifest: Option<PathBuf>,
    /// COCO 2014, with `train2014/` and `val2014/`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub coco: Option<PathBuf>,
    /// SpokenCOCO, with its JSON files and `Hubert_units/`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spoken_coco: Option<PathBuf>,
    /// Flickr8k, with `Images/`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flickr: Option<PathBuf>,
    /// Flickr8k audio, with `Hubert_units/`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flickr_audio: Option<PathBuf>,
    /// Folder of Karpathy's `dataset_coco.json` and `dataset_flickr8k.json`, or of Flickr8k's own lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub splits: Option<PathBuf>,
    /// File of image units, made by `im2sp tokenize`, for a captioner that sees them: images are looked up in it by their names
    /// and not read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_units: Option<PathBuf>,
    /// Directory of their tokenizer, for a captioner that has no codebook yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
    /// Samples at the end of a manifest that are for validation, where it has none of its own.
    pub hold_out: usize,
    /// Keep the frozen part's output in the run directory, so that it is computed once.
    pub cache_features: bool,
    /// Share of files that may be unreadable before the run stops.
    #[serde(default = "max_bad")]
    pub max_bad: f64,
    /// Random changes of the images.
    pub augment: Augment,
    /// Random changes of image units.
    #[serde(skip_serializing_if = "is_default")]
    pub augment_units: UnitAugment,
}

impl Default for TrainConfig {
    fn default() -> TrainConfig {
        TrainConfig {
            init: None,
            fresh_decoder: false,
            vocoder: None,
            freeze: Freeze::Vision,
            f32: false,
            batch: 16,
            accumulation: 1,
            iterations: 100_000,
            max_length: 1024,
            seed: 0,
            dropout: 0.1,
            attention_dropout: 0.1,
            token_noise: 0.0,
            clip: None,
            weight_decay: 1e-5,
            betas: [0.9, 0.999],
            eps: 1e-8,
            validate_every: 5000,
            validation_images: 264,
            spoken_samples: 4,
            save_every: 1000,
            schedule: Schedule::default(),
            data: DataConfig { max_bad: max_bad(), ..DataConfig::default() },
        }
    }
}

/// The share of a file that names no other.
fn max_bad() -> f64 {
    0.01
}

impl TrainConfig {
    /// Reads a TOML file; what it leaves out has its default.
    ///
    /// # Errors
    /// If it is no TOML, names a field that there is not, or a value of another type.
    pub fn read(path: &Path) -> Result<TrainConfig> {
        toml::from_str(&read_small(path)?).map_err(|error| {
            let at = error.span().map(|span| span.start).unwrap_or_default();
            Error::weights(path, format!("byte {at}"), error.message())
        })
    }

    /// Writes the configuration.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = toml::to_string(self).map_err(|error| Error::weights(path, "configuration", error.to_string()))?;
        files::write_atomically(path, text.as_bytes())
    }

    /// Refuses values that make no sense.
    ///
    /// # Errors
    /// Names the field.
    pub fn check(&self) -> Result<()> {
        let wrong = |option, problem: String| Err(Error::Option { option, problem });
        for (option, value) in [
            ("batch", self.batch as u64),
            ("accumulation", self.accumulation as u64),
            ("iterations", self.iterations),
            ("validate-every", self.validate_every),
            ("save-every", self.save_every),
        ] {
            if value == 0 {
                return wrong(option, "is 0, expected at least 1".into());
            }
        }
        if self.max_length < 3 {
            return wrong("max-length", format!("is {}, expected at least 3: BOS, a unit and EOS", self.max_length));
        }
        for (option, value) in [
            ("dropout", self.dropout),
            ("attention-dropout", self.attention_dropout),
            ("token-noise", self.token_noise),
            ("colour-jitter", self.data.augment.colour_jitter),
            ("crop-jitter", self.data.augment.crop_jitter),
            ("unit-synonyms", self.data.augment_units.synonyms),
            ("beta1", self.betas[0]),
            ("beta2", self.betas[1]),
        ] {
            if !(0.0..1.0).contains(&value) {
                return wrong(option, format!("is {value}, expected 0 or more and less than 1"));
            }
        }
        let noise = self.data.augment_units.noise;
        if !(noise >= 0.0 && noise.is_finite()) {
            return wrong("unit-noise", format!("is {noise}, expected 0 or more"));
        }
        let rate = self.schedule.rate;
        if !(rate > 0.0 && rate.is_finite()) {
            return wrong("rate", format!("is {rate}, expected a positive number"));
        }
        if !(0.0..=1.0).contains(&self.data.max_bad) {
            return wrong("max-bad", format!("is {}, expected a share from 0 to 1", self.data.max_bad));
        }
        if self.clip.is_some_and(|clip| clip.is_nan() || clip <= 0.0) {
            return wrong("clip", "expected a positive number".into());
        }
        if !(self.weight_decay >= 0.0 && self.eps > 0.0) {
            return wrong("weight-decay", "expected 0 or more, and eps above 0".into());
        }
        if self.data.cache_features && (!self.data.augment.is_none() || self.freeze == Freeze::None) {
            let problem = "features are kept only of a frozen encoder and images that are not changed: leave out \
                           augmentation, or the cache";
            return wrong("cache-features", problem.into());
        }
        Ok(())
    }

    /// Fields that differ from `other` and decide about results: a run cannot be resumed under them.
    pub fn conflicts(&self, other: &TrainConfig) -> Vec<String> {
        let free = |config: &TrainConfig| TrainConfig {
            // The length of a run is part of its learning rates; all else here is not.
            validate_every: 1,
            save_every: 1,
            spoken_samples: 0,
            validation_images: 0,
            init: None,
            vocoder: None,
            data: DataConfig { max_bad: 0.0, ..config.data.clone() },
            ..config.clone()
        };
        let table = |config: &TrainConfig| toml::Table::try_from(free(config)).unwrap_or_default();
        let (own, other) = (table(self), table(other));
        let mut fields = Vec::new();
        differences("", &own, &other, &mut fields);
        differences("", &other, &own, &mut fields);
        fields.sort_unstable();
        fields.dedup();
        fields
    }
}

fn is_default(augment: &UnitAugment) -> bool {
    *augment == UnitAugment::default()
}

/// Names of fields of `a` that `b` lacks or has another value for.
fn differences(prefix: &str, a: &toml::Table, b: &toml::Table, fields: &mut Vec<String>) {
    for (name, value) in a {
        match (value, b.get(name)) {
            (toml::Value::Table(a), Some(toml::Value::Table(b))) => {
                differences(&format!("{prefix}{name}."), a, b, fields);
            }
            (value, other) if other != Some(value) => fields.push(format!("{prefix}{name}")),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() -> Result<()> {
        let folder = tempfile::tempdir().map_err(Error::io("create", Path::new("a folder")))?;
        let path = folder.path().join(CONFIG);
        let config = TrainConfig { clip: Some(1.0), batch: 3, ..TrainConfig::default() };
        config.write(&path)?;
        assert_eq!(TrainConfig::read(&path)?, config);
        // A table that names some of its fields leaves the others as they were.
        std::fs::write(&path, "[data]\nhold_out = 3\n").map_err(Error::io("write", &path))?;
        let plain = TrainConfig::default();
        assert_eq!(TrainConfig::read(&path)?.data, DataConfig { hold_out: 3, ..plain.data });
        std::fs::write(&path, "bacth = 3\n").map_err(Error::io("write", &path))?;
        let error = TrainConfig::read(&path).unwrap_err().to_string();
        assert!(error.contains("bacth") && error.contains("config.toml"), "{error}");
        Ok(())
    }

    #[test]
    fn only_what_decides_about_results_conflicts() {
        let config = TrainConfig::default();
        let mut other = TrainConfig { save_every: 7, validate_every: 9, ..config.clone() };
        assert_eq!(config.conflicts(&other), Vec::<String>::new());
        other.schedule.rate = 1.0;
        other.seed = 3;
        assert_eq!(config.conflicts(&other), ["schedule.rate", "seed"]);
    }

    #[test]
    fn senseless_values_are_named() {
        let with = |change: fn(&mut TrainConfig)| {
            let mut config = TrainConfig::default();
            change(&mut config);
            config.check().unwrap_err().to_string()
        };
        assert!(with(|c| c.batch = 0).contains("batch"));
        assert!(with(|c| c.dropout = 1.0).contains("dropout"));
        assert!(with(|c| c.schedule.rate = f64::NAN).contains("rate"));
        assert!(with(|c| (c.data.cache_features, c.data.augment.flip) = (true, true)).contains("cache-features"));
        assert!(TrainConfig::default().check().is_ok());
    }
}
