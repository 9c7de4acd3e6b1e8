//! The vocoder: fairseq's code HiFi-GAN, a checkpoint `{"generator": …}` and a `config.json`. Its weight norm is folded
//! into plain convolutions; names stay otherwise as they are. Configurations with an external speaker vector or an f0
//! that is not quantised are refused.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::{Parts, Planned, Source, WeightNorm};
use crate::config::{DurationConfig, VocoderConfig};
use crate::weights::directory::read_small;
use crate::weights::torch::Checkpoint;
use crate::{Error, Result};

/// Everything known about a vocoder before its data is read.
pub(super) struct VocoderPlan {
    pub config: VocoderConfig,
    pub tensors: Vec<Planned>,
}

/// The fields of the published configuration that matter when speaking; those for training are ignored.
#[derive(Deserialize)]
struct Published {
    upsample_rates: Vec<usize>,
    upsample_kernel_sizes: Vec<usize>,
    upsample_initial_channel: usize,
    resblock_kernel_sizes: Vec<usize>,
    resblock_dilation_sizes: Vec<Vec<usize>>,
    num_embeddings: usize,
    embedding_dim: usize,
    #[serde(default = "default_model_in_dim")]
    model_in_dim: usize,
    #[serde(default = "default_sampling_rate")]
    sampling_rate: u32,
    code_hop_size: Option<usize>,
    dur_predictor_params: Option<DurationParameters>,
    #[serde(default)]
    multispkr: Value,
    num_speakers: Option<usize>,
    #[serde(default)]
    embedder_params: Value,
    #[serde(default)]
    f0: Value,
    f0_quant_num_bin: Option<usize>,
    #[serde(default)]
    resblock: Value,
}

fn default_model_in_dim() -> usize {
    80
}

fn default_sampling_rate() -> u32 {
    16_000
}

#[derive(Deserialize)]
struct DurationParameters {
    encoder_embed_dim: usize,
    var_pred_hidden_dim: usize,
    var_pred_kernel_size: usize,
}

/// Opens a vocoder and plans the tensors of `vocoder.safetensors`.
pub(super) fn plan(path: &Path, config: Option<&Path>) -> Result<VocoderPlan> {
    let beside = path.with_file_name("config.json");
    let config = read_config(config.unwrap_or(&beside))?;
    let mut source = Source::new(path, Checkpoint::open(path)?.state_dict(&["generator"])?)?;
    let mut tensors = Vec::new();
    plan_tables(&mut source, &config, &mut tensors)?;
    plan_generator(&mut source, &config, &mut tensors)?;
    if let Some(duration) = &config.duration {
        plan_duration(&mut source, duration, config.embedding_dim, &mut tensors)?;
    }
    source.finish()?;
    Ok(VocoderPlan { config, tensors })
}

fn read_config(path: &Path) -> Result<VocoderConfig> {
    let wrong = |field: &str, problem: String| Error::weights(path, field, problem);
    let published: Published =
        serde_json::from_str(&read_small(path)?).map_err(|error| wrong("configuration", error.to_string()))?;
    if is_truthy(&published.embedder_params) {
        return Err(wrong("embedder_params", "a vocoder that takes a speaker vector is not supported".into()));
    }
    let f0 = is_truthy(&published.f0);
    if f0 && published.f0_quant_num_bin.unwrap_or(0) == 0 {
        return Err(wrong("f0_quant_num_bin", "a vocoder whose f0 is not quantised is not supported".into()));
    }
    if !published.resblock.is_null() && published.resblock != "1" && published.resblock != 1 {
        return Err(wrong("resblock", format!("is {}; only blocks of kind \"1\" are supported", published.resblock)));
    }
    let duration = match published.dur_predictor_params {
        Some(duration) if duration.encoder_embed_dim != published.embedding_dim => {
            let problem = format!("is {}, but units have {}", duration.encoder_embed_dim, published.embedding_dim);
            return Err(wrong("dur_predictor_params.encoder_embed_dim", problem));
        }
        Some(duration) => {
            Some(DurationConfig { hidden: duration.var_pred_hidden_dim, kernel: duration.var_pred_kernel_size })
        }
        None => None,
    };
    let config = VocoderConfig {
        sampling_rate: published.sampling_rate,
        upsample_rates: published.upsample_rates,
        upsample_kernel_sizes: published.upsample_kernel_sizes,
        upsample_initial_channel: published.upsample_initial_channel,
        resblock_kernel_sizes: published.resblock_kernel_sizes,
        resblock_dilation_sizes: published.resblock_dilation_sizes,
        num_embeddings: published.num_embeddings,
        embedding_dim: published.embedding_dim,
        model_in_dim: published.model_in_dim,
        duration,
        num_speakers: is_truthy(&published.multispkr).then_some(published.num_speakers.unwrap_or(200)),
        f0_bins: published.f0_quant_num_bin.filter(|_| f0),
    };
    config.check().map_err(|(field, problem)| wrong(&field, problem))?;
    if published.code_hop_size.is_some_and(|hop| hop != config.hop()) {
        return Err(wrong("code_hop_size", format!("is not the product of upsample_rates, {}", config.hop())));
    }
    Ok(config)
}

