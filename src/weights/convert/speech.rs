//! Speech encoders and recognisers: HuBERT and wav2vec 2.0 of fairseq (a `.pt` file, whose optimizer state is not read) and of
//! Hugging Face (a directory). Dimensions are read off the shapes; both spellings of the names hold the same tensors.

use std::path::Path;

use super::select::{self, Family, Opened, Selected};
use super::{ConvertOptions, Parts, Planned, Source, Taps, huggingface, write};
use crate::config::{ConvolutionNorm, FORMAT, SpeechConfig, SpeechConvolution, SpeechKind, Vocabulary};
use crate::weights::directory::read_small;
use crate::weights::json::Json;
use crate::weights::names::HEAD_SIZE;
use crate::weights::speech::{self, SPEECH};
use crate::{Error, Result};

/// Names of an encoder in either spelling.
const ENCODER: Family = Family {
    name: "speech encoder",
    marker: &["feature_extractor", "conv_layers"],
    parts: &["feature_extractor", "feature_projection", "layer_norm", "post_extract_proj", "encoder"],
    key: "model",
};
/// The output layer of a recogniser: of Hugging Face, and of fairseq.
const OUTPUTS: [Family; 2] = [
    Family { name: "output layer", marker: &["lm_head"], parts: &["lm_head"], key: "model" },
    Family { name: "output layer", marker: &["proj"], parts: &["proj"], key: "model" },
];
/// Strides of the convolutions of all published models, which no shape tells.
const STRIDES: [usize; 7] = [5, 2, 2, 2, 2, 2, 2];
/// Added to the variance of recordings by fairseq, and by transformers.
const NORMALIZE_EPS: [f32; 2] = [1e-5, 1e-7];
/// Symbols of the published recognisers after the four special ones.
const LETTERS: &str = "|ETAONIHSRDLUMWCFGYPBVK'XJQZ";

/// Result of a conversion.
#[derive(Clone, Debug)]
pub struct SpeechReport {
    /// The configuration that was written.
    pub config: SpeechConfig,
    /// Tensors written.
    pub tensors: usize,
    /// Their elements.
    pub parameters: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Names in the source that are not part of the model.
    pub left_aside: Vec<String>,
}

/// Whether `path` holds a speech encoder: a Hugging Face directory that says so, or a weights file with such names.
pub fn is_speech(path: &Path) -> bool {
    if path.is_dir() {
        let config = Json::read(&path.join("config.json"));
        let kind = config.ok().and_then(|config| config.get::<String>("model_type").ok().flatten());
        return kind.is_some_and(|kind| MODEL_TYPES.contains(&kind.as_str()));
    }
    path.is_file() && select::open(path).is_ok_and(|opened| ENCODER.is_in(opened))
}

/// `model_type` of the models that are read.
const MODEL_TYPES: [&str; 2] = ["hubert", "wav2vec2"];

/// Converts a speech encoder, a recogniser where there is an output layer, to a model directory. The options of captioners
/// and vocoders are not looked at. `progress` is called with the bytes written and to be written.
///
/// # Errors
/// If a tensor is missing, unknown, misshapen or not finite, or the model is none that im2sp runs. Nothing is left behind.
pub fn convert_speech(options: &ConvertOptions, progress: &mut dyn FnMut(u64, u64)) -> Result<SpeechReport> {
    let path = options.source.as_path();
    let (selected, outputs, said) = open(path)?;
    let mut left_aside = selected.left_aside;
    let mut source = Source::new(path, selected.tensors)?;
    let fairseq = source.tensors.contains_key("post_extract_proj.weight");
    let mut config = dimensions(&source, fairseq, &said)?;
    let mut tensors = Vec::new();
    plan_encoder(&mut source, &config, fairseq, &mut tensors)?;
    if let Some(outputs) = outputs {
        left_aside.retain(|name| !outputs.tensors.iter().any(|(own, _)| name.ends_with(own.as_str())));
        let mut output = Source::new(path, outputs.tensors)?;
        let name = if fairseq { "proj" } else { "lm_head" };
        let [symbols, _] = output.shape(&format!("{name}.weight"))?;
        linear(&mut output, [name, "output"], [symbols, config.width], &mut tensors)?;
        output.finish()?;
        config.kind = SpeechKind::Ctc;
        config.vocabulary = Some(vocabulary(path, &said, symbols)?);
    }
    source.finish()?;
    config.description = options.description.clone();
    config.normalize_eps = normalization(path, &config, fairseq)?;
    config.check().map_err(|(field, problem)| Error::weights(path, field, problem))?;
    let staged = speech::stage(&options.output, options.force)?;
    let counts = write(options, &staged, vec![(SPEECH, path, tensors)], progress)?;
    speech::commit(staged, &config)?;
    Ok(SpeechReport { config, tensors: counts.tensors, parameters: counts.parameters, bytes: counts.bytes, left_aside })
}

