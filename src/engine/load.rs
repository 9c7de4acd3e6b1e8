//! Loading a model on a device: the device, the types of the weights, and the engine's threads.

use std::str::FromStr;
use std::sync::Arc;

use super::LoadOptions;
use super::pipeline::Pipeline;
use crate::backend::Backend;
use crate::backend::cpu::Cpu;
use crate::config::{ModelConfig, TokenizerConfig};
use crate::model::captioner::Captioner;
use crate::model::loader::Loader;
use crate::model::vocoder::Vocoder;
use crate::model::vqgan::Tokenizer;
use crate::tensor::DType;
use crate::weights::convert::fingerprint;
use crate::weights::directory::{ModelFiles, TokenizerFiles};
use crate::weights::store::TensorStore;
use crate::{Error, Result};

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

    /// Indices of the GPUs that can be used.
    pub fn gpus() -> Vec<usize> {
        #[cfg(feature = "cuda")]
        return crate::backend::cuda::driver::gpu::probe()
            .map_or(Vec::new(), |devices| devices.into_iter().map(|(index, _)| index).collect());
        #[cfg(not(feature = "cuda"))]
        Vec::new()
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

/// Types in which the weight matrices are read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Precisions {
    /// By the vision transformer.
    pub vision: DType,
    /// By the decoder, for whole sequences.
    pub prefill: DType,
    /// By the decoder, for a step.
    pub step: DType,
}

/// Puts the models of `files` on the device of the options.
pub(super) fn load(files: ModelFiles, options: LoadOptions) -> Result<(Pipeline, Precisions)> {
    match options.device {
        Device::Cpu => on_cpu(files, options.dtype),
        Device::Auto if first_gpu().is_none() => on_cpu(files, options.dtype),
        #[cfg(any(feature = "cuda", feature = "emulator"))]
        device => on_gpu(device.driver()?, files, options.dtype),
        #[cfg(not(any(feature = "cuda", feature = "emulator")))]
        device => Err(no_kernels(device)),
    }
}

/// Something that is made on any backend.
pub(super) trait OnBackend {
    /// The result, which names no backend.
    type Made;
    /// Makes it with matrices in `dtype`, or as they are stored.
    fn make<B: Backend>(self, backend: B, dtype: Option<DType>) -> Result<Self::Made>;
}

/// Makes something on the device of the options. On a GPU it computes in f32 unless bf16 is chosen: units and symbols are choices,
/// and a rounded feature can be nearer to another.
pub(super) fn with_backend<T: OnBackend>(options: LoadOptions, task: T) -> Result<T::Made> {
    match options.device {
        Device::Cpu => task.make(Cpu, options.dtype),
        Device::Auto if first_gpu().is_none() => task.make(Cpu, options.dtype),
        #[cfg(any(feature = "cuda", feature = "emulator"))]
        device => {
            let dtype = options.dtype.unwrap_or(DType::F32);
            task.make(crate::backend::cuda::Cuda::new(device.driver()?, dtype)?, Some(dtype))
        }
        #[cfg(not(any(feature = "cuda", feature = "emulator")))]
        device => Err(no_kernels(device)),
    }
}

/// Index of the first GPU that can be used.
fn first_gpu() -> Option<usize> {
    Device::gpus().first().copied()
}

fn on_cpu(files: ModelFiles, dtype: Option<DType>) -> Result<(Pipeline, Precisions)> {
    let used = |model| match dtype.or(stored(&files, model)) {
        Some(DType::BF16 | DType::F8E4M3) => DType::BF16,
        Some(DType::I8) => DType::I8,
        _ => DType::F32,
    };
    let (vision, decoder) = (used("vision"), used("decoder"));
    Ok((start(Cpu, files, dtype, || Ok((Cpu, dtype)))?, Precisions { vision, prefill: decoder, step: decoder }))
}

/// Loads the models, captioner and vocoder at the same time, and starts their threads; the vocoder gets a stream of its own, the
/// tokenizer the backend and the type of its matrices that `for_tokenizer` gives.
fn start<B: Backend>(
    backend: B,
    mut files: ModelFiles,
    dtype: Option<DType>,
    for_tokenizer: impl FnOnce() -> Result<(B, Option<DType>)>,
) -> Result<Pipeline> {
    let (config, store) = (&files.config, files.vocoder.take());
    let (captioner, vocoder) = rayon::join(
        || {
            let mut loader = Loader { backend: &backend, store: &mut files.captioner, dtype };
            Captioner::load(&mut loader, config)
        },
        || load_vocoder(&backend, config, store, dtype),
    );
    let mut captioner = captioner?;
    files.captioner.finish()?;
    if let Some(TokenizerFiles { config, store }) = files.tokenizer {
        let codes = store.iter().find(|(name, _)| *name == "codebook").map(|(_, codes)| fingerprint(&codes.to_f32()));
        if captioner.unit_grid().is_some_and(|grid| codes.is_some_and(|codes| codes != grid.codebook)) {
            let problem = "is not the captioner's: convert captioner and tokenizer with one codebook";
            return Err(Error::weights(store.path(), "codebook", problem));
        }
        let (backend, dtype) = for_tokenizer()?;
        let tokenizer = load_tokenizer(&backend, &config, store, dtype)?;
        captioner.set_tokenizer(backend, tokenizer)?;
    }
    Pipeline::start(files.config, (backend, captioner), vocoder?)
}

