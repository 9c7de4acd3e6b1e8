//! Launches kernels/conv1d.cu; the packed weights and the choice of tiles serve conv_transpose1d as well.

use std::ops::Range;

use half::bf16;

use super::driver::{Kernel, Launch};
use super::kernels::{self, ConvolutionParams};
use super::tiles::{self, Tile};
use super::{Cuda, Layout, Tensor, int, pointer_of};
use crate::backend::{Conv1d, ConvActivation, ConvEpilogue, conv1d};
use crate::tensor::{DType, HostTensor};
use crate::{Error, Result};

/// Weights and bias of a convolution, in the type of the backend.
pub struct ConvWeights {
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) taps: usize,
    /// Stride of a transposed convolution, else 0.
    pub(super) stride: usize,
    /// Columns of the matrix product, and its taps.
    pub(super) columns: usize,
    pub(super) steps: usize,
    /// (columns, steps, C in padded).
    pub(super) weight: Tensor,
    /// (1, C out), f32.
    pub(super) bias: Tensor,
}

/// Samples of a block of the one-channel form.
const SAMPLES: usize = 256;

/// Weights (columns, steps, C in) as a function of their place, padded and in the type of the backend.
pub(super) fn pack_with(
    cuda: &Cuda,
    [columns, steps, inputs]: [usize; 3],
    value: impl Fn(usize, usize, usize) -> f32,
) -> Result<Tensor> {
    let padded = inputs.next_multiple_of(8);
    let mut values = vec![0.0f32; columns * steps * padded];
    for (i, v) in values.iter_mut().enumerate() {
        let (column, step, input) = (i / padded / steps, i / padded % steps, i % padded);
        if input < inputs {
            *v = value(column, step, input);
        }
    }
    let shape = [columns, steps * padded];
    if cuda.dtype == DType::BF16 {
        let values: Vec<bf16> = values.into_iter().map(bf16::from_f32).collect();
        return cuda.put(shape, DType::BF16, &values);
    }
    cuda.put(shape, DType::F32, &values)
}

/// Weights (C out, C in, taps) and bias (C out), as the kernels read them.
pub(super) fn pack(cuda: &Cuda, weight: &HostTensor, bias: &HostTensor) -> Result<ConvWeights> {
    let [outputs, inputs, taps] = conv1d::check_weights(weight, bias)?;
    let values = weight.to_f32();
    let weight = pack_with(cuda, [outputs, taps, inputs], |o, tap, i| values[(o * inputs + i) * taps + tap])?;
    let bias = cuda.put([1, outputs], DType::F32, &bias.to_f32())?;
    Ok(ConvWeights { inputs, outputs, taps, stride: 0, columns: outputs, steps: taps, weight, bias })
}

impl ConvWeights {
    /// Params of a product of `rows` rows over x (C in, S), without epilogue.
    pub(super) fn params(&self, op: &'static str, x: &Tensor, y: &Tensor, rows: usize) -> Result<ConvolutionParams> {
        let padded = self.inputs.next_multiple_of(8);
        Ok(ConvolutionParams {
            x: x.pointer(),
            weight: self.weight.pointer(),
            bias: self.bias.pointer(),
            residual: pointer_of(None),
            sum: pointer_of(None),
            y: y.pointer(),
            total: y.len() as i64,
            before: 0,
            frames: int(op, x.columns)?,
            rows: int(op, rows)?,
            columns: int(op, self.columns)?,
            inputs: int(op, self.inputs)?,
            padded: int(op, padded)?,
            shift: if padded.is_power_of_two() { padded.trailing_zeros() as i32 } else { -1 },
            outputs: int(op, self.outputs)?,
            taps: int(op, self.steps)?,
            step: 1,
            origin: 0,
            activation: 0,
            slope: 1.0,
            scale: 1.0,
            unused: 0,
        })
    }

    /// The launch of the tile that should take the least time for so many rows of the product.
    pub(super) fn launch(
        &self,
        cuda: &Cuda,
        tiles: &'static [Tile<ConvolutionParams>],
        rows: usize,
    ) -> Result<(&'static Kernel<ConvolutionParams>, Launch)> {
        // Chunks of 16 bytes of channels: eight in bf16, four in f32.
        let aligned = (self.inputs * cuda.dtype.size()).is_multiple_of(16);
        let tile = tiles::fastest(tiles, cuda.dtype, aligned, [rows, self.columns], cuda.stream.properties());
        let tile = tile.ok_or_else(|| Error::shape("conv1d", format!("no tiles for {:?}", cuda.dtype)))?;
        Ok((tile.kernel, Launch::blocks(tile.count(rows, self.columns)).shared_bytes(tile.shared_bytes)))
    }
}

impl Conv1d for Cuda {
    fn conv1d(
        &self,
        x: &Tensor,
        weights: &ConvWeights,
        dilation: usize,
        columns: Range<usize>,
        epilogue: ConvEpilogue<'_, Cuda>,
    ) -> Result<Tensor> {
        conv1d::check(self, x, weights, dilation, &columns, &epilogue)?;
        launch(self, x, weights, dilation, columns, epilogue)
    }
}

/// x (C in, S) to (C out, columns), column after column; sound, the result of a tanh, is f32.
fn launch(
    cuda: &Cuda,
    x: &Tensor,
    kernel: &ConvWeights,
    dilation: usize,
    columns: Range<usize>,
    epilogue: ConvEpilogue<'_, Cuda>,
) -> Result<Tensor> {
    const OP: &str = "conv1d";
    let outputs = kernel.outputs;
    let ConvEpilogue { slope, residual, activation, sum, scale } = epilogue;
    let frames = columns.len();
    let x = cuda.columns_of(x, cuda.dtype)?;
    let operand = |t: Option<&Tensor>| t.map(|t| cuda.columns_of(t, cuda.dtype)).transpose();
    let (skipped, sum) = (residual.map_or(0, |(_, from)| from * outputs * cuda.dtype.size()), operand(sum)?);
    let residual = operand(residual.map(|(t, _)| t))?;
    let sound = outputs == 1;
    let y = cuda.empty([outputs, frames], if sound { DType::F32 } else { cuda.dtype }, Layout::Columns)?;
    let reach = (kernel.taps - 1) * dilation / 2;
    let params = ConvolutionParams {
        residual: residual.as_ref().map_or(pointer_of(None), |t| t.pointer().offset(skipped)),
        sum: pointer_of(sum.as_ref()),
        step: int(OP, dilation)?,
        origin: int(OP, columns.start)? - int(OP, reach)?,
        activation: match activation {
            ConvActivation::None => 0,
            ConvActivation::Relu => 1,
            ConvActivation::Tanh => 2,
        },
        slope,
        scale,
        ..kernel.params(OP, &x, &y, frames)?
    };
    let samples = Launch::blocks(frames.div_ceil(SAMPLES));
    let (kernel, launch) = match (sound, cuda.dtype) {
        (true, DType::BF16) => (&kernels::CONV1D_FORWARD_SAMPLE_PER_THREAD_BF16, samples),
        (true, _) => (&kernels::CONV1D_FORWARD_SAMPLE_PER_THREAD_F32, samples),
        (false, _) => kernel.launch(cuda, &kernels::CONV1D_FORWARD_TILES, frames)?,
    };
    // SAFETY: the shapes were checked; frames outside of 0..S are not read, elements outside of y not written, and the
    // residual has as many columns from its first on as y. The tiles read chunks of 16 bytes where every frame begins at a
    // multiple of 16, as packed weights do; runs of eight channels are vectors where C out % 8 == 0.
    unsafe { cuda.launch(kernel, launch, params)? };
    Ok(y)
}
