//! `im2sp export`: the captioner of a model directory as a checkpoint that PyTorch programs load, the way back from
//! [`mod@super::convert`]. Values stay as they are stored, bit for bit. A vocoder is not exported: its weight norm was folded.

mod huggingface;
mod reference;

use std::path::PathBuf;

use super::directory::ModelFiles;
use super::names::{self, DECODER_EPS, HEAD_SIZE, Mapped, UNIT_GRID, UNIT_PIXELS, UNIT_VISION_EPS, VISION_EPS};
use super::store::TensorStore;
use crate::config::{ImageConfig, ModelConfig};
use crate::tensor::HostTensor;
use crate::{Error, Result};

/// Form of an exported model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportFormat {
    /// A directory for `transformers`: `GitForCausalLM.from_pretrained`.
    HuggingFace,
    /// A file for the reference implementation: `{"state_dict": ...}` by `torch.save`.
    Reference,
}

/// Source and target of an export.
#[derive(Clone, Debug)]
pub struct ExportOptions {
    /// A model directory whose weights are not in eight bits.
    pub source: PathBuf,
    /// Form of the result.
    pub format: ExportFormat,
    /// The directory or file to make.
    pub output: PathBuf,
    /// Whether an earlier result at `output` is replaced.
    pub force: bool,
}

/// Result of an export.
#[derive(Clone, Debug)]
pub struct ExportReport {
    /// Tensors written.
    pub tensors: usize,
    /// Their elements.
    pub parameters: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Parts of the model for which the format has no place.
    pub left_out: Vec<&'static str>,
}

/// Exports the captioner of a model directory. `progress` is called with the bytes written and to be written. Fails, and
/// leaves nothing behind, when a tensor is missing, unknown, misshapen, not finite or in eight bits.
pub fn export(options: &ExportOptions, progress: &mut dyn FnMut(u64, u64)) -> Result<ExportReport> {
    let ModelFiles { config, captioner, .. } = ModelFiles::open(&options.source)?;
    if config.vision.units.is_some() && options.format == ExportFormat::HuggingFace {
        let problem = "sees image units, and transformers has no such model: --format reference writes a checkpoint";
        return Err(Error::weights(&options.source, "vision.units", problem));
    }
    if config.vision.efficient_net.is_some() && options.format == ExportFormat::HuggingFace {
        let problem =
            "is no vision transformer, the only one that a GIT model of transformers has: choose the reference's form";
        return Err(Error::weights(&options.source, "vision.efficient_net", problem));
    }
    let tensors = checkpoint(&config, captioner)?;
    let mut report = ExportReport { tensors: tensors.len(), parameters: 0, bytes: 0, left_out: Vec::new() };
    for (_, tensor) in &tensors {
        report.parameters += tensor.len() as u64;
        report.bytes += tensor.bytes().len() as u64;
    }
    if config.vision.units.is_some() {
        // Whoever loads the checkpoint has them as files of their own.
        report.left_out.push("the image tokenizer and its codebook");
    }
    if config.vocoder.is_some() {
        report.left_out.push("the vocoder");
    }
    let mut done = 0;
    let mut written = |bytes| {
        done += bytes;
        progress(done, report.bytes);
    };
    written(0);
    match options.format {
        ExportFormat::HuggingFace => huggingface::write(options, &config, tensors, &mut written)?,
        ExportFormat::Reference => {
            reference::write(options, tensors, &mut written)?;
            report.left_out.extend(unsaid(&config));
        }
    }
    Ok(report)
}

/// The tensors of a checkpoint in the order of data flow: views of those in `store`.
fn checkpoint(config: &ModelConfig, mut store: TensorStore) -> Result<Vec<(String, HostTensor)>> {
    let path = store.path().to_owned();
    if let Some((name, _)) = store.iter().find(|(_, tensor)| tensor.dtype().is_coded()) {
        return Err(Error::weights(&path, name, "is stored in eight bits: export the model it was made of"));
    }
    let mut tensors = Vec::new();
    for Mapped { name, shape, parts, part } in names::captioner(&config.vision, &config.decoder, config.image_tokens())
    {
        let tensor = store.take(&name, &shape)?;
        if !tensor.to_f32().iter().all(|value| value.is_finite()) {
            return Err(Error::weights(&path, name, "holds NaN or infinity: the model is damaged"));
        }
        let rows = shape[0] / parts.len();
        for (number, from) in parts.into_iter().enumerate() {
            let values = tensor.rows(number * rows..(number + 1) * rows).and_then(|rows| rows.reshape(&part));
            let values = values.ok_or_else(|| Error::weights(&path, name.as_str(), "has no such parts"))?;
            tensors.push((from, values));
        }
    }
    if let Some(units) = &config.vision.units {
        store.take("vision.codebook", &[units.codes, units.code_width])?;
    }
    store.finish()?;
    Ok(tensors)
}

/// Parts of a configuration that bare tensors do not tell, where they are not the usual ones.
fn unsaid(config: &ModelConfig) -> Vec<&'static str> {
    let (vision, decoder) = (&config.vision, &config.decoder);
    let is_net = vision.efficient_net.is_some();
    let usual_heads = |width: usize, heads: usize| width == heads * HEAD_SIZE;
    let heads = (is_net || usual_heads(vision.width, vision.heads)) && usual_heads(decoder.width, decoder.heads);
    let (image, eps) = match &vision.units {
        Some(_) => (ImageConfig::plain_square(UNIT_GRID * UNIT_PIXELS), UNIT_VISION_EPS),
        None if is_net => (ImageConfig::efficient_net(224), VISION_EPS),
        None => (ImageConfig::clip(config.image.size), VISION_EPS),
    };
    let grid = vision.units.as_ref().map_or(UNIT_GRID, |units| units.grid);
    let norms = [vision.eps, config.projection_eps(), decoder.eps];
    let parts = [
        (config.image != image || grid != UNIT_GRID, "the settings of the image processor"),
        (!heads, "the numbers of heads"),
        (norms != [eps, VISION_EPS, DECODER_EPS], "the epsilons of the layer norms"),
    ];
    parts.into_iter().filter_map(|(unusual, part)| unusual.then_some(part)).collect()
}