/// The encoder, the output layer if there is one, and the configuration, empty without one.
fn open(path: &Path) -> Result<(Selected, Option<Selected>, Json)> {
    if path.is_dir() {
        let config = Json::read(&path.join("config.json"))?;
        let selected = huggingface::open_folder(path, &ENCODER)?;
        let outputs = match selected.left_aside.iter().any(|name| name.starts_with("lm_head.")) {
            true => Some(huggingface::open_folder(path, &OUTPUTS[0])?),
            false => None,
        };
        return Ok((selected, outputs, config));
    }
    let selected = ENCODER.select(path, select::open(path)?)?;
    let outputs = OUTPUTS.iter().find(|family| family.is_among(&selected.left_aside));
    let outputs = outputs.map(|family| family.select(path, select::open(path)?)).transpose()?;
    Ok((selected, outputs, Json::parse(path, "{}")?))
}

/// Dimensions by the shapes, and by the configuration where shapes cannot tell.
fn dimensions(source: &Source<'_>, fairseq: bool, said: &Json) -> Result<SpeechConfig> {
    refuse_unknown(said)?;
    let weight = |n: usize| convolution(n, fairseq, "weight");
    let count = (0..).take_while(|&n| source.tensors.contains_key(&weight(n))).count();
    let strides: Vec<usize> = said.get("conv_stride")?.unwrap_or(STRIDES.to_vec());
    if strides.len() != count {
        let problem = format!("are {count} convolutions, but {} strides are known", strides.len());
        return Err(Error::weights(source.path, "feature_extractor.conv_layers", problem));
    }
    let mut convolutions = Vec::with_capacity(count);
    for (n, &stride) in strides.iter().enumerate() {
        let [channels, _, taps] = source.shape(&weight(n))?;
        convolutions.push(SpeechConvolution { channels, taps, stride });
    }
    // The group norm is on the first convolution alone.
    let norm = |n: usize| source.tensors.contains_key(&norm_of(n, fairseq, ConvolutionNorm::Layer, "weight"));
    let every = norm(0) && (count < 2 || norm(1));
    let [width, group, position_taps] = source.shape(&position(source, fairseq, Position::Direction))?;
    let layers = source.count("encoder.layers.", &format!(".{}.weight", names(fairseq).fc1));
    let [mlp, _] = source.shape(&format!("encoder.layers.0.{}.weight", names(fairseq).fc1))?;
    let heads = match said.get("num_attention_heads")? {
        Some(heads) => heads,
        None if width.is_multiple_of(HEAD_SIZE) => width / HEAD_SIZE,
        None => {
            let problem = format!("a width of {width} is no multiple of the head size {HEAD_SIZE}");
            return Err(Error::weights(source.path, "encoder.layers", problem));
        }
    };
    Ok(SpeechConfig {
        format: FORMAT.into(),
        kind: SpeechKind::SpeechEncoder,
        description: None,
        normalize_eps: None,
        convolutions,
        convolution_norm: if every { ConvolutionNorm::Layer } else { ConvolutionNorm::Group },
        convolution_bias: source.tensors.contains_key(&convolution(0, fairseq, "bias")),
        width,
        layers,
        heads,
        mlp,
        eps: said.get("layer_norm_eps")?.unwrap_or(1e-5),
        position_taps,
        position_groups: width.checked_div(group).unwrap_or(0),
        // fairseq's models of both kinds: layer norm in the convolutions goes with norms before.
        pre_norm: said.get("do_stable_layer_norm")?.unwrap_or(every),
        vocabulary: None,
    })
}

