//! The contract of trained parameters: one block of f32 master values with their optimizer state, and one of gradients. Frozen
//! weights are no part of either.
//!
//! A block is flat: parameter after parameter, each row-major, at the place that its [`Parameter`] says. A device whose products
//! read bf16 keeps a working copy in that type, which every update writes again. Backward operations add to gradients (`+=`);
//! nothing but [`TrainedParameters::zero_gradients`] sets them.

use super::{Communicator, Device, Peers, ensure};
use crate::{Error, Result};

/// A parameter's place is a multiple of this many values, so that vectors of its rows are aligned in every type. The values
/// between parameters are zeros with gradients of zero, and so stay zeros.
pub const ALIGNMENT: usize = 128;

/// Place of a parameter (rows, columns) in a block; a vector has one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Index of its first value.
    pub start: usize,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
}

impl Parameter {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.rows * self.columns
    }

    /// Whether it has no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its indices in the block.
    pub fn range(&self) -> std::ops::Range<usize> {
        self.start..self.start + self.len()
    }
}

/// Places of a weight and a bias: of a fully connected layer (N, K) and (1, N), or of a layer norm, (1, C) both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightAndBias {
    /// The weight.
    pub weight: Parameter,
    /// The bias.
    pub bias: Parameter,
}

/// One of the arrays of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockPart {
    /// Master values.
    Values,
    /// First moments.
    FirstMoments,
    /// Second moments.
    SecondMoments,
}

/// Parameters that can be written.
pub trait TrainedParameters: Device {
    /// Master values and both moments, each f32.
    type Block: Send;
    /// One f32 for each value of a block.
    type Gradients: Send;

    /// A block of these values with moments of zero.
    fn parameter_block(&self, values: &[f32]) -> Result<Self::Block>;
    /// The parameter as a matrix of products and embeddings: the working copy. To be dropped before the next update.
    fn parameter_matrix(&self, block: &Self::Block, parameter: Parameter) -> Result<Self::Matrix>;
    /// The parameter's master values as a tensor: biases, norms, the class embedding. To be dropped before the next update.
    fn parameter_tensor(&self, block: &Self::Block, parameter: Parameter) -> Result<Self::Tensor>;
    /// Copies an array of the block to the host.
    fn read_block(&self, block: &Self::Block, part: BlockPart) -> Result<Vec<f32>>;
    /// Overwrites an array of the block, and with the master values the working copy.
    fn write_block(&self, block: &mut Self::Block, part: BlockPart, values: &[f32]) -> Result<()>;

    /// Zeros for `len` values.
    fn gradients(&self, len: usize) -> Result<Self::Gradients>;
    /// Sets all gradients to zero.
    fn zero_gradients(&self, gradients: &mut Self::Gradients) -> Result<()>;
    /// Copies gradients to the host.
    fn read_gradients(&self, gradients: &Self::Gradients) -> Result<Vec<f32>>;
    /// Overwrites gradients: for tests, and for sums over several processes on the host.
    fn write_gradients(&self, gradients: &mut Self::Gradients, values: &[f32]) -> Result<()>;
    /// Whether this device can be given a communicator.
    fn communicates(&self) -> bool {
        false
    }
    /// Connects the devices of all ranks, each of which calls it.
    ///
    /// # Errors
    /// If a library is missing, with the remedy; if a rank has ended; or if the device does not communicate.
    fn communicator(&self, peers: &mut dyn Peers) -> Result<Box<dyn Communicator<Self::Gradients>>> {
        let _ = peers;
        Err(Error::internal("a communicator of a device that has none"))
    }
}

/// An error of `op` unless the parameter has this shape, a multiple of [`ALIGNMENT`] as its place, and lies within `len` values.
pub(crate) fn check(op: &'static str, parameter: Parameter, shape: [usize; 2], len: usize) -> Result<()> {
    let Parameter { start, rows, columns } = parameter;
    let end = rows.checked_mul(columns).and_then(|count| count.checked_add(start));
    let fits = [rows, columns] == shape && start.is_multiple_of(ALIGNMENT) && end.is_some_and(|end| end <= len);
    ensure(fits, op, || format!("{parameter:?} of {len} values, expected shape {shape:?}"))
}
