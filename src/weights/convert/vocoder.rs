//! The vocoder: fairseq's code HiFi-GAN, a checkpoint `{"generator": …}` and a `config.json`. Its weight norm is folded
//! into plain convolutions; names stay otherwise as they are. Configurations with an external speaker vector or an f0
//! that is not quantised are refused.

use std::path::Path;

use super::select::{self, Family};
use super::{Parts, Planned, Source, WeightNorm};
use crate::config::{DurationConfig, VocoderConfig};
use crate::weights::json::Json;
use crate::{Error, Result};

/// Names of a generator. Its checkpoint is read strictly: a module this reader does not know changes the sound.
const FAMILY: Family = Family { name: "vocoder", marker: &["conv_pre"], parts: &[], key: "generator" };

/// Everything known about a vocoder before its data is read.
pub(super) struct VocoderPlan {
    pub config: VocoderConfig,
    pub tensors: Vec<Planned>,
    /// Names in the checkpoint that are not part of the generator.
    pub left_aside: Vec<String>,
}

/// Opens a vocoder and plans the tensors of `vocoder.safetensors`.
pub(super) fn plan(path: &Path, config: Option<&Path>) -> Result<VocoderPlan> {
    let about = std::fs::metadata(path).map_err(Error::io("read", path))?;
    if about.is_dir() {
        let problem = "is a folder: give the vocoder's checkpoint in it (such as g_00950000)";
        return Err(Error::weights(path, "vocoder", problem));
    }
    let opened = select::open(path)?;
    let beside = path.with_file_name("config.json");
    if config.is_none() && !beside.exists() {
        let problem = "is not there: give the vocoder's dimensions with --vocoder-config";
        return Err(Error::weights(&beside, "file", problem));
    }
    let config = vocoder_config(&Json::read(config.unwrap_or(&beside))?)?;
    let selected = FAMILY.select(path, opened)?;
    let mut source = Source::new(path, selected.tensors)?;
    let mut tensors = Vec::new();
    plan_tables(&mut source, &config, &mut tensors)?;
    plan_generator(&mut source, &config, &mut tensors)?;
    if let Some(duration) = &config.duration {
        plan_duration(&mut source, duration, config.embedding_dim, &mut tensors)?;
    }
    source.finish()?;
    Ok(VocoderPlan { config, tensors, left_aside: selected.left_aside })
}

/// Reads a published configuration: of its fields those that matter when speaking; those for training are ignored.
pub fn vocoder_config(json: &Json) -> Result<VocoderConfig> {
    if json.is_truthy("embedder_params") {
        return Err(json.wrong("embedder_params", "a vocoder that takes a speaker vector is not supported"));
    }
    let f0 = json.is_truthy("f0");
    let f0_bins: Option<usize> = json.get::<Option<usize>>("f0_quant_num_bin")?.flatten();
    if f0 && f0_bins.unwrap_or(0) == 0 {
        return Err(json.wrong("f0_quant_num_bin", "a vocoder whose f0 is not quantised is not supported"));
    }
    if let Some(resblock) = json.value("resblock").filter(|&resblock| resblock != "1" && resblock != 1) {
        return Err(json.wrong("resblock", format!("is {resblock}; only blocks of kind \"1\" are supported")));
    }
    let embedding_dim = json.need("embedding_dim")?;
    let speakers = json.get::<Option<usize>>("num_speakers")?.flatten().unwrap_or(200);
    let config = VocoderConfig {
        sampling_rate: json.get("sampling_rate")?.unwrap_or(16_000),
        upsample_rates: json.need("upsample_rates")?,
        upsample_kernel_sizes: json.need("upsample_kernel_sizes")?,
        upsample_initial_channel: json.need("upsample_initial_channel")?,
        resblock_kernel_sizes: json.need("resblock_kernel_sizes")?,
        resblock_dilation_sizes: json.need("resblock_dilation_sizes")?,
        num_embeddings: json.need("num_embeddings")?,
        embedding_dim,
        model_in_dim: json.get("model_in_dim")?.unwrap_or(80),
        duration: duration_config(json, embedding_dim)?,
        num_speakers: json.is_truthy("multispkr").then_some(speakers),
        f0_bins: f0_bins.filter(|_| f0),
    };
    config.check().map_err(|(field, problem)| json.wrong(&field, problem))?;
    let hop = json.get::<Option<usize>>("code_hop_size")?.flatten();
    if hop.is_some_and(|hop| hop != config.hop()) {
        let problem = format!("is not the product of upsample_rates, {}", config.hop());
        return Err(json.wrong("code_hop_size", problem));
    }
    Ok(config)
}

/// The duration predictor; there is one if its parameters are anything but nothing.
fn duration_config(json: &Json, embedding_dim: usize) -> Result<Option<DurationConfig>> {
    if !json.is_truthy("dur_predictor_params") {
        return Ok(None);
    }
    let duration = json.object("dur_predictor_params")?;
    let width: usize = duration.need("encoder_embed_dim")?;
    if width != embedding_dim {
        return Err(duration.wrong("encoder_embed_dim", format!("is {width}, but units have {embedding_dim}")));
    }
    Ok(Some(DurationConfig {
        hidden: duration.need("var_pred_hidden_dim")?,
        kernel: duration.need("var_pred_kernel_size")?,
    }))
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
