//! The model that most tests caption with: small and quick, it describes drawn scenes of coloured shapes (`recipes/demo`). Its
//! files are part of each program that uses them, so that such a program runs on a machine without these sources too.
#![allow(dead_code)]

use std::path::{Path, PathBuf};

use im2sp::weights::ModelFiles;
use im2sp::{Engine, LoadOptions};

/// Bytes at an address that every element type can be read from.
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

static CAPTIONER: &Aligned<[u8]> = &Aligned(*include_bytes!("../scenes/captioner.safetensors"));
static VOCODER: &Aligned<[u8]> = &Aligned(*include_bytes!("../scenes/vocoder.safetensors"));

/// The model directory, for programs that are run.
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenes")
}

pub fn files() -> ModelFiles {
    let config = include_str!("../scenes/config.json");
    ModelFiles::from_bytes(config, &CAPTIONER.0, &VOCODER.0).unwrap_or_else(|error| panic!("tests/scenes: {error}"))
}

pub fn engine() -> Engine {
    engine_with(LoadOptions::default())
}

pub fn engine_with(options: LoadOptions) -> Engine {
    Engine::new(files(), options).unwrap_or_else(|error| panic!("tests/scenes: {error}"))
}
