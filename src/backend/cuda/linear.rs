//! Launches kernels/linear/forward.cu and kernels/linear/decode.cu; `backward` those of training.

mod backward;

pub(super) use backward::{add_columns, add_product, place};

use super::driver::{BoxedMatrix, DevicePtr, Launch, Properties, TensorMap};
use super::kernels::{self, LinearDecodeParams, LinearParams};
use super::tiles::{self, Tile};
use super::{Cuda, Layout, LinearWeights, Tensor, ensure, int, pointer_of};
use crate::Result;
use crate::backend::{Activation, Linear, linear};
use crate::tensor::DType;

/// Bytes of the addresses that vectors are read from.
const VECTOR: usize = 16;
/// A tile for whole sequences, and one for decode steps.
pub(crate) type ForwardTile = Tile<LinearParams>;
type DecodeTile = Tile<LinearDecodeParams>;

/// Bytes of a k_tile of a weight row, the unit in which the sums of a decode step are shared out.
const K_TILE_BYTES: usize = 128;
/// Blocks that keep a large device busy: two on each of 132 multiprocessors. Not asked of the device, so that results are
/// the same on all.
const SHARE_BLOCKS: usize = 264;
/// Columns of a block, for that count.
const SHARE_COLUMNS: usize = 32;
/// k_tiles below which a block is not worth the wait for the others: two for each of eight warps.
const SHARE_MIN: usize = 16;

/// Tiles for whole sequences.
pub(crate) use kernels::LINEAR_FORWARD_TILES as TILES;

/// Whether rows of `k` values of this type begin at multiples of a vector.
pub(crate) fn is_aligned(dtype: DType, k: usize) -> bool {
    (k * dtype.size()).is_multiple_of(VECTOR)
}

/// The tile that keeps the busiest multiprocessor busy for the shortest time.
fn tile_for(dtype: DType, [rows, columns, k]: [usize; 3], device: &Properties) -> Option<&'static ForwardTile> {
    tiles::fastest(&TILES, dtype, is_aligned(dtype, k), [rows, columns], device)
}

/// The tile for the rows of a decode step: the weights are read once for each block of rows.
fn decode_tile_for(dtype: DType, rows: usize, k: usize, device: &Properties) -> Option<&'static DecodeTile> {
    let fits =
        |tile: &&DecodeTile| tile.takes(dtype, is_aligned(dtype, k)) && tile.shared_bytes <= device.shared_per_block;
    let usable = kernels::LINEAR_DECODE_FORWARD_TILES.iter().filter(fits);
    usable.min_by_key(|tile| rows.div_ceil(tile.rows) * tile.time)
}

/// How the sums of a tile are shared among blocks.
struct Share {
    blocks: usize,
    /// k_tiles of each block.
    k_tiles: usize,
}

/// Depends on the weights alone, and so does the order of additions.
fn share(dtype: DType, columns: usize, k: usize) -> Share {
    let k_tiles = (k * dtype.size()).div_ceil(K_TILE_BYTES).max(1);
    let enough = (k_tiles * columns.div_ceil(SHARE_COLUMNS)).div_ceil(SHARE_BLOCKS).max(SHARE_MIN);
    let of_block = k_tiles.div_ceil(k_tiles.div_ceil(enough));
    Share { blocks: k_tiles.div_ceil(of_block), k_tiles: of_block }
}

/// ACTIVATION_* of kernels/linear/activation.cuh.
pub(super) fn code(activation: Activation) -> i32 {
    match activation {
        Activation::None => 0,
        Activation::Gelu => 1,
        Activation::QuickGelu => 2,
        Activation::Tanh => 3,
        Activation::Relu6 => 4,
    }
}

impl Linear for Cuda {
    fn linear(
        &self,
        x: &Tensor,
        layer: &LinearWeights<Cuda>,
        activation: Activation,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        linear_tiled(self, x, layer, activation, residual, best_tile(self, x, layer)?)
    }

