//! Image-to-speech captioning without text.

pub mod backend;
pub mod error;
pub mod model;
pub mod tensor;
pub mod weights;

pub use error::{Error, Result};
