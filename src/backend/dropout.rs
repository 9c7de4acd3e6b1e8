//! dropout: zeros in random places, `y = keep(x) / (1 - p) + residual`. A place's fate is a counter-based random number of its
//! index, so the backward pass is the same operation on the gradient, and no mask is stored.

use super::{Device, ensure};
use crate::Result;
use crate::cost::Cost;
use crate::random::Philox;

/// A mask: places and seed decide everything.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DropoutMask {
    /// Probability p of a zero, in 0..1.
    pub probability: f32,
    /// Seed of [`Philox`].
    pub seed: u64,
    /// Stream of [`Philox`]: one for each step, layer and place in it.
    pub stream: u64,
}

impl DropoutMask {
    /// Random words below this are zeros: p in units of 2^-32.
    pub fn threshold(&self) -> u32 {
        // In f64, the product is exact, and below 2^32 for every f32 below 1.
        (f64::from(self.probability) * 4_294_967_296.0) as u32
    }

    /// Factor of kept values.
    pub fn scale(&self) -> f32 {
        1.0 / (1.0 - self.probability)
    }

    /// The generator of the words: a value at row r and column c of (M, C) takes word r * C + c.
    pub fn words(&self) -> Philox {
        Philox::new(self.seed, self.stream)
    }

    /// An error of `op` unless the probability is in 0..1.
    pub(crate) fn check(&self, op: &'static str) -> Result<()> {
        ensure((0.0..1.0).contains(&self.probability), op, || {
            format!("a probability of {}, expected 0 or more and less than 1", self.probability)
        })
    }
}

/// Dropout.
pub trait Dropout: Device {
    /// x (M, C) with zeros in random places, the rest scaled, and `residual` (M, C) added. The gradient at x is the same
    /// operation on the gradient at y, without a residual.
    fn dropout(&self, x: &Self::Tensor, mask: DropoutMask, residual: Option<&Self::Tensor>) -> Result<Self::Tensor>;
}

/// An error unless the residual is as large as x and the mask can be drawn.
pub(crate) fn check<D: Device>(
    device: &D,
    x: &D::Tensor,
    mask: DropoutMask,
    residual: Option<&D::Tensor>,
) -> Result<()> {
    mask.check("dropout")?;
    let (x, residual) = (device.shape(x), residual.map(|r| device.shape(r)));
    ensure(residual.is_none_or(|r| r == x), "dropout", || format!("x {x:?}, residual {residual:?}"))
}

/// Cost over `len` elements of `element` bytes with `operands` residuals; the random words are not counted.
pub fn cost(len: usize, operands: usize, element: usize) -> Cost {
    Cost { flops: (2 * len) as f64, bytes: ((2 + operands) * len * element) as f64 }
}
