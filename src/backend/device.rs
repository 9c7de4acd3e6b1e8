//! The contract of a device: tensors, constant weights, streams and graph capture.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use super::ConvShape;
use crate::tensor::HostTensor;
use crate::{Error, Result};

/// Measured peak throughput of a device.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Peaks {
    /// Bytes a second: read by a CPU, read and written by a GPU's copy, of more than the caches hold.
    pub bytes: f64,
    /// Floating-point operations a second: f32 multiply-adds on a CPU, bf16 products of a GPU's tensor cores.
    pub flops: f64,
}

/// Identity of a fixed sequence of operations, which a device may capture once and replay for inputs of the same shape.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct GraphId(u64);

impl GraphId {
    /// One that differs from all others.
    #[allow(clippy::new_without_default, reason = "two of them are never alike")]
    pub fn new() -> GraphId {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        GraphId(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// A number that no other graph has.
    pub fn number(&self) -> u64 {
        self.0
    }
}

/// The operations of a [`GraphId`]: on their input and on constants, nothing else.
pub type GraphBody<'a, D> = &'a dyn Fn(&D, &<D as Device>::Tensor) -> Result<<D as Device>::Tensor>;

/// Rows N and columns K of the weights of a matrix; an error for any other number of dimensions.
pub(crate) fn check_matrix(weight: &HostTensor) -> Result<[usize; 2]> {
    match *weight.shape() {
        [rows, columns] => Ok([rows, columns]),
        _ => Err(Error::shape("matrix", format!("weights of shape {:?}, expected (N, K)", weight.shape()))),
    }
}

/// A device with one stream of work: everything happens in the order of the calls.
pub trait Device: Send + Sync + Sized + 'static {
    /// Activations: two-dimensional; see the module for their layout.
    type Tensor: Clone + Send + Sync;
    /// A constant matrix (N, K): f32, bf16, or eight bits with scales.
    type Matrix: Send + Sync;
    /// The constant weights and bias of a convolution, in the layout its kernel reads.
    type ConvWeights: Send + Sync;
    /// A point in the stream of work.
    type Event: Send;

    /// A second stream on the same device. Tensors must not be shared between the two, but for constant weights, once it waits
    /// ([`Device::wait`]) for the stream that loaded them.
    fn new_stream(&self) -> Result<Self>;
    /// The device's name, for people.
    fn name(&self) -> String;
    /// Allocations that went to the device so far, and the most bytes in use; `None` for host memory.
    fn memory_stats(&self) -> Option<(u64, usize)> {
        None
    }
    /// Lanes among which `in_flight` captions are best divided: threads that each use this device at the same time.
    fn lanes(&self, in_flight: usize) -> usize {
        let _ = in_flight;
        1
    }
    /// Marks this point in the stream of work, without waiting for it.
    fn record_event(&self) -> Result<Self::Event>;
    /// Milliseconds between two points of the stream, when its work came to them; waits for the later one.
    fn elapsed(&self, from: &Self::Event, to: &Self::Event) -> Result<f64>;
    /// Makes all later work of this stream start after `event` of another stream of the device.
    fn wait(&self, event: &Self::Event) -> Result<()>;
    /// `work`, a sequence of operations, where each of them starts soonest.
    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        work()
    }
    /// Copies `values` (rows, columns) to the device.
    fn upload(&self, shape: [usize; 2], values: &[f32]) -> Result<Self::Tensor>;
    /// A tensor (rows, columns) of zeros, in the type of activations.
    fn zeros(&self, shape: [usize; 2]) -> Result<Self::Tensor>;
    /// Copies a tensor to the host, row by row.
    fn download(&self, x: &Self::Tensor) -> Result<Vec<f32>>;
    /// Rows and columns.
    fn shape(&self, x: &Self::Tensor) -> [usize; 2];
    /// Makes (N, K) weights available to `linear` and the embeddings.
    fn matrix(&self, weight: HostTensor) -> Result<Self::Matrix>;
    /// Rows N and columns K.
    fn matrix_shape(&self, matrix: &Self::Matrix) -> [usize; 2];
    /// Makes the weights (C out, C in, taps) of `conv1d` with its bias (C out).
    fn conv_weights(&self, weight: &HostTensor, bias: &HostTensor) -> Result<Self::ConvWeights>;
    /// Makes the weights (C in, C out, taps) of `conv_transpose1d` with its bias (C out) and stride.
    fn conv_transpose_weights(
        &self,
        weight: &HostTensor,
        bias: &HostTensor,
        stride: usize,
    ) -> Result<Self::ConvWeights>;
    /// Channels, taps and stride.
    fn conv_shape(&self, weights: &Self::ConvWeights) -> ConvShape;

    /// `body(self, input)`. A device that can capture its work does so, and replays it for later inputs of this shape; so
    /// `body` hands nothing to the host and takes nothing from it.
    fn captured(&self, graph: &GraphId, input: &Self::Tensor, body: GraphBody<'_, Self>) -> Result<Self::Tensor> {
        let _ = graph;
        body(self, input)
    }
}
