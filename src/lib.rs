//! Image-to-speech captioning without text: an image goes through a vision transformer, a decoder emits discrete speech
//! units, and a unit vocoder turns them into sound.
//!
//! [`Engine`] is the whole path. Below it, top to bottom and never upward: [`generate`] (greedy, beams, sampling),
//! [`model`] (written once over [`backend::Backend`]), [`backend`]; on their side [`weights`], [`image`], [`audio`] and
//! [`units`], which hand over [`tensor`]s and plain numbers.

#![deny(unsafe_op_in_unsafe_fn)]
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod audio;
pub mod backend;
pub mod bench;
pub mod config;
pub mod conformance;
pub mod cost;
pub mod data;
mod engine;
pub mod error;
pub mod eval;
pub mod files;
pub mod generate;
pub mod image;
pub mod model;
pub(crate) mod quantize;
pub mod random;
pub mod tensor;
pub mod trace;
pub mod train;
pub mod units;
pub mod weights;

pub use engine::{
    AudioChunk, CancelFlag, Caption, CaptionOptions, CaptionStream, Delivery, Device, DeviceMemory, Engine, Event,
    Events, FeatureExtractor, ImageSource, ImageTokenizer, Input, InputSource, LoadOptions, OnCaption, OnRecordings,
    OnUnits, Progress, RECORDING_CHUNK, Recognizer, Recorded, Request, Speech, SpeechStream, Timings, UnitExtractor,
};
pub use error::{Error, Result};
pub use image::Image;
pub use quantize::calibrate::{CalibrateReport, MatrixReport, convert_calibrated};
