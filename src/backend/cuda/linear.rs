//! Launches kernels/linear/forward.cu and kernels/linear/step.cu.

use super::driver::{Kernel, Launch};
use super::kernels::{self, LinearParams};
use super::{Cuda, Layout, Linear, Tensor, ensure, int, pointer_of};
use crate::Result;
use crate::backend::Activation;
use crate::tensor::DType;

/// Bytes of the addresses that vectors are read from.
const VECTOR: usize = 16;

/// A tile shape of the kernels, with a kernel for each activation.
pub(crate) struct Tile {
    /// For people.
    pub(crate) name: &'static str,
    dtype: DType,
    rows: usize,
    columns: usize,
    /// Dynamic shared memory.
    shared: usize,
    /// Clocks in which a busy multiprocessor adds 16 values of k to one such tile: the larger of the time of its tensor
    /// cores (2540 operations a clock, what mma.sync reaches on sm_90) and of its shared memory (128 bytes a clock: both
    /// factors written once, and read once by every warp that uses them). In f32, of 128 fused multiply-adds a clock and
    /// its shared memory, which are as long. From arithmetic, not yet from measurements.
    clocks: usize,
    /// For K of any size; the others need rows of a multiple of 16 bytes.
    unaligned: bool,
    /// In the order of [`Activation`].
    kernels: [&'static Kernel<LinearParams>; 3],
}

/// All tile shapes; of equal ones the first is taken.
pub(crate) static TILES: [Tile; 9] = [
    Tile {
        name: "wide",
        dtype: DType::BF16,
        rows: 128,
        columns: 256,
        shared: kernels::SIZE_OF_LINEAR_WIDE_SHARED,
        clocks: 413,
        unaligned: false,
        kernels: [
            &kernels::LINEAR_FORWARD_BIAS_WIDE_BF16,
            &kernels::LINEAR_FORWARD_BIAS_GELU_WIDE_BF16,
            &kernels::LINEAR_FORWARD_BIAS_QUICK_GELU_WIDE_BF16,
        ],
    },
    Tile {
        name: "square",
        dtype: DType::BF16,
        rows: 128,
        columns: 128,
        shared: kernels::SIZE_OF_LINEAR_SQUARE_SHARED,
        clocks: 207,
        unaligned: false,
        kernels: [
            &kernels::LINEAR_FORWARD_BIAS_SQUARE_BF16,
            &kernels::LINEAR_FORWARD_BIAS_GELU_SQUARE_BF16,
            &kernels::LINEAR_FORWARD_BIAS_QUICK_GELU_SQUARE_BF16,
        ],
    },
    Tile {
        name: "flat",
        dtype: DType::BF16,
        rows: 64,
        columns: 128,
        shared: kernels::SIZE_OF_LINEAR_FLAT_SHARED,
        clocks: 144,
        unaligned: false,
        kernels: [
            &kernels::LINEAR_FORWARD_BIAS_FLAT_BF16,
            &kernels::LINEAR_FORWARD_BIAS_GELU_FLAT_BF16,
            &kernels::LINEAR_FORWARD_BIAS_QUICK_GELU_FLAT_BF16,
        ],
    },
    Tile {
        name: "small",
        dtype: DType::BF16,
        rows: 64,
        columns: 64,
        shared: kernels::SIZE_OF_LINEAR_SMALL_SHARED,
        clocks: 96,
        unaligned: false,
        kernels: [
            &kernels::LINEAR_FORWARD_BIAS_SMALL_BF16,
            &kernels::LINEAR_FORWARD_BIAS_GELU_SMALL_BF16,
            &kernels::LINEAR_FORWARD_BIAS_QUICK_GELU_SMALL_BF16,
        ],
    },
    Tile {
        name: "least",
        dtype: DType::BF16,
        rows: 32,
        columns: 64,
        shared: kernels::SIZE_OF_LINEAR_LEAST_SHARED,
        clocks: 72,
        unaligned: false,
        kernels: [
            &kernels::LINEAR_FORWARD_BIAS_LEAST_BF16,
            &kernels::LINEAR_FORWARD_BIAS_GELU_LEAST_BF16,
            &kernels::LINEAR_FORWARD_BIAS_QUICK_GELU_LEAST_BF16,
        ],
    },
    Tile {
        name: "unaligned",
        dtype: DType::BF16,
        rows: 64,
        columns: 64,
        shared: kernels::SIZE_OF_LINEAR_SMALL_SHARED,
        clocks: 1000,
        unaligned: true,
        kernels: [
            &kernels::LINEAR_FORWARD_BIAS_UNALIGNED_BF16,
            &kernels::LINEAR_FORWARD_BIAS_GELU_UNALIGNED_BF16,
            &kernels::LINEAR_FORWARD_BIAS_QUICK_GELU_UNALIGNED_BF16,
        ],
    },
    Tile {
        name: "square",
        dtype: DType::F32,
        rows: 128,
        columns: 128,
        shared: kernels::SIZE_OF_LINEAR_SQUARE_F32_SHARED,
        clocks: 2048,
        unaligned: false,
        kernels: [
            &kernels::LINEAR_FORWARD_BIAS_SQUARE_F32,
            &kernels::LINEAR_FORWARD_BIAS_GELU_SQUARE_F32,
            &kernels::LINEAR_FORWARD_BIAS_QUICK_GELU_SQUARE_F32,
        ],
    },
    Tile {
        name: "small",
        dtype: DType::F32,
        rows: 64,
        columns: 64,
        shared: kernels::SIZE_OF_LINEAR_SMALL_F32_SHARED,
        clocks: 768,
        unaligned: false,
        kernels: [
            &kernels::LINEAR_FORWARD_BIAS_SMALL_F32,
            &kernels::LINEAR_FORWARD_BIAS_GELU_SMALL_F32,
            &kernels::LINEAR_FORWARD_BIAS_QUICK_GELU_SMALL_F32,
        ],
    },
    Tile {
        name: "unaligned",
        dtype: DType::F32,
        rows: 64,
        columns: 64,
        shared: kernels::SIZE_OF_LINEAR_SMALL_F32_SHARED,
        clocks: 4000,
        unaligned: true,
        kernels: [
            &kernels::LINEAR_FORWARD_BIAS_UNALIGNED_F32,
            &kernels::LINEAR_FORWARD_BIAS_GELU_UNALIGNED_F32,
            &kernels::LINEAR_FORWARD_BIAS_QUICK_GELU_UNALIGNED_F32,
        ],
    },
];

impl Tile {
    /// Whether it can be used for sums of `depth` values of this type.
    pub(crate) fn takes(&self, dtype: DType, depth: usize) -> bool {
        self.dtype == dtype && (self.unaligned || depth * dtype.size() % VECTOR == 0)
    }

