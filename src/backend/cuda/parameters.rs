//! Parameters in device memory: flat arrays, with a working copy in bf16 where products read that.

use std::ops::Range;

use super::driver::Sums;
use super::{Cuda, Layout, Matrix, Tensor, cast, ensure};
use crate::Result;
use crate::backend::parameters::{self, BlockPart, Parameter, TrainedParameters};
use crate::backend::{Communicator, Device as _, Peers};
use crate::tensor::DType;

/// Master values, both moments, each (1, length) f32, and the working copy.
pub struct Block {
    pub(super) values: Tensor,
    pub(super) first: Tensor,
    pub(super) second: Tensor,
    /// bf16; `None` where products read the master values.
    pub(super) working: Option<Tensor>,
}

impl Block {
    fn part(&self, part: BlockPart) -> &Tensor {
        match part {
            BlockPart::Values => &self.values,
            BlockPart::FirstMoments => &self.first,
            BlockPart::SecondMoments => &self.second,
        }
    }
}

impl TrainedParameters for Cuda {
    type Block = Block;
    type Gradients = Tensor;

    fn parameter_block(&self, values: &[f32]) -> Result<Block> {
        let values = self.upload([1, values.len()], values)?;
        let working = if self.dtype == DType::F32 { None } else { Some(cast::cast(self, &values, self.dtype)?) };
        Ok(Block { first: zeros(self, values.len())?, second: zeros(self, values.len())?, values, working })
    }

    fn parameter_matrix(&self, block: &Block, parameter: Parameter) -> Result<Matrix> {
        let tensor = part(block.working.as_ref().unwrap_or(&block.values), parameter)?;
        Ok(Matrix { tensor, eight_bit: None })
    }

    fn parameter_tensor(&self, block: &Block, parameter: Parameter) -> Result<Tensor> {
        part(&block.values, parameter)
    }

    fn read_block(&self, block: &Block, part: BlockPart) -> Result<Vec<f32>> {
        self.download(block.part(part))
    }

    fn write_block(&self, block: &mut Block, part: BlockPart, values: &[f32]) -> Result<()> {
        overwrite(self, block.part(part), values)?;
        if part == BlockPart::Values && block.working.is_some() {
            block.working = Some(cast::cast(self, &block.values, self.dtype)?);
        }
        Ok(())
    }

    fn gradients(&self, len: usize) -> Result<Tensor> {
        zeros(self, len)
    }

    fn zero_gradients(&self, gradients: &mut Tensor) -> Result<()> {
        // SAFETY: the tensor holds as many bytes.
        unsafe { self.stream.memset(gradients.pointer(), 0, gradients.len() * DType::F32.size()) }
    }

    fn read_gradients(&self, gradients: &Tensor) -> Result<Vec<f32>> {
        self.download(gradients)
    }

    fn write_gradients(&self, gradients: &mut Tensor, values: &[f32]) -> Result<()> {
        overwrite(self, gradients, values)
    }

    fn communicates(&self) -> bool {
        self.stream.communicates()
    }

    fn communicator(&self, peers: &mut dyn Peers) -> Result<Box<dyn Communicator<Tensor>>> {
        Ok(Box::new(DeviceSums { sums: self.stream.sums(peers)?, under_way: Vec::new() }))
    }
}

/// Sums over the devices of all ranks.
struct DeviceSums {
    /// Dropped first: nothing is under way afterwards.
    sums: Box<dyn Sums>,
    /// Keeps the memory of sums that were begun.
    under_way: Vec<Tensor>,
}

impl Communicator<Tensor> for DeviceSums {
    fn start_sum(&mut self, gradients: &mut Tensor, range: Range<usize>, peers: &dyn Peers) -> Result<()> {
        let (len, fits) = (range.len(), range.start <= range.end && range.end <= gradients.len());
        ensure(fits, "sums", || format!("{range:?} of {} gradients", gradients.len()))?;
        self.under_way.push(gradients.clone());
        let values = gradients.pointer().offset(range.start * DType::F32.size());
        // SAFETY: the range lies in the tensor, of which a copy is kept until the sums have ended; gradients are written by
        // this backend's operations alone, and its contract is to leave the range alone until then.
        unsafe { self.sums.start(values, len, peers) }
    }

    fn finish_sums(&mut self, peers: &dyn Peers) -> Result<()> {
        self.sums.finish(peers)?;
        self.under_way.clear();
        Ok(())
    }
}

/// A parameter of a flat array; it shares the memory.
fn part(array: &Tensor, parameter: Parameter) -> Result<Tensor> {
    let Parameter { start, rows, columns } = parameter;
    parameters::check("parameter", parameter, [rows, columns], array.len())?;
    Ok(array.part(start, [rows, columns]))
}

fn zeros(cuda: &Cuda, len: usize) -> Result<Tensor> {
    let tensor = cuda.empty([1, len], DType::F32, Layout::Rows)?;
    // SAFETY: the tensor was just allocated with as many bytes.
    unsafe { cuda.stream.memset(tensor.pointer(), 0, len * DType::F32.size())? };
    Ok(tensor)
}

fn overwrite(cuda: &Cuda, array: &Tensor, values: &[f32]) -> Result<()> {
    ensure(values.len() == array.len(), "parameters", || format!("{} values for {}", values.len(), array.len()))?;
    // SAFETY: the array holds as many f32 values.
    unsafe { cuda.stream.copy_to_device(array.pointer(), bytemuck::cast_slice(values)) }
}
