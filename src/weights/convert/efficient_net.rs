//! The EfficientNet-lite of a captioner, under the names of the package `efficientnet_lite_pytorch`: every convolution with its
//! batch norm, which is folded into it, or with a bias, as [`mod@crate::weights::export`] writes it. Dimensions are read off
//! shapes, but for the strides, which no shape tells.

use std::path::Path;

use super::{BatchNorm, Parts, Planned, Source, processor};
use crate::config::{EfficientNetConfig, ImageConfig, STEM_TAPS, Stage, VisionConfig};
use crate::weights::json::Json;
use crate::weights::names::{EFFICIENT_NET, Mapped, VISION_EPS};
use crate::weights::stored::StoredTensor;
use crate::{Error, Result};

/// Strides of the stages of every EfficientNet.
const STRIDES: [usize; 7] = [1, 2, 2, 2, 1, 2, 1];
/// Side of images in pixels, where no image processor says it.
const SIZE: usize = 224;
/// The convolutions and the batch norms after them, whose names depend on the place in the network.
const NORMS: [(&str, &str); 5] = [
    ("_conv_stem", "_bn0"),
    ("_conv_head", "_bn1"),
    ("_expand_conv", "_bn0"),
    ("_depthwise_conv", "_bn1"),
    ("_project_conv", "_bn2"),
];

/// Whether a captioner sees through an EfficientNet.
pub(super) fn is_there(source: &Source<'_>) -> bool {
    source.tensors.contains_key(&format!("{EFFICIENT_NET}_conv_stem.weight"))
}

/// Dimensions and preprocessing. The classifier and the counters of the batch norms are left aside.
pub(super) fn plan(
    source: &mut Source<'_>,
    preprocessor: Option<&Path>,
    left_aside: &mut Vec<String>,
) -> Result<(VisionConfig, ImageConfig)> {
    source.remove(|name| name.starts_with(EFFICIENT_NET) && name.ends_with(".num_batches_tracked"));
    left_aside.extend(source.remove(|name| name.starts_with(&format!("{EFFICIENT_NET}_fc."))));
    let net = network(source)?;
    let [width, _, _, _] = source.shape(&format!("{EFFICIENT_NET}_conv_head.weight"))?;
    let vision = VisionConfig {
        patch: 0,
        width,
        layers: 0,
        heads: 0,
        mlp: 0,
        eps: VISION_EPS,
        units: None,
        efficient_net: Some(net),
    };
    let image = match preprocessor {
        Some(path) => {
            let json = Json::read(path)?;
            processor::image_config(&json, processor::side(&json)?.unwrap_or(SIZE))?
        }
        None => ImageConfig::efficient_net(SIZE),
    };
    Ok((vision, image))
}

/// The stages: blocks of one number of channels follow one another.
fn network(source: &Source<'_>) -> Result<EfficientNetConfig> {
    let wrong =
        |name: &str, problem: String| Err(Error::weights(source.path, format!("{EFFICIENT_NET}{name}"), problem));
    let [stem, colours, height, width] = source.shape(&format!("{EFFICIENT_NET}_conv_stem.weight"))?;
    if [colours, height, width] != [3, STEM_TAPS, STEM_TAPS] {
        let problem = format!("is for {colours} colours in {height}x{width}, expected 3 in {STEM_TAPS}x{STEM_TAPS}");
        return wrong("_conv_stem.weight", problem);
    }
    let (mut stages, mut inputs) = (Vec::<Stage>::new(), stem);
    for number in 0..source.count(&format!("{EFFICIENT_NET}_blocks."), "._depthwise_conv.weight") {
        let shape = |part: &str| source.shape::<4>(&format!("{EFFICIENT_NET}_blocks.{number}.{part}.weight"));
        let ([hidden, _, taps, _], [channels, _, _, _]) = (shape("_depthwise_conv")?, shape("_project_conv")?);
        if inputs == 0 || !hidden.is_multiple_of(inputs) {
            let problem = format!("has {hidden} channels, expected a multiple of the {inputs} that enter the block");
            return wrong(&format!("_blocks.{number}._depthwise_conv.weight"), problem);
        }
        match stages.last_mut().filter(|stage| stage.channels == channels) {
            Some(stage) => stage.blocks += 1,
            None => {
                let stride = STRIDES.get(stages.len()).copied().unwrap_or(1);
                stages.push(Stage { blocks: 1, taps, stride, expansion: hidden / inputs, channels });
            }
        }
        inputs = channels;
    }
    if stages.len() != STRIDES.len() {
        let problem = format!("make {} stages of other numbers of channels, expected {}", stages.len(), STRIDES.len());
        return wrong("_blocks", problem);
    }
    Ok(EfficientNetConfig { stem, stages })
}

/// Plans a tensor of the network: as it is, or with the batch norm after its convolution folded in.
pub(super) fn folded(source: &mut Source<'_>, mapped: Mapped) -> Result<Planned> {
    let Mapped { name, shape, parts, part } = mapped;
    let from = parts.into_iter().next().unwrap_or_default();
    let (convolution, kind) = from.rsplit_once('.').unwrap_or((&from, ""));
    let bias = format!("{convolution}.bias");
    if source.tensors.contains_key(&bias) || !source.tensors.contains_key(&norm_of(convolution, "weight")) {
        return source.plan(&from, &name, &part, &shape);
    }
    let outputs = shape[..1].to_vec();
    let mut norm = |kind: &str, last: bool| -> Result<(String, StoredTensor)> {
        let name = norm_of(convolution, kind);
        if last { source.take(&name, &outputs) } else { Ok((name.clone(), source.peek(&name, &outputs)?)) }
    };
    // The weight comes first; its bias is the last to need the norm.
    let parts = match kind {
        "weight" => BatchNorm {
            scale: norm("weight", false)?,
            variance: norm("running_var", false)?,
            of: super::Folded::Weight(source.take(&from, &part)?),
        },
        _ => BatchNorm {
            scale: norm("weight", true)?,
            variance: norm("running_var", true)?,
            of: super::Folded::Bias { bias: norm("bias", true)?, mean: norm("running_mean", true)? },
        },
    };
    Ok(Planned { name, shape, parts: Parts::BatchNorm(Box::new(parts)) })
}

/// The name of a tensor of the batch norm after a convolution.
fn norm_of(convolution: &str, kind: &str) -> String {
    let norm = NORMS.iter().find_map(|(own, norm)| Some((convolution.strip_suffix(own)?, norm)));
    norm.map_or_else(String::new, |(before, norm)| format!("{before}{norm}.{kind}"))
}
