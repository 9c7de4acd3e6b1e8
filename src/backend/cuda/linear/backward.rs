//! Launches kernels/linear/backward.cu, and the forward pass that saves what the backward pass takes.

use super::super::driver::{DevicePtr, Kernel, Launch};
use super::super::kernels::{
    self, LinearBackwardAddParams, LinearBackwardBiasParams, LinearBackwardParams, LinearBackwardWeightParams,
    SIZE_OF_BIAS_SUMS,
};
use super::super::tiles::{self, Tile};
use super::super::{Cuda, Layout, Tensor, int, pointer_of};
use super::{Epilogue, best_tile, code, is_aligned, launch, maps};
use crate::backend::linear::{check, check_backward, check_weight_backward};
use crate::backend::{Activation, Device as _, LinearBackward, LinearWeights, Parameter, WeightAndBias};
use crate::tensor::DType;
use crate::{Error, Result};

/// Multiprocessors of a large device. Not asked of the device, so that results are the same on all.
const MULTIPROCESSORS: usize = 132;
/// Rows and columns of a tile; estimates, from times on an H200, of the clocks of a k_tile and of the rest of a tile, and of the
/// bytes a clock of sums that are written and read again.
const SHARE_TILE: [usize; 2] = [128, 256];
const K_TILE_CLOCKS: usize = 1600;
const TILE_CLOCKS: usize = 4000;
const BYTES_A_CLOCK: usize = 2000;
const MAX_SHARES: usize = 8;
/// Rows below which a part is not worth its sums. A multiple of a k_tile.
const SHARE_MIN: usize = 512;
/// Rows of a k_tile of bf16.
const K_TILE: usize = 64;
/// Parts of the sums of a bias at most, and their rows at least.
const BIAS_SHARES: usize = 32;
const BIAS_MIN: usize = 64;
/// Columns of a block that adds up a bias.
const BIAS_COLUMNS: usize = 32;
/// Values of a block that adds up parts.
const ADD_VALUES: usize = 256;

/// Rows that are added up by themselves for a weight (N, K): they depend on the shape alone.
fn share([rows, n, k]: [usize; 3]) -> usize {
    let tiles = n.div_ceil(SHARE_TILE[0]) * k.div_ceil(SHARE_TILE[1]);
    let k_tiles = rows.div_ceil(K_TILE);
    let clocks = |parts: usize| {
        let tile = k_tiles.div_ceil(parts) * K_TILE_CLOCKS + TILE_CLOCKS;
        let sums = if parts > 1 { (2 * parts + 2) * n * k * DType::F32.size() / BYTES_A_CLOCK } else { 0 };
        (tiles * parts).div_ceil(MULTIPROCESSORS) * tile + sums
    };
    let parts = (1..=MAX_SHARES).min_by_key(|&parts| clocks(parts)).unwrap_or(1);
    (k_tiles.div_ceil(parts) * K_TILE).max(SHARE_MIN)
}

impl LinearBackward for Cuda {
    fn linear_saving(
        &self,
        x: &Tensor,
        layer: &LinearWeights<Cuda>,
        activation: Activation,
    ) -> Result<(Tensor, Tensor)> {
        check("linear_saving", self, x, layer, None)?;
        let weight = &layer.weight.tensor;
        let saved = self.empty([x.rows, weight.rows], weight.dtype, Layout::Rows)?;
        let epilogue = Epilogue { saved: Some(&saved), ..Epilogue::of(activation) };
        Ok((launch(self, x, layer, epilogue, best_tile(self, x, layer)?)?, saved))
    }

    fn linear_backward(
        &self,
        dy: &Tensor,
        layer: &LinearWeights<Cuda>,
        input: Option<(Activation, &Tensor)>,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        check_backward(self, dy, layer, input.map(|(_, saved)| saved), residual)?;
        let weight = &layer.weight.tensor;
        let aligned = is_aligned(weight.dtype, weight.rows) && is_aligned(weight.dtype, weight.columns);
        let tile = fastest(self, &kernels::LINEAR_BACKWARD_TILES, weight.dtype, aligned, [dy.rows, weight.columns])?;
        at_input(self, dy, weight, input, residual, tile)
    }

    fn linear_weight_backward(&self, dy: &Tensor, x: &Tensor, gradients: &mut Tensor, at: WeightAndBias) -> Result<()> {
        check_weight_backward(self.shape(dy), self.shape(x), at, gradients.len())?;
        add_product(self, dy, x, place(gradients, at.weight))?;
        add_columns(self, dy, place(gradients, at.bias))
    }
}

