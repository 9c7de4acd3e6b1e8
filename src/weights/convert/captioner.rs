//! The captioner: GIT with its words replaced by speech units. Both spellings of it, the reference's `.ckpt` (names
//! begin with `model.`) and the Hugging Face directory, hold the same tensors; dimensions are read off their shapes.

use std::path::Path;

use super::huggingface::{self, Extras};
use super::select::{self, Family};
use super::{Parts, Planned, Source, efficient_net, processor, unit_tower, vocabulary_of};
use crate::config::{DecoderConfig, ImageConfig, VisionConfig};
use crate::weights::json::Json;
use crate::weights::names::{
    self, DECODER_EPS, HEAD, HEAD_SIZE, Mapped, OUTPUT, OUTPUT_BIAS, POSITIONS, VISION, VISION_EPS, WORDS,
};
use crate::{Error, Result};

/// Names of a captioner.
const FAMILY: Family =
    Family { name: "captioner", marker: &["git", "embeddings"], parts: &["git", "output"], key: "state_dict" };

/// Everything known about a captioner before its data is read.
pub(super) struct CaptionerPlan {
    pub image: ImageConfig,
    pub vision: VisionConfig,
    pub decoder: DecoderConfig,
    pub tensors: Vec<Planned>,
    /// Whether the tensors of the head are missing among these.
    pub fresh_head: bool,
    /// Names in the source that are not part of the model.
    pub left_aside: Vec<String>,
}

/// Opens a checkpoint, a safetensors file or a directory and plans the tensors of `captioner.safetensors`. Given a number
/// of `units`, a head for another vocabulary is left aside, whether it is tied or not, and not planned.
pub(super) fn plan(
    path: &Path,
    preprocessor: Option<&Path>,
    codebook: Option<&Path>,
    units: Option<usize>,
) -> Result<CaptionerPlan> {
    let companion = huggingface::companion(path)?;
    let (extras, processor) = match &companion {
        Some((folder, config)) => (huggingface::extras(folder, config)?, processor::find(folder)?),
        None => (Extras::default(), None),
    };
    let selected = match &companion {
        Some((folder, _)) if path.is_dir() => huggingface::open_folder(folder, &FAMILY)?,
        _ => FAMILY.select(path, select::open(path)?)?,
    };
    let mut left_aside = selected.left_aside;
    let mut source = Source::new(path, selected.tensors)?;
    let head = [WORDS, OUTPUT].into_iter().find_map(|name| source.tensors.get(name)?.shape().first().copied());
    let fresh = units.map(vocabulary_of).filter(|&vocabulary| head.is_some_and(|head| head != vocabulary));
    match fresh {
        Some(_) => left_aside.extend(source.remove(|name| [WORDS, OUTPUT, OUTPUT_BIAS].contains(&name))),
        None => take_tied(&mut source)?,
    }
    left_aside.extend(drop_unused(&mut source));
    let decoder = decoder_config(&source, &extras, fresh)?;
    let mut tensors = Vec::new();
    let (vision, image) = if unit_tower::is_there(&source) {
        let codebook = codebook.ok_or_else(super::no_codebook)?;
        let (vision, image, codes) = unit_tower::plan(&mut source, codebook, &mut left_aside)?;
        tensors.push(codes);
        (vision, image)
    } else {
        if codebook.is_some() {
            let problem = "this captioner sees pixels: a codebook belongs to one that sees image units";
            return Err(Error::Option { option: "codebook", problem: problem.into() });
        }
        let preprocessor = preprocessor.or(processor.as_deref());
        if efficient_net::is_there(&source) {
            efficient_net::plan(&mut source, preprocessor, &mut left_aside)?
        } else {
            let vision = vision_config(&source, &extras)?;
            let image = image_of_pixels(&source, &extras, &vision, preprocessor)?;
            (vision, image)
        }
    };
    for mapped in names::captioner(&vision, &decoder, vision.image_tokens(image.size)) {
        if vision.efficient_net.is_some() && mapped.name.starts_with("vision.") {
            tensors.push(efficient_net::folded(&mut source, mapped)?);
        } else if fresh.is_none() || !HEAD.contains(&mapped.name.as_str()) {
            let Mapped { name, shape, parts, part } = mapped;
            let parts = parts.iter().map(|from| source.take(from, &part)).collect::<Result<_>>()?;
            tensors.push(Planned { name, shape, parts: Parts::Joined(parts) });
        }
    }
    source.finish()?;
    Ok(CaptionerPlan { image, vision, decoder, tensors, fresh_head: fresh.is_some(), left_aside })
}

/// How images become pixels; an error unless the position embedding is that of a square.
fn image_of_pixels(
    source: &Source<'_>,
    extras: &Extras,
    vision: &VisionConfig,
    processor: Option<&Path>,
) -> Result<ImageConfig> {
    let path = source.path;
    let [positions, _] = source.shape(&format!("{VISION}embeddings.position_embedding.weight"))?;
    let side = positions.saturating_sub(1).isqrt();
    if side == 0 || side * side + 1 != positions {
        let problem = format!("has {positions} rows, expected a square number of patches and a class token");
        return Err(Error::weights(path, format!("{VISION}embeddings.position_embedding.weight"), problem));
    }
    let size = side.saturating_mul(vision.patch);
    extras.expect(path, "vision_config.image_size", extras.image_size, size)?;
    match processor {
        Some(path) => processor::image_config(&Json::read(path)?, size),
        None => Ok(ImageConfig::clip(size)),
    }
}

