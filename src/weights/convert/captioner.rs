//! The captioner: GIT with its words replaced by speech units. Both spellings of it, the reference's `.ckpt` (names
//! begin with `model.`) and the Hugging Face directory, hold the same tensors; dimensions are read off their shapes.

use std::path::Path;

use super::huggingface::{self, Extras};
use super::select::{self, Family};
use super::{Parts, Planned, Source, processor};
use crate::config::{DecoderConfig, ImageConfig, VisionConfig};
use crate::weights::json::Json;
use crate::{Error, Result};

/// Channels of one head, where nothing says how many heads there are.
const HEAD_SIZE: usize = 64;
const VISION: &str = "git.image_encoder.vision_model.";
const WORDS: &str = "git.embeddings.word_embeddings.weight";
const OUTPUT: &str = "output.weight";

/// Names of a captioner; `blocks` belong to one that takes image units.
const FAMILY: Family = Family {
    name: "captioner",
    marker: &["git", "embeddings"],
    parts: &["git", "output", "blocks"],
    key: "state_dict",
};

/// Everything known about a captioner before its data is read.
pub(super) struct CaptionerPlan {
    pub image: ImageConfig,
    pub vision: VisionConfig,
    pub decoder: DecoderConfig,
    pub tensors: Vec<Planned>,
    /// Names in the source that are not part of the model.
    pub left_aside: Vec<String>,
}

/// Opens a checkpoint, a safetensors file or a directory and plans the tensors of `captioner.safetensors`.
pub(super) fn plan(path: &Path, preprocessor: Option<&Path>) -> Result<CaptionerPlan> {
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
    if source.tensors.keys().any(|name| name.starts_with("blocks.")) {
        return Err(Error::weights(path, "blocks.0", "belongs to an image-unit model, not supported yet"));
    }
    take_tied(&mut source)?;
    left_aside.extend(drop_unused(&mut source));
    let vision = vision_config(&source, &extras)?;
    let decoder = decoder_config(&source, &extras)?;
    let [positions, _] = source.shape(&format!("{VISION}embeddings.position_embedding.weight"))?;
    let side = positions.saturating_sub(1).isqrt();
    if side == 0 || side * side + 1 != positions {
        let problem = format!("has {positions} rows, expected a square number of patches and a class token");
        return Err(Error::weights(path, format!("{VISION}embeddings.position_embedding.weight"), problem));
    }
    let size = side.saturating_mul(vision.patch);
    extras.expect(path, "vision_config.image_size", extras.image_size, size)?;
    let image = match preprocessor.or(processor.as_deref()) {
        Some(path) => processor::image_config(&Json::read(path)?, size)?,
        None => ImageConfig::clip(size),
    };
    let mut tensors = plan_vision(&mut source, &vision, positions)?;
    tensors.extend(plan_projection(&mut source, &vision, &decoder)?);
    tensors.extend(plan_decoder(&mut source, &decoder)?);
    source.finish()?;
    Ok(CaptionerPlan { image, vision, decoder, tensors, left_aside })
}

/// Removes what no caption of one image uses: the buffers 0, 1, 2, ... of old releases, and the embeddings of video
/// frames, in both spellings. Returns the names of the latter.
fn drop_unused(source: &mut Source<'_>) -> Vec<String> {
    source.tensors.remove("git.embeddings.position_ids");
    source.tensors.remove(&format!("{VISION}embeddings.position_ids"));
    let frames = ["git.img_temporal_embedding.", "git.img_temperal_embedding."];
    let of_frames = |name: &&String| frames.iter().any(|frame| name.starts_with(frame));
    let names: Vec<String> = source.tensors.keys().filter(of_frames).cloned().collect();
    names.iter().for_each(|name| drop(source.tensors.remove(name)));
    names
}

/// Heads as the configuration says, or of the usual size.
fn heads(path: &Path, field: &str, said: Option<usize>, width: usize) -> Result<usize> {
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
    Ok(VisionConfig { patch, width, layers, heads, mlp, eps: extras.vision.eps.unwrap_or(1e-5) })
}

