//! The default model, compiled into the binary so that the first command a newcomer types speaks. Its
//! abilities and limits stand in `weights/README.md`; its making, in `recipes/demo`.

use super::directory::ModelFiles;
use crate::Result;

/// Bytes at an address that every element type can be read from.
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

static CAPTIONER: &Aligned<[u8]> = &Aligned(*include_bytes!("../../weights/demo/captioner.safetensors"));
static VOCODER: &Aligned<[u8]> = &Aligned(*include_bytes!("../../weights/demo/vocoder.safetensors"));
const CONFIG: &str = include_str!("../../weights/demo/config.json");

/// Opens it. Fails only if the build embedded damaged files.
pub fn files() -> Result<ModelFiles> {
    ModelFiles::from_bytes(CONFIG, &CAPTIONER.0, &VOCODER.0)
}