/// Refuses what a Hugging Face configuration may ask of a model and this crate does not run.
fn refuse_unknown(said: &Json) -> Result<()> {
    for field in ["hidden_act", "feat_extract_activation"] {
        if let Some(value) = said.get::<String>(field)?.filter(|value| value != "gelu") {
            return Err(said.wrong(field, format!("is {value:?}; im2sp runs models with \"gelu\" only")));
        }
    }
    for field in ["add_adapter", "conv_pos_batch_norm"] {
        if said.is_truthy(field) {
            return Err(said.wrong(field, "is set, which im2sp does not run: convert a model without it"));
        }
    }
    if said.value("adapter_attn_dim").is_some() {
        return Err(said.wrong("adapter_attn_dim", "is set: models with adapters for languages are not run"));
    }
    if said.value("feat_proj_layer_norm").is_some_and(|value| value == false) {
        return Err(said.wrong("feat_proj_layer_norm", "is false, which im2sp does not run"));
    }
    Ok(())
}

/// Name of a convolution's weight or bias.
fn convolution(n: usize, fairseq: bool, kind: &str) -> String {
    let middle = if fairseq { "0" } else { "conv" };
    format!("feature_extractor.conv_layers.{n}.{middle}.{kind}")
}

/// Name of the weight or bias of a convolution's norm.
fn norm_of(n: usize, fairseq: bool, norm: ConvolutionNorm, kind: &str) -> String {
    let middle = match (fairseq, norm) {
        (false, _) => "layer_norm",
        (true, ConvolutionNorm::Group) => "2",
        (true, ConvolutionNorm::Layer) => "2.1",
    };
    format!("feature_extractor.conv_layers.{n}.{middle}.{kind}")
}

/// A part of the weight-normed convolution of positions.
#[derive(Clone, Copy, PartialEq)]
enum Position {
    Length,
    Direction,
    Bias,
}

/// Its name in this source; releases of PyTorch spell weight norm in two ways, and it may have been removed.
fn position(source: &Source<'_>, fairseq: bool, part: Position) -> String {
    let prefix = if fairseq { "encoder.pos_conv.0" } else { "encoder.pos_conv_embed.conv" };
    let spellings: &[&str] = match part {
        Position::Length => &["weight_g", "parametrizations.weight.original0"],
        Position::Direction => &["weight_v", "parametrizations.weight.original1", "weight"],
        Position::Bias => &["bias"],
    };
    let names = || spellings.iter().map(|spelling| format!("{prefix}.{spelling}"));
    names().find(|name| source.tensors.contains_key(name)).unwrap_or_else(|| format!("{prefix}.{}", spellings[0]))
}

/// Names inside a transformer layer.
struct LayerNames {
    attention: &'static str,
    attention_norm: &'static str,
    fc1: &'static str,
    fc2: &'static str,
}

fn names(fairseq: bool) -> LayerNames {
    match fairseq {
        true => LayerNames { attention: "self_attn", attention_norm: "self_attn_layer_norm", fc1: "fc1", fc2: "fc2" },
        false => LayerNames {
            attention: "attention",
            attention_norm: "layer_norm",
            fc1: "feed_forward.intermediate_dense",
            fc2: "feed_forward.output_dense",
        },
    }
}

