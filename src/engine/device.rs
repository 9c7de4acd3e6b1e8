//! Which device a model runs on, and in which type.

use std::str::FromStr;
use std::sync::Arc;

use super::model::Model;
use super::{Captioner, LoadOptions};
use crate::Result;
use crate::backend::cpu::Cpu;
use crate::tensor::DType;
use crate::weights::directory::ModelFiles;

/// Where the models run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// A usable GPU if there is one, else the CPU.
    #[default]
    Auto,
    /// The host processor.
    Cpu,
    /// The GPU of this index.
    Cuda(usize),
    /// The GPU kernels, run by the host: for tests.
    #[cfg(feature = "emulator")]
    Emulator,
}

impl Device {
    /// Whether a GPU can be used, and if not, why.
    pub fn usable() -> std::result::Result<(), String> {
        #[cfg(feature = "cuda")]
        return crate::backend::cuda::gpu::probe().map(|_| ()).map_err(|error| error.to_string());
        #[cfg(not(feature = "cuda"))]
        Err("this im2sp was built without the feature cuda".into())
    }
}

impl FromStr for Device {
    type Err = String;

    /// `auto`, `cpu`, `cuda` or `cuda:N`.
    fn from_str(text: &str) -> std::result::Result<Device, String> {
        match text {
            "auto" => Ok(Device::Auto),
            "cpu" => Ok(Device::Cpu),
            "cuda" => Ok(Device::Cuda(0)),
            #[cfg(feature = "emulator")]
            "emulator" => Ok(Device::Emulator),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|index| index.parse().ok())
                .map(Device::Cuda)
                .ok_or_else(|| "expected auto, cpu, cuda or cuda:N".to_string()),
        }
    }
}

/// Puts the models of `files` on the device that is asked for; says in which type its weight matrices are.
pub(super) fn load(files: &mut ModelFiles, options: LoadOptions) -> Result<(Arc<dyn Captioner>, DType)> {
    match options.device {
        #[cfg(any(feature = "cuda", feature = "emulator"))]
        Device::Cuda(index) => on_gpu(gpu(index)?, files, options.dtype),
        #[cfg(not(any(feature = "cuda", feature = "emulator")))]
        Device::Cuda(index) => Err(no_kernels(index)),
        #[cfg(feature = "emulator")]
        Device::Emulator => on_gpu(crate::backend::cuda::emulated::driver(), files, options.dtype),
        Device::Auto => {
            #[cfg(feature = "cuda")]
            if let Some(&(index, _)) = crate::backend::cuda::gpu::probe().unwrap_or_default().first() {
                return on_gpu(gpu(index)?, files, options.dtype);
            }
            on_cpu(files, options.dtype)
        }
        Device::Cpu => on_cpu(files, options.dtype),
    }
}

fn on_cpu(files: &mut ModelFiles, dtype: Option<DType>) -> Result<(Arc<dyn Captioner>, DType)> {
    let used = match dtype.or(stored(files)) {
        Some(DType::BF16 | DType::F8E4M3) => DType::BF16,
        _ => DType::F32,
    };
    Ok((Arc::new(Model::load(Cpu, files, dtype)?), used))
}

/// Type of the decoder's matrices in the file.
fn stored(files: &ModelFiles) -> Option<DType> {
    files.captioner.iter().find(|(name, _)| *name == "decoder.layers.0.qkv.weight").map(|(_, tensor)| tensor.dtype())
}

/// bf16 unless f32 is asked for: what the tensor cores compute in. Eight-bit weights are kept as such for decoding.
#[cfg(any(feature = "cuda", feature = "emulator"))]
pub(super) fn on_gpu(
    driver: Arc<dyn crate::backend::cuda::driver::Driver>,
    files: &mut ModelFiles,
    dtype: Option<DType>,
) -> Result<(Arc<dyn Captioner>, DType)> {
    let used = dtype.or(stored(files).filter(|&dtype| dtype == DType::F8E4M3)).unwrap_or(DType::BF16);
    let dtype = if used == DType::F32 { DType::F32 } else { DType::BF16 };
    let model = Model::load(crate::backend::cuda::Cuda::new(driver, dtype)?, files, Some(dtype))?;
    // One stream of work, one caller at a time.
    Ok((Arc::new(std::sync::Mutex::new(model)), used))
}

#[cfg(feature = "cuda")]
fn gpu(index: usize) -> Result<Arc<dyn crate::backend::cuda::driver::Driver>> {
    crate::backend::cuda::gpu::open(index)
}

#[cfg(all(feature = "emulator", not(feature = "cuda")))]
fn gpu(index: usize) -> Result<Arc<dyn crate::backend::cuda::driver::Driver>> {
    Err(no_kernels(index))
}

#[cfg(not(feature = "cuda"))]
fn no_kernels(index: usize) -> crate::Error {
    crate::Error::Device {
        device: format!("cuda:{index}"),
        problem: "this im2sp was built without kernels for GPUs: build it with --features cuda, or use --device cpu \
                  or auto"
            .into(),
    }
}