fn decoder_config(source: &Source<'_>, extras: &Extras) -> Result<DecoderConfig> {
    let path = source.path;
    let [vocabulary, width] = source.shape(WORDS)?;
    let [max_positions, _] = source.shape("git.embeddings.position_embeddings.weight")?;
    let [mlp, _] = source.shape("git.encoder.layer.0.intermediate.dense.weight")?;
    let layers = source.count("git.encoder.layer.", ".intermediate.dense.weight");
    extras.expect(path, "hidden_size", extras.text.width, width)?;
    extras.expect(path, "intermediate_size", extras.text.mlp, mlp)?;
    extras.expect(path, "num_hidden_layers", extras.text.layers, layers)?;
    let heads = heads(path, "num_attention_heads", extras.text.heads, width)?;
    let eps = extras.text.eps.unwrap_or(1e-12);
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

/// Weight (out, in) and bias (out) of a linear layer.
fn linear(source: &mut Source<'_>, from: &str, to: &str, rows: usize, columns: usize) -> Result<[Planned; 2]> {
    let weight = [rows, columns];
    Ok([
        source.plan(&format!("{from}.weight"), &format!("{to}.weight"), &weight, &weight)?,
        source.plan(&format!("{from}.bias"), &format!("{to}.bias"), &[rows], &[rows])?,
    ])
}

/// Weight and bias (C) of a layer norm.
fn norm(source: &mut Source<'_>, from: &str, to: &str, width: usize) -> Result<[Planned; 2]> {
    Ok([
        source.plan(&format!("{from}.weight"), &format!("{to}.weight"), &[width], &[width])?,
        source.plan(&format!("{from}.bias"), &format!("{to}.bias"), &[width], &[width])?,
    ])
}

/// Query, key and value of width C as one linear layer (3C, C).
fn qkv(source: &mut Source<'_>, from: [String; 3], to: &str, width: usize) -> Result<[Planned; 2]> {
    let mut join = |kind: &str, stored: &[usize], written: Vec<usize>| -> Result<Planned> {
        let parts = from.iter().map(|from| source.take(&format!("{from}.{kind}"), stored)).collect::<Result<_>>()?;
        Ok(Planned { name: format!("{to}.{kind}"), shape: written, parts: Parts::Joined(parts) })
    };
    Ok([join("weight", &[width, width], vec![3 * width, width])?, join("bias", &[width], vec![3 * width])?])
}

fn plan_vision(source: &mut Source<'_>, vision: &VisionConfig, positions: usize) -> Result<Vec<Planned>> {
    let (width, patch) = (vision.width, vision.patch);
    let embeddings = format!("{VISION}embeddings.");
    let mut tensors = vec![
        source.plan(&format!("{embeddings}class_embedding"), "vision.class_embedding", &[width], &[width])?,
        source.plan(
            &format!("{embeddings}patch_embedding.weight"),
            "vision.patch_embedding.weight",
            &[width, 3, patch, patch],
            &[width, 3 * patch * patch],
        )?,
        source.plan(
            &format!("{embeddings}position_embedding.weight"),
            "vision.position_embedding",
            &[positions, width],
            &[positions, width],
        )?,
    ];
    // Spelling as in the published checkpoints.
    tensors.extend(norm(source, &format!("{VISION}pre_layrnorm"), "vision.pre_norm", width)?);
    for layer in 0..vision.layers {
        let from = format!("{VISION}encoder.layers.{layer}");
        let to = format!("vision.layers.{layer}");
        let projections = ["q", "k", "v"].map(|p| format!("{from}.self_attn.{p}_proj"));
        tensors.extend(norm(source, &format!("{from}.layer_norm1"), &format!("{to}.attention_norm"), width)?);
        tensors.extend(qkv(source, projections, &format!("{to}.qkv"), width)?);
        let out = format!("{from}.self_attn.out_proj");
        tensors.extend(linear(source, &out, &format!("{to}.attention_out"), width, width)?);
        tensors.extend(norm(source, &format!("{from}.layer_norm2"), &format!("{to}.mlp_norm"), width)?);
        tensors.extend(linear(source, &format!("{from}.mlp.fc1"), &format!("{to}.fc1"), vision.mlp, width)?);
        tensors.extend(linear(source, &format!("{from}.mlp.fc2"), &format!("{to}.fc2"), width, vision.mlp)?);
    }
    tensors.extend(norm(source, &format!("{VISION}post_layernorm"), "vision.post_norm", width)?);
    Ok(tensors)
}

fn plan_projection(source: &mut Source<'_>, vision: &VisionConfig, decoder: &DecoderConfig) -> Result<Vec<Planned>> {
    let from = "git.visual_projection.visual_projection";
    let mut tensors =
        Vec::from(linear(source, &format!("{from}.0"), "projection.linear", decoder.width, vision.width)?);
    tensors.extend(norm(source, &format!("{from}.1"), "projection.norm", decoder.width)?);
    Ok(tensors)
}

fn plan_decoder(source: &mut Source<'_>, decoder: &DecoderConfig) -> Result<Vec<Planned>> {
    let width = decoder.width;
    let words = [decoder.vocabulary, width];
    let positions = [decoder.max_positions, width];
    let mut tensors = vec![
        source.plan(WORDS, "decoder.word_embedding", &words, &words)?,
        source.plan(
            "git.embeddings.position_embeddings.weight",
            "decoder.position_embedding",
            &positions,
            &positions,
        )?,
    ];
    tensors.extend(norm(source, "git.embeddings.LayerNorm", "decoder.embedding_norm", width)?);
    for layer in 0..decoder.layers {
        let from = format!("git.encoder.layer.{layer}");
        let to = format!("decoder.layers.{layer}");
        let projections = ["query", "key", "value"].map(|p| format!("{from}.attention.self.{p}"));
        tensors.extend(qkv(source, projections, &format!("{to}.qkv"), width)?);
        let out = format!("{from}.attention.output");
        tensors.extend(linear(source, &format!("{out}.dense"), &format!("{to}.attention_out"), width, width)?);
        tensors.extend(norm(source, &format!("{out}.LayerNorm"), &format!("{to}.attention_norm"), width)?);
        let fc1 = format!("{from}.intermediate.dense");
        tensors.extend(linear(source, &fc1, &format!("{to}.fc1"), decoder.mlp, width)?);
        let fc2 = format!("{from}.output.dense");
        tensors.extend(linear(source, &fc2, &format!("{to}.fc2"), width, decoder.mlp)?);
        tensors.extend(norm(source, &format!("{from}.output.LayerNorm"), &format!("{to}.mlp_norm"), width)?);
    }
    let bias = [decoder.vocabulary];
    tensors.push(source.plan("output.bias", "decoder.output_bias", &bias, &bias)?);
    Ok(tensors)
}
