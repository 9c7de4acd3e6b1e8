//! The seam between the cases and the backend under test: what a test needs besides the operations themselves.

use crate::backend::cpu::Cpu;
use crate::backend::{Activation, LinearWeights, Peaks, Train};
use crate::tensor::DType;
use crate::{Error, Result};

/// A backend that the cases can be run on.
pub trait TestBackend: Train {
    /// Results are compared with the CPU form, unless the backend is that form.
    const COMPARED: bool = true;
    /// Cases of more operations are not timed.
    const MAX_TIMED_FLOPS: f64 = f64::INFINITY;

    /// Type of sequences and of weight matrices.
    fn dtype(&self) -> DType;
    /// Types of weight matrices that decode steps read.
    fn step_dtypes(&self) -> Vec<DType> {
        vec![self.dtype()]
    }
    /// Types of weight matrices of the greedy loop; none where it is no kernel.
    fn greedy_dtypes(&self) -> Vec<DType> {
        Vec::new()
    }
    /// Copies `values` to the device as the sequences of the models are held there: in the type of the backend.
    fn sequence(&self, shape: [usize; 2], values: &[f32]) -> Result<Self::Tensor> {
        self.upload(shape, values)
    }
    /// `x` with its rows one after the other in memory.
    fn row_major(&self, x: Self::Tensor) -> Result<Self::Tensor> {
        Ok(x)
    }
    /// Gradients as a tensor with one row.
    fn gradients_tensor(&self, gradients: Self::Gradients) -> Result<Self::Tensor> {
        let values = self.read_gradients(&gradients)?;
        self.upload([1, values.len()], &values)
    }
    /// Tiles of `linear` for a product of so many columns and this depth, by name.
    fn linear_tiles(&self, columns: usize, depth: usize) -> Vec<&'static str> {
        let _ = (columns, depth);
        Vec::new()
    }
    /// `linear` by the tile of this name.
    fn linear_tiled(
        &self,
        tile: &str,
        x: &Self::Tensor,
        layer: &LinearWeights<Self>,
        activation: Activation,
        residual: Option<&Self::Tensor>,
    ) -> Result<Self::Tensor> {
        let _ = (x, layer, activation, residual);
        Err(Error::shape("linear", format!("no tile {tile}")))
    }

    /// From now on every new tensor begins as NaN, in memory of just its size.
    fn poison(&self, on: bool) {
        let _ = on;
    }
    /// Results of `run` under every order of threads that the device can be made to take; with `checked` also with every
    /// access to memory checked, where the device can.
    fn run_all_schedules(&self, checked: bool, run: &dyn Fn() -> Result<Vec<f32>>) -> Result<Vec<Vec<f32>>> {
        let _ = checked;
        Ok(vec![run()?, run()?])
    }
    /// An error if the device does not answer any more.
    fn alive(&self) -> Result<()> {
        Ok(())
    }

    /// Peaks of the device, measured.
    fn measure_peaks(&self) -> Result<Peaks>;
    /// Memory that is overwritten before a run is timed, so that nothing of its inputs is left in the caches; `None` where
    /// runs are timed with what the run before left there.
    fn flush_buffer(&self) -> Result<Option<Self::Tensor>> {
        Ok(None)
    }
    /// Copies of weights of so many bytes that take turns where no buffer is flushed, so that they come from memory.
    fn cold_copies(&self, bytes: usize) -> usize {
        let _ = bytes;
        1
    }
    /// Overwrites the buffer.
    fn flush_l2(&self, buffer: &Self::Tensor) -> Result<()> {
        let _ = buffer;
        Ok(())
    }
}

impl TestBackend for Cpu {
    const COMPARED: bool = false;
    /// Batches of 64 images take a processor seconds.
    const MAX_TIMED_FLOPS: f64 = 5e10;

    fn dtype(&self) -> DType {
        DType::F32
    }

