//! Launches kernels/embed.cu.

use super::{Cuda, Matrix, Tensor};
use crate::Result;

/// Rows of `table` plus rows of `position`, in f32.
pub(super) fn embed(cuda: &Cuda, table: &Matrix, position: &Matrix, ids: &[u32], positions: &[u32]) -> Result<Tensor> {
    let _ = (cuda, &table.tensor, position, ids, positions);
    todo!()
}

/// Stacked rows of tables as columns, in the type of the backend, column after column.
pub(super) fn embed_columns(cuda: &Cuda, tables: &[(&Matrix, &[u32])]) -> Result<Tensor> {
    let _ = (cuda, tables);
    todo!()
}
