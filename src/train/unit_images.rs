//! Image units in training: the code vectors of stored units in place of pixels, with random changes of the units, and what a
//! captioner that sees them needs before it is trained.
//!
//! The changes are those that make sense of a grid of units, after SeiT ("Storage-efficient Vision Training by Tokens Using 1% of
//! Pixel Storage", 2023): another part of the grid, its mirror image, near codes for codes, and noise on the code vectors. All
//! depend on a seed, an epoch and a sample alone.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::config::TrainConfig;
use crate::config::ModelConfig;
use crate::data::Sample;
use crate::data::augment::UnitAugment;
use crate::data::loader::ReadImage;
use crate::image::folder::stem;
use crate::model::unit_vision::CodeVectors;
use crate::tensor::HostTensor;
use crate::units::ImageUnits;
use crate::weights::convert::InitialCaptioner;
use crate::weights::directory::TokenizerFiles;
use crate::weights::store::TensorStore;
use crate::{Error, Result};

/// The tensor of code vectors in a captioner.
const CODEBOOK: &str = "vision.codebook";

/// Stored units by the names of images.
pub struct UnitImages {
    stored: ImageUnits,
    numbers: HashMap<String, usize>,
    codes: CodeVectors,
}

/// The stored units of a run whose captioner sees image units.
pub type StoredUnits = Option<Arc<UnitImages>>;

impl UnitImages {
    /// Opens the units of a run whose captioner sees them; `None` for one that sees pixels.
    ///
    /// # Errors
    /// If the file is missing or holds other units, or pixels were to be read of one.
    pub fn open(
        config: &TrainConfig,
        model: &ModelConfig,
        store: &TensorStore,
        note: &dyn Fn(&str),
    ) -> Result<StoredUnits> {
        let wrong = |option, problem: &str| Err(Error::Option { option, problem: problem.into() });
        let Some(input) = &model.vision.units else {
            return match &config.data.image_units {
                Some(_) => wrong("image-units", "this captioner sees pixels: begin with one that sees image units"),
                None => Ok(None),
            };
        };
        let Some(path) = &config.data.image_units else {
            return wrong("image-units", "is needed: the file of units of the images, made by im2sp tokenize");
        };
        if config.data.cache_features {
            return wrong("cache-features", "is for captioners that see pixels: leave it out");
        }
        let changed = &config.data.augment_units;
        if input.token_units > 1 && (changed.flip || changed.shift) {
            let option = if changed.flip { "flip" } else { "unit-shift" };
            return wrong(option, "is for tokenizers of one unit a token: here a square of units is one token's parts");
        }
        let codes = store.iter().find(|(name, _)| *name == CODEBOOK).map(|(_, codes)| codes);
        let codes =
            codes.ok_or_else(|| Error::weights(store.path(), CODEBOOK, "is missing: convert the model again"))?;
        let codes = CodeVectors::new(input.clone(), codes.to_f32().into_owned());
        let stored = ImageUnits::open(path)?;
        stored.check_grid(&codes.grid())?;
        stored.damage().iter().for_each(|damage| note(&format!("{}: damaged, left out: {damage}", path.display())));
        let numbers = (0..stored.len()).map(|number| Ok((stored.name(number)?, number))).collect::<Result<_>>()?;
        Ok(Some(Arc::new(UnitImages { stored, numbers, codes })))
    }

    /// The units of the image of a sample, by the name of its file with or without the suffix.
    ///
    /// # Errors
    /// If there are none under that name.
    pub fn units(&self, image: &Path) -> Result<Vec<u16>> {
        let name = image.file_name().unwrap_or_default();
        let names = [name, stem(name)].map(|name| name.to_string_lossy());
        let number = names.iter().find_map(|name| self.numbers.get(name.as_ref()));
        match number {
            Some(&number) => Ok(self.stored.read(number)?.units),
            None => Err(Error::image(image, "has no units in the file of image units: run im2sp tokenize on it too")),
        }
    }

    /// Reads the code vectors of images, changed as `augment` says.
    pub fn reader(self: &Arc<UnitImages>, augment: UnitAugment, seed: u64, epoch: Arc<AtomicU64>) -> ReadImage {
        let (images, codes) = (self.clone(), self.codes.vectors());
        let near = augment.neighbours(codes, self.codes.input().code_width);
        Box::new(move |number, sample: &Sample, values| {
            let units = images.units(&sample.image)?;
            let input = images.codes.input();
            let epoch = epoch.load(Ordering::Relaxed);
            let changed = augment.apply(units, [input.grid, input.crop], &near, seed, epoch, number);
            let start = values.len();
            images.codes.planes_at(&changed.units, changed.place, values)?;
            augment.add_noise(&mut values[start..], &changed);
            Ok(())
        })
    }
}

/// Makes a captioner that sees image units ready to be trained: takes the codebook of `tokenizer` where it has none, and adds the
/// bias of the patches to their positions, which are trained in its place.
///
/// # Errors
/// If there is no codebook, or one of other codes.
pub fn prepare(config: &TrainConfig, initial: &mut InitialCaptioner) -> Result<()> {
    let InitialCaptioner { config: model, tensors, fresh, .. } = initial;
    let Some(input) = &model.vision.units else { return Ok(()) };
    if let Some(path) = &config.data.tokenizer {
        let TokenizerFiles { config, mut store } = TokenizerFiles::open_with(path, true)?;
        if (config.grid(), config.codes, config.code_width) != (input.grid, input.codes, input.code_width) {
            let problem = "makes other units than the captioner sees: give the one it was made for";
            return Err(Error::weights(path, "tokenizer", problem));
        }
        let codes = store.take("codebook", &[config.codes, config.code_width])?;
        let own = tensors.get(CODEBOOK).filter(|_| !fresh.iter().any(|name| name == CODEBOOK));
        if own.is_some_and(|own| own.to_f32() != codes.to_f32()) {
            let problem = "has another codebook than the captioner: give the one it was made for, or none";
            return Err(Error::weights(path, "codebook", problem));
        }
        tensors.insert(CODEBOOK.into(), codes);
        model.image = config.image;
    }
    if !tensors.contains_key(CODEBOOK) {
        let problem =
            "is needed: a directory with the tokenizer of the image units, whose codebook this captioner lacks";
        return Err(Error::Option { option: "tokenizer", problem: problem.into() });
    }
    let (position, bias) = ("vision.position_embedding", "vision.patch_embedding.bias");
    let (Some(positions), Some(biases)) = (tensors.get(position), tensors.get(bias)) else { return Ok(()) };
    let (mut sums, zeros) = (positions.to_f32().into_owned(), vec![0.0; biases.len()]);
    for row in sums.chunks_exact_mut(biases.len().max(1)).skip(1) {
        row.iter_mut().zip(biases.to_f32().iter()).for_each(|(sum, bias)| *sum += bias);
    }
    let folded = [(position, positions.shape().to_vec(), sums), (bias, biases.shape().to_vec(), zeros)];
    for (name, shape, values) in folded {
        let tensor = HostTensor::from_f32(&shape, values);
        tensors.insert(name.into(), tensor.ok_or_else(|| Error::internal("values that are not those of their shape"))?);
    }
    Ok(())
}
