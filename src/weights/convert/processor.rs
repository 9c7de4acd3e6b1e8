//! A Hugging Face image processor (`preprocessor_config.json`, or `processor_config.json` of transformers 5) as an
//! [`ImageConfig`]. A setting that im2sp does not follow is refused by name, so that no model is given other
//! pixels than it was trained with.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::Result;
use crate::config::{Filter, ImageConfig, Resize};
use crate::weights::json::Json;

/// Mean and standard deviation of processors that take bytes to -1..1.
const HALVES: [f32; 3] = [0.5; 3];
/// Parts of a processor's class name that do not change what it does.
const SUFFIXES: [&str; 4] = ["Fast", "Pil", "ImageProcessor", "FeatureExtractor"];
/// Steps that are done here, or that change nothing on square RGB images.
const STEPS: [&str; 6] = ["do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb", "do_pad"];

/// Defaults of a class of processors, those of transformers 5.24.
struct Class {
    name: &'static str,
    /// Geometry and side of the resize.
    size: (Resize, usize),
    centre_crop: bool,
    /// Whether a plain number as `size` gives both sides.
    square: bool,
    filter: Filter,
    /// Whether its statistics are CLIP's, and not one half.
    clip: bool,
}

const CLASSES: [Class; 6] = [
    Class {
        name: "CLIP",
        size: (Resize::ShortSide, 224),
        centre_crop: true,
        square: false,
        filter: Filter::Bicubic,
        clip: true,
    },
    Class {
        name: "Blip",
        size: (Resize::Square, 384),
        centre_crop: false,
        square: true,
        filter: Filter::Bicubic,
        clip: true,
    },
    Class {
        name: "ViT",
        size: (Resize::Square, 224),
        centre_crop: false,
        square: true,
        filter: Filter::Bilinear,
        clip: false,
    },
    Class {
        name: "DeiT",
        size: (Resize::Square, 256),
        centre_crop: true,
        square: true,
        filter: Filter::Bicubic,
        clip: false,
    },
    Class {
        name: "Siglip",
        size: (Resize::Square, 224),
        centre_crop: false,
        square: false,
        filter: Filter::Bicubic,
        clip: false,
    },
    Class {
        name: "VideoMAE",
        size: (Resize::ShortSide, 224),
        centre_crop: true,
        square: false,
        filter: Filter::Bilinear,
        clip: false,
    },
];

/// The processor's file in `folder`, by the precedence of transformers 5: a processor that holds an image processor,
/// then an image processor by itself.
pub(super) fn find(folder: &Path) -> Result<Option<PathBuf>> {
    let nested = folder.join("processor_config.json");
    if nested.is_file() && Json::read(&nested)?.value("image_processor").is_some() {
        return Ok(Some(nested));
    }
    let plain = folder.join("preprocessor_config.json");
    Ok(plain.is_file().then_some(plain))
}

/// Preprocessing for squares of `size` pixels, as the configuration of an image processor says. Fails for a processor
/// that gives the model other images, or does what im2sp does not.
pub fn image_config(json: &Json, size: usize) -> Result<ImageConfig> {
    let nested = json.value("image_processor").is_some();
    let json = &if nested { json.object("image_processor")? } else { json.clone() };
    let class = class(json)?;
    refuse_steps(json)?;
    if !flag(json, "do_resize", true)? {
        return Err(json.wrong("do_resize", "is false, but im2sp always resizes: set it to true"));
    }
    let (resize, side) = resize(json, class, size)?;
    let is = if json.value("size").is_some() { "is" } else { "is not set, which means" };
    if flag(json, "do_center_crop", class.centre_crop)? {
        // The default is one that some class has, whatever the model: what counts is what the model was made for.
        match square_of(json, "crop_size", true)? {
            Some((_, crop)) if crop != size => {
                let problem = format!("is {crop}, but the model was made for images of {size} x {size}");
                return Err(json.wrong("crop_size", problem));
            }
            _ if side < size => {
                let problem = format!("{is} {side}, less than the {size} that are cropped: im2sp does not pad images");
                return Err(json.wrong("size", problem));
            }
            _ => {}
        }
    } else if resize == Resize::ShortSide {
        let problem = format!(
            "is false, so images that are not square stay so, but the model takes squares: crop, or give size as \
             {{\"height\": {size}, \"width\": {size}}}"
        );
        return Err(json.wrong("do_center_crop", problem));
    } else if side != size {
        return Err(json.wrong("size", format!("{is} {side}, but the model was made for images of {size} x {size}")));
    }
    let clip = ImageConfig::clip(size);
    let (mean, std) = if class.clip { (clip.mean, clip.std) } else { (HALVES, HALVES) };
    let normalize = flag(json, "do_normalize", true)?;
    Ok(ImageConfig {
        size,
        resize,
        resize_to: (side != size).then_some(side),
        filter: filter(json, class)?,
        scale: scale(json, clip.scale)?,
        mean: if normalize { channels(json, "image_mean", mean)? } else { [0.0; 3] },
        std: if normalize { channels(json, "image_std", std)? } else { [1.0; 3] },
    })
}

/// Side of the images that a processor gives, where it says one.
pub(super) fn side(json: &Json) -> Result<Option<usize>> {
    let json = &if json.value("image_processor").is_some() { json.object("image_processor")? } else { json.clone() };
    let class = class(json)?;
    let field = if flag(json, "do_center_crop", class.centre_crop)? { "crop_size" } else { "size" };
    Ok(square_of(json, field, true)?.map(|(_, side)| side))
}