/// Plans everything from samples to features.
fn plan_encoder(
    source: &mut Source<'_>,
    config: &SpeechConfig,
    fairseq: bool,
    tensors: &mut Vec<Planned>,
) -> Result<()> {
    let mut channels = 1;
    for (n, convolution_of) in config.convolutions.iter().enumerate() {
        let SpeechConvolution { channels: outputs, taps, .. } = *convolution_of;
        let to = format!("convolutions.{n}");
        let weight = source.take(&convolution(n, fairseq, "weight"), &[outputs, channels, taps])?;
        let shape = vec![outputs, taps * channels];
        tensors.push(Planned {
            name: format!("{to}.weight"),
            shape,
            parts: Parts::Taps(Box::new(Taps { length: None, weight })),
        });
        if config.convolution_bias {
            plain(source, &convolution(n, fairseq, "bias"), &format!("{to}.bias"), &[outputs], tensors)?;
        }
        if n == 0 || config.convolution_norm == ConvolutionNorm::Layer {
            for kind in ["weight", "bias"] {
                let from = norm_of(n, fairseq, config.convolution_norm, kind);
                plain(source, &from, &format!("{to}.norm.{kind}"), &[outputs], tensors)?;
            }
        }
        channels = outputs;
    }
    let (norm_name, projection) = match fairseq {
        true => ("layer_norm", "post_extract_proj"),
        false => ("feature_projection.layer_norm", "feature_projection.projection"),
    };
    let width = config.width;
    norm(source, [norm_name, "feature_norm"], channels, tensors)?;
    linear(source, [projection, "projection"], [width, channels], tensors)?;
    plan_positions(source, config, fairseq, tensors)?;
    norm(source, ["encoder.layer_norm", "encoder.norm"], width, tensors)?;
    let LayerNames { attention, attention_norm, fc1, fc2 } = names(fairseq);
    for layer in 0..config.layers {
        let to = format!("encoder.layers.{layer}");
        for (kind, part, shape) in
            [("weight", vec![width, width], vec![3 * width, width]), ("bias", vec![width], vec![3 * width])]
        {
            let from = ["q", "k", "v"].map(|p| format!("{to}.{attention}.{p}_proj.{kind}"));
            let parts = from.iter().map(|from| source.take(from, &part)).collect::<Result<_>>()?;
            tensors.push(Planned { name: format!("{to}.qkv.{kind}"), shape, parts: Parts::Joined(parts) });
        }
        let mut linear = |from: &str, name: &str, shape: [usize; 2]| {
            linear(source, [&format!("{to}.{from}"), &format!("{to}.{name}")], shape, tensors)
        };
        linear(&format!("{attention}.out_proj"), "attention_out", [width, width])?;
        linear(fc1, "fc1", [config.mlp, width])?;
        linear(fc2, "fc2", [width, config.mlp])?;
        norm(source, [&format!("{to}.{attention_norm}"), &format!("{to}.attention_norm")], width, tensors)?;
        norm(source, [&format!("{to}.final_layer_norm"), &format!("{to}.mlp_norm")], width, tensors)?;
    }
    Ok(())
}

/// The convolution of positions with its weight norm folded: one length for each tap.
fn plan_positions(
    source: &mut Source<'_>,
    config: &SpeechConfig,
    fairseq: bool,
    tensors: &mut Vec<Planned>,
) -> Result<()> {
    let (width, taps) = (config.width, config.position_taps);
    let group = width.checked_div(config.position_groups).unwrap_or(0);
    let [length, direction, bias] =
        [Position::Length, Position::Direction, Position::Bias].map(|part| position(source, fairseq, part));
    let length = match direction.ends_with(".weight") {
        true => None,
        false => Some(source.take(&length, &[1, 1, taps])?),
    };
    let weight = source.take(&direction, &[width, group, taps])?;
    let shape = vec![width, taps * group];
    tensors.push(Planned {
        name: "positions.weight".into(),
        shape,
        parts: Parts::Taps(Box::new(Taps { length, weight })),
    });
    plain(source, &bias, "positions.bias", &[width], tensors)
}