/// Truth as Python has it: the published code only asks `if value:`.
fn is_truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(elements) => !elements.is_empty(),
        Value::Object(entries) => !entries.is_empty(),
    }
}

fn plan_tables(source: &mut Source<'_>, config: &VocoderConfig, tensors: &mut Vec<Planned>) -> Result<()> {
    let rows =
        [("dict", Some(config.num_embeddings)), ("spkr", config.num_speakers), ("f0_quant_embed", config.f0_bins)];
    for (table, rows) in rows {
        if let Some(rows) = rows {
            let name = format!("{table}.weight");
            let shape = [rows, config.embedding_dim];
            tensors.push(source.plan(&name, &name, &shape, &shape)?);
        }
    }
    Ok(())
}

fn plan_generator(source: &mut Source<'_>, config: &VocoderConfig, tensors: &mut Vec<Planned>) -> Result<()> {
    let first = config.upsample_initial_channel;
    conv(source, "conv_pre", &[first, config.model_in_dim, 7], first, tensors)?;
    for (stage, &kernel) in config.upsample_kernel_sizes.iter().enumerate() {
        let channels = config.stage_channels(stage);
        // Transposed: (in, out, k).
        let entering = first >> stage;
        conv(source, &format!("ups.{stage}"), &[entering, channels, kernel], channels, tensors)?;
        let blocks = config.resblock_kernel_sizes.iter().zip(&config.resblock_dilation_sizes);
        for (index, (&kernel, dilations)) in blocks.enumerate() {
            let block = stage * config.resblock_kernel_sizes.len() + index;
            for convolution in 0..dilations.len() {
                for group in ["convs1", "convs2"] {
                    let name = format!("resblocks.{block}.{group}.{convolution}");
                    conv(source, &name, &[channels, channels, kernel], channels, tensors)?;
                }
            }
        }
    }
    let last = config.stage_channels(config.upsample_rates.len() - 1);
    conv(source, "conv_post", &[1, last, 7], 1, tensors)
}

fn plan_duration(
    source: &mut Source<'_>,
    duration: &DurationConfig,
    width: usize,
    tensors: &mut Vec<Planned>,
) -> Result<()> {
    let hidden = duration.hidden;
    for (name, weight, bias) in [
        ("conv1.0", vec![hidden, width, duration.kernel], hidden),
        ("ln1", vec![hidden], hidden),
        ("conv2.0", vec![hidden, hidden, duration.kernel], hidden),
        ("ln2", vec![hidden], hidden),
        ("proj", vec![1, hidden], 1),
    ] {
        let name = format!("dur_predictor.{name}");
        plain(source, &format!("{name}.weight"), &weight, tensors)?;
        plain(source, &format!("{name}.bias"), &[bias], tensors)?;
    }
    Ok(())
}

fn plain(source: &mut Source<'_>, name: &str, shape: &[usize], tensors: &mut Vec<Planned>) -> Result<()> {
    tensors.push(source.plan(name, name, shape, shape)?);
    Ok(())
}

/// A convolution with weight norm in either spelling of PyTorch, or with its norm removed already.
fn conv(
    source: &mut Source<'_>,
    name: &str,
    shape: &[usize; 3],
    bias: usize,
    tensors: &mut Vec<Planned>,
) -> Result<()> {
    let weight = format!("{name}.weight");
    let new = format!("{name}.parametrizations.weight.original0");
    let parts = if source.tensors.contains_key(&weight) {
        Parts::Joined(vec![source.take(&weight, shape)?])
    } else {
        let (length, direction) = if source.tensors.contains_key(&new) {
            (new, format!("{name}.parametrizations.weight.original1"))
        } else {
            (format!("{name}.weight_g"), format!("{name}.weight_v"))
        };
        let direction = source.take(&direction, shape)?;
        let length = source.take(&length, &[shape[0], 1, 1])?;
        Parts::WeightNorm(Box::new(WeightNorm { length, direction }))
    };
    tensors.push(Planned { name: weight, shape: shape.to_vec(), parts });
    plain(source, &format!("{name}.bias"), &[bias], tensors)
}