/// Where the gradient of a parameter is.
pub(in super::super) fn place(gradients: &Tensor, parameter: Parameter) -> DevicePtr {
    gradients.pointer().offset(parameter.start * DType::F32.size())
}

/// Adds `dy^T x` to the gradient at `dweight`, (N, K) f32.
pub(in super::super) fn add_product(cuda: &Cuda, dy: &Tensor, x: &Tensor, dweight: DevicePtr) -> Result<()> {
    if dy.rows == 0 {
        return Ok(());
    }
    let [dy, x] = [cuda.rows_of(dy, cuda.dtype)?, cuda.rows_of(x, cuda.dtype)?];
    let share = share([dy.rows, dy.columns, x.columns]);
    let aligned = is_aligned(cuda.dtype, dy.columns) && is_aligned(cuda.dtype, x.columns);
    let size = [dy.rows.div_ceil(share) * dy.columns, x.columns];
    let tile = fastest(cuda, &kernels::LINEAR_BACKWARD_WEIGHT_TILES, cuda.dtype, aligned, size)?;
    add_weight(cuda, &dy, &x, share, dweight, tile)
}

/// The tile of least time that the device has room for.
fn fastest<P>(
    cuda: &Cuda,
    tiles: &'static [Tile<P>],
    dtype: DType,
    aligned: bool,
    size: [usize; 2],
) -> Result<&'static Tile<P>> {
    let tile = tiles::fastest(tiles, dtype, aligned, size, cuda.stream.properties());
    tile.ok_or_else(|| Error::shape("linear_backward", format!("values in {dtype:?}")))
}

/// The gradient at the layer's input.
fn at_input(
    cuda: &Cuda,
    dy: &Tensor,
    weight: &Tensor,
    input: Option<(Activation, &Tensor)>,
    residual: Option<&Tensor>,
    tile: &Tile<LinearBackwardParams>,
) -> Result<Tensor> {
    const OP: &str = "linear_backward";
    let (rows, depth, columns, dtype) = (dy.rows, dy.columns, weight.columns, weight.dtype);
    let rows_of = |x: Option<&Tensor>| x.map(|x| cuda.rows_of(x, dtype)).transpose();
    let (dy, saved, residual) = (cuda.rows_of(dy, dtype)?, rows_of(input.map(|(_, saved)| saved))?, rows_of(residual)?);
    let dx = cuda.empty([rows, columns], dtype, Layout::Rows)?;
    let ([dy_map, weight_map], pairing) = maps(cuda, tile, [rows, columns], [&dy, weight])?;
    let params = LinearBackwardParams {
        dy_map,
        weight_map,
        dy: dy.pointer(),
        weight: weight.pointer(),
        input: pointer_of(saved.as_ref()),
        residual: pointer_of(residual.as_ref()),
        dx: dx.pointer(),
        rows: int(OP, rows)?,
        columns: int(OP, columns)?,
        depth: int(OP, depth)?,
        activation: code(input.map_or(Activation::None, |(activation, _)| activation)),
        pairing,
        unused: [0; 17],
    };
    let blocks = tile.blocks(rows, columns, cuda.stream.properties());
    let launch = Launch::blocks(blocks).shared_bytes(tile.shared_bytes);
    // SAFETY: dy holds rows * depth elements, weight depth * columns, input, residual and dx rows * columns, as was checked;
    // tiles that reach beyond read zeros and leave their results out. Tensors begin at multiples of 256 bytes, so that the
    // rows of aligned kernels, and the vectors of rows of a multiple of eight columns, are aligned.
    unsafe { cuda.launch(tile.kernel, launch, params)? };
    Ok(dx)
}

