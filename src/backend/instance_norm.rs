//! instance_norm: normalise each channel over time, then scale and shift: `y = act((x - mean) rstd weight + bias)`. A group
//! norm with a group for each channel.

use super::{Activation, Device, LayerNormWeights, Sequences, ensure};
use crate::Result;
use crate::cost::Cost;

/// Instance norm.
pub trait InstanceNorm: Device {
    /// Each column of each sequence in x (T, C) normalised by its mean and biased variance, scaled, shifted and activated.
    fn instance_norm(
        &self,
        x: &Self::Tensor,
        norm: &LayerNormWeights<Self>,
        sequences: &Sequences,
        activation: Activation,
    ) -> Result<Self::Tensor>;
}

/// An error unless weight and bias have a value for each channel, and the sequences are those of x.
pub(crate) fn check<D: Device>(
    device: &D,
    x: &D::Tensor,
    norm: &LayerNormWeights<D>,
    sequences: &Sequences,
) -> Result<()> {
    let [frames, channels] = device.shape(x);
    sequences.check("instance_norm", frames)?;
    let (weight, bias) = (device.shape(&norm.weight), device.shape(&norm.bias));
    let len = |[rows, columns]: [usize; 2]| rows * columns;
    ensure(len(weight) == channels && len(bias) == channels, "instance_norm", || {
        format!("x ({frames}, {channels}), weight {weight:?}, bias {bias:?}")
    })
}

/// Frames of one share of the sums, by the length of the sequence: results depend on nothing else.
pub(crate) fn share(frames: usize) -> usize {
    /// Shares at most; enough for every multiprocessor of a large GPU.
    const MAX_SHARES: usize = 256;
    /// Frames of a share at least.
    const MIN_SHARE: usize = 64;
    frames.div_ceil(MAX_SHARES).max(MIN_SHARE)
}

/// Cost over `frames` rows of `channels` elements of `element` bytes, which are read twice and written once.
pub fn cost(frames: usize, channels: usize, element: usize) -> Cost {
    let elements = (frames * channels) as f64;
    Cost { flops: 8.0 * elements, bytes: 3.0 * elements * element as f64 }
}
