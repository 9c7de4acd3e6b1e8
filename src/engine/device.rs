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
        return crate::backend::cuda::driver::gpu::probe().map(|_| ()).map_err(|error| error.to_string());
        #[cfg(not(feature = "cuda"))]
        Err("this im2sp was built without the feature cuda".into())
    }
}

#[cfg(any(feature = "cuda", feature = "emulator"))]
impl Device {
    /// Opens the device; `Auto` is the first GPU that can be used.
    ///
    /// # Errors
    /// If it is the CPU, which has no driver, or cannot be used.
    pub fn driver(self) -> Result<Arc<dyn crate::backend::cuda::driver::Driver>> {
        match self {
            Device::Cuda(index) => gpu(index),
            #[cfg(feature = "emulator")]
            Device::Emulator => Ok(crate::backend::cuda::driver::emulator::driver()),
            Device::Auto => gpu(first_gpu().unwrap_or(0)),
            Device::Cpu => {
                Err(crate::Error::Device { device: "cpu".into(), problem: "has no driver: name a GPU, cuda:N".into() })
            }
        }
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Device::Auto => write!(f, "auto"),
            Device::Cpu => write!(f, "cpu"),
            Device::Cuda(index) => write!(f, "cuda:{index}"),
            #[cfg(feature = "emulator")]
            Device::Emulator => write!(f, "emulator"),
        }
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

/// In which types the weight matrices are read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Types {
    /// By the vision transformer.
    pub vision: DType,
    /// By the decoder, for whole sequences.
    pub prefill: DType,
    /// By the decoder, for a step.
    pub step: DType,
}

/// Puts the models of `files` on the device that is asked for.
pub(super) fn load(files: &mut ModelFiles, options: LoadOptions) -> Result<(Arc<dyn Captioner>, Types)> {
    match options.device {
        Device::Cpu => on_cpu(files, options.dtype),
        Device::Auto if first_gpu().is_none() => on_cpu(files, options.dtype),
        #[cfg(any(feature = "cuda", feature = "emulator"))]
        device => on_gpu(device.driver()?, files, options.dtype),
        #[cfg(not(any(feature = "cuda", feature = "emulator")))]
        device => Err(no_kernels(device)),
    }
}

/// Index of the first GPU that can be used.
fn first_gpu() -> Option<usize> {
    #[cfg(feature = "cuda")]
    return crate::backend::cuda::driver::gpu::probe().ok().and_then(|devices| devices.first().map(|device| device.0));
    #[cfg(not(feature = "cuda"))]
    None
}

fn on_cpu(files: &mut ModelFiles, dtype: Option<DType>) -> Result<(Arc<dyn Captioner>, Types)> {
    let used = |model| match dtype.or(stored(files, model)) {
        Some(DType::BF16 | DType::F8E4M3) => DType::BF16,
        Some(DType::I8) => DType::I8,
        _ => DType::F32,
    };
    let (vision, decoder) = (used("vision"), used("decoder"));
    Ok((Arc::new(Model::load(Cpu, files, dtype)?), Types { vision, prefill: decoder, step: decoder }))
}

/// Type of the matrices of this model's layers in the file.
fn stored(files: &ModelFiles, model: &str) -> Option<DType> {
    let first = format!("{model}.layers.0.qkv.weight");
    files.captioner.iter().find(|(name, _)| *name == first).map(|(_, tensor)| tensor.dtype())
}

/// bf16 unless f32 is asked for: what the tensor cores compute in. e4m3 weights are kept as such for decoding; int8 ones become
/// bf16.
#[cfg(any(feature = "cuda", feature = "emulator"))]
pub(super) fn on_gpu(
    driver: Arc<dyn crate::backend::cuda::driver::Driver>,
    files: &mut ModelFiles,
    dtype: Option<DType>,
) -> Result<(Arc<dyn Captioner>, Types)> {
    let step = dtype.or(stored(files, "decoder").filter(|&dtype| dtype == DType::F8E4M3)).unwrap_or(DType::BF16);
    let dtype = if step == DType::F32 { DType::F32 } else { DType::BF16 };
    let model = Model::load(crate::backend::cuda::Cuda::new(driver, dtype)?, files, Some(dtype))?;
    Ok((Arc::new(model), Types { vision: dtype, prefill: dtype, step }))
}

#[cfg(feature = "cuda")]
fn gpu(index: usize) -> Result<Arc<dyn crate::backend::cuda::driver::Driver>> {
    crate::backend::cuda::driver::gpu::open(index)
}

#[cfg(all(feature = "emulator", not(feature = "cuda")))]
fn gpu(index: usize) -> Result<Arc<dyn crate::backend::cuda::driver::Driver>> {
    Err(no_kernels(Device::Cuda(index)))
}

#[cfg(not(feature = "cuda"))]
fn no_kernels(device: Device) -> crate::Error {
    crate::Error::Device {
        device: device.to_string(),
        problem: "this im2sp was built without kernels for GPUs: build it with --features cuda, or use --device cpu \
                  or auto"
            .into(),
    }
}