    fn linear_decode(
        &self,
        x: &Tensor,
        layer: &LinearWeights<Cuda>,
        activation: Activation,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        linear::check("linear_decode", self, x, layer, residual)?;
        launch_decode(self, x, layer, activation, residual)
    }
}

/// Destination in a KV cache of the keys and values of packed rows. The caller guarantees capacity.
pub(super) struct Split {
    /// (images, H, prefix, D), of the type of the weights.
    pub keys: DevicePtr,
    pub values: DevicePtr,
    /// u32: which image each run of `prefix` rows is.
    pub images: DevicePtr,
    pub prefix: usize,
    pub heads: usize,
}

impl Split {
    /// Nothing goes anywhere.
    const NONE: Split =
        Split { keys: DevicePtr::NULL, values: DevicePtr::NULL, images: DevicePtr::NULL, prefix: 0, heads: 0 };
}

/// `x weight^T + bias`, a row of packed query, key and value each, whose keys and values also go where `split` says. The
/// caller has checked the shapes.
pub(super) fn linear_split(cuda: &Cuda, x: &Tensor, layer: &LinearWeights<Cuda>, split: Split) -> Result<Tensor> {
    launch(cuda, x, layer, Epilogue { split, ..Epilogue::of(Activation::None) }, best_tile(cuda, x, layer)?)
}

fn best_tile(cuda: &Cuda, x: &Tensor, layer: &LinearWeights<Cuda>) -> Result<&'static ForwardTile> {
    let weight = &layer.weight.tensor;
    let tile = tile_for(weight.dtype, [x.rows, weight.rows, x.columns], cuda.stream.properties());
    tile.ok_or_else(|| crate::Error::shape("linear", format!("weights in {:?}", weight.dtype)))
}

/// `act(x weight^T + bias) + residual` for whole sequences, in the type of the backend, with a given tile shape, which changes
/// the time and nothing else.
pub(crate) fn linear_tiled(
    cuda: &Cuda,
    x: &Tensor,
    layer: &LinearWeights<Cuda>,
    activation: Activation,
    residual: Option<&Tensor>,
    tile: &ForwardTile,
) -> Result<Tensor> {
    linear::check("linear", cuda, x, layer, residual)?;
    launch(cuda, x, layer, Epilogue { residual, ..Epilogue::of(activation) }, tile)
}

/// The work on finished sums. The caller has checked the shapes.
struct Epilogue<'a> {
    activation: Activation,
    residual: Option<&'a Tensor>,
    /// Where the activation's input goes, of the type of the weights.
    saved: Option<&'a Tensor>,
    split: Split,
}

impl Epilogue<'_> {
    /// An activation and nothing else.
    fn of(activation: Activation) -> Self {
        Epilogue { activation, residual: None, saved: None, split: Split::NONE }
    }
}

fn launch(
    cuda: &Cuda,
    x: &Tensor,
    layer: &LinearWeights<Cuda>,
    epilogue: Epilogue<'_>,
    tile: &ForwardTile,
) -> Result<Tensor> {
    let weight = &layer.weight.tensor;
    let (rows, columns, dtype) = (x.rows, weight.rows, weight.dtype);
    ensure(tile.takes(dtype, is_aligned(dtype, x.columns)) && tile.makes(columns), "linear", || {
        format!("{} tiles of {:?} for weights ({columns}, {}) of {dtype:?}", tile.name, tile.dtype, x.columns)
    })?;
    let x = cuda.rows_of(x, dtype)?;
    let bias = cuda.rows_of(&layer.bias, DType::F32)?;
    let Epilogue { activation, residual, saved, split } = epilogue;
    let residual = residual.map(|r| cuda.rows_of(r, dtype)).transpose()?;
    let y = cuda.empty([rows, columns], dtype, Layout::Rows)?;
    let ([x_map, weight_map], pairing) = maps(cuda, tile, [rows, columns], [&x, weight])?;
    let params = LinearParams {
        x_map,
        weight_map,
        x: x.pointer(),
        weight: weight.pointer(),
        bias: bias.pointer(),
        residual: pointer_of(residual.as_ref()),
        y: y.pointer(),
        saved: pointer_of(saved),
        keys: split.keys,
        values: split.values,
        images: split.images,
        rows: int("linear", rows)?,
        columns: int("linear", columns)?,
        k: int("linear", x.columns)?,
        prefix: int("linear", split.prefix)?,
        heads: int("linear", split.heads)?,
        activation: code(activation),
        pairing,
        unused: [0; 7],
    };
    let blocks = tile.blocks(rows, columns, cuda.stream.properties());
    let launch = Launch::blocks(blocks).shared_bytes(tile.shared_bytes);
    // SAFETY: x holds rows * K elements, weight columns * K, bias columns, residual, y and saved rows * columns, as was checked, and
    // a split has room for all; tiles that reach beyond read zeros and leave their results out. Tensors begin at multiples of
    // 256 bytes, so that the rows of aligned kernels, and the vectors of rows of a multiple of eight columns, are aligned.
    unsafe { cuda.launch(tile.kernel, launch, params)? };
    Ok(y)
}

