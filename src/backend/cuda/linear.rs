//! Launches kernels/linear/forward.cu and kernels/linear/step.cu.

use super::driver::{DevicePtr, Kernel, Launch};
use super::kernels::{self, LinearParams, LinearStepParams};
use super::{Cuda, Layout, LinearWeights, Tensor, ensure, int, pointer_of};
use crate::Result;
use crate::backend::Activation;
use crate::tensor::DType;

/// Bytes of the addresses that vectors are read from.
const VECTOR: usize = 16;
/// Bytes of a chunk of a weight row, the unit in which the sums of a decode step are shared out.
const CHUNK: usize = 128;
/// Blocks that keep a large device busy: two on each of 132 multiprocessors. Not asked of the device, so that results are
/// the same on all.
const SHARE_BLOCKS: usize = 264;
/// Columns of a block, for that count.
const SHARE_COLUMNS: usize = 32;
/// Chunks below which a block is not worth the wait for the others: two for each of eight warps.
const SHARE_LEAST: usize = 16;

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

/// A tile shape of [`TILES`].
const fn tile(
    name: &'static str,
    dtype: DType,
    [rows, columns]: [usize; 2],
    shared: usize,
    clocks: usize,
    kernels: [&'static Kernel<LinearParams>; 3],
) -> Tile {
    Tile { name, dtype, rows, columns, shared, clocks, unaligned: false, kernels }
}

/// All tile shapes; of equal ones the first is taken.
pub(crate) static TILES: [Tile; 9] = [
    tile(
        "wide",
        DType::BF16,
        [128, 256],
        kernels::SIZE_OF_LINEAR_WIDE_SHARED,
        413,
        [
            &kernels::LINEAR_FORWARD_BIAS_WIDE_BF16,
            &kernels::LINEAR_FORWARD_BIAS_GELU_WIDE_BF16,
            &kernels::LINEAR_FORWARD_BIAS_QUICK_GELU_WIDE_BF16,
        ],
    ),
    tile(
        "square",
        DType::BF16,
        [128, 128],
        kernels::SIZE_OF_LINEAR_SQUARE_SHARED,
        207,
        [
            &kernels::LINEAR_FORWARD_BIAS_SQUARE_BF16,
            &kernels::LINEAR_FORWARD_BIAS_GELU_SQUARE_BF16,
            &kernels::LINEAR_FORWARD_BIAS_QUICK_GELU_SQUARE_BF16,
        ],
    ),
    tile(
        "flat",
        DType::BF16,
        [64, 128],
        kernels::SIZE_OF_LINEAR_FLAT_SHARED,
        144,
        [
            &kernels::LINEAR_FORWARD_BIAS_FLAT_BF16,
            &kernels::LINEAR_FORWARD_BIAS_GELU_FLAT_BF16,
            &kernels::LINEAR_FORWARD_BIAS_QUICK_GELU_FLAT_BF16,
        ],
    ),
    tile(
        "small",
        DType::BF16,
        [64, 64],
        kernels::SIZE_OF_LINEAR_SMALL_SHARED,
        96,
        [
            &kernels::LINEAR_FORWARD_BIAS_SMALL_BF16,
            &kernels::LINEAR_FORWARD_BIAS_GELU_SMALL_BF16,
            &kernels::LINEAR_FORWARD_BIAS_QUICK_GELU_SMALL_BF16,
        ],
    ),
    tile(
        "least",
        DType::BF16,
        [32, 64],
        kernels::SIZE_OF_LINEAR_LEAST_SHARED,
        72,
        [
            &kernels::LINEAR_FORWARD_BIAS_LEAST_BF16,
            &kernels::LINEAR_FORWARD_BIAS_GELU_LEAST_BF16,
            &kernels::LINEAR_FORWARD_BIAS_QUICK_GELU_LEAST_BF16,
        ],
    ),
    Tile {
        unaligned: true,
        ..tile(
            "unaligned",
            DType::BF16,
            [64, 64],
            kernels::SIZE_OF_LINEAR_SMALL_SHARED,
            1000,
            [
                &kernels::LINEAR_FORWARD_BIAS_UNALIGNED_BF16,
                &kernels::LINEAR_FORWARD_BIAS_GELU_UNALIGNED_BF16,
                &kernels::LINEAR_FORWARD_BIAS_QUICK_GELU_UNALIGNED_BF16,
            ],
        )
    },
    tile(
        "square",
        DType::F32,
        [128, 128],
        kernels::SIZE_OF_LINEAR_SQUARE_F32_SHARED,
        2048,
        [
            &kernels::LINEAR_FORWARD_BIAS_SQUARE_F32,
            &kernels::LINEAR_FORWARD_BIAS_GELU_SQUARE_F32,
            &kernels::LINEAR_FORWARD_BIAS_QUICK_GELU_SQUARE_F32,
        ],
    ),
    tile(
        "small",
        DType::F32,
        [64, 64],
        kernels::SIZE_OF_LINEAR_SMALL_F32_SHARED,
        768,
        [
            &kernels::LINEAR_FORWARD_BIAS_SMALL_F32,
            &kernels::LINEAR_FORWARD_BIAS_GELU_SMALL_F32,
            &kernels::LINEAR_FORWARD_BIAS_QUICK_GELU_SMALL_F32,
        ],
    ),
    Tile {
        unaligned: true,
        ..tile(
            "unaligned",
            DType::F32,
            [64, 64],
            kernels::SIZE_OF_LINEAR_SMALL_F32_SHARED,
            4000,
            [
                &kernels::LINEAR_FORWARD_BIAS_UNALIGNED_F32,
                &kernels::LINEAR_FORWARD_BIAS_GELU_UNALIGNED_F32,
                &kernels::LINEAR_FORWARD_BIAS_QUICK_GELU_UNALIGNED_F32,
            ],
        )
    },
];

impl Tile {
    /// Whether it can be used for sums of `depth` values of this type.
    pub(crate) fn takes(&self, dtype: DType, depth: usize) -> bool {
        self.dtype == dtype && (self.unaligned || (depth * dtype.size()).is_multiple_of(VECTOR))
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

/// A form of the decode step, with a kernel for each activation.
struct Form {
    dtype: DType,
    /// Rows of a block.
    rows: usize,
    /// Columns of a block.
    columns: usize,
    /// Dynamic shared memory.
    shared: usize,
    /// For K of any size.
    unaligned: bool,
    /// In the order of [`Activation`].
    kernels: [&'static Kernel<LinearStepParams>; 3],
}

/// A form of [`FORMS`].
const fn form(
    dtype: DType,
    [rows, columns]: [usize; 2],
    shared: usize,
    unaligned: bool,
    kernels: [&'static Kernel<LinearStepParams>; 3],
) -> Form {
    Form { dtype, rows, columns, shared, unaligned, kernels }
}

/// By rising number of rows.
static FORMS: [Form; 7] = [
    form(
        DType::BF16,
        [8, 32],
        kernels::SIZE_OF_STEP_FEW_NARROW_SHARED,
        false,
        [
            &kernels::LINEAR_STEP_FORWARD_BIAS_FEW_BF16,
            &kernels::LINEAR_STEP_FORWARD_BIAS_GELU_FEW_BF16,
            &kernels::LINEAR_STEP_FORWARD_BIAS_QUICK_GELU_FEW_BF16,
        ],
    ),
    form(
        DType::BF16,
        [16, 32],
        kernels::SIZE_OF_STEP_SOME_NARROW_SHARED,
        false,
        [
            &kernels::LINEAR_STEP_FORWARD_BIAS_SOME_BF16,
            &kernels::LINEAR_STEP_FORWARD_BIAS_GELU_SOME_BF16,
            &kernels::LINEAR_STEP_FORWARD_BIAS_QUICK_GELU_SOME_BF16,
        ],
    ),
    form(
        DType::BF16,
        [64, 64],
        kernels::SIZE_OF_STEP_MANY_NARROW_SHARED,
        false,
        [
            &kernels::LINEAR_STEP_FORWARD_BIAS_MANY_BF16,
            &kernels::LINEAR_STEP_FORWARD_BIAS_GELU_MANY_BF16,
            &kernels::LINEAR_STEP_FORWARD_BIAS_QUICK_GELU_MANY_BF16,
        ],
    ),
    form(
        DType::BF16,
        [8, 32],
        kernels::SIZE_OF_STEP_FEW_NARROW_SHARED,
        true,
        [
            &kernels::LINEAR_STEP_FORWARD_BIAS_UNALIGNED_BF16,
            &kernels::LINEAR_STEP_FORWARD_BIAS_GELU_UNALIGNED_BF16,
            &kernels::LINEAR_STEP_FORWARD_BIAS_QUICK_GELU_UNALIGNED_BF16,
        ],
    ),
    form(
        DType::F32,
        [8, 32],
        kernels::SIZE_OF_STEP_FEW_WIDE_SHARED,
        false,
        [
            &kernels::LINEAR_STEP_FORWARD_BIAS_FEW_F32,
            &kernels::LINEAR_STEP_FORWARD_BIAS_GELU_FEW_F32,
            &kernels::LINEAR_STEP_FORWARD_BIAS_QUICK_GELU_FEW_F32,
        ],
    ),
    form(
        DType::F32,
        [64, 32],
        kernels::SIZE_OF_STEP_MANY_WIDE_SHARED,
        false,
        [
            &kernels::LINEAR_STEP_FORWARD_BIAS_MANY_F32,
            &kernels::LINEAR_STEP_FORWARD_BIAS_GELU_MANY_F32,
            &kernels::LINEAR_STEP_FORWARD_BIAS_QUICK_GELU_MANY_F32,
        ],
    ),
    form(
        DType::F32,
        [8, 32],
        kernels::SIZE_OF_STEP_FEW_WIDE_SHARED,
        true,
        [
            &kernels::LINEAR_STEP_FORWARD_BIAS_UNALIGNED_F32,
            &kernels::LINEAR_STEP_FORWARD_BIAS_GELU_UNALIGNED_F32,
            &kernels::LINEAR_STEP_FORWARD_BIAS_QUICK_GELU_UNALIGNED_F32,
        ],
    ),
];

/// The smallest form that takes all rows at once, or the largest.
fn form_for(dtype: DType, rows: usize, depth: usize) -> Option<&'static Form> {
    let unaligned = !(depth * dtype.size()).is_multiple_of(VECTOR);
    let mut usable = FORMS.iter().filter(|form| form.dtype == dtype && form.unaligned == unaligned);
    usable.clone().find(|form| form.rows >= rows).or(usable.next_back())
}

/// How the sums of a tile are shared among blocks.
struct Share {
    blocks: usize,
    /// Chunks of each block.
    chunks: usize,
}

/// Depends on the weights alone, and so does the order of additions.
fn share(dtype: DType, columns: usize, depth: usize) -> Share {
    let chunks = (depth * dtype.size()).div_ceil(CHUNK).max(1);
    let enough = (chunks * columns.div_ceil(SHARE_COLUMNS)).div_ceil(SHARE_BLOCKS).max(SHARE_LEAST);
    let chunks_of_block = chunks.div_ceil(chunks.div_ceil(enough));
    Share { blocks: chunks.div_ceil(chunks_of_block), chunks: chunks_of_block }
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
fn check(op: &'static str, x: &Tensor, layer: &LinearWeights<Cuda>, residual: Option<&Tensor>) -> Result<()> {
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
    layer: &LinearWeights<Cuda>,
    activation: Activation,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    linear_tiled(cuda, x, layer, activation, residual, best_tile(cuda, x, layer)?)
}

/// Where keys and values of packed rows go besides; the caller sees to it that there is room for all of them.
pub(super) struct Split {
    /// (pictures, H, prefix, D), of the type of the weights.
    pub keys: DevicePtr,
    pub values: DevicePtr,
    /// u32: which picture each run of `prefix` rows is.
    pub pictures: DevicePtr,
    pub prefix: usize,
    pub heads: usize,
}

impl Split {
    /// Nothing goes anywhere.
    const NONE: Split =
        Split { keys: DevicePtr::NULL, values: DevicePtr::NULL, pictures: DevicePtr::NULL, prefix: 0, heads: 0 };
}

/// `x weight^T + bias`, a row of packed query, key and value each, whose keys and values also go where `split` says.
pub(super) fn linear_split(cuda: &Cuda, x: &Tensor, layer: &LinearWeights<Cuda>, split: Split) -> Result<Tensor> {
    launch(cuda, x, layer, (Activation::None, None), split, best_tile(cuda, x, layer)?)
}

fn best_tile(cuda: &Cuda, x: &Tensor, layer: &LinearWeights<Cuda>) -> Result<&'static Tile> {
    let weight = &layer.weight.tensor;
    let multiprocessors = cuda.stream.properties().multiprocessors;
    let tile = tile_for(weight.dtype, x.rows, weight.rows, x.columns, multiprocessors);
    tile.ok_or_else(|| crate::Error::shape("linear", format!("weights in {:?}", weight.dtype)))
}

/// The same with a given tile shape, which changes the time and nothing else.
pub(crate) fn linear_tiled(
    cuda: &Cuda,
    x: &Tensor,
    layer: &LinearWeights<Cuda>,
    activation: Activation,
    residual: Option<&Tensor>,
    tile: &Tile,
) -> Result<Tensor> {
    launch(cuda, x, layer, (activation, residual), Split::NONE, tile)
}

fn launch(
    cuda: &Cuda,
    x: &Tensor,
    layer: &LinearWeights<Cuda>,
    (activation, residual): (Activation, Option<&Tensor>),
    split: Split,
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
        keys: split.keys,
        values: split.values,
        pictures: split.pictures,
        rows: int("linear", rows)?,
        columns: int("linear", columns)?,
        depth: int("linear", x.columns)?,
        prefix: int("linear", split.prefix)?,
        heads: int("linear", split.heads)?,
        unused: 0,
    };
    let launch = Launch::blocks(tile.count(rows, columns)).shared_bytes(tile.shared);
    // SAFETY: x holds rows * depth elements, weight columns * depth, bias columns, residual and y rows * columns, as was
    // checked, and a split has room for all; tiles that reach beyond read zeros and leave their results out. Tensors begin at multiples of 256
    // bytes, so that the rows of aligned kernels, and the vectors of rows of a multiple of eight columns, are aligned.
    unsafe { cuda.launch(tile.kernels[index(activation)], launch, params)? };
    Ok(y)
}

/// The same for the few rows of a decode step: f32 rows, weights read once.
pub(super) fn linear_decode(
    cuda: &Cuda,
    x: &Tensor,
    layer: &LinearWeights<Cuda>,
    activation: Activation,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let op = "linear_decode";
    check(op, x, layer, residual)?;
    let weight = &layer.weight.tensor;
    let (rows, columns, depth) = (x.rows, weight.rows, x.columns);
    let form = form_for(weight.dtype, rows, depth);
    let form = form.ok_or_else(|| crate::Error::shape(op, format!("weights in {:?}", weight.dtype)))?;
    let x = cuda.rows_of(x, DType::F32)?;
    let bias = cuda.rows_of(&layer.bias, DType::F32)?;
    let residual = residual.map(|r| cuda.rows_of(r, DType::F32)).transpose()?;
    let y = cuda.empty([rows, columns], DType::F32, Layout::Rows)?;
    let share = share(weight.dtype, columns, depth);
    let tiles = columns.div_ceil(form.columns);
    // Each tile of y needs a counter of its own.
    let most = if share.blocks == 1 { rows.max(1) } else { (cuda.counters.len() / tiles.max(1)).max(1) * form.rows };
    ensure(share.blocks == 1 || tiles <= cuda.counters.len(), op, || {
        format!("{columns} columns share sums of {depth}")
    })?;
    let size = [most.min(rows).div_ceil(form.rows) * tiles * share.blocks, form.rows * form.columns];
    let partial = if share.blocks > 1 { Some(cuda.empty(size, DType::F32, Layout::Rows)?) } else { None };
    for first in (0..rows).step_by(most) {
        let rows = most.min(rows - first);
        let from = |pointer: DevicePtr, columns: usize| pointer.offset(first * columns * DType::F32.size());
        let params = LinearStepParams {
            x: from(x.pointer(), depth),
            weight: weight.pointer(),
            bias: bias.pointer(),
            residual: residual.as_ref().map_or(DevicePtr::NULL, |r| from(r.pointer(), columns)),
            y: from(y.pointer(), columns),
            partial: pointer_of(partial.as_ref()),
            arrived: cuda.counters.pointer(),
            rows: int(op, rows)?,
            columns: int(op, columns)?,
            depth: int(op, depth)?,
            block_chunks: int(op, share.chunks)?,
        };
        let launch = Launch::grid([tiles, share.blocks, rows.div_ceil(form.rows)]).shared_bytes(form.shared);
        // SAFETY: x, weight, bias, residual and y hold what was checked, from row `first` on; rows and columns beyond are
        // neither read nor written. Every block has its own part of `partial`, every tile of shared sums its counter.
        // With K a multiple of a vector, or the unaligned form, all vectors are aligned.
        unsafe { cuda.launch(form.kernels[index(activation)], launch, params)? };
    }
    Ok(y)
}

#[cfg(all(test, feature = "emulator"))]
mod tests {
    use super::*;
    use crate::backend::cuda::driver::emulator;
    use crate::backend::prelude::*;
    use crate::tensor::HostTensor;

    fn cuda(dtype: DType) -> Cuda {
        Cuda::new(emulator::driver(), dtype).unwrap()
    }

    fn layer(cuda: &Cuda, columns: usize, depth: usize) -> LinearWeights<Cuda> {
        let weight = HostTensor::from_f32(&[columns, depth], vec![1.0; columns * depth]).unwrap();
        let bias = cuda.upload([1, columns], &vec![0.5; columns]).unwrap();
        LinearWeights { weight: cuda.matrix(weight).unwrap(), bias }
    }

    #[test]
    fn misfits_name_the_operation_and_the_shapes() {
        for dtype in [DType::F32, DType::BF16] {
            let cuda = cuda(dtype);
            let layer = layer(&cuda, 3, 2);
            let (wide, fit) = (cuda.upload([2, 3], &[0.0; 6]).unwrap(), cuda.upload([1, 2], &[0.0; 2]).unwrap());
            let short = LinearWeights {
                weight: cuda.matrix(HostTensor::from_f32(&[3, 2], vec![1.0; 6]).unwrap()).unwrap(),
                bias: fit.clone(),
            };
            for (op, run) in
                [("linear:", Cuda::linear as fn(&Cuda, &_, &_, _, _) -> _), ("linear_decode:", Cuda::linear_decode)]
            {
                let error =
                    |x, layer, residual| run(&cuda, x, layer, Activation::None, residual).err().unwrap().to_string();
                for error in [error(&wide, &layer, None), error(&fit, &layer, Some(&fit)), error(&fit, &short, None)] {
                    assert!(error.contains(op) && error.contains("weight (3, 2)"), "{error}");
                }
                assert!(error(&wide, &layer, None).contains("x (2, 3)"));
            }
        }
    }

    #[test]
    fn nothing_is_computed_of_nothing() {
        for dtype in [DType::F32, DType::BF16] {
            let cuda = cuda(dtype);
            for run in [Cuda::linear, Cuda::linear_decode] {
                let none = run(&cuda, &cuda.upload([0, 2], &[]).unwrap(), &layer(&cuda, 3, 2), Activation::Gelu, None);
                assert_eq!(cuda.shape(&none.unwrap()), [0, 3]);
                let none =
                    run(&cuda, &cuda.upload([2, 2], &[1.0; 4]).unwrap(), &layer(&cuda, 0, 2), Activation::None, None);
                assert_eq!(cuda.shape(&none.unwrap()), [2, 0]);
                // A sum of nothing is the bias.
                let bias = run(&cuda, &cuda.upload([2, 0], &[]).unwrap(), &layer(&cuda, 3, 0), Activation::None, None);
                assert_eq!(cuda.download(&bias.unwrap()).unwrap(), [0.5; 6]);
            }
        }
    }

    /// More tiles of shared sums than there are counters take several launches.
    #[test]
    fn steps_of_many_rows_share_the_counters() {
        let cuda = cuda(DType::F32);
        let (columns, depth) = (800, 513);
        let tiles = columns / SHARE_COLUMNS;
        assert!(share(DType::F32, columns, depth).blocks > 1);
        let rows = 8 * (cuda.counters.len() / tiles) + 1;
        let x = cuda.upload([rows, depth], &vec![1.0; rows * depth]).unwrap();
        let y = cuda.linear_decode(&x, &layer(&cuda, columns, depth), Activation::None, None).unwrap();
        assert!(cuda.download(&y).unwrap().iter().all(|&v| v == depth as f32 + 0.5));
    }

    #[test]
    fn sums_are_shared_out_whole() {
        for dtype in [DType::F32, DType::BF16] {
            for columns in [1, 203, 768, 2304, 4096, 50_000] {
                for depth in [0, 1, 64, 768, 1029, 3072, 4096, 65_536] {
                    let Share { blocks, chunks } = share(dtype, columns, depth);
                    let all = (depth * dtype.size()).div_ceil(CHUNK).max(1);
                    assert!(
                        blocks * chunks >= all && (blocks - 1) * chunks < all,
                        "{columns}x{depth}: {blocks} of {chunks}"
                    );
                }
            }
        }
    }

    /// One picture's 257 tokens do not fill tiles of 128 rows; large products do.
    #[test]
    fn tiles_follow_the_shape() {
        let chosen = |rows, columns, depth| tile_for(DType::BF16, rows, columns, depth, 132).unwrap().name;
        assert_eq!(chosen(4096, 4096, 4096), "wide");
        assert_eq!(chosen(257, 3072, 1024), "flat");
        assert!(["small", "least"].contains(&chosen(257, 1024, 4096)));
        assert_eq!(chosen(257, 1024, 1001), "unaligned");
        assert_eq!(tile_for(DType::F32, 4096, 4096, 4096, 132).unwrap().name, "square");
        assert_eq!(tile_for(DType::F32, 1, 1, 3, 132).unwrap().name, "unaligned");
    }
}
