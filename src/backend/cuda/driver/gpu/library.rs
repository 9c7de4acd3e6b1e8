//! Finds NVIDIA's driver library and its devices when the program runs, and puts what it answers into words. Nothing here
//! may panic on a machine without a GPU: every function of the library is behind [`load`].

use std::ffi::{CStr, c_char, c_int};
use std::sync::OnceLock;

use cudarc::driver::sys::{self, CUdevice, CUdevice_attribute, CUresult};

use crate::backend::cuda::driver::Properties;
use crate::{Error, Result};

/// The CUDA version that a driver has to support, as it counts them, and the driver that brought it.
const NEEDED: (c_int, &str) = (13_000, "580");
/// The oldest compute capability that the kernels are compiled for.
const CAPABILITY: (u32, u32) = (8, 0);

/// An environment variable: 1 lets pairs of blocks take large products on Hopper, to measure what only the emulator has run.
const PAIRS: &str = "IM2SP_PAIRS";

/// Gets the library ready for use by this device.
fn load(device: &str) -> Result<()> {
    static LOADED: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    LOADED.get_or_init(find).clone().map_err(|problem| device_error(device, problem))
}

fn find() -> std::result::Result<(), String> {
    // SAFETY: loading the driver library runs its constructors, which any CUDA program does.
    if !unsafe { sys::is_culib_present() } {
        return Err(
            "NVIDIA's driver library (libcuda.so) is not on this machine: install the driver of the GPU (in a \
                    container: start it with GPU support), or use --device cpu"
                .into(),
        );
    }
    // SAFETY: the library is there, so this does not panic; the symbols are only looked for.
    let driver = ["cuInit", "cuDriverGetVersion", "cuGetErrorName"]
        .iter()
        .all(|name| unsafe { sys::culib().get::<unsafe extern "C" fn()>(name.as_bytes()).is_ok() });
    if !driver {
        return Err("the library found as libcuda.so is not NVIDIA's driver: look at LD_LIBRARY_PATH".into());
    }
    let mut version = 0;
    // SAFETY: writes one number; may be called before cuInit.
    let asked = unsafe { sys::cuDriverGetVersion(&mut version) };
    let (needed, driver) = NEEDED;
    if asked == CUresult::CUDA_SUCCESS && version < needed {
        return Err(format!(
            "the NVIDIA driver is too old: it knows CUDA {}.{}, and the kernels need {}.{} or later: update the driver to \
             {driver} or later, or use --device cpu",
            version / 1000,
            version % 1000 / 10,
            needed / 1000,
            needed % 1000 / 10
        ));
    }
    // SAFETY: takes no address.
    match unsafe { sys::cuInit(0) } {
        CUresult::CUDA_SUCCESS => Ok(()),
        CUresult::CUDA_ERROR_NO_DEVICE => Err(no_device()),
        result => Err(format!("NVIDIA's driver does not start: {}", words(result))),
    }
}

fn no_device() -> String {
    let hidden = std::env::var("CUDA_VISIBLE_DEVICES");
    let hidden = hidden.map_or(String::new(), |value| format!(" (CUDA_VISIBLE_DEVICES is {value:?})"));
    format!("NVIDIA's driver finds no GPU{hidden}: check `nvidia-smi`, or use --device cpu")
}

/// The devices that the kernels run on, by index.
///
/// # Errors
/// If there is none, with the reason and what to do about it.
pub fn probe() -> Result<Vec<(usize, Properties)>> {
    load("cuda")?;
    let mut usable = Vec::new();
    let mut reason = device_error("cuda", no_device());
    for index in 0..count()? {
        match device(index) {
            Ok((_, properties)) => usable.push((index, properties)),
            Err(error) => reason = error,
        }
    }
    if usable.is_empty() { Err(reason) } else { Ok(usable) }
}

fn count() -> Result<usize> {
    let mut count = 0;
    // SAFETY: writes one number.
    succeed("cuda", "counting the devices", unsafe { sys::cuDeviceGetCount(&mut count) })?;
    Ok(count.max(0) as usize)
}

/// The device of this index, if the kernels run on it.
pub(super) fn device(index: usize) -> Result<(CUdevice, Properties)> {
    let name = format!("cuda:{index}");
    load(&name)?;
    let count = count()?;
    if index >= count {
        let problem = match count {
            0 => no_device(),
            1 => "there is one GPU on this machine, cuda:0".into(),
            _ => format!("there are {count} GPUs on this machine, cuda:0 to cuda:{}", count - 1),
        };
        return Err(device_error(&name, problem));
    }
    let mut device = 0;
    // SAFETY: writes one handle.
    succeed(&name, "opening the device", unsafe { sys::cuDeviceGet(&mut device, index as c_int) })?;
    let properties = properties(&name, device)?;
    if properties.capability < CAPABILITY {
        let (major, minor) = properties.capability;
        let problem = format!(
            "{} has compute capability {major}.{minor}, and the kernels need {}.{} (Ampere) or later: use another GPU or \
             --device cpu",
            properties.name, CAPABILITY.0, CAPABILITY.1
        );
        return Err(device_error(&name, problem));
    }
    Ok((device, properties))
}