/// The maps of both operands of a product with so many rows and columns, and the pairing, where tiles are those of pairs.
fn maps<P>(
    cuda: &Cuda,
    tile: &Tile<P>,
    [rows, columns]: [usize; 2],
    operands: [&Tensor; 2],
) -> Result<([TensorMap; 2], i32)> {
    if !tile.is_pair() {
        return Ok(Default::default());
    }
    let pairing = tile.pairing(rows, columns, cuda.stream.properties());
    let [left, right] = pairing.box_rows();
    let map = |operand: &Tensor, box_rows| {
        let (pointer, rows, columns) = (operand.pointer(), operand.rows, operand.columns);
        cuda.stream.tensor_map(BoxedMatrix { pointer, rows, columns, box_rows })
    };
    Ok(([map(operands[0], left)?, map(operands[1], right)?], pairing as i32))
}

/// The same for the few rows of a decode step: f32 rows, weights read once.
fn launch_decode(
    cuda: &Cuda,
    x: &Tensor,
    layer: &LinearWeights<Cuda>,
    activation: Activation,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    const OP: &str = "linear_decode";
    let weight = &layer.weight.tensor;
    let (rows, columns, k) = (x.rows, weight.rows, x.columns);
    let tile = decode_tile_for(weight.dtype, rows, k, cuda.stream.properties());
    let tile = tile.ok_or_else(|| crate::Error::shape(OP, format!("weights in {:?}", weight.dtype)))?;
    let x = cuda.rows_of(x, DType::F32)?;
    let bias = cuda.rows_of(&layer.bias, DType::F32)?;
    let residual = residual.map(|r| cuda.rows_of(r, DType::F32)).transpose()?;
    let y = cuda.empty([rows, columns], DType::F32, Layout::Rows)?;
    let share = share(weight.dtype, columns, k);
    let tiles = columns.div_ceil(tile.columns);
    // Each tile of y needs a counter of its own.
    let max = if share.blocks == 1 { rows.max(1) } else { (cuda.counters.len() / tiles.max(1)).max(1) * tile.rows };
    ensure(share.blocks == 1 || tiles <= cuda.counters.len(), OP, || format!("{columns} columns share sums of {k}"))?;
    let size = [max.min(rows).div_ceil(tile.rows) * tiles * share.blocks, tile.rows * tile.columns];
    let partial = if share.blocks > 1 { Some(cuda.empty(size, DType::F32, Layout::Rows)?) } else { None };
    for first in (0..rows).step_by(max) {
        let rows = max.min(rows - first);
        let from = |pointer: DevicePtr, columns: usize| pointer.offset(first * columns * DType::F32.size());
        let params = LinearDecodeParams {
            x: from(x.pointer(), k),
            weight: weight.pointer(),
            bias: bias.pointer(),
            residual: residual.as_ref().map_or(DevicePtr::NULL, |r| from(r.pointer(), columns)),
            y: from(y.pointer(), columns),
            partial: pointer_of(partial.as_ref()),
            arrived: cuda.counters.pointer(),
            rows: int(OP, rows)?,
            columns: int(OP, columns)?,
            k: int(OP, k)?,
            block_k_tiles: int(OP, share.k_tiles)?,
            activation: code(activation),
            unused: 0,
        };
        let launch = Launch::grid([tiles, share.blocks, rows.div_ceil(tile.rows)]).shared_bytes(tile.shared_bytes);
        // SAFETY: x, weight, bias, residual and y hold what was checked, from row `first` on; rows and columns beyond are
        // neither read nor written. Every block has its own part of `partial`, every tile of shared sums its counter.
        // With K a multiple of a vector, or the unaligned tile, all vectors are aligned.
        unsafe { cuda.launch(tile.kernel, launch, params)? };
    }
    Ok(y)
}

