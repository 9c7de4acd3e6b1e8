//! Captions any number of images, eight of them together, and prints a line `NAME|UNITS` for each, as `im2sp speak` reads it.
//!
//!     cargo run --release --example batch -- photos/*.jpg
//!
//! Lines come in the order in which captions end. A file that cannot be read is reported and stops none of the others.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;

use im2sp::{CaptionOptions, Engine, Image, Result};

/// Captions that are decoded together.
const IN_FLIGHT: usize = 8;

fn main() -> ExitCode {
    let paths: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    if paths.is_empty() {
        eprintln!("usage: batch IMAGE...");
        return ExitCode::from(2);
    }
    match batch(&paths) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failed) => {
            eprintln!("{failed} of {} images failed", paths.len());
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The number of images that failed.
fn batch(paths: &[PathBuf]) -> Result<usize> {
    let engine = Engine::embedded()?;
    // Called on several threads, ahead of the decoder; `None` ends the batch.
    let images = |index: usize| paths.get(index).map(Image::open);
    let options = CaptionOptions { no_audio: true, ..CaptionOptions::default() };
    let mut failed = 0;
    engine.caption_many(&images, &options, IN_FLIGHT, &mut |index, caption| match caption {
        Ok(caption) => {
            let units: Vec<String> = caption.units.iter().map(u32::to_string).collect();
            let line = writeln!(std::io::stdout(), "{}|{}", paths[index].display(), units.join(" "));
            // Whoever closed standard output wants no more of them.
            if line.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        }
        Err(error) => {
            failed += 1;
            eprintln!("error: {error}");
            ControlFlow::Continue(())
        }
    })?;
    Ok(failed)
}
