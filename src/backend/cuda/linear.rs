//! Launches kernels/linear.cu and kernels/linear_step.cu.

use super::driver::{Kernel, Launch};
use super::kernels::{self, LinearParams, LinearStepParams, SIZE_OF_PLAIN_SHARED, SIZE_OF_STEP_SHARED};
use super::{Cuda, Layout, Linear, Tensor, ensure, int, pointer_of};
use crate::Result;
use crate::backend::Activation;
use crate::tensor::DType;

/// A tile shape of kernels/linear.cu.
struct Tile {
    rows: usize,
    columns: usize,
    stages: usize,
    /// Blocks that a multiprocessor holds at once.
    resident: usize,
    /// Time of a block for each of its sums, next to the other shapes: larger tiles load less for each product.
    cost: f64,
    /// By activation.
    kernels: [&'static Kernel<LinearParams>; 3],
}

/// Values of K of a stage.
const DEPTH: usize = 64;
/// Rows and columns of the tiles on FMA units.
const PLAIN: usize = 64;

/// From the largest to the smallest. The costs are estimates from the bytes that a tile loads for each sum, to be replaced
/// by measurements.
static TILES: [Tile; 3] = [
    Tile {
        rows: 128,
        columns: 128,
        stages: 3,
        resident: 2,
        cost: 1.0,
        kernels: [
            &kernels::LINEAR_FORWARD_BIAS_LARGE_BF16,
            &kernels::LINEAR_FORWARD_BIAS_GELU_LARGE_BF16,
            &kernels::LINEAR_FORWARD_BIAS_QUICK_GELU_LARGE_BF16,
        ],
    },
    Tile {
        rows: 64,
        columns: 64,
        stages: 4,
        resident: 3,
        cost: 1.5,
        kernels: [
            &kernels::LINEAR_FORWARD_BIAS_MEDIUM_BF16,
            &kernels::LINEAR_FORWARD_BIAS_GELU_MEDIUM_BF16,
            &kernels::LINEAR_FORWARD_BIAS_QUICK_GELU_MEDIUM_BF16,
        ],
    },
    Tile {
        rows: 32,
        columns: 64,
        stages: 4,
        resident: 4,
        cost: 2.0,
        kernels: [
            &kernels::LINEAR_FORWARD_BIAS_SMALL_BF16,
            &kernels::LINEAR_FORWARD_BIAS_GELU_SMALL_BF16,
            &kernels::LINEAR_FORWARD_BIAS_QUICK_GELU_SMALL_BF16,
        ],
    },
];

impl Tile {
    /// Relative time of a product: waves over the multiprocessors, each as long as a block of this shape.
    fn time(&self, rows: usize, columns: usize, multiprocessors: usize) -> f64 {
        let blocks = rows.div_ceil(self.rows) * columns.div_ceil(self.columns);
        // A multiprocessor that holds several blocks runs each as much slower.
        let waves = blocks.div_ceil(multiprocessors);
        let last = if waves > self.resident { 1.0 } else { waves as f64 / self.resident as f64 + 0.5 };
        waves as f64 * last.min(1.0) * (self.rows * self.columns) as f64 * self.cost
    }

    fn shared(&self) -> usize {
        self.stages * (self.rows + self.columns) * DEPTH * DType::BF16.size()
    }
}

/// Index of an activation in the tables of kernels.
fn number(activation: Activation) -> usize {
    match activation {
        Activation::None => 0,
        Activation::Gelu => 1,
        Activation::QuickGelu => 2,
    }
}

fn check(op: &'static str, x: &Tensor, layer: &Linear<Cuda>, residual: Option<&Tensor>) -> Result<()> {
    let weight = &layer.weight.tensor;
    let (m, n) = (x.rows, weight.rows);
    ensure(
        x.columns == weight.columns && layer.bias.len() == n && residual.is_none_or(|r| (r.rows, r.columns) == (m, n)),
        op,
        || {
            let residual = residual.map(|r| (r.rows, r.columns));
            let bias = layer.bias.len();
            format!("x ({m}, {}), weight ({n}, {}), bias {bias}, residual {residual:?}", x.columns, weight.columns)
        },
    )
}

/// `act(x weight^T + bias) + residual` for whole sequences, in the type of the backend.
pub(super) fn linear(
    cuda: &Cuda,
    x: &Tensor,
    layer: &Linear<Cuda>,
    activation: Activation,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    const OP: &str = "linear";
    check(OP, x, layer, residual)?;
    let weight = &layer.weight.tensor;
    let (rows, columns, depth) = (x.rows, weight.rows, weight.columns);
    let x = cuda.rows_of(x, cuda.dtype)?;
    let residual = residual.map(|r| cuda.rows_of(r, cuda.dtype)).transpose()?;
    let y = cuda.empty([rows, columns], cuda.dtype, Layout::Rows)?;
    let params = LinearParams {
        x: x.pointer(),
        weight: weight.pointer(),
        bias: layer.bias.pointer(),
        residual: pointer_of(residual.as_ref()),
        y: y.pointer(),
        rows: int(OP, rows)?,
        columns: int(OP, columns)?,
        depth: int(OP, depth)?,
        unused: 0,
    };
    let (kernel, launch) = if cuda.dtype == DType::BF16 && depth.is_multiple_of(8) {
        let multiprocessors = cuda.driver.properties().multiprocessors;
        let time = |tile: &Tile| tile.time(rows, columns, multiprocessors);
        let tile = TILES.iter().min_by(|a, b| time(a).total_cmp(&time(b))).unwrap_or(&TILES[0]);
        let grid = [rows.div_ceil(tile.rows), columns.div_ceil(tile.columns), 1];
        (tile.kernels[number(activation)], Launch::grid(grid).shared(tile.shared()))
    } else {
        let grid = [rows.div_ceil(PLAIN), columns.div_ceil(PLAIN), 1];
        (plain(cuda.dtype, activation), Launch::grid(grid).shared(SIZE_OF_PLAIN_SHARED))
    };
    // SAFETY: the shapes were checked; the kernels read and write no row from M on, no column from N on and no value of a
    // row from K on; with K % 8 == 0 every row begins at a multiple of 16 bytes.
    unsafe { cuda.launch(kernel, launch, params)? };
    Ok(y)
}

fn plain(dtype: DType, activation: Activation) -> &'static Kernel<LinearParams> {
    match (dtype, activation) {
        (DType::BF16, Activation::None) => &kernels::LINEAR_FORWARD_BIAS_PLAIN_BF16,
        (DType::BF16, Activation::Gelu) => &kernels::LINEAR_FORWARD_BIAS_GELU_PLAIN_BF16,
        (DType::BF16, Activation::QuickGelu) => &kernels::LINEAR_FORWARD_BIAS_QUICK_GELU_PLAIN_BF16,
        (_, Activation::None) => &kernels::LINEAR_FORWARD_BIAS_PLAIN_F32,
        (_, Activation::Gelu) => &kernels::LINEAR_FORWARD_BIAS_GELU_PLAIN_F32,
        (_, Activation::QuickGelu) => &kernels::LINEAR_FORWARD_BIAS_QUICK_GELU_PLAIN_F32,
    }
}