#[cfg(all(test, feature = "emulator"))]
mod tests {
    use super::*;
    use crate::backend::cuda::driver::emulator;
    use crate::backend::prelude::*;
    use crate::random::Philox;
    use crate::tensor::HostTensor;

    fn cuda(dtype: DType) -> Cuda {
        Cuda::new(emulator::driver(), dtype).unwrap()
    }

    fn layer(cuda: &Cuda, columns: usize, k: usize) -> LinearWeights<Cuda> {
        let weight = HostTensor::from_f32(&[columns, k], vec![1.0; columns * k]).unwrap();
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
        let (columns, k) = (800, 513);
        let tiles = columns / SHARE_COLUMNS;
        assert!(share(DType::F32, columns, k).blocks > 1);
        let rows = 8 * (cuda.counters.len() / tiles) + 1;
        let x = cuda.upload([rows, k], &vec![1.0; rows * k]).unwrap();
        let y = cuda.linear_decode(&x, &layer(&cuda, columns, k), Activation::None, None).unwrap();
        assert!(cuda.download(&y).unwrap().iter().all(|&v| v == k as f32 + 0.5));
    }

    #[test]
    fn sums_are_shared_out_whole() {
        for dtype in [DType::F32, DType::BF16] {
            for columns in [1, 203, 768, 2304, 4096, 50_000] {
                for k in [0, 1, 64, 768, 1029, 3072, 4096, 65_536] {
                    let Share { blocks, k_tiles } = share(dtype, columns, k);
                    let all = (k * dtype.size()).div_ceil(K_TILE_BYTES).max(1);
                    assert!(
                        blocks * k_tiles >= all && (blocks - 1) * k_tiles < all,
                        "{columns}x{k}: {blocks} of {k_tiles}"
                    );
                }
            }
        }
    }

    /// Shared memory of a block of an H100 or H200, and of a GeForce of the generations around it.
    const LARGE: usize = 227 << 10;
    const SMALL: usize = 99 << 10;
    const HOPPER: (u32, u32) = (9, 0);
    const AMPERE: (u32, u32) = (8, 0);

    /// One image's 257 tokens do not fill tiles of 128 rows; large products do, where there is room for their stages. The
    /// device chooses the instructions.
    #[test]
    fn tiles_follow_the_shape() {
        let chosen = |dtype, shape, shared, capability| {
            tile_for(dtype, shape, &tiles::device(132, shared, capability)).unwrap().name
        };
        for (shape, ampere, hopper) in [
            ([4096, 4096, 4096], "128x256", "128x256_wgmma"),
            ([257, 3072, 1024], "64x128", "64x128_wgmma"),
            ([257, 1024, 4096], "64x64", "64x64_wgmma"),
            ([257, 768, 3072], "32x64", "64x64_wgmma"),
            ([257, 1024, 1001], "64x64_unaligned", "64x64_unaligned"),
        ] {
            assert_eq!(chosen(DType::BF16, shape, LARGE, AMPERE), ampere, "{shape:?}");
            assert_eq!(chosen(DType::BF16, shape, LARGE, HOPPER), hopper, "{shape:?}");
        }
        for capability in [AMPERE, HOPPER, (10, 0), (12, 0)] {
            let wgmma = chosen(DType::BF16, [4096; 3], LARGE, capability).ends_with("wgmma");
            assert_eq!(wgmma, capability == HOPPER, "{capability:?}");
            assert_eq!(chosen(DType::F32, [4096; 3], LARGE, capability), "128x128");
            assert_eq!(chosen(DType::F32, [1, 1, 3], LARGE, capability), "64x64_unaligned");
        }
        assert_eq!(chosen(DType::BF16, [4096; 3], SMALL, AMPERE), "128x128");
    }

