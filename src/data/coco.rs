//! COCO 2014 with SpokenCOCO's captions, in Karpathy's split.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;

use super::{Listing, Sample, Split, UnitSource, find, read_json};
use crate::{Error, Result};

/// A split file of Karpathy's.
#[derive(Deserialize)]
pub(crate) struct Karpathy {
    pub images: Vec<KarpathyImage>,
}

/// An image of it; Flickr8k's have neither `filepath` nor `cocoid`.
#[derive(Deserialize)]
pub(crate) struct KarpathyImage {
    pub filepath: Option<String>,
    pub filename: String,
    pub cocoid: Option<i64>,
    pub split: String,
    #[serde(default)]
    pub sentences: Vec<KarpathySentence>,
}

/// A caption of it.
#[derive(Deserialize)]
pub(crate) struct KarpathySentence {
    pub raw: String,
}

#[derive(Deserialize)]
struct Spoken {
    data: Vec<SpokenImage>,
}

#[derive(Deserialize)]
struct SpokenImage {
    image: String,
    captions: Vec<SpokenCaption>,
}

#[derive(Deserialize)]
struct SpokenCaption {
    wav: String,
}

/// Samples of a split: every caption of the training images, the first one of validation and test images. `coco` holds
/// `train2014/` and `val2014/`, `spoken` the two JSON files and `Hubert_units/`, `splits` Karpathy's `dataset_coco.json`.
///
/// # Errors
/// If a listing is missing or malformed, or no image of the split has a caption.
pub fn list(coco: &Path, spoken: &Path, splits: &Path, split: Split) -> Result<Listing> {
    let path = find(splits, &["dataset_coco.json"])?;
    let karpathy: Karpathy = read_json(&path)?;
    let mut captions: HashMap<String, Vec<SpokenCaption>> = HashMap::new();
    for name in ["SpokenCOCO_train.json", "SpokenCOCO_val.json"] {
        let file: Spoken = read_json(&spoken.join(name))?;
        captions.extend(file.data.into_iter().map(|image| (stem(&image.image).to_string(), image.captions)));
    }
    let (mut listing, mut unknown) = (Listing::default(), Vec::new());
    for image in karpathy.images.into_iter().filter(|image| Split::of(&image.split) == Some(split)) {
        let name = format!("{}/{}", image.filepath.as_deref().unwrap_or_default(), image.filename);
        let Some(captions) = captions.get(stem(&name)).filter(|captions| !captions.is_empty()) else {
            unknown.push(name);
            continue;
        };
        let count = if split == Split::Train { captions.len() } else { 1 };
        listing.samples.extend(captions.iter().take(count).map(|caption| {
            let wav = caption.wav.strip_prefix("wavs/").unwrap_or(&caption.wav);
            let units = spoken.join("Hubert_units").join(format!("{}.unit", wav.strip_suffix(".wav").unwrap_or(wav)));
            Sample { image: coco.join(&name), units: UnitSource::File(units) }
        }));
    }
    if listing.samples.is_empty() {
        let problem = format!("names no image of the split {split:?} that SpokenCOCO has a caption of");
        return Err(Error::weights(&path, "images", problem));
    }
    listing.note_unknown(&path, "images without a spoken caption", &unknown);
    Ok(listing)
}

fn stem(name: &str) -> &str {
    name.strip_suffix(".jpg").unwrap_or(name)
}
