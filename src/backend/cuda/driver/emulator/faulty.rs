//! The kernels of kernels/emulator/faulty.cu: each makes one mistake that the emulator has to find, or just avoids it. For
//! its tests alone.

use crate::backend::cuda::driver::{DevicePtr, EmulatedKernel, Kernel, KernelInfo};

include!(concat!(env!("OUT_DIR"), "/faulty.rs"));
