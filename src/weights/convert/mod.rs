//! `im2sp convert`: published checkpoints to a model directory. The names and shapes of everything that will be written
//! are planned first; then the tensors stream through one at a time, so the memory needed is that of the largest one.
//!
//! Sources: the reference's `.ckpt`, a Hugging Face GIT directory or one safetensors file of it, a fairseq code HiFi-GAN, a
//! model directory.

mod captioner;
mod efficient_net;
mod huggingface;
mod initial;
mod model;
mod processor;
mod select;
mod speech;
mod tokenizer;
mod unit_tower;
mod vocoder;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::directory::{CAPTIONER, StagedDirectory, TOKENIZER, TOKENIZER_ALONE, VOCODER};
use super::json::Json;
use super::names::HEAD;
use super::safetensors::{Entry, Writer};
use super::store::{list_names, scale_name};
use super::stored::StoredTensor;
use super::torch::StateDict;
use crate::config::{FORMAT, ModelConfig, TokenizerConfig};
use crate::tensor::{DType, HostTensor};
use crate::{Error, Result};

use captioner::CaptionerPlan;
pub use initial::{InitialCaptioner, initial_captioner, random_captioner};
pub use processor::image_config;
pub use speech::{SpeechReport, convert_speech, is_speech};
use tokenizer::TokenizerPlan;
pub use tokenizer::fingerprint;
pub use vocoder::vocoder_config;

/// Sources and target of a conversion.
#[derive(Clone, Debug)]
pub struct ConvertOptions {
    /// The captioner: a PyTorch checkpoint, a safetensors file, a Hugging Face directory, or a model directory, whose
    /// vocoder comes along.
    pub source: PathBuf,
    /// The vocoder's checkpoint; none makes a model that gives units but no sound.
    pub vocoder: Option<PathBuf>,
    /// The vocoder's dimensions; by default `config.json` in its checkpoint's folder.
    pub vocoder_config: Option<PathBuf>,
    /// The checkpoint of the image tokenizer, for a captioner that sees image units; without one it captions stored units only.
    pub tokenizer: Option<PathBuf>,
    /// The codebook of the image units.
    pub codebook: Option<PathBuf>,
    /// A Hugging Face image processor; by default `processor_config.json` or `preprocessor_config.json` of a source
    /// directory, otherwise CLIP's.
    pub preprocessor: Option<PathBuf>,
    /// Element type of everything but the norms, f32 or bf16. Those stay f32.
    pub dtype: DType,
    /// Type of eight bits, e4m3 or int8, in which the matrices of the decoder are stored, with a scale for each row.
    pub quantize: Option<DType>,
    /// The model directory to make.
    pub output: PathBuf,
    /// Goes into the configuration: the only kind of images this model knows.
    pub domain: Option<String>,
    /// Goes into the configuration: where the weights come from.
    pub description: Option<String>,
    /// Whether a model at `output` is replaced.
    pub force: bool,
}

/// Result of a conversion.
#[derive(Clone, Debug)]
pub struct ConvertReport {
    /// The configuration that was written.
    pub config: ModelConfig,
    /// Tensors written.
    pub tensors: usize,
    /// Their elements.
    pub parameters: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Names in the sources that are not part of the model: a criterion, buffers of metrics, a copy of the model.
    pub left_aside: Vec<String>,
}

