//! The kernels of kernels/emulator/faulty.cu and faulty_pair.cu: each makes one mistake that the emulator has to find, or just
//! avoids it. For its tests alone.

use crate::backend::cuda::driver::{DevicePtr, EmulatedKernel, Kernel, KernelInfo, TensorMap};

include!(concat!(env!("OUT_DIR"), "/faulty.rs"));