/// The field that names the class of processor, if one does.
fn named(json: &Json) -> Option<&'static str> {
    ["image_processor_type", "feature_extractor_type"].into_iter().find(|field| json.value(field).is_some())
}

/// The class of processor that the file names; CLIP, which GIT was made with, if it names none.
fn class(json: &Json) -> Result<&'static Class> {
    let Some(field) = named(json) else { return Ok(&CLASSES[0]) };
    let said: String = json.need(field)?;
    let mut name = said.as_str();
    while let Some(shorter) = SUFFIXES.iter().find_map(|suffix| name.strip_suffix(suffix)) {
        name = shorter;
    }
    CLASSES.iter().find(|class| class.name == name).ok_or_else(|| {
        let known: Vec<&str> = CLASSES.iter().map(|class| class.name).collect();
        let problem = format!("is {said:?}; im2sp does what those of {} do", known.join(", "));
        json.wrong(field, problem)
    })
}

/// Refuses steps that im2sp does not do.
fn refuse_steps(json: &Json) -> Result<()> {
    let step = |name: &&str| name.starts_with("do_") && !STEPS.contains(name);
    let others = ["offset", "rescale_offset", "use_square_size", "pad_size"];
    let mut steps = json.names().filter(|name| step(name) || others.contains(name));
    match steps.find(|name| json.is_truthy(name)) {
        Some(name) => Err(json.wrong(name, "is set, but im2sp does not do that step: prepare images without it")),
        None => Ok(()),
    }
}

/// A truth value; null is false, as in Python.
fn flag(json: &Json, field: &str, default: bool) -> Result<bool> {
    Ok(json.get::<Option<bool>>(field)?.map_or(default, |value| value == Some(true)))
}

/// Geometry and side of the resize. A processor that says neither its class nor a size is that of the model.
fn resize(json: &Json, class: &Class, size: usize) -> Result<(Resize, usize)> {
    let default = if named(json).is_some() { class.size } else { (class.size.0, size) };
    Ok(square_of(json, "size", class.square)?.unwrap_or(default))
}

/// A size: a number, [height, width], {"shortest_edge": n} or {"height": n, "width": n}.
fn square_of(json: &Json, field: &str, square: bool) -> Result<Option<(Resize, usize)>> {
    let Some(value) = &json.get::<Value>(field)? else { return Ok(None) };
    let number = |value: &Value| value.as_u64().and_then(|side| usize::try_from(side).ok()).filter(|&side| side > 0);
    let sides = match value {
        Value::Object(sides) => {
            let said: Vec<_> = sides.iter().filter(|(_, side)| !side.is_null()).collect();
            match said[..] {
                [(name, side)] if name == "shortest_edge" => number(side).map(|side| (Resize::ShortSide, side, side)),
                [(first, height), (second, width)] if first == "height" && second == "width" => {
                    number(height).zip(number(width)).map(|(height, width)| (Resize::Square, height, width))
                }
                [(first, width), (second, height)] if first == "width" && second == "height" => {
                    number(height).zip(number(width)).map(|(height, width)| (Resize::Square, height, width))
                }
                _ => None,
            }
        }
        Value::Array(sides) => match &sides[..] {
            [height, width] => number(height).zip(number(width)).map(|(height, width)| (Resize::Square, height, width)),
            _ => None,
        },
        value => {
            let resize = if square { Resize::Square } else { Resize::ShortSide };
            number(value).map(|side| (resize, side, side))
        }
    };
    match sides {
        Some((resize, height, width)) if height == width => Ok(Some((resize, height))),
        Some(_) => Err(json.wrong(field, format!("is {value}, but the model takes squares: give equal sides"))),
        None => {
            let problem = format!("is {value}; im2sp does a number, shortest_edge, or height and width");
            Err(json.wrong(field, problem))
        }
    }
}

/// The filter, by Pillow's number.
fn filter(json: &Json, class: &Class) -> Result<Filter> {
    let Some(number) = json.get::<u32>("resample")? else { return Ok(class.filter) };
    Ok(match number {
        0 => Filter::Nearest,
        1 => Filter::Lanczos,
        2 => Filter::Bilinear,
        3 => Filter::Bicubic,
        4 => Filter::Box,
        5 => Filter::Hamming,
        _ => return Err(json.wrong("resample", format!("is {number}; Pillow's filters are 0 to 5"))),
    })
}

/// The factor of the bytes; `default` is 1/255.
fn scale(json: &Json, default: f64) -> Result<f64> {
    if !flag(json, "do_rescale", true)? {
        return Ok(1.0);
    }
    match json.get::<f64>("rescale_factor")? {
        None => Ok(default),
        // As written in decimal.
        Some(factor) if (factor / default - 1.0).abs() < 1e-9 => Ok(default),
        Some(factor) if factor.is_finite() && factor > 0.0 => Ok(factor),
        Some(factor) => Err(json.wrong("rescale_factor", format!("is {factor}, expected a positive number"))),
    }
}

/// One number for each channel, or one for all.
fn channels(json: &Json, field: &str, default: [f32; 3]) -> Result<[f32; 3]> {
    if json.value(field).is_some_and(Value::is_number) {
        Ok([json.need(field)?; 3])
    } else {
        Ok(json.get(field)?.unwrap_or(default))
    }
}
