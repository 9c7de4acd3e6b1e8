//! Image-to-speech captioning without text.

pub mod audio;
pub mod error;
pub mod files;
pub mod image;
pub mod model;
pub mod tensor;
pub mod units;
pub mod weights;

pub use error::{Error, Result};