fn properties(name: &str, device: CUdevice) -> Result<Properties> {
    use CUdevice_attribute::*;
    let what = "asking for the device's properties";
    let number = |attribute| {
        let mut value = 0;
        // SAFETY: writes one number.
        succeed(name, what, unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, device) })?;
        Ok(u32::try_from(value).unwrap_or(0))
    };
    let mut text = [0 as c_char; 256];
    // SAFETY: writes at most so many bytes.
    succeed(name, what, unsafe { sys::cuDeviceGetName(text.as_mut_ptr(), text.len() as c_int, device) })?;
    let text: Vec<u8> = text.iter().map(|&c| c as u8).take_while(|&c| c != 0).collect();
    let mut memory = 0;
    // SAFETY: writes one number.
    succeed(name, what, unsafe { sys::cuDeviceTotalMem_v2(&mut memory, device) })?;
    Ok(Properties {
        name: String::from_utf8_lossy(&text).into_owned(),
        multiprocessors: number(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize,
        capability: (
            number(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            number(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        memory,
        cooperative: number(CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH)? != 0,
        l2: number(CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)? as usize,
        shared_per_block: number(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as usize,
        pairs: std::env::var_os(PAIRS).is_some_and(|value| value == "1"),
    })
}

/// An error that says what was being done, unless the driver agreed.
pub(super) fn succeed(device: &str, what: &str, result: CUresult) -> Result<()> {
    match result {
        CUresult::CUDA_SUCCESS => Ok(()),
        result => Err(device_error(device, format!("{what}: {}", words(result)))),
    }
}

pub(super) fn device_error(device: &str, problem: impl Into<String>) -> Error {
    Error::Device { device: device.into(), problem: problem.into() }
}

/// A result by its name, in the driver's words, and with what helps.
pub(super) fn words(result: CUresult) -> String {
    let text = |ask: unsafe fn(CUresult, *mut *const c_char) -> CUresult| {
        let mut text = std::ptr::null();
        // SAFETY: the library is loaded; it sets the address of a constant string, or leaves none.
        let known = unsafe { ask(result, &mut text) == CUresult::CUDA_SUCCESS && !text.is_null() };
        // SAFETY: as said.
        known.then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
    };
    let name = text(sys::cuGetErrorName).unwrap_or_else(|| format!("error {}", result as u32));
    let meaning = text(sys::cuGetErrorString).map_or(String::new(), |meaning| format!(" ({meaning})"));
    format!("{name}{meaning}{}", advice(result))
}

fn advice(result: CUresult) -> &'static str {
    use CUresult::*;
    match result {
        CUDA_ERROR_OUT_OF_MEMORY => ": stop what else uses the GPU (`nvidia-smi` lists it), or use another",
        CUDA_ERROR_STUB_LIBRARY => ": libcuda.so is the toolkit's stub: take its folder out of LD_LIBRARY_PATH",
        CUDA_ERROR_DEVICE_UNAVAILABLE => ": another process holds the GPU for itself: wait for it, or use another GPU",
        CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => ": the driver was updated and not reloaded: start the machine again",
        CUDA_ERROR_SYSTEM_NOT_READY => ": the machine needs its fabric manager: start nvidia-fabricmanager",
        CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE => ": take CUDA's compat folder out of LD_LIBRARY_PATH",
        CUDA_ERROR_UNKNOWN => ": if the machine slept, unload and load the module nvidia_uvm, or start it again",
        CUDA_ERROR_JIT_COMPILER_NOT_FOUND => {
            ": this GPU needs the driver's PTX compiler: install libnvidia-ptxjitcompiler of the same driver"
        }
        CUDA_ERROR_JIT_COMPILATION_DISABLED => ": unset CUDA_DISABLE_PTX_JIT, which this GPU needs",
        CUDA_ERROR_UNSUPPORTED_PTX_VERSION => ": the driver is older than the nvcc that built this: update the driver",
        _ => "",
    }
}

/// Whether the device is of no use to this process any more.
pub(super) fn is_lasting(result: CUresult) -> bool {
    use CUresult::*;
    matches!(
        result,
        CUDA_ERROR_DEINITIALIZED
            | CUDA_ERROR_DEVICE_UNAVAILABLE
            | CUDA_ERROR_ECC_UNCORRECTABLE
            | CUDA_ERROR_NVLINK_UNCORRECTABLE
            | CUDA_ERROR_CONTAINED
            | CUDA_ERROR_ILLEGAL_ADDRESS
            | CUDA_ERROR_LAUNCH_TIMEOUT
            | CUDA_ERROR_CONTEXT_IS_DESTROYED
            | CUDA_ERROR_ASSERT
            | CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUDA_ERROR_MISALIGNED_ADDRESS
            | CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUDA_ERROR_INVALID_PC
            | CUDA_ERROR_LAUNCH_FAILED
            | CUDA_ERROR_MPS_CLIENT_TERMINATED
            | CUDA_ERROR_EXTERNAL_DEVICE
            | CUDA_ERROR_UNKNOWN
    )
}