/// Adds `dy^T x` to the gradient at `dweight`, each `share` of rows added up by itself.
fn add_weight(
    cuda: &Cuda,
    dy: &Tensor,
    x: &Tensor,
    share: usize,
    dweight: DevicePtr,
    tile: &Tile<LinearBackwardWeightParams>,
) -> Result<()> {
    const OP: &str = "linear_weight_backward";
    let (terms, rows, columns) = (dy.rows, dy.columns, x.columns);
    let parts = terms.div_ceil(share);
    let sums = if parts > 1 { Some(cuda.empty([parts, rows * columns], DType::F32, Layout::Rows)?) } else { None };
    let ([dy_map, x_map], pairing) = maps(cuda, tile, [rows, columns], [dy, x])?;
    let params = LinearBackwardWeightParams {
        dy_map,
        x_map,
        dy: dy.pointer(),
        x: x.pointer(),
        out: sums.as_ref().map_or(dweight, Tensor::pointer),
        terms: int(OP, terms)?,
        rows: int(OP, rows)?,
        columns: int(OP, columns)?,
        share: int(OP, share)?,
        adds: sums.is_none().into(),
        pairing,
        unused: [0; 20],
    };
    let blocks = tile.blocks(rows, columns, cuda.stream.properties());
    let grid = Launch::grid([blocks, parts, 1]).shared_bytes(tile.shared_bytes);
    // SAFETY: dy holds terms * rows elements, x terms * columns, the gradient rows * columns, as was checked, and the sums as
    // many for each part; tiles that reach beyond read zeros and leave their results out. A part begins within the terms, and,
    // as all tensors and gradients, with rows that are aligned where the kernel wants that.
    unsafe { cuda.launch(tile.kernel, grid, params)? };
    sums.map_or(Ok(()), |sums| add_parts(cuda, &sums, dweight))
}

/// Adds the sums of the columns of dy (M, N) to the gradient at `dbias`, N values f32.
pub(in super::super) fn add_columns(cuda: &Cuda, dy: &Tensor, dbias: DevicePtr) -> Result<()> {
    const OP: &str = "linear_weight_backward";
    if dy.rows == 0 {
        return Ok(());
    }
    let dy = cuda.rows_of(dy, cuda.dtype)?;
    let (rows, columns) = (dy.rows, dy.columns);
    let groups = columns.div_ceil(BIAS_COLUMNS);
    // Each group of columns of several parts needs a counter.
    let share = if groups > cuda.counters.len() { rows } else { rows.div_ceil(BIAS_SHARES).max(BIAS_MIN) };
    let sums = cuda.empty([rows.div_ceil(share), columns], DType::F32, Layout::Rows)?;
    let params = LinearBackwardBiasParams {
        dy: dy.pointer(),
        parts: sums.pointer(),
        gradient: dbias,
        arrived: cuda.counters.pointer(),
        rows: int(OP, rows)?,
        columns: int(OP, columns)?,
        share: int(OP, share)?,
        unused: 0,
    };
    let kernel: &'static Kernel<_> = match dy.dtype {
        DType::BF16 => &kernels::LINEAR_BACKWARD_BIAS_BF16,
        _ => &kernels::LINEAR_BACKWARD_BIAS_F32,
    };
    let grid = Launch::grid([groups, sums.rows, 1]).shared_bytes(SIZE_OF_BIAS_SUMS);
    // SAFETY: dy holds rows * columns elements, the sums as many columns for each part, the gradient as many; every group of
    // columns has its counter. None beyond is touched.
    unsafe { cuda.launch(kernel, grid, params) }
}

/// Adds the rows of `parts`, in order, to the gradient.
fn add_parts(cuda: &Cuda, parts: &Tensor, gradient: DevicePtr) -> Result<()> {
    let params = LinearBackwardAddParams {
        parts: parts.pointer(),
        gradient,
        length: parts.columns as i64,
        count: int("linear_weight_backward", parts.rows)?,
        unused: 0,
    };
    // SAFETY: the gradient holds as many values as a row of the parts.
    unsafe {
        cuda.launch(&kernels::LINEAR_BACKWARD_ADD_F32, Launch::blocks(parts.columns.div_ceil(ADD_VALUES)), params)
    }
}

#[cfg(all(test, feature = "emulator"))]
mod tests {
    use super::super::super::driver::emulator;
    use super::super::super::tiles::Pairing;
    use super::*;
    use crate::backend::parameters::{Parameter, TrainedParameters as _};
    use crate::random::Philox;
    use crate::tensor::HostTensor;

    /// Edges in every direction, more k_tiles than stages, and several parts.
    const SHAPE: [usize; 3] = [600, 264, 136];

    fn cuda(dtype: DType) -> Cuda {
        Cuda::new(emulator::driver(), dtype).unwrap()
    }

    fn random(cuda: &Cuda, shape: [usize; 2], stream: u64) -> Tensor {
        cuda.sequence(shape, &Philox::new(1, stream).values(shape[0] * shape[1])).unwrap()
    }