    /// Tiles of a result.
    fn count(&self, rows: usize, columns: usize) -> usize {
        rows.div_ceil(self.rows) * columns.div_ceil(self.columns)
    }

    /// Clocks of the busiest multiprocessor for 16 values of k. Whole tiles take turns on all of them; the tiles of the
    /// last rows only multiply the rows there are, in 16s, and first go where a turn was left over.
    fn cost(&self, rows: usize, columns: usize, multiprocessors: usize) -> usize {
        let across = columns.div_ceil(self.columns);
        let (whole, rest) = (rows / self.rows * across, rows % self.rows);
        let turns = whole.div_ceil(multiprocessors);
        let ragged = if rest == 0 { 0 } else { across.saturating_sub(turns * multiprocessors - whole) };
        let height = rest.next_multiple_of(16);
        turns * self.clocks + ragged.div_ceil(multiprocessors) * self.clocks * height / self.rows
    }
}

/// The tile shape that keeps the busiest multiprocessor busy for the shortest time.
fn tile_for(dtype: DType, rows: usize, columns: usize, depth: usize, multiprocessors: usize) -> Option<&'static Tile> {
    let usable = TILES.iter().filter(|tile| tile.takes(dtype, depth));
    usable.min_by_key(|tile| tile.cost(rows, columns, multiprocessors.max(1)))
}