/// Converts a captioner, and a vocoder if there is one, to a model directory. `progress` is called with the bytes
/// written and to be written. Fails, and leaves nothing behind, when a tensor is missing, unknown, misshapen or not
/// finite, or when the model is none that im2sp can run.
pub fn convert(options: &ConvertOptions, progress: &mut dyn FnMut(u64, u64)) -> Result<ConvertReport> {
    if !matches!(options.dtype, DType::F32 | DType::BF16) {
        let problem = format!("{:?} is not written; choose f32 or bf16", options.dtype);
        return Err(Error::Option { option: "dtype", problem });
    }
    if let Some(dtype) = options.quantize.filter(|dtype| !dtype.is_coded()) {
        let problem = format!("{dtype:?} has no eight bits; choose e4m3 or int8");
        return Err(Error::Option { option: "quantize", problem });
    }
    let Planning { config, captioner, vocoder, tokenizer, left_aside, .. } = plan(options)?;
    config.check().map_err(|(field, problem)| Error::weights(&options.source, field, problem))?;
    if let (Some(path), Some(vocoder)) = (&options.vocoder, &config.vocoder) {
        let units = config.decoder.vocabulary - 3;
        if vocoder.num_embeddings < units {
            let problem = format!("speaks {} units, but the captioner says {units}", vocoder.num_embeddings);
            return Err(Error::weights(path, "num_embeddings", problem));
        }
    }
    let mut files = vec![(CAPTIONER, options.source.as_path(), captioner)];
    if let Some(vocoder) = vocoder {
        files.push((VOCODER, options.vocoder.as_ref().unwrap_or(&options.source), vocoder));
    }
    let tokenizer_config = tokenizer.map(|(config, tensors)| {
        files.push((TOKENIZER, options.tokenizer.as_ref().unwrap_or(&options.source), tensors));
        config
    });
    let staged = StagedDirectory::create(&options.output, options.force)?;
    let Counts { tensors, parameters, bytes } = write(options, &staged, files, progress)?;
    if let Some(config) = &tokenizer_config {
        staged.write_tokenizer(config)?;
    }
    staged.commit(&config)?;
    Ok(ConvertReport { config, tensors, parameters, bytes, left_aside })
}

/// Result of the conversion of a tokenizer alone.
#[derive(Clone, Debug)]
pub struct ConvertTokenizerReport {
    /// The configuration that was written.
    pub config: TokenizerConfig,
    /// Tensors written.
    pub tensors: usize,
    /// Their elements.
    pub parameters: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Names in the sources that are not part of the tokenizer.
    pub left_aside: Vec<String>,
}

