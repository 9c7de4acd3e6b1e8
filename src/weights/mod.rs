//! Weights are data. This room reads every checkpoint format the field uses, without executing anything in it, converts
//! them to one directory format (`config.json` and safetensors files) and back, and maps such a directory into memory.

pub mod centres;
pub mod convert;
pub mod directory;
pub mod embedded;
pub mod export;
pub mod json;
mod names;
pub mod pickle;
pub mod random;
pub mod safetensors;
pub mod speech;
mod staged;
pub mod store;
pub mod stored;
pub mod torch;

pub use convert::{ConvertOptions, ConvertReport, convert};
pub use directory::ModelFiles;
pub use export::{ExportFormat, ExportOptions, ExportReport, export};
pub use store::TensorStore;
