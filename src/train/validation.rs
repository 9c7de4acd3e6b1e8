//! Validation: images decoded greedily, their units compared with the true ones, and a few of them spoken.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::trainer::Batch;
use crate::engine::{CaptionOptions, Device, Engine, Input, LoadOptions};
use crate::generate::GenerateOptions;
use crate::image::Image;
use crate::units::{deduplicated, edit_distance};
use crate::weights::directory::ModelFiles;
use crate::{Error, Result, audio, files};

/// Images that are decoded together.
const IN_FLIGHT: usize = 32;

/// An image with its true units.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidationSample {
    /// The image file.
    pub image: PathBuf,
    /// Its image units, for a captioner that sees them.
    pub image_units: Option<Vec<u16>>,
    /// Its units, repetitions included or not.
    pub units: Vec<u32>,
}

/// Samples of a validation.
#[derive(Clone, Debug, Default)]
pub struct ValidationSet {
    /// Decoded and compared.
    pub samples: Vec<ValidationSample>,
    /// The same for the loss.
    pub batches: Vec<Batch>,
}

impl ValidationSet {
    /// Sum of the edit distances between decoded and true units over the sum of the true ones' lengths. The first `spoken`
    /// captions are written as WAV files into `folder`, if the model has a vocoder.
    ///
    /// # Errors
    /// If an image cannot be read, the model fails, or a file cannot be written.
    pub fn unit_error_rate(&self, files: ModelFiles, device: Device, spoken: usize, folder: &Path) -> Result<f64> {
        let speaks = files.vocoder.is_some() && spoken > 0;
        let engine = Engine::new(files, LoadOptions { device, ..LoadOptions::default() })?;
        let input = |sample: &ValidationSample| match &sample.image_units {
            Some(units) => Ok(Input::Units(units.clone())),
            None => Image::open(&sample.image).map(Input::Image),
        };
        let inputs = |number: usize| self.samples.get(number).map(input);
        // A sequence that does not end is no better for being long.
        let longest = self.samples.iter().map(|sample| sample.units.len()).max().unwrap_or(0);
        let generate = GenerateOptions { max_length: 2 * longest + 2, ..GenerateOptions::default() };
        let options = CaptionOptions { generate, no_audio: true, ..CaptionOptions::default() };
        let (mut distance, mut length, mut decoded, mut failed) = (0, 0, vec![None; self.samples.len()], None);
        engine.caption_many_inputs(&inputs, &options, IN_FLIGHT, &mut |number, caption| match caption {
            Ok(caption) => {
                let truth = deduplicated(&self.samples[number].units);
                distance += edit_distance(&deduplicated(&caption.units), &truth);
                length += truth.len();
                decoded[number] = Some(caption.units);
                ControlFlow::Continue(())
            }
            // As in training, a damaged image is left out.
            Err(Error::Image { .. } | Error::Io { .. }) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        })?;
        failed.map_or(Ok(()), Err)?;
        let spoken = if speaks { spoken } else { 0 };
        for (number, (sample, units)) in self.samples.iter().zip(decoded).take(spoken).enumerate() {
            if let Some(units) = units.filter(|units| !units.is_empty()) {
                let speech = engine.speak(&units, None)?;
                std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
                let name = sample.image.file_name().unwrap_or_default().to_string_lossy();
                let wav = audio::wav_bytes(&speech.samples, speech.sample_rate)?;
                files::write_atomically(&folder.join(format!("{number:02}-{name}.wav")), &wav)?;
            }
        }
        Ok(distance as f64 / length.max(1) as f64)
    }
}
