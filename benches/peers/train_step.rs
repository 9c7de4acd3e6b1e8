//! The im2sp side of the comparison of training steps: times updates of a model of random weights on the CPU, in f32, without
//! dropout, and prints one JSON object: milliseconds of each update, and the process's peak of resident memory in bytes.
//!
//!     train_step embedded|decoder BATCH UNITS UPDATES

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use im2sp::backend::cpu::Cpu;
use im2sp::config::ModelConfig;
use im2sp::random::Philox;
use im2sp::tensor::{DType, HostTensor};
use im2sp::train::config::TrainConfig;
use im2sp::train::model::{Freeze, TrainedCaptioner};
use im2sp::train::ranks::Ranks;
use im2sp::train::trainer::{Batch, ImageValues, Trainer};
use im2sp::units::{BOS, EOS, to_token};
use im2sp::weights::{TensorStore, embedded, random};
use im2sp::{Error, Result};
use serde_json::json;

/// Updates that are not timed.
const WARM_UP: usize = 2;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let numbers: Vec<usize> = arguments.iter().skip(1).filter_map(|text| text.parse().ok()).collect();
    let (Some(model), &[batch, units, updates]) = (arguments.first(), &numbers[..]) else {
        eprintln!("usage: train_step embedded|decoder BATCH UNITS UPDATES");
        return ExitCode::from(2);
    };
    match measure(model, batch, units, updates) {
        Ok(report) => println!("{report}"),
        Err(error) => {
            eprintln!("train_step: error: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// The embedded model's dimensions, all of them trained from pixels; or the published decoder, on features.
fn model(name: &str) -> Result<(ModelConfig, Freeze)> {
    match name {
        "embedded" => Ok((ModelConfig { vocoder: None, ..embedded::files()?.config }, Freeze::None)),
        "decoder" => Ok((ModelConfig { vocoder: None, ..random::published() }, Freeze::Vision)),
        _ => Err(Error::Option { option: "model", problem: format!("is {name}, expected embedded or decoder") }),
    }
}

fn measure(name: &str, size: usize, units: usize, updates: usize) -> Result<serde_json::Value> {
    let (config, freeze) = model(name)?;
    let mut tensors: BTreeMap<_, _> = {
        let random = random::files(config.clone(), DType::F32)?.captioner;
        random.iter().map(|(name, tensor)| (name.to_string(), tensor.clone())).collect()
    };
    // Such weights never end a caption; here they have to learn it.
    let zeros = HostTensor::from_f32(&[config.decoder.vocabulary], vec![0.0; config.decoder.vocabulary]);
    tensors.extend(zeros.map(|zeros| ("decoder.output_bias".to_string(), zeros)));
    let store = TensorStore::new(Path::new("<random>"), tensors);
    let values = |stream: u64, len: usize| Philox::new(1, stream).values(len);
    let images = match freeze {
        Freeze::None => ImageValues::Pixels(values(0, size * 3 * config.image.size * config.image.size)),
        _ => ImageValues::Features(values(0, size * config.image_tokens() * config.decoder.width)),
    };
    let known = config.decoder.vocabulary - im2sp::units::SPECIAL;
    let ids = (0..size).flat_map(|row| {
        let drawn = Philox::new(2, row as u64).below(units, known);
        let tokens: Vec<u32> = drawn.into_iter().map(|unit| to_token(unit as u32)).collect();
        [vec![BOS], tokens, vec![EOS]].concat()
    });
    let batch = Batch { images, ids: ids.collect(), size, names: Vec::new() };
    let captioner = TrainedCaptioner::load(Cpu, &config, store, freeze, None)?;
    let run = TrainConfig { dropout: 0.0, attention_dropout: 0.0, freeze, ..TrainConfig::default() };
    let mut trainer = Trainer::new(captioner, run, Ranks::alone());
    let (mut milliseconds, mut losses) = (Vec::new(), Vec::new());
    for update in 0..WARM_UP + updates {
        let clock = Instant::now();
        let report = trainer.update(std::slice::from_ref(&batch))?;
        if update >= WARM_UP {
            milliseconds.push(clock.elapsed().as_secs_f64() * 1e3);
            losses.extend(report.map(|report| report.loss));
        }
    }
    Ok(json!({ "ms": milliseconds, "losses": losses, "peak_rss": peak_resident() }))
}

/// Peak of resident memory in bytes; `None` where the system does not say.
fn peak_resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kibibytes| kibibytes * 1024)
}