/// Removes what no caption of one image uses: the buffers 0, 1, 2, ... of old releases, and the embeddings of video
/// frames, in both spellings. Returns the names of the latter.
fn drop_unused(source: &mut Source<'_>) -> Vec<String> {
    source.tensors.remove("git.embeddings.position_ids");
    source.tensors.remove(&format!("{VISION}embeddings.position_ids"));
    let frames = ["git.img_temporal_embedding.", "git.img_temperal_embedding."];
    source.remove(|name| frames.iter().any(|frame| name.starts_with(frame)))
}

/// Heads as the configuration says, or of the usual size.
pub(super) fn heads(path: &Path, field: &str, said: Option<usize>, width: usize) -> Result<usize> {
    match said {
        Some(heads) => Ok(heads),
        None if width >= HEAD_SIZE && width.is_multiple_of(HEAD_SIZE) => Ok(width / HEAD_SIZE),
        None => {
            Err(Error::weights(path, field, format!("a width of {width} is no multiple of the head size {HEAD_SIZE}")))
        }
    }
}

fn vision_config(source: &Source<'_>, extras: &Extras) -> Result<VisionConfig> {
    let path = source.path;
    let [width, channels, patch, patch_width] = source.shape(&format!("{VISION}embeddings.patch_embedding.weight"))?;
    if channels != 3 || patch != patch_width {
        let problem = format!("has shape [{width}, {channels}, {patch}, {patch_width}], expected [C, 3, P, P]");
        return Err(Error::weights(path, format!("{VISION}embeddings.patch_embedding.weight"), problem));
    }
    let [mlp, _] = source.shape(&format!("{VISION}encoder.layers.0.mlp.fc1.weight"))?;
    let layers = source.count(&format!("{VISION}encoder.layers."), ".mlp.fc1.weight");
    extras.expect(path, "vision_config.hidden_size", extras.vision.width, width)?;
    extras.expect(path, "vision_config.patch_size", extras.patch, patch)?;
    extras.expect(path, "vision_config.intermediate_size", extras.vision.mlp, mlp)?;
    extras.expect(path, "vision_config.num_hidden_layers", extras.vision.layers, layers)?;
    let heads = heads(path, "vision_config.num_attention_heads", extras.vision.heads, width)?;
    Ok(VisionConfig {
        patch,
        width,
        layers,
        heads,
        mlp,
        eps: extras.vision.eps.unwrap_or(VISION_EPS),
        units: None,
        efficient_net: None,
    })
}

/// Dimensions of the decoder; its vocabulary is that of the word embedding, unless there will be a fresh one.
fn decoder_config(source: &Source<'_>, extras: &Extras, fresh: Option<usize>) -> Result<DecoderConfig> {
    let path = source.path;
    let [max_positions, width] = source.shape(POSITIONS)?;
    let vocabulary = match fresh {
        Some(vocabulary) => vocabulary,
        None => source.shape::<2>(WORDS)?[0],
    };
    let [mlp, _] = source.shape("git.encoder.layer.0.intermediate.dense.weight")?;
    let layers = source.count("git.encoder.layer.", ".intermediate.dense.weight");
    extras.expect(path, "hidden_size", extras.text.width, width)?;
    extras.expect(path, "intermediate_size", extras.text.mlp, mlp)?;
    extras.expect(path, "num_hidden_layers", extras.text.layers, layers)?;
    let heads = heads(path, "num_attention_heads", extras.text.heads, width)?;
    let eps = extras.text.eps.unwrap_or(DECODER_EPS);
    Ok(DecoderConfig { width, layers, heads, mlp, vocabulary, max_positions, eps })
}

/// Takes the output matrix away and makes sure that it is the word embedding. Where one of both was left out, they were
/// tied when the checkpoint was saved.
fn take_tied(source: &mut Source<'_>) -> Result<()> {
    let Some(output) = source.tensors.remove(OUTPUT) else { return Ok(()) };
    let Some(words) = source.tensors.get(WORDS) else {
        source.tensors.insert(WORDS.into(), output);
        return Ok(());
    };
    if output.is_same_window(words) {
        return Ok(());
    }
    let differs = || {
        let problem = "differs from the word embedding; im2sp needs the output tied to it, as models that speak units \
                       have it (a published text model has to be trained on units first)";
        Error::weights(source.path, OUTPUT, problem)
    };
    if output.shape() != words.shape() {
        return Err(differs());
    }
    let load = |name: &str, tensor: &super::StoredTensor| {
        tensor.load().map_err(|problem| Error::weights(source.path, name, problem))
    };
    if load(OUTPUT, &output)?.to_f32() == load(WORDS, words)?.to_f32() { Ok(()) } else { Err(differs()) }
}
