//! Times of a speech encoder's or recogniser's forward pass over random samples on the CPU, for the comparison with transformers:
//! `speech DIR SECONDS RUNS [TRACE]`, one JSON object a line with the milliseconds of each run; the operations
//! of one more go to TRACE.

use std::path::Path;
use std::time::Instant;

use im2sp::random::Random;
use im2sp::weights::speech::SpeechFiles;
use im2sp::{Device, FeatureExtractor, LoadOptions, Recognizer, Result};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let [_, dir, seconds, runs, trace @ ..] = &args[..] else {
        return Err(im2sp::Error::Option { option: "arguments", problem: "expected DIR SECONDS RUNS [TRACE]".into() });
    };
    let number = |text: &String| text.parse::<usize>().unwrap_or(1);
    let (dir, options) = (Path::new(dir), LoadOptions { device: Device::Cpu, ..LoadOptions::default() });
    let config = SpeechFiles::open(dir, true)?.config;
    let samples: Vec<f32> = Random::new(1).values(16_000 * number(seconds)).iter().map(|v| v * 0.1).collect();
    let forward: Box<dyn Fn() -> Result<()>> = match config.vocabulary {
        Some(_) => {
            let model = Recognizer::load(dir, options)?;
            Box::new(move || model.text(&samples).map(drop))
        }
        None => {
            let model = FeatureExtractor::load(dir, config.layers, options)?;
            Box::new(move || model.features(&samples).map(drop))
        }
    };
    for _ in 0..number(runs) {
        let start = Instant::now();
        forward()?;
        println!("{{\"ms\": {:.1}}}", start.elapsed().as_secs_f64() * 1e3);
    }
    if let [trace, ..] = trace {
        let record = im2sp::trace::record(forward)?;
        im2sp::files::write_atomically(Path::new(trace), record.as_bytes())?;
    }
    Ok(())
}
