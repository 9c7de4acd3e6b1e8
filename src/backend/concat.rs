//! concat: joins each sequence of one batch with the sequence of another, and takes them apart again. Each direction is the
//! other's backward pass.

use super::{Device, ensure};
use crate::Result;
use crate::cost::Cost;

/// Joining and splitting of sequences.
pub trait Concat: Device {
    /// Sequences a (B*S, C) and b (B*T, C) to (B*(S+T), C): the tokens of a before those of b, in each sequence.
    fn concat(&self, a: &Self::Tensor, b: &Self::Tensor, batch: usize) -> Result<Self::Tensor>;
    /// Sequences x (B*(S+T), C) to their first `first` = S tokens (B*S, C) and the rest (B*T, C).
    fn split(&self, x: &Self::Tensor, batch: usize, first: usize) -> Result<(Self::Tensor, Self::Tensor)>;
}

/// Tokens [S, T] of the sequences; an error unless both batches have `batch` sequences of the same width.
pub(crate) fn check<D: Device>(device: &D, a: &D::Tensor, b: &D::Tensor, batch: usize) -> Result<[usize; 2]> {
    let (a, b) = (device.shape(a), device.shape(b));
    let fits = batch > 0 && a[0].is_multiple_of(batch) && b[0].is_multiple_of(batch) && a[1] == b[1];
    ensure(fits, "concat", || format!("{a:?} and {b:?} for {batch} sequences"))?;
    Ok([a[0] / batch, b[0] / batch])
}

/// Tokens [S, T] of the two parts; an error unless x has `batch` sequences of at least `first` tokens.
pub(crate) fn check_split<D: Device>(device: &D, x: &D::Tensor, batch: usize, first: usize) -> Result<[usize; 2]> {
    let [rows, columns] = device.shape(x);
    let fits = batch > 0 && rows.is_multiple_of(batch) && first <= rows / batch;
    ensure(fits, "split", || format!("x ({rows}, {columns}) for {batch} sequences, split after {first}"))?;
    Ok([first, rows / batch - first])
}

/// Cost of moving `len` elements of `element` bytes.
pub fn cost(len: usize, element: usize) -> Cost {
    Cost { flops: 0.0, bytes: (2 * len * element) as f64 }
}
