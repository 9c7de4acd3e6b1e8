//! The models, written once over [`crate::backend::Backend`]: weights with their shapes, and `forward` as a flat list
//! of operations. Nothing here names a device, a file or a pointer.

pub mod config;
pub mod decoder;
pub mod layer;
pub mod vision;
pub mod vocoder;
