//! Launches kernels/argmax.cu.

use super::driver::Launch;
use super::kernels::{self, ArgmaxParams, SIZE_OF_SELECT_SHARED};
use super::{Cuda, Layout, Tensor, int};
use crate::backend::{Argmax, argmax};
use crate::tensor::DType;
use crate::{Error, Result};

/// Token that the kernel writes for a row that holds NaN.
const NOT_A_NUMBER: u32 = u32::MAX;

impl Argmax for Cuda {
    fn argmax(&self, x: &Tensor, columns: &mut Vec<u32>) -> Result<()> {
        argmax::check(self, x)?;
        *columns = launch(self, x)?;
        Ok(())
    }
}

/// Column of the largest value of each row.
fn launch(cuda: &Cuda, x: &Tensor) -> Result<Vec<u32>> {
    let (rows, columns) = (x.rows, x.columns);
    let x = cuda.rows_of(x, DType::F32)?;
    let y = cuda.empty([1, rows], DType::F32, Layout::Rows)?;
    let params = ArgmaxParams { x: x.pointer(), y: y.pointer(), columns: int("argmax", columns)?, unused: 0 };
    // SAFETY: x holds rows * columns values and y a word for each row, which has a block.
    unsafe {
        cuda.launch(&kernels::ARGMAX_FORWARD_F32, Launch::blocks(rows).shared_bytes(SIZE_OF_SELECT_SHARED), params)?;
    }
    let best = cuda.get_words(&y, rows)?;
    if best.contains(&NOT_A_NUMBER) { Err(Error::NotANumber { stage: "argmax" }) } else { Ok(best) }
}
