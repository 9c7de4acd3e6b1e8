//! Captions that people wrote, in the files of the data sets: COCO's `captions_val2014.json`, Karpathy's `dataset_coco.json` and
//! `dataset_flickr8k.json`, and `Flickr8k.token.txt`. The content decides which it is.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::Pair;
use super::predictions::Prediction;
use crate::data::coco::Karpathy;
use crate::data::{MAX_JSON, parse_json};
use crate::{Error, Result, files};

/// Names that an error lists.
const LISTED: usize = 3;

/// An image with its captions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReferenceImage {
    /// Its file's name without the suffix; empty where the file of captions knows only its number.
    pub name: String,
    /// Its file, below the folder of images; empty likewise.
    pub file: String,
    /// Its number in COCO.
    pub id: Option<i64>,
    /// Part of the data set: `train`, `restval`, `val` or `test`, in Karpathy's files.
    pub split: Option<String>,
    /// Captions that people wrote.
    pub captions: Vec<String>,
}

/// The captions of a data set.
#[derive(Clone, Debug, Default)]
pub struct References {
    /// In the order of the file.
    pub images: Vec<ReferenceImage>,
    names: HashMap<String, usize>,
    ids: HashMap<i64, usize>,
}

#[derive(Deserialize)]
struct Coco {
    #[serde(default)]
    images: Vec<CocoImage>,
    annotations: Vec<CocoAnnotation>,
}

#[derive(Deserialize)]
struct CocoImage {
    id: i64,
    file_name: Option<String>,
}

#[derive(Deserialize)]
struct CocoAnnotation {
    image_id: i64,
    caption: String,
}

/// Fields that distinguish the two JSON layouts.
#[derive(Deserialize)]
struct Fields {
    images: Option<IgnoredAny>,
    annotations: Option<IgnoredAny>,
}

impl References {
    /// Reads a file of captions.
    ///
    /// # Errors
    /// If it is none of the kinds above, malformed, or holds no caption.
    pub fn read(path: &Path) -> Result<References> {
        let bytes = files::read_at_most(path, MAX_JSON)?;
        let images = if bytes.trim_ascii_start().starts_with(b"{") {
            let fields: Fields = parse_json(path, &bytes)?;
            match (fields.annotations, fields.images) {
                (Some(_), _) => of_coco(parse_json(path, &bytes)?),
                (None, Some(_)) => of_karpathy(parse_json(path, &bytes)?),
                (None, None) => {
                    let problem = "has neither annotations (COCO) nor images with sentences (Karpathy)";
                    return Err(Error::weights(path, "fields", problem));
                }
            }
        } else {
            of_tokens(path, &bytes)?
        };
        References::new(path, images)
    }

    fn new(path: &Path, images: Vec<ReferenceImage>) -> Result<References> {
        let mut references = References { images, ..References::default() };
        if references.images.iter().all(|image| image.captions.is_empty()) {
            return Err(Error::weights(path, "captions", "there are none: give a file of captions"));
        }
        for (at, image) in references.images.iter().enumerate() {
            let twice = |what: &str| Error::weights(path, "images", format!("{what} is there twice"));
            if !image.name.is_empty() && references.names.insert(image.name.clone(), at).is_some() {
                return Err(twice(&image.name));
            }
            if let Some(id) = image.id
                && references.ids.insert(id, at).is_some()
            {
                return Err(twice(&format!("the image {id}")));
            }
        }
        Ok(references)
    }

    /// The image of a name or of the number in it.
    pub fn find(&self, name: &str) -> Option<&ReferenceImage> {
        let number = || name.rsplit('_').next()?.parse().ok();
        let at = self.names.get(name).copied().or_else(|| self.ids.get(&number()?).copied())?;
        Some(&self.images[at])
    }