    /// Pairs of blocks have the bits of single ones, whichever way they are laid.
    #[test]
    fn pairs_give_what_single_blocks_give() {
        let mut pairings = Vec::new();
        for multiprocessors in [2, 3, 8] {
            let driver = emulator::EmulatedDriver::with_multiprocessors(1 << 28, multiprocessors);
            let cuda = Cuda::new(std::sync::Arc::new(driver), DType::BF16).unwrap();
            let random = |shape: [usize; 2], stream| {
                cuda.sequence(shape, &Philox::new(7, stream).values(shape[0] * shape[1])).unwrap()
            };
            for [rows, columns, k] in [[1, 8, 8], [129, 264, 72], [300, 520, 328], [100, 520, 328], [514, 200, 64]] {
                let (x, residual) = (random([rows, k], 0), random([rows, columns], 1));
                let weight = HostTensor::from_f32(&[columns, k], Philox::new(7, 2).values(columns * k)).unwrap();
                let bias = cuda.upload([1, columns], &Philox::new(7, 3).values(columns)).unwrap();
                let layer = LinearWeights { weight: cuda.matrix(weight).unwrap(), bias };
                let run = |tile: &ForwardTile| {
                    let y = linear_tiled(&cuda, &x, &layer, Activation::Gelu, Some(&residual), tile).unwrap();
                    (tile.name, cuda.download(&y).unwrap())
                };
                let results: Vec<_> = TILES.iter().filter(|tile| tile.is_wgmma()).map(run).collect();
                assert!(results.iter().filter(|(name, _)| name.ends_with("_pair")).count() > 1);
                let pairs = TILES.iter().filter(|tile| tile.is_pair());
                pairings.extend(pairs.map(|tile| (tile.name, tile.pairing(rows, columns, cuda.stream.properties()))));
                for (name, y) in &results {
                    assert!(y == &results[0].1, "{name}: {rows} x {columns} x {k} on {multiprocessors}");
                }
            }
        }
        for tile in TILES.iter().filter(|tile| tile.is_pair()) {
            let all = [tiles::Pairing::Below, tiles::Pairing::Across].map(|pairing| (tile.name, pairing));
            assert!(all.iter().all(|one| pairings.contains(one)), "{pairings:?}");
        }
    }

    /// The smallest block that takes all rows, or the largest that fits.
    #[test]
    fn decode_tiles_follow_the_rows() {
        let chosen =
            |dtype, rows, k, shared| decode_tile_for(dtype, rows, k, &tiles::device(132, shared, HOPPER)).unwrap().name;
        for (rows, bf16, f32) in [(1, "r8", "r8"), (8, "r8", "r8"), (9, "r16", "r64"), (16, "r16", "r64")] {
            assert_eq!([chosen(DType::BF16, rows, 768, LARGE), chosen(DType::F32, rows, 768, LARGE)], [bf16, f32]);
        }
        for rows in [17, 64, 1000] {
            assert_eq!(chosen(DType::BF16, rows, 768, LARGE), "r64");
            assert_eq!(chosen(DType::BF16, rows, 768, SMALL), "r16");
            assert_eq!(chosen(DType::F32, rows, 768, SMALL), "r64");
            assert_eq!(chosen(DType::BF16, rows, 769, LARGE), "r8_unaligned");
        }
    }
}
