//! Parameters in host memory: flat arrays that matrices of products share until the next update.

use std::sync::Arc;

use rayon::prelude::*;

use super::{Cpu, Matrix, Tensor, Weights, ensure};
use crate::Result;
use crate::backend::parameters::{self, BlockPart, Parameter, TrainedParameters};

/// Gradients of a task that sets them to zero.
const TASK: usize = 1 << 16;

/// Master values, which products read, and both moments.
pub struct Block {
    /// Written through [`Arc::make_mut`]: a matrix that outlives an update keeps the values it was made of.
    pub(super) values: Arc<Vec<f32>>,
    pub(super) first: Vec<f32>,
    pub(super) second: Vec<f32>,
}

impl TrainedParameters for Cpu {
    type Block = Block;
    type Gradients = Vec<f32>;

    fn parameter_block(&self, values: &[f32]) -> Result<Block> {
        let zeros = vec![0.0; values.len()];
        Ok(Block { values: Arc::new(values.to_vec()), first: zeros.clone(), second: zeros })
    }

    fn parameter_matrix(&self, block: &Block, parameter: Parameter) -> Result<Matrix> {
        let Parameter { start, rows, columns } = parameter;
        parameters::check("parameter", parameter, [rows, columns], block.values.len())?;
        Ok(Matrix::new([rows, columns], Weights::Shared { block: block.values.clone(), start }))
    }

    fn parameter_tensor(&self, block: &Block, parameter: Parameter) -> Result<Tensor> {
        let Parameter { rows, columns, .. } = parameter;
        parameters::check("parameter", parameter, [rows, columns], block.values.len())?;
        Ok(Tensor::new(rows, columns, block.values[parameter.range()].to_vec()))
    }

    fn read_block(&self, block: &Block, part: BlockPart) -> Result<Vec<f32>> {
        Ok(match part {
            BlockPart::Values => block.values.to_vec(),
            BlockPart::FirstMoments => block.first.clone(),
            BlockPart::SecondMoments => block.second.clone(),
        })
    }

    fn write_block(&self, block: &mut Block, part: BlockPart, values: &[f32]) -> Result<()> {
        overwrite(
            match part {
                BlockPart::Values => Arc::make_mut(&mut block.values).as_mut_slice(),
                BlockPart::FirstMoments => &mut block.first,
                BlockPart::SecondMoments => &mut block.second,
            },
            values,
        )
    }

    fn gradients(&self, len: usize) -> Result<Vec<f32>> {
        Ok(vec![0.0; len])
    }

    fn zero_gradients(&self, gradients: &mut Vec<f32>) -> Result<()> {
        gradients.par_chunks_mut(TASK).for_each(|part| part.fill(0.0));
        Ok(())
    }

    fn read_gradients(&self, gradients: &Vec<f32>) -> Result<Vec<f32>> {
        Ok(gradients.clone())
    }

    fn write_gradients(&self, gradients: &mut Vec<f32>, values: &[f32]) -> Result<()> {
        overwrite(gradients, values)
    }
}

fn overwrite(array: &mut [f32], values: &[f32]) -> Result<()> {
    ensure(values.len() == array.len(), "parameters", || format!("{} values for {}", values.len(), array.len()))?;
    array.copy_from_slice(values);
    Ok(())
}
