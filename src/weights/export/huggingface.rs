//! A directory for `transformers`: what its `save_pretrained` writes for a GIT model, and the image processor. The output
//! matrix is not in it: `tie_word_embeddings` says that it is the word embedding.

use serde_json::{Value, json};

use super::ExportOptions;
use crate::config::{Filter, ImageConfig, ModelConfig, Resize};
use crate::files::write_atomically;
use crate::tensor::HostTensor;
use crate::units::{BOS, EOS, PAD};
use crate::weights::directory::CONFIG;
use crate::weights::safetensors::{Entry, Writer};
use crate::weights::staged::{Kind, StagedDirectory};
use crate::{Error, Result};

/// Most tokens of a caption, as the reference and im2sp have it.
const MAX_LENGTH: usize = 512;
const WEIGHTS: &str = "model.safetensors";
const GENERATION: &str = "generation_config.json";
const PROCESSOR: &str = "preprocessor_config.json";
const KIND: Kind = Kind { name: "a Hugging Face model", files: &[CONFIG, GENERATION, PROCESSOR, WEIGHTS] };

/// Writes the directory, whole or not at all.
pub(super) fn write(
    options: &ExportOptions,
    config: &ModelConfig,
    mut tensors: Vec<(String, HostTensor)>,
    written: &mut dyn FnMut(u64),
) -> Result<()> {
    let staged = StagedDirectory::create_kind(&options.output, options.force, KIND)?;
    tensors.sort_by_key(|(_, tensor)| std::cmp::Reverse(tensor.dtype().size()));
    let entry = |(name, tensor): &(String, HostTensor)| Entry {
        name: name.clone(),
        shape: tensor.shape().to_vec(),
        dtype: tensor.dtype(),
    };
    let mut writer = Writer::create(&staged.path().join(WEIGHTS), tensors.iter().map(entry).collect())?;
    for (name, tensor) in &tensors {
        writer.write(name, tensor)?;
        written(tensor.bytes().len() as u64);
    }
    writer.finish()?;
    let jsons = [(PROCESSOR, processor(&config.image)), (GENERATION, generation(config)), (CONFIG, git(config))];
    for (name, value) in jsons {
        let path = staged.path().join(name);
        let text =
            serde_json::to_string_pretty(&value).map_err(|error| Error::weights(&path, name, error.to_string()))?;
        write_atomically(&path, format!("{text}\n").as_bytes())?;
    }
    staged.publish()
}

/// The value of the shortest decimal that is `value`: as people wrote it.
fn decimal(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

/// `config.json`. Weights that are stored in bf16 are computed with in f32, as the norms are f32: no value is rounded.
fn git(config: &ModelConfig) -> Value {
    let (vision, decoder) = (&config.vision, &config.decoder);
    json!({
        "architectures": ["GitForCausalLM"],
        "model_type": "git",
        "dtype": "float32",
        "vision_config": {
            "model_type": "git_vision_model",
            "hidden_size": vision.width,
            "intermediate_size": vision.mlp,
            "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.heads,
            "num_channels": 3,
            "image_size": config.image.size,
            "patch_size": vision.patch,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": decimal(vision.eps),
            "attention_dropout": 0.0,
        },
        "vocab_size": decoder.vocabulary,
        "hidden_size": decoder.width,
        "num_hidden_layers": decoder.layers,
        "num_attention_heads": decoder.heads,
        "intermediate_size": decoder.mlp,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "max_position_embeddings": decoder.max_positions,
        "layer_norm_eps": decimal(decoder.eps),
        "tie_word_embeddings": true,
        "use_cache": true,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    })
}

/// `generation_config.json`, with the length of im2sp's captions.
fn generation(config: &ModelConfig) -> Value {
    json!({
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "max_length": MAX_LENGTH.min(config.decoder.max_positions),
    })
}

/// `preprocessor_config.json`.
fn processor(image: &ImageConfig) -> Value {
    let (side, size) = (image.resized(), image.size);
    json!({
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": true,
        "do_resize": true,
        "size": match image.resize {
            Resize::ShortSide => json!({ "shortest_edge": side }),
            Resize::Square => json!({ "height": side, "width": side }),
        },
        "resample": resample(image.filter),
        "do_center_crop": true,
        "crop_size": { "height": size, "width": size },
        "do_rescale": true,
        "rescale_factor": image.scale,
        "do_normalize": true,
        "image_mean": image.mean.map(decimal),
        "image_std": image.std.map(decimal),
    })
}

/// Pillow's number of a filter.
fn resample(filter: Filter) -> u32 {
    match filter {
        Filter::Nearest => 0,
        Filter::Lanczos => 1,
        Filter::Bilinear => 2,
        Filter::Bicubic => 3,
        Filter::Box => 4,
        Filter::Hamming => 5,
    }
}