/// Converts the tokenizer at `options.source` and `options.codebook` to a directory of its own, which `im2sp tokenize` takes.
/// Fails as [`convert`] does.
pub fn convert_tokenizer(
    options: &ConvertOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<ConvertTokenizerReport> {
    let codebook = options.codebook.as_deref().ok_or_else(no_codebook)?;
    let TokenizerPlan { config, tensors, left_aside } = tokenizer::plan(&options.source, codebook)?;
    config.check().map_err(|(field, problem)| Error::weights(&options.source, field, problem))?;
    let staged = StagedDirectory::create_kind(&options.output, options.force, TOKENIZER_ALONE)?;
    let files = vec![(TOKENIZER, options.source.as_path(), tensors)];
    let Counts { tensors, parameters, bytes } = write(options, &staged, files, progress)?;
    staged.write_tokenizer(&config)?;
    staged.publish()?;
    Ok(ConvertTokenizerReport { config, tensors, parameters, bytes, left_aside })
}

fn no_codebook() -> Error {
    Error::Option {
        option: "codebook",
        problem: "is needed for image units: give im2sp convert the checkpoint of their codebook".into(),
    }
}

/// Number of tensors written, of their elements and of their bytes.
#[derive(Default)]
struct Counts {
    tensors: usize,
    parameters: u64,
    bytes: u64,
}

/// Everything that will be written.
struct Planning {
    config: ModelConfig,
    captioner: Vec<Planned>,
    /// Whether the tensors of the head are missing among these, as they were for another vocabulary.
    fresh_head: bool,
    vocoder: Option<Vec<Planned>>,
    tokenizer: Option<(TokenizerConfig, Vec<Planned>)>,
    left_aside: Vec<String>,
}

/// Reads everything but the data. A model directory keeps what no option replaces.
fn plan(options: &ConvertOptions) -> Result<Planning> {
    let mut planned =
        plan_captioner(&options.source, [options.preprocessor.as_deref(), options.codebook.as_deref()], None)?;
    if options.preprocessor.is_some() && planned.config.vision.units.is_some() {
        let problem = "is for captioners that see pixels: the tokenizer of this one says how images are resized";
        return Err(Error::Option { option: "preprocessor", problem: problem.into() });
    }
    if let Some(path) = &options.vocoder {
        let vocoder = vocoder::plan(path, options.vocoder_config.as_deref())?;
        planned.config.vocoder = Some(vocoder.config);
        planned.vocoder = Some(vocoder.tensors);
        planned.left_aside.extend(vocoder.left_aside);
    }
    if let Some(path) = &options.tokenizer {
        let tokenizer = tokenizer::plan(path, options.codebook.as_deref().ok_or_else(no_codebook)?)?;
        let Some(units) = &mut planned.config.vision.units else {
            let problem = "this captioner sees pixels: an image tokenizer belongs to one that sees image units";
            return Err(Error::Option { option: "tokenizer", problem: problem.into() });
        };
        units.grid = tokenizer.config.grid();
        planned.config.image = tokenizer.config.image.clone();
        planned.left_aside.extend(tokenizer.left_aside);
        planned.tokenizer = Some((tokenizer.config, tokenizer.tensors));
    }
    let config = &mut planned.config;
    config.description = options.description.clone().or(config.description.take());
    config.domain = options.domain.clone().or(config.domain.take());
    Ok(planned)
}

/// The captioner at `source`, a model directory with its vocoder and its tokenizer. Given a number of `units`, a head for
/// another vocabulary is left aside and not planned.
fn plan_captioner(
    source: &Path,
    [preprocessor, codebook]: [Option<&Path>; 2],
    units: Option<usize>,
) -> Result<Planning> {
    if model::is_model(source) {
        let mut planned = model::plan(source)?;
        if let Some(path) = preprocessor {
            planned.config.image = image_config(&Json::read(path)?, planned.config.image.size)?;
        }
        let decoder = &mut planned.config.decoder;
        if let Some(vocabulary) = units.map(vocabulary_of).filter(|&vocabulary| decoder.vocabulary != vocabulary) {
            decoder.vocabulary = vocabulary;
            planned.fresh_head = true;
            let head = planned.captioner.extract_if(.., |tensor| HEAD.contains(&tensor.name.as_str()));
            planned.left_aside = head.map(|tensor| tensor.name).collect();
        }
        return Ok(planned);
    }
    let captioner = captioner::plan(source, preprocessor, codebook, units)?;
    let config = ModelConfig {
        format: FORMAT.into(),
        description: None,
        domain: None,
        image: captioner.image,
        vision: captioner.vision,
        decoder: captioner.decoder,
        vocoder: None,
    };
    let CaptionerPlan { tensors, fresh_head, left_aside, .. } = captioner;
    Ok(Planning { config, captioner: tensors, fresh_head, vocoder: None, tokenizer: None, left_aside })
}

/// Tokens of a model that says `units` units.
fn vocabulary_of(units: usize) -> usize {
    units.saturating_add(3)
}

/// Streams the planned tensors of each file, by its name and its source, into a staged directory and counts them.
fn write(
    options: &ConvertOptions,
    staged: &StagedDirectory,
    files: Vec<(&str, &Path, Vec<Planned>)>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Counts> {
    let mut counts = Counts::default();
    let planned = files.iter().flat_map(|(_, _, tensors)| tensors);
    let sizes = planned.flat_map(|planned| planned.entries(options)).map(|entry| entry.size().unwrap_or(0) as u64);
    let total = sizes.sum();
    progress(0, total);
    for (name, source, mut tensors) in files {
        tensors.sort_by_key(|planned| std::cmp::Reverse(planned.dtype(options).size()));
        let entries = tensors.iter().flat_map(|planned| planned.entries(options)).collect();
        let mut writer = Writer::create(&staged.path().join(name), entries)?;
        for planned in tensors {
            let tensor = planned.load(source)?;
            counts.tensors += 1;
            counts.parameters += tensor.len() as u64;
            for (entry, tensor) in planned.entries(options).iter().zip(planned.stored(options, &tensor, source)?) {
                writer.write(&entry.name, &tensor)?;
                counts.bytes += tensor.bytes().len() as u64;
            }
            progress(counts.bytes, total);
        }
        writer.finish()?;
    }
    Ok(counts)
}

/// One tensor to be written, and what it is made of.
struct Planned {
    name: String,
    shape: Vec<usize>,
    parts: Parts,
}

/// Recipe of a written tensor. Each stored one carries its name in the source for errors.
enum Parts {
    /// One or more, joined along the first dimension.
    Joined(Vec<(String, StoredTensor)>),
    /// A direction scaled to given lengths.
    WeightNorm(Box<WeightNorm>),
    /// The weight of a convolution over maps, or its bias, with the batch norm after it.
    BatchNorm(Box<BatchNorm>),
    /// A convolution (N, C, taps) as the windows of frames see it, (N, taps * C).
    Taps(Box<Taps>),
    /// A bias that the source does not have.
    Zeros,
}

/// `direction`, of the result's shape, with each slice of the first dimension scaled to the length `length` gives.
struct WeightNorm {
    length: (String, StoredTensor),
    direction: (String, StoredTensor),
}

/// A tensor of a convolution whose results are `(x - mean) / sqrt(variance + eps) * scale + bias` in training.
struct BatchNorm {
    scale: (String, StoredTensor),
    variance: (String, StoredTensor),
    of: Folded,
}

/// The tensor that a batch norm is folded into.
enum Folded {
    Weight((String, StoredTensor)),
    Bias { bias: (String, StoredTensor), mean: (String, StoredTensor) },
}

/// The weight of a convolution over frames; with a length for each tap, to which the weights of that tap are scaled together.
struct Taps {
    length: Option<(String, StoredTensor)>,
    weight: (String, StoredTensor),
}

impl Planned {
    /// The norms, codes whose neighbours are near, and all of an EfficientNet that is no matrix product are few and precious:
    /// they stay f32.
    fn dtype(&self, options: &ConvertOptions) -> DType {
        let of_net = ["vision.stem.", "vision.blocks.", "vision.head."].iter().any(|part| self.name.starts_with(part));
        let filter = self.name.starts_with("vision.stem.") || self.name.contains(".depthwise.");
        let filter = of_net && (filter || self.shape.len() == 1);
        let norm = filter || self.name.contains("norm") || self.name.contains(".ln") || self.name.ends_with("codebook");
        // What a decode step multiplies, but for the few bytes of the output: its speed is that of these.
        let decoded = self.name.starts_with("decoder.layers.");
        match options.quantize {
            _ if norm => DType::F32,
            Some(coded) if decoded && self.shape.len() == 2 => coded,
            _ => options.dtype,
        }
    }

    /// Entries of the file: the tensor, and before an eight-bit one its scales, which are wider.
    fn entries(&self, options: &ConvertOptions) -> Vec<Entry> {
        let dtype = self.dtype(options);
        let entry = Entry { name: self.name.clone(), shape: self.shape.clone(), dtype };
        if !dtype.is_coded() {
            return vec![entry];
        }
        vec![Entry { name: scale_name(&self.name), shape: vec![self.shape[0]], dtype: DType::F32 }, entry]
    }

    /// The tensors of `entries`.
    fn stored(&self, options: &ConvertOptions, tensor: &HostTensor, source: &Path) -> Result<Vec<HostTensor>> {
        let dtype = self.dtype(options);
        if !dtype.is_coded() {
            return Ok(vec![tensor.to_dtype(dtype)]);
        }
        let quantize = if dtype == DType::I8 { crate::tensor::int8::quantize } else { crate::tensor::fp8::quantize };
        let (codes, scales) = quantize(tensor).ok_or_else(|| {
            Error::weights(source, self.name.as_str(), "is no matrix and cannot be stored in eight bits")
        })?;
        Ok(vec![scales, codes])
    }

    /// The values; `source` only names the file in errors.
    fn load(&self, source: &Path) -> Result<HostTensor> {
        let tensor = match &self.parts {
            Parts::Joined(parts) if parts.len() == 1 => load_finite(source, &parts[0])?.reshape(&self.shape),
            Parts::Joined(parts) => {
                let mut values = Vec::new();
                for part in parts {
                    values.extend_from_slice(&load_finite(source, part)?.to_f32());
                }
                HostTensor::from_f32(&self.shape, values)
            }
            Parts::Zeros => HostTensor::from_f32(&self.shape, vec![0.0; self.shape.iter().product()]),
            Parts::WeightNorm(norm) => {
                let WeightNorm { length, direction } = &**norm;
                let lengths = load_finite(source, length)?;
                let directions = load_finite(source, direction)?;
                let values = fold_weight_norm(&lengths.to_f32(), &directions.to_f32())
                    .ok_or_else(|| Error::weights(source, direction.0.as_str(), "has a slice without any length"))?;
                HostTensor::from_f32(&self.shape, values)
            }
            Parts::BatchNorm(norm) => HostTensor::from_f32(&self.shape, fold_batch_norm(source, norm)?),
            Parts::Taps(taps) => {
                let Taps { length, weight } = &**taps;
                let lengths = length.as_ref().map(|length| load_finite(source, length)).transpose()?;
                let taps = weight.1.shape().last().copied().unwrap_or(0);
                let inputs = weight.1.shape().get(1).copied().unwrap_or(0);
                let scales = lengths.map(|lengths| lengths.to_f32().into_owned());
                let values = by_taps(&load_finite(source, weight)?.to_f32(), [inputs, taps], scales.as_deref())
                    .ok_or_else(|| Error::weights(source, weight.0.as_str(), "has a tap without any length"))?;
                HostTensor::from_f32(&self.shape, values)
            }
        };
        tensor.ok_or_else(|| Error::weights(source, self.name.as_str(), "its parts do not make up its shape"))
    }
}

/// Loads a tensor and refuses NaN and infinity. Floats of eight bits are numbers like others; integers of eight bits
/// have a scale somewhere.
fn load_finite(source: &Path, (name, stored): &(String, StoredTensor)) -> Result<HostTensor> {
    let tensor = stored.load().map_err(|problem| Error::weights(source, name.as_str(), problem))?;
    if tensor.dtype() == DType::I8 {
        Err(Error::weights(source, name.as_str(), "is quantized: convert the checkpoint it was made from"))
    } else if tensor.to_f32().iter().all(|value| value.is_finite()) {
        Ok(tensor)
    } else {
        Err(Error::weights(source, name.as_str(), "holds NaN or infinity: the checkpoint is damaged"))
    }
}

/// W = g v / |v|, with one g and one norm per slice of the first dimension. `None` when a norm is zero or the result
/// is not finite. The norm is accumulated in f64.
fn fold_weight_norm(lengths: &[f32], directions: &[f32]) -> Option<Vec<f32>> {
    let slice = directions.len().checked_div(lengths.len())?;
    let mut values = Vec::with_capacity(directions.len());
    for (direction, &length) in directions.chunks_exact(slice.max(1)).zip(lengths) {
        let norm = direction.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
        let scale = f64::from(length) / norm;
        values.extend(direction.iter().map(|&v| (f64::from(v) * scale) as f32));
    }
    values.iter().all(|value| value.is_finite()).then_some(values)
}

/// Epsilon of the batch norms of EfficientNets.
const BATCH_NORM_EPS: f64 = 1e-3;

/// The weight times `scale / sqrt(variance + eps)`, or `bias - mean` times that. In f64.
fn fold_batch_norm(source: &Path, BatchNorm { scale, variance, of }: &BatchNorm) -> Result<Vec<f32>> {
    let wide = |part| Ok(load_finite(source, part)?.to_f32().iter().map(|&v| f64::from(v)).collect::<Vec<f64>>());
    let (scales, variances) = (wide(scale)?, wide(variance)?);
    if variances.iter().any(|&variance| variance + BATCH_NORM_EPS <= 0.0) {
        return Err(Error::weights(
            source,
            variance.0.as_str(),
            "holds a negative variance: the checkpoint is damaged",
        ));
    }
    let factors = scales.iter().zip(&variances).map(|(scale, variance)| scale / (variance + BATCH_NORM_EPS).sqrt());
    Ok(match of {
        Folded::Weight(weight) => {
            let weight = wide(weight)?;
            let row = weight.len() / scales.len().max(1);
            factors
                .zip(weight.chunks_exact(row.max(1)))
                .flat_map(|(f, row)| row.iter().map(move |v| (v * f) as f32))
                .collect()
        }
        Folded::Bias { bias, mean } => {
            let (biases, means) = (wide(bias)?, wide(mean)?);
            factors.zip(biases.iter().zip(means)).map(|(f, (bias, mean))| (bias - mean * f) as f32).collect()
        }
    })
}

/// Weights (N, C, taps) as (N, taps, C), each tap scaled to its length over all N and C if there are lengths. `None` where the
/// result is not finite. Norms are accumulated in f64.
fn by_taps(weight: &[f32], [inputs, taps]: [usize; 2], lengths: Option<&[f32]>) -> Option<Vec<f32>> {
    let mut scales = vec![1.0f64; taps];
    if let Some(lengths) = lengths {
        let mut squares = vec![0.0f64; taps];
        for line in weight.chunks_exact(taps.max(1)) {
            squares.iter_mut().zip(line).for_each(|(square, &v)| *square += f64::from(v) * f64::from(v));
        }
        scales = lengths.iter().zip(squares).map(|(&length, square)| f64::from(length) / square.sqrt()).collect();
    }
    let mut values = Vec::with_capacity(weight.len());
    for output in weight.chunks_exact((inputs * taps).max(1)) {
        for (tap, scale) in scales.iter().enumerate() {
            values.extend(output.iter().skip(tap).step_by(taps).map(|&v| (f64::from(v) * scale) as f32));
        }
    }
    values.iter().all(|value| value.is_finite()).then_some(values)
}

/// The tensors of a checkpoint by name, each to be used exactly once.
struct Source<'a> {
    path: &'a Path,
    tensors: BTreeMap<String, StoredTensor>,
}

impl<'a> Source<'a> {
    fn new(path: &'a Path, tensors: StateDict) -> Result<Source<'a>> {
        let mut source = Source { path, tensors: BTreeMap::new() };
        for (name, tensor) in tensors {
            if source.tensors.insert(name.clone(), tensor).is_some() {
                return Err(Error::weights(path, name, "occurs twice"));
            }
        }
        Ok(source)
    }

    /// The shape of a tensor that is needed to infer dimensions.
    fn shape<const N: usize>(&self, name: &str) -> Result<[usize; N]> {
        let tensor = self.tensors.get(name).ok_or_else(|| Error::weights(self.path, name, "is missing"))?;
        tensor.shape().try_into().map_err(|_| {
            let problem = format!("has shape {:?}, expected {N} dimensions", tensor.shape());
            Error::weights(self.path, name, problem)
        })
    }

    /// Removes the tensors with these names, and returns them.
    fn remove(&mut self, which: impl Fn(&str) -> bool) -> Vec<String> {
        let names: Vec<String> = self.tensors.keys().filter(|name| which(name)).cloned().collect();
        names.iter().for_each(|name| drop(self.tensors.remove(name)));
        names
    }

    /// Number of consecutive N, from 0, that make `{before}N{after}` a tensor.
    fn count(&self, before: &str, after: &str) -> usize {
        (0..).take_while(|n| self.tensors.contains_key(&format!("{before}{n}{after}"))).count()
    }

    fn take(&mut self, name: &str, shape: &[usize]) -> Result<(String, StoredTensor)> {
        let problem = match self.tensors.remove(name) {
            Some(tensor) if tensor.shape() == shape => return Ok((name.to_string(), tensor)),
            Some(tensor) => format!("has shape {:?}, expected {shape:?}", tensor.shape()),
            None => format!("is missing; expected a tensor of shape {shape:?}"),
        };
        Err(Error::weights(self.path, name, problem))
    }

    /// A tensor that will be taken later.
    fn peek(&self, name: &str, shape: &[usize]) -> Result<StoredTensor> {
        let tensor = self.tensors.get(name).filter(|tensor| tensor.shape() == shape).cloned();
        tensor
            .ok_or_else(|| Error::weights(self.path, name, format!("is missing, or has another shape than {shape:?}")))
    }

    /// Plans a tensor that is stored as it is written, but for its shape.
    fn plan(&mut self, from: &str, to: &str, stored: &[usize], written: &[usize]) -> Result<Planned> {
        let part = self.take(from, stored)?;
        Ok(Planned { name: to.into(), shape: written.to_vec(), parts: Parts::Joined(vec![part]) })
    }

    /// Fails when tensors are left over.
    fn finish(self) -> Result<()> {
        match list_names(self.tensors.keys()) {
            None => Ok(()),
            Some(names) => Err(Error::weights(self.path, names, "not part of any model im2sp knows")),
        }
    }
}