/// The index of an activation's kernel.
fn index(activation: Activation) -> usize {
    match activation {
        Activation::None => 0,
        Activation::Gelu => 1,
        Activation::QuickGelu => 2,
    }
}

/// An error unless the shapes fit.
fn check(op: &'static str, x: &Tensor, layer: &Linear<Cuda>, residual: Option<&Tensor>) -> Result<()> {
    let weight = &layer.weight.tensor;
    let [rows, columns] = [x.rows, weight.rows];
    let fit = x.columns == weight.columns
        && layer.bias.len() == columns
        && layer.bias.dtype == DType::F32
        && residual.is_none_or(|r| [r.rows, r.columns] == [rows, columns]);
    ensure(fit, op, || {
        let residual = residual.map(|r| (r.rows, r.columns));
        let (n, k, bias) = (columns, weight.columns, layer.bias.len());
        format!("x ({rows}, {}), weight ({n}, {k}), bias {bias}, residual {residual:?}", x.columns)
    })
}

/// `act(x weight^T + bias) + residual` for whole sequences, in the type of the backend.
pub(super) fn linear(
    cuda: &Cuda,
    x: &Tensor,
    layer: &Linear<Cuda>,
    activation: Activation,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    check("linear", x, layer, residual)?;
    let weight = &layer.weight.tensor;
    let multiprocessors = cuda.driver.properties().multiprocessors;
    let tile = tile_for(weight.dtype, x.rows, weight.rows, x.columns, multiprocessors);
    let tile = tile.ok_or_else(|| crate::Error::shape("linear", format!("weights in {:?}", weight.dtype)))?;
    linear_tiled(cuda, x, layer, activation, residual, tile)
}

/// The same with a given tile shape, which changes the time and nothing else.
pub(crate) fn linear_tiled(
    cuda: &Cuda,
    x: &Tensor,
    layer: &Linear<Cuda>,
    activation: Activation,
    residual: Option<&Tensor>,
    tile: &Tile,
) -> Result<Tensor> {
    check("linear", x, layer, residual)?;
    let weight = &layer.weight.tensor;
    ensure(tile.takes(weight.dtype, x.columns), "linear", || {
        format!("{} tiles of {:?} for weights of {:?} and sums of {}", tile.name, tile.dtype, weight.dtype, x.columns)
    })?;
    let (rows, columns, dtype) = (x.rows, weight.rows, weight.dtype);
    let x = cuda.rows_of(x, dtype)?;
    let bias = cuda.rows_of(&layer.bias, DType::F32)?;
    let residual = residual.map(|r| cuda.rows_of(r, dtype)).transpose()?;
    let y = cuda.empty([rows, columns], dtype, Layout::Rows)?;
    let params = LinearParams {
        x: x.pointer(),
        weight: weight.pointer(),
        bias: bias.pointer(),
        residual: pointer_of(residual.as_ref()),
        y: y.pointer(),
        rows: int("linear", rows)?,
        columns: int("linear", columns)?,
        depth: int("linear", x.columns)?,
        unused: 0,
    };
    let launch = Launch::blocks(tile.count(rows, columns)).shared(tile.shared);
    // SAFETY: x holds rows * depth elements, weight columns * depth, bias columns, residual and y rows * columns, as was
    // checked; tiles that reach beyond read zeros instead and leave their results out. Tensors begin at multiples of 256
    // bytes, so that the rows of aligned kernels, and the vectors of rows of a multiple of eight columns, are aligned.
    unsafe { cuda.launch(tile.kernels[index(activation)], launch, params)? };
    Ok(y)
}

/// The same for the few rows of a decode step: f32 rows, weights read once.
pub(super) fn linear_step(
    cuda: &Cuda,
    x: &Tensor,
    layer: &Linear<Cuda>,
    activation: Activation,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let _ = (cuda, x, layer, activation, residual);
    todo!()
}
