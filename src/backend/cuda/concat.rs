//! Launches kernels/concat.cu.

use super::driver::{Kernel, Launch};
use super::kernels::{self, ConcatParams};
use super::{Cuda, Layout, Tensor, int};
use crate::Result;
use crate::backend::{Concat, concat};
use crate::tensor::DType;

/// Units of a block.
const BLOCK: usize = 256;
/// Bytes of a vector.
const VECTOR: usize = 16;

/// Kernels of one direction: of vectors, of f32 and of bf16.
type Direction = [&'static Kernel<ConcatParams>; 3];

const JOIN: Direction =
    [&kernels::CONCAT_FORWARD_16_BYTES, &kernels::CONCAT_FORWARD_4_BYTES, &kernels::CONCAT_FORWARD_2_BYTES];
const SPLIT: Direction =
    [&kernels::CONCAT_BACKWARD_16_BYTES, &kernels::CONCAT_BACKWARD_4_BYTES, &kernels::CONCAT_BACKWARD_2_BYTES];

impl Concat for Cuda {
    fn concat(&self, a: &Tensor, b: &Tensor, batch: usize) -> Result<Tensor> {
        let tokens = concat::check(self, a, b, batch)?;
        // A sequence has the type of the backend, whatever its parts have.
        let (a, b) = (self.rows_of(a, self.dtype)?, self.rows_of(b, self.dtype)?);
        let y = self.empty([a.rows + b.rows, a.columns], self.dtype, Layout::Rows)?;
        launch(self, JOIN, [&a, &b, &y], tokens)?;
        Ok(y)
    }

    fn split(&self, x: &Tensor, batch: usize, first: usize) -> Result<(Tensor, Tensor)> {
        let tokens = concat::check_split(self, x, batch, first)?;
        let x = self.rows_of(x, x.dtype)?;
        let [a, b] = tokens.map(|tokens| self.empty([batch * tokens, x.columns], x.dtype, Layout::Rows));
        let (a, b) = (a?, b?);
        launch(self, SPLIT, [&a, &b, &x], tokens)?;
        Ok((a, b))
    }
}

/// Copies between a, b and y, whose sequences have `tokens` [S, T] and S + T tokens.
fn launch(cuda: &Cuda, direction: Direction, [a, b, y]: [&Tensor; 3], tokens: [usize; 2]) -> Result<()> {
    const OP: &str = "concat";
    let [vectors, words, halves] = direction;
    let element = y.dtype.size();
    let bytes = tokens.map(|tokens| tokens * y.columns * element);
    let (kernel, unit) = match y.dtype {
        _ if bytes.iter().all(|bytes| bytes.is_multiple_of(VECTOR)) => (vectors, VECTOR),
        DType::BF16 => (halves, element),
        _ => (words, element),
    };
    let count = y.len() * element / unit;
    let params = ConcatParams {
        a: a.pointer(),
        b: b.pointer(),
        y: y.pointer(),
        count: int(OP, count)?,
        first: int(OP, bytes[0] / unit)?,
        second: int(OP, bytes[1] / unit)?,
        unused: 0,
    };
    // SAFETY: a, b and y hold as many sequences of `first`, `second` and both units, all of one type; a thread beyond the
    // last unit stops. Tensors begin at multiples of 256 bytes, and so do units at multiples of their size.
    unsafe { cuda.launch(kernel, Launch::blocks(count.div_ceil(BLOCK)), params) }
}
