//! The im2sp side of the comparison with PyTorch: times every stage of a model directory and prints one JSON object with
//! all samples in milliseconds. Not a criterion bench, because `run.py` has to interleave it with the other side.
//!
//!     stages MODEL_DIRECTORY REPETITIONS

use std::ops::ControlFlow;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use im2sp::Result;
use im2sp::backend::SmBudget;
use im2sp::backend::cpu::Cpu;
use im2sp::generate::{GenerateOptions, generate};
use im2sp::model::captioner::Captioner;
use im2sp::model::loader::Loader;
use im2sp::model::vocoder::{Vocoder, Voice};
use im2sp::weights::ModelFiles;
use serde_json::json;

/// Units that are decoded, and frames that are spoken.
const UNITS: usize = 128;
const FRAMES: usize = 200;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let (Some(directory), Some(Ok(repetitions))) = (arguments.get(1), arguments.get(2).map(|n| n.parse())) else {
        eprintln!("usage: stages MODEL_DIRECTORY REPETITIONS");
        return ExitCode::from(2);
    };
    match measure(Path::new(directory), repetitions) {
        Ok(report) => println!("{report}"),
        Err(error) => {
            eprintln!("stages: error: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// Runs `work` twice to warm up, since mapped weights are given back after their first use, and `repetitions` times on the
/// clock: milliseconds of each, and the last result.
fn timed<T>(repetitions: usize, mut work: impl FnMut() -> Result<T>) -> Result<(Vec<f64>, T)> {
    work()?;
    let mut last = work()?;
    let mut samples = Vec::new();
    for _ in 0..repetitions {
        let clock = Instant::now();
        last = work()?;
        samples.push(clock.elapsed().as_secs_f64() * 1e3);
    }
    Ok((samples, last))
}

fn measure(directory: &Path, repetitions: usize) -> Result<serde_json::Value> {
    let mut files = ModelFiles::open(directory)?;
    let mut loader = Loader { backend: &Cpu, store: &mut files.captioner, dtype: None };
    let captioner = Captioner::load(&mut loader, &files.config)?;
    let side = files.config.image.size;
    let pixels: Vec<f32> = (0..3 * side * side).map(|i| ((i * 7919 % 997) as f32 / 498.5) - 1.0).collect();
    let (vision_ms, tokens) = timed(repetitions, || captioner.encode(&Cpu, &pixels, 1))?;
    let options = GenerateOptions { max_length: UNITS + 1, ..Default::default() };
    let (prefill_ms, _) = timed(repetitions, || captioner.prefill(&Cpu, &tokens, 1, UNITS + 1))?;
    let mut decode_ms = Vec::new();
    let mut length = 0;
    for round in 0..=repetitions {
        let cache = captioner.prefill(&Cpu, &tokens, 1, UNITS + 1)?;
        let clock = Instant::now();
        let generated =
            generate(&Cpu, &captioner.decoder, cache, 1, &options, SmBudget::All, &mut |_| ControlFlow::Continue(()))?;
        // The first round warms up.
        if round > 0 {
            decode_ms.push(clock.elapsed().as_secs_f64() * 1e3);
        }
        length = generated[0].tokens.len() - 1;
    }
    let mut report = json!({
        "vision_ms": vision_ms,
        "prefill_ms": prefill_ms,
        "decode_128_ms": decode_ms,
        "decoded": length,
    });
    if let (Some(config), Some(store)) = (&files.config.vocoder, &mut files.vocoder) {
        let vocoder = Vocoder::load(&mut Loader { backend: &Cpu, store, dtype: None }, config)?;
        let units: Vec<u32> = (0..FRAMES).map(|i| (i % config.num_embeddings) as u32).collect();
        let durations = vec![1; FRAMES];
        let (vocoder_ms, _) = timed(repetitions, || vocoder.synthesize(&Cpu, &units, &durations, Voice::default()))?;
        report["vocoder_4s_ms"] = json!(vocoder_ms);
    }
    Ok(report)
}
