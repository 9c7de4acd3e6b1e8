//! Launches kernels/frame_conv.cu.

use super::driver::Launch;
use super::kernels::{self, FrameConvParams};
use super::linear::code;
use super::{Cuda, Layout, LinearWeights, Tensor, int, pointer_of, tiles};
use crate::backend::frame_conv::{self, FrameConvShape, FrameConvSizes};
use crate::backend::{Activation, FrameConv, Sequences};
use crate::{Error, Result};

impl FrameConv for Cuda {
    fn frame_conv(
        &self,
        x: &Tensor,
        layer: &LinearWeights<Cuda>,
        shape: FrameConvShape,
        activation: Activation,
        residual: Option<&Tensor>,
        sequences: Option<&Sequences>,
    ) -> Result<Tensor> {
        let sizes = frame_conv::check(self, x, layer, shape, residual, sequences)?;
        launch(self, x, layer, (shape, sizes), activation, residual, sequences)
    }
}

/// x (T, C) to (windows, N), in the type of the backend.
fn launch(
    cuda: &Cuda,
    x: &Tensor,
    layer: &LinearWeights<Cuda>,
    (shape, FrameConvSizes { rows, outputs, depth }): (FrameConvShape, FrameConvSizes),
    activation: Activation,
    residual: Option<&Tensor>,
    sequences: Option<&Sequences>,
) -> Result<Tensor> {
    const OP: &str = "frame_conv";
    let FrameConvShape { stride, padding, groups, .. } = shape;
    let x = cuda.rows_of(x, cuda.dtype)?;
    let residual = residual.map(|residual| cuda.rows_of(residual, cuda.dtype)).transpose()?;
    let (y, table) = match sequences {
        None => (cuda.empty([rows, outputs], cuda.dtype, Layout::Rows)?, None),
        Some(sequences) => {
            (cuda.empty_for(sequences, [rows, outputs], cuda.dtype)?, Some(cuda.put_ids(&sequences.table(OP)?)?))
        }
    };
    // The most windows of one sequence, and how many sequences there are.
    let (rows, count) = sequences.map_or((rows, 1), |all| (all.longest(), all.parts().len()));
    let (group_inputs, group_outputs) = (x.columns / groups, outputs / groups);
    int(OP, x.rows + padding[0] + padding[1])?;
    let params = FrameConvParams {
        x: x.pointer(),
        weight: layer.weight.tensor.pointer(),
        bias: layer.bias.pointer(),
        residual: pointer_of(residual.as_ref()),
        sequences: pointer_of(table.as_ref()),
        y: y.pointer(),
        frames: int(OP, x.rows)?,
        rows: int(OP, rows)?,
        inputs: int(OP, x.columns)?,
        group_inputs: int(OP, group_inputs)?,
        outputs: int(OP, outputs)?,
        group_outputs: int(OP, group_outputs)?,
        k: int(OP, depth)?,
        stride: int(OP, stride)?,
        before: int(OP, padding[0])?,
        activation: code(activation),
    };
    let aligned = (group_inputs * cuda.dtype.size()).is_multiple_of(16);
    let (tiles, device) = (&kernels::FRAME_CONV_FORWARD_TILES, cuda.stream.properties());
    let tile = tiles::fastest(tiles, cuda.dtype, aligned, [rows, group_outputs], device);
    let tile = tile.ok_or_else(|| Error::shape(OP, format!("no tiles for {:?}", cuda.dtype)))?;
    let launch = Launch::grid([tile.count(rows, group_outputs), groups, count]).shared_bytes(tile.shared_bytes);
    // SAFETY: the shapes were checked. Frames outside of 0..T, or of their sequence, rows beyond the windows and values beyond K are
    // not read, elements outside of y not written. Chunks of 16 bytes are read where every group of every frame begins at a multiple of 16, and so
    // does a row of weights; runs of eight outputs are vectors where N/groups % 8 == 0.
    unsafe { cuda.launch(tile.kernel, launch, params)? };
    Ok(y)
}
