//! Launches kernels/top_k.cu.

use super::driver::Launch;
use super::kernels::{self, SIZE_OF_SELECT_SHARED, TopKParams};
use super::{Cuda, Layout, Tensor, int};
use crate::backend::{TopK, TopValue, top_k};
use crate::tensor::DType;
use crate::{Error, Result};

impl TopK for Cuda {
    fn top_k(&self, x: &Tensor, count: usize) -> Result<Vec<Vec<TopValue>>> {
        top_k::check(self, x, count)?;
        launch(self, x, count)
    }
}

/// The largest values of each row.
fn launch(cuda: &Cuda, x: &Tensor, count: usize) -> Result<Vec<Vec<TopValue>>> {
    let (rows, columns) = (x.rows, x.columns);
    // Even without a value to hand out, the rows are looked at for NaN.
    let kept = count.max(1).min(columns);
    let x = cuda.rows_of(x, DType::F32)?;
    let y = cuda.empty([rows, 2 * kept], DType::F32, Layout::Rows)?;
    let params =
        TopKParams { x: x.pointer(), y: y.pointer(), columns: int("top_k", columns)?, count: int("top_k", kept)? };
    // SAFETY: x holds rows * columns values and y two words for each of `count` values of each row, which has a block;
    // there are as many values, so every round finds one.
    unsafe {
        cuda.launch(&kernels::TOP_K_FORWARD_F32, Launch::blocks(rows).shared_bytes(SIZE_OF_SELECT_SHARED), params)?
    };
    let words = cuda.get_words(&y, y.len())?;
    if kept == 0 {
        return Ok(vec![Vec::new(); rows]);
    }
    let of_row = |row: &[u32]| {
        if f32::from_bits(row[0]).is_nan() {
            return Err(Error::NotANumber { stage: "top_k" });
        }
        let values = row.chunks_exact(2).take(count);
        Ok(values.map(|pair| TopValue { value: f32::from_bits(pair[0]), column: pair[1] }).collect())
    };
    words.chunks_exact(2 * kept).map(of_row).collect()
}