/// Weight rows of a block of linear_step.
const STEP_ROWS: usize = 16;
/// Weight rows of a block of its row-per-warp form.
const WARP_ROWS: usize = 8;
/// Shortest run of K of a block: one piece for each of its warps.
const SHORTEST_RUN: usize = 256;
/// Blocks that keep the memory of the devices in mind busy: two on each of 132 multiprocessors. A constant, so that sums
/// are split alike on every device.
const STEP_BLOCKS: usize = 264;

/// The same for the few rows of a decode step: f32 rows, weights read once.
pub(super) fn linear_step(
    cuda: &Cuda,
    x: &Tensor,
    layer: &Linear<Cuda>,
    activation: Activation,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    const OP: &str = "linear_step";
    check(OP, x, layer, residual)?;
    let weight = &layer.weight.tensor;
    let (rows, columns, depth) = (x.rows, weight.rows, weight.columns);
    let x = cuda.rows_of(x, DType::F32)?;
    let residual = residual.map(|r| cuda.rows_of(r, DType::F32)).transpose()?;
    let y = cuda.empty([rows, columns], DType::F32, Layout::Rows)?;
    let tensor_cores = weight.dtype == DType::BF16 && depth.is_multiple_of(8);
    let blocks = columns.div_ceil(STEP_ROWS);
    let most = if tensor_cores && blocks <= cuda.counters.len() { depth.div_ceil(SHORTEST_RUN).max(1) } else { 1 };
    let splits = STEP_BLOCKS.div_ceil(blocks.max(1)).clamp(1, most);
    let run = depth.div_ceil(splits).next_multiple_of(SHORTEST_RUN);
    let splits = depth.div_ceil(run.max(1)).max(1);
    let partials =
        if splits > 1 { Some(cuda.empty([splits * rows, columns], DType::F32, Layout::Rows)?) } else { None };
    let params = LinearStepParams {
        x: x.pointer(),
        weight: weight.pointer(),
        bias: layer.bias.pointer(),
        residual: pointer_of(residual.as_ref()),
        y: y.pointer(),
        partials: pointer_of(partials.as_ref()),
        counters: cuda.counters.pointer(),
        rows: int(OP, rows)?,
        columns: int(OP, columns)?,
        depth: int(OP, depth)?,
        splits: int(OP, splits)?,
        run: int(OP, run)?,
        activation: int(OP, number(activation))?,
    };
    let (kernel, launch) = if tensor_cores {
        let grid = if rows == 0 { [0; 3] } else { [blocks, splits, 1] };
        (&kernels::LINEAR_STEP_FORWARD_BF16, Launch::grid(grid).shared(SIZE_OF_STEP_SHARED))
    } else if weight.dtype == DType::BF16 {
        (&kernels::LINEAR_STEP_FORWARD_ROW_PER_WARP_BF16, Launch::blocks(columns.div_ceil(WARP_ROWS)))
    } else {
        (&kernels::LINEAR_STEP_FORWARD_ROW_PER_WARP_F32, Launch::blocks(columns.div_ceil(WARP_ROWS)))
    };
    // SAFETY: the shapes were checked; rows of x from M on are not read, weight rows from N on repeat the last, K ends at
    // the row's end; partials hold a sum for each split, row and column, counters one for each block of rows.
    unsafe { cuda.launch(kernel, launch, params)? };
    Ok(y)
}