    /// The predictions of the file or folder `path` with the captions of their images. With a split, exactly its images have to
    /// be predicted.
    ///
    /// # Errors
    /// If there is no prediction, one is of an unknown image, two are of the same, or one of the split is missing.
    pub fn pair(&self, path: &Path, predictions: Vec<Prediction>, split: Option<&str>) -> Result<Vec<Pair>> {
        let fail = |problem: String| Err(Error::weights(path, "captions", problem));
        let (mut unknown, mut taken, mut pairs) = (Vec::new(), HashMap::new(), Vec::new());
        for Prediction { image, caption } in predictions {
            let found = self.find(&image).filter(|found| !found.captions.is_empty());
            let found = found.filter(|found| split.is_none() || found.split.as_deref() == split);
            let Some(found) = found else {
                unknown.push(image);
                continue;
            };
            if let Some(other) = taken.insert(std::ptr::from_ref(found), image.clone()) {
                return fail(format!("{other} and {image} are captions of the same image: leave one out"));
            }
            pairs.push(Pair { image, caption, references: found.captions.clone() });
        }
        if !unknown.is_empty() {
            let place = split.map_or(String::new(), |split| format!(" in the split {split}"));
            let (count, names) = (unknown.len(), listed(&unknown));
            return fail(format!("{count} images have no reference{place}: {names}: are they of another data set?"));
        }
        if let Some(split) = split {
            let missing = self.images.iter().filter(|image| image.split.as_deref() == Some(split));
            let missing = missing.filter(|image| !taken.contains_key(&std::ptr::from_ref(*image)));
            let missing: Vec<String> = missing.map(|image| image.name.clone()).collect();
            if !missing.is_empty() {
                let (count, names) = (missing.len(), listed(&missing));
                return fail(format!("{count} images of the split {split} have no prediction: {names}"));
            }
        }
        if pairs.is_empty() {
            return fail("there are none to score".into());
        }
        Ok(pairs)
    }
}

/// The first of some names.
fn listed(names: &[String]) -> String {
    let more = if names.len() > LISTED { ", ..." } else { "" };
    names[..names.len().min(LISTED)].join(", ") + more
}

/// `name` without the suffix of an image file.
fn stem(name: &str) -> String {
    Path::new(name).file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned())
}

fn of_coco(file: Coco) -> Vec<ReferenceImage> {
    let mut images: Vec<ReferenceImage> = Vec::with_capacity(file.images.len());
    let mut places: HashMap<i64, usize> = HashMap::new();
    for image in file.images {
        places.entry(image.id).or_insert(images.len());
        let file = image.file_name.unwrap_or_default();
        images.push(ReferenceImage { name: stem(&file), file, id: Some(image.id), ..ReferenceImage::default() });
    }
    for CocoAnnotation { image_id, caption } in file.annotations {
        let at = *places.entry(image_id).or_insert_with(|| {
            images.push(ReferenceImage { id: Some(image_id), ..ReferenceImage::default() });
            images.len() - 1
        });
        images[at].captions.push(caption);
    }
    images
}

fn of_karpathy(file: Karpathy) -> Vec<ReferenceImage> {
    let image = |image: crate::data::coco::KarpathyImage| ReferenceImage {
        name: stem(&image.filename),
        file: image.filepath.map_or(image.filename.clone(), |folder| format!("{folder}/{}", image.filename)),
        id: image.cocoid,
        split: Some(image.split),
        captions: image.sentences.into_iter().map(|sentence| sentence.raw).collect(),
    };
    file.images.into_iter().map(image).collect()
}

/// Lines `NAME.jpg#N<TAB>caption`.
fn of_tokens(path: &Path, bytes: &[u8]) -> Result<Vec<ReferenceImage>> {
    let text = std::str::from_utf8(bytes).map_err(|_| {
        let problem = files::mistaken_content(bytes).unwrap_or_else(|| "is no UTF-8 text".into());
        Error::weights(path, "file", problem)
    })?;
    let mut images: Vec<ReferenceImage> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let parts = line.split_once('\t').and_then(|(key, caption)| Some((key.rsplit_once('#')?.0, caption)));
        let Some((file, caption)) = parts else {
            let problem = "expected a JSON file of captions, or NAME.jpg#0, a tab and the caption on each line";
            return Err(Error::weights(path, format!("line {}", number + 1), problem));
        };
        let name = stem(file);
        let at = *places.entry(name.clone()).or_insert_with(|| {
            images.push(ReferenceImage { name, file: file.to_owned(), ..ReferenceImage::default() });
            images.len() - 1
        });
        images[at].captions.push(caption.to_owned());
    }
    Ok(images)
}
