//! The models, written once over [`crate::backend::Backend`]: weights with their shapes, and `forward` as a flat list
//! of operations. Nothing here names a device, a file or a pointer.

pub mod captioner;
pub mod codebook;
pub mod ctc;
pub mod decoder;
pub mod efficient_net;
pub mod loader;
pub mod speech_encoder;
pub mod transformer;
pub mod unit_vision;
pub mod vision;
pub mod vocoder;
pub mod vqgan;
