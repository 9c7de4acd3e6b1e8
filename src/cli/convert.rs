//! `im2sp convert`: checkpoints of the formats the field uses to a model directory.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use im2sp::tensor::DType;
use im2sp::weights::convert::{ConvertTokenizerReport, SpeechReport, convert_speech, is_speech};
use im2sp::weights::directory::CAPTIONER;
use im2sp::weights::store::list_names;
use im2sp::weights::{ConvertOptions, convert, convert_tokenizer};
use im2sp::{CalibrateReport, Error, Result, convert_calibrated};
use serde_json::json;

use super::print::note;
use super::progress::Bar;
use super::{print_json, print_line};

/// Make a model directory from published checkpoints
///
/// SRC is a captioner: the reference implementation's .ckpt, a .safetensors file, or a Hugging Face GIT directory
/// (config.json with model.safetensors or pytorch_model.bin) whose vocabulary was replaced by speech units. The vocoder is
/// a unit HiFi-GAN (CodeHiFiGAN) checkpoint. Both are found under the names that DataParallel, torch.compile and trainers
/// put before or around them; what is not part of the model is left aside. Reading a checkpoint executes nothing in it.
/// The captioner's image encoder is GIT's vision transformer, or an EfficientNet-lite under the names of the package
/// efficientnet-lite-pytorch.
/// SRC may also be a model directory, to be stored in another type; its vocoder comes along. Or it is a speech model for
/// `im2sp units` or `im2sp transcribe`: HuBERT or wav2vec 2.0, a .pt file of fairseq or a Hugging Face directory.
#[derive(Args)]
#[command(after_help = "\
Examples:
  im2sp convert Im2Sp.ckpt --vocoder g_00950000 --vocoder-config config.json -o models/git-large-coco
  im2sp convert Im2Sp.ckpt --vocoder g_00950000 --dtype bf16 -o models/git-large-coco-bf16
  im2sp convert Im2Sp.ckpt --vocoder g_00950000 --quantize int8 -o models/git-large-coco-int8
  im2sp convert models/git-large-coco --quantize fp8 --calibrate photos/ -o models/git-large-coco-fp8
  im2sp convert hubert_base_ls960.pt -o models/hubert
  im2sp convert Im2Sp_unit.ckpt --tokenizer tokenizer.ckpt --codebook codebook.ckpt --vocoder g_00950000 -o models/deit-token
  im2sp caption photo.jpg --weights models/git-large-coco -o speech.wav")]