fn plain(source: &mut Source<'_>, from: &str, to: &str, shape: &[usize], tensors: &mut Vec<Planned>) -> Result<()> {
    tensors.push(source.plan(from, to, shape, shape)?);
    Ok(())
}

/// Weight (rows, columns) and bias (rows) of a linear layer.
fn linear(
    source: &mut Source<'_>,
    [from, to]: [&str; 2],
    [rows, columns]: [usize; 2],
    tensors: &mut Vec<Planned>,
) -> Result<()> {
    plain(source, &format!("{from}.weight"), &format!("{to}.weight"), &[rows, columns], tensors)?;
    plain(source, &format!("{from}.bias"), &format!("{to}.bias"), &[rows], tensors)
}

/// Weight and bias (width) of a norm.
fn norm(source: &mut Source<'_>, [from, to]: [&str; 2], width: usize, tensors: &mut Vec<Planned>) -> Result<()> {
    for kind in ["weight", "bias"] {
        plain(source, &format!("{from}.{kind}"), &format!("{to}.{kind}"), &[width], tensors)?;
    }
    Ok(())
}

/// Normalisation of recordings: as a checkpoint of fairseq says of its task. Otherwise encoders with layer norm in the
/// convolutions, as fairseq's are, whatever a Hugging Face processor says, and recognisers of Hugging Face as their processor says.
fn normalization(path: &Path, config: &SpeechConfig, fairseq: bool) -> Result<Option<f32>> {
    let mut normalizes = config.convolution_norm == ConvolutionNorm::Layer;
    let processor = path.join("preprocessor_config.json");
    if config.kind == SpeechKind::Ctc && path.is_dir() {
        normalizes = true;
        if processor.is_file() {
            normalizes = Json::read(&processor)?.get("do_normalize")?.unwrap_or(true);
        }
    }
    if fairseq
        && path.is_file()
        && let Opened::Checkpoint(checkpoint) = select::open(path)?
    {
        let said = [&["cfg", "task", "normalize"][..], &["args", "normalize"]]
            .into_iter()
            .find_map(|keys| checkpoint.truth(keys));
        normalizes = said.unwrap_or(normalizes);
    }
    Ok(normalizes.then_some(NORMALIZE_EPS[usize::from(!fairseq)]))
}

/// The symbols: of `vocab.json` in a Hugging Face directory, of `dict.ltr.txt` next to a checkpoint of fairseq, or those of the
/// published models.
fn vocabulary(path: &Path, said: &Json, count: usize) -> Result<Vocabulary> {
    let delimiter = "|".to_string();
    if path.is_dir() {
        let json = Json::read(&path.join("vocab.json"))?;
        let mut symbols = vec![String::new(); count];
        for symbol in json.names() {
            let id: usize = json.need(symbol)?;
            match symbols.get_mut(id) {
                Some(place) => *place = symbol.to_string(),
                None => return Err(json.wrong(symbol, format!("has id {id}, but the output layer {count} rows"))),
            }
        }
        let blank = said.get("pad_token_id")?.unwrap_or(0);
        return Ok(Vocabulary { symbols, blank, delimiter });
    }
    let special = ["<s>", "<pad>", "</s>", "<unk>"].map(String::from);
    let dictionary = path.parent().unwrap_or(Path::new("")).join("dict.ltr.txt");
    let symbols: Vec<String> = if dictionary.is_file() {
        let text = read_small(&dictionary)?;
        let symbols = text.lines().filter_map(|line| line.split_whitespace().next()).map(String::from);
        special.into_iter().chain(symbols).collect()
    } else {
        special.into_iter().chain(LETTERS.chars().map(String::from)).collect()
    };
    if symbols.len() != count {
        let problem = format!(
            "names {} symbols, but the output layer has {count} rows: put the model's dict.ltr.txt next to it",
            symbols.len()
        );
        return Err(Error::weights(&dictionary, "dictionary", problem));
    }
    Ok(Vocabulary { symbols, blank: 0, delimiter })
}
