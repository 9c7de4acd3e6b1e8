//! The default model, compiled into the binary with the feature `embedded-model` so that the first command a newcomer types
//! speaks. Its abilities and limits stand in `weights/README.md`; its making, in `recipes/photos`.

use super::directory::ModelFiles;
use crate::Result;

#[cfg(feature = "embedded-model")]
mod bytes {
    /// Bytes at an address that every element type can be read from.
    #[repr(C, align(64))]
    pub struct Aligned<T: ?Sized>(pub T);

    pub static CAPTIONER: &Aligned<[u8]> = &Aligned(*include_bytes!("../../weights/photos/captioner.safetensors"));
    pub static VOCODER: &Aligned<[u8]> = &Aligned(*include_bytes!("../../weights/photos/vocoder.safetensors"));
    pub const CONFIG: &str = include_str!("../../weights/photos/config.json");
}

/// Opens it. Fails if the build left it out, or embedded damaged files.
#[cfg(feature = "embedded-model")]
pub fn files() -> Result<ModelFiles> {
    ModelFiles::from_bytes(bytes::CONFIG, &bytes::CAPTIONER.0, &bytes::VOCODER.0)
}

/// Opens it. Fails if the build left it out, or embedded damaged files.
#[cfg(not(feature = "embedded-model"))]
pub fn files() -> Result<ModelFiles> {
    let problem = "this program was built without one (feature embedded-model): name a model directory with --weights";
    Err(crate::Error::weights(std::path::Path::new("<embedded>"), "model", problem))
}
