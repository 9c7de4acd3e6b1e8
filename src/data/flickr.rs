//! Flickr8k with units of its spoken captions, in Karpathy's split or by the official lists, which agree.

use std::path::Path;

use super::coco::Karpathy;
use super::{Listing, Sample, Split, UnitSource, find, read_json};
use crate::weights::directory::read_small;
use crate::{Error, Result};

/// Spoken captions of an image.
const CAPTIONS: usize = 5;

/// Samples of a split: every caption of the training images whose unit file is there, the first one of the others. `flickr` holds
/// `Images/`, `audio` holds `Hubert_units/` with files `NAME_0.unit` to `NAME_4.unit`, or `NAME.unit` where images have one caption,
/// `splits` Karpathy's `dataset_flickr8k.json` or the lists `Flickr_8k.*Images.txt`.
///
/// # Errors
/// If a listing is missing or malformed, or no image of the split has units.
pub fn list(flickr: &Path, audio: &Path, splits: &Path, split: Split) -> Result<Listing> {
    let own = match split {
        Split::Train => "Flickr_8k.trainImages.txt",
        Split::Validation => "Flickr_8k.devImages.txt",
        Split::Test => "Flickr_8k.testImages.txt",
    };
    let path = find(splits, &["dataset_flickr8k.json", own])?;
    let names: Vec<String> = if path.extension().is_some_and(|extension| extension == "json") {
        let karpathy: Karpathy = read_json(&path)?;
        let of_split = karpathy.images.into_iter().filter(|image| Split::of(&image.split) == Some(split));
        of_split.map(|image| image.filename).collect()
    } else {
        read_small(&path)?.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_string).collect()
    };
    let (mut listing, mut unknown) = (Listing::default(), Vec::new());
    for name in names {
        let stem = Path::new(&name).file_stem().unwrap_or_default().to_string_lossy();
        let names = (0..CAPTIONS).map(|n| format!("{stem}_{n}.unit")).chain([format!("{stem}.unit")]);
        let units = names.map(|name| audio.join("Hubert_units").join(name));
        let count = if split == Split::Train { CAPTIONS } else { 1 };
        let before = listing.samples.len();
        listing.samples.extend(
            units
                .filter(|path| path.exists())
                .take(count)
                .map(|units| Sample { image: flickr.join("Images").join(&name), units: UnitSource::File(units) }),
        );
        if listing.samples.len() == before {
            unknown.push(name);
        }
    }
    if listing.samples.is_empty() {
        let units = audio.join("Hubert_units");
        let problem = format!("names no image of which there is a unit file in {}", units.display());
        return Err(Error::weights(&path, "images", problem));
    }
    listing.note_unknown(&path, "images without a unit file", &unknown);
    Ok(listing)
}
