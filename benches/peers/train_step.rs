//! The im2sp side of the comparison of training steps: times updates of a model of random weights without dropout, and prints
//! one JSON object: milliseconds of each update, the losses, and the process's peak of resident memory in bytes.
//!
//!     train_step scenes|decoder|frozen|full BATCH UNITS UPDATES [DEVICE f32|bf16]
//!
//! `scenes` has the dimensions of the tests' model of drawn scenes, trained from pixels. `decoder` is the published size on
//! features of the frozen encoder, `frozen` with the encoder, and `full` trains all of it. Without a device: the CPU, in f32.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use im2sp::backend::Train;
use im2sp::backend::cpu::Cpu;
use im2sp::config::ModelConfig;
use im2sp::random::Philox;
use im2sp::tensor::{DType, HostTensor};
use im2sp::train::config::TrainConfig;
use im2sp::train::model::{Freeze, TrainedCaptioner};
use im2sp::train::ranks::Ranks;
use im2sp::train::trainer::{Batch, ImageValues, Trainer};
use im2sp::units::{BOS, EOS, to_token};
use im2sp::weights::{TensorStore, directory, random};
use im2sp::{Error, Result};
use serde::Serialize;
use serde_json::json;

const USAGE: &str = "train_step scenes|decoder|frozen|full BATCH UNITS UPDATES [DEVICE f32|bf16]";
/// Updates that are not timed.
const WARM_UP: usize = 2;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let numbers: Vec<usize> = arguments.iter().skip(1).take(3).filter_map(|text| text.parse().ok()).collect();
    let (Some(model), &[batch, units, updates]) = (arguments.first(), &numbers[..]) else {
        eprintln!("usage: {USAGE}");
        return ExitCode::from(2);
    };
    let work = Work { model, batch, units, updates };
    let more = arguments.get(4..).unwrap_or_default();
    let report = match &more.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => work.measure(Cpu, None).map(|report| json!(report)),
        [device, dtype @ ("f32" | "bf16")] => {
            work.on_device(device, if *dtype == "f32" { DType::F32 } else { DType::BF16 })
        }
        _ => {
            eprintln!("usage: {USAGE}");
            return ExitCode::from(2);
        }
    };
    match report {
        Ok(report) => println!("{report}"),
        Err(error) => {
            eprintln!("train_step: error: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// A model's dimensions, what of it is frozen, and whether the frozen part's features are given.
fn model(name: &str) -> Result<(ModelConfig, Freeze, bool)> {
    let published = || ModelConfig { vocoder: None, ..random::published() };
    // Of an encoder that is not used, a layer is enough.
    let decoder_only = || {
        let mut config = published();
        config.vision.layers = 1;
        config
    };
    match name {
        "scenes" => Ok((ModelConfig { vocoder: None, ..scenes()? }, Freeze::None, false)),
        "decoder" => Ok((decoder_only(), Freeze::Vision, true)),
        "frozen" => Ok((published(), Freeze::Vision, false)),
        "full" => Ok((published(), Freeze::None, false)),
        _ => Err(Error::Option {
            option: "model",
            problem: format!("is {name}, expected scenes, decoder, frozen or full"),
        }),
    }
}

/// Dimensions of the small model that the tests caption drawn scenes with; part of the program, which may run without these
/// sources.
fn scenes() -> Result<ModelConfig> {
    directory::parse_config(Path::new("tests/scenes/config.json"), include_str!("../../tests/scenes/config.json"))
}

/// Updates to time.
#[derive(Clone, Copy)]
struct Work<'a> {
    model: &'a str,
    batch: usize,
    units: usize,
    updates: usize,
}

#[derive(Serialize)]
struct Report {
    ms: Vec<f64>,
    losses: Vec<f64>,
    peak_rss: Option<u64>,
}

impl Work<'_> {
    /// On a GPU; of the small model the CPU's losses are expected, to rounding in f32.
    #[cfg(any(feature = "cuda", feature = "emulator"))]
    fn on_device(self, device: &str, dtype: DType) -> Result<serde_json::Value> {
        use im2sp::backend::cuda::Cuda;
        let device: im2sp::Device = device.parse().map_err(|problem| Error::Option { option: "device", problem })?;
        let report = self.measure(Cuda::new(device.driver()?, dtype)?, Some(dtype))?;
        if self.model != "scenes" {
            return Ok(json!(report));
        }
        let expected = self.measure(Cpu, None)?;
        let pairs = report.losses.iter().zip(&expected.losses);
        let apart = pairs.map(|(own, cpu)| (own / cpu - 1.0).abs()).fold(0.0, f64::max);
        let allowed = if dtype == DType::F32 { 1e-3 } else { 0.05 };
        if report.losses.len() != expected.losses.len() || apart.is_nan() || apart > allowed {
            let problem = format!("losses {:?}, on the CPU {:?}", report.losses, expected.losses);
            return Err(Error::Training { problem });
        }
        let mut report = json!(report);
        report["apart"] = json!(apart);
        Ok(report)
    }

    #[cfg(not(any(feature = "cuda", feature = "emulator")))]
    fn on_device(self, device: &str, _: DType) -> Result<serde_json::Value> {
        Err(Error::Device { device: device.into(), problem: "built without kernels for GPUs".into() })
    }

    fn measure<B: Train>(self, backend: B, dtype: Option<DType>) -> Result<Report> {
        let Work { model: name, batch: size, units, updates } = self;
        let (config, freeze, features) = model(name)?;
        let mut tensors: BTreeMap<_, _> = {
            let random = random::files(config.clone(), DType::F32)?.captioner;
            random.iter().map(|(name, tensor)| (name.to_string(), tensor.clone())).collect()
        };
        // Such weights never end a caption; here they have to learn it.
        let zeros = HostTensor::from_f32(&[config.decoder.vocabulary], vec![0.0; config.decoder.vocabulary]);
        tensors.extend(zeros.map(|zeros| ("decoder.output_bias".to_string(), zeros)));
        let store = TensorStore::new(Path::new("<random>"), tensors);
        let captioner = TrainedCaptioner::load(backend, &config, store, freeze, dtype)?;
        let run = TrainConfig { dropout: 0.0, attention_dropout: 0.0, freeze, ..TrainConfig::default() };
        let mut trainer = Trainer::new(captioner, run, Ranks::alone());
        let batch = batch(&config, features, size, units);
        let (mut ms, mut losses) = (Vec::new(), Vec::new());
        for update in 0..WARM_UP + updates {
            let clock = Instant::now();
            let report = trainer.update(std::slice::from_ref(&batch))?;
            if update >= WARM_UP {
                ms.push(clock.elapsed().as_secs_f64() * 1e3);
                losses.extend(report.map(|report| report.loss));
            }
        }
        Ok(Report { ms, losses, peak_rss: peak_resident() })
    }
}

/// Random images, or features, and random units.
fn batch(config: &ModelConfig, features: bool, size: usize, units: usize) -> Batch {
    let values = |len: usize| Philox::new(1, 0).values(len);
    let images = match features {
        false => ImageValues::Pixels(values(size * 3 * config.image.size * config.image.size)),
        true => ImageValues::Features(values(size * config.image_tokens() * config.decoder.width)),
    };
    let known = config.decoder.vocabulary - im2sp::units::SPECIAL;
    let ids = (0..size).flat_map(|row| {
        let drawn = Philox::new(2, row as u64).below(units, known);
        let tokens: Vec<u32> = drawn.into_iter().map(|unit| to_token(unit as u32)).collect();
        [vec![BOS], tokens, vec![EOS]].concat()
    });
    Batch { images, ids: ids.collect(), size, names: Vec::new() }
}

/// Peak of resident memory in bytes; `None` where the system does not say.
fn peak_resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kibibytes| kibibytes * 1024)
}