    /// The tile changes the time and nothing else, and so does the way in which pairs are laid.
    #[test]
    fn all_tiles_give_the_same() {
        let wide = [600, 104, 520];
        for (dtype, multiprocessors, size, rows, pairing) in [
            (DType::F32, 4, SHAPE, 130, Pairing::Below),
            (DType::BF16, 4, SHAPE, 130, Pairing::Below),
            (DType::BF16, 2, wide, 100, Pairing::Across),
        ] {
            let driver = emulator::EmulatedDriver::with_multiprocessors(1 << 28, multiprocessors);
            let cuda = Cuda::new(std::sync::Arc::new(driver), dtype).unwrap();
            let [terms, n, k] = size;
            let (dy, weight, x) = (random(&cuda, [rows, n], 0), random(&cuda, [n, k], 1), random(&cuda, [rows, k], 2));
            let input = Some((Activation::Gelu, &x));
            let run = |tile: &&Tile<_>| {
                cuda.download(&at_input(&cuda, &dy, &weight, input, Some(&x), tile).unwrap()).unwrap()
            };
            let tiles = kernels::LINEAR_BACKWARD_TILES.iter().filter(|tile| tile.takes(dtype, true));
            let results: Vec<_> = tiles.clone().map(|t| run(&t)).collect();
            assert!(results.len() > 2 && results.iter().all(|result| result == &results[0]));
            let laid = |tile: &Tile<_>| tile.pairing(rows, k, cuda.stream.properties()) == pairing;
            assert!(tiles.filter(|tile| tile.is_pair()).all(laid));

            let (dy, x) = (random(&cuda, [terms, n], 0), random(&cuda, [terms, k], 2));
            let run = |tile: &Tile<_>| {
                let gradient = cuda.gradients(n * k).unwrap();
                add_weight(&cuda, &dy, &x, SHARE_MIN, gradient.pointer(), tile).unwrap();
                cuda.download(&gradient).unwrap()
            };
            let tiles = kernels::LINEAR_BACKWARD_WEIGHT_TILES.iter().filter(|tile| tile.takes(dtype, true));
            let results: Vec<_> = tiles.clone().map(run).collect();
            assert!(results.len() > 1 && results.iter().all(|result| result == &results[0]));
            let laid = |tile: &Tile<_>| tile.pairing(n, k, cuda.stream.properties()) == pairing;
            assert!(tiles.filter(|tile| tile.is_pair()).all(laid));
        }
    }

    /// Parts are whole k_tiles, and keep a device busy without being too short.
    #[test]
    fn rows_are_shared_out_by_the_shape() {
        for (shape, expected) in [
            ([1, 768, 768], 512),
            ([8 * 407, 768, 768], 576),
            ([64 * 407, 768, 768], 3776),
            ([8 * 407, 3072, 768], 3264),
            ([1000, 0, 5], 1024),
        ] {
            assert_eq!(share(shape), expected, "{shape:?}");
            assert!(share(shape).is_multiple_of(K_TILE));
        }
    }

    #[test]
    fn misfits_name_the_operation_and_the_shapes() {
        let cuda = cuda(DType::F32);
        let weight = HostTensor::from_f32(&[3, 2], vec![1.0; 6]).unwrap();
        let bias = cuda.upload([1, 3], &[0.0; 3]).unwrap();
        let layer = LinearWeights { weight: cuda.matrix(weight).unwrap(), bias };
        let two = cuda.upload([1, 2], &[0.0; 2]).unwrap();
        let three = cuda.upload([1, 3], &[0.0; 3]).unwrap();
        let error = |result: Result<Tensor>| result.err().unwrap().to_string();
        assert!(error(cuda.linear_saving(&three, &layer, Activation::None).map(|(y, _)| y)).contains("linear_saving"));
        assert!(error(cuda.linear_backward(&two, &layer, None, None)).contains("dy (1, 2), weight (3, 2)"));
        assert!(error(cuda.linear_backward(&three, &layer, None, Some(&three))).contains("residual Some([1, 3])"));
        let mut gradients = cuda.gradients(200).unwrap();
        let at = WeightAndBias {
            weight: Parameter { start: 0, rows: 3, columns: 2 },
            bias: Parameter { start: 128, rows: 1, columns: 3 },
        };
        assert!(cuda.linear_weight_backward(&three, &two, &mut gradients, at).is_ok());
        let error = cuda.linear_weight_backward(&two, &two, &mut gradients, at).unwrap_err().to_string();
        assert!(error.contains("linear_weight_backward"), "{error}");
    }
}