/// Puts the vocoder, if there is one, on a stream of its own.
fn load_vocoder<B: Backend>(
    backend: &B,
    config: &ModelConfig,
    store: Option<TensorStore>,
    dtype: Option<DType>,
) -> Result<Option<(B, Vocoder<B>)>> {
    let (Some(config), Some(mut store)) = (&config.vocoder, store) else { return Ok(None) };
    let backend = backend.new_stream()?;
    let vocoder = Vocoder::load(&mut Loader { backend: &backend, store: &mut store, dtype }, config)?;
    store.finish()?;
    Ok(Some((backend, vocoder)))
}

/// The backend of a tokenizer on a GPU. It computes in f32 unless bf16 is chosen: units are choices, and a rounded vector can be
/// nearer to another code.
#[cfg(any(feature = "cuda", feature = "emulator"))]
fn gpu_tokenizer(
    driver: Arc<dyn crate::backend::cuda::driver::Driver>,
    dtype: Option<DType>,
) -> impl FnOnce() -> Result<(crate::backend::cuda::Cuda, Option<DType>)> {
    let dtype = if dtype == Some(DType::BF16) { DType::BF16 } else { DType::F32 };
    move || Ok((crate::backend::cuda::Cuda::new(driver, dtype)?, Some(dtype)))
}

/// Puts the tokenizer on a device.
fn load_tokenizer<B: Backend>(
    backend: &B,
    config: &TokenizerConfig,
    mut store: TensorStore,
    dtype: Option<DType>,
) -> Result<Tokenizer<B>> {
    let tokenizer = Tokenizer::load(&mut Loader { backend, store: &mut store, dtype }, config)?;
    store.finish()?;
    Ok(tokenizer)
}

/// A tokenizer that runs on the device of the options, once for each thread that may use it at the same time, and the device's
/// name.
pub(super) fn tokenizer(files: TokenizerFiles, options: LoadOptions) -> Result<(String, Vec<Tokenize>)> {
    let TokenizerFiles { config, store } = files;
    match options.device {
        Device::Cpu => tokenize_on(Cpu, &config, store, options.dtype, 1),
        Device::Auto if first_gpu().is_none() => tokenize_on(Cpu, &config, store, options.dtype, 1),
        #[cfg(any(feature = "cuda", feature = "emulator"))]
        device => {
            let (backend, dtype) = gpu_tokenizer(device.driver()?, options.dtype)()?;
            // While one batch is copied to the GPU and its units come back, another is computed.
            tokenize_on(backend, &config, store, dtype, 2)
        }
        #[cfg(not(any(feature = "cuda", feature = "emulator")))]
        device => Err(no_kernels(device)),
    }
}

/// Pixels of so many images to their units.
pub(super) type Tokenize = Box<dyn Fn(&[f32], usize) -> Result<Vec<Vec<u16>>> + Send + Sync>;

fn tokenize_on<B: Backend>(
    backend: B,
    config: &TokenizerConfig,
    store: TensorStore,
    dtype: Option<DType>,
    streams: usize,
) -> Result<(String, Vec<Tokenize>)> {
    let tokenizer = Arc::new(load_tokenizer(&backend, config, store, dtype)?);
    let (name, loaded) = (backend.name(), backend.record_event()?);
    let mut backends = vec![backend];
    while backends.len() < streams {
        let stream = backends[0].new_stream()?;
        stream.wait(&loaded)?;
        backends.push(stream);
    }
    let on = |backend: B| -> Tokenize {
        // Dropped in this order: a stream waits for its work, which may read weights of the first stream, before they go.
        let lane = (backend, tokenizer.clone());
        Box::new(move |pixels, batch| {
            let (backend, tokenizer) = &lane;
            backend.run(|| tokenizer.units(backend, pixels, batch))
        })
    };
    Ok((name, backends.into_iter().map(on).collect()))
}

/// Type of the matrices of this model's layers in the file.
fn stored(files: &ModelFiles, model: &str) -> Option<DType> {
    let first = [format!("{model}.layers.0.qkv.weight"), format!("{model}.head.weight")];
    files.captioner.iter().find(|(name, _)| first.iter().any(|first| first == name)).map(|(_, tensor)| tensor.dtype())
}

/// bf16, the type the tensor cores compute in, unless f32 is chosen. e4m3 weights are kept as such for decoding; int8 ones become
/// bf16.
#[cfg(any(feature = "cuda", feature = "emulator"))]
pub(super) fn on_gpu(
    driver: Arc<dyn crate::backend::cuda::driver::Driver>,
    files: ModelFiles,
    dtype: Option<DType>,
) -> Result<(Pipeline, Precisions)> {
    let for_tokenizer = gpu_tokenizer(driver.clone(), dtype);
    let step = dtype.or(stored(&files, "decoder").filter(|&dtype| dtype == DType::F8E4M3)).unwrap_or(DType::BF16);
    let dtype = if step == DType::F32 { DType::F32 } else { DType::BF16 };
    let backend = crate::backend::cuda::Cuda::new(driver, dtype)?;
    let pipeline = start(backend, files, Some(dtype), for_tokenizer)?;
    Ok((pipeline, Precisions { vision: dtype, prefill: dtype, step }))
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
