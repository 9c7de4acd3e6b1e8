//! Weights that a training run starts from: those of a model for speech units, those of a GIT model for text with a new
//! head, or random ones. All of it is f32; a vocoder is not part of it.

use std::collections::BTreeMap;
use std::f64::consts::PI;
use std::path::Path;

use super::{Planning, plan_captioner, vocabulary_of};
use crate::config::ModelConfig;
use crate::random::Philox;
use crate::tensor::{DType, HostTensor};
use crate::weights::directory::{parse_config, read_small};
use crate::weights::names::{self, HEAD, Mapped};
use crate::{Error, Result};

/// Standard deviation of random embeddings.
const EMBEDDING: f32 = 0.02;
/// Size of the waves in random positions of patches.
const WAVES: f64 = 1.5;

/// A captioner to be trained.
#[derive(Clone, Debug)]
pub struct InitialCaptioner {
    /// Its dimensions, without a vocoder.
    pub config: ModelConfig,
    /// All its tensors by their names in a model directory, f32.
    pub tensors: BTreeMap<String, HostTensor>,
    /// Names of those that are random.
    pub fresh: Vec<String>,
    /// Names in the source that are not part of the model: the head for words, embeddings of video frames, ...
    pub left_aside: Vec<String>,
}

/// The captioner at `path`, for `units` speech units:
///
/// - a model directory, or a checkpoint as [`super::convert`] takes them. The head (word embedding, output) of a model with
///   another vocabulary, such as GIT's for text, is left aside, and a fresh one has PyTorch's default initialisation of a
///   linear layer, uniform in ±1/sqrt(C);
/// - a `.json` file, the `config.json` of a model directory: random weights, see [`random_captioner`].
///
/// Random numbers depend on `seed` alone.
pub fn initial_captioner(path: &Path, units: usize, seed: u64) -> Result<InitialCaptioner> {
    let wrong = |(field, problem): (String, String)| Error::weights(path, field, problem);
    if path.extension().is_some_and(|extension| extension == "json") {
        let mut config = parse_config(path, &read_small(path)?)?;
        let (vocabulary, wanted) = (config.decoder.vocabulary, vocabulary_of(units));
        if vocabulary != wanted {
            let problem = format!("is {vocabulary}, but {units} units need {wanted}");
            return Err(Error::weights(path, "decoder.vocabulary", problem));
        }
        config.vocoder = None;
        let tensors = random_captioner(&config, seed)?;
        let fresh = tensors.keys().cloned().collect();
        return Ok(InitialCaptioner { config, tensors, fresh, left_aside: Vec::new() });
    }
    let Planning { mut config, captioner, fresh_head, left_aside, .. } = plan_captioner(path, [None; 2], Some(units))?;
    config.vocoder = None;
    config.check().map_err(wrong)?;
    let mut tensors = BTreeMap::new();
    for planned in captioner {
        let tensor = planned.load(path)?.to_dtype(DType::F32);
        tensors.insert(planned.name, tensor);
    }
    let mut fresh = Vec::new();
    if fresh_head {
        let bound = 1.0 / (config.decoder.width as f32).sqrt();
        let uniform = |_: &Mapped, philox: Philox, len| scaled(philox.values(len), bound);
        fresh = HEAD.map(str::to_string).to_vec();
        tensors.extend(draw(&config, seed, |mapped| HEAD.contains(&mapped.name.as_str()), uniform)?);
    }
    Ok(InitialCaptioner { config, tensors, fresh, left_aside })
}

/// Random weights for training from scratch. Matrices are normal with a deviation of 1/sqrt(inputs), embeddings with one of
/// 0.02, patches uniform in ±1/sqrt(inputs); norms begin as the identity and biases at 0. Positions of patches have waves
/// along rows and columns on top: without them objects are hardly compared.
pub fn random_captioner(config: &ModelConfig, seed: u64) -> Result<BTreeMap<String, HostTensor>> {
    draw(config, seed, |_| true, |mapped, philox, len| initial(config, mapped, philox, len))
}

/// The tensors of `config` that are `wanted`, with values by `values`, each from a stream of its own. Streams are counted
/// from the last one down: training itself counts up.
fn draw(
    config: &ModelConfig,
    seed: u64,
    wanted: impl Fn(&Mapped) -> bool,
    values: impl Fn(&Mapped, Philox, usize) -> Vec<f32>,
) -> Result<BTreeMap<String, HostTensor>> {
    let wrong = |problem: String| Error::shape("random weights", problem);
    config.check().map_err(|(field, problem)| wrong(format!("{field} {problem}")))?;
    let table = names::captioner(&config.vision, &config.decoder, config.image_tokens());
    let wanted = table.into_iter().zip(0u64..).filter(|(mapped, _)| wanted(mapped));
    let tensor = |(mapped, place): (Mapped, u64)| {
        let values = values(&mapped, Philox::new(seed, u64::MAX - place), mapped.shape.iter().product());
        let tensor = HostTensor::from_f32(&mapped.shape, values);
        Ok((mapped.name, tensor.ok_or_else(|| wrong("are too large".into()))?))
    };
    wanted.map(tensor).collect()
}

/// The `len` values of a tensor in a random captioner.
fn initial(config: &ModelConfig, Mapped { name, shape, .. }: &Mapped, philox: Philox, len: usize) -> Vec<f32> {
    let inputs: usize = shape[1..].iter().product();
    let deviation = 1.0 / (inputs as f32).sqrt();
    if name.ends_with("bias") {
        vec![0.0; len]
    } else if name.contains("norm") {
        vec![1.0; len]
    } else if name.ends_with("patch_embedding.weight") {
        scaled(philox.values(len), deviation)
    } else if name == "vision.position_embedding" {
        let mut positions = scaled(philox.normals(len), EMBEDDING);
        add_waves(&mut positions, config.vision.width, (config.image_tokens() - 1).isqrt());
        positions
    } else if name.ends_with("embedding") {
        scaled(philox.normals(len), EMBEDDING)
    } else {
        scaled(philox.normals(len), deviation)
    }
}

fn scaled(mut values: Vec<f32>, factor: f32) -> Vec<f32> {
    values.iter_mut().for_each(|value| *value *= factor);
    values
}

/// Adds sines and cosines of 1, 2, ... half turns to the positions (1 + side * side, width) of patches, the class token's left
/// out: along rows to the first quarter of the channels, along columns to the next.
fn add_waves(positions: &mut [f32], width: usize, side: usize) {
    let count = 2 * (width / 16);
    let wave = |at: usize, channel: usize| {
        let angle = at as f64 / side as f64 * PI * (channel / 2 + 1) as f64;
        (WAVES * if channel.is_multiple_of(2) { angle.sin() } else { angle.cos() }) as f32
    };
    for (patch, position) in positions[width..].chunks_exact_mut(width).enumerate() {
        for channel in 0..count {
            position[channel] += wave(patch / side, channel);
            position[count + channel] += wave(patch % side, channel);
        }
    }
}
