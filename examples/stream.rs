//! Writes speech to standard output while later units are still being decoded: 16-bit little-endian samples, mono.
//!
//!     cargo run --release --example stream -- assets/scene.png | aplay -t raw -f S16_LE -r 16000
//!
//! The samples are those of `Engine::caption`, bit for bit; only the first of them come earlier.

use std::io::{ErrorKind, Write};
use std::process::ExitCode;
use std::time::Instant;

use im2sp::{CaptionOptions, Engine, Image, Result, audio};

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let [image] = args.as_slice() else {
        eprintln!("usage: stream IMAGE > SAMPLES");
        return ExitCode::from(2);
    };
    stream(image.as_ref(), &mut std::io::stdout().lock()).unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::FAILURE
    })
}

fn stream(image: &std::path::Path, output: &mut dyn Write) -> Result<ExitCode> {
    let engine = Engine::embedded()?;
    let image = Image::open(image)?;
    let (start, mut samples) = (Instant::now(), 0);
    // An iterator of chunks. Dropping it ends the caption.
    for chunk in engine.stream(&image, &CaptionOptions::default()) {
        let chunk = chunk?;
        if samples == 0 {
            eprintln!("first sound after {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
        }
        samples += chunk.samples.len();
        match output.write_all(&audio::pcm_bytes(&chunk.samples)).and_then(|()| output.flush()) {
            Ok(()) => {}
            // A player that was closed wants no more.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(ExitCode::SUCCESS),
            Err(error) => {
                eprintln!("error: standard output: {error}");
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    eprintln!("{samples} samples after {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
    Ok(ExitCode::SUCCESS)
}
