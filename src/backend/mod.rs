//! The seam between models and devices: a closed, short list of operations on two-dimensional tensors. Models are
//! written once against [`Backend`]; [`cpu`] runs everywhere and is the oracle of every other device.
//!
//! Each operation has one contract, in the file of its name: the trait, its parameters, the check of shapes that every
//! implementer calls first, and its cost. [`Device`] holds memory, weights, streams and graph capture; [`Decode`] the
//! key-value cache. [`Train`] is the sum of what training adds: parameters that can be written, backward forms next to their
//! forward ones, dropout, the loss and the optimizer.
//!
//! Letters: B batch, T tokens, C channels, H heads, D head size, V vocabulary, S samples or frames, R rows of a decode
//! step, M/N/K of a matrix product.
//!
//! A tensor is a matrix (rows, columns) whose values are those of row-major f32. A device may store it in bf16, and
//! column by column; it converts where an operation needs another form. Weights keep the type they were stored in.

pub mod adamw;
pub mod argmax;
pub mod attention;
pub mod beam_candidates;
pub mod communicator;
pub mod concat;
pub mod conv1d;
pub mod conv2d;
pub mod conv_transpose1d;
pub mod cpu;
pub mod cross_entropy;
#[cfg(any(feature = "cuda", feature = "emulator"))]
pub mod cuda;
pub mod decode;
pub mod depthwise_conv2d;
pub mod device;
pub mod dropout;
pub mod embed;
pub mod frame_conv;
pub mod gelu;
pub mod gradient_norm;
pub mod instance_norm;
pub mod layer_norm;
pub mod linear;
pub mod parameters;
pub mod patch_embed;
pub(crate) mod rows;
pub mod sequences;
pub mod top_k;
pub mod transpose;

pub use adamw::{AdamW, AdamWStep};
pub use argmax::Argmax;
pub use attention::{Attention, AttentionBackward, AttentionShape};
pub use beam_candidates::{BeamCandidate, BeamCandidates};
pub use communicator::{Communicator, Peers};
pub use concat::Concat;
pub use conv_transpose1d::ConvTranspose1d;
pub use conv1d::{Conv1d, ConvActivation, ConvEpilogue, ConvShape};
pub use conv2d::{Conv2d, Conv2dShape, Conv2dWeights};
pub use cross_entropy::{CrossEntropy, CrossEntropyResult};
pub use decode::{CacheRow, CacheShape, Decode, DecoderWeights, SmBudget, StepBody, TransformerLayer};
pub use depthwise_conv2d::DepthwiseConv2d;
pub use device::{Device, GraphBody, GraphId, Peaks};
pub use dropout::{Dropout, DropoutMask};
pub use embed::{Embed, EmbedBackward, EmbedTables};
pub use frame_conv::{FrameConv, FrameConvShape};
pub use gelu::Gelu;
pub use gradient_norm::GradientNorm;
pub use instance_norm::InstanceNorm;
pub use layer_norm::{LayerNorm, LayerNormBackward, LayerNormWeights};
pub use linear::{Activation, Linear, LinearBackward, LinearWeights};
pub use parameters::{BlockPart, Parameter, TrainedParameters, WeightAndBias};
pub use patch_embed::{PatchEmbed, PatchEmbedBackward, PatchParameters, PatchShape};
pub use sequences::Sequences;
pub use top_k::{TopK, TopValue};
pub use transpose::Transpose;

use crate::{Error, Result};

/// All operations of the models. Whatever implements them is a backend.
pub trait Backend:
    Linear
    + LayerNorm
    + Attention
    + Embed
    + PatchEmbed
    + Conv1d
    + ConvTranspose1d
    + Conv2d
    + DepthwiseConv2d
    + FrameConv
    + InstanceNorm
    + Gelu
    + Transpose
    + Argmax
    + TopK
    + BeamCandidates
    + Decode
{
}

impl<B> Backend for B where
    B: Linear
        + LayerNorm
        + Attention
        + Embed
        + PatchEmbed
        + Conv1d
        + ConvTranspose1d
        + Conv2d
        + DepthwiseConv2d
        + FrameConv
        + InstanceNorm
        + Gelu
        + Transpose
        + Argmax
        + TopK
        + BeamCandidates
        + Decode
{
}

/// All operations of training. Whatever implements them can train.
pub trait Train:
    Backend
    + TrainedParameters
    + LinearBackward
    + LayerNormBackward
    + AttentionBackward
    + EmbedBackward
    + PatchEmbedBackward
    + Concat
    + Dropout
    + CrossEntropy
    + GradientNorm
    + AdamW
{
}

impl<B> Train for B where
    B: Backend
        + TrainedParameters
        + LinearBackward
        + LayerNormBackward
        + AttentionBackward
        + EmbedBackward
        + PatchEmbedBackward
        + Concat
        + Dropout
        + CrossEntropy
        + GradientNorm
        + AdamW
{
}

/// Every trait of a backend, for code that calls the operations of one device by name.
pub mod prelude {
    pub use super::{
        AdamW, Argmax, Attention, AttentionBackward, Backend, BeamCandidates, Concat, Conv1d, Conv2d, ConvTranspose1d,
        CrossEntropy, Decode, DepthwiseConv2d, Device, Dropout, Embed, EmbedBackward, FrameConv, Gelu, GradientNorm,
        InstanceNorm, LayerNorm, LayerNormBackward, Linear, LinearBackward, PatchEmbed, PatchEmbedBackward, TopK,
        Train, TrainedParameters, Transpose,
    };
}

/// An error of operation `op` unless `ok`; the message is only built when it is needed.
pub(crate) fn ensure(ok: bool, op: &'static str, problem: impl FnOnce() -> String) -> Result<()> {
    if ok { Ok(()) } else { Err(Error::shape(op, problem())) }
}