    fn step_dtypes(&self) -> Vec<DType> {
        vec![DType::F32, DType::BF16, DType::I8]
    }

    fn measure_peaks(&self) -> Result<Peaks> {
        Ok(self.peaks())
    }

    fn cold_copies(&self, bytes: usize) -> usize {
        const CACHES: usize = 256 << 20;
        (CACHES / bytes.max(1)).clamp(1, 24)
    }
}

#[cfg(any(feature = "cuda", feature = "emulator"))]
mod on_cuda {
    use super::*;
    use crate::backend::Device as _;
    use crate::backend::cuda::linear::{TILES, is_aligned, linear_tiled};
    use crate::backend::cuda::{Cuda, Tensor};

    impl TestBackend for Cuda {
        fn dtype(&self) -> DType {
            Cuda::dtype(self)
        }

        fn greedy_dtypes(&self) -> Vec<DType> {
            match Cuda::dtype(self) {
                _ if !self.stream().properties().cooperative => Vec::new(),
                DType::BF16 => vec![DType::BF16, DType::F8E4M3],
                dtype => vec![dtype],
            }
        }

        fn sequence(&self, shape: [usize; 2], values: &[f32]) -> Result<Tensor> {
            Cuda::sequence(self, shape, values)
        }

        fn row_major(&self, x: Tensor) -> Result<Tensor> {
            Cuda::row_major(self, &x)
        }

        fn gradients_tensor(&self, gradients: Tensor) -> Result<Tensor> {
            Ok(gradients)
        }

        fn linear_tiles(&self, columns: usize, depth: usize) -> Vec<&'static str> {
            // A GPU runs them by request alone.
            #[cfg(feature = "emulator")]
            let emulated = self.stream().driver().emulator().is_some();
            #[cfg(not(feature = "emulator"))]
            let emulated = false;
            let pairs = emulated || self.stream().properties().pairs;
            TILES
                .iter()
                .filter(|tile| {
                    tile.takes(Cuda::dtype(self), is_aligned(Cuda::dtype(self), depth)) && tile.makes(columns)
                })
                .filter(|tile| tile.runs_on(self.stream().properties()) && (pairs || !tile.is_pair()))
                .map(|tile| tile.name)
                .collect()
        }

        fn linear_tiled(
            &self,
            tile: &str,
            x: &Tensor,
            layer: &LinearWeights<Cuda>,
            activation: Activation,
            residual: Option<&Tensor>,
        ) -> Result<Tensor> {
            let [_, depth] = self.matrix_shape(&layer.weight);
            let tile = TILES.iter().find(|known| {
                known.name == tile && known.takes(Cuda::dtype(self), is_aligned(Cuda::dtype(self), depth))
            });
            let tile = tile.ok_or_else(|| Error::shape("linear", "no tile of this name"))?;
            linear_tiled(self, x, layer, activation, residual, tile)
        }

        fn poison(&self, on: bool) {
            Cuda::poison(self, on);
        }

        fn run_all_schedules(&self, checked: bool, run: &dyn Fn() -> Result<Vec<f32>>) -> Result<Vec<Vec<f32>>> {
            #[cfg(feature = "emulator")]
            if let Some(emulator) = self.stream().driver().emulator() {
                return emulator.run_all_schedules(checked, run);
            }
            let _ = checked;
            Ok(vec![run()?, run()?])
        }

        fn alive(&self) -> Result<()> {
            self.stream().synchronize()
        }

        fn measure_peaks(&self) -> Result<Peaks> {
            self.peaks()
        }

        fn flush_buffer(&self) -> Result<Option<Tensor>> {
            // Twice the L2.
            let words = self.stream().properties().l2 / 2;
            self.upload([1, words], &vec![0.0; words]).map(Some)
        }

        fn flush_l2(&self, buffer: &Tensor) -> Result<()> {
            Cuda::flush_l2(self, buffer)
        }
    }
}