pub struct Convert {
    /// The captioner: a checkpoint or safetensors file, a Hugging Face directory or a model directory; without one, the
    /// tokenizer alone is converted
    #[arg(value_name = "SRC", required_unless_present = "tokenizer")]
    source: Option<PathBuf>,
    /// The vocoder's checkpoint; without one the model gives units but no sound
    #[arg(long, value_name = "CKPT")]
    vocoder: Option<PathBuf>,
    /// The vocoder's dimensions [default: config.json next to its checkpoint]
    #[arg(long, value_name = "JSON", requires = "vocoder")]
    vocoder_config: Option<PathBuf>,
    /// The image tokenizer, for a captioner that sees image units: the pickled ViT-VQGAN encoder
    #[arg(long, value_name = "CKPT", requires = "codebook")]
    tokenizer: Option<PathBuf>,
    /// The codebook of the image units; with it and without a tokenizer the model captions stored units only
    #[arg(long, value_name = "CKPT")]
    codebook: Option<PathBuf>,
    /// How images become pixels: a preprocessor_config.json or processor_config.json [default: that of SRC,
    /// or CLIP's; with an EfficientNet, squares of 224 pixels]
    #[arg(long, value_name = "JSON")]
    preprocessor: Option<PathBuf>,
    /// Type of everything but the norms in the result: bf16 halves the size and nearly the time of a decode step
    #[arg(long, default_value = "f32", value_name = "TYPE")]
    dtype: Precision,
    /// Store the matrices that a decode step multiplies in eight bits (int8 for a CPU, e4m3 for a GPU; a scale for each row);
    /// each weight becomes the nearest unless --calibrate is given
    #[arg(long, value_name = "TYPE")]
    quantize: Option<Quantization>,
    /// Round fp8 weights together, for the images of this directory: as many as there are of the kind the model
    /// will see, hundreds at least. They are captioned on the CPU first
    #[arg(long, value_name = "DIR", requires = "quantize")]
    calibrate: Option<PathBuf>,
    /// The model directory to make
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Say that the model knows one kind of images only, and which
    #[arg(long, value_name = "TEXT")]
    domain: Option<String>,
    /// One line for people, kept in the result
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Replace a model that is there already
    #[arg(long)]
    force: bool,
    /// Print a JSON object on standard output
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Precision {
    F32,
    Bf16,
}

#[derive(Clone, Copy, ValueEnum)]
enum Quantization {
    Fp8,
    Int8,
}

impl Convert {
    /// Converts and says what was written.
    pub fn run(self) -> Result<ExitCode> {
        let alone = self.source.is_none();
        let source = self.source.or(self.tokenizer.clone()).unwrap_or_default();
        let options = ConvertOptions {
            source,
            vocoder: self.vocoder,
            vocoder_config: self.vocoder_config,
            tokenizer: self.tokenizer,
            codebook: self.codebook,
            preprocessor: self.preprocessor,
            dtype: match self.dtype {
                Precision::F32 => DType::F32,
                Precision::Bf16 => DType::BF16,
            },
            quantize: self.quantize.map(|quantization| match quantization {
                Quantization::Fp8 => DType::F8E4M3,
                Quantization::Int8 => DType::I8,
            }),
            output: self.output,
            domain: self.domain,
            description: self.description,
            force: self.force,
        };
        if alone {
            return tokenizer(&options, self.json);
        }
        if is_speech(&options.source) {
            return speech(&options, self.json);
        }
        check_codebook(&options)?;
        let mut bar = Bar::new();
        let (report, calibrated) = match &self.calibrate {
            Some(folder) => {
                let (report, calibrated) =
                    convert_calibrated(&options, folder, &mut |stage, done, total| bar.show(stage, done, total))?;
                (report, Some(calibrated))
            }
            None => (convert(&options, &mut |done, total| bar.show("convert", done >> 20, total >> 20))?, None),
        };
        drop(bar);
        if let Some(names) = list_names(report.left_aside.iter()) {
            note(format_args!("left aside, as not part of the model: {names}"));
        }
        for problem in calibrated.iter().flat_map(|report| &report.unreadable) {
            note(format_args!("left out of the calibration: {problem}"));
        }
        if self.json {
            print_json(&json!({
                "output": options.output.to_string_lossy(),
                "config": report.config,
                "tensors": report.tensors,
                "parameters": report.parameters,
                "bytes": report.bytes,
                "left_aside": report.left_aside,
                "calibration": calibrated.as_ref().map(json_of),
            }))?;
        } else {
            print_line(format_args!(
                "{}: {} tensors, {} parameters, {:.1} MB",
                options.output.display(),
                report.tensors,
                report.parameters,
                report.bytes as f64 / 1e6
            ))?;
            if let Some(calibrated) = &calibrated {
                say(calibrated)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// An error for a codebook that a model directory would not take: it has its own, which goes with its tokenizer.
fn check_codebook(options: &ConvertOptions) -> Result<()> {
    let is_model = options.source.join(CAPTIONER).is_file();
    let is_alone = options.codebook.is_some() && options.tokenizer.is_none();
    let problem = "counts with --tokenizer only: SRC is a model directory, which has its own";
    refuse(&[("codebook", is_model && is_alone)], problem)
}

/// The options that count for captioners alone, and whether they were given.
fn of_captioners(options: &ConvertOptions) -> [(&'static str, bool); 4] {
    [
        ("vocoder", options.vocoder.is_some()),
        ("preprocessor", options.preprocessor.is_some()),
        ("quantize", options.quantize.is_some()),
        ("domain", options.domain.is_some()),
    ]
}

/// An error for the first of `unused` that was given.
fn refuse(unused: &[(&'static str, bool)], problem: &str) -> Result<()> {
    match unused.iter().find(|(_, given)| *given) {
        Some(&(option, _)) => Err(Error::Option { option, problem: problem.into() }),
        None => Ok(()),
    }
}

/// Converts a speech model and says what was written.
fn speech(options: &ConvertOptions, json: bool) -> Result<ExitCode> {
    let more = [("tokenizer", options.tokenizer.is_some()), ("codebook", options.codebook.is_some())];
    refuse(&[&of_captioners(options)[..], &more].concat(), "is for captioners, but SRC is a speech model")?;
    let mut bar = Bar::new();
    let report = convert_speech(options, &mut |done, total| bar.show("convert", done >> 20, total >> 20))?;
    drop(bar);
    let SpeechReport { config, tensors, parameters, bytes, left_aside } = report;
    say_written(options, &json!(config), (tensors, parameters, bytes), &left_aside, json)
}

/// Converts a tokenizer without a captioner, and says what was written.
fn tokenizer(options: &ConvertOptions, json: bool) -> Result<ExitCode> {
    let more = [("description", options.description.is_some())];
    let problem = "is for captioners, but a tokenizer alone is converted: name the captioner as SRC";
    refuse(&[&of_captioners(options)[..], &more].concat(), problem)?;
    let report = convert_tokenizer(options, &mut |_, _| {})?;
    let ConvertTokenizerReport { config, tensors, parameters, bytes, left_aside } = report;
    say_written(options, &json!(config), (tensors, parameters, bytes), &left_aside, json)
}

/// The numbers of tensors, parameters and bytes of what was written.
fn say_written(
    options: &ConvertOptions,
    config: &serde_json::Value,
    (tensors, parameters, bytes): (usize, u64, u64),
    left_aside: &[String],
    json: bool,
) -> Result<ExitCode> {
    if let Some(names) = list_names(left_aside.iter()) {
        note(format_args!("left aside, as not part of the model: {names}"));
    }
    if json {
        print_json(&json!({
            "output": options.output.to_string_lossy(),
            "config": config,
            "tensors": tensors,
            "parameters": parameters,
            "bytes": bytes,
            "left_aside": left_aside,
        }))?;
    } else {
        let (output, size) = (options.output.display(), bytes as f64 / 1e6);
        print_line(format_args!("{output}: {tensors} tensors, {parameters} parameters, {size:.1} MB"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// How close the eight-bit model came to the unrounded one.
fn say(report: &CalibrateReport) -> Result<()> {
    print_line(format_args!(
        "calibrated: {} of {} images keep all their units; logits (rms {:.3}) are off by {:.4} rms, {:.3} at most",
        report.kept, report.images, report.logit_rms, report.logit_error_rms, report.logit_error_max
    ))?;
    report.matrices.iter().try_for_each(|matrix| {
        print_line(format_args!("  {:32} error {:.5}, nearest {:.5}", matrix.name, matrix.error, matrix.nearest))
    })
}

fn json_of(report: &CalibrateReport) -> serde_json::Value {
    let matrices = report.matrices.iter();
    json!({
        "images": report.images,
        "kept": report.kept,
        "unreadable": report.unreadable,
        "logit_rms": report.logit_rms,
        "logit_error_rms": report.logit_error_rms,
        "logit_error_max": report.logit_error_max,
        "matrices": matrices.map(|m| json!({"name": m.name, "error": m.error, "nearest": m.nearest})).collect::<Vec<_>>(),
    })
}
