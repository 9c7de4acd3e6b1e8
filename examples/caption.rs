//! Captions one image and writes the speech to a WAV file.
//!
//!     cargo run --release --example caption -- assets/scene.png speech.wav [MODEL_DIR]
//!
//! MODEL_DIR is made by `im2sp convert`; without it the small embedded model is used.

use std::process::ExitCode;

use im2sp::{CaptionOptions, Device, Engine, Image, Result, audio};

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let [image, output, model @ ..] = args.as_slice() else {
        eprintln!("usage: caption IMAGE SPEECH.wav [MODEL_DIR]");
        return ExitCode::from(2);
    };
    let done = caption(image.as_ref(), output.as_ref(), model.first().map(AsRef::as_ref));
    done.map_or_else(
        |error| {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        },
        |()| ExitCode::SUCCESS,
    )
}

fn caption(image: &std::path::Path, output: &std::path::Path, model: Option<&std::path::Path>) -> Result<()> {
    let engine = match model {
        Some(directory) => Engine::load(directory, Device::Auto)?,
        None => Engine::embedded()?,
    };
    let caption = engine.caption(&Image::open(image)?, &CaptionOptions::default())?;
    // The file appears whole or not at all.
    audio::write_wav(output, &caption.samples, caption.sample_rate)?;
    let seconds = caption.samples.len() as f64 / f64::from(caption.sample_rate);
    println!("{} units, {seconds:.2} s of speech, on {}", caption.units.len(), engine.device());
    Ok(())
}
